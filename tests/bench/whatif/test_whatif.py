"""A what-if is right about what it can be checked on: journals of the simulator itself."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from shorthand import arrived, finished
from typer.testing import CliRunner

from agentsched.cli.root import app
from agentsched.compose import SchedulerConfig, build_policies, build_scheduler, journal_header
from agentsched.kernel import JournalEntry
from agentsched.model import (
    Capabilities,
    Command,
    ConfigError,
    Dispatch,
    EngineId,
    EngineLoad,
    EngineReported,
    Event,
    Instant,
    Limits,
    ProgramClosed,
    ProgramId,
    Reject,
    RejectReason,
    StepId,
    TenantConfigured,
    TenantId,
    TenantLimits,
    seconds,
)
from agentsched.policy import Choice
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.replay.journal_file import JournalWriter, open_journal
from agentsched_bench.sim.arms import Scenario, parse_arm, starts_of
from agentsched_bench.sim.clients import Endings
from agentsched_bench.sim.engines import EngineTraits
from agentsched_bench.sim.host import SimHost
from agentsched_bench.sim.prompts import SimPrompts
from agentsched_bench.whatif.cli import _arms, print_answer
from agentsched_bench.whatif.past import read_past
from agentsched_bench.whatif.plans import plans_of
from agentsched_bench.whatif.predict import (
    Answer,
    Fleet,
    Sizes,
    answer,
    endings_of,
    engines_of,
    other_config,
)
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.trace import group_programs

_JOURNALS = Path(__file__).parents[2] / "data" / "journals"
LIMITS = Limits(wait_ns_max=seconds(15), bypasses_max=1_000_000)


def scenario() -> Scenario:
    rows = list(generate(programs=12, seed=3, interarrival_s=1.0, steps_max=8))
    shape = ShapeOptions(scale_tokens=4, steps_max=8, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    config = EngineConfig.from_preset(preset("cpu-2core"))
    config = replace(config, blocks=240, max_model_len=239 * config.block_size)
    return Scenario(plans=plans, engines=[config], arrivals=parse_arrivals("burst:3/s"))


def journal(
    path: Path,
    profile: str,
    *,
    endings: Endings = Endings.SPOKEN,
    made: Scenario | None = None,
    tenants: Sequence[TenantConfigured] = (),
) -> float:
    """Record a simulation under a profile; its mean completion time in seconds."""
    made = made or scenario()
    config = SchedulerConfig(profile=profile, limits=LIMITS)
    with JournalWriter(path, journal_header(config)) as writer:
        host = SimHost(
            build_scheduler(config),
            engines=made.engines,
            on_turn=writer.write,
            endings=endings,
            traits=made.traits,
        )
        runs = host.run(starts_of(made, seed=1), tenants=tenants)
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


def _unnamed(plan: PlannedProgram) -> PlannedProgram:
    """Its agent's prompt has a date in it: what is before that is shared, and no name says so."""
    first, *others = plan.main.calls
    main = replace(plan.main, system_tokens=min(plan.main.system_tokens + 40, first.prompt_tokens))
    assert others
    return replace(plan, main=main, children=())


@pytest.mark.slow
def test_what_was_shared_without_a_name_is_shared_again(tmp_path: Path) -> None:
    """The engine's own count of cached tokens told of it, and nobody listened."""
    made = scenario()
    made = replace(made, plans=[_unnamed(plan) for plan in made.plans if len(plan.main.calls) > 1])
    path = tmp_path / "j.ndjson"
    journal(path, "passthrough", made=made)
    with open_journal(path) as opened:
        plans = plans_of(read_past(opened))
    talks = [plan.start.plan.main for plan in plans]
    names = [
        {prefix.prefix for prefix in SimPrompts(talk, copy="", block_size=16).prefixes(0)}
        for talk in talks
    ]
    streams = [{piece.stream for piece in talk.calls[0].pieces} for talk in talks]
    pairs = list(itertools.combinations(range(len(talks)), 2))

    found = ask(path)

    assert any(streams[a] & streams[b] for a, b in pairs)
    assert not any(names[a] & names[b] for a, b in pairs), "a policy would know more than it did"
    assert found.trust.cached_error is not None
    assert abs(found.trust.cached_error) < 0.05


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


