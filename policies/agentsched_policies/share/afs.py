"""Agent fair share: the tenant whose programs must hurry most is next (SAGA, arXiv 2605.00528).

AFS of a tenant = sum over its programs of work left / time left to the deadline. A program that
names no deadline has `1.5 x horizon` from its start, as SAGA gives it 1.5 x its expected time.

As published it has two defects: as a deadline passes, the time left goes to zero and its tenant's
urgency to infinity, so that one tenant that is late takes everything; and who declares the
tightest deadlines gets the most. Here a program whose deadline has passed counts as one that names
none (it cannot be met any more), the time left is at least `slack`, and urgency only counts while a
tenant is at most `burst` ahead of the one that was served least; beyond, it waits its turn.
"""

from __future__ import annotations

from typing import Final

from agentsched.model import Event, Instant, after, between, in_seconds, seconds
from agentsched.policy import Prices, ProgramView, SortKey, TenantView, World

#: Without a graph's opinion.
_STEPS_LEFT: Final = 10.0
#: Of a program that has not been served yet, in charged tokens.
_WORK_PER_STEP: Final = 1_000.0


class Afs:
    """Greatest urgency first, among tenants that are not ahead of their share.

    `burst`: how far urgency may carry a tenant ahead, in charged tokens for weight 1. `slack_s`,
    `horizon_s`: see the module, in seconds. `output_price` and `memory_price` are `Prices`'.
    """

    def __init__(
        self,
        *,
        burst: float = 65_536.0,
        slack_s: float = 1.0,
        horizon_s: float = 300.0,
        output_price: float = Prices().output,
        memory_price: float = Prices().memory,
    ) -> None:
        if not burst >= 0 or not slack_s > 0 or not horizon_s > 0:
            raise ValueError("burst is at least 0, slack_s and horizon_s are above 0")
        self._burst = burst
        self._slack_s = slack_s
        self._horizon = seconds(1.5 * horizon_s)
        self.prices = Prices(output=output_price, memory=memory_price)

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn: graphs and accounts do."""

    def rank_tenant(self, tenant: TenantView, world: World, *, now: Instant) -> SortKey | None:
        ahead = tenant.service(now=now) - world.least_service(now=now)
        if ahead > self._burst:
            return (1.0, ahead)
        programs = (world.programs[key] for key in tenant.programs)
        return (0.0, -sum(self._urgency(program, world, now=now) for program in programs))

    def _urgency(self, program: ProgramView, world: World, *, now: Instant) -> float:
        """Charged tokens that it should get each second."""
        graph = world.graph(program.program)
        steps_left = graph.steps_left() if graph is not None else None
        done = program.steps_done
        per_step = program.served_tokens / done if done else _WORK_PER_STEP
        work = per_step * (_STEPS_LEFT if steps_left is None else max(1.0, steps_left))
        return work / max(self._slack_s, in_seconds(between(now, self._due(program, now=now))))

    def _due(self, program: ProgramView, *, now: Instant) -> Instant:
        if program.deadline is not None and program.deadline > now:
            return program.deadline
        # Overdue by both counts: it has all the time that another program has, from now.
        usual = after(program.opened_at, self._horizon)
        return usual if usual > now else after(now, self._horizon)
