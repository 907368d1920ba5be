"""What the control endpoints take and give, as JSON: shared by engine, API server and proxy.

Unknown fields are ignored, so that either side may be newer than the other.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: Where the routes lie. Under `/v1`, because that is what vLLM's API key guards.
PATH: Final = "/v1/agentsched"

#: Names in `vllm_xargs`, all strings but the last, by which a request says whose it is.
XARG_PROGRAM: Final = "agentsched_program"
XARG_CONVERSATION: Final = "agentsched_conversation"
XARG_TENANT: Final = "agentsched_tenant"
#: Seconds that its blocks should stay after it ended, in place of the operator's grace; 0 for none.
XARG_GRACE: Final = "agentsched_grace_s"

#: Longer identifiers are refused (pins) or ignored (requests).
ID_CHARS_MAX: Final = 512


class PinRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Keep the KV of a conversation's latest step for `ttl_s` seconds; `value` ranks pins.

    With `tokens`, only the beginning that holds so many, in whole blocks.
    """

    conversation: str
    ttl_s: float
    value: float = 0.0
    pin: str = ""
    program: str = ""
    tenant: str = ""
    tokens: int | None = None


class ExtendRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Let a live pin end `ttl_s` seconds from now; with a `value`, change that as well."""

    conversation: str
    ttl_s: float
    value: float | None = None


class ReleaseRequest(msgspec.Struct, kw_only=True, frozen=True):
    """End pins: one by its id, a conversation's, all of a program, or all there are.

    An id with its conversation ends that one alone: several proxies, and one that was started
    again, give the same ids.
    """

    pin: str = ""
    conversation: str = ""
    program: str = ""
    everything: bool = False


class PinAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """`outcome` is accepted, clipped or refused; `ttl_s` and `tokens` are what was granted."""

    outcome: str
    ttl_s: float = 0.0
    tokens: int = 0


class ReleaseAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """How many pins were ended."""

    released: int


class PinState(msgspec.Struct, kw_only=True, frozen=True):
    """One live pin."""

    pin: str
    conversation: str
    program: str
    tenant: str
    value: float
    is_grace: bool
    tokens: int
    ends_in_s: float


class ProgramState(msgspec.Struct, kw_only=True, frozen=True):
    """What of a program's latest prompts and answers is in the cache, pinned or not."""

    program: str
    conversations: dict[str, int]


class OrderState(msgspec.Struct, kw_only=True, frozen=True):
    """The waiting queue. `cost_us` is what ordering takes per engine step, in the median."""

    policy: str
    waiting: int
    is_ordered: bool
    cost_us: float
    cost_us_max: float
    fallbacks_total: int
    forced_total: int


class EngineState(msgspec.Struct, kw_only=True, frozen=True):
    """One engine process. Blocks count once however many pins want them.

    `reclaimable_blocks` are those that only pins hold: as good as free to any request.
    """

    engine: str
    plugin: str
    vllm: str
    is_active: bool
    failures: dict[str, int]
    block_size: int
    blocks: int
    free_blocks: int
    pinned_blocks: int
    reclaimable_blocks: int
    pinned_blocks_max: int
    running: int
    waiting: int
    pins: tuple[PinState, ...] = ()
    programs: tuple[ProgramState, ...] = ()
    #: In their place where that alone is asked: whether anything of a conversation is cached still.
    cached: dict[str, bool] = {}
    pins_granted_total: int = 0
    pins_ended_total: dict[str, int] = {}
    shrunk_blocks_total: int = 0
    order: OrderState | None = None


class State(msgspec.Struct, kw_only=True, frozen=True):
    """All engine processes behind one API server."""

    engines: tuple[EngineState, ...]
