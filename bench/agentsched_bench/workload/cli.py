"""`agentsched trace`: check, describe, sample and make traces."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentsched_bench.workload.compose import compose
from agentsched_bench.workload.exporters import Format, export_trace
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.importers import (
    AUTO,
    IMPORTERS,
    ImportOptions,
    ImportReport,
    import_trace,
)
from agentsched_bench.workload.picture import draw
from agentsched_bench.workload.sample import sample_programs
from agentsched_bench.workload.shape import SharedPrompts
from agentsched_bench.workload.spec import load_workload
from agentsched_bench.workload.statistics import Spread, TraceStatistics, trace_statistics
from agentsched_bench.workload.trace import (
    TRACE_HELP,
    RecordedProgram,
    Recording,
    TraceError,
    group_programs,
    read_trace,
    write_trace,
)
from agentsched_bench.workload.validate import validate_trace

app = typer.Typer(
    name="trace",
    help="Import, check, describe, sample, compose, export and make traces of agent programs.",
    no_args_is_help=True,
    add_completion=False,
)

TracePath = Annotated[Path, typer.Argument(help=TRACE_HELP)]
OwnTrace = Annotated[Path, typer.Argument(help="A .jsonl, .jsonl.gz or .jsonl.xz file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write; .gz or .xz compresses.")]


@app.command("import")
def import_files(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help=f"{AUTO} (by content), or {', '.join(known.name for known in IMPORTERS)}.",
        ),
    ],
    files: Annotated[list[Path], typer.Argument(help="Files, or folders to look through.")],
    *,
    out: Out,
    text: Annotated[
        bool, typer.Option("--text", help="Keep messages where the source has them.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="What recordings name as their source.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read other formats: SWE-agent, mini-swe-agent, OpenHands, Claude Code, Codex, OpenCode, ...

    Exit code 1 if something could not be read; each error names file and line, and the rest is
    kept. Compressed files (gz, xz, bz2, zst) are known by their content.
    """
    report = import_trace(
        files,
        out,
        format_name=format_name,
        options=ImportOptions(keeps_text=text, source=source),
        on_error=_warn,
    )
    if as_json:
        typer.echo(msgspec.json.encode(_import_summary(report, out)))
    else:
        typer.echo(_import_line(report, out))
    if report.errors_count or not report.recordings:
        raise typer.Exit(1)


def _import_summary(report: ImportReport, out: Path) -> dict[str, object]:
    return {
        "out": str(out) if report.recordings else None,
        "formats": dict(report.files),
        "recordings": report.recordings,
        "programs": report.programs,
        "calls": report.calls,
        "errors": [str(error) for error in report.errors],
        "errors_count": report.errors_count,
        "skipped_files": report.skipped,
    }


def _import_line(report: ImportReport, out: Path) -> str:
    formats = ", ".join(f"{count} {name}" for name, count in report.files.items())
    notes = f"; {report.skipped} files of no known format" if report.skipped else ""
    notes += f"; {report.errors_count} errors" if report.errors_count else ""
    if not report.recordings:
        return f"nothing was read, and nothing is written{notes}"
    return (
        f"{out}: {report.programs} programs, {report.recordings - report.programs} sub-agents, "
        f"{report.calls} calls from {formats}{notes}"
    )


@app.command()
def validate(trace: OwnTrace, *, as_json: AsJson = False) -> None:
    """Check a trace; exit code 1 if a line cannot be used."""
    result = validate_trace(trace)
    if as_json:
        typer.echo(msgspec.json.encode(result))
    else:
        for finding in result.findings:
            typer.echo(str(finding))
        unshown = result.errors + result.warnings - len(result.findings)
        if unshown:
            typer.echo(f"... and {unshown} more")
        typer.echo(
            f"{trace}: {result.recordings} recordings, {result.calls} calls, "
            f"{result.errors} errors, {result.warnings} warnings"
        )
    if result.errors:
        raise typer.Exit(1)


