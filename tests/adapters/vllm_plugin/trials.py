"""Single situations on vLLM's real scheduler; run by vLLM's Python. Prints one JSON line per trial.

python trials.py [NAME ...]
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import trials_of_pins  # noqa: F401  (its trials are among those that `main` runs)
from lab import BLOCK_SIZE, DRAFTING, LAYOUTS, Lab
from trial_kit import LONG, TRIALS, flood, of, seconds, served, trial, words

from agentsched.model import HintOutcome, UnpinReason
from agentsched_adapters.vllm_plugin.blocks import Keeper
from agentsched_adapters.vllm_plugin.control import serve


@trial
def a_paused_session_returns_to_its_cache() -> None:
    cached = {}
    for name, settings in (("stock", None), ("plugin", LONG)):
        lab = Lab(settings)
        lab.add("first", words(1, 10), tokens=3, xargs=of("a"))
        lab.run()
        flood(lab)
        lab.add("second", [*words(1, 10), 7, 8, 9], tokens=3, xargs=of("a"))
        lab.run()
        cached[name] = lab.cached["second"]
        if name == "plugin":
            lab.check_quiet()
    assert cached == {"stock": 0, "plugin": 10 * BLOCK_SIZE}, cached


@trial
def a_paused_session_returns_to_its_cache_whatever_its_layers() -> None:
    # Where an answer ends in its block decides which blocks its window has just left behind; a long
    # one leaves the whole window of the prompt's end behind.
    lengths = (*range(1, 2 * BLOCK_SIZE), 30)
    for layout, retention, tokens in product(LAYOUTS, (None, 0), lengths):
        _returns(layout, retention, tokens)


def _returns(layout: str, retention: int | None, tokens: int) -> None:
    case = layout, retention, tokens

    def returning(lab: Lab) -> None:
        prompt = [*words(1, 10), *lab.answered["first"], 7, 8, 9]
        lab.add("second", prompt, tokens=3, xargs=of("a"))
        lab.run()

    stock, lab = (
        Lab(settings, layout=layout, blocks=1 + 27 * len(LAYOUTS[layout]), retention=retention)
        for settings in (None, LONG)
    )
    for one in (stock, lab):
        one.add("first", words(1, 10), tokens=tokens, xargs=of("a"))
        one.run()
    returning(stock)  # at once, and nobody else was there
    most = stock.cached["second"]
    assert most >= 8 * BLOCK_SIZE, case
    # Where layers draft, the last block that is there is computed again.
    there = most + lab.unit if layout in DRAFTING else most
    keeper = Keeper(pin="p", conversation="a", value=1.0)
    granted = lab.host.refine(keeper, ttl=seconds(600))
    assert granted == (HintOutcome.ACCEPTED, seconds(600), there), (case, granted)
    flood(lab, blocks=9)
    assert lab.host.pins.cached_tokens("a") == there, case
    returning(lab)
    assert lab.cached["second"] == most, (case, lab.cached)
    lab.check_quiet()


@trial
def a_late_pin_does_not_need_what_nobody_would_find() -> None:
    """Of an answer, vLLM's default leaves nothing in a window: what is gone of it matters not."""
    lab = Lab(LONG | {"grace": "0s"}, layout="sliding", blocks=70, retention=0)
    lab.add("first", words(1, 10), tokens=30, xargs=of("a"))
    lab.run()
    for index in range(3):
        lab.add(f"other{index}", words(500 + index, 9), tokens=1)
        lab.run()
    assert lab.host.pins.cached_tokens("a") == 9 * BLOCK_SIZE
    keeper = Keeper(pin="p", conversation="a", value=1.0)
    assert lab.host.refine(keeper, ttl=seconds(600))[0] is HintOutcome.ACCEPTED
    flood(lab)
    lab.add("second", [*words(1, 10), *lab.answered["first"], 7], tokens=1, xargs=of("a"))
    lab.run()
    assert lab.cached["second"] == 9 * BLOCK_SIZE
    lab.check_quiet()


