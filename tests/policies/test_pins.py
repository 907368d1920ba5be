"""What each pin policy answers, asked with small worlds of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

import pytest
from shorthand import arrived, finished, prefix, tool_call

from agentsched.model import (
    SECOND,
    CallId,
    Capabilities,
    ConversationId,
    EngineId,
    EngineLoad,
    Instant,
    Nanos,
    Prefix,
    ProgramClosed,
    ProgramId,
    StepId,
    StepStarted,
    TenantId,
    ToolFinished,
    ToolName,
    seconds,
)
from agentsched.policy import Choice, Retention, load
from agentsched_policies.pin import continuum
from agentsched_policies.pin.continuum import Continuum
from agentsched_policies.pin.continuum_static import ContinuumStatic
from agentsched_policies.pin.kvflow import KvFlow
from agentsched_policies.pin.saga import Saga
from agentsched_policies.pin.value import Value
from agentsched_policies.returning import SPANS, rate_of_return

ENGINE = EngineId("e1")
PROGRAM, TALK, TENANT = ProgramId("p"), ConversationId("c"), TenantId("t")
HEAD, WHOLE = prefix("head", 400), prefix("all", 1_000)
START = Instant(0)


@dataclass
class Exponential:
    """Returns at a constant rate of so many seconds, or after exactly so many."""

    mean_s: float
    is_exact: bool = False
    has_skill: bool = True

    def chances(self, spans: Sequence[Nanos]) -> list[float]:
        if self.is_exact:
            return [float(span >= self.mean_s * SECOND) for span in spans]
        return [1.0 - exp(-span / SECOND / self.mean_s) for span in spans]

    def probability_within(self, span: Nanos) -> float:
        return self.chances([span])[0]

    def quantile(self, share: float) -> Nanos | None:
        return seconds(-log(1.0 - share) * self.mean_s)


@dataclass
class Graph:
    returning: Any = None
    waits: bool = False
    left: float | None = None

    def returns(self, conversation: Any, *, now: Any) -> Any:
        return self.returning(now) if callable(self.returning) else self.returning

    def is_waiting_for_children(self) -> bool:
        return self.waits

    def critical_path_left(self) -> float | None:
        return self.left


@dataclass
class Talk:
    context_tokens: int = 1_000
    paused_at: Instant | None = START
    is_over: bool = False
    prefixes: tuple[Prefix, ...] = (HEAD, WHOLE)
    conversation: ConversationId = TALK


@dataclass
class Program:
    ordinal: int = 0
    conversations: dict[Any, Talk] = field(default_factory=lambda: {"c": Talk()})


@dataclass
class Engine:
    engine: EngineId = ENGINE
    is_up: bool = True
    reload_ns: float = 1e6
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(kv_tokens=10_000))

    def reload(self, tokens: int) -> Nanos:
        return Nanos(round(tokens * self.reload_ns))

    load: EngineLoad = field(default_factory=EngineLoad)


@dataclass
class Land:
    engines: dict[Any, Any] = field(default_factory=lambda: {ENGINE: Engine()})
    programs: dict[Any, Any] = field(default_factory=lambda: {"p": Program()})
    waiting_steps: int = 0
    tokens: int = 0
    outlook: Graph | None = None

    def graph(self, program: Any) -> Graph | None:
        return self.outlook

    def resident(self, engine: Any) -> list[Talk]:
        return [t for p in self.programs.values() for t in p.conversations.values()]

    def resident_tokens(self, engine: Any) -> int:
        return self.tokens


@dataclass
class Rest:
    tools: dict[Any, Any]
    since: Instant = START
    program: ProgramId = PROGRAM
    conversation: ConversationId = TALK
    tenant: TenantId = TENANT
    engine: EngineId = ENGINE
    prefix: Prefix = WHOLE


def rest(tool: str | None = "bash", *, tokens: int = 1_000) -> Any:
    tools = {CallId("k"): ToolName(tool)} if tool else {}
    return Rest(tools=tools, prefix=prefix("all", tokens))


def ask(policy: Any, pause: Any, land: Any, *, at: float = 0.0) -> Retention | None:
    now = seconds(at)
    first: Retention | None = policy.retain(pause, land, now=now)
    assert policy.retain(pause, land, now=now) == first
    return first


class Life:
    """Programs that live through gaps, for policies to learn from."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.now, self.count = policy, 0.0, 0

    def see(self, event: Any) -> None:
        self.policy.observe(event, now=seconds(self.now))

    def gaps(
        self, spans: Sequence[float], *, tool: str = "bash", delay_s: float = 0.5, grown: int = 0
    ) -> None:
        """One program that pauses for each of these spans, and closes."""
        self.count += 1
        program, tokens = ProgramId(f"q{self.count}"), 1_000
        for index in range(len(spans) + 1):
            step = StepId(f"{program}/{index}")
            self.see(arrived(step, program, tokens=tokens))
            self.now += delay_s
            self.see(StepStarted(step=step))
            self.now += 0.1
            self.see(finished(step, tool_call("k", tool), prompt=tokens, cached=0, output=10))
            if index < len(spans):
                self.now += spans[index]
            tokens += 10 + grown
        self.see(ProgramClosed(program=program, reason="done"))


