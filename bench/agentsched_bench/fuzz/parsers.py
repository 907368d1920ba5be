"""`python -m agentsched_bench.fuzz.parsers`: everything that reads other people's bytes, fired at.

In one process and without a network, so that a minute is worth some hundred thousand inputs. An
input is a good one, twisted by a seed: as JSON (a value is replaced, left out or doubled) or as
bytes. Each target says what must hold of any input at all; what raises anything else than the error
that it is documented to raise is a finding, printed with its target and seed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched.bus.messages import read_message
from agentsched.bus.topics import EngineTopic, ReplicaTopic, TenantTopic, ToolTopic, read_topic
from agentsched.kernel import JournalError, decode
from agentsched.model import Instant, TenantId, WireError
from agentsched.proxy.answer import Answer
from agentsched.proxy.answers import read_answer
from agentsched.proxy.identity import IdentityIndex, IdentityLimits
from agentsched.proxy.identity.keeping import encode_turn
from agentsched.proxy.identity.records import Turn
from agentsched.proxy.identity.sharing import SharedIndex
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.splicing import SCHEDULER_FIELDS, forward_body
from agentsched.proxy.sse import SseTap
from agentsched.proxy.wire import WireLimits, parse_request
from agentsched_bench.chaos.dialects import BY_PATH
from agentsched_bench.fuzz.corpus import JOURNAL, MESSAGES, SESSIONS, TOPICS
from agentsched_bench.fuzz.twist import GOOD
from agentsched_bench.workload.importers import import_trace
from agentsched_bench.workload.trace import read_trace

_DIALECTS: Final = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
}
_WIRE: Final = WireLimits(body_bytes_max=1 << 20, messages_max=200)
_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    1e308,
    2**70,
    "",
    "x" * 300,
    "\u0000\u2028\U0001f600",
    [],
    {},
    [[[[[]]]]],
    {"": {"": {}}},
    ["text", None, 7],
)
_TOKENS: Final = (
    b"null NaN 1e999 -0 18446744073709551616 \\ud800 \xff \xc3 [[[[ }} \r\n\n \r data: : , "
    b"data: [DONE] event: \\u0000 \xef\xbb\xbf"
).split(b" ")
_PUT: Final = {"priority": 3, "session_id": "s", "vllm_xargs": {"agentsched_program": "p"}}
_TENANTS: Final = ("default", "red", "blue")


class Dice(random.Random):
    """The chance of one input."""

    def twist(self, value: Any) -> Any:
        """The value with one place in it changed."""
        if isinstance(value, dict) and value and self.random() < 0.85:
            key = self.choice(sorted(value))
            match self.randrange(8):
                case 0:
                    return {k: v for k, v in value.items() if k != key}
                case 1:
                    return {**value, key: self.choice(_ODD)}
                case 2:
                    return {**value, self.choice(sorted(value)): value[key]}
                case _:
                    return {**value, key: self.twist(value[key])}
        if isinstance(value, list) and value and self.random() < 0.85:
            place = self.randrange(len(value))
            match self.randrange(6):
                case 0:
                    return [*value[:place], *value[place + 1 :]]
                case 1:
                    return [*value[:place], value[place], *value[place:]]
                case _:
                    return [*value[:place], self.twist(value[place]), *value[place + 1 :]]
        return self.choice(_ODD)

    def mangle(self, data: bytes) -> bytes:
        """The bytes with one place in them changed."""
        at = self.randrange(len(data) + 1)
        end = min(len(data), at + self.randrange(1, 40))
        match self.randrange(6):
            case 0:
                return data[:at] + bytes((self.randrange(256),)) + data[at + 1 :]
            case 1:
                return data[:at] + data[end:]
            case 2:
                return data[:end] + data[at:]
            case 3:
                return data[:at]
            case _:
                return data[:at] + self.choice(_TOKENS) + data[at:]

    def json(self, value: Any) -> bytes:
        """A document: twisted, then often mangled."""
        for _ in range(self.choice((0, 1, 1, 2, 4))):
            value = self.twist(value)
        data = json.dumps(value, ensure_ascii=self.random() < 0.5).encode(errors="replace")
        return self.bytes(data) if self.random() < 0.3 else data

    def bytes(self, data: bytes) -> bytes:
        for _ in range(self.choice((1, 1, 2, 5))):
            data = self.mangle(data)
        return data


Target = Callable[[Dice], str]


def _request(dice: Dice) -> tuple[str, ParsedRequest | None]:
    path = dice.choice(sorted(_DIALECTS))
    try:
        return path, parse_request(_DIALECTS[path], dice.json(GOOD[path]), _WIRE)
    except WireError:
        return path, None


def splicing(dice: Dice) -> str:
    """What an engine gets is JSON, and what nobody changed stays as it was, to the byte."""
    _, request = _request(dice)
    if request is None:
        return "refused"
    sent = msgspec.json.decode(forward_body(request, fields=_PUT), type=dict[str, msgspec.Raw])
    ours = {*SCHEDULER_FIELDS, *_PUT, "stream_options"}
    theirs = {name: bytes(raw) for name, raw in request.fields.items() if name not in ours}
    assert {name: bytes(raw) for name, raw in sent.items() if name not in ours} == theirs
    assert bytes(sent["priority"]) == b"3"
    return "spliced"


def streams(dice: Dice) -> str:
    """What is relayed and read depends on the stream alone, not on how the network cut it."""
    path = dice.choice(sorted(BY_PATH))
    said = BY_PATH[path]
    events = [*said.opening(), *(said.word(f"w{n} ") for n in range(3))]
    events += said.closing("w0 w1 w2 ", (10, 3))
    if dice.random() < 0.2:
        events.insert(dice.randrange(len(events)), said.error())
    data = dice.bytes(b"".join(events))
    hides = dice.random() < 0.5
    taps = [SseTap(_DIALECTS[path], hide_usage=hides, event_bytes_max=4_096) for _ in range(2)]
    whole = taps[0].feed(data) + taps[0].close()
    parts, at = [], 0
    while at < len(data):
        end = at + dice.randrange(1, 64)
        parts.append(taps[1].feed(data[at:end]))
        at = end
    assert b"".join(parts) + taps[1].close() == whole
    answer = taps[0].answer()
    assert answer == taps[1].answer()
    if answer.is_given_up:  # its engine gave it up: the event that ends it is kept back
        assert len(whole) < len(data)
    elif not hides:
        assert whole == data
    return "complete" if answer.is_complete else "incomplete"


def answers(dice: Dice) -> str:
    """A whole answer is read or not; nothing raises."""
    path = dice.choice(sorted(BY_PATH))
    body = dice.json(json.loads(BY_PATH[path].whole("some words", (10, 3))))
    return "complete" if read_answer(_DIALECTS[path], body).is_complete else "incomplete"


class Recognition:
    """Whatever is asked, everybody keeps to its own, and the index to its ceilings."""

    def __init__(self) -> None:
        limits = IdentityLimits(programs_max=50, turns_max=400, turns_per_program_max=20)
        self._limits = limits
        self._index = IdentityIndex(secret=7, limits=limits)
        self._now = 0

    def __call__(self, dice: Dice) -> str:
        _, request = _request(dice)
        if request is None:
            return "refused"
        self._now += dice.randrange(10**10)
        now = Instant(self._now)
        tenant = TenantId(dice.choice(_TENANTS))
        name = dice.choice(("x-agentsched-program", "session-id", "x-session-id", "baggage"))
        headers = {name: dice.choice(("p", "", "x" * 999, "a/b#c", "\xe9", "session.id=9"))}
        headers = headers if dice.random() < 0.3 else {}
        identity = self._index.identify(request, headers, tenant=tenant, now=now)
        assert identity.tenant == tenant
        owner = identity.program.partition("/")[0] if "/" in identity.program else "default"
        assert owner == tenant
        if dice.random() < 0.3:
            self._index.abandoned(identity, now=now)
        else:
            answer = Answer(text=dice.choice(("", "some words")), is_complete=dice.random() < 0.8)
            self._index.answered(identity, answer, now=now)
        seen = self._index.statistics()
        assert seen.programs <= self._limits.programs_max
        assert seen.turns <= max(self._limits.turns_max, self._limits.turns_per_program_max)
        return identity.evidence.value


class Turns:
    """Turns of other replicas are learnt or dropped."""

    def __init__(self) -> None:
        told: list[Turn] = []
        limits = IdentityLimits(programs_max=50)
        index = SharedIndex(keep=told.append, first_handle=1 << 30, secret=7, limits=limits)
        for path in sorted(_DIALECTS):
            request = parse_request(_DIALECTS[path], json.dumps(GOOD[path]).encode(), _WIRE)
            asked = index.identify(request, {}, tenant=TenantId("red"), now=Instant(10))
            index.answered(asked, Answer(text="words", is_complete=True), now=Instant(20))
        self._told = [encode_turn(turn)[2] for turn in told]
        self._index = SharedIndex(keep=lambda _: None, first_handle=1, secret=7, limits=limits)
        self._now = 0

    def __call__(self, dice: Dice) -> str:
        data = good = dice.choice(self._told)
        if dice.random() < 0.5:
            with contextlib.suppress(OverflowError):  # an integer that this format cannot hold
                data = msgspec.msgpack.encode(dice.twist(msgspec.msgpack.decode(good)))
        else:
            data = dice.bytes(good)
        self._now += 1_000
        now = Instant(self._now)
        learnt = self._index.learn(data, at=now, now=now, replica="other")
        assert len(self._index) <= 50
        return "dropped" if learnt is None else "learnt"


def messages(dice: Dice) -> str:
    """A topic or a payload of the bus is one of ours, or none."""
    name = dice.choice(TOPICS)
    if dice.random() < 0.7:
        name = dice.bytes(name.encode()).decode(errors="replace")
    topic = read_topic("c", name)
    kinds = (ToolTopic("p", "c", "finished"), EngineTopic("e", "r"), TenantTopic("t", "r"))
    to = dice.choice((*kinds, ReplicaTopic("r")))
    message = read_message(to, dice.json(dice.choice(MESSAGES)))
    return f"{'a' if topic else 'no'} topic, {'a' if message else 'no'} message"


def journals(dice: Dice) -> str:
    """A line of a journal is an entry, or a JournalError."""
    try:
        decode(dice.json(json.loads(dice.choice(JOURNAL))))
    except JournalError:
        return "refused"
    return "read"


class Traces:
    """Any file is imported in part, whole or not at all; what is written can be read again."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "in.jsonl"
        self._out = folder / "out.jsonl"

    def __call__(self, dice: Dice) -> str:
        name = dice.choice(sorted(SESSIONS))
        documents: Sequence[Any] = SESSIONS[name]
        self._file.write_bytes(b"\n".join(dice.json(one) for one in documents))
        self._out.unlink(missing_ok=True)
        form = name if dice.random() < 0.7 else "auto"
        report = import_trace([self._file], self._out, format_name=form)
        if not report.recordings:
            return "nothing"
        assert len(list(read_trace(self._out))) == report.recordings
        return f"{name} read"


