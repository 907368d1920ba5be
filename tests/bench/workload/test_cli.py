"""`agentsched trace`, as a person calls it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from agentsched_bench.workload.cli import app
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.trace import TraceError, read_trace

_RUN = CliRunner()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "made.jsonl.gz"
    arguments = ["generate", "--out", str(path), "--programs", "6", "--steps", "5"]
    assert _RUN.invoke(app, arguments).exit_code == 0
    return path


def test_a_made_trace_is_valid(made: Path) -> None:
    result = _RUN.invoke(app, ["validate", str(made)])

    assert result.exit_code == 0
    assert "0 errors, 0 warnings" in result.output


def test_a_bad_line_fails_the_check_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"session_id": 1}\n')

    result = _RUN.invoke(app, ["validate", str(path)])

    assert result.exit_code == 1
    assert f"{path}:1: error:" in result.output
    machine = _RUN.invoke(app, ["validate", str(path), "--json"])
    assert json.loads(machine.output)["errors"] == 1


_ANSWER = {
    "role": "assistant",
    "content": "```bash\nls\n```",
    "extra": {"response": {"usage": {"prompt_tokens": 100, "completion_tokens": 30}}},
}
_TRANSCRIPT = {
    "info": {"mini_version": "1.9.0", "exit_status": "Submitted"},
    "trajectory_format": "mini-swe-agent-1",
    "messages": [
        {"role": "system", "content": "You fix bugs."},
        {"role": "user", "content": "Fix it."},
        _ANSWER,
        {"role": "user", "content": "a.py"},
        _ANSWER,
    ],
}


@pytest.mark.parametrize("indent", [None, 2], ids=["on one line", "on many lines"])
def test_a_file_of_another_format_is_told_once_with_its_import(
    indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some run.traj.json"
    path.write_text(json.dumps(_TRANSCRIPT, indent=indent))

    result = _RUN.invoke(app, ["validate", str(path)])

    assert result.exit_code == 1
    [told, _] = result.output.splitlines()
    assert "it looks like mini-swe-agent" in told
    # What it says to do can be done.
    said = shlex.split(told.partition("Import it: ")[2])
    assert said[:2] == ["agentsched", "trace"]
    assert _RUN.invoke(app, said[2:]).exit_code == 0
    assert _RUN.invoke(app, ["validate", said[-1]]).exit_code == 0


def test_lines_of_no_known_format_are_named_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"colour": "red"}\n{"colour": "green"}\n')

    result = _RUN.invoke(app, ["validate", str(path)])

    assert f"{path}:1: error:" in result.output
    assert f"{path}:2: error:" in result.output
    assert "looks like" not in result.output


def test_figures_are_printed_for_people_and_for_machines(made: Path) -> None:
    people = _RUN.invoke(app, ["stats", str(made)])
    machines = _RUN.invoke(app, ["stats", str(made), "--json"])

    assert "synthetic" in people.output
    assert json.loads(machines.output)["programs"] == 6


def test_names_of_tools_and_large_numbers_are_whole_on_eighty_columns(tmp_path: Path) -> None:
    tools = [f"mcp__github_enterprise__create_pull_request_{word}" for word in ("review", "note")]
    path = tmp_path / "t.jsonl"
    used = [{"name": name, "duration_s": 12_345.6} for name in tools]
    first = {"step": 0, "input_tokens": 1_000_000, "output_tokens": 1, "tools": used}
    steps = [first, {"step": 1, "input_tokens": 1_200_000, "output_tokens": 1}]
    path.write_text(json.dumps({"session_id": "s", "source": "x", "steps": steps}))
    shown = _RUN.invoke(app, ["stats", str(path)], env={"COLUMNS": "80"}).stdout
    assert "1,200,000" in shown
    names = "".join(line[1:].partition("  ")[0] for line in shown.splitlines())
    assert all(name in names for name in tools)


def test_figures_can_leave_bad_lines_out(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = list(read_trace(made))
    path.write_bytes(
        b"{}\n"
        + b"".join(
            json.dumps(
                {
                    "session_id": row.session_id,
                    "source": "s",
                    "steps": [{"step": 0, "input_tokens": 1, "output_tokens": 1}],
                }
            ).encode()
            + b"\n"
            for row in rows
        )
    )

    strict = _RUN.invoke(app, ["stats", str(path)])
    lenient = _RUN.invoke(app, ["stats", str(path), "--skip-bad", "--json"])

    assert isinstance(strict.exception, TraceError)
    assert lenient.exit_code == 0
    assert f"left out: {path}:1:" in lenient.stderr
    assert json.loads(lenient.stdout)["recordings"] == len(rows)


def test_a_sample_is_a_trace(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "sample.jsonl"
    arguments = ["sample", str(made), "--out", str(path), "--programs", "2", "--only", "agent=s*"]

    assert _RUN.invoke(app, arguments).exit_code == 0
    assert {row.agent for row in read_trace(path)} == {"shell-agent"}


def test_import_names_what_it_could_not_read(tmp_path: Path) -> None:
    good = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(good) + "\nbroken\n")
    out = tmp_path / "t.jsonl.gz"

    result = _RUN.invoke(app, ["import", "auto", str(path), "-o", str(out)])

    assert result.exit_code == 1
    assert f"left out: {path}:2: not JSON" in result.output
    assert "1 programs, 0 sub-agents, 1 calls from 1 mooncake; 1 errors" in result.output
    assert len(list(read_trace(out))) == 1
    machine = _RUN.invoke(app, ["import", "mooncake", str(path), "-o", str(out), "--json"])
    told = json.loads(machine.stdout)
    assert (told["calls"], told["errors_count"]) == (1, 1)


def test_commands_in_a_picture_are_no_formulas(tmp_path: Path) -> None:
    (recording,) = generate(programs=1, seed=1, interarrival_s=1.0)
    line = msgspec.to_builtins(recording)
    line["steps"][0]["tools"] = [{"name": "bash", "command": r"$A\x$", "duration_s": 1.0}]
    path = tmp_path / "t.jsonl"
    path.write_bytes(msgspec.json.encode(line) + b"\n")

    done = _RUN.invoke(app, ["stats", str(path), "--picture", str(tmp_path / "p.png")])

    assert done.exit_code == 0, done.exception


def test_a_trace_is_drawn(made: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    result = _RUN.invoke(app, ["stats", str(made), "--picture", str(picture)])

    assert result.exit_code == 0
    assert "tool calls:" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    wrong = _RUN.invoke(app, ["stats", str(made), "--picture", str(tmp_path / "p.doc")])
    assert wrong.exit_code != 0


def test_compose_and_export(made: Path, tmp_path: Path) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text(f'[workload]\nprograms = 9\n[[workload.sources]]\ntrace = "{made.name}"\n')
    out = tmp_path / "w.jsonl"
    result = _RUN.invoke(app, ["compose", str(spec), "-o", str(out), "--seed", "3"])

    assert result.exit_code == 0
    assert "9 programs" in result.output
    assert "main 8 at a time" in result.output
    assert _RUN.invoke(app, ["validate", str(out)]).exit_code == 0
    spans = tmp_path / "spans.jsonl"
    result = _RUN.invoke(app, ["export", "otel", str(out), "-o", str(spans)])
    assert result.exit_code == 0
    assert "9 programs, 9 lines of otel" in result.output
