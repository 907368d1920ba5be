"""One frame as lines of a terminal: pure, for any width and height from 60 by 12 on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from rich.text import Text

from agentsched.dashboard.shapes import (
    SAMPLE_TENANTS_MAX,
    EngineRow,
    Frame,
    Overview,
    ProgramRow,
    Replicas,
    Sample,
    TenantRow,
)
from agentsched.inspection.words import plain

Sort = Literal["state", "age", "tenant", "steps", "context", "wait"]

SORTS: Final[tuple[Sort, ...]] = ("state", "age", "tenant", "steps", "context", "wait")

_STATES: Final = ("waiting", "running", "pinned", "paused", "idle")
_WORDS: Final = {"running": "computing", "idle": "at rest"}
_STYLES: Final = {
    "running": "bold blue",
    "waiting": "bold yellow",
    "pinned": "bold magenta",
    "paused": "default",
    "idle": "dim",
}
_ENGINES_MAX: Final = 6
_TENANTS_MAX: Final = 5
_MINUTE_OF_SAMPLES: Final = 31
_BAR: Final = 18


@dataclass(slots=True, kw_only=True)
class View:
    """What its user chose: order, filter, place in the list, and whether it stands still."""

    sort: Sort = "state"
    filter: str = ""
    offset: int = 0
    is_paused: bool = False
    is_help: bool = False
    #: What is being typed after `/`; None when nothing is.
    typing: str | None = None
    error: str = ""
    #: Rows of the list that were in sight, for paging.
    page: int = field(default=10)


def lines(frame: Frame, view: View, *, width: int, height: int) -> list[Text]:
    """Exactly `height` lines, none wider than `width`."""
    if view.is_help:
        shown = _help()
    else:
        shown = [*_head(frame), *_engines(frame, _ENGINES_MAX)]
        shown += _tenants(frame, _TENANTS_MAX if height >= 24 else 2)
        room = max(1, height - len(shown) - 2)
        view.page = room
        shown += _programs(frame, view, room=room, width=width)
    shown = shown[: height - 1]
    shown += [Text()] * (height - 1 - len(shown))
    shown.append(_foot(view))
    for line in _plain(shown):
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return shown


def everything(frame: Frame, view: View, *, width: int) -> list[Text]:
    """As many lines as it takes, for a pipe or a file."""
    shown = [*_head(frame), *_engines(frame, 1 << 30), *_tenants(frame, 1 << 30)]
    return _plain(shown + _programs(frame, view, room=1 << 30, width=width))


def _plain(shown: list[Text]) -> list[Text]:
    """The same lines, without what clients' and engines' words would do to a terminal."""
    for line in shown:
        line.plain = plain(line.plain)
    return shown


def chosen(frame: Frame, view: View) -> list[ProgramRow]:
    """The programs that match, in the order that was chosen."""
    words = view.filter.lower().split()
    rows = [
        row
        for row in frame.programs
        if all(w in f"{row.program} {row.tenant} {row.agent} {row.state}".lower() for w in words)
    ]
    keys: dict[Sort, Callable[[ProgramRow], float | str]] = {
        "state": lambda row: _STATES.index(row.state),
        "age": lambda row: row.opened,
        "tenant": lambda row: row.tenant,
        "steps": lambda row: -row.steps,
        "context": lambda row: -row.context_tokens,
        "wait": lambda row: row.since if row.state == "waiting" else frame.now,
    }
    key = keys[view.sort]
    return sorted(rows, key=lambda row: (key(row), row.opened, row.program))


def _head(frame: Frame) -> Iterator[Text]:
    it = frame.overview
    up = sum(engine.is_up for engine in frame.engines)
    line = Text.assemble(
        ("agentsched", "bold"),
        f" {it.version}  ",
        (it.profile, "cyan"),
        "  ",
        (f"{up}/{len(frame.engines)} engines", "green" if up == len(frame.engines) else "red"),
    )
    silent = sum(engine.silent_since is not None for engine in frame.engines)
    if silent:
        line.append(f"  {silent} silent", "red")
    if it.is_draining:
        line.append("  draining", "bold yellow")
    if it.replicas is not None:
        line.append_text(_replicas(it.replicas))
    yield line
    counts = dict.fromkeys(_STATES, 0)
    for row in frame.programs:
        counts[row.state] += 1
    line = Text(f"programs {frame.programs_total}: ")
    for state in _STATES:
        line.append(f"{counts[state]} {_WORDS.get(state, state)}  ", _STYLES[state])
    if len(frame.programs) < frame.programs_total:
        line.append(f"of the latest {len(frame.programs)}", "dim")
    yield line
    oldest = "-" if it.oldest_wait_s is None else span(it.oldest_wait_s)
    waits = f"{span(it.wait_p50_s)} / {span(it.wait_p95_s)}"
    line = Text(f"steps {it.running_steps} computing, {it.waiting_steps} waiting")
    line.append(f"  wait p50/p95 {waits}  oldest {oldest} of {span(it.max_wait_s)}")
    yield line
    line = Text(f"cached {_cached(it)}  pins {it.pins}")
    if it.rejected_total is not None:
        line.append(f"  rejected {it.rejected_total}  retried {it.retried_total}")
    if it.policy_errors_total:
        line.append(f"  policy errors {it.policy_errors_total}", "red")
    if it.is_bound_too_tight:
        line.append(f"  wait bound too tight (about {span(it.sensible_wait_s)})", "yellow")
    yield line


def _cached(it: Overview) -> str:
    """The part of prompts that came from caches, and how much of it an engine has said."""
    if not it.prompt_tokens_total:
        return "-"
    hit = it.cached_tokens_total / it.prompt_tokens_total
    told = f"{1 - it.untold_tokens_total / it.prompt_tokens_total:.0%}"
    return f"{hit:.0%}" if told == "100%" else f"about {hit:.0%} (engines tell of {told})"


def _replicas(it: Replicas) -> Text:
    """Who else is there; who is gone or out of reach stands out."""
    line = Text(f"  {it.replica} + {len(it.others)}")
    if not it.is_connected:
        line.append(" no broker", "yellow")
    if it.gone:
        line.append(f" gone: {', '.join(gone.replica for gone in it.gone)}", "red")
    return line


def _engines(frame: Frame, rows_max: int) -> Iterator[Text]:
    yield Text(f"{'ENGINE':<14} {'':<{_BAR}}  HELD  WANTED  COMPUTING  PINS", "dim")
    for row in frame.engines[:rows_max]:
        yield _engine(row, now=frame.now)
    if len(frame.engines) > rows_max:
        yield Text(f"{len(frame.engines) - rows_max} more", "dim")


def _engine(row: EngineRow, *, now: float) -> Text:
    line = Text(f"{_cut(row.engine, 14):<14} ")
    if not row.is_up and not row.is_draining:
        return line.append(f"down: {row.last_error or 'has not answered yet'}", "red")
    room = row.kv_tokens
    if row.running_steps is None:
        line.append("what it holds and computes is for operators", "dim")
    elif room:
        held, pinned = (row.held_tokens or 0) / room, (row.pinned_tokens or 0) / room
        wanted = (row.wanted_tokens or 0) / room
        line.append_text(bar(held, pinned=pinned))
        line.append(f"  {held:>4.0%}")
        line.append(f"  {wanted:>6.0%}", "red" if wanted > 1 else "")
    else:
        line.append(f"{'cache of unknown size':<{_BAR + 14}}")
    if row.running_steps is not None:
        line.append(f"  {row.running_steps:>9}  {row.pins or 0:>4}")
    if row.silent_since is not None:
        line.append(f"  silent {span(now - row.silent_since)}", "red")
    if row.is_draining:
        line.append("  draining", "yellow")
    elif row.is_contended and row.silent_since is None:
        line.append("  contended", "yellow")
    return line


def _tenants(frame: Frame, rows_max: int) -> Iterator[Text]:
    if not frame.tenants:
        return
    shown = frame.tenants[:rows_max]
    got = shares(frame.history)
    yield Text(f"{'TENANT':<14} {'':<{_BAR}}   GOT  ENTITLED  COMPUTING  WAITING  PROGRAMS", "dim")
    for row in shown:
        yield _tenant(row, got.get(row.tenant))
    total = max(frame.tenants_total, len(frame.tenants))
    if total > len(shown):
        yield Text(f"{total - len(shown)} more", "dim")


def _tenant(row: TenantRow, got: float | None) -> Text:
    line = Text(f"{_cut(row.tenant, 14):<14} ")
    line.append_text(bar(got or 0.0))
    line.append(f"  {'-' if got is None else f'{got:.0%}':>4}")
    line.append(f"  {'-' if row.entitled is None else f'{row.entitled:.0%}':>8}")
    line.append(f"  {row.running_steps:>9}  {row.waiting_steps:>7}  {row.programs:>8}")
    return line


def shares(history: tuple[Sample, ...]) -> dict[str, float]:
    """Each tenant's part of what was charged in the last minute."""
    recent = history[-_MINUTE_OF_SAMPLES:]
    # Who may not see all tenants has samples of its own charges: they are no part of a whole.
    if len(recent) < 2 or recent[-1].running_steps is None:
        return {}
    before = {t.tenant: t.charged_tokens for t in recent[0].tenants}
    if len(before) >= SAMPLE_TENANTS_MAX:
        # Who is missing was not among the busiest then, and may have had much: it counts from
        # where it is first seen.
        for sample in recent:
            for t in sample.tenants:
                before.setdefault(t.tenant, t.charged_tokens)
    gained = {
        t.tenant: max(0.0, t.charged_tokens - before.get(t.tenant, 0.0)) for t in recent[-1].tenants
    }
    total = sum(gained.values())
    return {tenant: value / total for tenant, value in gained.items()} if total else {}


