"""`agentsched whatif`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from agentsched.compose import SchedulerConfig, choices_of, config_of
from agentsched.kernel import JournalHeader
from agentsched.model import ConfigError, PolicyError
from agentsched.policy import Choice
from agentsched.policy.registry import POINTS
from agentsched_bench.live import options
from agentsched_bench.replay.journal_file import open_journal
from agentsched_bench.sim.arms import Arm, parse_arm
from agentsched_bench.whatif.predict import AS_RECORDED, Answer, Course, Fleet, Sizes, answer
from agentsched_bench.whole_file import refuse_unwritable, write_whole

DIVERGED: Final = 3

Journal = Annotated[Path, typer.Argument(help="A journal written by `agentsched serve --journal`.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        "--policy",
        metavar="ARM",
        help="PROFILE[,POINT=POLICY][,POINT.PARAMETER=VALUE]. Repeatable.",
    ),
]
Orders = Annotated[str | None, typer.Option("--order", help="As recorded, but ordered so.")]
Admits = Annotated[str | None, typer.Option("--admit", help="Likewise, with this admission.")]
Places = Annotated[str | None, typer.Option("--place", help="Likewise, with this placement.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Tokens in each engine's cache.")]
Block = Annotated[int | None, typer.Option(min=1, help="Tokens of a block, if not recorded.")]
Seqs = Annotated[int | None, typer.Option(min=1, help="Calls that an engine batches at most.")]
Step = Annotated[int | None, typer.Option(min=1, help="Tokens of an engine step at most (2048).")]
Engines = Annotated[int | None, typer.Option(min=1, help="What if there were so many engines?")]
Pool = Annotated[
    int | None, typer.Option(min=1, help="What if each engine's cache held so many tokens?")
]
Trusting = Annotated[
    bool, typer.Option("--trust-anyway", help="Answer although the replay decided otherwise.")
]


def whatif(
    journal: Journal,
    *,
    profile: Policies = None,
    order: Orders = None,
    admit: Admits = None,
    place: Places = None,
    engines: Engines = None,
    pool: Pool = None,
    kv_tokens: Tokens = None,
    block_size: Block = None,
    running_max: Seqs = None,
    step_tokens: Step = None,
    trust_anyway: Trusting = False,
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """What would have happened under another policy or on other engines, from a journal.

    First the journal is replayed, and must give its own commands again. Then engines are fitted to
    its times, the model predicts what happened, and says by how much it is off; then it predicts
    the other policies. Clients are closed loops: pauses and lengths stay as recorded.
    """
    refuse_unwritable(out)
    try:
        with open_journal(journal) as opened:
            arms = _arms(profile or (), opened.header, order, admit, place)
            fleet = Fleet(engines=engines, pool_tokens=pool)
            if not arms and fleet == AS_RECORDED:
                raise ConfigError(
                    "what is to change? (--policy, --order, --admit, --place, --engines or --pool)"
                )
            sizes = Sizes(
                kv_tokens=kv_tokens,
                block_size=block_size,
                running_max=running_max,
                step_tokens=step_tokens,
            )
            with _progress(is_quiet=as_json) as show:
                found = answer(
                    journal.name,
                    opened,
                    arms,
                    sizes=sizes,
                    fleet=fleet,
                    trust_anyway=trust_anyway,
                    on_progress=show,
                )
    except OSError as error:
        raise ConfigError(f"cannot read {journal}: {error.strerror}") from error
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    diverged = found.trust.diverged_at is not None and not trust_anyway
    if as_json:
        typer.echo(msgspec.json.encode(found))
    else:
        print_answer(found, console=Console(), trust_anyway=trust_anyway)
    if diverged:
        raise typer.Exit(DIVERGED)


def _arms(
    texts: Sequence[str],
    header: JournalHeader,
    order: str | None,
    admit: str | None,
    place: str | None,
) -> list[Arm]:
    changed = {"order": order, "admit": admit, "place": place}
    named = {point: name for point in POINTS if (name := changed.get(point))}
    arms = [parse_arm(text) for text in texts]
    if named:
        changes = [f"{point}={name}" for point, name in named.items()]
        choices = {point: Choice(name=name) for point, name in named.items()}
        arms.append(
            Arm(
                text=",".join([_name_of(header), *changes]),
                profile=header.profile,
                # All else stays as it was: the operator's choices, and the profile's of then.
                choices={**config_of(header).choices, **choices},
            )
        )
    return arms


def _name_of(header: JournalHeader) -> str:
    """The recorded policies' profile, where they are what that profile is here."""
    try:
        is_plain = choices_of(config_of(header)) == choices_of(
            SchedulerConfig(profile=header.profile)
        )
    except PolicyError:  # of a stranger
        is_plain = False
    return header.profile if is_plain else "recorded"


