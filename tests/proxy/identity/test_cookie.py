"""The affinity cookie: names a conversation to its own tenant, and cannot be made up."""

from __future__ import annotations

from agentsched.model import ConversationId, ProgramId, TenantId
from agentsched.proxy.identity import Evidence
from agentsched.proxy.identity.cookie import TURN_STATE, Cookies, takes_cookies
from agentsched_bench.clients.acting import Wire, system, user

HEAD = [system(), user("fix the bug")]
CODEX = {"session-id": "s1", "thread-id": "t1", "originator": "codex_exec"}


def test_an_echoed_cookie_names_the_conversation_without_other_ids(wire: Wire) -> None:
    first = wire.chat(HEAD, headers=CODEX)
    token = wire.index.cookie(first)
    wire.answer(first, "Done.")
    later = wire.chat([system(), user("another beginning")], headers={TURN_STATE: token})
    assert (later.program, later.conversation) == (first.program, first.conversation)
    assert (later.evidence, later.source) == (Evidence.NATIVE, TURN_STATE)


def test_it_is_stronger_than_a_cache_key_and_weaker_than_the_clients_own_ids(wire: Wire) -> None:
    child = wire.chat(HEAD, headers=CODEX | {"thread-id": "t2", "x-codex-parent-thread-id": "t1"})
    cookie = {TURN_STATE: wire.index.cookie(child)}
    keyed = wire.chat([system(), user("x")], headers=cookie, prompt_cache_key="s1")
    assert keyed.conversation == child.conversation
    own = wire.chat(HEAD, headers=CODEX | cookie)
    assert own.source == "session-id"
    assert own.conversation != child.conversation


def test_it_names_also_a_program_that_we_found_ourselves(wire: Wire) -> None:
    first = wire.chat(HEAD, tenant="a")
    token = wire.index.cookie(first)
    later = wire.chat([system(), user("a new beginning")], headers={TURN_STATE: token}, tenant="a")
    assert later.program == first.program


def test_another_tenants_cookie_and_a_made_up_one_say_nothing(wire: Wire) -> None:
    first = wire.chat(HEAD, headers=CODEX, tenant="a")
    token = wire.index.cookie(first)
    for headers, tenant in (({TURN_STATE: token}, "b"), ({TURN_STATE: "x" * 20}, "a")):
        stranger = wire.chat([system(), user("hello")], headers=headers, tenant=tenant)
        assert stranger.program != first.program
        assert stranger.evidence is Evidence.NONE


def test_a_forgotten_conversation_is_named_by_nothing(wire: Wire) -> None:
    first = wire.chat(HEAD, headers=CODEX)
    token = wire.index.cookie(first)
    wire.index.forget(first.program)
    later = wire.chat(HEAD, headers={TURN_STATE: token})
    assert later.evidence is Evidence.NONE


def test_tokens_are_short_keyed_and_bounded_in_number() -> None:
    def issue(cookies: Cookies, tenant: str, name: str) -> str:
        return cookies.issue(TenantId(tenant), ProgramId("p"), ConversationId(name))

    one, other = Cookies(secret=1), Cookies(secret=2)
    tokens = {issue(one, "a", "c"), issue(one, "b", "c"), issue(other, "a", "c")}
    assert len(tokens) == 3
    assert {len(token) for token in tokens} == {20}
    for number in range(20_010):
        issue(one, "a", str(number))
    assert len(one) == 20_000


def test_only_codex_gets_one() -> None:
    assert takes_cookies({"originator": "codex_cli_rs"})
    assert takes_cookies({"x-codex-turn-metadata": "{}"})
    assert takes_cookies({"user-agent": "codex_exec/0.169.0"})
    assert not takes_cookies({"user-agent": "OpenAI/Python 3.54.0"})
