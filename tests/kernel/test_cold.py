from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched.kernel.cold import ColdSteps
from agentsched.model import Instant, StepId

Known = dict[str, tuple[int, int, int]]
names = st.sampled_from(["a", "b", "c", "d", "e"])
sent = st.tuples(st.just("add"), names, st.integers(0, 9), st.integers(0, 50), st.integers(0, 50))
ended = st.tuples(st.just("drop"), names)
passes = st.tuples(st.just("pass"), st.integers(0, 6))


@given(st.lists(st.one_of(sent, sent, ended, passes), max_size=40))
def test_the_sums_are_those_of_the_steps_that_are_not_over(deeds: list[tuple]) -> None:
    cold, now = ColdSteps(), Instant(0)
    known: Known = {}
    for deed in deeds:
        match deed:
            case ("add", name, span, missing, given_up) if name not in known:
                known[name] = (now + span, missing, min(missing, given_up))
                until, missing, given_up = known[name]
                cold.add(
                    StepId(name), until=Instant(until), missing=missing, given_up=given_up, now=now
                )
            case ("drop", name):
                until, _, _ = known.pop(name, (0, 0, 0))
                cold.drop(StepId(name), until=Instant(until))
            case ("pass", span):
                now = Instant(now + span)
        cold.check()
        here = [(until, m, g) for until, m, g in known.values() if until > now]
        expected = round(sum(m for _, m, _ in here) - 0.75 * sum(g for _, _, g in here))
        assert cold.tokens(ratio=0.25, now=now) == expected
        assert cold.earliest(now=now) == min((until for until, _, _ in here), default=None)
