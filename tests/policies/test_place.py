"""Placement policies, each by its own formula with numbers worked by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from shorthand import arrived, prefix

from agentsched.model import (
    SECOND,
    EngineId,
    EngineLost,
    Instant,
    PolicyError,
    StepCancelled,
    StepId,
)
from agentsched.policy import Choice, load
from agentsched_policies.place import dualmap

Floors = Callable[..., Any]


def place(name: str, **params: object) -> Choice:
    return Choice(name=name, params=params)


class TestLeastLoaded:
    def test_fewest_steps_then_fewest_tokens(self, floor: Floors) -> None:
        f = floor(engines=3, place=place("least-loaded"))
        assert f.ask("a", "pa", 900) == {"a": "e1"}
        assert f.ask("b", "pb", 100) == {"b": "e2"}
        assert f.ask("c", "pc", 500) == {"c": "e3"}
        assert f.ask("d", "pd", 500) == {"d": "e2"}

    def test_a_conversation_wanders(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("least-loaded"))
        f.ask("a", "pa")
        f.answer("a")
        f.ask("b", "pb")
        assert f.ask("a2", "pa") == {"a2": "e2"}


class TestSessionAffinity:
    def test_a_fast_engine_gets_more(self, floor: Floors) -> None:
        def placed(speed: bool) -> list[str]:
            f = floor(engines=2, place=place("session-affinity", speed=speed))
            # Four times as fast as the other one.
            for name, seconds in (("e1", 0.8), ("e2", 0.2)):
                now = f.now
                assert f.ask(name, name, 2_000) == {name: name}
                f.start(name, at=now + seconds)
            for name in ("e1", "e2"):
                f.answer(name, at=2, prompt=2_000, is_last=True)
            return [f.ask(f"s{n}", f"p{n}")[f"s{n}"] for n in range(5)]

        assert placed(speed=False) == ["e1", "e2", "e1", "e2", "e1"]
        assert placed(speed=True) == ["e2", "e2", "e2", "e1", "e2"]

    @pytest.mark.parametrize(
        "choice", [place("session-affinity", speed=True), place("rendezvous", roomy=1.0)]
    )
    @pytest.mark.parametrize("took_s", [0.02, 2.0])
    def test_one_that_has_just_joined_is_taken_to_be_as_fast_as_the_others(
        self, floor: Floors, choice: Choice, took_s: float
    ) -> None:
        """Ten times as fast as the guess, or as slow: that guess is no price of the new one."""
        f = floor(engines=2, place=choice, kv_tokens=100_000)
        for name in ("e1", "e2"):
            assert f.ask(name, name, 2_000) == {name: name}
        now = f.now + took_s
        for name in ("e1", "e2"):
            f.start(name, at=now)
        for name in ("e1", "e2"):
            f.answer(name, at=now + 1, prompt=2_000, is_last=True)
        f.report("e3", kv_tokens=100_000)
        homes = [f.ask(f"s{n}", f"p{n}")[f"s{n}"] for n in range(6)]
        assert homes == ["e1", "e2", "e3"] * 2

    @pytest.mark.parametrize("speed", [False, True])
    @pytest.mark.parametrize("seed", range(5))
    def test_the_best_is_the_one_of_the_greatest_score(
        self, floor: Floors, seed: int, speed: bool
    ) -> None:
        f, rng = floor(engines=4, place=place("session-affinity", speed=speed)), Random(seed)
        for number in range(60):
            program = f"p{rng.randrange(12)}"
            f.ask(f"s{number}", program, branch=rng.choice(("", "/child")), at=float(number))
            if number == 30:
                f.lose("e2")
            step = f.scheduler.steps[f"s{number}"]
            up = [e for e in f.scheduler.engines.values() if e.is_up]
            best = f.scheduler.policies.place.best(step, up, f.world, now=f.scheduler._now)
            assert best is max(up, key=lambda e: f.score(step.step, e.engine))
            if rng.random() < 0.7:
                f.answer(f"s{number}", is_last=rng.random() < 0.2)


class TestPrefixAware:
    def test_the_longest_match_wins_above_the_threshold(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("prefix-aware", threshold=0.5))
        f.ask("a", "pa", 1_000)
        f.answer("a")
        f.ask("b", "pb", 1_000, head="other")
        f.ask("c", "pc", 1_000, head="other")
        assert f.ask("a2", "pa", 1_500) == {"a2": "e1"}

    def test_a_short_match_counts_for_nothing(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("prefix-aware", threshold=0.5))
        f.ask("a", "pa", 1_000)
        # 100 of 1,000 tokens are a tenth: the idle engine is better.
        assert f.ask("b", "pb", 1_000) == {"b": "e2"}

    @pytest.mark.parametrize(("missing", "engine"), [(4, "idle"), (30, "busy")])
    def test_load_decides_between_matches_that_are_alike_and_no_others(
        self, missing: int, engine: str
    ) -> None:
        """The busy engine has all of 1,000 tokens, the idle one all but so many."""
        policy: Any = load("place", "prefix-aware", {})
        engines = {
            name: SimpleNamespace(engine=name, is_up=True, running_steps=steps)
            for name, steps in (("busy", 5), ("idle", 0))
        }
        missed = {"busy": 0, "idle": missing}
        world = SimpleNamespace(engines=engines, missing_tokens=lambda step, engine: missed[engine])
        step = SimpleNamespace(prompt_tokens=1_000)
        scores = {
            name: policy.score(step, one, world, now=Instant(0)) for name, one in engines.items()
        }
        assert max(scores, key=scores.__getitem__) == engine

    @pytest.mark.parametrize(
        "settings",
        [{"threshold": 0.0}, {"threshold": 1.0}, {"balance_steps": 0, "balance_ratio": 1}],
    )
    def test_settings_at_their_bounds_mean_something(self, settings: dict[str, float]) -> None:
        assert hasattr(load("place", "prefix-aware", settings), "score")

    def test_out_of_balance_the_load_decides(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("prefix-aware", threshold=0.05, balance_steps=2))
        homes = [f.ask(f"s{n}", f"p{n}", 1_000)[f"s{n}"] for n in range(4)]
        assert homes == ["e1", "e1", "e1", "e2"]


class TestAutellix:
    def test_short_calls_go_where_least_is_used(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("autellix"))
        f.ask("a", "pa", 2_048)
        f.answer("a")
        f.ask("b", "pb", 2_048)
        assert f.ask("a2", "pa", 2_048) == {"a2": "e2"}

    def test_long_calls_stay_with_their_program(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("autellix"))
        f.ask("a", "pa", 2_049)
        f.answer("a")
        f.ask("b", "pb", 100)
        assert f.ask("a2", "pa", 2_049) == {"a2": "e1"}

    def test_a_closed_program_has_no_home(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("autellix"))
        f.ask("a", "pa", 2_049)
        f.answer("a")
        f.close("pa")
        f.ask("b", "pb", 100)
        assert f.ask("a2", "pa", 2_049) == {"a2": "e2"}

    def test_a_lost_engine_is_nobodys_home(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("autellix"))
        f.ask("a", "pa", 2_049)
        f.answer("a")
        f.lose("e1")
        f.report("e1", kv_tokens=10_000)
        f.ask("b", "pb", 100)
        assert f.ask("a2", "pa", 2_049) == {"a2": "e2"}


class TestDualMap:
    def test_equal_beginnings_have_equal_candidates(self, floor: Floors) -> None:
        f = floor(engines=8, place=place("dualmap"))
        homes = {f.ask(f"s{n}", f"p{n}", head="shared")[f"s{n}"] for n in range(12)}
        assert len(homes) <= 2

    def test_the_cached_candidate_unless_it_breaks_the_objective(self, floor: Floors) -> None:
        # A first guess of 100 us a token: 9,000 tokens in flight are 0.9 s.
        # The other candidate, which has nothing of it, breaks the first objective as well.
        for slo_s, is_kept in ((0.5, False), (1.0, False), (5.0, True)):
            f = floor(engines=4, place=place("dualmap", ttft_slo_s=slo_s))
            [first] = f.ask("a", "pa", 9_000).values()
            [second] = f.ask("b", "pb", 9_000).values()
            assert (second == first) == is_kept

    def test_candidates_that_all_break_the_objective_stay_the_candidates(
        self, floor: Floors
    ) -> None:
        f = floor(engines=8, place=place("dualmap", ttft_slo_s=0.001, hot_share=1.0))
        homes = {f.ask(f"s{n}", f"p{n}", 9_000, head="shared")[f"s{n}"] for n in range(12)}
        assert len(homes) == 2

    def test_a_hot_beginning_is_lengthened(self, floor: Floors) -> None:
        f = floor(engines=8, place=place("dualmap", hot_share=0.25))
        homes = [f.ask(f"s{n}", f"p{n}", head="shared")[f"s{n}"] for n in range(60)]
        assert len(set(homes[:12])) <= 2
        assert len(set(homes[20:])) >= 4

    def test_when_every_beginning_is_hot_the_conversation_decides(self, floor: Floors) -> None:
        """16 arrivals of one prompt: the key is the conversation, so it keeps two candidates."""
        f = floor(engines=8, place=place("dualmap", hot_share=0.5))
        for number in range(16):
            f.ask(f"s{number}", "pa", 1_000)
        homes = {f.ask(f"t{number}", "pa", 1_000)[f"t{number}"] for number in range(8)}
        assert len(homes) <= 2
        # Others of the same heat go by their own conversations.
        policy = f.scheduler.policies.place
        keys = {policy._key(f.scheduler.steps[f"t{number}"]) for number in range(8)}
        assert keys == {"pa"}

    @pytest.mark.parametrize("seed", range(3))
    def test_the_best_is_the_one_of_the_greatest_score(
        self, floor: Floors, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the engines are hashed for one step as often as for one engine."""
        hashed: list[str] = []
        f, rng = floor(engines=6, place=place("dualmap")), Random(seed)
        policy = f.scheduler.policies.place
        chosen = set()
        for number in range(40):
            f.ask(f"s{number}", f"p{rng.randrange(9)}", rng.randrange(200, 4_000), at=float(number))
            step = f.scheduler.steps[f"s{number}"]
            engines = list(f.scheduler.engines.values())
            with monkeypatch.context() as patch:
                patch.setattr(dualmap, "rendezvous", lambda key, name: hashed.append(name) or 0.5)
                policy.best(step, engines, f.world, now=f.instant)
            best = policy.best(step, engines, f.world, now=f.instant)
            assert best is max(engines, key=lambda e: f.score(step.step, e.engine))
            chosen.add(best.engine)
            if rng.random() < 0.7:
                f.answer(f"s{number}")
        assert len(hashed) == 40 * (6 + 5)
        assert len(chosen) > 1

    def test_only_the_latest_arrivals_make_hot(self, floor: Floors) -> None:
        policy: Any = load("place", "dualmap", {})
        for number in range(512 + 40):
            head = "old" if number < 40 else "new" if number % 2 else f"only {number}"
            prefixes = (prefix(head, 9), prefix("always", 9))
            policy.observe(arrived(f"s{number}", prefixes=prefixes), now=Instant(number))
        # 40 fell out of the window: nobody of the 512 latest has "old".
        assert "old" not in policy._counts
        assert (policy._counts["new"], policy._counts["always"]) == (256, 512)
        assert len(policy._counts) == 2 + 256
        policy.observe(EngineLost(engine=EngineId("e1"), reason="x"), now=Instant(0))
        assert len(policy._recent) == 512