@app.command()
def stats(
    trace: TracePath,
    *,
    skip_bad: Annotated[bool, typer.Option(help="Leave bad lines out and name them.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw it as well: a .png, .svg or .pdf file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a trace: steps, tokens, tool times and shares, shared prefixes."""
    figures = trace_statistics(read_trace(trace, on_error=_warn if skip_bad else None))
    if as_json:
        typer.echo(msgspec.json.encode(figures))
    else:
        _print_statistics(trace, figures)
    if picture is not None:
        draw(read_trace(trace, on_error=_ignore if skip_bad else None), picture, title=trace.name)
        typer.echo(f"picture: {picture}", err=as_json)


def _ignore(_: TraceError) -> None:
    """It was named when the figures were made."""


def _warn(error: TraceError) -> None:
    typer.echo(f"left out: {error}", err=True)


def _print_statistics(trace: Path, figures: TraceStatistics) -> None:
    console = Console()
    label = " (synthetic)" if figures.synthetic else ""
    table = Table(
        title=Text(f"{trace.name}{label}"),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    # Names of tools begin alike where a server gives many.
    table.add_column("", overflow="fold", min_width=12)
    for column in ("count", "mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = {
        "steps per recording": figures.steps,
        "prompt tokens": figures.prompt_tokens,
        "output tokens": figures.output_tokens,
        "pause, s": figures.pause_s,
        **{f"tool {name}, s": values for name, values in figures.tool_s.items()},
    }
    for name, values in rows.items():
        table.add_row(Text(name), *_cells(values))
    console.print(table)
    if figures.tools:
        whole = sum(figures.tools.values())
        listed = ", ".join(f"{n} {c / whole:.1%}" for n, c in list(figures.tools.items())[:12])
        console.print(f"tool calls: {whole}: {listed}", highlight=False, markup=False)
    console.print(
        f"{figures.programs} programs, {figures.recordings - figures.programs} sub-agents, "
        f"{figures.calls} calls; agents: "
        + ", ".join(f"{name} {count}" for name, count in figures.agents.items()),
        highlight=False,
        markup=False,
    )
    shares = {
        "prompt seen before": figures.reused_share,
        "first prompt shared": figures.shared_first_share,
        "tools' share of time": figures.tool_share,
        "steps with a cut or unknown growth": figures.cut_share,
        "steps with hashes": figures.hashed_share,
    }
    for name, share in shares.items():
        console.print(
            f"{name}: {'not recorded' if share is None else f'{share:.3f}'}", highlight=False
        )


def _cells(values: Spread) -> list[str]:
    if not values.count:
        return ["0", *["-"] * 5]
    figures = (values.mean, values.p50, values.p90, values.p99, values.max)
    return [str(values.count), *(f"{v:.2f}" if v < 100 else f"{v:,.0f}" for v in figures)]


@app.command()
def sample(
    trace: TracePath,
    *,
    out: Out,
    programs: Annotated[int, typer.Option(min=1, help="How many programs.")] = 24,
    seed: Annotated[int, typer.Option(help="The same seed takes the same programs.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=PATTERN, as in model=*haiku*; may be repeated."),
    ] = None,
) -> None:
    """Write some programs of a trace, with their sub-agents, to a smaller one."""
    chosen = sample_programs(
        group_programs(read_trace(trace)),
        count=programs,
        rng=random.Random(f"sample/{seed}"),
        only=only or (),
    )
    rows = [row for program in chosen for row in _rows(program)]
    count = write_trace(rows, out)
    typer.echo(f"{out}: {len(chosen)} programs, {count} recordings")


def _rows(program: RecordedProgram) -> tuple[Recording, ...]:
    return (program.main, *program.children)


@app.command("export")
def export(
    format_: Annotated[Format, typer.Argument(metavar="FORMAT", help=", ".join(Format))],
    trace: TracePath,
    *,
    out: Out,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens per prefix block; default the format's own.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Write messages, where otel has them.")
    ] = False,
) -> None:
    """Write a trace in another tool's format."""
    programs = group_programs(read_trace(trace))
    count = export_trace(
        programs,
        out,
        format_,
        shared=SharedPrompts.learn(row for program in programs for row in _rows(program)),
        block_size=block_size,
        keeps_text=text,
    )
    typer.echo(f"{out}: {len(programs)} programs, {count} lines of {format_}")


@app.command("compose")
def compose_trace(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="A file with a [workload].")],
    *,
    out: Out,
    seed: Annotated[int | None, typer.Option(help="Instead of the specification's.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Keep recorded messages.")] = False,
) -> None:
    """Mix traces into a workload: arrivals, tenants, background traffic, scales.

    The specification is written into the trace. `replay`, `simulate` and `tune` heed its tenants,
    closed loops and scales, and its starts with --arrivals recorded; limits (steps_max,
    context_tokens_max, shared_tokens_max) are to be given again, as their options.
    """
    workload = load_workload(spec)
    if seed is not None:
        workload = workload.model_copy(update={"seed": seed})
    if text:
        workload = workload.model_copy(update={"text": True})
    composition = compose(workload, folder=spec.parent)
    count = write_trace(composition.recordings(), out, header=composition.header())
    loops = ", ".join(f"{name} {size} at a time" for name, size in composition.pools.items())
    typer.echo(
        f"{out}: {len(composition.programs)} programs, {count} recordings"
        + (f"; closed loops: {loops}" if loops else "")
    )


@app.command("generate")
def generate_trace(
    *,
    out: Out,
    programs: Annotated[int, typer.Option(min=1, help="How many programs.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed makes the same file.")] = 7,
    steps: Annotated[
        int | None, typer.Option(min=1, help="At most this many steps per program.")
    ] = None,
    interarrival: Annotated[
        float, typer.Option(min=0.001, help="Mean seconds between two programs' starts.")
    ] = 8.0,
) -> None:
    """Make a synthetic trace with the published shapes of coding agents; it is labelled so."""
    rows = generate(programs=programs, seed=seed, interarrival_s=interarrival, steps_max=steps)
    count = write_trace(rows, out)
    typer.echo(f"{out}: {programs} synthetic programs, {count} recordings")