@pytest.mark.parametrize("name", ["continuum", "continuum-static", "kvflow", "saga", "value"])
def test_all_can_be_chosen_by_name(name: str) -> None:
    choice = Choice(name=name)
    assert hasattr(load("pin", choice.name, choice.params), "retain")


# Continuum.


def test_continuum_starts_with_the_logarithm_of_the_benefit() -> None:
    # 5,000 tokens at 1 ms each: ln 5 seconds. Below one second of benefit it keeps nothing.
    kept = ask(Continuum(), rest(tokens=5_000), Land())
    assert kept is not None
    assert kept.ttl == pytest.approx(log(5.0) * SECOND, rel=1e-6)
    assert ask(Continuum(), rest(tokens=900), Land()) is None


def test_continuum_maximises_the_net_benefit() -> None:
    policy = Continuum(samples_min=10, delays_max=1)
    Life(policy).gaps([1.0] * 12 + [30.0] * 8, delay_s=0.0)
    # 0.6 x B - 1 against 1.0 x B - 30: the crossing lies at B = 72.5.
    cheap = ask(policy, rest(tokens=10_000), Land())
    dear = ask(policy, rest(tokens=80_000), Land())
    assert cheap is not None
    assert dear is not None
    assert cheap.ttl == pytest.approx(1.0 * SECOND, rel=1e-6)
    assert dear.ttl == pytest.approx(30.0 * SECOND, rel=1e-6)
    assert ask(policy, rest(tokens=1_000), Land()) is None  # 0.6 x 1 - 1 is a loss


def test_continuum_adds_what_returns_waited_beyond_their_own_reload() -> None:
    policy = Continuum()
    Life(policy).gaps([1.0, 1.0, 1.0], delay_s=3.0)
    # They came back with 1,010, 1,020 and 1,030 tokens at 1 ms each, all in programs of one length.
    waited = 3.0 - 1.02
    kept = ask(policy, rest(tokens=5_000), Land())
    assert kept is not None
    assert kept.ttl == pytest.approx(log(waited + 5.0) * SECOND, rel=1e-6)
    # Where a token costs 3 ms none of them waited for anybody.
    dear = ask(policy, rest(tokens=5_000), Land(engines={ENGINE: Engine(reload_ns=3e6)}))
    assert dear is not None
    assert dear.ttl == pytest.approx(log(15.0) * SECOND, rel=1e-6)