@trial
def what_lost_its_window_counts_as_gone() -> None:
    lab = Lab(LONG | {"grace": "0s"}, layout="sliding", blocks=55)
    lab.add("first", words(1, 10), tokens=3, xargs=of("a"))
    lab.run()
    assert lab.host.pins.cached_tokens("a") == 10 * BLOCK_SIZE
    for index in range(50):
        # Little by little, until the first block of it is gone.
        lab.add(f"other{index}", words(500 + index, 2), tokens=1)
        lab.run()
        keeper = Keeper(pin="p", conversation="a", value=1.0)
        cached = lab.host.pins.cached_tokens("a")
        assert cached in (0, 10 * BLOCK_SIZE)
        if not cached:
            assert lab.host.refine(keeper, ttl=seconds(9))[0] is HintOutcome.REFUSED
            break
    assert not cached
    lab.check_quiet()


@trial
def the_plugin_stays_off_where_nothing_was_shown() -> None:
    from agentsched_adapters.vllm_plugin import layout as layouts

    lab = Lab(LONG, layout="sliding")
    manager = lab.scheduler.kv_cache_manager
    assert layouts.refusal(manager) is None

    class Mamba(type(manager.coordinator.single_type_managers[0])):
        """Another kind, even where it descends from one that was shown."""

    known = manager.coordinator.single_type_managers
    strange = Mamba.__new__(Mamba)
    vars(strange).update(vars(known[0]))
    manager.coordinator.single_type_managers = (*known, strange)
    assert "Mamba" in (layouts.refusal(manager) or "")
    elsewhere = type(known[0]).__new__(type(known[0]))
    vars(elsewhere).update(vars(known[0]), block_pool=object())
    manager.coordinator.single_type_managers = (*known, elsewhere)
    assert "several" in (layouts.refusal(manager) or "")
    manager.coordinator.single_type_managers = known
    lab.check_quiet()


@trial
def pins_change_nothing_for_prompts_that_share_nothing() -> None:
    """The same schedule, step by step, as without a plugin: pins delay nobody at all."""
    for layout, groups in LAYOUTS.items():
        for seed in range(25 if layout == "full" else 8):
            _same_schedule(seed, layout, blocks=1 + 27 * len(groups))
    for seed in range(8):
        _same_schedule(seed, "full", blocks=28, is_async=False)


def _same_schedule(seed: int, layout: str, *, blocks: int, is_async: bool = True) -> None:
    rng = random.Random(seed)
    # Two of them always fit, so nobody is preempted: what is left of a preempted one's own
    # blocks in the cache would be the one thing that pins may change.
    stock, ours = (
        Lab(settings, running_max=2, layout=layout, blocks=blocks, is_async=is_async)
        for settings in (None, LONG)
    )
    steps = pinned = 0
    for number in range(40):
        if rng.random() < 0.6:
            prompt = words(40 * seed + number, rng.randint(1, 9))
            tokens = rng.randint(1, 8)
            for lab in (stock, ours):
                lab.add(f"r{number}", prompt, tokens=tokens, xargs=of(f"c{number}"))
        for _ in range(rng.randint(1, 4)):
            expected, found = stock.step(), ours.step()
            assert found == expected, f"{layout} {seed}, step {steps}: {found}, {expected}"
            ours.check()
            steps += 1
            pinned += ours.host.pins.held
    assert stock.run() == ours.run()
    assert pinned > 0
    ours.check_quiet()


@trial
def nobody_runs_on_an_unknown_token_where_vllm_is_not_asynchronous() -> None:
    """Two steps under way at once, as with pipeline parallelism: the schedule is vLLM's own."""
    begun = {}
    for name, settings, is_async in (
        ("stock", None, False),
        ("plugin", LONG, False),
        ("asynchronous plugin", LONG, True),
    ):
        lab = Lab(settings, is_async=is_async)
        lab.add("a", words(1, 3), tokens=6, xargs=of("a"))
        begun[name] = [lab.schedule(), lab.schedule()]
        while lab.in_flight:
            lab.update()
        lab.run()
        assert len(lab.answered["a"]) == 6, (name, lab.answered)
        if settings is not None:
            lab.check_quiet()
    prompt = 3 * BLOCK_SIZE
    assert begun["stock"] == begun["plugin"] == [{"a": prompt}, {}], begun
    assert begun["asynchronous plugin"] == [{"a": prompt}, {"a": 1}], begun