class TestSaga:
    def test_affinity_while_the_load_is_low(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("saga"))
        f.ask("a", "pa", 1_000)
        f.answer("a")
        assert f.ask("a2", "pa", 1_100) == {"a2": "e1"}

    def test_half_of_the_load_is_memory(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("saga"), capabilities={"running_max": 10})
        f.ask("a", "pa", 5_000)
        f.ask("b", "pb", 1_000)
        # 0.5 x 1/10 + 0.5 x 5,000/10,000 + 0.01 x 1 starting
        assert f.score("b", "e1") == pytest.approx(-(0.05 + 0.25 + 0.01))

    def test_an_engine_of_half_the_load_steals_once(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("saga"), capabilities={"running_max": 4})
        f.ask("a", "pa", 3_000)
        f.answer("a", prompt=3_000)
        f.ask("x", "px", 6_000)  # least loaded: e2
        f.answer("x", prompt=6_000)
        f.ask("x2", "px", 6_000)
        assert f.scheduler.steps["x2"].engine == "e2"
        # e1 holds 3,000 of 10,000, e2 6,000 and runs a step: over twice as much.
        assert f.ask("x3", "px", 6_100, branch="") == {"x3": "e1"}
        f.answer("x2", prompt=6_000)
        f.answer("x3", prompt=6_100)
        f.ask("b", "pb", 100)
        f.ask("c", "pc", 100)
        assert f.ask("x4", "px", 6_200) == {"x4": "e1"}
        # Whoever was closed and comes again may be stolen again.
        assert "px" in f.scheduler.policies.place._moved
        f.answer("x4", prompt=6_200)
        f.close("px")
        assert "px" not in f.scheduler.policies.place._moved

    @pytest.mark.parametrize("is_answered", [True, False])
    def test_an_engine_is_idle_a_while_after_its_last_step_went(
        self, floor: Floors, is_answered: bool
    ) -> None:
        f = floor(engines=1, place=place("saga", idle_s=2.0))
        f.ask("a", "pa", at=0)
        f.ask("b", "pb", at=0)
        f.answer("a", at=1)
        if is_answered:
            f.answer("b", at=5)
        else:
            f.feed(StepCancelled(step=StepId("b"), reason="left"), at=5)
        is_idle = f.scheduler.policies.place._is_idle
        assert not is_idle(EngineId("e1"), now=Instant(7 * SECOND - 1))
        assert is_idle(EngineId("e1"), now=Instant(7 * SECOND))
        f.ask("c", "pc", at=8)
        assert not is_idle(EngineId("e1"), now=Instant(20 * SECOND))


