"""What is said on the bus. JSON; unknown fields are left alone, so that newer senders are heard."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentsched.bus.topics import EngineTopic, ReplicaTopic, TenantTopic, ToolTopic, Topic

SCHEMA_VERSION: Final = 1
#: Larger ones are no messages of ours.
PAYLOAD_BYTES_MAX: Final = 16_384

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Seconds = Annotated[float, Field(ge=0, le=7 * 86_400)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class ToolMessage(_Message):
    """A tool call started, goes on, or finished; which one says the topic."""

    tool: str = Field(
        default="", max_length=256, description="its name, where the model's call id is not known"
    )
    expected_s: _Seconds | None = Field(
        default=None, description="seconds that it will still take (started, progress)"
    )
    took_s: _Seconds | None = Field(default=None, description="seconds that it took (finished)")
    is_error: bool = Field(default=False, description="it failed (finished)")


class EngineMessage(_Message):
    """What one replica has on an engine at this moment. All of it, each time."""

    running_steps: _Count = Field(description="steps sent there that have not ended")
    resident_tokens: _Count = Field(
        description="KV tokens there that somebody probably comes back for, shared ones once"
    )


class TenantMessage(_Message):
    """What one replica served to a tenant so far. All of it, each time, so that neither loss nor
    repetition matters."""

    epoch: str = Field(min_length=1, max_length=64, description="which life of the replica counts")
    uncached_tokens: _Count = Field(description="prompt tokens that had to be computed")
    output_tokens: _Count
    idle_token_s: _Count = Field(
        default=0, description="KV tokens that its paused conversations kept, times seconds"
    )
    waits: bool = Field(default=False, description="a step of it waits there now")
    age_s: _Seconds | None = Field(
        default=None, description="all of it was served in the last so many seconds"
    )


class ReplicaMessage(_Message):
    """Retained: whether a replica is there. Its last will says `gone`."""

    state: Literal["up", "gone"]
    epoch: str = Field(min_length=1, max_length=64)
    url: str = Field(default="", max_length=512)
    version: str = Field(default="", max_length=64)
    connections: _Count = Field(
        default=0, description="how often it connected; each time it has forgotten what it heard"
    )


Message = ToolMessage | EngineMessage | TenantMessage | ReplicaMessage

_KINDS: Final[dict[type, type[_Message]]] = {
    ToolTopic: ToolMessage,
    EngineTopic: EngineMessage,
    TenantTopic: TenantMessage,
    ReplicaTopic: ReplicaMessage,
}


def read_message(topic: Topic, payload: bytes) -> Message | None:
    """The message of this topic; None where it is none."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        return None
    try:
        found = _KINDS[type(topic)].model_validate_json(payload or b"{}")
    except ValidationError:
        return None
    assert isinstance(found, ToolMessage | EngineMessage | TenantMessage | ReplicaMessage)
    return found


def write_message(message: Message) -> bytes:
    """The message's bytes."""
    return message.model_dump_json(exclude_none=True).encode()


def schemas() -> dict[str, Any]:
    """JSON Schema of each kind of message, by the kind's topic."""
    names = ("tools", "engines", "tenants", "replicas")
    return {
        name: kind.model_json_schema() for name, kind in zip(names, _KINDS.values(), strict=True)
    }
