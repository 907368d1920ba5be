"""The reference pages are as the code draws them, and answers are as the description says."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from aiohttp.test_utils import TestClient, TestServer

from agentsched.bus.messages import schemas
from agentsched.config import Config
from agentsched.model import EngineId, EngineLost
from agentsched.proxy.app import build_app, build_gateway
from agentsched.proxy.identity import native
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.reference import commands, http, metrics
from agentsched_bench.reference.__main__ import PACKAGED, pages, served
from agentsched_bench.reference.operations import BASE, OPERATIONS
from agentsched_bench.reference.recording import record
from agentsched_bench.reference.shapes import answer_of, bodies

FOLDER = Path(__file__).parents[2] / "docs/reference"
AGAIN = "run python -m agentsched_bench.reference"
#: Names that look like a metric's: packages, and fields of requests and traces.
OTHER_NAMES = {
    *("agentsched_adapters", "agentsched_bench", "agentsched_graphs", "agentsched_policies"),
    *("agentsched_conversation", "agentsched_grace_s", "agentsched_program", "agentsched_tenant"),
    "agentsched_trace",
}


def stored() -> dict[str, Any]:
    described: dict[str, Any] = json.loads((FOLDER / "openapi.json").read_text())
    return described


class TestPages:
    def test_the_command_line(self) -> None:
        assert (FOLDER / "cli.md").read_text() == commands.to_page(), AGAIN

    def test_metrics(self) -> None:
        assert (FOLDER / "metrics.md").read_text() == metrics.to_page(), AGAIN

    def test_metrics_that_pages_and_alerts_name_are_there(self) -> None:
        known = set(re.findall(r"^\| `(\w+)` \|", (FOLDER / "metrics.md").read_text(), re.M))
        root = FOLDER.parents[1]
        for path in (*(root / "docs").glob("*.md"), root / "deploy/prometheus/alerts.yaml"):
            named = set(re.findall(r"\bagentsched_[a-z0-9_]+[a-z0-9]\b", path.read_text()))
            series = {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
            assert series - known - OTHER_NAMES == set(), path.name

    def test_what_is_said_on_the_bus(self) -> None:
        described = json.loads((FOLDER / "bus.json").read_text())
        assert described == schemas(), AGAIN
        for schema in described.values():
            jsonschema.Draft202012Validator.check_schema(schema)

    def test_http(self) -> None:
        assert (FOLDER / "http.md").read_text() == http.to_page(stored()), AGAIN

    def test_the_command_line_says_what_help_says(self) -> None:
        page = (FOLDER / "cli.md").read_text()
        assert "agentsched report [OPTIONS] [RESULT...]" in page
        assert "| `--seed` | `0` |" in page
        for variable in ("OPENAI_API_KEY", "AGENTSCHED_URL", "AGENTSCHED_ADMIN_KEY"):
            assert f"(environment: `{variable}`)" in page

    def test_a_length_of_time_is_text(self) -> None:
        described = json.loads((FOLDER / "openapi.json").read_text())
        deadline = described["components"]["schemas"]["Tenant"]["properties"]["deadline"]
        assert deadline["anyOf"][0] == {"type": "string"}

    def test_every_header_of_ours_is_explained(self) -> None:
        page = (FOLDER.parent / "concepts.md").read_text()
        for name in native._OURS:
            assert f"`x-agentsched-{name}`" in page or f"`-{name}`" in page

    def test_all_are_drawn_by_one_command(self) -> None:
        drawn = set(pages((FOLDER / "openapi.json").read_text()))
        assert drawn == {path.name for path in FOLDER.iterdir()}

    def test_what_proxies_serve(self) -> None:
        drawn = served((FOLDER / "openapi.json").read_text())
        assert PACKAGED.read_text(encoding="utf-8") == drawn, AGAIN


@pytest.mark.slow
def test_it_is_openapi() -> None:
    """Every word of it, by the schema of OpenAPI 3.1."""
    for text in (PACKAGED.read_text(encoding="utf-8"), json.dumps(stored())):
        described = json.loads(text)
        openapi_spec_validator.validate(
            described, cls=openapi_spec_validator.OpenAPIV31SpecValidator
        )
        assert described["paths"].keys() == {BASE + path for _, path in OPERATIONS}


async def test_a_proxy_serves_it() -> None:
    gateway = build_gateway(Config.model_validate({"engines": [{"url": "http://127.0.0.1:1"}]}))
    async with TestClient(TestServer(build_app(gateway))) as client:
        answer = await client.get(f"{BASE}/openapi.json")
        assert answer.status == 200
        assert answer.content_type == "application/json"
        assert await answer.text() == PACKAGED.read_text(encoding="utf-8")
        known = {"If-None-Match": answer.headers["ETag"]}
        assert (await client.get(f"{BASE}/openapi.json", headers=known)).status == 304


async def test_every_route_is_described_and_nothing_else() -> None:
    gateway = build_gateway(Config.model_validate({"engines": [{"url": "http://127.0.0.1:1"}]}))
    routes = {
        (route.method, route.resource.canonical.removeprefix(BASE))
        for route in build_app(gateway).router.routes()
        if route.resource is not None and route.resource.canonical.startswith(BASE)
    }
    await gateway.host.aclose()
    assert {key for key in routes if key[0] != "HEAD"} == set(OPERATIONS)


def test_what_is_sent_is_described_as_the_types_are() -> None:
    assert stored()["components"]["schemas"] == bodies(), AGAIN
    described = http.to_openapi({})
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            kept = stored()["paths"][path][method]
            for part in ("summary", "parameters", "tags", "x-scope"):
                assert kept[part] == operation[part], AGAIN
            assert kept.get("requestBody") == operation.get("requestBody"), AGAIN


def test_every_reference_inside_leads_somewhere() -> None:
    described = stored()
    text = json.dumps(described)
    for name in set(re.findall(r'"#/components/schemas/(\w+)"', text)):
        assert name in described["components"]["schemas"]
    identifiers = [o["operationId"] for m in described["paths"].values() for o in m.values()]
    assert len(identifiers) == len(set(identifiers))
    page = (FOLDER / "http.md").read_text()
    for anchor in set(re.findall(r"\]\(#([\w-]+)\)", page)):
        assert re.search(rf"^### {anchor}$", page, re.IGNORECASE | re.MULTILINE), anchor


class TestAnswersFitTheSchemaMadeOfThem:
    def test_fields_that_some_lack_are_optional(self) -> None:
        schema = answer_of([{"a": 1, "b": None}, {"a": 2.5}])
        assert schema["required"] == ["a"]
        assert schema["properties"] == {"a": {"type": ["null", "number"]}, "b": {}}
        assert schema["additionalProperties"] is False
        for good in ({"a": 1}, {"a": 1.5, "b": None}):
            jsonschema.validate(good, schema)
        for bad in ({}, {"a": "1"}, {"a": 1, "c": 2}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(bad, schema)

    def test_maps_have_any_keys(self) -> None:
        schema = answer_of([{"tools": {"bash": 1}}, {"tools": {}}])
        jsonschema.validate({"tools": {"edit": 3}}, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"tools": {"edit": "x"}}, schema)

    def test_lists_of_all_kinds(self) -> None:
        schema = answer_of([[1, "a"], []])
        jsonschema.validate(["b", 2], schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([{}], schema)


@pytest.mark.slow
async def test_a_proxy_with_a_past_that_no_recording_had_answers_as_described() -> None:
    """A streamed step, a reported tool that failed, an engine that was lost, one never there."""
    described = json.loads(PACKAGED.read_text(encoding="utf-8"))
    sizes = EngineConfig.from_preset(preset("cpu-2core"))
    async with running_engine(ServerConfig(engine=sizes, models=("sim",), speed=1_000)) as sim:
        engines = [{"url": sim.url, "id": "e0"}, {"url": "http://127.0.0.1:9", "id": "e1"}]
        config = Config.model_validate({"port": 0, "engines": engines})
        async with (
            running(config) as (gateway, url),
            httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
        ):
            said = {"model": "sim", "messages": [{"role": "user", "content": "go"}]}
            of_p = {"x-agentsched-program": "p"}
            body = said | {"stream": True, "max_tokens": 4}
            answer = await client.post("/v1/chat/completions", json=body, headers=of_p)
            assert answer.status_code == 200
            tool = {"program": "p", "tool": "bash"}
            ended = {"event": "finished", "took_s": 1.5, "is_error": True}
            for report in ({"event": "started", "expected_s": 3.0}, ended):
                taken = await client.post(f"{BASE}/tools", json=tool | report)
                assert taken.json()["accepted"] == 1
            gateway.host.feed(EngineLost(engine=EngineId("e0"), reason="reset"))
            for method, path in OPERATIONS:
                if method != "GET" or path in ("/feed", "/decisions", "/openapi.json"):
                    continue
                filled = path.replace("{program}", "p").replace("{engine}", "e0")
                shown = await client.get(BASE + filled)
                responses = described["paths"][BASE + path]["get"]["responses"]
                schema = responses[str(shown.status_code)]["content"]["application/json"]["schema"]
                whole = schema | {"components": described["components"]}
                jsonschema.validate(shown.json(), whole)
                assert shown.status_code == 200, path
            for path, status in (("/programs?limit=x", 400), ("/engines/e9/kv", 404)):
                assert (await client.get(BASE + path)).status_code == status
    for path, status in (("/programs", "400"), ("/engines/{engine}/kv", "403"), ("/feed", "503")):
        assert status in described["paths"][BASE + path]["get"]["responses"]


@pytest.mark.slow
def test_a_live_proxy_answers_as_described() -> None:
    described = stored()
    answers = asyncio.run(record())
    seen = 0
    for (method, path), given in answers.items():
        responses = described["paths"][BASE + path][method.lower()]["responses"]
        for status, answer in given:
            assert str(status) in responses, (method, path, status, answer)
            schema = responses[str(status)]["content"]["application/json"]["schema"]
            whole = schema | {"components": described["components"]}
            jsonschema.validate(answer, whole)
            seen += status < 300
    assert seen > len(OPERATIONS)
