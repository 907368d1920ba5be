"""Names of topics: `agentsched/{cluster}/{kind}/...`. Ids are percent-encoded, for they may hold
anything, and `/`, `+` and `#` mean something to a broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import quote, unquote

ROOT: Final = "agentsched"
#: MQTT allows 65,535 bytes; no id of ours comes near this.
_TOPIC_CHARS_MAX: Final = 4_096

ToolVerb = Literal["started", "progress", "finished"]
_VERBS: Final = ("started", "progress", "finished")


@dataclass(frozen=True, slots=True)
class ToolTopic:
    """`tools/{program}/{call}/{verb}`"""

    program: str
    call_id: str
    verb: ToolVerb


@dataclass(frozen=True, slots=True)
class EngineTopic:
    """`engines/{engine}/{replica}`: what that replica has on that engine."""

    engine: str
    replica: str


@dataclass(frozen=True, slots=True)
class TenantTopic:
    """`tenants/{tenant}/{replica}`: what that replica served to that tenant."""

    tenant: str
    replica: str


@dataclass(frozen=True, slots=True)
class ReplicaTopic:
    """`replicas/{replica}`: whether it is there."""

    replica: str


@dataclass(frozen=True, slots=True)
class TurnsTopic:
    """`turns/{replica}/{slot}`: what that replica knows anew of programs; no JSON, but bytes.

    A letter that waits to be sent is replaced by a later one of the same topic; the slots keep
    turns, which are no states, from each other.
    """

    replica: str
    slot: int


Topic = ToolTopic | EngineTopic | TenantTopic | ReplicaTopic | TurnsTopic


def write_topic(cluster: str, topic: Topic) -> str:
    """The topic's name on the broker."""
    match topic:
        case ToolTopic(program, call_id, verb):
            # A call without an id has a level of its own, too: brokers allow empty ones, ACLs not.
            parts = ["tools", program, call_id or "-", verb]
        case EngineTopic(engine, replica):
            parts = ["engines", engine, replica]
        case TenantTopic(tenant, replica):
            parts = ["tenants", tenant, replica]
        case ReplicaTopic(replica):
            parts = ["replicas", replica]
        case TurnsTopic(replica, slot):
            parts = ["turns", replica, str(slot)]
    return "/".join([ROOT, _quoted(cluster), *(_quoted(part) for part in parts)])


def read_topic(cluster: str, name: str) -> Topic | None:
    """The topic that `write_topic` made this from; None for a foreign or a malformed one."""
    prefix = f"{ROOT}/{_quoted(cluster)}/"
    if not name.startswith(prefix) or len(name) > _TOPIC_CHARS_MAX:
        return None
    try:
        kind, *ids = (unquote(part, errors="strict") for part in name[len(prefix) :].split("/"))
    except UnicodeDecodeError:
        return None
    if not all(ids):
        return None
    match kind, ids:
        case "tools", [program, call, verb] if verb in _VERBS:
            return ToolTopic(program, "" if call == "-" else call, cast("ToolVerb", verb))
        case "engines", [engine, replica]:
            return EngineTopic(engine, replica)
        case "tenants", [tenant, replica]:
            return TenantTopic(tenant, replica)
        case "replicas", [replica]:
            return ReplicaTopic(replica)
        case "turns", [replica, slot] if slot.isdecimal() and len(slot) < 6:
            return TurnsTopic(replica, int(slot))
        case _:
            return None


def subscriptions(cluster: str, *, with_turns: bool = False) -> dict[str, int]:
    """What a replica listens to, with the quality of service that it asks for.

    Tools at least once: a lost end loses a warm-up, one that comes twice is ignored. Replicas at
    least once, for their last wills. Engines and tenants at most once: each message tells the whole
    state, and the next one repairs what was lost. Turns at most once: the store has them as well.
    """
    base = f"{ROOT}/{_quoted(cluster)}"
    turns = {f"{base}/turns/+/+": 0} if with_turns else {}
    return turns | {
        f"{base}/tools/+/+/+": 1,
        f"{base}/replicas/+": 1,
        f"{base}/engines/+/+": 0,
        f"{base}/tenants/+/+": 0,
    }


def _quoted(part: str) -> str:
    return quote(part, safe="", errors="surrogatepass")
