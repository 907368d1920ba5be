"""The measurement as it is started: an engine, a proxy for each run, a file at the end."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agentsched_bench.recognition.__main__ import main
from agentsched_bench.recognition.digest import SCHEMA, Digest
from agentsched_bench.workload.generate import sample_path


@pytest.mark.slow
def test_a_small_measurement(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digest.json"
    arguments = [str(sample_path()), "--programs", "4", "--steps", "3", "--speed", "1000"]

    code = main([*arguments, "--conventions", "claude-code", "--out", str(out)])

    assert code == 0
    digest = msgspec.json.decode(out.read_bytes(), type=Digest)
    assert digest.schema == SCHEMA
    (verdict,) = digest.verdicts
    assert (verdict.dialect, verdict.convention) == ("messages", "claude-code")
    assert verdict.completed == verdict.programs == 4
    assert verdict.calls == sum(digest.programs.values())
    assert verdict.attribution is not None
    assert (verdict.attribution.right_share, verdict.wrong) == (1.0, {})
    assert "claude-code: 4/4 programs" in capfd.readouterr().out