@pytest.mark.parametrize("endings", [Endings.SPOKEN, Endings.DECLARED, Endings.SILENT])
def test_programs_end_as_they_did(endings: Endings, tmp_path: Path) -> None:
    """Whoever never says that it is over holds its memory longer, in the past and in the model."""
    journal(tmp_path / "j.ndjson", "agentsched", endings=endings)
    with open_journal(tmp_path / "j.ndjson") as opened:
        plans = plans_of(read_past(opened))

    assert {plan.ending for plan in plans} == {endings}
    assert endings_of(plans) is endings


def test_a_last_call_that_nobody_answers_is_one_again(tmp_path: Path) -> None:
    """As SWE-agent ends: with a call of `submit`."""
    made = scenario()
    plans = []
    for plan in made.plans:
        *before, last = plan.main.calls
        calls = (*before, replace(last, tools=("submit",)))
        plans.append(replace(plan, main=replace(plan.main, calls=calls)))
    made = replace(made, plans=plans)
    journal(tmp_path / "j.ndjson", "agentsched", endings=Endings.RECORDED, made=made)
    with open_journal(tmp_path / "j.ndjson") as opened:
        found = plans_of(read_past(opened))

    assert endings_of(found) is Endings.RECORDED
    assert {plan.start.plan.main.calls[-1].tools for plan in found} == {("submit",)}


@pytest.mark.parametrize(("reason", "is_declared"), [("released", True), ("idle", False)])
def test_a_program_may_be_declared_over_afterwards(reason: str, is_declared: bool) -> None:
    closed = ProgramClosed(program=ProgramId("p"), reason=reason)
    past = read_past([JournalEntry(seq=0, now=Instant(1), event=closed, commands=())])

    assert bool(past.closed) is is_declared


def test_what_was_set_of_tenants_is_part_of_the_past() -> None:
    told = [
        TenantConfigured(tenant=TenantId("a"), weight=2.0, limits=TenantLimits(programs_max=3)),
        TenantConfigured(tenant=TenantId("b")),
        TenantConfigured(tenant=TenantId("a"), weight=4.0),
    ]
    past = read_past(
        JournalEntry(seq=n, now=Instant(n), event=event, commands=())
        for n, event in enumerate(told)
    )

    assert past.tenants == {
        "a": replace(told[2], limits=TenantLimits(programs_max=3)),
        "b": told[1],
    }


@pytest.mark.slow
def test_tenants_weigh_in_the_model_what_they_weighed(tmp_path: Path) -> None:
    """The same policy with other weights and limits is another policy."""
    path = tmp_path / "j.ndjson"
    made = replace(scenario(), tenants={"gold": 1.0, "plain": 1.0})
    told = [
        TenantConfigured(tenant=TenantId("gold"), weight=50),
        TenantConfigured(tenant=TenantId("plain"), limits=TenantLimits(programs_max=1)),
    ]
    journal(path, "agentsched", made=made, tenants=told)
    found = ask(path)
    was, same = (
        course.tenants["gold"].jct_mean_s / course.tenants["plain"].jct_mean_s
        for course in (found.recorded, found.same)
    )
    assert was < 0.8
    assert same == pytest.approx(was, rel=0.15)


@pytest.mark.slow
def test_engines_serve_in_the_model_what_they_served(tmp_path: Path) -> None:
    """Most programs are for one of two engines, which the other cannot help."""
    path = tmp_path / "j.ndjson"
    traits = [EngineTraits(models=("a", "b", "c", "d", "e")), EngineTraits(models=("f",))]
    made = scenario()
    made = replace(made, engines=[*made.engines, *made.engines], traits=traits)
    journal(path, "fcfs", made=made)
    assert abs(ask(path).trust.self_error) < 0.1


