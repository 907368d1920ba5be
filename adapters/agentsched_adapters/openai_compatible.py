"""Any server that speaks OpenAI's API: its models are known, nothing else is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from agentsched.model import Capabilities, EngineError, EngineId, EngineLoad, EngineRefused
from agentsched.ports import EngineRequest
from agentsched_adapters.openai_http import HttpAnswer, HttpLimits, OpenAiHttp

#: How long one exchange of a probe may take.
PROBE_TIMEOUT_S: Final = 10.0


_T = TypeVar("_T")


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


class OpenAiCompatibleEngine:
    """An engine of unknown make. Implements `agentsched.ports.Engine`.

    Safe to share between tasks of one event loop.
    """

    def __init__(
        self,
        id: EngineId,
        url: str,
        *,
        limits: HttpLimits | None = None,
        api_key: str | None = None,
    ) -> None:
        self._id = id
        self._http = OpenAiHttp(url, limits=limits, api_key=api_key)
        self._capabilities = Capabilities()

    @property
    def id(self) -> EngineId:
        return self._id

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def send(self, request: EngineRequest) -> HttpAnswer:
        return await self._http.send(request)

    async def probe(self) -> Capabilities:
        models, context_max = await self._models()
        self._capabilities = Capabilities(models=models, context_max=context_max)
        return self._capabilities

    async def load(self) -> EngineLoad:
        # No gauges; but the call also serves to see whether the engine answers.
        await self._follow_models()
        return EngineLoad()

    def admission_fields(
        self,
        *,
        priority: int,
        session: str,
        program: str = "",
        tenant: str = "",
        is_kept: bool = True,
    ) -> Mapping[str, object]:
        return {}

    def admission_headers(self, *, priority: int) -> Sequence[tuple[str, str]]:
        return ()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _follow_models(self, *, timeout_s: float = PROBE_TIMEOUT_S) -> None:
        """Models come and go while an engine runs: adapters are loaded, others are pulled."""
        models, context_max = await self._models(timeout_s=timeout_s)
        known = self._capabilities
        self._capabilities = replace(
            known, models=models, context_max=context_max or known.context_max
        )

    async def _models(
        self, *, timeout_s: float = PROBE_TIMEOUT_S
    ) -> tuple[tuple[str, ...], int | None]:
        """The names that it serves and the shortest context among them, where it says so."""
        body = await self._get("/v1/models", timeout_s=timeout_s)
        page = decoded(body, _Models, where=f"{self.url}/v1/models")
        lengths = [model.max_model_len for model in page.data if model.max_model_len]
        return tuple(model.id for model in page.data), min(lengths, default=None)

    async def _get(self, target: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> bytes:
        """The body of a good answer.

        Raises:
            EngineRefused: any status but 200.
            EngineError: as `OpenAiHttp.send`.
        """
        status, body = await self._http.fetch("GET", target, timeout_s=timeout_s)
        if status != 200:
            raise EngineRefused(f"{self.url}{target} answered {status}", status=status)
        return body


def decoded(body: bytes, shape: type[_T], *, where: str) -> _T:
    """Read an engine's JSON.

    Raises:
        EngineError: it is not JSON, or not of this shape.
    """
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"{where}: not what was expected ({error})") from error
