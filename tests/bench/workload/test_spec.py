"""The `[workload]` of a scenario file: what is taken, and how mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.workload.spec import Closed, Poisson, Traffic, load_workload, parse_workload

FULL = """
[workload]
seed = 7
programs = 40
scale_tokens = 4
text = true
arrivals = { process = "bursty", rate = 0.1, burst_rate = 2.0, calm_s = 60, burst_s = 10 }

[[workload.sources]]
trace = "sample"
weight = 3
only = ["agent=*shell*"]
tenant = "heavy"

[[workload.tenants]]
name = "heavy"
load = 3
weight = 1

[[workload.tenants]]
name = "light"
arrivals = { process = "poisson", rate = 0.05 }

[[workload.background]]
traffic = "batch"
arrivals = { process = "closed", concurrency = 2 }
programs = 30
"""

SOURCES = [{"trace": "sample"}]


def test_reads_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(FULL)
    workload = load_workload(path)
    assert workload.sources[0].only == ("agent=*shell*",)
    assert workload.tenants[1].arrivals == Poisson(rate=0.05)
    assert workload.background[0].traffic is Traffic.BATCH
    assert workload.background[0].arrivals == Closed(concurrency=2)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"sources": []}, "workload.sources"),
        ({"sources": SOURCES}, "say how much"),
        ({"sources": SOURCES, "programs": 0}, "workload.programs"),
        ({"sources": SOURCES, "programs": 3, "sede": 1}, "workload.sede"),
        ({"sources": SOURCES, "programs": 3, "arrivals": {"process": "x"}}, "workload.arrivals"),
        ({"sources": SOURCES, "duration_s": 9.0}, "closed arrivals need programs"),
        (
            {"sources": SOURCES, "programs": 1, "tenants": [{"name": "a"}, {"name": "a"}]},
            "two tenants",
        ),
        (
            {
                "sources": [{"trace": "sample", "tenant": "b"}],
                "programs": 1,
                "tenants": [{"name": "a"}],
            },
            "no tenant is called 'b'",
        ),
        (
            {
                "sources": SOURCES,
                "programs": 1,
                "background": [{"arrivals": {"process": "poisson", "rate": 1}}],
            },
            "background needs",
        ),
        (
            {
                "sources": SOURCES,
                "programs": 1,
                "duration_s": 9.0,
                "background": [{"arrivals": {"process": "closed", "concurrency": 1}}],
            },
            "background needs",
        ),
        (
            {
                "sources": SOURCES,
                "arrivals": {"process": "recorded"},
                "background": [{"arrivals": {"process": "poisson", "rate": 1}}],
            },
            "background needs",
        ),
        (
            {
                "sources": SOURCES,
                "arrivals": {"process": "recorded"},
                "tenants": [{"name": "a", "arrivals": {"process": "poisson", "rate": 1}}],
            },
            "say how much",
        ),
        (
            {"sources": [{"trace": "sample", "programs": 2}, *SOURCES], "programs": 9},
            "some sources have programs",
        ),
    ],
)
def test_names_what_is_wrong(table: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_workload(table, where="s.toml")


def test_a_file_without_a_workload_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[arms]\n")
    with pytest.raises(ConfigError, match=r"s\.toml: no \[workload\]"):
        load_workload(path)
    path.write_text("[workload")
    with pytest.raises(ConfigError, match="not TOML"):
        load_workload(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_workload(tmp_path / "none.toml")
