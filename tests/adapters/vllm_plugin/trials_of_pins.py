"""Whose pins are, which answers leave one, and how they end; run by `trials`."""

from __future__ import annotations

import json

from lab import BLOCK_SIZE, Lab
from trial_kit import LONG, flood, of, seconds, trial, words

from agentsched.model import HintOutcome
from agentsched_adapters.vllm_plugin.blocks import Keeper
from agentsched_adapters.vllm_plugin.control import serve


@trial
def a_pin_that_names_no_tenant_is_its_conversations() -> None:
    lab = Lab({"budget": "1.0", "tenant_budget": "0.3", "grace": "600s"})  # 8 of 27 blocks
    tenants = {"c0": "t1", "c1": "t1", "c2": "t2", "c3": "t2"}
    for number, (name, tenant) in enumerate(tenants.items()):
        lab.add(name, words(number, 3), tokens=1, xargs=of(name, agentsched_tenant=tenant))
    lab.run()
    for name in tenants:
        lab.host.refine(Keeper(pin=f"p-{name}", conversation=name, value=1.0), ttl=seconds(60))
        lab.check()
    assert {pin.conversation: pin.tenant for pin in lab.host.pins} == tenants
    # Also where nobody held it in between, and where it grows beyond what its tenant may have.
    lab.advance(61)
    lab.step()
    assert len(lab.host.pins) == 0
    for number, (name, tenant) in enumerate(tenants.items()):
        prompt = [*words(number, 3), *words(number + 20, 3)]
        xargs = of(name, agentsched_tenant=tenant, agentsched_grace_s=0)
        lab.add(f"{name}-2", prompt, tokens=1, xargs=xargs)
        lab.run()
        lab.host.refine(Keeper(pin=f"p-{name}", conversation=name, value=1.0), ttl=seconds(60))
        lab.check()
    assert all(tenants[pin.conversation] == pin.tenant for pin in lab.host.pins)
    held = {tenant: lab.host.pins._ledger.tenant_held(tenant) for tenant in ("t1", "t2", "")}
    assert held == {"t1": 8, "t2": 8, "": 0}, held
    lab.check_quiet()


@trial
def an_answer_that_ends_at_a_stop_string_is_a_whole_one() -> None:
    """The front end finds the string, and aborts the request in the engine."""
    for is_async in (True, False):
        lab = Lab(LONG, is_async=is_async)
        kept = []
        prompt = words(1, 5)
        for turn in range(2):
            key = f"turn{turn}"
            lab.add(key, prompt, tokens=30, xargs=of("a"), stop=["Observation:"])
            while len(lab.answered[key]) < 6:
                lab.step()
            lab.abort(key)
            lab.abort(key)
            lab.check()
            keeper = Keeper(pin="p", conversation="a", value=1.0)
            outcome, _, tokens = lab.host.refine(keeper, ttl=seconds(60))
            assert outcome is HintOutcome.ACCEPTED
            kept.append(tokens)
            prompt = [*prompt, *lab.answered[key], *words(9, 2)]
        assert kept[0] >= 5 * BLOCK_SIZE, kept
        assert kept[1] >= kept[0] + 2 * BLOCK_SIZE, kept
        assert lab.cached["turn1"] >= 5 * BLOCK_SIZE
        lab.check_quiet()


@trial
def an_answer_that_ends_since_it_repeats_itself_is_a_whole_one() -> None:
    lab = Lab(LONG)
    lab.add("loop", words(1, 5), tokens=60, xargs=of("a"), repeats=4)
    lab.run()
    assert len(lab.answered["loop"]) == 4
    assert lab.host.pins.of_conversation("a") is not None
    lab.check_quiet()


@trial
def an_abort_without_a_stop_string_or_an_answer_leaves_nothing() -> None:
    lab = Lab(LONG)
    lab.add("plain", words(1, 5), tokens=30, xargs=of("a"))
    lab.step()
    lab.step()
    lab.abort("plain")
    lab.add("early", words(2, 15), tokens=30, xargs=of("b"), stop=["x"])
    lab.step()  # a part of its prompt
    lab.abort("early")
    assert len(lab.host.pins) == 0
    assert list(lab.host.pins.conversations) == []
    lab.check_quiet()