@trial
def the_least_value_gives_way_first_and_tails_before_heads() -> None:
    lab = Lab(LONG)  # 27 blocks
    for number, value in ((1, 1.0), (2, 3.0), (3, 2.0)):
        lab.add(f"r{number}", words(number, 7), tokens=2, xargs=of(f"c{number}"))
        lab.run()
        lab.host.refine(Keeper(pin="p", conversation=f"c{number}", value=value), ttl=seconds(500))
    assert lab.host.pins.held == 21
    # 6 blocks are free; 10 more are needed than that.
    lab.add("big", words(9, 15), tokens=4)
    lab.run()
    held = {pin.conversation: len(pin.blocks) for pin in lab.host.pins}
    assert "c1" not in held, held
    assert held["c2"] == 7, held
    assert 0 < held["c3"] < 7, held
    lab.add("again", [*words(3, 7), 5], tokens=1, xargs=of("c3"))
    lab.step()
    # What was given up of it was its end, so the beginning is there.
    assert lab.cached["again"] >= held["c3"] * BLOCK_SIZE
    lab.check_quiet()


@trial
def a_request_that_cannot_fit_costs_no_pin_anything() -> None:
    lab = Lab(LONG)
    lab.add("kept", words(1, 6), tokens=2, xargs=of("a"))
    lab.run()
    lab.add("runs", words(2, 14), tokens=40)
    lab.step()
    held = lab.host.pins.held
    lab.add("waits", words(3, 22), tokens=2)  # 27 blocks less the running one's
    for _ in range(4):
        assert "waits" not in lab.step()
    assert lab.host.pins.held == held == 6
    lab.check_quiet()


@trial
def shared_blocks_count_once_and_stay_for_the_last() -> None:
    lab = Lab(LONG)
    for name in ("a", "b"):
        lab.add(name, [*words(1, 5), *words(ord(name), 3)], tokens=1, xargs=of(name))
        lab.run()
    assert lab.host.pins.held == 5 + 3 + 3
    lab.host.pins.release("a", UnpinReason.RELEASED)
    assert lab.host.pins.held == 5 + 3
    flood(lab)
    lab.add("again", [*words(1, 5), 1, 2], tokens=1)
    lab.run()
    assert lab.cached["again"] == 5 * BLOCK_SIZE
    lab.check_quiet()


@trial
def budgets_hold_for_all_and_for_each_tenant() -> None:
    lab = Lab({"grace": "600s", "budget": "0.6", "tenant_budget": "0.3"})
    for number in range(6):
        tenant = "t1" if number < 3 else "t2"
        xargs = of(f"c{number}", agentsched_tenant=tenant)
        lab.add(f"r{number}", words(number, 6), tokens=1, xargs=xargs)
        lab.run()
        lab.check()
    assert lab.host.pins.held <= 16
    assert 0 < lab.host.pins._ledger.tenant_held("t1") <= 8
    lab.check_quiet()


@trial
def a_pin_does_not_expire_while_its_next_turn_waits() -> None:
    lab = Lab(LONG | {"grace": "1s"}, running_max=1)
    lab.add("first", words(1, 6), tokens=1, xargs=of("a"))
    lab.run()
    lab.add("other", words(2, 6), tokens=20)
    lab.step()
    lab.add("second", [*words(1, 6), 5], tokens=1, xargs=of("a"))
    lab.advance(60)
    lab.step()
    assert lab.host.pins.of_conversation("a") is not None
    lab.run()
    assert lab.cached["second"] == 6 * BLOCK_SIZE
    assert lab.host.pins.ended_total == {"resumed": 1}
    lab.advance(60)
    lab.schedule()
    lab.update()
    assert lab.host.pins.of_conversation("a") is None
    lab.check_quiet()


@trial
def a_newer_turn_ends_the_older_pin_and_an_aborted_one_leaves_none() -> None:
    lab = Lab(LONG)
    lab.add("t1", words(1, 4), tokens=1, xargs=of("a"))
    lab.run()
    lab.add("t2", words(1, 4) + words(7, 4), tokens=1, xargs=of("a"))
    lab.run()
    pin = lab.host.pins.of_conversation("a")
    assert pin is not None
    assert len(pin.blocks) == 8
    lab.add("t3", words(2, 20), tokens=5, xargs=of("a"))  # several prefill steps
    lab.schedule()
    lab.abort("t3")
    lab.update()
    lab.abort("t3")
    assert lab.host.pins.of_conversation("a") is None
    lab.check()
    lab.check_quiet()


