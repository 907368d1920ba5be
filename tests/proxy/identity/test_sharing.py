"""Two replicas learn each other's turns: whoever meets the next request knows the conversation."""

from __future__ import annotations

import random

import msgspec
import pytest

from agentsched.model import SECOND, Instant, Lineage, TenantId
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity import Evidence, Identity, IdentityLimits, sharing
from agentsched.proxy.identity.keeping import encode_turn
from agentsched.proxy.identity.records import Turn, TurnState
from agentsched.proxy.identity.sharing import SharedIndex
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.wire import WireLimits, parse_request

TENANT = TenantId("t")
LIMITS = WireLimits(body_bytes_max=1 << 20, messages_max=1_000)


class Replica:
    """An index whose clock is its own, and what it told."""

    def __init__(
        self, name: str, *, ahead_s: int, secret: int = 7, limits: IdentityLimits | None = None
    ) -> None:
        self.name = name
        self.ahead = ahead_s * SECOND
        self.kept: list[Turn] = []
        self.told: list[tuple[int, bytes]] = []
        self.index = SharedIndex(
            keep=self.kept.append,
            first_handle=random.Random(name).getrandbits(50),
            secret=secret,
            limits=limits,
        )
        self.index.tell_with(self._tell)
        self.clock = 0

    @property
    def now(self) -> Instant:
        return Instant(self.ahead + self.clock)

    def _tell(self, turn: Turn) -> None:
        self.told.append((self.now - turn.at, encode_turn(turn)[2]))

    def ask(self, *said: str, headers: dict[str, str] | None = None) -> Identity:
        return self.index.identify(request(*said), headers or {}, tenant=TENANT, now=self.now)

    def answer(self, identity: Identity, text: str) -> None:
        self.index.answered(identity, Answer(text=text, is_complete=True), now=self.now)

    def hear(self, other: Replica) -> None:
        """Everything that the other told so far and now."""
        for age, data in list(other.told):
            at = Instant(self.now - age)
            assert self.index.learn(data, at=at, now=self.now, replica=other.name) is not None


def request(*said: str) -> ParsedRequest:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    body = msgspec.json.encode({"model": "m", "messages": messages})
    return parse_request(Dialect.CHAT, body, LIMITS)


@pytest.fixture
def pair() -> tuple[Replica, Replica]:
    return Replica("a", ahead_s=0), Replica("b", ahead_s=5_000)


def test_newcomers_that_another_refused_push_out_no_program_that_was_served() -> None:
    a, b = (
        Replica("a", ahead_s=0),
        Replica("b", ahead_s=5_000, limits=IdentityLimits(programs_max=4)),
    )
    served = b.ask("fix it")
    b.answer(served, "look at the file")
    for number in range(20):
        refused = a.ask(f"task {number}")
        a.index.abandoned(refused, now=a.now)
    b.hear(a)
    assert len(b.index) == 4
    assert b.ask("fix it", "look at the file", "done").program == served.program


