"""Programs that outlive the process: known again after a restart, with ids and without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentsched.model import Instant, Lineage, Nanos, Prefix, StepId, TenantId
from agentsched.model.time import MINUTE
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity import Evidence, Identity, IdentityIndex, IdentityLimits
from agentsched.proxy.identity.index import BYTES_PER_TOKEN
from agentsched.proxy.identity.keeping import KeptIndex, encode_turn
from agentsched.proxy.identity.records import Turn
from agentsched.proxy.request import ParsedRequest
from agentsched_bench.clients.acting import Wire, result, said, system, user
from agentsched_bench.clients.evaluate import Score, replay
from agentsched_bench.clients.readers import read_client

CLIENTS = Path(__file__).parents[3].parent / "shared" / "clients"
SECRET = 42
LONG = "I looked at the parser and the bug is in the second branch, where the sign is lost."


class Disk:
    """What a store would hold: the latest bytes of each turn, by handle."""

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        self.steps: dict[int, str] = {}
        self.starts = 0

    def keep(self, turn: Turn) -> None:
        handle, _, data = encode_turn(turn, step_id=self.steps.get(turn.handle, ""))
        self.kept[handle] = data

    def start(self, limits: IdentityLimits | None = None) -> KeptIndex:
        self.starts += 1
        return KeptIndex(
            secret=SECRET, keep=self.keep, first_handle=self.starts << 32, limits=limits
        )

    def restart(self, *, now: Instant) -> tuple[KeptIndex, dict[int, StepId]]:
        index = self.start()
        return index, index.bring_back([d for _, d in sorted(self.kept.items())], now=now)


class Restarting(IdentityIndex):
    """An index whose process ends before every single request."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.current: KeptIndex = self.disk.start()

    def identify(
        self,
        request: ParsedRequest,
        headers: Mapping[str, str],
        *,
        tenant: TenantId,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
        is_dry: bool = False,
    ) -> Identity:
        self.current, _ = self.disk.restart(now=now)
        return self.current.identify(request, headers, tenant=tenant, now=now)

    def answered(
        self,
        identity: Identity,
        answer: Answer,
        *,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
    ) -> Prefix | None:
        return self.current.answered(identity, answer, now=now)

    def abandoned(self, identity: Identity, *, now: Instant) -> None:
        self.current.abandoned(identity, now=now)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def wire(disk: Disk) -> Wire:
    wire = Wire()
    wire.index = disk.start()
    return wire


def restart(wire: Wire, disk: Disk) -> dict[int, StepId]:
    wire.seconds += 5
    wire.index, unanswered = disk.restart(now=wire.now)
    return unanswered