@trial
def a_late_pin_finds_what_is_still_cached_and_nothing_else() -> None:
    lab = Lab(LONG | {"grace": "1s"})
    lab.add("r", words(1, 8), tokens=1, xargs=of("a"))
    lab.run()
    lab.advance(5)
    lab.step()
    assert len(lab.host.pins) == 0
    keeper = Keeper(pin="late", conversation="a")
    outcome, ttl, tokens = lab.host.refine(keeper, ttl=seconds(3))
    assert (outcome, ttl, tokens) == (HintOutcome.ACCEPTED, seconds(3), 8 * BLOCK_SIZE)
    lab.host.pins.release("a", UnpinReason.RELEASED)
    flood(lab)
    assert lab.host.refine(keeper, ttl=seconds(3))[0] is HintOutcome.REFUSED
    assert lab.host.refine(Keeper(pin="x", conversation="b"), ttl=seconds(3))[2] == 0
    lab.check_quiet()


@trial
def a_pin_is_clipped_by_the_greatest_time_and_refused_under_a_running_turn() -> None:
    lab = Lab(LONG | {"ttl_max": "10s"})
    lab.add("r", words(1, 8), tokens=1, xargs=of("a"))
    lab.run()
    keeper = Keeper(pin="p", conversation="a")
    assert lab.host.refine(keeper, ttl=seconds(60))[:2] == (HintOutcome.CLIPPED, seconds(10))
    lab.add("next", [*words(1, 8), 4], tokens=9, xargs=of("a"))
    lab.step()
    assert lab.host.refine(keeper, ttl=seconds(5))[0] is HintOutcome.REFUSED
    lab.check_quiet()


@trial
def a_clock_that_jumps_loses_nothing() -> None:
    lab = Lab(LONG | {"grace": "5s"})
    lab.add("r", words(1, 8), tokens=1, xargs=of("a"))
    lab.run()
    lab.advance(-100)
    lab.step()
    assert len(lab.host.pins) == 1
    lab.advance(100 + 86_400)
    lab.step()
    assert len(lab.host.pins) == 0
    lab.check_quiet()


@trial
def an_error_of_ours_leaves_a_stock_engine() -> None:
    lab = Lab(LONG | {"order": "program-fcfs"})
    for number in range(3):
        lab.add(f"r{number}", words(number, 6), tokens=2, xargs=of(f"c{number}"))
    lab.run()
    assert lab.host.pins.held > 0

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("on purpose")

    lab.host.pins.expire = broken
    for number in range(3, 8):
        lab.add(f"r{number}", words(number, 6), tokens=2, xargs=of(f"c{number}"))
    lab.run()
    assert not lab.host.is_active
    assert lab.host.failures == {"step": 1}
    assert "allocate_slots" not in vars(lab.scheduler.kv_cache_manager)
    assert lab.pool.get_num_free_blocks() == lab.blocks - 1
    assert lab.scheduler.reset_prefix_cache()
    assert lab.host.refine(Keeper(pin="p", conversation="c1"), ttl=seconds(1))[2] == 0
    # Its queue stays in the engine, and keeps nobody who left it.
    for number in range(8, 58):
        lab.add(f"r{number}", words(number, 2), tokens=1, xargs=of(f"c{number}"))
    lab.run()
    assert not lab.host.queue._taken
    assert not lab.host.queue._went


@trial
def an_order_policy_orders_the_waiting_and_a_bound_ends_every_wait() -> None:
    lab = Lab(LONG | {"order": "program-fcfs", "wait_max": "30s"}, running_max=1)
    for name in ("old", "young"):
        lab.add(f"{name}1", words(ord(name[0]), 2), tokens=1, xargs=of(name))
        lab.run()
    lab.add("busy", words(3, 2), tokens=8)
    lab.step()
    lab.add("young2", words(4, 2), tokens=1, xargs=of("young"))
    lab.add("old2", words(5, 2), tokens=1, xargs=of("old"))
    order = served(lab)
    assert order == ["busy", "old2", "young2"], order
    # The one that waited for longer than the bound goes before whatever the policy prefers.
    lab.add("busy2", words(3, 2), tokens=8)
    lab.step()
    lab.add("young3", words(6, 2), tokens=1, xargs=of("young"))
    lab.advance(31)
    lab.add("old3", words(7, 2), tokens=1, xargs=of("old"))
    order = served(lab)
    assert order == ["busy2", "young3", "old3"], order
    assert lab.host.queue.forced_total == 1
    lab.check_quiet()


