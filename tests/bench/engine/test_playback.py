"""Playback files: matching, order and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.model.errors import ConfigError
from agentsched_bench.engine.playback import read_answer, read_playback


def test_the_first_fitting_script_answers_in_order(tmp_path: Path) -> None:
    file = tmp_path / "scripts.jsonl"
    file.write_text(
        '{"match": "bug", "answers": [{"text": "one"}, {"text": "two"}]}\n'
        "\n"
        '{"answers": [{"tool_calls": [{"name": "bash", "arguments": {"a": 1}}]}]}\n'
    )
    playback = read_playback(file)
    assert len(playback) == 2
    texts = []
    for count in range(4):
        answer = playback.answer(first_user="fix the bug", answers=count)
        assert answer is not None
        texts.append(answer.text)
    assert texts == ["one", "two", "two", "two"]
    other = playback.answer(first_user="else", answers=0)
    assert other is not None
    assert other.tool_calls[0].text() == '{"a":1}'


def test_a_script_may_ask_for_the_last_user_message_too(tmp_path: Path) -> None:
    file = tmp_path / "scripts.jsonl"
    file.write_text(
        '{"last": "a summary", "answers": [{"text": "short"}]}\n'
        '{"match": "bug", "answers": [{"text": "one"}]}\n'
    )
    playback = read_playback(file)
    for last, text in (("now write a summary", "short"), ("go on", "one")):
        answer = playback.answer(first_user="fix the bug", last_user=last, answers=0)
        assert answer is not None
        assert answer.text == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"answers": []}', "at least one"),
        ('{"answers": [{}]}\n{"answer": []}', "line 2"),
        ("nonsense", "line 1"),
        ('{"answers": [{"finish": "perhaps"}]}', "line 1"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "scripts.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_playback(file)


def test_missing_file_and_bad_answer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_playback(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError):
        read_answer("{")
