"""What tests of several rooms share: one real vLLM at a time, started when first asked for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from agentsched_bench.vllm_local import LocalVllm, LocalVllmConfig, find_python
from agentsched_bench.vllm_local.launcher import PYTHON_VARIABLE

_ROOT = Path(__file__).parent.parent

# Assertions of helpers tell what they compared, as those of tests do.
pytest.register_assert_rewrite(*(file.stem for file in Path(__file__).parent.glob("helpers/*.py")))

# A busy machine is no failure: no example is timed, and none fails for being slow to make.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


# What runs here is asked without a proxy, whatever fetches packages.
for _name in ("no_proxy", "NO_PROXY"):
    _others = os.environ.get(_name)
    os.environ[_name] = ",".join(filter(None, (_others, "127.0.0.1", "localhost")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with an engine of their own come last: each costs the shared engine its place."""

    def wants_own(item: pytest.Item) -> bool:
        names = getattr(item, "fixturenames", ())
        return "vllm_slot" in names and "vllm_url" not in names

    for item in items:
        if item.get_closest_marker("vllm") and not item.get_closest_marker("timeout"):
            # An engine may have to be started first, on a machine that does much else.
            item.add_marker(pytest.mark.timeout(400))
    # Among equals, what is quick comes first, so that a mistake shows early.
    items.sort(key=lambda i: (wants_own(i), i.get_closest_marker("slow") is not None))


def living(group: int) -> list[str]:
    """Processes of a group that still run (Linux); ended ones that nobody collected do not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            state, _, member, *_ = rest.split()
            if int(member) == group and state not in "ZX":
                found.append(f"{name})")
    return found


class VllmSlot:
    """Room for one engine: asking for another configuration ends the one that runs."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._engine: LocalVllm | None = None

    def url(self, config: LocalVllmConfig) -> str:
        """The URL of an engine of this configuration, started if need be (half a minute)."""
        if self._engine is None or self._engine.config != config:
            self.close_engine()
            engine = LocalVllm(config)
            self._runner.run(engine.start())
            self._engine = engine
        return self._engine.url

    def kill_engine(self) -> None:
        """End the engine as a crash would; `close_engine` is still due."""
        assert self._engine is not None
        os.killpg(self._engine.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The engine stands still, all of its processes; it goes on at the end of the context."""
        assert self._engine is not None
        os.killpg(self._engine.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._engine.pid, signal.SIGCONT)

    def close_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            group = engine.pid
            self._runner.run(engine.stop())
            deadline = time.monotonic() + 60.0  # killed is not yet gone
            while left := living(group):
                assert time.monotonic() < deadline, f"an engine left processes behind: {left}"
                time.sleep(0.02)  # leaves the CPU to the engine, which has a pool to give back

    def close(self) -> None:
        self.close_engine()
        self._runner.close()


@pytest.fixture(scope="session")
def vllm_slot() -> Iterator[VllmSlot]:
    """For tests that need an engine of their own configuration. Mark them `vllm`."""
    slot = VllmSlot()
    yield slot
    slot.close()


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python that has vLLM: the environment's, or that of `.venv-vllm` beside this tree."""
    configured = os.environ.get(PYTHON_VARIABLE, "")
    return find_python(Path(configured) if configured else _ROOT / ".venv-vllm/bin/python")


@pytest.fixture(scope="session")
def vllm_config(vllm_python: Path) -> LocalVllmConfig:
    """The shared engine: priority order, four requests at once, a pool that a test can fill."""
    return LocalVllmConfig(
        python=vllm_python,
        blocks=257,
        max_model_len=4_096,
        scheduling="priority",
        dev_routes=True,
        extra_args=("--max-num-seqs", "4"),
    )


@pytest.fixture
def vllm_url(vllm_slot: VllmSlot, vllm_config: LocalVllmConfig) -> str:
    """A real vLLM that all tests share. Mark tests that use it `vllm`."""
    return vllm_slot.url(vllm_config)