def test_the_next_turn_is_known_where_it_comes(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    assert b.index.is_orphan(
        request("fix it", "look at the file", "done"), {}, tenant=TENANT, now=b.now
    )
    b.hear(a)
    second = b.ask("fix it", "look at the file", "done")
    assert (second.program, second.conversation) == (first.program, first.conversation)
    assert second.step == 2
    assert second.evidence is Evidence.PREFIX
    b.answer(second, "now run it")
    a.hear(b)
    third = a.ask("fix it", "look at the file", "done", "now run it", "it runs")
    assert (third.program, third.conversation, third.step) == (
        first.program,
        first.conversation,
        3,
    )


def test_an_answer_that_comes_back_shortened_is_known_there_and_not_waited_for(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    task, answer = "fix the bug that is told of below. " * 40, "I will look at the parser. " * 9
    b.hear(a)
    first = a.ask(task)
    b.hear(a)  # while it runs
    a.answer(first, answer)
    told = (task, answer[:120], "go on")
    assert b.index.is_orphan(request(*told), {}, tenant=TENANT, now=b.now)
    b.hear(a)
    assert not b.index.is_orphan(request(*told), {}, tenant=TENANT, now=b.now)
    # What holds more answers than that one may have been answered elsewhere meanwhile.
    more = request(*told, "Well.", "and now?")
    assert b.index.is_orphan(more, {}, tenant=TENANT, now=b.now)
    second = b.ask(*told)
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)


def test_without_hearing_it_is_another_program(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    assert b.ask("fix it", "look at the file", "done").program != first.program


def test_hearing_twice_late_and_out_of_order_changes_nothing(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    a.told.reverse()  # that it began comes after that it ended
    b.hear(a)
    b.hear(a)
    assert b.index.statistics().turns == 1
    second = b.ask("fix it", "look at the file", "done")
    assert second.program == first.program
    b.answer(second, "now run it")
    b.hear(a)
    assert b.ask("fix it", "look at the file", "done", "now run it", "on").step == 3


def test_what_runs_here_is_not_ended_by_what_another_says(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    first = a.ask("fix it")
    b.hear(a)
    b.told = [(0, data) for _, data in a.told]
    a.hear(b)
    a.answer(first, "look at the file")
    assert a.ask("fix it", "look at the file", "done").program == first.program


def test_requests_of_a_replica_that_died_may_be_asked_for_again(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    a.ask("fix it", "look at the file", "done")
    b.hear(a)
    b.clock += SECOND
    assert b.index.gone("a", now=b.now) == 1
    assert b.index.gone("a", now=b.now) == 0
    again = b.ask("fix it", "look at the file", "done")
    assert again.is_retry
    assert (again.program, again.step) == (first.program, 2)


def test_ids_of_one_are_never_those_of_the_other(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    seen = set()
    for number in range(200):
        for here, there in ((a, b), (b, a)):
            seen.add(here.ask(f"task {number} of {here.name}").program)
            there.hear(here)
            here.told.clear()
    assert len(seen) == 400


def test_a_thread_that_the_client_named_is_the_same_program_everywhere(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    headers = {"x-agentsched-program": "mine"}
    first = a.ask("fix it", headers=headers)
    a.answer(first, "look at the file")
    body = request("fix it", "look at the file", "done")
    assert not b.index.is_orphan(body, headers, tenant=TENANT, now=b.now)
    b.hear(a)
    second = b.ask("fix it", "look at the file", "done", headers=headers)
    assert (second.program, second.step) == (first.program, 2)


def test_garbage_is_not_learnt(pair: tuple[Replica, Replica]) -> None:
    _, b = pair
    for data in (b"", b"\x93\x01\x02", b"\xff" * 40, msgspec.msgpack.encode([1] * 36)):
        assert b.index.learn(data, at=b.now, now=b.now, replica="a") is None
    assert b.index.statistics().turns == 0


def test_another_secret_shows() -> None:
    marks = {Replica("a", ahead_s=0, secret=secret).index.secret_mark for secret in (7, 8)}
    assert len(marks) == 2


def test_open_turns_are_bounded_by_what_ends(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    for number in range(20):
        asked = a.ask(f"task {number}")
        b.hear(a)
        a.answer(asked, "a word")
        b.hear(a)
        a.told.clear()
    assert b.index.gone("a", now=b.now) == 0
    states = {turn.state for turn in a.kept}
    assert states == {TurnState.ANSWERED}


def test_a_first_prompt_is_no_orphan_and_an_unknown_tenants_history_is(
    pair: tuple[Replica, Replica],
) -> None:
    a, _ = pair
    ask = a.index.is_orphan
    later = request("fix it", "look at the file", "done")
    assert not ask(request("fix it"), {}, tenant=TENANT, now=a.now)
    assert ask(later, {}, tenant=TENANT, now=a.now)
    # Who says when it must be done has not said whose it is.
    assert ask(later, {"x-agentsched-deadline": "60"}, tenant=TENANT, now=a.now)
    assert not ask(later, {"x-agentsched-program": "p"}, tenant=TENANT, now=a.now)
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    assert not ask(later, {}, tenant=TENANT, now=a.now)
    assert ask(later, {}, tenant=TenantId("other"), now=a.now)
    assert ask(request("fix it", "another answer", "done"), {}, tenant=TENANT, now=a.now)
    a.ask("fix it", "look at the file", "done")
    # It went on already: whether this is a branch only the others may know.
    branch = request("fix it", "look at the file", "otherwise")
    assert ask(branch, {}, tenant=TENANT, now=a.now)


def test_a_turn_that_another_replica_served_meanwhile_is_missed(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    a.answer(a.ask("fix it"), "look at the file")
    b.hear(a)
    b.answer(b.ask("fix it", "look at the file", "done"), "now run it")
    third = ("fix it", "look at the file", "done", "now run it", "it runs")

    def is_missed() -> bool:
        return a.index.is_orphan(request(*third), {}, tenant=TENANT, now=a.now)

    # All that is known goes on from the first answer: the second one is on its way.
    assert is_missed()
    a.hear(b)
    assert not is_missed()
    assert a.ask(*third).step == 3


def test_an_index_that_tells_nobody_keeps_all_the_same() -> None:
    kept: list[Turn] = []
    index = SharedIndex(keep=kept.append, first_handle=0, secret=7)
    index.identify(request("fix it"), {}, tenant=TENANT, now=Instant(0))
    assert len(kept) == 1


def test_turns_that_run_elsewhere_are_bounded_and_the_first_is_forgotten(
    pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_OPEN_MAX", 2)
    a, b = pair
    for number in range(3):
        a.ask(f"task {number}")
    b.hear(a)
    assert b.index.gone("a", now=b.now) == 2
    assert not b.ask("task 0").is_retry
    assert b.ask("task 2").is_retry


def test_what_ended_before_its_replica_died_is_not_asked_for_again(
    pair: tuple[Replica, Replica],
) -> None:
    a, b = pair
    asked = a.ask("fix it")
    b.hear(a)
    [turn] = [turn for _, turn in b.index._elsewhere.values()]
    turn.state = TurnState.ANSWERED
    assert b.index.gone("a", now=b.now) == 1
    assert turn.state is TurnState.ANSWERED
    assert b.ask("fix it").program != asked.program


@pytest.mark.parametrize("end", ["gone", "cut", "dies"])
def test_what_is_asked_instead_of_anothers_request_goes_on(
    pair: tuple[Replica, Replica], end: str
) -> None:
    a, b = pair
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    second = a.ask("fix it", "look at the file", "no")
    b.hear(a)
    if end == "gone":
        a.index.abandoned(second, now=a.now)
    elif end == "cut":
        a.index.answered(second, Answer(text="I sh"), now=a.now)
    else:
        b.index.gone("a", now=b.now)
    if end != "dies":
        for _ in range(2):
            b.hear(a)
    third = b.ask("fix it", "look at the file", "something else")
    assert (third.conversation, third.lineage) == (first.conversation, Lineage.EXTENDS)


def test_who_was_taken_for_dead_and_answers_went_on(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.answer(a.ask("fix it"), "look at the file")
    second = a.ask("fix it", "look at the file", "no")
    b.hear(a)
    b.index.gone("a", now=b.now)
    a.answer(second, "Then not.")
    b.hear(a)
    assert b.ask("fix it", "look at the file", "or else").lineage is Lineage.FORKS
    assert b.ask("fix it", "look at the file", "no", "Then not.", "So?").lineage is Lineage.EXTENDS
