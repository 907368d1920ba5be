from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentsched.model import (
    Capabilities,
    EngineError,
    EngineId,
    EngineLoad,
    EngineRefused,
    EngineUnreachable,
)
from agentsched_adapters import OpenAiCompatibleEngine, VllmEngine
from agentsched_adapters.detect import detect

ID = EngineId("e")


def app(*, metrics: str | None, models: str | None) -> web.Application:
    async def get(request: web.Request) -> web.Response:
        text = metrics if request.path == "/metrics" else models
        return web.Response(text=text, status=404 if text is None else 200)

    application = web.Application()
    application.router.add_get("/{path:.*}", get)
    return application


async def test_vllm_is_known_by_its_metrics() -> None:
    async with TestServer(app(metrics="# x\nvllm:n 1\n", models=None)) as server:
        engine = await detect(ID, str(server.make_url("/v1")), priority=True)
        assert isinstance(engine, VllmEngine)
        assert engine.priority_answer == "confirmed"
        await engine.aclose()


@pytest.mark.parametrize("metrics", [None, "# x\nother 1\n"])
async def test_anything_else_with_models_is_compatible(metrics: str | None) -> None:
    models = '{"object": "list", "data": [{"id": "a"}, {"id": "b", "max_model_len": 9}]}'
    async with TestServer(app(metrics=metrics, models=models)) as server:
        engine = await detect(ID, str(server.make_url("/")))
        assert type(engine) is OpenAiCompatibleEngine
        assert await engine.probe() == Capabilities(models=("a", "b"), context_max=9)
        assert engine.capabilities.models == ("a", "b")
        assert await engine.load() == EngineLoad()
        assert engine.admission_fields(priority=1, session="s") == {}
        await engine.aclose()


async def test_a_web_page_is_no_engine() -> None:
    async with TestServer(app(metrics=None, models="<html>")) as server:
        with pytest.raises(EngineError, match="not an OpenAI-compatible answer"):
            await detect(ID, str(server.make_url("/")))


async def test_no_models_no_engine() -> None:
    async with TestServer(app(metrics=None, models=None)) as server:
        with pytest.raises(EngineRefused, match="answered 404"):
            await detect(ID, str(server.make_url("/")))


async def test_nobody_there() -> None:
    with pytest.raises(EngineUnreachable):
        await detect(ID, "http://127.0.0.1:9")
