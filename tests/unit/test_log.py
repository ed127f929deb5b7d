"""The log: one JSON object per line, without secrets, whatever is logged and whoever reads."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from lbcore import log
from lbcore.types import Role
from tests.fakes import settle


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def logged(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def start(level: str = "info") -> tuple[log.Logger, io.BytesIO]:
    stream = io.BytesIO()
    log.setup("lb-test", level, stream)
    return log.get_logger(), stream


def test_an_event_is_one_line_with_the_fields_everyone_has() -> None:
    logger, stream = start()
    logger.info("worker registered", worker_id="w1", role=Role.MIXED, models=("a", "b"))
    (entry,) = logged(stream)
    stamp = entry.pop("timestamp")
    assert entry == {
        "level": "info",
        "process": "lb-test",
        "event": "worker registered",
        "worker_id": "w1",
        "role": "mixed",
        "models": ["a", "b"],
    }
    assert len(stamp) == len("2030-01-01T00:00:00.000Z")
    assert (stamp[10], stamp[-1]) == ("T", "Z")


def test_a_field_cannot_pose_as_one_that_everyone_has() -> None:
    logger, stream = start()
    logger.info("sound", level="loud")
    (entry,) = logged(stream)
    assert (entry["level"], entry["level_"]) == ("info", "loud")


def test_bound_fields_come_along() -> None:
    logger, stream = start()
    mine = logger.bind(worker_id="w1")
    with log.bound(request_id="r1"):
        mine.warning("slow")
    mine.warning("slow")
    first, second = logged(stream)
    assert (first["request_id"], first["worker_id"], first["level"]) == ("r1", "w1", "warning")
    assert "request_id" not in second


def test_events_below_the_level_cost_nothing_and_write_nothing() -> None:
    logger, stream = start("warning")

    class Explosive:
        def __str__(self) -> str:
            raise AssertionError("rendered")

    logger.info("quiet", value=Explosive())
    logger.debug("quiet", value=Explosive())
    assert stream.getvalue() == b""


def test_an_exception_is_one_field_of_one_line() -> None:
    logger, stream = start()
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        logger.exception("it broke")
    (entry,) = logged(stream)
    assert entry["level"] == "error"
    assert "ZeroDivisionError: by zero" in entry["exception"]
    assert "exc_info" not in entry


def test_libraries_speak_through_the_same_lines_from_info_on() -> None:
    _, stream = start("debug")
    logging.getLogger("grpc.aio").error("lost %s", "it")
    logging.getLogger("aiohttp.client").info("fine")
    logging.getLogger("asyncio").debug("Using selector")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
    first, second, third = logged(stream)
    assert (first["event"], first["logger"], first["level"]) == ("lost it", "grpc.aio", "error")
    assert (second["process"], second["level"]) == ("lb-test", "info")
    assert "ZeroDivisionError" in third["exception"]


@pytest.mark.parametrize(
    "name",
    ["api_key", "openai_api_key", "apikey", "Authorization", "proxy-authorization", "password", "token", "hf_token"],
)
@pytest.mark.parametrize("level", ["debug", "info", "error"])
def test_secrets_never_come_out(name: str, level: str) -> None:
    logger, stream = start("debug")
    emit = getattr(logger, level)
    emit("asked", **{name: "hush-hush"}, headers={name: "hush-hush"}, metadata=((name, "hush-hush"), ("x", "y")))
    assert b"hush-hush" not in stream.getvalue()
    (entry,) = logged(stream)
    assert entry[name] == log.REDACTED
    assert entry["metadata"][1] == ["x", "y"]


@pytest.mark.parametrize("name", ["prompt", "prompts", "messages", "body", "request_body", "content"])
def test_what_users_say_comes_out_at_debug_only(name: str) -> None:
    logger, stream = start("debug")
    logger.info("asked", **{name: "dear diary"}, request={name: "dear diary"})
    assert b"dear diary" not in stream.getvalue()
    logger.debug("asked", **{name: "dear diary"})
    assert logged(stream)[1][name] == "dear diary"


@pytest.mark.parametrize(
    "name", ["prompt_tokens", "cached_tokens", "token_count", "tokens_in_flight", "message", "bodies"]
)
def test_numbers_about_tokens_and_prompts_come_out(name: str) -> None:
    logger, stream = start()
    logger.info("done", **{name: 7})
    assert logged(stream)[0][name] == 7


@dataclass(frozen=True)
class Request:
    request_id: str
    body: bytes
    password: str = "hush-hush"
    raw: bytes = b"12345"
    hidden: str = field(default="hush-hush", repr=False)


def test_values_of_our_own_types_are_held_to_the_same_rule() -> None:
    logger, stream = start()
    logger.info("asked", request=Request("r1", b"dear diary"), batch=[Request("r2", b"dear diary")])
    assert b"diary" not in stream.getvalue()
    assert b"hush" not in stream.getvalue()
    (entry,) = logged(stream)
    assert entry["request"] == {"request_id": "r1", "body": log.REDACTED, "password": log.REDACTED, "raw": "[5 bytes]"}


def test_whatever_is_logged_the_line_is_json() -> None:
    logger, stream = start()
    logger.info(
        "odd", big=2**80, lone="\ud800", infinite=float("inf"), error=ValueError("no"), keys={1: 2}, line="a\nb"
    )
    logger.info("odd", error=ValueError("no"), keys={1: 2}, line="a\nb")
    assert len(stream.getvalue().splitlines()) == 2
    second = json.loads(stream.getvalue().splitlines()[1])
    assert (second["error"], second["keys"], second["line"]) == ("no", {"1": 2}, "a\nb")


class _Broken(io.BytesIO):
    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0

    def write(self, data: Any) -> int:
        self.attempts += 1
        raise BrokenPipeError(32, "Broken pipe")


def test_it_falls_silent_when_nobody_reads() -> None:
    stream = _Broken()
    log.setup("lb-test", "info", stream)
    log.get_logger().info("one")
    logging.getLogger("grpc").error("two")
    assert stream.attempts == 1


class _Full(io.BytesIO):
    """A disk."""

    is_full = False

    def write(self, data: Any) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_lines_for_which_there_is_no_place_are_lost_and_counted_until_there_is() -> None:
    stream = _Full()
    log.setup("lb-test", "info", stream)
    log.get_logger().info("before")
    stream.is_full = True
    log.get_logger().info("one")
    logging.getLogger("grpc").error("two")
    stream.is_full = False
    log.get_logger().info("after")
    log.get_logger().info("last")
    events = [json.loads(line) for line in stream.getvalue().splitlines() if line]
    assert [event["event"] for event in events] == ["before", "log_lines_lost", "after", "last"]
    assert (events[1]["lines"], events[1]["level"]) == (2, "warning")


async def test_frequent_lines_for_which_there_is_no_place_are_counted_one_by_one() -> None:
    stream = _Full()
    log.setup("lb-test", "info", stream)
    stream.is_full = True
    log.info_often("one", {})
    log.info_often("two", {})
    await settle(1)
    stream.is_full = False
    log.get_logger().info("after")
    assert json.loads(stream.getvalue().splitlines()[1])["lines"] == 2


def test_a_process_whose_reader_left_ends_without_a_word() -> None:
    program = (
        "import sys; from lbcore import log; log.setup('lb-test'); sys.stdin.read()\n"
        "for i in range(9): log.get_logger().info('event')\n"
        "print('still alive', file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"still alive\n"
        assert process.wait() == 0


LINE: dict[str, str | int | float | None] = {"request_id": "r1", "code": 200, "duration_ms": 1.5, "reason": None}


class _Counted(io.BytesIO):
    """Counts writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> int:
        self.writes.append(bytes(data))
        return super().write(data)


