"""Calibration finds what the fake really does."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from agentsched.proxy.request import Dialect
from agentsched_bench.live.calibrate import calibrate
from agentsched_bench.live.client import Client, Patience

if TYPE_CHECKING:
    from tests.bench.live.conftest import FakeOpenAi


async def test_words_and_messages_are_counted_as_the_target_does(fake: FakeOpenAi) -> None:
    client = Client(fake.url, dialect=Dialect.CHAT, patience=Patience(), rng=random.Random(0))

    found = await calibrate(client, dialect=Dialect.CHAT, model="m")

    await client.aclose()
    assert (found.word_tokens, found.message_tokens, found.fixed_tokens) == (1.0, 4.0, 3.0)
    # The fake makes two tokens of long words.
    assert found.vocabulary
    assert all(len(word) < 7 for word in found.vocabulary)
    assert found.words_for(12.4) == 12
    assert found.words_for(-5) == 1
    assert found.word_tokens == pytest.approx(1.0)
