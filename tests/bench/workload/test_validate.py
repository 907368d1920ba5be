"""The validator finds what the types cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agentsched_bench.workload.trace import Recording, encode_recording, write_trace
from agentsched_bench.workload.validate import check_recording, validate_trace


def _with_step(recording: Recording, index: int, **fields: object) -> Recording:
    steps = list(recording.steps)
    steps[index] = msgspec.structs.replace(steps[index], **fields)
    return msgspec.structs.replace(recording, steps=tuple(steps))


def test_a_sound_recording_is_left_alone(recording: Callable[..., Recording]) -> None:
    assert check_recording(recording((100, 10, None), (150, 20, 40), (90, 5, None))) == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"step": 7}, "steps[1].step is 7, not 1"),
        ({"prefix_tokens": 151}, "steps[1].prefix_tokens is more"),
        ({"new_input_tokens": 41}, "steps[1].input_tokens is 150, its parts give 151"),
        ({"t_s": 1.0}, "steps[1].t_s goes back from 2.0 to 1.0"),
        ({"hash_ids": ((0, 1),)}, "steps[1].hash_ids without a block_size"),
    ],
)
def test_what_does_not_add_up_is_named(
    fields: dict[str, object], complaint: str, recording: Callable[..., Recording]
) -> None:
    sound = _with_step(recording((100, 10, None), (150, 20, 40)), 0, t_s=2.0)

    (found,) = check_recording(_with_step(sound, 1, **fields))

    assert found.startswith(complaint)


@pytest.mark.parametrize(
    ("runs", "complaint"), [(((0, 9),), "covers more"), (((5, 4),), "ends before")]
)
def test_hash_runs_are_checked(
    runs: tuple[tuple[int, int], ...], complaint: str, recording: Callable[..., Recording]
) -> None:
    hashed = _with_step(recording((100, 10, None), block_size=64), 0, hash_ids=runs)

    assert complaint in check_recording(hashed)[0]


def test_a_file_is_checked_as_a_whole(tmp_path: Path, recording: Callable[..., Recording]) -> None:
    rows = [
        recording((100, 10, None), name="a"),
        recording((100, 10, None), name="a"),
        recording((100, 10, None), name="b", parent="nobody"),
    ]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"{}\n" + b"".join(encode_recording(row) for row in rows))

    result = validate_trace(path)

    assert (result.recordings, result.calls, result.errors, result.warnings) == (3, 3, 1, 2)
    assert [finding.line for finding in result.findings] == [1, 3, 4]
    assert str(result.findings[0]).startswith(f"{path}:1: error: ")
    assert "on line 2 already" in result.findings[1].message


@pytest.mark.traces
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "agentcgroup-swe-rebench",
        "azure-llm-2023",
        "bfcl-v4-vllm",
        "miniswe-gemini3-swebench-verified",
        "mooncake-conversation",
        "sweagent-swebench-verified",
        "weka-claude-code",
    ],
)
def test_recorded_files_are_sound(name: str, traces: Path) -> None:
    result = validate_trace(traces / f"{name}.jsonl.gz")

    assert result.errors == 0
    assert result.recordings > 50


def test_findings_are_bounded_and_counted(
    tmp_path: Path, recording: Callable[..., Recording]
) -> None:
    path = tmp_path / "t.jsonl"
    write_trace([recording((100, 10, None), name="a")] * 300, path)

    result = validate_trace(path)

    assert result.warnings == 299
    assert len(result.findings) == 100