@pytest.mark.parametrize(("gaps", "kept_s"), [(100, log(5.0)), (101, 1.0)])
def test_continuum_trusts_its_samples_beyond_the_papers_hundred(gaps: int, kept_s: float) -> None:
    """K = 100 (arXiv 2511.02230, section 4): up to so many, the logarithm of the benefit."""
    policy = Continuum()
    Life(policy).gaps([1.0] * gaps, delay_s=0.0)
    kept = ask(policy, rest(tokens=5_000), Land())
    assert kept is not None
    assert kept.ttl == pytest.approx(kept_s * SECOND, rel=1e-6)


def test_continuum_listens_to_a_tool_once_it_knows_it() -> None:
    policy = Continuum(samples_min=10)
    life = Life(policy)
    life.gaps([1.0] * 30, tool="quick", delay_s=0.0)
    life.gaps([8.0] * 11, tool="slow", delay_s=0.0)
    slow = ask(policy, rest("slow", tokens=50_000), Land())
    unknown = ask(policy, rest("unknown", tokens=5_000), Land())
    assert slow is not None
    assert unknown is not None
    assert slow.ttl == pytest.approx(8.0 * SECOND, rel=1e-6)
    assert unknown.ttl == pytest.approx(1.0 * SECOND, rel=1e-6)


def test_continuum_counts_from_the_pause_and_ends() -> None:
    policy, pause = Continuum(), rest(tokens=5_000)
    later = ask(policy, pause, Land(), at=1.0)
    assert later is not None
    assert later.ttl == pytest.approx((log(5.0) - 1.0) * SECOND, rel=1e-6)
    assert ask(policy, pause, Land(), at=2.0) is None


def test_continuum_lets_the_latest_program_go_first() -> None:
    early, late = Land(), Land(programs={"p": Program(ordinal=7)})
    first, second = (ask(Continuum(), rest(tokens=5_000), land) for land in (early, late))
    assert first is not None
    assert second is not None
    assert first.value > second.value


def test_continuum_keeps_nothing_for_whoever_waits_for_no_tool() -> None:
    policy = Continuum()
    land = Land(engines={ENGINE: Engine(reload_ns=1e9)})
    assert ask(policy, rest(), land) is not None
    assert ask(policy, rest(None), land) is None


def test_continuum_learns_nothing_from_programs_that_never_paused() -> None:
    policy = Continuum()
    life = Life(policy)
    life.gaps([])
    assert policy._turns.memoryfulness == 1.0
    assert policy._turns._n == 0
    life.gaps([1.0, 1.0])
    assert policy._turns._n == 3  # a program of three turns


def test_continuum_forgets_the_oldest_of_what_never_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(continuum, "_STARTING_MAX", 2)
    policy = Continuum()
    life = Life(policy)
    for program in "abc":
        for number in range(2):
            step = f"{program}{number}"
            life.see(arrived(step, program, tokens=100))
            if not number:
                life.see(finished(step, tool_call("k"), prompt=100))
    assert list(policy._turns_of) == ["b", "c"]
    assert list(policy._program_of) == ["b1", "c1"]
    life.now = 3.0
    life.see(StepStarted(step=StepId("a1")))  # forgotten: no delay of it is known
    life.see(StepStarted(step=StepId("b1")))
    assert list(policy._delays) == [(3.0, 100)]


def test_continuum_static_goes_by_the_mean() -> None:
    policy = ContinuumStatic()
    life = Life(policy)
    life.gaps([1.0, 1.0], tool="quick")
    life.gaps([1.0, 9.0], tool="slow")
    kept = ask(policy, rest("quick"), Land(), at=0.5)
    assert kept is not None
    assert kept.ttl == 1.5 * SECOND
    assert ask(policy, rest("slow"), Land()) is None
    assert ask(policy, rest("unknown"), Land()) is not None
    assert ask(policy, rest("quick"), Land(), at=2.0) is None
    assert ask(policy, rest(None), Land()) is None


# SAGA.


