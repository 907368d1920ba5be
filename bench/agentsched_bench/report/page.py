"""The report: one HTML file that holds all it needs and works without a network.

What a reader must know stands in the HTML itself; pictures are drawn by a small script from data in
the page, as wide as the screen is. Nothing is loaded from anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

import agentsched
from agentsched_bench.compare.inference import Verdict
from agentsched_bench.compare.machine import disturbances
from agentsched_bench.compare.results import ArmFigures, CompareResult, left_out
from agentsched_bench.compare.show import ROWS, unlike_runs
from agentsched_bench.report.views import engines, view_of
from agentsched_bench.whole_file import write_whole

_COLORS: Final = 8
_MAJOR: Final = frozenset({"JCT ratio", "verdict", "JCT mean", "prompt cached"})

#: What each row of the table means, shown to whoever points at it.
_HINTS: Final = {
    "JCT ratio": "geometric mean over the same programs of this arm's job completion time over the "
    "baseline's; below 1 is faster",
    "  95 % interval": "programs resampled, repeats by Student's t",
    "verdict": "better or worse only where the whole interval is on one side of 1",
    "  repeat over repeat": "the arm against itself: what chance alone does",
    "slowdown p50/95/99": "job completion time over that of the same program alone on an idle "
    "engine",
    "in time": "programs that were done within their deadline, of all that have one",
    "TTFT p50/99/max": "from sending a call to its first token, waits included",
    "held p99/max": "how long the proxy kept a call back",
    "bypassed, most": "later calls that went before one that was held",
    "  computed": "prompt tokens that were not in the cache",
    "  computed again": "though an earlier call of the conversation had computed them",
    "Jain (slowdowns)": "fairness between tenants: 1 is equal",
    "runs, machine stalled": "the machine itself stood still; such runs are in no figure where "
    "there are others",
    "tenants' gap": "greatest difference of service between two tenants while both waited, tokens",
}
_HOW: Final = {
    "live": "measured live",
    "simulated": "simulated",
    "journal": "read from a journal",
}


def write_page(results: Sequence[CompareResult], path: Path, *, title: str = "") -> int:
    """Write the page; returns its size in bytes. Raises OSError."""
    data = render(results, title=title).encode()
    write_whole(path, data)
    return len(data)


def render(results: Sequence[CompareResult], *, title: str = "", now: str = "") -> str:
    """The page as text. `now` is when it says that it was made; empty: the present day."""
    assert results
    when = now or datetime.now(tz=UTC).strftime("%Y-%m-%d")
    heading = title or (results[0].name if len(results) == 1 else f"{len(results)} comparisons")
    views = msgspec.json.encode([view_of(result) for result in results]).decode()
    names = _names(results)
    is_only = len(results) == 1
    body = "".join(
        _result(result, n, name=None if is_only else names[n]) for n, result in enumerate(results)
    )
    lead = results[0].question if is_only else ""
    return _PAGE.format(
        title=escape(heading),
        csp="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
        css=_asset("page.css"),
        js=_asset("page.js"),
        # No end of the script may hide in a name.
        data=views.replace("<", "\\u003c"),
        lead=f'<p class="lead">{escape(lead)}</p>' if lead else "",
        chips=_chips(results[0]) if is_only else "",
        jump=_jump(results, names),
        overview="" if is_only else _overview(results, names),
        body=body,
        version=escape(agentsched.__version__),
        when=escape(when),
    )


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{csp}">
<title>{title} · agentsched report</title>
<style>{css}</style>
</head>
<body>
<header class="top"><h1>{title}</h1>{lead}{chips}</header>
{jump}
<main>
<noscript><p class="noscript">Pictures need JavaScript; all figures are in the tables.</p>
</noscript>
{overview}
{body}
</main>
<footer>Made by agentsched {version} on {when}. This file is complete: it loads nothing.</footer>
<div id="tip" role="status"></div>
<script type="application/json" id="data">{data}</script>
<script>{js}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return resources.files("agentsched_bench.report").joinpath(name).read_text(encoding="utf-8")


def _names(results: Sequence[CompareResult]) -> list[str]:
    """What each is called: how it came about and when it began tell those of one name apart."""
    names = [result.name for result in results]
    hows = [_HOW[result.how] for result in results]
    times = [_when(result, 19) for result in results]
    for words in (hows, times):
        counts = Counter(names)
        names = [
            f"{name}, {word}" if counts[name] > 1 and word else name
            for name, word in zip(names, words, strict=True)
        ]
    return names


def _when(result: CompareResult, chars: int) -> str:
    """When it began, to the minute (16 characters) or the second (19)."""
    told = result.started_at
    zone = " UTC" if told.endswith(("+00:00", "Z")) else ""
    return f"{told[:chars].replace('T', ' ')}{zone}"


def _jump(results: Sequence[CompareResult], names: Sequence[str]) -> str:
    if len(results) > 1:
        links = [(f"result-{n}", name) for n, name in enumerate(names)]
    else:
        links = [
            ("result-0-short", "In short"),
            ("result-0-figures", "Figures"),
            ("result-0-distributions", "Distributions"),
        ]
        if any(run.calls and run.is_complete for run in results[0].runs):
            links += [("result-0-programs", "Programs"), ("result-0-decisions", "Decisions")]
        links.append(("result-0-how", "How it was made"))
    items = "".join(f'<li><a href="#{key}">{escape(text)}</a></li>' for key, text in links)
    return f'<nav class="jump" aria-label="On this page"><ul>{items}</ul></nav>'


def _chips(result: CompareResult) -> str:
    chips = [_HOW[result.how], f"{result.trace.programs} programs, {result.trace.calls:,} calls"]
    repeats = max((arm.runs for arm in result.summary), default=0)
    chips.append(f"{repeats} repeat" + ("" if repeats == 1 else "s"))
    if isinstance(result.spec.get("engine"), dict):
        chips.append(_engine(result))
    if result.started_at:
        chips.append(_when(result, 16))
    items = "".join(f"<li>{escape(chip)}</li>" for chip in chips if chip)
    if result.trace.is_synthetic:
        items += '<li class="warn">synthetic programs</li>'
    if not result.is_complete:
        items += '<li class="warn">not all runs are done</li>'
    if disturbances(result):
        items += '<li class="warn">disturbed by the machine</li>'
    return f'<ul class="chips">{items}</ul>'


def _engine(result: CompareResult) -> str:
    kinds = {"sim": "embedded engine", "vllm": "vLLM", "url": "engine given by URL"}
    spec = result.spec["engine"]
    assert isinstance(spec, dict)
    text = kinds.get(str(spec.get("kind")), "engine")
    text = f"{text}'s model" if result.how == "simulated" else text
    count, tokens = engines(result)
    if count != 1:
        text = f"{count} x {text}"
    if tokens is not None:
        text += f", {tokens:,} KV tokens" + (" in all" if count != 1 else "")
    return text


def _overview(results: Sequence[CompareResult], names: Sequence[str]) -> str:
    """One line for each result: which arm came out best and what was seen."""
    arms = list(dict.fromkeys(arm.arm for result in results for arm in result.summary))
    head = "".join(f'<th scope="col">{escape(arm)}</th>' for arm in arms)
    rows = []
    for number, result in enumerate(results):
        figures = {arm.arm: arm for arm in result.summary}
        cells = "".join(_overview_cell(figures.get(arm)) for arm in arms)
        link = f'<a href="#result-{number}">{escape(names[number])}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    return (
        '<section id="overview"><h2>All at a glance</h2><p>Job completion time over the '
        "baseline's, for the same programs; coloured where the interval leaves no doubt.</p>"
        f'<div class="panel scroll"><table><thead><tr><th scope="col">comparison</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _overview_cell(arm: ArmFigures | None) -> str:
    if arm is None:
        return "<td>-</td>"
    if arm.jct is None:
        return '<td class="soft">1</td>'
    if not arm.jct.pairs:
        return f'<td class="soft" title="{escape(arm.sentence)}">-</td>'
    return f'<td class="{_tone(arm)}" title="{escape(arm.sentence)}">{arm.jct.value:.2f}</td>'


def _tone(arm: ArmFigures) -> str:
    return str(arm.verdict) if arm.verdict in (Verdict.BETTER, Verdict.WORSE) else "plain"


def _result(result: CompareResult, number: int, *, name: str | None) -> str:
    """All about one result. `name` is None where the page is about no other: its head says it."""
    key = f"result-{number}"
    heading = f'<h2 class="name">{escape(name)}</h2>' if name is not None else ""
    chips = _chips(result) if name is not None else ""
    question = "" if name is None or not result.question else f"<p>{escape(result.question)}</p>"
    parts = [
        f'<div class="result" id="{key}">{heading}{question}{chips}',
        _short(result, key),
        _figures(result, key),
        _distributions(key),
    ]
    if any(run.calls and run.is_complete for run in result.runs):
        parts += [_programs(result, key), _decisions(key)]
    parts += [_how(result, key), "</div>"]
    return "".join(parts)


def _short(result: CompareResult, key: str) -> str:
    others = [arm for arm in result.summary if arm.jct is not None]
    expects = f"<p>Expected: {escape(result.expects)}</p>" if result.expects else ""
    disturbed = _disturbed(result)
    missing = "".join(f'<li class="soft">{escape(line)}</li>' for line in left_out(result))
    missing = f"<ul>{missing}</ul>" if missing else ""
    if not others:
        only = "".join(_lone_card(arm) for arm in result.summary)
        return (
            f'<section id="{key}-short"><h2>In short</h2>{expects}<div class="cards">{only}</div>'
            f"{missing}{disturbed}</section>"
        )
    cards = "".join(_card(arm, result) for arm in others)
    names = [arm.arm for arm in result.summary]
    rows = [
        {
            "arm": arm.arm,
            "index": names.index(arm.arm),
            "value": arm.jct.value,
            "low": arm.jct.low,
            "high": min(arm.jct.high, 1e6),
            "by_repeat": arm.jct.by_repeat,
            "word": str(arm.verdict),
            "sentence": arm.sentence,
        }
        for arm in others
        if arm.jct is not None and arm.jct.pairs
    ]
    data = escape(msgspec.json.encode(rows).decode(), quote=True)
    forest = (
        f'<div class="panel"><h3>How sure that is</h3><p class="soft">Job completion time over '
        f"{escape(result.baseline)}'s, logarithmic. Bars are 95 % intervals, thin strokes single "
        f'repeats; left of 1 is faster.</p><div data-part="forest" data-rows="{data}"></div></div>'
    )
    return (
        f'<section id="{key}-short"><h2>In short</h2>{expects}'
        f'<div class="cards">{cards}</div>{missing}{disturbed}'
        f"{forest if rows else ''}</section>"
    )


def _disturbed(result: CompareResult) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in disturbances(result))
    return f"<h3>Disturbed by the machine</h3><ul>{lines}</ul>" if lines else ""


def _card(arm: ArmFigures, result: CompareResult) -> str:
    assert arm.jct is not None
    base = next((row for row in result.summary if row.arm == result.baseline), None)
    words = {
        Verdict.BETTER: "faster",
        Verdict.WORSE: "slower",
        Verdict.SAME: "the same",
        Verdict.UNSEEN: "no difference seen",
        Verdict.UNKNOWN: "cannot be said",
    }
    verdict = arm.verdict or Verdict.UNKNOWN
    facts = []
    if base is not None and arm.jct_s.count and base.jct_s.count:
        facts.append(f"mean {_seconds(arm.jct_s.mean)} against {_seconds(base.jct_s.mean)}")
    if base is not None and arm.cached_share is not None and base.cached_share is not None:
        facts.append(f"{arm.cached_share:.0%} of prompts cached against {base.cached_share:.0%}")
    if arm.ttft_s.count:
        facts.append(f"longest first token {_seconds(arm.ttft_s.max)}")
    if arm.failed:
        facts.append(f"{arm.failed} programs failed")
    big = f"{arm.jct.value:.2f}×" if arm.jct.pairs else "-"
    return (
        f'<div class="card {_tone(arm)}"><div class="who">{escape(arm.arm)}</div>'
        f'<div class="big">{big}</div><div class="word">{words[verdict]}</div>'
        f'<p class="small">{escape("; ".join(facts))}.</p></div>'
    )


def _lone_card(arm: ArmFigures) -> str:
    facts = [f"{arm.completed} programs, {arm.calls:,} calls"]
    if arm.cached_share:
        facts.append(f"{arm.cached_share:.0%} of prompt tokens cached")
    if arm.ttft_s.count:
        facts.append(f"longest first token {_seconds(arm.ttft_s.max)}")
    big = _seconds(arm.jct_s.mean) if arm.jct_s.count else "-"
    return (
        f'<div class="card"><div class="who">{escape(arm.arm)}</div>'
        f'<div class="big">{big}</div><div class="word">mean job completion '
        f'time</div><p class="small">{"; ".join(facts)}.</p></div>'
    )


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def _known_seconds(value: float) -> str:
    """Nothing takes no time: 0 stands where nothing was measured."""
    return _seconds(value) if value else "-"


def _figures(result: CompareResult, key: str) -> str:
    head = "".join(
        f'<th scope="col"><span class="dot" style="background:var(--s{n % _COLORS})"></span>'
        f"{escape(arm.arm)}</th>"
        for n, arm in enumerate(result.summary)
    )
    rows = []
    for name, show in ROWS:
        cells = [show(arm) for arm in result.summary]
        if all(cell == "-" for cell in cells):
            continue
        kind = "minor" if name.startswith(" ") else "major" if name in _MAJOR else ""
        hint = f' title="{escape(_HINTS[name])}"' if name in _HINTS else ""
        tones = [_tone(arm) if name == "verdict" else "" for arm in result.summary]
        drawn = "".join(
            f'<td class="{tone}">{escape(cell)}</td>'
            for cell, tone in zip(cells, tones, strict=True)
        )
        rows.append(
            f'<tr class="{kind}"><th scope="row"{hint}>{escape(name.strip())}</th>{drawn}</tr>'
        )
    table = (
        f'<div class="panel scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    unlike = unlike_runs(result.summary)
    return (
        f'<section id="{key}-figures"><h2>Figures</h2><p>Point at a row for what it means. '
        "Programs and calls that failed are counted and are in no distribution.</p>"
        f"{f'<p>{escape(unlike)}</p>' if unlike else ''}{table}{_tenants(result)}</section>"
    )


def _tenants(result: CompareResult) -> str:
    rows = [
        f'<tr><th scope="row">{escape(arm.arm)}</th><td>{escape(tenant.tenant)}</td>'
        f"<td>{tenant.programs}</td><td>{_known_seconds(tenant.jct_mean_s)}</td>"
        f"<td>{'-' if tenant.slowdown_p99 is None else f'{tenant.slowdown_p99:.2f}'}</td>"
        f"<td>{_known_seconds(tenant.ttft_p99_s)}</td><td>{tenant.service_tokens:,}</td></tr>"
        for arm in result.summary
        for tenant in arm.tenants
    ]
    if not rows:
        return ""
    names = ("arm", "tenant", "programs", "JCT mean", "slowdown p99", "TTFT p99", "service, tokens")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<h3>Tenants</h3><div class="panel scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _distributions(key: str) -> str:
    return (
        f'<section id="{key}-distributions"><h2>Distributions</h2>'
        "<p>How many took at most so long: curves further left and higher are faster.</p>"
        '<div class="two"><div class="panel"><h3>Job completion time</h3>'
        '<div data-part="jct"></div></div><div class="panel"><h3>Time to the first token</h3>'
        '<div data-part="ttft"></div></div></div></section>'
    )


_LEGEND: Final = (
    ("refused", "turned away, until it came back"),
    ("held", "held by the proxy"),
    ("first", "queue and prefill, until the first token"),
    ("answer", "answering"),
    ("kept", "paused in a tool, its KV was kept"),
    ("lost", "paused, its KV was lost"),
    ("unknown", "paused, not known"),
    ("error", "failed"),
)


def _programs(result: CompareResult, key: str) -> str:
    arms = list(dict.fromkeys(run.arm for run in result.runs if run.calls and run.is_complete))
    options = "".join(f'<option value="{escape(arm)}">{escape(arm)}</option>' for arm in arms)
    legend = "".join(
        f'<span><i style="background:var(--{name})"></i>{text}</span>' for name, text in _LEGEND
    )
    legend += '<span><i class="pin" style="background:var(--pin)"></i>pinned</span>'
    return f"""<section id="{key}-programs"><h2>Programs over time</h2>
