"""The affinity cookie: a token that names a conversation to a client that brings it back.

Codex echoes the response header `x-codex-turn-state` on every later request of its turn. A token
can be neither guessed nor forged, for it is keyed, and it counts for its own tenant only.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from agentsched.model import ConversationId, ProgramId, TenantId

TURN_STATE: Final = "x-codex-turn-state"
#: More are not remembered; who brings back one that was forgotten is recognised otherwise.
_TOKENS_MAX: Final = 20_000
_TOKEN_BYTES: Final = 15


def takes_cookies(headers: Mapping[str, str]) -> bool:
    """Whether the client with these headers (lower-case names) is Codex, which echoes them."""
    return "x-codex-turn-metadata" in headers or any(
        headers.get(name, "").lower().startswith("codex") for name in ("originator", "user-agent")
    )


class Cookies:
    """Tokens that were handed out, the least used first."""

    def __init__(self, *, secret: int) -> None:
        self._key = secret.to_bytes(8)
        self._known: OrderedDict[tuple[TenantId, str], tuple[ProgramId, ConversationId]] = (
            OrderedDict()
        )

    def __len__(self) -> int:
        return len(self._known)

    def issue(self, tenant: TenantId, program: ProgramId, conversation: ConversationId) -> str:
        """The token of a conversation; always the same for the same secret."""
        text = f"{tenant}\0{conversation}".encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._key, text, "sha256")[:_TOKEN_BYTES]
        token = urlsafe_b64encode(digest).decode()
        self._known[tenant, token] = program, conversation
        self._known.move_to_end((tenant, token))
        if len(self._known) > _TOKENS_MAX:
            self._known.popitem(last=False)
        return token

    def find(self, tenant: TenantId, token: str) -> tuple[ProgramId, ConversationId] | None:
        """What a tenant's token names; None: nothing that was handed out to this tenant."""
        return self._known.get((tenant, token))