def test_a_chat_without_ids_goes_on(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the parser")]
    first = wire.chat(prompt)
    wire.answer(first, calls=[("call_a8f3e2", "bash", '{"cmd": "ls"}')])
    restart(wire, disk)
    prompt += [said("", ("call_a8f3e2", "bash", '{"cmd":"ls"}')), result("call_a8f3e2")]
    second = wire.chat(prompt)
    assert (second.program, second.conversation) == (first.program, first.conversation)
    assert (second.step, second.lineage) == (2, Lineage.EXTENDS)
    assert second.evidence is Evidence.CALL_ID
    wire.answer(second, LONG)
    restart(wire, disk)
    third = wire.chat([*prompt, said(LONG), user("and now the tests")])
    assert (third.program, third.step) == (first.program, 3)


def test_prefixes_have_the_names_that_engines_hold(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the parser")]
    first = wire.chat(prompt)
    wire.answer(first, LONG)
    restart(wire, disk)
    second = wire.chat([*prompt, said(LONG), user("more")])
    assert {p.prefix for p in first.prefixes} <= {p.prefix for p in second.prefixes}


@pytest.mark.parametrize(
    ("headers", "evidence"),
    [
        ({"x-agentsched-program": "run-7"}, Evidence.OURS),
        ({"x-claude-code-session-id": "7c9e6679-7425-40de"}, Evidence.NATIVE),
        ({"x-session-id": "s-1"}, Evidence.SESSION_ID),
    ],
)
def test_named_programs_go_on(
    wire: Wire, disk: Disk, headers: dict[str, str], evidence: Evidence
) -> None:
    first = wire.chat([user("a")], headers=headers)
    wire.answer(first, LONG)
    restart(wire, disk)
    second = wire.chat([user("a"), said(LONG), user("b")], headers=headers)
    assert first.evidence is second.evidence is evidence
    assert (second.program, second.conversation, second.step) == (
        first.program,
        first.conversation,
        2,
    )


def test_a_response_id_is_known_again(wire: Wire, disk: Disk) -> None:
    first = wire.send({"model": "m", "input": "hello"}, api="responses")
    wire.answer(first, LONG, response_id="resp_1")
    restart(wire, disk)
    body = {"model": "m", "input": "more", "previous_response_id": "resp_1"}
    second = wire.send(body, api="responses")
    assert (second.program, second.step) == (first.program, 2)
    assert second.evidence is Evidence.RESPONSE_ID


def test_messages_and_completions_go_on(wire: Wire, disk: Disk) -> None:
    asked: list[Any] = [user("hello there")]
    first = wire.send({"model": "m", "max_tokens": 9, "messages": asked}, api="messages")
    wire.answer(first, LONG)
    text = "Once upon a time there was a parser. " * 40
    other = wire.send({"model": "m", "prompt": text}, api="completions")
    wire.answer(other, " It had a bug.")
    restart(wire, disk)
    asked += [said(LONG), user("go on")]
    second = wire.send({"model": "m", "max_tokens": 9, "messages": asked}, api="messages")
    assert second.program == first.program
    again = wire.send({"model": "m", "prompt": text + " It had a bug. Then"}, api="completions")
    assert again.program == other.program != first.program


def test_equal_first_prompts_are_not_merged_by_a_restart(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix it")]
    first = wire.chat(prompt)
    wire.answer(first, LONG)
    restart(wire, disk)
    second = wire.chat(prompt)
    assert second.program != first.program
    wire.answer(second, "Another answer, of more than the forty-eight signs it takes.")
    restart(wire, disk)
    assert wire.chat([*prompt, said(LONG), user("x")]).program == first.program


def test_names_are_never_given_twice(wire: Wire, disk: Disk) -> None:
    seen = set()
    for number in range(4):
        identity = wire.chat([user(f"task {number}")])
        wire.answer(identity, LONG)
        seen.add(identity.program)
        restart(wire, disk)
    assert len(seen) == 4


def test_a_request_without_an_answer_is_retried(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the parser")]
    first = wire.chat(prompt)
    disk.steps[first.turn] = "step-1"
    wire.index._keep(wire.index._programs[first.program].turns[-1])  # type: ignore[attr-defined]
    unanswered = restart(wire, disk)
    assert unanswered == {first.turn: StepId("step-1")}
    again = wire.chat(prompt)
    assert again.is_retry
    assert (again.program, again.step, again.retries) == (first.program, 1, first.turn)
    # A second restart does not bring back what was asked again.
    restart(wire, disk)
    third = wire.chat(prompt)
    assert third.retries == again.turn


def test_an_answered_request_is_not_retried(wire: Wire, disk: Disk) -> None:
    identity = wire.chat([user("a")])
    wire.answer(identity, LONG)
    assert restart(wire, disk) == {}


def test_an_abandoned_turn_frees_the_one_before(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix")]
    first = wire.chat(prompt)
    wire.answer(first, LONG)
    second = wire.chat([*prompt, said(LONG), user("no, wrong")])
    wire.abandon(second)
    restart(wire, disk)
    third = wire.chat([*prompt, said(LONG), user("something else")])
    assert (third.program, third.conversation) == (first.program, first.conversation)
    assert third.lineage is Lineage.EXTENDS


def test_the_cookie_is_known_again(wire: Wire, disk: Disk) -> None:
    first = wire.chat([user("a")])
    wire.answer(first, LONG)
    cookie = wire.index.cookie(first)
    restart(wire, disk)
    second = wire.chat([user("quite another text")], headers={"x-codex-turn-state": cookie})
    assert second.program == first.program


def test_tenants_stay_apart(wire: Wire, disk: Disk) -> None:
    first = wire.chat([user("a")], tenant="one")
    wire.answer(first, calls=[("call_77aa99bb", "bash", "{}")])
    restart(wire, disk)
    history = [user("a"), said("", ("call_77aa99bb", "bash", "{}")), result("call_77aa99bb")]
    assert wire.chat(history, tenant="two").program != first.program
    assert wire.chat(history, tenant="one").program == first.program


def test_no_text_is_kept(wire: Wire, disk: Disk) -> None:
    secret, answer = "the launch code is 0000", "so it is zero zero zero zero, I see"
    identity = wire.chat([system(secret), user(secret * 3)])
    wire.answer(identity, answer, calls=[("call_9", "bash", '{"cmd": "launch it now"}')])
    text = wire.send({"model": "m", "prompt": secret * 90}, api="completions")
    wire.answer(text, answer)
    everything = b"".join(disk.kept.values())
    for words in (b"launch", b"code is", b"zero zero", b"0000"):
        assert words not in everything


def test_limits_hold_while_programs_come_back(disk: Disk) -> None:
    wire = Wire()
    wire.index = disk.start()
    for number in range(8):
        wire.answer(wire.chat([user(f"task {number}")]), LONG)
    index = disk.start(IdentityLimits(programs_max=3))
    index.bring_back([d for _, d in sorted(disk.kept.items())], now=wire.now)
    assert len(index) == 3
    index.expire(now=Instant(wire.now + Nanos(120 * MINUTE)))
    assert len(index) == index.statistics().turns == 0


def test_bytes_of_another_version_are_left_out(disk: Disk) -> None:
    index = disk.start()
    assert index.bring_back([b"", b"\x01", b"not msgpack"], now=Instant(0)) == {}
    assert len(index) == 0


@pytest.mark.slow
@pytest.mark.traces
@pytest.mark.skipif(not CLIENTS.is_dir(), reason="the recorded clients are not beside us")
@pytest.mark.parametrize("with_ids", [True, False])
def test_recorded_clients_are_known_though_the_proxy_restarts_before_each_request(
    with_ids: bool,
) -> None:
    total = Score(client="all")
    for path in sorted(CLIENTS.glob("*.jsonl.gz")):
        score = replay(read_client(path), Restarting(), with_ids=with_ids)
        assert score.merged == 0, (path.name, score.notes)
        if with_ids:
            assert score.steps[0] == score.steps[1], (path.name, score.notes)
        total.requests += score.requests
        total.steps = (total.steps[0] + score.steps[0], total.steps[1] + score.steps[1])
        total.conversations = (
            total.conversations[0] + score.conversations[0],
            total.conversations[1] + score.conversations[1],
        )
    assert total.requests > 500
    # Every step that goes on from an answer is; what joins by a text alone is not (see `keeping`).
    assert total.steps[0] / total.steps[1] > 0.98
