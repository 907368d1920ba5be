"""The command line: nothing is left out silently, and what is kept gives the same again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentsched_bench.retention.__main__ import main
from agentsched_bench.workload.generate import sample_path


def test_an_arm_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(sample_path()), "--arms", "lru", "no-such-arm"])

    assert "no arm no-such-arm (there are: belady, lru, " in capsys.readouterr().err


def test_the_command_that_is_kept_gives_the_same_numbers(tmp_path: Path) -> None:
    trace, out = str(sample_path()), tmp_path / "r.json"
    few = ["--programs", "4", "--learnt", "4", "--seeds", "1", "--live", "4", "--pools", "0.3"]
    more = ["--gap-cap", "5", "--arms", "lru", "--param", "patience=2"]
    main([trace, *few, *more, "--out", str(out)])
    first = json.loads(out.read_text())
    *_, written = first["command"].partition("jsonl.gz ")

    main([trace, *written.split(), "--out", str(out)])

    assert json.loads(out.read_text())["rows"] == first["rows"]
    assert {row["arm"] for row in first["rows"]} == {"belady", "lru", "tuned"}