def _events(data: bytes) -> list[str]:
    return [json.loads(line)["event"] for line in data.splitlines()]


def test_an_event_that_is_frequent_says_the_same_as_any_other() -> None:
    logger, stream = start()
    logger.info("request", **LINE)
    log.info_often("request", LINE)
    usual, often = logged(stream)
    for entry in (usual, often):
        entry.pop("timestamp")
    assert often == usual
    assert [*often] == [*usual]


def test_outside_an_event_loop_a_frequent_event_is_written_at_once() -> None:
    _, stream = start()
    log.info_often("request", LINE)
    assert _events(stream.getvalue()) == ["request"]


async def test_frequent_events_of_one_turn_are_one_write_at_its_end() -> None:
    stream = _Counted()
    log.setup("lb-test", "info", stream)
    for number in range(5):
        log.info_often("request", {"number": number})
    assert stream.writes == []
    await settle(1)
    assert len(stream.writes) == 1
    assert [entry["number"] for entry in logged(stream)] == [0, 1, 2, 3, 4]
    log.info_often("request", {"number": 5})
    await settle(1)
    assert len(stream.writes) == 2


async def test_frequent_events_keep_their_place_among_others() -> None:
    logger, stream = start()
    log.info_often("one", {})
    log.info_often("two", {})
    logger.warning("three")
    log.info_often("four", {})
    logging.getLogger("grpc.aio").error("five")
    await settle(1)
    log.info_often("six", {})
    await settle(1)
    assert _events(stream.getvalue()) == ["one", "two", "three", "four", "five", "six"]


async def test_a_frequent_event_that_is_odd_keeps_its_place_too() -> None:
    _, stream = start()
    log.info_often("one", {})
    log.info_often("two", {"big": 2**80, "lone": "\ud800"})
    log.info_often("three", {})
    await settle(1)
    assert _events(stream.getvalue()) == ["one", "two", "three"]


async def test_frequent_events_below_the_level_are_not_written() -> None:
    _, stream = start("warning")
    log.info_often("request", LINE)
    await settle(1)
    assert stream.getvalue() == b""


async def test_frequent_events_fall_silent_when_nobody_reads() -> None:
    stream = _Broken()
    log.setup("lb-test", "info", stream)
    log.info_often("one", {})
    log.info_often("two", {})
    await settle(1)
    log.info_often("three", {})
    await settle(1)
    assert stream.attempts == 1


def test_frequent_events_are_heard_by_who_listens_instead() -> None:
    start()
    with structlog.testing.capture_logs() as logs:
        log.info_often("request", LINE)
    assert logs == [{"event": "request", "log_level": "info", **LINE}]
