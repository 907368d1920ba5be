"""The routes that generate nothing: models, tokenizer, health, load, version, metrics."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from agentsched.model.errors import WireError
from agentsched.version import __version__
from agentsched_bench.engine import tokenizer
from agentsched_bench.engine.generate import json_response, openai_failure
from agentsched_bench.engine.metrics import exposition
from agentsched_bench.engine.state import ServerState
from agentsched_bench.engine.wire import chat_prompt, decode


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


class PlainRoutes:
    """Handlers that answer at once."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models", self.models),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
            web.get("/health", self.health),
            web.get("/ping", self.health),
            web.post("/ping", self.health),
            web.get("/version", self.version),
            web.get("/load", self.load),
            web.get("/metrics", self.metrics),
            web.post("/reset_prefix_cache", self.reset_prefix_cache),
        ]

    async def models(self, _request: web.Request) -> web.Response:
        longest = self._state.driver.config.max_model_len
        cards: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": self._state.started_at,
                "owned_by": "agentsched",
                "root": name,
                "parent": None,
                "max_model_len": longest,
                "permission": [],
            }
            for name in self._state.models
        ]
        return json_response({"object": "list", "data": cards})

    async def tokenize(self, request: web.Request) -> web.Response:
        try:
            body = decode(await request.read(), TokenizeBody)
            self._state.check_model(body.model or self._state.models[0])
            if body.messages is not None:
                ids = chat_prompt(
                    body.messages, tools=body.tools, open_answer=body.add_generation_prompt
                )
            elif body.prompt is not None:
                ids = tokenizer.encode(body.prompt)
            else:
                raise WireError("prompt or messages: Field required", param="prompt")
        except WireError as error:
            return openai_failure(error)
        texts = tokenizer.pieces(ids) if body.return_token_strs else None
        longest = self._state.driver.config.max_model_len
        return json_response(
            {"count": len(ids), "max_model_len": longest, "tokens": ids, "token_strs": texts}
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        try:
            body = decode(await request.read(), DetokenizeBody)
            self._state.check_model(body.model or self._state.models[0])
            if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < 1 << 32:
                raise WireError("token id out of range", param="tokens")
        except WireError as error:
            return openai_failure(error)
        return json_response({"prompt": tokenizer.decode(body.tokens)})

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def version(self, _request: web.Request) -> web.Response:
        return json_response({"version": f"{__version__}+sim"})

    async def load(self, _request: web.Request) -> web.Response:
        return json_response({"server_load": len(self._state.driver.model)})

    async def metrics(self, _request: web.Request) -> web.Response:
        driver = self._state.driver
        text = exposition(
            gauges=driver.gauges(),
            measures=driver.measures,
            config=driver.config,
            model=self._state.models[0],
        )
        return web.Response(
            body=text.encode(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def reset_prefix_cache(self, _request: web.Request) -> web.Response:
        if self._state.driver.model.reset_cache():
            return web.Response()
        return json_response({"error": "blocks are in use"}, status=503)
