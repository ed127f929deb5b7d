"""Which vLLM to start: the words behind `--` on our command line, in vLLM's own language and in an older one.

Nothing of vLLM is declared again here. Its parser reads the words, and refuses what it does not know.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lbcore.config import option, positive
from lbcore.errors import ConfigError

OURS = {
    "--model": "--model",
    "--model-path": "--model",
    "--served-model-name": "--served-model-name",
    "--model-names": "--served-model-name",
}
"""vLLM's and FastChat's flags for what lb-worker itself must know, and how lb-worker calls it."""

RENAMED = {
    "--num-gpus": "--tensor-parallel-size",
    "--limit-worker-concurrency": "--max-num-seqs",
}
"""FastChat's flags for what vLLM calls otherwise."""

NOW_PLAIN = {"--worker-use-ray": ("--distributed-executor-backend", "ray"), "--engine-use-ray": ()}
"""Switches of the vLLM that FastChat knew, and the words that say the same today."""

MIN_BEGINNING = len("--num-gp")
"""Anything shorter begins flags of vLLM's own as well."""

ENVIRONMENT = {
    # The process has gRPC's threads by now, and a forked child would inherit their locks as they stood.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # stdout carries one JSON object per line.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Nothing here phones home unless the operator says so.
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM's environment is unless it was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """The options of the vLLM engine. Everything else is vLLM's own, behind `--`."""

    args: str = option(
        "",
        metavar="WORDS",
        takes_rest=True,
        help="arguments of vLLM itself, under its own names; what stands behind -- is added to them",
    )
    prefix_events: bool = option(
        True, help="tell the scheduler what the prefix cache holds, as vLLM itself says, where prefixes are cached"
    )
    hang_timeout_s: float = option(
        60.0, check=positive, help="seconds without a step while requests wait, after which the engine counts as hung"
    )


def translate(words: Sequence[str]) -> list[str]:
    """The same in vLLM's words: FastChat's flags, their unambiguous beginnings and `_` for `-` are understood.

    Raises ConfigError for what belongs before the `--`.
    """
    translated: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        name = _full_name(flag.replace("_", "-")) if flag.startswith("--") else flag
        if name in OURS:
            raise ConfigError(f"{flag}: belongs before the --, as {OURS[name]} of lb-worker")
        if name in NOW_PLAIN:
            translated += NOW_PLAIN[name]
        else:
            translated.append(f"{RENAMED.get(name, flag)}{equals}{value}")
    return translated


def read_arguments(options: VllmOptions, model: str, names: Sequence[str]) -> Any:
    """vLLM's own namespace of arguments, for the engine and for what stands in front of it.

    Raises ConfigError for words that vLLM does not understand, and when there is no vLLM.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        words = translate(shlex.split(options.args))
    except ValueError as error:
        raise ConfigError(f"--vllm-args: {error}") from None
    try:
        import vllm  # noqa: F401
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import BaseFrontendArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise ConfigError(_missing(error)) from None

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"--: vLLM does not take this: {message}")

    parser = AsyncEngineArgs.add_cli_args(BaseFrontendArgs.add_cli_args(Parser(prog="vllm", add_help=False)))
    return parser.parse_args([*words, "--model", model, "--served-model-name", *names])


def _full_name(flag: str) -> str:
    """The old flag that this is or begins; the flag itself where that is not clear."""
    if flag in OURS:
        return flag
    found = [name for name in (*RENAMED, *NOW_PLAIN) if name.startswith(flag) and len(flag) >= MIN_BEGINNING]
    return found[0] if len(found) == 1 else flag


def _missing(error: ImportError) -> str:
    if error.name == "vllm":
        return "--engine: vllm needs the package vllm: pip install 'lbcore[vllm]'"
    return f"--engine: the package vllm is there but cannot be used here: {error}"