class TestHexgen:
    def test_speed_against_backlog(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("hexgen", alpha=0.5))
        assert f.ask("a", "pa", at=0) == {"a": "e1"}
        assert f.ask("b", "pb", at=0) == {"b": "e2"}
        f.answer("a", at=1)  # 1 s on e1
        f.answer("b", at=4)  # 4 s on e2: the base is 2.5 s
        assert f.ask("c", "pc", at=4) == {"c": "e1"}
        # e1 has 1 s to do, e2 nothing: on average half a second.
        assert f.score("c", "e1") == pytest.approx(0.5 * 2.5 / 1 - 0.5 * 1 / 0.5)
        assert f.score("c", "e2") == pytest.approx(0.5 * 2.5 / 4)
        assert f.ask("d", "pd", at=4) == {"d": "e2"}

    def test_all_speed_or_all_backlog(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("hexgen", alpha=0.0))
        assert [f.ask(f"s{n}", f"p{n}")[f"s{n}"] for n in range(4)] == ["e1", "e2", "e1", "e2"]


class TestDlpm:
    def test_the_match_wins_until_the_quantum_is_used_up(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("dlpm", quantum=2_500))
        assert f.ask("a", "pa", 1_000) == {"a": "e1"}  # charged 1,000
        f.answer("a", prompt=1_000, output=0)
        assert f.ask("a2", "pa", 2_000) == {"a2": "e1"}  # 1,000 known: charged 1,000
        f.answer("a2", prompt=2_000, cached=1_000, output=0)
        assert f.ask("a3", "pa", 3_000) == {"a3": "e1"}  # 3,000 used: beyond the quantum
        assert f.ask("b", "pb", 500) == {"b": "e2"}
        assert f.ask("c", "pc", 500, tenant="other") == {"c": "e1"}

    @pytest.mark.parametrize(("quantum", "engine"), [(1_000, "e2"), (1_001, "e1")])
    def test_a_quantum_is_used_up_when_nothing_is_left_of_it(
        self, floor: Floors, quantum: int, engine: str
    ) -> None:
        f = floor(engines=2, place=place("dlpm", quantum=quantum))
        assert f.ask("a", "pa", 1_000) == {"a": "e1"}
        assert f.ask("b", "pb", 1_000) == {"b": engine}

    def test_quanta_used_up_everywhere_are_given_again(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("dlpm", quantum=1_000))
        assert f.ask("a", "pa", 2_500, head="a") == {"a": "e1"}
        assert f.ask("b", "pb", 1_200, head="b") == {"b": "e2"}
        # 2,500 and 1,200 of 1,000 each: one round leaves 1,500 and 200, and that one is open again.
        assert f.scheduler.policies.place._used.get("t") == {"e1": 1_500.0, "e2": 200.0}
        for name, prompt in (("a", 2_500), ("b", 1_200)):
            f.answer(name, prompt=prompt, output=0)
        assert f.ask("a2", "pa", 2_600, head="a") == {"a2": "e2"}

    def test_a_lost_engines_quantum_is_not_waited_for(self, floor: Floors) -> None:
        f = floor(engines=2, place=place("dlpm", quantum=1_000))
        f.lose("e2")
        # Alone, e1 is "everywhere": its quantum comes again as often as it takes.
        assert f.ask("a", "pa", 2_500) == {"a": "e1"}
        assert f.scheduler.policies.place._used.get("t") == {"e1": 500.0}


