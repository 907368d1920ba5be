"""A what-if is right about what it can be checked on: journals of the simulator itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from agentsched.cli.root import app
from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.kernel import JournalEntry
from agentsched.model import ConfigError, Limits, seconds
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.replay.journal_file import JournalWriter, open_journal
from agentsched_bench.sim.arms import Scenario, parse_arm, starts_of
from agentsched_bench.sim.host import SimHost
from agentsched_bench.whatif.past import read_past
from agentsched_bench.whatif.plans import plans_of
from agentsched_bench.whatif.predict import Answer, Sizes, answer
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs

LIMITS = Limits(wait_ns_max=seconds(15), bypasses_max=1_000_000)


def scenario() -> Scenario:
    rows = list(generate(programs=12, seed=3, interarrival_s=1.0, steps_max=8))
    shape = ShapeOptions(scale_tokens=4, steps_max=8, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    config = EngineConfig.from_preset(preset("cpu-2core"))
    config = replace(config, blocks=240, max_model_len=239 * config.block_size)
    return Scenario(plans=plans, engines=[config], arrivals=parse_arrivals("burst:3/s"))


def journal(path: Path, profile: str) -> float:
    """Record a simulation under a profile; its mean completion time in seconds."""
    made = scenario()
    config = SchedulerConfig(profile=profile, limits=LIMITS)
    with JournalWriter(path, journal_header(config)) as writer:
        host = SimHost(build_scheduler(config), engines=made.engines, on_turn=writer.write)
        runs = host.run(starts_of(made, seed=1))
    took = [run.ended_at - run.started_at for run in runs if run.ended_at is not None]
    return sum(took) / len(took) / 1e9


def ask(path: Path, *arms: str) -> Answer:
    with open_journal(path) as opened:
        return answer(path.name, opened, [parse_arm(arm) for arm in arms], sizes=Sizes())


@pytest.mark.slow
def test_the_other_policy_is_foretold(tmp_path: Path) -> None:
    """What a journal of one policy says about another is what that one then does."""
    truth = {name: journal(tmp_path / f"{name}.ndjson", name) for name in ("passthrough", "fcfs")}
    truth["agentsched"] = journal(tmp_path / "agentsched.ndjson.gz", "agentsched")
    found = ask(tmp_path / "passthrough.ndjson", "agentsched")
    trust = found.trust
    assert trust.diverged_at is None
    assert abs(found.recorded.jct_s.mean - truth["passthrough"]) < 0.1
    assert abs(trust.self_error) < 0.1
    assert trust.program_error < 0.15
    foretold = found.recorded.jct_s.mean * found.ratios["agentsched"]
    assert foretold == pytest.approx(truth["agentsched"], rel=0.15)
    # And the order of the two is right.
    assert (found.ratios["agentsched"] < 1) == (truth["agentsched"] < truth["passthrough"])


def test_the_past_is_read_whole(tmp_path: Path) -> None:
    journal(tmp_path / "j.ndjson", "agentsched")
    made = scenario()
    with open_journal(tmp_path / "j.ndjson") as opened:
        past = read_past(opened)
    plans = plans_of(past)
    assert len(plans) == len(made.plans)
    assert past.unfinished == 0
    recorded = sorted(plan.start.plan.calls for plan in plans)
    assert recorded == sorted(plan.calls for plan in made.plans)
    told = sum(c.output_tokens for p in plans for t in p.start.plan.conversations for c in t.calls)
    meant = sum(c.output_tokens for p in made.plans for t in p.conversations for c in t.calls)
    assert told == meant
    for plan in plans:
        for talk in plan.start.plan.conversations:
            for call in talk.calls:
                new = sum(piece.tokens for piece in call.pieces)
                assert call.keep_tokens + call.echo_tokens + new == call.prompt_tokens
    # What they shared is still shared.
    assert any(
        piece.stream.startswith("shared/")
        for plan in plans
        for piece in plan.start.plan.main.calls[0].pieces
    )


def test_a_journal_that_does_not_replay_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "agentsched")
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines[1:], start=1):
        entry = msgspec.json.decode(line)
        if entry["seq"] > 20 and entry["commands"]:
            entry["commands"] = []
            lines[number] = msgspec.json.encode(entry) + b"\n"
            diverges = entry["seq"]
            break
    path.write_bytes(b"".join(lines))
    done = CliRunner().invoke(app, ["whatif", str(path), "--policy", "fcfs"])
    assert done.exit_code == 3, done.output
    assert f"diverged at entry {diverges}" in done.output
    assert "no prediction is given" in done.output


def test_the_command_answers_in_json_and_in_a_file(tmp_path: Path) -> None:
    path, out = tmp_path / "j.ndjson", tmp_path / "answer.json"
    journal(path, "fcfs")
    arguments = ["whatif", str(path), "--order", "program-fcfs", "--json", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(out.read_bytes(), type=Answer)
    assert [course.name for course in found.others] == ["fcfs,order=program-fcfs"]
    assert found.trust.diverged_at is None
    assert msgspec.json.decode(done.stdout)["policy"] == "fcfs"


def test_a_journal_without_answers_says_so(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    with JournalWriter(path, journal_header(SchedulerConfig(profile="fcfs", limits=LIMITS))):
        pass
    with pytest.raises(ConfigError, match="no call"):
        ask(path, "fcfs")


def test_an_oracle_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    with pytest.raises(ConfigError, match="no policy"):
        ask(path, "fcfs+srpt")


def test_entries_are_read_one_by_one() -> None:
    """A past needs no list of entries: a journal may be larger than memory."""
    assert read_past(iter(list[JournalEntry]())).steps == []
