"""The curve of bounds: read from results of simulations, in order, and drawn."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agentsched.model import ConfigError
from agentsched_bench.live.results import TraceRow
from agentsched_bench.sim.bound_curve import draw, main, read_points
from agentsched_bench.sim.results import SCHEMA, SimResult, SimRow
from agentsched_bench.workload.statistics import spread


def row(seed: int, *, mean: float, slow: float, held: float) -> SimRow:
    return SimRow(
        arm="agentsched",
        seed=seed,
        programs=1,
        failed=0,
        calls=1,
        jct_s=spread([mean]),
        slowdown=spread([slow]),
        first_token_wait_s=spread([2 * held]),
        held_s=spread([held]),
        prompt_tokens=1,
        cached_share=0.0,
        again_tokens=0,
        output_tokens=1,
        busy_share=0.5,
        makespan_s=1.0,
        forced=0,
        rejected=0,
    )


def result(path: Path, *, bound: str, mean: float) -> Path:
    made = SimResult(
        schema=SCHEMA,
        command=[],
        versions={},
        trace=TraceRow(name="t", sha256="", programs=1, calls=1, is_synthetic=True),
        options={"max_wait": bound},
        seeds=[1, 2],
        rows=[row(seed, mean=mean + seed, slow=2.0, held=1.5) for seed in (1, 2)],
    )
    path.write_bytes(msgspec.json.encode(made))
    return path


def test_points_come_in_the_order_of_their_bounds(tmp_path: Path) -> None:
    files = [
        result(tmp_path / f"{bound}.json", bound=bound, mean=mean)
        for bound, mean in (("1m", 10.0), ("500ms", 30.0), ("5s", 20.0))
    ]
    points = read_points(files)
    assert [point.bound_s for point in points] == [0.5, 5.0, 60.0]
    assert [point.jct_mean_s for point in points] == [[31.0, 32.0], [21.0, 22.0], [11.0, 12.0]]
    assert points[0].first_token_wait_max_s == 3.0


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(ConfigError, match="no result"):
        read_points([bad])
    with pytest.raises(ConfigError, match="no arm direct"):
        read_points([result(tmp_path / "a.json", bound="1s", mean=1.0)], arm="direct")


@pytest.mark.slow
def test_it_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = result(tmp_path / "a.json", bound="5s", mean=20.0)
    picture = tmp_path / "curve.svg"
    assert main([str(file), "-o", str(picture), "--title", "t"]) == 0
    assert "p95 slowdown" in picture.read_text()
    assert "5 s: mean 21.5 s, p95 slowdown 2.00 (2.0 to 2.0)" in capsys.readouterr().out
    draw(read_points([file]), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