def test_saga_shrinks_its_ttl_under_pressure() -> None:
    policy = Saga()
    Life(policy).gaps([4.0] * 20)
    free = ask(policy, rest(), Land(tokens=1_000))
    tight = ask(policy, rest(), Land(tokens=9_500))
    half = ask(policy, rest(), Land(tokens=8_000))
    assert free is not None
    assert tight is not None
    assert half is not None
    assert free.ttl == pytest.approx(4.0 * SECOND, rel=0.01)
    assert tight.ttl == pytest.approx(2.0 * SECOND, rel=0.01)
    assert half.ttl == pytest.approx(3.0 * SECOND, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "is_good"),
    [
        ({"pressure_from": 0.0, "pressure_full": 1.0}, True),
        ({"pressure_from": -0.1}, False),
        ({"pressure_full": 1.1}, False),
        ({"pressure_from": 0.9, "pressure_full": 0.9}, False),
        ({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, True),
        ({"alpha": -0.1}, False),
    ],
)
def test_saga_takes_the_settings_that_mean_something(
    settings: dict[str, float], is_good: bool
) -> None:
    if is_good:
        Saga(**settings)
        return
    with pytest.raises(ValueError, match=r"<=|0 or more"):
        Saga(**settings)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0])
def test_kvflow_keeps_for_some_time(ttl_s: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        KvFlow(ttl_s=ttl_s)


def test_saga_starts_with_the_papers_table() -> None:
    ttls = [ask(Saga(), rest(tool), Land()) for tool in ("bash", "Read", "web_search", "sql")]
    assert [t.ttl / SECOND for t in ttls if t] == pytest.approx([2.4, 0.32, 4.5, 0.89])


@pytest.mark.parametrize(
    ("tool", "seconds_"),
    [
        # Names that only contain the letters of a word of another class.
        ("credit_check", 2.4),
        ("thread_reply", 2.4),
        ("locate", 2.4),
        ("give_feedback", 2.4),
        ("capitalize", 2.4),
        ("latest_news_search", 4.5),
        ("truncate_file", 0.32),
        ("prune_db", 0.89),
        # However its words are put together.
        ("WebSearch", 4.5),
        ("mcp__github__search_issues", 4.5),
        ("SQLQuery", 0.89),
        ("LS", 0.32),
        ("str_replace_editor", 0.32),
        ("python3", 2.4),
        # The shell runs whatever its first command word is.
        ("Bash cat", 2.4),
    ],
)
def test_saga_reads_whole_words_of_tool_names(tool: str, seconds_: float) -> None:
    kept = ask(Saga(), rest(tool), Land())
    assert kept is not None
    assert kept.ttl / SECOND == pytest.approx(seconds_)


def test_saga_prefers_run_times_that_somebody_tells() -> None:
    policy = Saga()
    life = Life(policy)
    for _ in range(10):
        call = CallId("k")
        life.see(
            ToolFinished(
                program=ProgramId("p"), call_id=call, tool=ToolName("bash"), took=seconds(0.5)
            )
        )
    life.gaps([60.0] * 20)
    kept = ask(policy, rest("bash"), Land())
    assert kept is not None
    assert kept.ttl == pytest.approx(0.5 * SECOND, rel=0.01)


def test_saga_values_the_fresh_the_small_and_what_is_reused() -> None:
    policy = Saga()
    old = Talk(paused_at=Instant(-100 * SECOND), context_tokens=50_000)
    land = Land(programs={"p": Program(conversations={"c": Talk(), "d": old})})
    small, large = (ask(policy, rest(tokens=n), land) for n in (10_000, 50_000))
    later = ask(policy, rest(tokens=10_000), land, at=2.0)
    assert small is not None
    assert large is not None
    assert later is not None
    assert small.value > later.value
    assert 0.0 <= later.value <= 1.0
    assert small.value != large.value


def test_saga_measures_a_pause_by_the_longest_on_its_engine() -> None:
    def value(other: Talk) -> float:
        land = Land(programs={"p": Program(conversations={"c": Talk(), "d": other})})
        kept = ask(Saga(), rest(), land, at=2.0)
        assert kept is not None
        return kept.value

    running, long = Talk(paused_at=None), Talk(paused_at=Instant(-2 * SECOND))
    assert value(long) - value(running) == pytest.approx(0.3 * (1.0 - 0.5))


def test_saga_keeps_for_five_minutes_at_most() -> None:
    """Algorithm 1 of arXiv 2605.00528 caps a TTL at 300 s."""
    policy = Saga()
    Life(policy).gaps([900.0] * 20)
    kept = ask(policy, rest(), Land())
    assert kept is not None
    assert kept.ttl == 300 * SECOND


def test_saga_keeps_nothing_for_a_user_nor_beyond_the_tools_time() -> None:
    assert ask(Saga(), rest(None), Land()) is None
    late = ask(Saga(), rest("bash"), Land(), at=2.3)
    assert late is not None
    assert late.ttl == pytest.approx(0.1 * SECOND, rel=0.01)
    assert ask(Saga(), rest("bash"), Land(), at=2.5) is None


def test_saga_counts_a_tool_without_a_class_as_code() -> None:
    kept = ask(Saga(), rest("plan"), Land())
    assert kept is not None
    assert kept.ttl == pytest.approx(2.4 * SECOND)


@pytest.mark.parametrize(
    ("usage", "seconds_kept"), [(None, 2.4), (0.7, 2.4), (0.8, 1.8), (1.0, 1.2)]
)
def test_saga_asks_the_engines_gauge_where_the_pool_is_unknown(
    usage: float | None, seconds_kept: float
) -> None:
    engine = Engine(capabilities=Capabilities(), load=EngineLoad(kv_usage=usage))
    kept = ask(Saga(), rest("bash"), Land(engines={ENGINE: engine}))
    assert kept is not None
    assert kept.ttl == pytest.approx(seconds_kept * SECOND)


def test_saga_follows_the_observations_of_so_many_tools() -> None:
    policy = Saga()
    life = Life(policy)
    for number in range(1_025):
        life.gaps([0.1], tool=f"tool {number}", grown=100)
    assert len(policy._observations) == 1_024
    assert "tool 1024" not in policy._observations
    life.gaps([0.1], tool="tool 0", grown=200)
    assert policy._observations["tool 0"] == pytest.approx(100 + 0.1 * (200 - 100))


# KVFlow.


def test_kvflow_keeps_the_fixed_prompt_by_steps_to_execution() -> None:
    next_one = ask(KvFlow(), rest(), Land(outlook=Graph()))
    parent = ask(KvFlow(), rest(None), Land(outlook=Graph(waits=True, left=4.0)))
    assert next_one is not None
    assert parent is not None
    assert next_one.prefix == HEAD
    assert (next_one.value, parent.value) == (0.5, 0.2)
    over = Land(programs={"p": Program(conversations={"c": Talk(is_over=True)})})
    assert ask(KvFlow(), rest(), over) is None


def test_kvflow_keeps_no_more_than_there_is_and_nothing_of_the_unknown() -> None:
    short = ask(KvFlow(), rest(tokens=300), Land(outlook=Graph()))
    assert short is not None
    assert short.prefix == prefix("all", 300)
    assert ask(KvFlow(), rest(), Land(programs={})) is None
    user = ask(KvFlow(), rest(None), Land(outlook=Graph(waits=False, left=9.0)))
    assert user is not None
    assert user.value == 0.5  # a user's turn is one step away, like a tool's
    unknown = ask(KvFlow(), rest(None), Land(outlook=Graph(waits=True)))
    assert unknown is not None
    assert unknown.value == pytest.approx(1 / 3)


# Ours.


def test_the_rate_of_return_is_the_hazard_or_looks_ahead_to_a_rise() -> None:
    assert rate_of_return(Exponential(10.0)) * SECOND == pytest.approx(0.1, rel=0.05)
    # After exactly 8 s: one return for 8 s of memory, though the hazard is nil until then.
    assert rate_of_return(Exponential(8.0, is_exact=True)) * SECOND == pytest.approx(1 / 6, rel=0.3)
    assert rate_of_return(Exponential(1e9)) * SECOND < 1e-8


def test_value_ranks_by_the_rate_of_return_and_the_queue() -> None:
    policy = Value()
    soon, late = (ask(policy, rest(), Land(outlook=Graph(Exponential(s)))) for s in (1.0, 20.0))
    busy = ask(policy, rest(), Land(outlook=Graph(Exponential(1.0)), waiting_steps=3))
    assert soon is not None
    assert late is not None
    assert busy is not None
    assert soon.value > 10 * late.value
    assert busy.value == pytest.approx(4 * soon.value)


def test_value_ends_when_it_falls_under_the_price_of_memory() -> None:
    policy = Value(patience=0.0, price=1.0)
    # 2,000 tokens a second are computed, the pool holds 10,000: five seconds of memory for nothing.
    for second in range(600):
        policy.observe(finished("x", prompt=2_000, cached=0), now=seconds(second))

    now = 600 * SECOND

    def fading(at: Instant) -> Exponential:
        return Exponential(1.0 if at < now + 10 * SECOND else 1_000.0)

    kept = policy.retain(rest(), Land(outlook=Graph(fading)), now=Instant(now))
    assert kept is not None
    assert 8 * SECOND <= kept.ttl < 10 * SECOND
    hopeless = Land(outlook=Graph(Exponential(1e4)))
    assert policy.retain(rest(), hopeless, now=Instant(now)) is None


def test_value_keeps_what_pays_only_now_for_the_shortest_look() -> None:
    policy = Value(patience=0.0)

    def fading(at: Instant) -> Exponential:
        return Exponential(1.0 if at == START else 1e9)

    kept = ask(policy, rest(), Land(outlook=Graph(fading)))
    assert kept is not None
    assert kept.ttl == min(SPANS)


def test_value_grants_the_rent_that_a_reload_costs_whatever_the_forecast_says() -> None:
    policy = Value(patience=2.0)
    hopeless = Land(outlook=Graph(Exponential(1e9)))
    kept = ask(policy, rest(tokens=1_000), hopeless)
    assert kept is not None
    assert kept.ttl == 2 * SECOND  # 1,000 tokens at 1 ms, twice
    assert ask(policy, rest(tokens=1_000), hopeless, at=2.5) is None
    assert ask(policy, rest(None), hopeless) is None


def test_value_without_a_forecast_grants_the_rent_alone() -> None:
    policy = Value(patience=2.0)
    for land in (Land(), Land(outlook=Graph())):
        kept = ask(policy, rest(tokens=1_000), land, at=0.5)
        assert kept == Retention(ttl=Nanos(round(1.5 * SECOND)))
        assert ask(policy, rest(tokens=1_000), land, at=2.0) is None


def test_value_keeps_for_as_long_as_a_forecast_holds_and_no_longer_than_the_longest_look() -> None:
    policy = Value(ttl_s_max=10_000.0)
    # Nothing was computed: memory costs what the slowest turnover does, one in five minutes.
    soon = ask(policy, rest(), Land(outlook=Graph(Exponential(1.0))))
    assert soon is not None
    assert soon.ttl == 4_096 * SECOND
    policy.observe(StepStarted(step=StepId("x")), now=START)
    assert ask(policy, rest(), Land(outlook=Graph(Exponential(1.0)))) == soon


@pytest.mark.parametrize(
    ("policy", "params"),
    [
        (Continuum, {"samples_min": 0}),
        (ContinuumStatic, {"ttl_s": 0.0}),
        (KvFlow, {"ttl_s": -1.0}),
        (Saga, {"alpha": -0.1}),
        (Saga, {"pressure_from": 0.9, "pressure_full": 0.9}),
        (Value, {"price": 0.0}),
    ],
)
def test_nonsense_is_refused(policy: Any, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is|are|must|<"):
        policy(**params)