class TestThunderAgent:
    def test_new_programs_go_where_most_room_is(self, floor: Floors) -> None:
        f = floor(engines=2, profile="thunderagent")
        assert f.ask("a", "pa", 3_000) == {"a": "e1"}
        assert f.ask("b", "pb", 1_000) == {"b": "e2"}
        # Room: 10,000 - 3,100 against 10,000 - 1,100.
        assert f.score("b", "e1") == 10_000 - 3_100
        assert f.ask("c", "pc", 1_000) == {"c": "e2"}

    def test_an_active_program_stays(self, floor: Floors) -> None:
        f = floor(engines=2, profile="thunderagent")
        f.ask("a", "pa", 3_000)
        f.answer("a", prompt=3_000)
        assert f.ask("a2", "pa", 3_100) == {"a2": "e1"}


class TestRendezvous:
    def build(self, floor: Floors, engines: int = 4, **params: object) -> Any:
        """By cost at any load, unless a test says from which load on."""
        return floor(engines=engines, place=place("rendezvous", **{"roomy": 0.0, **params}))

    def test_with_room_to_spare_the_least_loaded_engine_is_taken(self, floor: Floors) -> None:
        """What all have in common lies on one engine, and draws nobody there."""
        for roomy, engines in ((0.8, ["e1", "e2", "e3", "e1"]), (0.0, ["e1", "e1", "e1", "e1"])):
            f = self.build(floor, 3, spread=0.0, crowd=0.0, roomy=roomy)
            for name in ("e1", "e2", "e3"):  # each has had a step
                f.scheduler.policies.place._tried.add(EngineId(name))
            homes = []
            for number in range(4):
                homes += f.ask(f"s{number}", f"p{number}", 1_000, head="all").values()
                f.start(f"s{number}", at=1.0 + number)
            assert homes == engines

    def test_one_full_engine_ends_that(self, floor: Floors) -> None:
        f = self.build(floor, 2, spread=0.0, roomy=0.8)
        rule = f.scheduler.policies.place
        f.ask("a", "pa", 6_500)
        f.answer("a", prompt=6_500)
        engines = list(f.scheduler.engines.values())
        f.ask("b", "pb", 600)
        assert rule._is_roomy(f.scheduler.steps["b"], engines)
        f.ask("c", "pc", 1_700)  # above 8,000 with what lives on e1, of 10,000
        assert not rule._is_roomy(f.scheduler.steps["c"], engines)

    def test_it_is_seconds_of_work(self, floor: Floors) -> None:
        f = self.build(floor, 2, spread=0.0, crowd=0.0)
        f.ask("a", "pa", 1_000, output_tokens_expected=100)
        # First guesses: 100 us a prompt token, 20 ms an output token. a's own prompt is in flight.
        score = -f.score("a", "e2") / 1e9
        assert score == pytest.approx(1_000 * (1 + 4.0) * 100e-6 + 4 * 100 * 20e-3)

    def test_a_conversation_stays_and_a_newcomer_spreads(self, floor: Floors) -> None:
        f = self.build(floor)
        homes = {}
        for number in range(12):
            [homes[number]] = f.ask(f"s{number}", f"p{number}", 800).values()
        assert sorted(set(homes.values())) == ["e1", "e2", "e3", "e4"]
        for number in range(12):
            f.start(f"s{number}", at=0.08)
        for number in range(12):
            f.answer(f"s{number}", at=0.28, prompt=800)
        for number in range(12):
            assert list(f.ask(f"r{number}", f"p{number}", 850).values()) == [homes[number]]

    def test_replicas_agree_without_asking(self, floor: Floors) -> None:
        one, two = self.build(floor, 8), self.build(floor, 8)
        for number in range(20):
            name = f"p{number}"
            assert one.ask("s", name) == two.ask("s", name)
            for f in (one, two):
                f.answer("s", is_last=True)
                f.close(name)

    def test_engines_are_named_in_proportion_to_their_size(self, floor: Floors) -> None:
        """One that does not say counts as if it held 100,000 tokens."""
        f = self.build(floor, 0)
        f.report("small", kv_tokens=25_000)
        f.report("unsaid", kv_tokens=None)
        homes = Counter[str]()
        for number in range(50):
            f.scheduler.policies.place._tried.clear()  # what costs nothing yet goes by name alone
            homes.update(f.ask("s", f"p{number}").values())
            f.answer("s", is_last=True)
            f.close(f"p{number}")
        assert 35 < homes["unsaid"] < 45

    def test_a_lost_engine_moves_only_its_own(self, floor: Floors) -> None:
        whole, short = self.build(floor, 8), self.build(floor, 8)
        short.lose("e3")
        moved = 0
        for number in range(40):
            name = f"p{number}"
            [before] = whole.ask("s", name).values()
            [after] = short.ask("s", name).values()
            assert after == before or before == "e3"
            moved += after != before
            for f in (whole, short):
                f.answer("s", is_last=True)
                f.close(name)
        assert 0 < moved < 15

    def test_new_programs_try_every_engine_before_one_keeps_them(self, floor: Floors) -> None:
        # Where the first one went lies what the others share, and nothing says that it is slow.
        f = self.build(floor, 3, spread=0.0, crowd=0.0)
        homes = []
        for number in range(3):
            homes += f.ask(f"s{number}", f"p{number}", 800, head="shared").values()
            f.start(f"s{number}", at=0.01 + number)
            f.answer(f"s{number}", at=0.02 + number, prompt=800, output=100)
        assert sorted(homes) == ["e1", "e2", "e3"]

    def test_siblings_come_together(self, floor: Floors) -> None:
        f = self.build(floor, spread=0.01)
        [home] = f.ask("a", "pa", 150, head="pa").values()
        f.start("a", at=0.001)
        f.answer("a", at=0.01, prompt=150, output=1)
        # 100 of its 150 tokens are there already.
        found = f.ask("b", "pa", 150, head="pa", branch="/sub", output_tokens_expected=1)
        assert list(found.values()) == [home]

    def test_a_move_must_pay(self, floor: Floors) -> None:
        """4,100 tokens of its own at 100 us: to move costs 0.41 s and half of that as a margin."""
        for waiting, home in ((5_000, "e1"), (7_000, "e2")):
            f = self.build(floor, 1, spread=0.0, margin=0.5)
            f.ask("a", "pa", 4_000, at=0, head="a")
            f.answer("a", prompt=4_000, at=1)
            f.ask("x", "px", waiting, at=1, head="x")
            f.report("e2", kv_tokens=10_000)
            assert f.ask("a2", "pa", 4_100, at=1, head="a") == {"a2": home}

    def test_what_would_be_evicted_counts_several_times(self, floor: Floors) -> None:
        f = self.build(floor, 2, spread=0.0, crowd=0.0, horizon=0.0)
        f.ask("a", "pa", 9_000, head="pa")
        f.start("a")
        f.ask("b", "pb", 2_000, head="pb")
        # It was sent to e2. To move it: 2,000 tokens at 100 us, with the margin; and 1,500 tokens
        # of pa's go, above 95 % of 10,000.
        seconds = (2_000 * (1 + 4.0) + 4 * 1_500) * 100e-6
        assert -f.score("b", "e1") / 1e9 == pytest.approx(seconds)

    def test_who_was_let_go_sees_the_room_elsewhere(self, floor: Floors) -> None:
        """Its home is full of others by now: it goes to the engine that has room."""
        for small, engine in ((1_000, "e1"), (8_000, "e2")):
            f = self.build(floor, 1, spread=0.0, crowd=0.0)
            f.ask("a", "pa", 4_000, head="pa")
            f.answer("a", prompt=4_000)
            f.world.evict(f.world.conversations["pa"])
            f.ask("b", "pb", small, head="pb")
            f.answer("b", prompt=small)
            f.report("e2", kv_tokens=10_000)
            assert f.ask("a2", "pa", 4_100, head="pa", at=1) == {"a2": engine}

    @pytest.mark.parametrize(
        ("lost", "at", "engine"),
        [
            ("e3", 30, "e1"),  # it was let go and has room elsewhere, but its engine is well
            ("e3", 62, "e2"),  # and that is some time ago
            ("e1", 30, "e2"),
        ],
    )
    def test_a_loss_stirs_nobody_whose_engine_is_well(
        self, floor: Floors, lost: str, at: float, engine: str
    ) -> None:
        f = self.build(floor, 1, spread=0.0, crowd=0.0)
        f.ask("a", "pa", 4_000, head="pa")
        f.answer("a", prompt=4_000)
        f.world.evict(f.world.conversations["pa"])
        f.ask("b", "pb", 8_000, head="pb")
        f.answer("b", prompt=8_000)
        f.report("e2", kv_tokens=10_000)
        f.report("e3", kv_tokens=1_000)
        f.lose(lost, at=1)
        assert f.ask("a2", "pa", 4_100, head="pa", at=at) == {"a2": engine}

    @pytest.mark.parametrize("seed", range(5))
    def test_the_best_is_the_one_of_the_greatest_score(self, floor: Floors, seed: int) -> None:
        f, rng = self.build(floor, 4, roomy=0.8 * (seed % 2)), Random(seed)
        chosen = set()
        for number in range(60):
            program, branch = f"p{rng.randrange(12)}", rng.choice(("", "/child"))
            f.ask(f"s{number}", program, rng.randrange(200, 4_000), branch=branch, at=float(number))
            if number == 30:
                f.lose("e2")
            step = f.scheduler.steps[f"s{number}"]
            up = [e for e in f.scheduler.engines.values() if e.is_up]
            best = f.scheduler.policies.place.best(step, up, f.world, now=f.scheduler._now)
            assert best is max(up, key=lambda e: f.score(step.step, e.engine))
            chosen.add(best.engine)
            if rng.random() < 0.7:
                f.answer(f"s{number}", is_last=rng.random() < 0.2)
        assert len(chosen) == 4

    def test_a_prompt_that_cannot_fit_goes_elsewhere(self, floor: Floors) -> None:
        f = floor(engines=0, place=place("rendezvous"))
        f.report("small", kv_tokens=2_000)
        f.report("large", kv_tokens=9_000)
        assert f.ask("a", "pa", 5_000) == {"a": "large"}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("prefix-aware", {"threshold": 2}),
        ("autellix", {"short_tokens": -1}),
        ("dualmap", {"ttft_slo_s": 0}),
        ("saga", {"theta": 0}),
        ("hexgen", {"alpha": 2}),
        ("dlpm", {"quantum": 0}),
        ("thunderagent", {"tick_s": 0}),
        ("rendezvous", {"spread": -1}),
        ("rendezvous", {"settle_s": -1}),
        ("rendezvous", {"roomy": -1}),
    ],
)
def test_parameters_that_make_no_sense(name: str, params: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match="bad parameters"):
        load("place", name, params)