def _programs(frame: Frame, view: View, *, room: int, width: int) -> list[Text]:
    rows = chosen(frame, view)
    view.offset = max(0, min(view.offset, len(rows) - room))
    name = max(12, width - 58)
    title = f"{'STATE':<10} {'PROGRAM':<{name}} {'TENANT':<10} {'FOR':>7} {'STEPS':>5} {'CTX':>6}"
    made = [Text(f"{title}  DOING", "bold reverse")]
    for row in rows[view.offset : view.offset + room]:
        line = Text()
        line.append(f"{_WORDS.get(row.state, row.state):<10}", _STYLES[row.state])
        line.append(f" {_cut(_own_name(row), name):<{name}} {_cut(row.tenant, 10):<10}")
        line.append(
            f" {span(frame.now - row.since):>7} {row.steps:>5} {tokens(row.context_tokens):>6}"
        )
        line.append(f"  {_doing(row)}", "dim")
        made.append(line)
    if not rows:
        made.append(Text("no program matches" if frame.programs else "no program is live", "dim"))
    return made


def _own_name(row: ProgramRow) -> str:
    """The id as the client knows it: its tenant stands beside it."""
    return row.program.removeprefix(f"{row.tenant}/")


def _doing(row: ProgramRow) -> str:
    if row.state == "waiting":
        return row.held_for or "for an engine"
    if row.state == "running":
        return row.engine
    return f"for {row.tool}" if row.tool else row.engine


