"""lbctl explain: where a request would go now, and why; nothing is sent."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbcore.commands.scheduler import SchedulerOptions
from lbcore.config import Group, at_least, load_groups, option
from lbcore.errors import ConfigError
from lbcore.prefix import block_hashes
from lbcore.types import Explanation, Role, RouteFacts, WorkerId
from lbcore.wire.admin_client import explain_route

PROG = "lbctl explain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """The facts of the request."""

    model: str = option(metavar="NAME", help="model that it asks for")
    prompt_file: str = option("", metavar="FILE", help="its prompt, as /v1/completions would get it")
    prompt_bytes: int = option(0, check=at_least(0), help="length of a prompt that begins as no other does")
    max_output_tokens: int = option(0, check=at_least(0), help="most tokens of its answer; 0 for no limit")
    session: str = option("", metavar="ID", help="its session")
    tenant: str = option("", metavar="ID", help="on whose behalf it is")
    priority: int = option(0, help="how urgent it is; 0 is normal")
    phase: Role = option(Role.MIXED, help="what of it is asked for; mixed stands for the whole")


def explain_route_of(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Asks the scheduler and prints a table.

    Raises:
        ConfigError: an option makes no sense, or the prompt cannot be read.
        ModelNotFound: no worker serves the model.
        NoReadyWorker: no scheduler answers there.
    """
    groups = (Group(ExplainOptions), Group(SchedulerOptions))
    loaded = load_groups(groups, PROG, argv, environ, description=__doc__ or "")
    facts = facts_of(loaded[ExplainOptions])
    worker_id, explanation = asyncio.run(explain_route(loaded[SchedulerOptions].scheduler, facts))
    print(page(worker_id, explanation))


def facts_of(options: ExplainOptions) -> RouteFacts:
    """What a gateway would say of the request."""
    if options.prompt_file and options.prompt_bytes:
        raise ConfigError("--prompt-bytes: the prompt of --prompt-file has a length of its own")
    prompt = b""
    if options.prompt_file:
        try:
            prompt = Path(options.prompt_file).read_bytes()
        except OSError as error:
            raise ConfigError(f"--prompt-file: cannot read {options.prompt_file}: {error.strerror or error}") from error
    return RouteFacts(
        "lbctl",
        options.model,
        len(prompt) or options.prompt_bytes,
        block_hashes(prompt),
        max_output_tokens=options.max_output_tokens,
        priority=options.priority,
        session_id=options.session,
        tenant=options.tenant,
        phase=options.phase,
    )


def page(worker_id: WorkerId | None, explanation: Explanation) -> str:
    """The decision in a sentence, and a line for each candidate under a line of headings."""
    weighed = [one for one in explanation.candidates if not one.excluded_by]
    sizes: defaultdict[str, float] = defaultdict(float)
    for one in weighed:
        for name, term in one.terms.items():
            sizes[name] += abs(term) if round(term, 1) else 0.0
    names = [name for name in sorted(sizes, key=lambda name: -sizes[name]) if sizes[name]]
    rows = [["worker", "cost", "cached", *names, "left out by"]]
    for one in explanation.candidates:
        cached = f"{one.cached_tokens:,.0f}"
        if one.excluded_by:
            rows.append([one.worker_id, "", cached, *("" for _ in names), one.excluded_by])
        else:
            terms = (f"{one.terms.get(name, 0.0):,.1f}" for name in names)
            rows.append([one.worker_id, f"{one.cost:,.1f}", cached, *terms, ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index in (0, len(row) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    where = f"to {worker_id}" if worker_id is not None else "to nobody now"
    heading = f"{where}, by {explanation.policy}: {explanation.reason}"
    return "\n".join((heading, f"{explanation.prompt_tokens:,} prompt tokens, as estimated", "", *lines))