def test_engines_with_unlike_blocks_need_one_size() -> None:
    past = read_past(
        JournalEntry(
            seq=n,
            now=Instant(n),
            event=EngineReported(
                engine=EngineId(f"e{n}"),
                capabilities=Capabilities(kv_tokens=640, block_size=size),
                load=EngineLoad(),
            ),
            commands=(),
        )
        for n, size in enumerate((16, 32))
    )
    with pytest.raises(ConfigError, match="--block-size"):
        engines_of(past, Sizes())
    assert [one.blocks for one in engines_of(past, Sizes(block_size=32))] == [21, 21]


def test_a_journal_that_does_not_replay_is_not_trusted(tmp_path: Path) -> None:
    path, out = tmp_path / "j.ndjson", tmp_path / "answer.json"
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
    done = CliRunner().invoke(app, ["whatif", str(path), "--policy", "fcfs", "--out", str(out)])
    assert done.exit_code == 3, done.output
    assert f"diverged at entry {diverges}" in done.output
    assert "no prediction is given" in done.output
    told = msgspec.json.decode(out.read_bytes())
    assert (told["believe"], told["others"], told["ratios"]) == ("nothing", [], {})


def test_a_journal_from_the_middle_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[9:]]))
    arguments = ["whatif", str(path), "--policy", "agentsched"]
    done = CliRunner().invoke(app, arguments)
    assert "the journal begins at entry 8" in str(done.exception)
    assert "--trust-anyway" in str(done.exception)


