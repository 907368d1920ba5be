"""`agentsched replay`: arguments, and a real process that is interrupted."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from agentsched.cli.root import app
from agentsched.model import AgentschedError, ConfigError
from agentsched_bench.live.cli import parse_arms
from agentsched_bench.live.results import read_result
from agentsched_bench.workload.generate import sample_path

if TYPE_CHECKING:
    from tests.bench.live.conftest import FakeOpenAi

_MAIN = "import sys; from agentsched.cli import main; sys.exit(main())"


async def _replay(*arguments: str, trace: Path | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _MAIN,
        "replay",
        str(trace or sample_path()),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def test_arms_have_names_ids_and_resets() -> None:
    urls = ["direct=http://a:1", "http://b:2/v1"]
    arms = parse_arms(urls, ids=["session", "direct=none"], reset=["direct=http://a:1/r?x=1"])

    assert [(arm.name, arm.url, arm.ids) for arm in arms] == [
        ("direct", "http://a:1", "none"),
        ("arm-2", "http://b:2/v1", "session"),
    ]
    assert arms[0].reset_url == "http://a:1/r?x=1"
    assert arms[1].reset_url is None


@pytest.mark.parametrize(
    ("urls", "ids", "complaint"),
    [
        (["a=ftp://x"], [], "not a URL"),
        (["a=http://x", "a=http://y"], [], "two arms"),
        (["a=http://x"], ["b=session"], "no arm is called"),
        (["a=http://x"], ["telepathy"], "no convention"),
    ],
)
def test_senseless_arms_are_refused(urls: list[str], ids: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_arms(urls, ids=ids)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("{}")

    with pytest.raises(AgentschedError, match=r"r\.json: not a replay's result"):
        read_result(path)


@pytest.mark.slow
async def test_a_replay_writes_its_result_and_prints_a_table(
    fake: FakeOpenAi, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    process = await _replay(
        *("--url", f"one={fake.url}", "--programs", "3", "--steps", "2", "--gap-cap", "0"),
        *("--api-key", "secret", "--out", str(out)),
    )
    said, complained = await process.communicate()

    assert process.returncode == 0, complained
    assert b"job completion, mean" in said
    assert b"synthetic" in said
    result = read_result(out)
    assert result.is_complete
    assert result.trace.sha256
    assert "secret" not in out.read_text()
    assert fake.seen[-1].headers["Authorization"] == "Bearer secret"


@pytest.mark.slow
async def test_ctrl_c_keeps_what_was_measured(fake: FakeOpenAi, tmp_path: Path) -> None:
    # Four calls to calibrate and the first of each program: whoever asks next had an answer.
    fake.hang_from = 9
    out = tmp_path / "r.json"
    process = await _replay(
        *("--url", fake.url, "--programs", "4", "--gap-cap", "0", "--out", str(out)), "--json"
    )
    await fake.hanging.wait()
    process.send_signal(signal.SIGINT)
    said, complained = await process.communicate()

    assert process.returncode == 130, complained
    result = read_result(out)
    assert not result.is_complete
    assert any(not row.error for row in result.calls)
    assert json.loads(said)[0]["programs"]["interrupted"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("emptied", "contents"), [(("one",), 2), (("one", "two"), 1)])
async def test_runs_share_their_content_only_where_every_cache_is_emptied(
    emptied: tuple[str, ...], contents: int, fake: FakeOpenAi, tmp_path: Path
) -> None:
    """An arm whose cache stays full would find there what an earlier run has left."""
    out = tmp_path / "r.json"
    resets = [f"--reset={name}={fake.url}/reset_prefix_cache" for name in emptied]
    process = await _replay(
        *("--url", f"one={fake.url}", "--url", f"two={fake.url}", *resets),
        *("--programs", "1", "--steps", "1", "--gap-cap", "0", "--out", str(out)),
    )
    _, complained = await process.communicate()

    assert process.returncode == 0, complained
    assert fake.resets == len(emptied)
    assert len({run.salt for run in read_result(out).runs}) == contents


_COMPOSED = """
[workload]
scale_tokens = 100
scale_time = 10000

[[workload.sources]]
trace = "sample"
programs = 6
has_ids = false

[[workload.tenants]]
name = "looped"
arrivals = { process = "closed", concurrency = 1 }

[[workload.tenants]]
name = "timed"
arrivals = { process = "regular", rate = 50 }
"""


@pytest.mark.slow
async def test_a_composed_trace_is_replayed_as_it_asks(fake: FakeOpenAi, tmp_path: Path) -> None:
    spec, trace, out = tmp_path / "s.toml", tmp_path / "w.jsonl", tmp_path / "r.json"
    spec.write_text(_COMPOSED)
    assert not CliRunner().invoke(app, ["trace", "compose", str(spec), "-o", str(trace)]).exit_code

    process = await _replay(
        *("--url", fake.url, "--arrivals", "recorded", "--ids", "agentsched", "--steps", "2"),
        *("--out", str(out)),
        trace=trace,
    )
    _, complained = await process.communicate()

    assert process.returncode == 0, complained
    rows = read_result(out).programs
    assert Counter(row.tenant for row in rows) == {"looped": 3, "timed": 3}
    headers = [{k.lower(): v for k, v in seen.headers.items()} for seen in fake.seen]
    assert {each.get("x-agentsched-tenant") for each in headers} == {None, "looped", "timed"}
    assert not any("x-agentsched-program" in each for each in headers), "they have no ids"
    spans = sorted((row.started_s, row.jct_s) for row in rows if row.tenant == "looped")
    for (began_s, took_s), (next_s, _) in pairwise(spans):
        assert took_s is not None
        assert next_s >= began_s + took_s, "one at a time"


def test_an_arm_may_be_called_so() -> None:
    done = CliRunner().invoke(app, ["replay", str(sample_path()), "--arm", "a=ftp://x"])

    assert isinstance(done.exception, ConfigError)
    assert "not a URL" in str(done.exception)
