"""A configuration that is read again while requests run: none of them notices."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live import eventually
from proxy_rig import HURRIES
from proxy_upstream import DONE, Exchange, Gate, Upstream, chunk, running_upstream

from agentsched.config import Config, EngineConfig
from agentsched.model import (
    SECOND,
    ConfigError,
    EngineId,
    EngineLost,
    EngineReported,
    PolicyError,
)
from agentsched.proxy.app import _member
from agentsched.proxy.steering import Steering


@pytest.fixture
def steer() -> Iterator[Callable[..., Steering]]:
    """The wheel of a proxy whose file says something else now: `changes` over what is in force."""
    made: list[Steering] = []

    def make(proxy: Any, **changes: Any) -> Steering:
        said = Config.model_validate({"engines": [{"url": "http://127.0.0.1:9"}]} | changes)
        update = {name: getattr(said, name) for name in changes}
        wanted = proxy.gateway.config.model_copy(update=update)
        made.append(Steering(proxy.gateway, make_member=_member, reread=lambda: wanted))
        return made[-1]

    level = logging.getLogger().level
    yield make
    logging.getLogger().setLevel(level)
    assert all(not steering._tasks for steering in made)


def engine(upstream: Upstream, name: str) -> dict[str, Any]:
    return {"url": upstream.url, "id": name, "kind": "openai"}


async def test_an_engine_moves_while_a_stream_runs_on_it(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    gate = upstream.script = Gate(chunk("hel"))
    async with start(upstream.url) as proxy, proxy.streaming("long") as running:
        parts = running.aiter_raw()
        assert await anext(parts) == chunk("hel")
        reloaded = steer(proxy, engines=[engine(second, "e0")]).reload()
        assert reloaded.changed == ("engines",)
        for number in range(8):
            answer = await proxy.chat(f"meanwhile {number}")
            assert (answer.status_code, answer.headers["x-agentsched-engine"]) == (200, "e0")
        assert len(second.exchanges) == 8
        gate.open.set()
        rest = b"".join([part async for part in parts])
        assert rest.endswith(DONE)
        assert len(upstream.exchanges) == 1
        # The old connections are closed when the last answer over them has ended.
        await eventually(lambda: not upstream._writers)


@pytest.mark.parametrize("way", ["moves", "goes"])
async def test_what_is_no_step_ends_as_it_began_while_its_engine_goes(
    start: Any, upstream: Upstream, second: Upstream, steer: Any, way: str
) -> None:
    """Embeddings are relayed beside the scheduler, which does not know that they are under way."""
    may_answer = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await may_answer.wait()
        await exchange.json({"object": "list", "data": []})

    upstream.script = slowly
    async with start(upstream.url) as proxy:
        asked = {"model": "m", "input": "long"}
        embedding = asyncio.create_task(proxy.client.post("/v1/embeddings", json=asked))
        await upstream.exchange()
        steer(proxy, engines=[engine(second, "e0" if way == "moves" else "e1")]).reload()
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineReported)[1:]))
        for number in range(4):
            assert (await proxy.chat(f"meanwhile {number}")).status_code == 200
        may_answer.set()
        assert (await embedding).status_code == 200
        await eventually(lambda: not upstream._writers)


async def test_while_the_new_address_is_asked_what_it_is_the_old_one_serves(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    asked = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        """What a probe is answered with, once it may be."""
        await asked.wait()
        second.look = None
        await exchange.json({"object": "list", "data": [{"id": "m"}]})

    second.look = slowly
    async with start(upstream.url) as proxy:
        moved = engine(second, "e0") | {"kind": "auto"}
        assert steer(proxy, engines=[moved]).reload().changed == ("engines",)
        answers = [await proxy.chat(f"meanwhile {number}") for number in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert len(upstream.exchanges) == 4
        asked.set()
        await eventually(lambda: proxy.gateway.fleet.members["e0"].url == second.url)
        assert (await proxy.chat("after")).status_code == 200
        assert len(second.exchanges) == 1


async def test_an_address_where_nobody_answers_is_no_engine_and_no_defect(
    start: Any, upstream: Upstream, steer: Any
) -> None:
    async with start(upstream.url, limits=HURRIES) as proxy:
        gone = engine(upstream, "e0") | {"url": "http://127.0.0.1:1", "kind": "auto"}
        steer(proxy, engines=[gone]).reload()
        await proxy.turns.until(lambda: not proxy.scheduler.engines["e0"].is_up)
        refused = await proxy.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_engine")
        steer(proxy, engines=[engine(upstream, "e0")]).reload()
        await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].is_up)
        assert (await proxy.chat()).status_code == 200


async def test_engines_come_and_go_and_what_waits_is_served(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    gate = upstream.script = Gate()
    depth = {"admit": {"name": "depth", "params": {"depth": 1}}}
    async with start(upstream.url, profile="fcfs", policies=depth) as proxy:
        asked = [asyncio.create_task(proxy.chat(f"{n}")) for n in range(4)]
        await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 3)
        steering = steer(proxy, engines=[engine(second, "e1")])
        assert steering.reload().changed == ("engines",)
        await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 0)
        assert "e0" in proxy.gateway.fleet.members  # one step runs there still
        gate.open.set()
        answers = await asyncio.gather(*asked)
        assert [a.status_code for a in answers] == [200] * 4
        assert sorted(a.headers["x-agentsched-engine"] for a in answers) == ["e0", *["e1"] * 3]
        await eventually(lambda: "e0" not in proxy.gateway.fleet.members)


async def test_many_reloads_under_load(start: Any, upstream: Upstream, steer: Any) -> None:
    async with start(upstream.url, profile="fcfs") as proxy:
        until = asyncio.Event()

        async def agent(name: str) -> list[int]:
            statuses = []
            while not until.is_set():
                answer = await proxy.chat(name, agentsched={"program": name})
                statuses.append(answer.status_code)
            return statuses

        agents = [asyncio.create_task(agent(f"p{number}")) for number in range(4)]
        for number in range(20):
            served = len(upstream.exchanges)
            changes: dict[str, Any] = {
                "profile": ("agentsched", "passthrough", "fcfs")[number % 3],
                "limits": {"ready_steps_max": 100 + number, "engine_wait_max": "300ms"},
                "tenants": {f"t{number % 2}": {"weight": 1.0 + number}},
                "log_level": ("info", "warning")[number % 2],
            }
            changed = steer(proxy, **changes).reload().changed
            assert {"limits", "tenants"} <= set(changed)
            assert proxy.scheduler.policies.profile == changes["profile"]
            assert proxy.scheduler.limits.ready_steps_max == 100 + number
            await eventually(lambda served=served: len(upstream.exchanges) > served)
        until.set()
        statuses = [status for told in await asyncio.gather(*agents) for status in told]
        assert set(statuses) == {200}
        assert len(statuses) >= 20
        weights = {str(name): account.weight for name, account in proxy.scheduler.tenants.items()}
        assert (weights["t1"], weights["t0"]) == (20.0, 1.0)  # who is left out is as all others
        assert logging.getLogger().level == logging.WARNING


async def test_what_was_chosen_at_run_time_stays_until_the_file_says_something_new_of_it(
    start: Any, upstream: Upstream, steer: Any
) -> None:
    async with start(upstream.url, profile="passthrough") as proxy:

        async def choose(**wanted: str) -> None:
            answer = await proxy.client.post("/agentsched/v1/policies", json=wanted)
            assert answer.status_code == 200

        await choose(profile="fcfs")
        assert steer(proxy, limits={"max_wait": "7s"}).reload().changed == ("limits",)
        assert proxy.scheduler.policies.profile == "fcfs"
        assert proxy.scheduler.limits.wait_ns_max == 7 * SECOND
        await choose(max_wait="9s")
        assert steer(proxy, profile="agentsched").reload().changed == ("profile",)
        assert proxy.scheduler.policies.profile == "agentsched"
        assert proxy.scheduler.limits.wait_ns_max == 9 * SECOND


async def test_one_that_was_taken_out_by_mistake_comes_back(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    """It is in the file again while its last steps still run."""
    gate = second.script = Gate()
    async with start(upstream.url, second.url) as proxy:
        health = proxy.gateway.fleet.health
        health.drained(EngineId("e0"), is_draining=True)
        running = asyncio.create_task(proxy.chat())
        await second.exchange()
        health.drained(EngineId("e0"), is_draining=False)
        one = [engine(upstream, "e0")]
        assert steer(proxy, engines=one).reload().changed == ("engines",)
        await proxy.turns.until(lambda: proxy.scheduler.engines["e1"].is_draining)
        again = steer(proxy, engines=[*one, engine(second, "e1")])
        assert again.reload().changed == ("engines",)
        gate.open.set()
        assert (await running).status_code == 200
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        await proxy.turns.until(lambda: proxy.scheduler.engines["e1"].is_up)
        assert set(proxy.gateway.fleet.members) == {"e0", "e1"}


async def test_one_that_goes_and_moves_comes_back_at_its_new_address(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    gate = upstream.script = second.script = Gate()
    async with start(upstream.url, second.url) as proxy:
        running = asyncio.create_task(proxy.chat())
        await proxy.turns.until(lambda: proxy.scheduler.statistics().running_steps == 1)
        busy = next(e for e, record in proxy.scheduler.engines.items() if record.running_steps)
        steer(proxy).remove_engine(busy)
        old = upstream if busy == "e0" else second
        async with running_upstream() as third:
            now = {"e0": upstream, "e1": second} | {str(busy): third}
            moved = [engine(server, name) for name, server in now.items()]
            assert steer(proxy, engines=moved).reload().changed == ("engines",)
            gate.open.set()
            assert (await running).status_code == 200
            await eventually(lambda: proxy.scheduler.engines[busy].is_up and third.looks > 2)
            assert proxy.gateway.fleet.members[busy].url == third.url
            await eventually(lambda: not old._writers)


async def test_one_that_is_taken_out_while_it_moves_is_gone(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    gate = upstream.script = Gate(chunk("hel"))
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        asked.set()
        await answered.wait()
        third.look = None
        await exchange.json({"object": "list", "data": [{"id": "m"}]})

    async with running_upstream() as third, start(upstream.url) as proxy:
        fleet = proxy.gateway.fleet
        async with proxy.streaming("long") as running:
            parts = running.aiter_raw()
            assert await anext(parts) == chunk("hel")
            third.look = slowly
            moved = engine(third, "e0") | {"kind": "auto"}
            moving = steer(proxy, engines=[moved])
            moving.reload()
            await asked.wait()
            steer(proxy, engines=[engine(second, "e1")]).reload()
            answered.set()
            await eventually(lambda: not moving._tasks or fleet.members["e0"].url == third.url)
            gate.open.set()
            assert b"".join([part async for part in parts]).endswith(DONE)
        await eventually(lambda: list(fleet.members) == ["e1"])
        await eventually(lambda: not third._writers)
        # Its name is free again.
        steer(proxy, engines=[engine(upstream, "e0"), engine(second, "e1")]).reload()
        await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].is_up)
        assert fleet.members["e0"].url == upstream.url


async def test_two_that_go_one_after_the_other_are_not_the_last(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    gate = upstream.script = second.script = Gate()
    async with start(upstream.url, second.url) as proxy:
        running = asyncio.create_task(proxy.chat())
        await proxy.turns.until(lambda: proxy.scheduler.statistics().running_steps == 1)
        busy = next(e for e, record in proxy.scheduler.engines.items() if record.running_steps)
        other = EngineId("e1" if busy == "e0" else "e0")
        steering = steer(proxy)
        steering.remove_engine(busy)
        with pytest.raises(ConfigError, match="the last engine stays"):
            steering.remove_engine(other)
        gate.open.set()
        assert (await running).status_code == 200
        await eventually(lambda: set(proxy.gateway.fleet.members) == {other})


async def test_ceilings_of_a_request_change_at_once(
    start: Any, upstream: Upstream, steer: Any
) -> None:
    small = {"body_bytes_max": 4_096, "bodies_bytes_max": 1 << 20}
    async with start(upstream.url, http=small) as proxy:
        assert (await proxy.chat("x" * 8_192)).status_code == 413
        large = {"body_bytes_max": 1 << 16, "bodies_bytes_max": 1 << 20, "messages_max": 2}
        reloaded = steer(proxy, http=large).reload()
        assert (reloaded.changed, reloaded.needs_restart) == (("http",), ())
        assert (await proxy.chat("x" * 8_192)).status_code == 200
        many = [{"role": "user", "content": "hi"}] * 3
        refused = await proxy.client.post(
            "/v1/chat/completions", json={"model": "m", "messages": many}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


async def test_engines_are_looked_at_as_the_file_says_now(
    start: Any, upstream: Upstream, steer: Any
) -> None:
    async with start(upstream.url, upstream={"probe_interval": "1h"}) as proxy:
        looks = upstream.looks
        often = {**proxy.gateway.config.upstream.model_dump(), "probe_interval": "10ms"}
        assert steer(proxy, upstream=often).reload().changed == ("upstream",)
        await eventually(lambda: upstream.looks > looks + 2)


async def test_what_was_set_up_once_waits_for_a_restart_and_says_so(
    start: Any, upstream: Upstream, steer: Any
) -> None:
    async with start(upstream.url) as proxy:
        before = proxy.gateway.config
        patient = {**before.upstream.model_dump(), "first_byte_timeout": "7s"}
        reloaded = steer(proxy, upstream=patient, http={"keepalive_timeout": "9s"}).reload()
        assert reloaded.changed == ()
        assert reloaded.needs_restart == ("http.keepalive_timeout", "upstream.first_byte_timeout")
        now = proxy.gateway.config
        assert now.upstream.first_byte_timeout == before.upstream.first_byte_timeout
        assert now.http.keepalive_timeout == before.http.keepalive_timeout


async def test_a_wrong_file_changes_nothing(start: Any, upstream: Upstream, steer: Any) -> None:
    def broken() -> Config:
        raise ConfigError("line 3: what is this")

    async with start(upstream.url, profile="fcfs") as proxy:
        before = proxy.gateway.config
        with pytest.raises(ConfigError, match="line 3"):
            Steering(proxy.gateway, make_member=_member, reread=broken).reload()
        with pytest.raises(ConfigError, match="without a configuration file"):
            Steering(proxy.gateway, make_member=_member).reload()
        nonsense = steer(proxy, policies={"order": {"name": "nonsense"}}, log_level="error")
        with pytest.raises(PolicyError, match="nonsense"):
            nonsense.reload()
        assert proxy.gateway.config is before
        assert proxy.scheduler.policies.profile == "fcfs"
        assert (await proxy.chat()).status_code == 200


async def test_a_file_without_engines_changes_nothing(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    """Half-written, say: it would take all engines out but one."""
    async with start(upstream.url, second.url, profile="fcfs") as proxy:
        before = proxy.gateway.config
        changes = {"profile": "passthrough", "limits": {"max_wait": "5s"}, "log_level": "error"}
        for _ in range(2):
            with pytest.raises(ConfigError, match="no engine is given"):
                steer(proxy, engines=[], tenants={"acme": {"weight": 5}}, **changes).reload()
        assert proxy.gateway.config is before
        assert proxy.scheduler.policies.profile == "fcfs"
        assert "acme" not in proxy.scheduler.tenants
        assert proxy.gateway.fleet.staying == ["e0", "e1"]


async def test_a_file_that_leaves_only_what_was_removed_changes_nothing(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    async with start(upstream.url, second.url) as proxy:
        steering = steer(proxy, engines=[engine(second, "e1")], profile="fcfs")
        steering.remove_engine(EngineId("e1"))
        with pytest.raises(ConfigError, match="the last engine stays"):
            steering.reload()
        assert proxy.scheduler.policies.profile != "fcfs"
        assert proxy.gateway.fleet.staying == ["e0"]
        await eventually(lambda: "e1" not in proxy.gateway.fleet.members)


async def test_what_was_added_by_hand_is_what_the_file_says_of_it(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    """Added in a hurry and then written down, with its key."""
    async with start(upstream.url) as proxy:
        fleet = proxy.gateway.fleet
        first = engine(upstream, "e0")
        keyed = engine(second, "e1") | {"api_key": "k"}
        steering = steer(proxy, engines=[first, keyed])
        steering.add_engine(EngineConfig.model_validate(engine(upstream, "e1")))
        assert steering.reload().changed == ("engines",)
        await eventually(lambda: fleet.members["e1"].url == second.url)
        assert fleet.members["e1"].has_key
        await eventually(lambda: fleet.members["e1"].is_up and not steering._tasks)
        # What is as the file says is left alone.
        same = fleet.members["e1"]
        assert steering.reload().changed == ()
        assert fleet.members["e1"] is same


async def test_what_was_removed_by_hand_comes_back_where_the_file_says_something_new(
    start: Any, upstream: Upstream, second: Upstream, steer: Any
) -> None:
    async with start(upstream.url, upstream.url) as proxy:
        fleet = proxy.gateway.fleet
        steering = steer(proxy)
        steering.remove_engine(EngineId("e1"))
        await eventually(lambda: "e1" not in fleet.members)
        assert steering.reload().changed == ()
        assert "e1" not in fleet.members
        moved = [engine(upstream, "e0"), engine(second, "e1")]
        assert steer(proxy, engines=moved).reload().changed == ("engines",)
        assert fleet.members["e1"].url == second.url
        await eventually(lambda: fleet.members["e1"].is_up)


async def test_an_edited_workflow_waits_for_a_restart_and_is_named(
    start: Any, upstream: Upstream, tmp_path: Path
) -> None:
    path = tmp_path / "fix.json"

    def write(start: str) -> None:
        path.write_text(json.dumps({"name": "fix", "start": start, "steps": {start: {}}}))

    write("look")
    async with start(upstream.url, workflows=[str(path)]) as proxy:
        before = proxy.gateway.config

        def reread() -> Config:
            return Config(**{name: getattr(before, name) for name in Config.model_fields})

        steering = Steering(proxy.gateway, make_member=_member, reread=reread)
        assert steering.reload().needs_restart == ()
        write("edit")
        for _ in range(2):
            reloaded = steering.reload()
            assert (reloaded.changed, reloaded.needs_restart) == ((), ("workflows",))
        path.unlink()
        with pytest.raises(ConfigError, match=r"fix\.json"):
            steering.reload()


async def test_engines_that_are_not_there_and_the_last_one(
    start: Any, upstream: Upstream, steer: Any
) -> None:
    async with start(upstream.url) as proxy:
        steering = steer(proxy)
        with pytest.raises(ConfigError, match="no engine is called e9"):
            steering.remove_engine(EngineId("e9"))
        with pytest.raises(ConfigError, match="the last engine stays"):
            steering.remove_engine(EngineId("e0"))
        with pytest.raises(ConfigError, match="called e0 already"):
            steering.add_engine(proxy.gateway.config.engines[0])
        assert (await proxy.chat()).status_code == 200
