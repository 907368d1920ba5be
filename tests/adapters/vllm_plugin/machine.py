"""A Hypothesis state machine on vLLM's real scheduler and block pool; run by vLLM's Python.

    python machine.py EXAMPLES STEPS SETTINGS_JSON LAYOUT

Arrivals, engine steps (one or two under way), aborts, pins, releases, expiry and clock jumps in any
order. After each: no block is lost or counted twice, no budget is exceeded, each pin ended once or
lives, and a request that could run does run. At the end everybody is served and nothing is left.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lab import BLOCK_SIZE, Lab

from agentsched.model import Nanos, UnpinReason
from agentsched_adapters.vllm_plugin.blocks import Keeper

SETTINGS: dict[str, str] = {}
#: See `lab.LAYOUTS`.
LAYOUT = ["full"]
#: Blocks of the pool: a few more than the longest request needs in all groups.
POOLS = {
    "full": 28,
    "sliding": 44,
    "two sliding": 60,
    "chunked": 44,
    "two lengths": 32,
    "sliding alone": 20,
    "drafting": 44,
}
CONVERSATIONS = st.sampled_from([f"c{i}" for i in range(6)])
#: The test wants more prompts than this to find something cached; so many rounds try for that.
HITS_MIN, ROUNDS_MAX = 50, 5
SEEN: dict[str, int] = {"preempted": 0, "hits": 0, "gave_way": 0, "pins": 0, "steps": 0}


class PluginMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab(SETTINGS, layout=LAYOUT[0], blocks=POOLS[LAYOUT[0]])
        self.count = 0
        #: What each conversation has said so far.
        self.history: dict[str, list[int]] = {}

    @rule(
        conversation=CONVERSATIONS,
        grow=st.sampled_from([1, 5, 17, 40, 90]),
        tokens=st.sampled_from([1, 2, 5, 30]),
        tenant=st.sampled_from(["", "t1", "t2"]),
        fresh=st.booleans(),
        is_named=st.sampled_from([True, True, True, False]),
        stop=st.sampled_from([None, None, ["x"]]),
    )
    def arrive(
        self,
        conversation: str,
        grow: int,
        tokens: int,
        tenant: str,
        fresh: bool,
        is_named: bool,
        stop: list[str] | None,
    ) -> None:
        self.count += 1
        key = f"r{self.count}"
        # Everybody begins with the same words, as agents do with their system prompt.
        history = [] if fresh else self.history.get(conversation, [])
        shared = list(range(100, 100 + 3 * BLOCK_SIZE))
        prompt = [*(history or shared), *(200 + (self.count * 31 + i) % 700 for i in range(grow))]
        prompt = prompt[: self.lab.context_max - tokens - 1]
        self.history[conversation] = prompt
        xargs: dict[str, Any] = {}
        if is_named:
            xargs = {
                "agentsched_conversation": conversation,
                "agentsched_program": f"p-{conversation}",
                "agentsched_tenant": tenant,
            }
        self.lab.add(key, prompt, tokens=tokens, xargs=xargs, stop=stop)

    @rule(data=st.data())
    @precondition(lambda self: self.lab.scheduler.requests)
    def abort(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.lab.scheduler.requests)))
        self.lab.abort(key)
        self.lab.abort(key)  # a second end changes nothing

    @rule(count=st.integers(1, 20))
    def steps(self, count: int) -> None:
        while self.lab.in_flight:
            self.lab.update()
        for _ in range(count):
            self._scheduled()
            self.lab.update()
            self.lab.check()

    @rule()
    @precondition(lambda self: len(self.lab.in_flight) < 2)
    def begin_step(self) -> None:
        self._scheduled()

    @rule()
    @precondition(lambda self: self.lab.in_flight)
    def end_step(self) -> None:
        self.lab.update()

    @rule(
        conversation=CONVERSATIONS,
        ttl_s=st.floats(0.01, 30),
        value=st.floats(-5, 5),
        tenant=st.sampled_from(["", "t1", "t2"]),
    )
    def pin(self, conversation: str, ttl_s: float, value: float, tenant: str) -> None:
        keeper = Keeper(pin="asked", conversation=conversation, tenant=tenant, value=value)
        self.lab.host.refine(keeper, ttl=Nanos(round(ttl_s * 1e9)))

    @rule(conversation=CONVERSATIONS, ttl_s=st.floats(0.01, 30))
    def extend(self, conversation: str, ttl_s: float) -> None:
        self.lab.host.extend(conversation, ttl=Nanos(round(ttl_s * 1e9)), value=1.0)

    @rule(conversation=CONVERSATIONS)
    def release(self, conversation: str) -> None:
        self.lab.host.pins.release(conversation, UnpinReason.RELEASED)
        self.lab.host.pins.release(conversation, UnpinReason.RELEASED)

    @rule(seconds=st.sampled_from([-3_600.0, -0.5, 0.0, 0.1, 1.0, 5.0, 86_400.0]))
    def time_passes(self, seconds: float) -> None:
        self.lab.advance(seconds)

    @rule()
    @precondition(lambda self: not self.lab.scheduler.requests and not self.lab.in_flight)
    def empty_the_cache(self) -> None:
        assert self.lab.scheduler.reset_prefix_cache()
        assert len(self.lab.host.pins) == 0

    @invariant()
    def nothing_is_lost(self) -> None:
        self.lab.check()

    def _scheduled(self) -> None:
        """One `schedule`, after which nobody may wait who could run."""
        lab, scheduler = self.lab, self.lab.scheduler
        shrunk = lab.host.pins.shrunk_blocks_total
        before = {key: r.num_preemptions for key, r in scheduler.requests.items()}
        with lab.refusals() as refused:
            scheduled = lab.schedule()
        preempted = any(r.num_preemptions > before[k] for k, r in scheduler.requests.items())
        SEEN["preempted"] += preempted
        SEEN["gave_way"] += lab.host.pins.shrunk_blocks_total > shrunk
        SEEN["pins"] += len(lab.host.pins)
        SEEN["steps"] += 1
        SEEN["hits"] += sum(lab.cached.get(key, 0) > 0 for key in scheduled)
        if preempted:
            # Whoever had to give up did so because all that pins hold would not have been enough.
            assert refused
            assert all(missing > 0 for missing in refused), refused
            return
        left = lab.step_tokens - sum(scheduled.values())
        if not scheduler.waiting or left <= 0 or len(scheduler.running) >= lab.running_max:
            return
        first = scheduler.waiting.peek_request()
        if first.num_stale_output_tokens:
            return
        needed = sum(lab.needed(first.num_tokens)) + scheduler.kv_cache_manager.watermark_blocks
        as_good_as_free = lab.pool.get_num_free_blocks() + lab.host.pins.reclaimable()
        assert needed > as_good_as_free, f"{first.request_id} waits with room for it"

    def teardown(self) -> None:
        while self.lab.in_flight:
            self.lab.update()
        self.lab.now_ns = max(self.lab.now_ns, self.lab.host.now())
        self.lab.check_quiet()


def main() -> None:
    examples, steps, given = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    SETTINGS.update(given)
    LAYOUT[0] = sys.argv[4]
    for _ in range(ROUNDS_MAX):
        run_state_machine_as_test(
            PluginMachine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
        # What examples are made of is chance: once in dozens of runs nearly nobody came back.
        if SEEN["hits"] > HITS_MIN:
            break
    print("MACHINE " + json.dumps(SEEN))


if __name__ == "__main__":
    main()