def targets(folder: Path) -> dict[str, Target]:
    """All of them, by name. `folder` is theirs."""
    return {
        "splicing": splicing,
        "streams": streams,
        "answers": answers,
        "recognition": Recognition(),
        "turns": Turns(),
        "messages": messages,
        "journals": journals,
        "traces": Traces(folder),
    }


def fire(name: str, target: Target, *, seed: int, inputs: int, until: float) -> Counter[str]:
    """Try inputs from `seed` on; what became of them.

    Raises:
        Exception: an input was a finding; its target and seed have been printed.
    """
    ends: Counter[str] = Counter()
    for number in range(seed, seed + inputs):
        if time.monotonic() > until:
            break
        try:
            ends[target(Dice(number))] += 1
        except BaseException as error:
            if isinstance(error, Exception):
                print(f"{name} with seed {number}: {type(error).__name__}: {error}")
            raise
    return ends


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="agentsched_bench.fuzz.parsers", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="where to begin")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--target", help="only this one")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="agentsched-fuzz-") as folder:
        for name, target in targets(Path(folder)).items():
            if given.target not in (None, name):
                continue
            until = time.monotonic() + given.seconds
            try:
                ends = fire(name, target, seed=given.seed, inputs=1 << 60, until=until)
            except Exception as error:
                failed = True
                with contextlib.suppress(AttributeError):
                    error.add_note(name)
                continue
            told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
            print(f"{name:12} {ends.total():9} inputs: {told}", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
