"""A policy of your own: `pip install ./examples/policy`, then `policies.order.name` names it."""

from agentsched.policy import SortKey, StepView, World


class ShortestPrompt:
    """Smallest prompt first."""

    def observe(self, event, *, now):
        """Learn from what happens; the only place where state may change."""

    def rank(self, step: StepView, world: World, *, now) -> SortKey:
        return (step.prompt_tokens,)

    def priority(self, step: StepView, world: World, *, now) -> int:
        return 0
