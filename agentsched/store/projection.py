"""Rows drawn from a folded scheduler: programs, their graphs, tenants' usage, what was learnt."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from agentsched.kernel import Scheduler
from agentsched.kernel.records import ProgramRecord
from agentsched.model import Instant, Nanos, ToolName, in_seconds
from agentsched.store.database import Database
from agentsched.store.fold import Fold
from agentsched.store.records import at_time
from agentsched.store.writing import table, upsert
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.export import to_json
from agentsched_graphs.snapshot import snapshot

#: Rows of one transaction; graphs are large.
_BATCH: Final = 200
_TOOLS_TOLD: Final = 200
_NEXT_TOLD: Final = 5


async def project(database: Database, fold: Fold, *, stream: str, epoch_ns: int) -> int:
    """Write what the fold knows of programs that changed; returns how many these were.

    Raises:
        StoreError: as `Database.writing`.
    """
    changed = fold.changed()
    for start in range(0, len(changed), _BATCH):
        batch = changed[start : start + _BATCH]
        programs = [_program(p, fold.scheduler, stream, epoch_ns) for p in batch]
        graphs = [row for p in batch if (row := _graph(p, fold)) is not None]
        # Another replica may have gone on with a program that is forgotten here.
        await _put(database, "programs", programs, by="last_at")
        await _put(database, "graphs", graphs)
    taken_at = datetime.now(UTC)
    usage = _usage(fold.scheduler, stream, taken_at)
    for start in range(0, len(usage), _BATCH):
        await _put(database, "tenant_usage", usage[start : start + _BATCH])
    await _put(database, "learned", list(_learned(fold.scheduler, stream, taken_at)))
    return len(changed)


async def _put(
    database: Database, name: str, rows: list[dict[str, Any]], *, by: str | None = None
) -> None:
    if not rows:
        return
    into = table(name)
    keys = {column.name for column in into.primary_key}
    columns = [column.name for column in into.columns if column.name not in keys]
    async with database.writing() as connection:
        await connection.execute(upsert(database, name, update_columns=columns, by=by), rows)


def _program(
    program: ProgramRecord, scheduler: Scheduler, stream: str, epoch_ns: int
) -> dict[str, Any]:
    last_at = at_time(epoch_ns + program.last_at)
    return {
        "program": _text(program.program),
        "stream": stream,
        "tenant": _text(program.tenant),
        "agent": _text(program.agent),
        "parent": None if program.parent is None else _text(program.parent),
        "opened_at": at_time(epoch_ns + program.opened_at),
        "last_at": last_at,
        "closed_at": None if program.program in scheduler.programs else last_at,
        "steps_done": program.steps_done,
        "prompt_tokens": program.prompt_tokens,
        "cached_tokens": program.cached_tokens,
        "output_tokens": program.output_tokens,
        "served_tokens": program.served_tokens,
    }


def _graph(program: ProgramRecord, fold: Fold) -> dict[str, Any] | None:
    if program.program not in fold.seen:
        return None  # as it was told before
    builder = fold.scheduler.graphs
    graph = builder.graph(program.program) if isinstance(builder, GraphBuilder) else None
    if graph is None:
        return None
    shown = to_json(snapshot(graph, now=Instant(max(fold.now, graph.opened_at))))
    return {
        "program": _text(program.program),
        "taken_at": datetime.now(UTC),
        "graph": shown.decode(),
    }


def _usage(scheduler: Scheduler, stream: str, taken_at: datetime) -> list[dict[str, Any]]:
    return [
        {
            "tenant": _text(tenant),
            "stream": stream,
            "taken_at": taken_at,
            "steps": account.steps,
            "prompt_tokens": account.prompt_tokens,
            "uncached_tokens": account.uncached_here,
            "output_tokens": account.output_here,
        }
        for tenant, account in scheduler.tenants.items()
    ]


def _learned(scheduler: Scheduler, stream: str, taken_at: datetime) -> Iterable[dict[str, Any]]:
    for name, data in (("engines", _engines(scheduler)), ("tools", _tools(scheduler))):
        yield {"stream": stream, "name": name, "taken_at": taken_at, "data": data}


def _engines(scheduler: Scheduler) -> dict[str, Any]:
    """What a token costs on each engine, in nanoseconds."""
    return {
        _text(engine.engine): {
            "samples": engine.cost.samples,
            "prefill_ns_per_token": engine.cost.prefill_ns_per_token,
            "decode_ns_per_token": engine.cost.decode_ns_per_token,
            "reload_ns_per_token": engine.cost.reload_ns_per_token,
        }
        for engine in scheduler.engines.values()
    }


def _tools(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Of the tools that programs used lately: how long they take, and what comes after them."""
    builder = scheduler.graphs
    if not isinstance(builder, GraphBuilder):
        return []
    pairs: dict[tuple[str, ToolName], None] = {}
    for outlook in builder.programs.values():
        for thread in outlook.graph.threads.values():
            # Under the name of who called it, as it was learnt: a sub-agent's may be its own.
            agent = thread.agent or outlook.graph.agent
            pairs.update(((agent, tool), None) for tool in thread.context)
    return [_tool(builder, agent, tool) for agent, tool in sorted(pairs)[:_TOOLS_TOLD]]


def _tool(builder: GraphBuilder, agent: str, tool: ToolName) -> dict[str, Any]:
    returns = builder.learnt.gaps.forecast(agent=agent, tool=tool, elapsed=Nanos(0))
    follows = builder.learnt.templates.forecast(agent=agent, context=(tool,))
    spans = {f"p{round(100 * q)}_s": returns.quantile(q) for q in (0.5, 0.9)}
    return {
        "agent": _text(agent),
        "tool": _text(tool),
        **{name: None if s is None else round(in_seconds(s), 3) for name, s in spans.items()},
        "next": {_text(name): round(p, 3) for name, p in follows.tools[:_NEXT_TOLD]},
    }


def _text(value: str) -> str:
    """A text that PostgreSQL takes."""
    return value.replace("\0", "\ufffd")
