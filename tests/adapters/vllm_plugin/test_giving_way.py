"""How pins give way: exactly what is needed, and without looking at all that is pinned."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import seconds
from agentsched_adapters.vllm_plugin import blocks
from agentsched_adapters.vllm_plugin.settings import PluginSettings
from agentsched_bench.vllm_local import fake_plugin
from agentsched_bench.vllm_local.fake_plugin import FakePlugin

COMMON, OWN, TALKS = 300, 200, 20


class Counted:
    """A block that counts how often anyone asks who uses it."""

    looks = 0

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.is_null = False
        self.block_hash: object | None = None
        self.block_hash_num_tokens: int | None = None
        self._used = 0

    @property
    def ref_cnt(self) -> int:
        Counted.looks += 1
        return self._used

    @ref_cnt.setter
    def ref_cnt(self, count: int) -> None:
        self._used = count


class Full:
    """An engine whose pool is full: of pins with a common beginning, and of one long request."""

    def __init__(self) -> None:
        settings = PluginSettings(grace=seconds(600), budget=1.0, tenant_budget=1.0)
        self.plugin = FakePlugin(blocks=COMMON + TALKS * OWN + 2, block_size=1, settings=settings)
        for number in range(TALKS):
            prompt = [*range(COMMON), *range(1_000 * (number + 1), 1_000 * (number + 1) + OWN)]
            self.plugin.step(prompt, {"agentsched_conversation": f"c{number}"})
        self.pins = self.plugin.host.pins
        assert self.pins.held == COMMON + TALKS * OWN
        self._manager: Any = self.plugin._manager
        self._request, _ = self.plugin.begin([-1])
        assert not self.pins.free

    def take(self, count: int) -> int:
        """So many blocks for the request that runs; how often one was looked at for it."""
        Counted.looks = 0
        slots = self._manager.allocate_slots(self._request, count)
        assert slots is not None
        assert len(slots) == count
        return Counted.looks


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    monkeypatch.setattr(fake_plugin, "_Block", Counted)
    return Full()


def test_one_block_is_found_among_thousands(full: Full) -> None:
    """Every step of a large engine asks for some."""
    held = full.pins.held
    assert full.take(1) < 2 * blocks._FEW
    assert full.pins.held == held - 1


def test_what_is_common_to_all_is_not_looked_at_for_each_block(full: Full) -> None:
    """Of most pins nothing is left but that."""
    full.take((TALKS - 1) * OWN)
    assert full.pins.held == COMMON + OWN
    assert full.take(1) < 2 * blocks._FEW
    assert full.pins.held == COMMON + OWN - 1


def test_more_than_a_few_are_given_as_well(full: Full) -> None:
    held = full.pins.held
    full.take(4 * blocks._FEW)
    assert full.pins.held == held - 4 * blocks._FEW
    full.take(held - 4 * blocks._FEW)
    assert not full.pins.held
    full.pins.check()


def test_a_request_that_does_not_fit_costs_no_pin_anything(full: Full) -> None:
    held = full.pins.held
    with pytest.raises(AssertionError):
        full.take(held + 1)
    assert full.pins.held == held
    full.pins.check()