@trial
def an_emptied_cache_takes_the_pins_along() -> None:
    lab = Lab(LONG)
    lab.add("r", words(1, 8), tokens=1, xargs=of("a"))
    lab.run()
    assert lab.scheduler.reset_prefix_cache()
    assert len(lab.host.pins) == 0
    assert lab.host.refine(Keeper(pin="p", conversation="a"), ttl=seconds(9))[2] == 0
    lab.check_quiet()


@trial
def a_pin_policy_of_the_proxy_decides_here_too() -> None:
    lab = Lab({"grace": "0s", "pin": "fixed", "pin_params": '{"ttl_s": 7.0}', "budget": "1.0"})
    for number in range(8):
        lab.add(f"r{number}", words(number, 8), tokens=1, xargs=of(f"c{number}"))
        lab.run()
    lab.add("nobody", words(90, 8), tokens=1)
    lab.run()
    # The core asks its policy when more conversations want to stay than the pool has room for.
    pin = lab.host.pins.of_conversation("c7")
    assert pin is not None
    assert not pin.is_grace
    assert pin.expires_at - lab.now_ns == seconds(7)
    lab.check_quiet()


@trial
def one_that_gives_up_leaves_a_pin_with_something_to_give() -> None:
    """A rare course: the one that shares a pin's blocks, and nobody else does, is preempted."""
    lab = Lab(LONG, step_tokens=48)
    # Both compute the beginning in the same step, each for itself; the pin has the first copy.
    lab.add("first", words(1, 5), tokens=1, xargs=of("a"))
    lab.add("long", words(1, 5), tokens=75)
    lab.step()
    assert len(lab.host.pins) == 1
    lab.add("shares", [*words(1, 5), 7, 8], tokens=70)
    preempted = 0
    while not preempted and lab.scheduler.has_unfinished_requests():
        with lab.refusals() as refused:
            lab.step()
        lab.check()
        preempted = sum(r.num_preemptions for r in lab.scheduler.requests.values())
    assert preempted == 1
    assert refused
    assert all(missing > 0 for missing in refused)
    assert lab.host.pins.reclaimable() > 0  # though all of it would not have been enough before
    lab.run()
    lab.check_quiet()


@trial
def the_first_proxys_words_are_understood() -> None:
    """Byte for byte what the first version of the proxy sent, and all that it read of answers."""
    lab = Lab(LONG)
    lab.add("a", words(1, 3), tokens=3, xargs=of("c"))
    lab.run()

    def told(operation: str, body: str) -> dict[str, object]:
        return dict(json.loads(serve(lab.host, lab.scheduler, operation, body)))

    pin = '{"conversation":"c","ttl_s":30.0,"value":2.0,"pin":"pin-1","program":"p","tenant":""}'
    granted = told("pin", pin)
    assert granted == {"outcome": "accepted", "ttl_s": 30.0, "tokens": 3 * BLOCK_SIZE}, granted
    state = told("state", "")
    read = {"is_active", "plugin", "vllm", "block_size", "blocks", "free_blocks", "pinned_blocks"}
    assert read <= set(state), state
    (shown,) = state["pins"]  # type: ignore[misc]
    assert (shown["pin"], shown["program"], shown["is_grace"]) == ("pin-1", "p", False), shown
    assert told("extend", '{"conversation":"c","ttl_s":5.0,"value":null}')["ttl_s"] == 5.0
    release = '{"pin":"pin-1","conversation":"","program":"","everything":false}'
    assert told("release", release) == {"released": 1}
    assert not lab.host.pins.held
    lab.check_quiet()


