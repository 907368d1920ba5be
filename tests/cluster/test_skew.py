"""Versions that meet: what one side may send that the other does not know, and may leave out.

The rule on every wire of ours: unknown fields are ignored, and a field that was added after the
first release has a default. So whatever is required today is written down here, and stays.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentsched.bus.messages import read_message
from agentsched.bus.topics import EngineTopic, ReplicaTopic, TenantTopic, ToolTopic
from agentsched.kernel import JournalEntry, decode, encode
from agentsched.model import (
    ConversationId,
    Instant,
    ProgramId,
    StepArrived,
    StepId,
    TenantId,
)
from agentsched.proxy.identity.keeping import KeptTurn, decode_turn
from agentsched_adapters.vllm_plugin import wire

REQUIRED = {
    "PinRequest": "conversation ttl_s",
    "ExtendRequest": "conversation ttl_s",
    "ReleaseRequest": "",
    "PinAnswer": "outcome",
    "ReleaseAnswer": "released",
    "State": "engines",
    "EngineState": "engine plugin vllm is_active failures block_size blocks free_blocks"
    " pinned_blocks reclaimable_blocks pinned_blocks_max running waiting",
    "PinState": "pin conversation program tenant value is_grace tokens ends_in_s",
    "ProgramState": "program conversations",
    "OrderState": "policy waiting is_ordered cost_us cost_us_max fallbacks_total forced_total",
}


SAMPLES: dict[str, Any] = {
    **dict.fromkeys(("conversation", "pin", "program", "tenant", "policy", "plugin", "vllm"), "x"),
    **dict.fromkeys(("is_active", "is_grace", "is_ordered"), True),
    **dict.fromkeys(("ttl_s", "value", "ends_in_s", "cost_us", "cost_us_max"), 1.5),
    "outcome": "accepted",
    "engine": "7",
    "engines": (),
    "failures": {},
    "conversations": {"c": 64},
}


@pytest.mark.parametrize("name", REQUIRED)
def test_the_plugins_wire_requires_what_it_always_did(name: str) -> None:
    kind = getattr(wire, name)
    required = [f.name for f in msgspec.structs.fields(kind) if f.required]
    assert sorted(required) == sorted(REQUIRED[name].split())


@pytest.mark.parametrize("name", REQUIRED)
def test_a_newer_side_may_say_more(name: str) -> None:
    kind = getattr(wire, name)
    said = {key: SAMPLES.get(key, 1) for key in REQUIRED[name].split()}
    body = msgspec.json.encode({**said, "of_tomorrow": {"nested": [1, 2]}})
    read = msgspec.json.decode(body, type=kind)
    assert all(getattr(read, key) == value for key, value in said.items())


@pytest.mark.parametrize(
    ("topic", "body"),
    [
        (ToolTopic("p", "c", "finished"), b'{"tomorrow": 1}'),
        (EngineTopic("e", "r"), b'{"running_steps": 1, "resident_tokens": 2, "tomorrow": 1}'),
        (
            TenantTopic("t", "r"),
            b'{"epoch": "x", "uncached_tokens": 1, "output_tokens": 2, "tomorrow": []}',
        ),
        (ReplicaTopic("r"), b'{"state": "up", "epoch": "x", "tomorrow": null}'),
    ],
)
def test_replicas_of_two_versions_hear_each_other(topic: Any, body: bytes) -> None:
    assert read_message(topic, body) is not None


def test_turns_of_another_version() -> None:
    fields = [
        *(7, 1, "t", "p", False, "", None, 1, 0, 0, "p#0", "", False, b"h", False, "", b"f"),
        *(b"prompt", b"head", b"answer", (), b"", "", 1, 1, "step", 10, 0, b"", 0, (), (), ""),
    ]
    kept = [
        fields,  # before needles were kept
        [*fields, ()],  # before the turn was that it goes on from
        [*fields, (), 6],  # before other forms of its answer were kept
        [*fields, (), 6, (b"other",), b"begun", 1],
        [*fields, (), 6, (b"other",), b"begun", 1, "of tomorrow"],
    ]
    for data in map(msgspec.msgpack.encode, kept):
        turn = decode_turn(data)
        assert isinstance(turn, KeptTurn)
        assert (turn.program, turn.answer) == ("p", b"answer")


def test_journals_of_other_versions() -> None:
    event = StepArrived(
        step=StepId("s"),
        program=ProgramId("p"),
        conversation=ConversationId("p#0"),
        tenant=TenantId("t"),
        prompt_tokens=10,
    )
    line = encode(JournalEntry(seq=0, now=Instant(1), event=event, commands=()))
    later = [b',"home":null,"home_tokens":0', b',"goes_on":false']
    before = line
    for fields in reversed(later):  # the field that came last went out first
        assert fields in before
        before = before.replace(fields, b"")
        assert decode(before).event == event
    after = line.replace(b'"goes_on":false', b'"goes_on":false,"of_tomorrow":[1]')
    assert after != line
    assert decode(after).event == event