<p>One row for each program; sub-agents have rows of their own beneath. Choose a program for its
calls.</p>
<div class="picker"><label>arm <select data-part="arm">{options}</select></label>
<label>repeat <select data-part="repeat"></select></label>
<label>zoom <select data-part="zoom"><option value="1">fit</option><option value="3">3 x</option>
<option value="10">10 x</option></select></label></div>
<div class="panel"><div class="legend">{legend}</div><div class="tall" data-part="timeline"></div>
<p class="soft" data-part="left"></p><div data-part="program"></div></div>
<div class="two"><div class="panel"><h3>Who holds the cache</h3>
<p class="soft">KV tokens by program, as far as they were of use: prompts and answers of running
calls, and of paused programs what was still there when they came back. What several share counts
once.</p>
<div data-part="occupancy"></div></div>
<div class="panel" data-part="shares-panel"><h3>Who gets the engines</h3>
<p class="soft">Each tenant's share of the tokens computed (an answer's count twice).</p>
<div data-part="shares"></div></div></div></section>"""


def _decisions(key: str) -> str:
    return f"""<section id="{key}-decisions"><h2>Decisions</h2>
<p data-part="totals"></p>
<div class="panel scroll tall" data-part="decisions-table"><table class="left"><thead><tr>
<th scope="col">at</th><th scope="col">what</th><th scope="col">why</th><th scope="col">program</th>
</tr></thead><tbody data-part="decisions"></tbody></table></div></section>"""


def _how(result: CompareResult, key: str) -> str:
    facts = {
        "made by": " ".join(result.command),
        "trace": f"{result.trace.name} {result.trace.sha256[:12]}".strip(),
        "versions": ", ".join(f"{k} {v}" for k, v in result.versions.items()),
        "machine": ", ".join(f"{k} {v}" for k, v in result.machine.items()),
        "time alone": result.alone_how,
        **{
            f"arm {row.name}": " ".join(
                part for part in (row.about, row.version, f"(ids: {row.ids})") if part
            )
            for row in result.arms
        },
    }
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(text)}</code></td></tr>'
        for name, text in facts.items()
        if text
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    sentences = "".join(
        f"<li>{escape(arm.arm)}: {escape(arm.sentence)}</li>"
        for arm in result.summary
        if arm.jct is not None
    )
    spec = escape(msgspec.json.format(msgspec.json.encode(result.spec), indent=2).decode())
    return f"""<section id="{key}-how"><h2>How it was made</h2>{notes}
{f"<ul>{sentences}</ul>" if sentences else ""}
<div class="panel scroll"><table class="left"><tbody>{rows}</tbody></table></div>
<details><summary>The whole specification</summary><pre>{spec}</pre></details></section>"""
