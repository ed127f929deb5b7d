"""Requests through a gateway that writes a trace, and the trace in the simulator: what was shared, is shared there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import orjson

from gateway.app import trace_to
from lbcore.errors import InvalidRequest
from lbcore.line_file import LineFile
from lbcore.policies.registry import build_policy
from lbcore.simulator.replay import FleetSpec, Replay
from lbcore.simulator.traces import read_trace
from tests.fleet import MODEL
from tests.wire.browser import connect
from tests.wire.conftest import SchedulerHost, Wire, WorkerHost, eventually, soon
from tests.wire.gateway_host import before_worker

SYSTEM = "You are a helpful assistant of the city's library. " * 30
QUESTIONS = ["When do you open?", "Where is the reading room? " * 12, "Do you lend maps?"]


async def test_what_went_through_a_gateway_is_replayed_with_what_it_shared(
    wire: Wire, scheduler: SchedulerHost, worker: WorkerHost, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    lines = LineFile(str(path), "--trace")
    async with before_worker(wire, scheduler, worker, trace=trace_to(lines, b"key")) as gateway:
        browser = await connect(gateway)
        for number, question in enumerate([*QUESTIONS, "x" * 1000]):
            prompt = question if number == len(QUESTIONS) else SYSTEM + question
            asking = asyncio.ensure_future(
                browser.ask(
                    orjson.dumps({"model": MODEL, "prompt": prompt, "stream": number == 1}),
                    b"X-Tenant-ID: alice",
                    b"X-Session-ID: s%d" % number,
                    path=b"/v1/completions",
                )
            )
            engine = await worker.engine.next()
            engine.start(len(prompt) // 4)
            engine.say("Yes")
            engine.finish(len(prompt) // 4, 0, 20 + number)
            assert (await soon(asking)).status == 200
        # What does not end well is no traffic that an engine has served.
        asking = asyncio.ensure_future(
            browser.ask(orjson.dumps({"model": MODEL, "prompt": "bad"}), path=b"/v1/completions")
        )
        (await worker.engine.next()).fail(InvalidRequest("No."))
        assert (await soon(asking)).status == 400
        await eventually(lambda: not gateway.exchanges.in_flight)
        browser.close()
    await lines.close()

    text = path.read_text()
    assert not any(word in text for word in ("alice", "library", "xxx", MODEL))
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["output_tokens"] for row in rows] == [20, 21, 22, 23]
    workload = read_trace(path, "own")
    calls = [talk.calls[0] for talk in workload.conversations]
    assert [call.input_tokens for call in calls] == [
        *(len(SYSTEM + question) // 4 for question in QUESTIONS),
        250,
    ]
    # Whole blocks of bytes, and of those whole blocks of tokens.
    shared_blocks = (len(SYSTEM) // 256 * 256 // 4 - 1) // workload.block_tokens
    assert len({tuple(call.blocks[:shared_blocks]) for call in calls[:3]}) == 1
    assert not set(calls[3].blocks) & set(calls[0].blocks)

    played = Replay(workload, FleetSpec(workers=1), build_policy("cost")).run()
    assert [flight.refused for flight in played.flights] == [""] * 4
    # All but the first find the shared beginning; a whole block less where the prompt ends with it.
    found = [flight.cached_tokens for flight in played.flights]
    assert found[0] == found[3] == 0
    assert all(abs(tokens - shared_blocks * workload.block_tokens) <= workload.block_tokens for tokens in found[1:3])