def _foot(view: View) -> Text:
    if view.typing is not None:
        return Text(f"/{view.typing}_", "bold")
    if view.error:
        return Text(view.error, "bold red")
    line = Text()
    if view.filter:
        line.append(f"filter: {_cut(view.filter, 24)}  ", "cyan")
    for key, word in (("q", "quit"), ("s", f"sort: {view.sort}"), ("/", "filter"), ("j k", "move")):
        line.append(f" {key} ", "reverse").append(f" {word}  ")
    line.append(" p ", "reverse").append(" go on  " if view.is_paused else " hold  ")
    return line.append(" ? ", "reverse").append(" help")


def _help() -> list[Text]:
    keys = (
        ("q", "quit"),
        ("s", "next order of programs: " + ", ".join(SORTS)),
        ("/", "show programs with these words only; Enter keeps them, Esc drops them"),
        ("j k, arrows", "one line down, up; space and b a page; g G the ends"),
        ("p", "hold still, go on"),
        ("r", "look again at once"),
        ("?", "this, and back"),
    )
    made = [Text("agentsched top", "bold"), Text()]
    made += [Text.assemble((f"{key:>12}", "bold"), f"  {what}") for key, what in keys]
    made += [
        Text(),
        Text("HELD, WANTED: parts of an engine's KV cache that conversations have there,"),
    ]
    made.append(Text("and that programs under way would like to. GOT: a tenant's part of what was"))
    made.append(
        Text("charged in the last minute; ENTITLED: its part by weight among those at work.")
    )
    return made


def bar(part: float, *, pinned: float = 0.0) -> Text:
    """A bar of fixed width; what is pinned comes first."""
    full = round(max(0.0, min(1.0, part)) * _BAR)
    first = min(full, round(max(0.0, min(1.0, pinned)) * _BAR))
    return Text.assemble(
        ("█" * first, "magenta"), ("█" * (full - first), "blue"), ("·" * (_BAR - full), "dim")
    )


def span(seconds: float | None) -> str:
    """A length of time in at most seven characters."""
    if seconds is None:
        return "-"
    value = max(0.0, seconds)
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 100:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7_200 else f"{value / 3_600:.1f} h"


def tokens(count: int) -> str:
    """A number of tokens in at most five characters."""
    if count < 1_000:
        return str(count)
    return f"{count / 1e3:.1f}k" if count < 100_000 else f"{count / 1e6:.2f}M"


def _cut(text: str, width: int) -> str:
    """Ids differ at their ends as often as at their beginnings."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
