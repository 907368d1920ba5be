"""What the proxy expects of an engine's cache, against what the embedded engine's cache held."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched_bench.clients.cache_hits import measure

CLIENTS = Path(__file__).parents[3].parent / "shared" / "clients"

pytestmark = [
    pytest.mark.traces,
    pytest.mark.slow,
    pytest.mark.services,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CLIENTS.is_dir(), reason="the recorded clients are not beside us"),
]


async def test_the_expectation_is_close() -> None:
    names = ("claude-code", "opencode", "mini-swe-agent")
    found = await measure([CLIENTS / f"{name}.jsonl.gz" for name in names])
    assert [hits.client for hits in found] == list(names)
    for hits in found:
        assert hits.steps >= 10
        # A prompt's tail is estimated by its bytes: off by a hundred tokens or so, however long
        # the prompt is; that a prompt goes on from another is known.
        assert hits.off < 160 * hits.steps, hits
        assert hits.expected < hits.prompt / 4, hits
        assert hits.behind_prompt > hits.steps / 2, hits
