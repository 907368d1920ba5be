"""The proxy's side: what goes over the wire for a pin, and what an adapter makes of the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from plugin_state import plugin_state
from shorthand import Still, pin, prefetch, unpin

from agentsched.model import EngineError, HintOutcome, Instant, Pin, UnpinReason, seconds
from agentsched_adapters.openai_http import OpenAiHttp
from agentsched_adapters.vllm_plugin.hints import PluginHints, engine_arguments

NOW = Instant(1_000_000_000_000)


class Engine:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: Any = {"outcome": "accepted", "ttl_s": 3.0, "tokens": 64}
        self.asked: list[tuple[str, Any, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = msgspec.json.decode(body) if body else None
        self.asked.append((request.path_qs, asked, request.headers.get("authorization", "")))
        return web.json_response(self.answer, status=self.status)


@pytest.fixture
async def engine() -> Engine:
    return Engine()


@pytest.fixture
async def hints(engine: Engine) -> AsyncIterator[PluginHints]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", engine.handle)
    async with TestServer(app) as server:
        http = OpenAiHttp(str(server.make_url("")), api_key="k")
        yield PluginHints(http, clock=Still(NOW))
        await http.aclose()


def given(*, left_s: float = 3.0) -> Pin:
    return pin("pin-1", conversation="c", tokens=64, until=NOW + seconds(left_s), value=2.5)


async def test_a_pin_is_sent_as_what_is_left_of_its_time(
    engine: Engine, hints: PluginHints
) -> None:
    assert await hints.hint(given()) is HintOutcome.ACCEPTED
    ((path, asked, key),) = engine.asked
    assert path == "/v1/agentsched/pin"
    assert key == "Bearer k"
    assert asked == {
        "pin": "pin-1",
        "conversation": "c",
        "program": "p",
        "tenant": "",
        "ttl_s": 3.0,
        "value": 2.5,
        "tokens": 64,
    }


async def test_a_pin_that_is_over_is_not_sent(engine: Engine, hints: PluginHints) -> None:
    assert await hints.hint(given(left_s=-1)) is HintOutcome.REFUSED
    assert not engine.asked


@pytest.mark.parametrize(
    ("status", "answer", "outcome"),
    [
        (200, {"outcome": "clipped", "ttl_s": 1.0, "tokens": 32}, HintOutcome.CLIPPED),
        (200, {"outcome": "refused"}, HintOutcome.REFUSED),
        (200, {"outcome": "perhaps"}, HintOutcome.FAILED),
        (200, ["what"], HintOutcome.FAILED),
        (501, {}, HintOutcome.FAILED),
    ],
)
async def test_what_the_engine_says_comes_back(
    engine: Engine, hints: PluginHints, status: int, answer: Any, outcome: HintOutcome
) -> None:
    engine.status, engine.answer = status, answer
    assert await hints.hint(given()) is outcome


async def test_an_engine_that_is_gone_fails_the_hint_and_nothing_else() -> None:
    http = OpenAiHttp("http://127.0.0.1:9")
    assert await PluginHints(http, clock=Still(NOW)).hint(given()) is HintOutcome.FAILED
    await http.aclose()


@pytest.mark.parametrize("reason", list(UnpinReason))
async def test_only_ends_that_the_engine_cannot_know_are_sent(
    engine: Engine, hints: PluginHints, reason: UnpinReason
) -> None:
    engine.answer = {"released": 1}
    assert await hints.hint(unpin("pin-1", reason=reason)) is HintOutcome.ACCEPTED
    known = {UnpinReason.RESUMED, UnpinReason.EXPIRED, UnpinReason.REFUSED}
    assert [path for path, _, _ in engine.asked] == (
        [] if reason in known else ["/v1/agentsched/release"]
    )


class FirstPlugin(Engine):
    """By the rules of the first plugin: a release names one thing, and ids are everybody's."""

    def __init__(self) -> None:
        super().__init__()
        #: Live pins, as conversation and id.
        self.pins = {("c", "pin-1"), ("another proxy's", "pin-1")}

    async def handle(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read())
        if request.path.endswith("/pin"):
            # It knew no `tokens`, and kept all.
            return web.json_response({"outcome": "accepted", "ttl_s": 3.0, "tokens": 128})
        named = {name for name in ("pin", "conversation", "program") if asked.get(name)}
        if len(named) != 1:
            return web.json_response({"error": {"message": "name one", "code": 400}}, status=400)
        before = set(self.pins)
        if "conversation" in named:
            self.pins = {p for p in before if p[0] != asked["conversation"]}
        else:
            self.pins = {p for p in before if p[1] != asked.get("pin")}
        return web.json_response({"released": len(before) - len(self.pins)})