@pytest.mark.slow
def test_a_journal_from_the_middle_may_be_asked_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    lines = path.read_bytes().splitlines(keepends=True)
    cut = len(lines) // 3
    report = msgspec.json.decode(lines[1]) | {"seq": cut - 2}  # as a live engine says it again
    path.write_bytes(b"".join([lines[0], msgspec.json.encode(report) + b"\n", *lines[cut:]]))
    arguments = ["whatif", str(path), "--policy", "fcfs", "--trust-anyway", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(done.stdout, type=Answer)
    assert "the journal begins at entry" in found.trust.divergence
    assert found.believe == "directions"
    assert list(found.ratios) == ["fcfs"]


def test_what_is_not_asked_for_stays_as_recorded() -> None:
    own = SchedulerConfig(
        profile="agentsched", choices={"admit": Choice(name="open")}, limits=LIMITS
    )
    header = journal_header(own)
    [arm] = _arms((), header, "fcfs", None, None)
    config = other_config(arm, header)
    assert config.choices == {**header.choices, "order": Choice(name="fcfs")}
    assert arm.text == "recorded,order=fcfs"
    # Not even the profile has to be here, whose policies are all named.
    [arm] = _arms((), replace(header, profile="of-a-stranger"), None, None, "rendezvous")
    assert build_policies(other_config(arm, header)).names["place"] == "rendezvous"
    assert arm.text == "recorded,place=rendezvous"


def test_the_command_answers_in_json_and_in_a_file(tmp_path: Path) -> None:
    path, out = tmp_path / "j.ndjson", tmp_path / "answer.json"
    journal(path, "fcfs")
    arguments = ["whatif", str(path), "--order", "program-fcfs", "--json", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(out.read_bytes(), type=Answer)
    assert [course.name for course in found.others] == ["fcfs,order=program-fcfs"]
    assert found.trust.diverged_at is None
    assert found.believe in ("figures", "directions")
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


@pytest.mark.slow
def test_other_engines_are_foretold(tmp_path: Path) -> None:
    """A journal of one engine that thrashes says what a second, or a larger cache, had brought."""
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    with open_journal(path) as opened:
        two = answer(path.name, opened, [], sizes=Sizes(), fleet=Fleet(engines=2))
    with open_journal(path) as opened:
        arms = [parse_arm("fcfs")]
        roomy = answer(path.name, opened, arms, sizes=Sizes(), fleet=Fleet(pool_tokens=200_000))
    assert list(two.ratios) == ["same policy, 2 engines"]
    assert two.ratios["same policy, 2 engines"] < 0.9
    assert roomy.ratios["fcfs, pools of 200000 tokens"] < 1
    assert roomy.others[0].cached_share > roomy.same.cached_share


@pytest.mark.slow
def test_a_pool_that_cannot_hold_a_call_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    done = CliRunner().invoke(app, ["whatif", str(path), "--pool", "64"])
    assert done.exit_code != 0
    assert "cannot hold a call" in str(done.exception)


def test_an_engine_that_cannot_hold_what_was_answered_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    done = CliRunner().invoke(app, ["whatif", str(path), "--order", "fcfs", "--kv-tokens", "320"])
    assert isinstance(done.exception, ConfigError)
    assert "give a larger --kv-tokens" in str(done.exception)


def test_what_is_to_change_must_be_said(tmp_path: Path) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    done = CliRunner().invoke(app, ["whatif", str(path)])
    assert "what is to change?" in str(done.exception)


@pytest.mark.slow
def test_a_weak_prediction_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "j.ndjson"
    journal(path, "fcfs")
    found = ask(path, "fcfs")
    assert not found.trust.is_weak
    found.trust.self_error = -0.34
    print_answer(found, console=Console(width=200))
    assert "believe directions at most" in capsys.readouterr().out


def test_a_call_that_was_turned_away_and_tried_again_is_one_call() -> None:
    """Its first try has no answer of its own, and is not left out for it."""
    refused = Reject(step=StepId("s1"), reason=RejectReason.WAIT_BOUND)
    sent = Dispatch(step=StepId("s2"), engine=EngineId("e0"), order="work")
    book: list[tuple[float, Event, tuple[Command, ...]]] = [
        (0, arrived("s1"), (refused,)),
        (1, replace(arrived("s2"), retries=StepId("s1")), (sent,)),
        (3, finished("s2", prompt=100, cached=0, output=20), ()),
    ]

    past = read_past(
        JournalEntry(seq=seq, now=Instant(seconds(at)), event=event, commands=commands)
        for seq, (at, event, commands) in enumerate(book)
    )

    (step,) = past.steps
    assert step.asked_at == Instant(0)
    assert past.unfinished == 0


LIVE = """
name = "live"
arms = ["passthrough"]
[engine]
preset = "h100-8b"
blocks = 600
block_size = 16
[measure]
repeat = 1
[workload]
programs = 6
steps_max = 4
gap_cap_s = 1
context_tokens_max = 7936
arrivals = { process = "regular", rate = 4.0 }
sources = [{ trace = "sample" }]
"""


@pytest.mark.slow
def test_the_journal_of_a_live_proxy_is_answered(tmp_path: Path) -> None:
    """Recorded by `agentsched serve` before an engine in real time, over HTTP."""
    (tmp_path / "live.toml").write_text(LIVE, encoding="utf-8")
    main = "import sys; from agentsched.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "compare", "live.toml", "--out", "live.json"]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stderr
    recorded = tmp_path / "live.logs/passthrough-0.journal.gz"
    arguments = ["whatif", str(recorded), "--policy", "agentsched", "--engines", "2", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(done.stdout, type=Answer)
    assert found.trust.diverged_at is None, found.trust.divergence
    assert found.trust.unfinished == 0
    assert found.recorded.calls == found.same.calls == found.others[0].calls > 0
    assert found.recorded.programs == 6
    assert found.trust.noise >= abs(found.trust.self_error)
    # The cache is modelled block by block, whatever the machine was busy with.
    assert found.trust.cached_error is not None
    assert abs(found.trust.cached_error) < 0.1


def test_programs_are_wanted_in_the_model_when_they_were(tmp_path: Path) -> None:
    """By deadlines that clients named the default profile decides, and others do."""
    path, made = tmp_path / "j.ndjson", scenario()
    config = SchedulerConfig(profile="agentsched", limits=LIMITS)
    starts = [
        replace(start, deadline_s=10.0 + number if number % 3 else None)
        for number, start in enumerate(starts_of(made, seed=1))
    ]
    with JournalWriter(path, journal_header(config)) as writer:
        SimHost(build_scheduler(config), engines=made.engines, on_turn=writer.write).run(starts)

    with open_journal(path) as opened:
        plans = plans_of(read_past(opened))

    found = {plan.start.plan.program: plan.start.deadline_s for plan in plans}
    assert found == {f"p{number}": start.deadline_s for number, start in enumerate(starts)}
