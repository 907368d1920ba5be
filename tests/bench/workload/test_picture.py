"""A trace's picture: what took no time counts like everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentsched_bench.workload import picture
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.picture import _distribution, _Gathered, _tool_times


@pytest.fixture
def axis() -> Any:
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_what_took_no_time_is_in_the_shares_and_in_the_median(axis: Any) -> None:
    """A logarithmic axis has no 0: the curve begins above it."""
    lines = [("pause", [0.0, 2.0, 0.0, 0.0, 1.0], "#000000"), ("LLM call", [0.0], "#000000")]
    _distribution(axis, [*lines, ("none", [], "#000000")], "seconds")

    pause, call = axis.lines
    assert list(zip(pause.get_xdata(), pause.get_ydata(), strict=True)) == [(1.0, 0.8), (2.0, 1.0)]
    assert len(call.get_xdata()) == 0
    shown = [text.get_text() for text in axis.get_legend().get_texts()]
    assert shown == ["pause (median 0)", "LLM call (median 0)"]


def test_a_curve_that_is_thinned_out_ends_at_its_largest_value(
    axis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "_POINTS_MAX", 10)
    _distribution(axis, [("prompt", [float(n) for n in range(1, 101)], "#000000")], "tokens")

    (line,) = axis.lines
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (100.0, 1.0)
    assert list(line.get_ydata()[:2]) == [0.01, 0.11]


def test_tools_that_took_no_time_are_counted(axis: Any) -> None:
    _tool_times(axis, _Gathered(tool_s={"read": [0.0, 3.0, 0.0, 1.0], "ls": [0.0], "cat": [1.0]}))

    shown = [text.get_text() for text in axis.get_yticklabels()]
    assert shown == ["ls (1, 1 of 0 s)", "cat (1)", "read (4, 2 of 0 s)"]


def test_where_no_tool_took_any_time_it_is_said(axis: Any) -> None:
    _tool_times(axis, _Gathered(tool_s={"read": [0.0]}))

    assert [text.get_text() for text in axis.texts] == ["tools' times: all 0 s"]


def test_no_words_leave_the_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last axis' words ended beyond the picture's right edge."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *args: Any, **options: Any) -> None:
        save(figure, *args, **options)
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", kept)
    picture.draw(generate(programs=5, seed=1), tmp_path / "p.png", title="a trace")

    (figure,) = drawn
    for axis in figure.axes:
        box = axis.xaxis.label.get_window_extent()
        assert box.x0 >= 0.0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0.0
