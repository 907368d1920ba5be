"""Names of programs and conversations: what clients give, and the ids that we make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import xxhash

from agentsched.model import ConversationId, ProgramId, TenantId
from agentsched.proxy.identity.cookie import TURN_STATE
from agentsched.proxy.identity.model import Evidence
from agentsched.proxy.identity.native import Claim
from agentsched.proxy.identity.records import Book, Conversation, Program

CACHE_KEY = "prompt_cache_key"
#: Weaker than what a known agent says.
_WEAK = frozenset({Evidence.SESSION_ID, Evidence.CACHE_KEY})


class Names:
    """Makes program ids. `default` is the tenant that is left out of them; `clean` bounds names."""

    def __init__(self, *, secret: int, default: TenantId, clean: Callable[[object], str]) -> None:
        self._secret = secret ^ 0x9E3779B9
        self._default = default
        self._clean = clean

    def program(self, tenant: TenantId, name: str) -> ProgramId:
        """A program's id over all tenants. What we showed to a client may come back as it was."""
        owner = "" if tenant == self._default else quoted(tenant) + "/"
        if owner and name.startswith(owner):
            name = name.removeprefix(owner)
        return ProgramId(owner + quoted(self._clean(name)))

    def made(self, tenant: TenantId, number: int) -> ProgramId:
        """The id of a program that nobody named; another for each number."""
        token = xxhash.xxh3_64_hexdigest(number.to_bytes(8), seed=self._secret)
        return self.program(tenant, "p-" + token)


def branch_of(program: Program, thread: str) -> ConversationId:
    """An id that no conversation of the program has, by the client's name where it gives one.

    Clients number their threads as we do, so a name may be taken by one that has none.
    """
    stem = f"{quoted(thread)}~" if thread else ""
    is_new = thread and not program.threads(thread)
    name = quoted(thread) if is_new else f"{stem}{program.branches}"
    while (found := ConversationId(f"{program.id}#{name}")) in program.conversations:
        program.branches += 1
        name = f"{stem}{program.branches}"
    program.branches += 1
    return found


def over_weak(claim: Claim | None, echoed: Conversation) -> Claim | None:
    """A claim by the conversation that was echoed, where the client names none in its own way."""
    if claim is None:
        claim = Claim(evidence=Evidence.NATIVE)
    elif claim.evidence not in _WEAK and claim.is_naming:
        return claim
    return replace(
        claim,
        evidence=Evidence.NATIVE,
        source=TURN_STATE,
        root=echoed.program.id,
        thread=echoed.thread,
        is_exact=bool(echoed.thread),
        is_subagent=echoed.is_subagent,
    )


def without_shared(claim: Claim, book: Book) -> Claim:
    """A claim without the name that many programs send; all else that it says holds."""
    if claim.source == CACHE_KEY and claim.root in book.shared:
        return replace(claim, root="", source="")
    return claim


def quoted(name: str) -> str:
    """A name without the signs that separate the parts of our ids."""
    return name.replace("%", "%25").replace("/", "%2F").replace("#", "%23")
