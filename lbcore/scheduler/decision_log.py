"""The log of decisions: what `lbcore.decisions` makes of them, in a file."""

from __future__ import annotations

import orjson
import structlog

from lbcore.clock import unix_time_s
from lbcore.decisions import Decided, Recorder
from lbcore.line_file import LineFile

log = structlog.get_logger()


class DecisionLog:
    """Whatever goes wrong with it, decisions are made as they would be without."""

    def __init__(self, file: LineFile) -> None:
        self._file = file
        self._recorder = Recorder()
        self._is_broken = False

    def record(self, decided: Decided) -> None:
        """Takes a decision down in the moment in which it is made."""
        if not self._file.is_open or self._is_broken:
            return
        try:
            line = {"unix_s": round(unix_time_s(), 3), **self._recorder.line(decided)}
            self._file.put(orjson.dumps(line) + b"\n")
        except Exception:
            self._is_broken = True
            log.exception("decision_not_recorded", request_id=decided.request_id)