def print_answer(found: Answer, *, console: Console, trust_anyway: bool = False) -> None:
    """Trust first, then what would have changed."""
    trust = found.trust
    say = console.print
    if trust.diverged_at is None:
        say(
            f"replay: identical, {trust.entries} entries under {found.policy}",
            highlight=False,
            markup=False,
        )
    else:
        say(
            f"replay: diverged at entry {trust.diverged_at} of {trust.entries}",
            highlight=False,
            style="red",
        )
        say(trust.divergence, highlight=False, markup=False)
        if not trust_anyway:
            say("Another version or configuration decides otherwise: no prediction is given.")
            return
    cached = "what was cached nobody told"
    if trust.cached_error is not None:
        cached = f"cached share by {trust.cached_error:+.3f}"
    say(
        f"fit: {trust.fit.said} (median, {trust.fit.held_out} calls held out)\n"
        f"self-prediction: mean completion time off by {trust.self_error:+.1%}, single programs by "
        f"{trust.program_error:.0%} (median), {cached}",
        highlight=False,
    )
    if trust.is_weak:
        say(
            "The model does not reproduce what happened (fit, load or machine differ): believe "
            "directions at most, not figures.",
            style="yellow",
            highlight=False,
        )
    if trust.is_cut:
        say("The journal was cut off; what was whole is taken.", highlight=False)
    for line in trust.unlike:
        say(line, highlight=False, markup=False)
    if trust.unfinished:
        say(f"{trust.unfinished} calls have no answer in the journal and are left out.")
    say(_table([found.recorded, found.same, *found.others], found))
    for course in found.others:
        say(_verdict(course, found), highlight=False, markup=False)


def _verdict(course: Course, found: Answer) -> str:
    gave_up = f"{course.failed} of {course.programs + course.failed} programs gave up"
    if not course.is_sample:
        return f"{course.name}: cannot be said, {gave_up} in the model and are in no time above"
    if not found.same.is_sample:
        every = found.same.programs + found.same.failed
        return (
            f"{course.name}: cannot be said, {found.same.failed} of {every} programs gave up in "
            "the model under the recorded policy, under which they did not"
        )
    ratio = found.ratios[course.name]
    noise = found.trust.noise
    expected = found.recorded.jct_s.mean * ratio
    left_out = f"; {gave_up} and are in no time above" if course.failed else ""
    if abs(ratio - 1.0) <= noise:
        text = f"{course.name}: no difference beyond the model's own error ({noise:.0%})"
        return text + left_out
    word = "shorter" if ratio < 1 else "longer"
    return (
        f"{course.name}: mean completion time {abs(ratio - 1):.0%} {word}, about {expected:.1f} s "
        f"instead of {found.recorded.jct_s.mean:.1f} s (the model is off by {noise:.0%}){left_out}"
    )


def _table(courses: Sequence[Course], found: Answer) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", min_width=12)
    for column in ("JCT s", "p50", "p95", "first p99", "first max", "cached", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for course in courses:
        ratio, first = found.ratios.get(course.name), course.first_token_s
        table.add_row(
            Text(course.name),
            f"{course.jct_s.mean:.1f}",
            f"{course.jct_s.p50:.1f}",
            f"{course.jct_s.p95:.1f}",
            # Answers that came whole tell no first token, and 0 would be a short wait.
            f"{first.p99:.1f}" if first.count else "-",
            f"{first.max:.1f}" if first.count else "-",
            "-" if course.cached_share is None else f"{course.cached_share:.3f}",
            "" if ratio is None else f"{ratio:.2f}",
        )
        if len(course.tenants) > 1:
            for tenant, part in course.tenants.items():
                name = Text(f"  {tenant}")
                wait = f"{part.wait_max_s:.1f}" if part.wait_max_s else "-"
                table.add_row(name, f"{part.jct_mean_s:.1f}", "", "", "", wait, "", "")
    return table


@contextmanager
def _progress(*, is_quiet: bool) -> Iterator[Callable[[str, float], None]]:
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield lambda _what, _share: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("replaying", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)