@trial
def a_pin_ends_with_its_time_where_its_next_turn_is_aborted_before_it_ran() -> None:
    lab = Lab(LONG, running_max=1)
    lab.add("b1", words(2, 4), tokens=1, xargs=of("b"))
    lab.run()
    lab.add("a1", words(1, 4), tokens=1, xargs=of("a", agentsched_grace_s=1))
    lab.run()
    lab.add("busy", words(3, 4), tokens=20)
    lab.step()
    lab.add("a2", [*words(1, 4), 5], tokens=1, xargs=of("a"))
    lab.advance(2)
    lab.step()
    assert lab.host.pins.of_conversation("a") is not None
    lab.abort("a2")
    lab.step()
    assert lab.host.pins.of_conversation("a") is None
    assert lab.host.pins.of_conversation("b") is not None
    lab.check_quiet()


@trial
def a_pin_that_has_no_place_among_the_most_is_refused() -> None:
    lab = Lab(LONG | {"pins_max": "1", "grace": "0s"})
    for number, name in enumerate("ab"):
        lab.add(name, words(number + 1, 4), tokens=1, xargs=of(name))
        lab.run()
    dear, cheap = (Keeper(pin="p", conversation=c, value=v) for c, v in (("a", 5.0), ("b", 0.0)))
    assert lab.host.refine(dear, ttl=seconds(60))[0] is HintOutcome.ACCEPTED
    assert lab.host.refine(cheap, ttl=seconds(60)) == (HintOutcome.REFUSED, 0, 0)
    assert [pin.conversation for pin in lab.host.pins] == ["a"]
    lab.check_quiet()


@trial
def a_state_tells_also_of_old_conversations_that_are_gone() -> None:
    lab = Lab(LONG | {"grace": "0s"}, blocks=1_100)

    def told() -> dict[str, int]:
        state = json.loads(serve(lab.host, lab.scheduler, "state", ""))
        return {c: t for p in state["programs"] for c, t in p["conversations"].items()}

    lab.add("old", words(1, 3), tokens=1, xargs=of("old"))
    lab.run()
    assert told() == {"old": 3 * BLOCK_SIZE}
    for number in range(2, 1_030):
        lab.add(f"r{number}", words(1_000 + number, 1), tokens=1, xargs=of(f"c{number}"))
    lab.run()
    assert len(told()) == 1_024
    assert "old" not in told()  # the latest alone, as long as it is there
    flood(lab, count=100)
    assert told()["old"] == 0
    assert set(told().values()) == {0}
    lab.check_quiet()


@trial
def who_was_told_of_hears_that_the_cache_was_emptied() -> None:
    lab = Lab(LONG)

    def told() -> dict[str, int]:
        state = json.loads(serve(lab.host, lab.scheduler, "state", ""))
        return {c: t for p in state["programs"] for c, t in p["conversations"].items()}

    lab.add("r", words(1, 8), tokens=1, xargs=of("a"))
    lab.run()
    assert told() == {"a": 8 * BLOCK_SIZE}
    assert lab.scheduler.reset_prefix_cache()
    assert told() == {"a": 0}, told()
    # A reset that vLLM refuses takes no memory along: what is cached can be pinned late.
    lab.add("s", words(2, 8), tokens=1, xargs=of("b"))
    lab.run()
    lab.add("busy", words(3, 8), tokens=9)
    lab.step()
    assert not lab.scheduler.reset_prefix_cache()
    assert told()["b"] == 8 * BLOCK_SIZE, told()
    outcome, _, tokens = lab.host.refine(Keeper(pin="p", conversation="b"), ttl=seconds(60))
    assert (outcome, tokens) == (HintOutcome.ACCEPTED, 8 * BLOCK_SIZE)
    lab.check()
    lab.check_quiet()


@trial
def a_fault_of_ours_is_not_told_as_the_clients() -> None:
    from agentsched_adapters.vllm_plugin.endpoints import _merge

    lab = Lab(LONG)

    def status(body: str) -> int:
        answer = json.loads(serve(lab.host, lab.scheduler, "release", body))
        return int(_merge("release", [answer]).status_code)

    def broken(*_: object) -> int:
        raise ZeroDivisionError("surprise")

    assert status('{"pin":"p","program":"q"}') == 400
    lab.host.pins.release_where = broken
    assert status('{"program":"q"}') == 500
    assert not lab.host.is_active
