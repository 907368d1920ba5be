"""The vLLM adapter against scripted servers: versions and failures that no one engine shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from plugin_state import plugin_state
from zmtp_publisher import publishing, removed, stored

from agentsched.model import (
    Capabilities,
    EngineError,
    EngineId,
    EngineLoad,
    EngineRefused,
    EngineUnreachable,
)
from agentsched_adapters import vllm
from agentsched_adapters.vllm import PriorityAnswer, VllmEngine
from agentsched_adapters.vllm_plugin.wire import ProgramState

CACHE_INFO = (
    'vllm:cache_config_info{block_size="16",enable_prefix_caching="True",'
    'num_gpu_blocks="100"} 1.0\n'
)
GAUGES = (
    'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 1.0\n'
    'vllm:num_requests_waiting{engine="0"} 2.0\nvllm:num_requests_waiting{engine="1"} 0.0\n'
    'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:kv_cache_usage_perc{engine="1"} 0.25\n'
    'vllm:num_preemptions_total{engine="0"} 7.0\nvllm:num_preemptions_total{engine="1"} 1.0\n'
)


class Script:
    """A server that answers as a vLLM of the test's choice; counts what it is asked."""

    def __init__(self) -> None:
        self.metrics = "# start\nprocess_start_time_seconds 1.0\n" + CACHE_INFO + GAUGES
        self.policy: str | None = None
        self.refuses_priority = False
        self.knows_session_id = True
        self.details: Any = {"cached_tokens": 0}
        self.version_status = 200
        self.completion_status = 200
        self.completions: list[dict[str, Any]] = []
        #: What the plugin has in the cache, by conversation; None where there is no plugin.
        self.cached: dict[str, int] | None = None
        #: That plugin knows no `only=cached`.
        self.is_older = False
        self.is_active = True
        self.state_status = 200
        self.brief_status = 200
        self.states = 0
        self.models = [{"id": "m", "max_model_len": 4096}, {"id": "lora", "max_model_len": 2048}]
        self.models_status = 200

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/server_info", self._server_info)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/agentsched/state", self._state)
        return app

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"}, status=self.version_status)

    async def _models(self, _: web.Request) -> web.Response:
        listed = {"object": "list", "data": self.models}
        return web.json_response(listed, status=self.models_status)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _server_info(self, _: web.Request) -> web.Response:
        if self.policy is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        config = {"scheduler_config": {"policy": self.policy, "max_num_seqs": 8, "x": [1]}}
        return web.json_response({"vllm_config": config})

    async def _state(self, request: web.Request) -> web.Response:
        is_brief = request.query.get("brief") == "1"
        self.states += not is_brief
        if self.cached is None:
            return web.json_response({}, status=404)
        listed: dict[str, Any] = {}
        if self.is_older and not is_brief:
            listed["programs"] = (ProgramState(program="p", conversations=self.cached),)
        elif request.query.get("only") == "cached":
            listed["cached"] = {name: bool(tokens) for name, tokens in self.cached.items()}
        state = plugin_state(is_active=self.is_active, **listed)
        return web.json_response(
            body=msgspec.json.encode(state),
            status=self.brief_status if is_brief else self.state_status,
        )

    async def _completions(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.completions.append(body)
        is_bad = self.knows_session_id and isinstance(body.get("session_id"), dict)
        is_bad |= self.refuses_priority and bool(body.get("priority"))
        if is_bad:
            return web.json_response({"error": {"message": "no"}}, status=400)
        usage = {"prompt_tokens": 3, "prompt_tokens_details": self.details}
        return web.json_response({"usage": usage}, status=self.completion_status)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def url(script: Script) -> AsyncIterator[str]:
    async with TestServer(script.app()) as server:
        yield str(server.make_url("/"))


@pytest.fixture
async def make(url: str) -> AsyncIterator[Callable[..., VllmEngine]]:
    made = []

    def build(**options: Any) -> VllmEngine:
        made.append(VllmEngine(EngineId("e"), url, **options))
        return made[-1]

    yield build
    for engine in made:
        await engine.aclose()


async def test_everything_that_it_says(script: Script, make: Any) -> None:
    script.policy = "priority"
    engine = make()
    assert engine.capabilities == Capabilities()
    assert await engine.probe() == Capabilities(
        prefix_cache=True,
        priority=True,
        session_id=True,
        cached_tokens=True,
        cache_salt=True,
        block_size=16,
        kv_tokens=1_600,
        running_max=8,
        context_max=2_048,
        models=("m", "lora"),
    )
    assert engine.version == "0.32.0"
    assert all(request["max_tokens"] == 1 for request in script.completions)
    assert all(len(request["prompt"]) <= 33 for request in script.completions)


@pytest.mark.parametrize(
    ("declared", "policy", "refuses", "answer", "sent"),
    [
        (None, None, False, PriorityAnswer.TAKEN, True),
        (None, None, True, PriorityAnswer.REFUSED, False),
        (None, "priority", False, PriorityAnswer.CONFIRMED, True),
        (None, "fcfs", False, PriorityAnswer.TAKEN, True),
        (True, None, False, PriorityAnswer.CONFIRMED, True),
        (False, "priority", False, PriorityAnswer.REFUSED, False),
    ],
)
async def test_what_is_known_of_priority(
    script: Script,
    make: Any,
    declared: bool | None,
    policy: str | None,
    refuses: bool,
    answer: PriorityAnswer,
    sent: bool,
) -> None:
    script.policy, script.refuses_priority = policy, refuses
    engine = make(priority=declared)
    capabilities = await engine.probe()
    assert engine.priority_answer is answer
    assert capabilities.priority is (answer is PriorityAnswer.CONFIRMED)
    assert ("priority" in engine.admission_fields(priority=2, session="")) is sent


async def test_an_engine_that_knows_less(script: Script, make: Any) -> None:
    script.knows_session_id = False
    script.details = None
    engine = make()
    capabilities = await engine.probe()
    assert not capabilities.session_id
    assert not capabilities.cached_tokens
    assert engine.admission_fields(priority=0, session="s") == {}


async def test_tried_once_per_process(script: Script, make: Any) -> None:
    engine = make()
    first = await engine.probe()
    tried = len(script.completions)
    assert tried == 3
    assert await engine.probe() == first
    assert len(script.completions) == tried
    script.metrics = script.metrics.replace("seconds 1.0", "seconds 2.0")
    script.knows_session_id = False
    assert not (await engine.probe()).session_id
    assert len(script.completions) == 2 * tried


async def test_tried_again_while_nothing_could_be_concluded(script: Script, make: Any) -> None:
    script.completion_status = 503
    engine = make()
    assert not (await engine.probe()).cached_tokens
    assert engine.priority_answer is PriorityAnswer.UNKNOWN
    script.completion_status = 200
    assert (await engine.probe()).cached_tokens


@pytest.mark.parametrize("status", [200, 503])
async def test_it_says_what_it_left_open(script: Script, make: Any, status: int) -> None:
    script.completion_status = status
    engine = make()
    assert not engine.is_unsure
    await engine.probe()
    assert engine.is_unsure is (status == 503)
    script.completion_status = 200
    await engine.probe()
    assert not engine.is_unsure


class TestAnotherProcess:
    def begin(self, script: Script, seconds: float) -> None:
        head = f"# start\nprocess_start_time_seconds {seconds}\n"
        script.metrics = head + CACHE_INFO + GAUGES

    async def test_it_is_noticed_once(self, script: Script, make: Any) -> None:
        """No look was refused in between: the address outlives the process."""
        engine = make()
        await engine.load()
        await engine.probe()
        assert (await engine.load()).running == 4
        self.begin(script, 2.0)
        with pytest.raises(EngineUnreachable, match="another process"):
            await engine.load()
        assert (await engine.load()).running == 4

    async def test_several_at_one_address_are_not_taken_for_new_ones_for_ever(
        self, script: Script, make: Any
    ) -> None:
        engine = make()
        for began in (1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0):
            self.begin(script, began)
            with suppress(EngineUnreachable):
                await engine.load()
        for began in (1.0, 2.0, 3.0):
            self.begin(script, began)
            assert (await engine.load()).running == 4

    async def test_one_that_was_away_is_probed_in_any_case(self, script: Script) -> None:
        """The look that finds it again is not lost to it."""
        server = TestServer(script.app())
        await server.start_server()
        engine = VllmEngine(EngineId("e"), str(server.make_url("/")))
        port = server.port
        await engine.load()
        await server.close()
        with pytest.raises(EngineUnreachable):
            await engine.load()
        self.begin(script, 2.0)
        async with TestServer(script.app(), port=port):
            assert (await engine.load()).running == 4
            await engine.aclose()

    async def test_where_no_page_says_when_it_began_nothing_is_concluded(
        self, script: Script, make: Any
    ) -> None:
        engine = make()
        await engine.load()
        script.metrics = "\n" + CACHE_INFO + GAUGES
        assert (await engine.load()).running == 4


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
async def test_a_gauge_without_a_value_is_unknown(script: Script, make: Any, value: str) -> None:
    script.metrics = f"\nvllm:num_requests_running {value}\nvllm:num_requests_waiting 2\n"
    load = await make().load()
    assert (load.running, load.waiting) == (None, 2)


async def test_pools_of_several_processes_add_up(script: Script, make: Any) -> None:
    script.metrics = (
        "\n"
        + CACHE_INFO.replace("{", '{engine="0",')
        + CACHE_INFO.replace("{", '{engine="1",kv_cache_size_tokens="1500",')
    )
    assert (await make().probe()).kv_tokens == 3_100


async def test_load_adds_counts_and_averages_shares(make: Any) -> None:
    assert await make().load() == EngineLoad(running=4, waiting=2, kv_usage=0.375, preemptions=8)


async def test_load_counts_the_tokens_that_were_computed(script: Script, make: Any) -> None:
    script.metrics += (
        'vllm:prompt_tokens_total{engine="0"} 100.0\nvllm:prompt_tokens_total{engine="1"} 50.0\n'
        'vllm:generation_tokens_total{engine="0"} 7.0\n'
    )
    assert (await make().load()).computed_tokens == 157


async def test_older_and_missing_metrics_are_warned_of_once(
    script: Script, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    script.metrics = "\nvllm:gpu_cache_usage_perc 0.75\nvllm:num_requests_running 1\n"
    engine = make()
    for _ in range(3):
        assert await engine.load() == EngineLoad(running=1, kv_usage=0.75)
    capabilities = await engine.probe()
    assert (capabilities.block_size, capabilities.kv_tokens) == (None, None)
    await engine.probe()
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    named = sorted(record.getMessage().split()[3] for record in warned)
    assert named == [
        "vllm:cache_config_info",
        "vllm:kv_cache_usage_perc",
        "vllm:num_preemptions_total",
        "vllm:num_requests_waiting",
    ]


async def test_a_share_under_two_names_is_counted_once(script: Script, make: Any) -> None:
    script.metrics = "\nvllm:kv_cache_usage_perc 0.9\nvllm:gpu_cache_usage_perc 0.9\n"
    assert (await make().load()).kv_usage == 0.9


async def test_a_tier_is_known_by_what_came_from_it(script: Script, make: Any) -> None:
    below = 'vllm:prompt_tokens_by_source_total{{engine="0",source="{source}"}} {tokens}\n'
    script.metrics += below.format(source="local_cache_hit", tokens=900)
    script.metrics += below.format(source="external_kv_transfer", tokens=0)
    engine = make()
    assert not (await engine.probe()).tier
    script.metrics += below.format(source="external_kv_transfer", tokens=64)
    await engine.load()
    assert engine.capabilities.tier


async def test_models_come_and_go_while_it_runs(script: Script, make: Any) -> None:
    engine = make()
    await engine.probe()
    script.models = [{"id": "m", "max_model_len": 4096}, {"id": "other"}]
    await engine.load()
    assert engine.capabilities.models == ("m", "other")
    assert engine.capabilities.context_max == 4_096
    script.models_status = 500
    assert (await engine.load()).running == 4
    assert engine.capabilities.models == ("m", "other")


async def test_a_probe_needs_an_answer(script: Script, make: Any) -> None:
    script.version_status = 500
    engine = make()
    with pytest.raises(EngineRefused, match="/version answered 500"):
        await engine.probe()
    assert engine.capabilities == Capabilities()


async def test_nonsense_is_an_engine_error(script: Script, make: Any) -> None:
    script.details = [1]
    with pytest.raises(EngineError, match="not what was expected"):
        await make().probe()


@pytest.mark.parametrize("is_older", [False, True])
class TestWhatThePluginHasNoMore:
    """Of an older plugin, that cannot tell it alone, the whole state says it."""

    @pytest.fixture(autouse=True)
    def at_every_look(
        self, script: Script, monkeypatch: pytest.MonkeyPatch, *, is_older: bool
    ) -> None:
        monkeypatch.setattr(vllm, "_STATE_EVERY_S", 0.0)
        script.is_older = is_older

    async def test_it_is_told_once(self, script: Script, make: Any) -> None:
        script.cached = {"a": 64, "b": 32, "never": 0}
        engine = make()
        await engine.probe()
        assert (await engine.load()).gone == ()  # nothing to compare with
        script.cached = {"a": 16, "b": 0, "never": 0, "new": 16}
        assert (await engine.load()).gone == ("b",)
        assert (await engine.load()).gone == ()
        del script.cached["a"]  # not listed any more, which says nothing
        assert (await engine.load()).gone == ()

    async def test_also_when_it_was_not_listed_in_between(self, script: Script, make: Any) -> None:
        script.cached = {"a": 64, "b": 64}
        engine = make()
        await engine.probe()
        await engine.load()
        script.cached = {"b": 64}
        assert (await engine.load()).gone == ()
        script.cached = {"a": 0, "b": 64}
        assert (await engine.load()).gone == ("a",)
        assert (await engine.load()).gone == ()

    async def test_it_is_remembered_of_so_many(
        self, script: Script, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vllm, "_CACHED_MAX", 2)
        engine = make()
        script.cached = {"a": 64, "b": 64}
        await engine.probe()
        await engine.load()
        script.cached = {"c": 64, "b": 64}
        await engine.load()
        script.cached = dict.fromkeys("abc", 0)
        assert (await engine.load()).gone == ("b", "c")

    async def test_a_plugin_in_trouble_spoils_no_reading(self, script: Script, make: Any) -> None:
        script.cached = {"a": 64}
        engine = make()
        await engine.probe()
        await engine.load()
        script.cached, script.state_status = {"a": 0}, 504
        assert (await engine.load()).running == 4
        script.state_status = 200
        assert (await engine.load()).gone == ("a",)

    async def test_one_that_gives_up_is_used_no_more(
        self, script: Script, make: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.cached = {"a": 64, "b": 32}
        engine = make()
        assert (await engine.probe()).pins
        await engine.load()
        script.cached, script.is_active = {}, False  # it gave everything back and forgot
        assert (await engine.load()).gone == ("a", "b")
        assert not engine.capabilities.pins
        assert "vllm_xargs" not in engine.admission_fields(priority=0, session="a")
        assert "gave up" in caplog.text
        states = script.states
        assert (await engine.load()).gone == ()
        assert script.states == states
        assert not engine.is_unsure  # it said so

    async def test_an_engine_without_it_is_not_asked(self, script: Script, make: Any) -> None:
        engine = make()
        await engine.probe()
        await engine.load()
        assert script.states == 0


class TestAPluginThatIsNotHeard:
    """Its engine may only have been busy."""

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    async def test_nothing_is_concluded(self, script: Script, make: Any, status: int) -> None:
        script.cached, script.brief_status = {}, status
        engine = make()
        assert not (await engine.probe()).pins
        assert engine.is_unsure
        script.brief_status = 200
        assert (await engine.probe()).pins
        assert not engine.is_unsure

    async def test_one_that_was_found_is_there_as_long_as_its_process(
        self, script: Script, make: Any
    ) -> None:
        script.cached = {}
        engine = make()
        await engine.probe()
        script.brief_status = 504
        assert (await engine.probe()).pins
        assert not engine.is_unsure
        script.metrics = script.metrics.replace("seconds 1.0", "seconds 2.0")
        assert not (await engine.probe()).pins
        assert engine.is_unsure

    @pytest.mark.parametrize("status", [404, 501])
    async def test_a_no_is_an_answer(self, script: Script, make: Any, status: int) -> None:
        script.cached, script.brief_status = {}, status
        engine = make()
        assert not (await engine.probe()).pins
        assert not engine.is_unsure


async def test_the_plugin_is_asked_seldom(script: Script, make: Any) -> None:
    script.cached = {"a": 64}
    engine = make()
    await engine.probe()
    for _ in range(5):
        await engine.load()
    assert script.states == 1


async def test_what_its_events_tell_is_in_its_next_reading(make: Any) -> None:
    async with publishing() as publisher:
        engine = make(kv_events=publisher.address)
        await engine.probe()
        await engine.probe()  # and hears it once
        await publisher.subscribed.wait()
        publisher.publish(stored(1, to="a"), stored(2, to="b"))
        publisher.publish(removed(1))
        async with asyncio.timeout(20):
            while not (gone := (await engine.load()).gone):
                pass
        assert gone == ("a",)
        assert (await engine.load()).gone == ()