@trial
def two_proxies_may_give_pins_the_same_name() -> None:
    lab = Lab(LONG)
    for number, name in enumerate("ab"):
        lab.add(name, words(number + 1, 3), tokens=3, xargs=of(name))
        lab.run()
        lab.host.refine(Keeper(pin="pin-1", conversation=name, value=1.0), ttl=seconds(600))
    body = json.dumps({"pin": "pin-1", "conversation": "a"})
    for released in (1, 0):
        told = serve(lab.host, lab.scheduler, "release", body)
        assert told == json.dumps({"released": released}, separators=(",", ":"))
    assert [pin.conversation for pin in lab.host.pins] == ["b"]
    wrong = json.dumps({"pin": "pin-1", "program": "b"})
    assert "error" in json.loads(serve(lab.host, lab.scheduler, "release", wrong))
    lab.check_quiet()


@trial
def a_pin_of_a_beginning_keeps_that_alone() -> None:
    lab = Lab(LONG)
    lab.add("first", words(1, 10), tokens=3, xargs=of("a"))
    lab.run()
    keeper = Keeper(pin="head", conversation="a", value=1.0)
    outcome, _, tokens = lab.host.refine(keeper, ttl=seconds(600), tokens=3 * BLOCK_SIZE + 1)
    # The block that it ends in as well.
    assert (outcome, tokens) == (HintOutcome.ACCEPTED, 4 * BLOCK_SIZE)
    lab.check()
    flood(lab)
    lab.add("second", [*words(1, 10), 7, 8, 9], tokens=3, xargs=of("a"))
    lab.run()
    assert lab.cached["second"] == 4 * BLOCK_SIZE, lab.cached
    lab.check_quiet()


@trial
def an_engine_that_restarts_knows_no_pin_and_a_proxy_that_does_leaves_none_for_ever() -> None:
    lab = Lab(LONG | {"ttl_max": "60s"})
    lab.add("first", words(1, 10), tokens=3, xargs=of("a"))
    lab.run()
    keeper = Keeper(pin="pin-7", conversation="a", value=1.0)
    assert lab.host.refine(keeper, ttl=seconds(3_600))[0] is HintOutcome.CLIPPED
    # The proxy goes and comes back without its memory: its new pins have the old names.
    lab.add("other", words(2, 3), tokens=3, xargs=of("b"))
    lab.run()
    again = Keeper(pin="pin-7", conversation="b", value=1.0)
    lab.host.refine(again, ttl=seconds(30))
    assert sorted(pin.conversation for pin in lab.host.pins) == ["a", "b"]
    lab.advance(61)
    lab.check_quiet()  # nobody released them, and nothing is left
    # The engine goes and comes back: hints about what it had find nothing, and break nothing.
    fresh = Lab(LONG)
    assert fresh.host.refine(keeper, ttl=seconds(30)) == (HintOutcome.REFUSED, 0, 0)
    assert fresh.host.extend("a", ttl=seconds(30), value=None)[0] is HintOutcome.REFUSED
    assert not fresh.host.pins.release("a", UnpinReason.RELEASED)
    assert fresh.host.pins.release_where(lambda pin: pin.pin == "pin-7", UnpinReason.RELEASED) == 0
    fresh.check_quiet()


@trial
def a_variable_makes_it_the_default() -> None:
    import os

    from vllm.config import SchedulerConfig
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from agentsched_adapters.vllm_plugin import register
    from agentsched_adapters.vllm_plugin.scheduler import ProgramScheduler

    def chosen(**fields: object) -> type:
        config = SchedulerConfig(max_model_len=64, is_encoder_decoder=False, **fields)
        found: type = config.get_scheduler_cls()
        return found

    register()
    assert chosen(async_scheduling=True) is AsyncScheduler  # nobody asked for it
    assert chosen(async_scheduling=False) is Scheduler
    os.environ["AGENTSCHED_PLUGIN"] = "1"
    register()
    register()
    assert chosen(async_scheduling=True) is ProgramScheduler
    assert chosen(async_scheduling=False) is ProgramScheduler
    name = "vllm.v1.core.sched.scheduler.Scheduler"
    assert chosen(async_scheduling=True, scheduler_cls=name) is Scheduler


def main() -> None:
    wanted = sys.argv[1:]
    for function in TRIALS:
        if wanted and function.__name__ not in wanted:
            continue
        error = ""
        try:
            function()
        except Exception:
            error = traceback.format_exc()
        print("TRIAL " + json.dumps({"name": function.__name__, "error": error}), flush=True)


if __name__ == "__main__":
    main()