class TestFirstPlugin:
    @pytest.fixture
    async def engine(self) -> Engine:
        return FirstPlugin()

    async def test_its_pins_end_and_no_other_proxys(
        self, engine: FirstPlugin, hints: PluginHints
    ) -> None:
        assert await hints.hint(given()) is HintOutcome.ACCEPTED
        assert await hints.hint(unpin("pin-1")) is HintOutcome.ACCEPTED
        assert engine.pins == {("another proxy's", "pin-1")}

    async def test_a_pin_of_before_our_restart_ends_by_its_id(
        self, engine: FirstPlugin, hints: PluginHints
    ) -> None:
        assert await hints.hint(unpin("pin-1")) is HintOutcome.ACCEPTED
        assert not engine.pins


async def test_a_no_to_both_ways_of_ending_a_pin_is_a_failure(
    engine: Engine, hints: PluginHints
) -> None:
    await hints.hint(given())
    engine.status = 400
    assert await hints.hint(unpin("pin-1")) is HintOutcome.FAILED
    assert [asked for _, asked, _ in engine.asked[1:]] == [
        {"pin": "pin-1", "conversation": "c", "program": "", "everything": False},
        {"pin": "", "conversation": "c", "program": "", "everything": False},
    ]


async def test_it_does_not_prefetch(hints: PluginHints) -> None:
    assert await hints.hint(prefetch(wanted_by=NOW)) is HintOutcome.UNSUPPORTED


async def test_the_state_is_read_and_its_absence_is_no_error(
    engine: Engine, hints: PluginHints
) -> None:
    said = plugin_state(free_blocks=90, pinned_blocks=10, reclaimable_blocks=10)
    engine.answer = msgspec.to_builtins(said)
    assert await hints.state(is_brief=True) == said
    assert engine.asked[0][0] == "/v1/agentsched/state?brief=1"
    engine.status = 404
    assert await hints.state() is None


def test_requests_carry_scalars_only() -> None:
    full = engine_arguments(program="p", conversation="c", tenant="t", is_kept=False)
    assert full == {
        "agentsched_program": "p",
        "agentsched_conversation": "c",
        "agentsched_tenant": "t",
        "agentsched_grace_s": 0,
    }
    least = engine_arguments(program="", conversation="c", tenant="", is_kept=True)
    assert least == {"agentsched_conversation": "c"}


async def test_a_pin_that_was_sent_is_released_with_its_conversation(
    engine: Engine, hints: PluginHints
) -> None:
    """Another proxy at the same engine may have a pin of this name."""
    await hints.hint(given())
    over = unpin("pin-1", reason=UnpinReason.BUDGET)
    engine.answer = {"released": 1}
    assert await hints.hint(over) is HintOutcome.ACCEPTED
    assert engine.asked[-1][1]["pin"] == "pin-1"
    assert engine.asked[-1][1]["conversation"] == "c"
    await hints.hint(over)  # as after a restart: all that is known is its name
    assert engine.asked[-1][1]["conversation"] == ""


@pytest.mark.parametrize("reason", [UnpinReason.REFUSED, UnpinReason.EXPIRED])
async def test_a_pin_that_may_come_late_is_taken_back(
    engine: Engine, hints: PluginHints, reason: UnpinReason
) -> None:
    """It was not answered in time, and will be performed when the engine's step is over."""
    engine.status = 504
    assert await hints.hint(given()) is HintOutcome.FAILED
    engine.status, engine.answer = 200, {"released": 1}
    assert await hints.hint(unpin("pin-1", reason=reason)) is HintOutcome.ACCEPTED
    assert [path for path, _, _ in engine.asked] == ["/v1/agentsched/pin", "/v1/agentsched/release"]
    assert engine.asked[-1][1]["conversation"] == "c"
    # Once: nothing is left to be unsure of.
    assert await hints.hint(unpin("pin-1", reason=reason)) is HintOutcome.ACCEPTED
    assert len(engine.asked) == 2


async def test_a_pin_that_was_refused_needs_no_end(engine: Engine, hints: PluginHints) -> None:
    for status, answer in ((200, {"outcome": "refused"}), (501, {})):
        engine.status, engine.answer = status, answer
        engine.asked.clear()
        await hints.hint(given())
        assert await hints.hint(unpin("pin-1", reason=UnpinReason.REFUSED)) is HintOutcome.ACCEPTED
        assert len(engine.asked) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_server_that_heard_nothing_says_nothing_of_a_plugin(
    engine: Engine, hints: PluginHints, status: int
) -> None:
    engine.status = status
    with pytest.raises(EngineError, match=f"answered {status}"):
        await hints.state()


async def test_who_takes_over_knows_whose_the_pins_are(engine: Engine, hints: PluginHints) -> None:
    """As with a new key: another proxy at the same engine may have a pin of this name."""
    await hints.hint(given())
    newer = PluginHints(hints._http, clock=Still(NOW))
    newer.take_over(hints)
    engine.answer = {"released": 1}
    assert await newer.hint(unpin("pin-1", reason=UnpinReason.BUDGET)) is HintOutcome.ACCEPTED
    assert engine.asked[-1][1]["conversation"] == "c"
