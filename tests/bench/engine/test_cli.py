"""`agentsched engine sim` as a process: the ready line, an answer, a clean stop, clear errors."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
import typer
from typer.testing import CliRunner

from agentsched_bench.engine.cli import sim
from agentsched_bench.engine.cost import CPU_2CORE, to_json

app = typer.Typer()
app.command()(sim)

START = "import typer; from agentsched_bench.engine.cli import sim; typer.run(sim)"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_serves_and_stops(tmp_path: Path, stop: signal.Signals) -> None:
    cost = tmp_path / "cost.json"
    cost.write_bytes(to_json(CPU_2CORE))
    scripts = tmp_path / "scripts.jsonl"
    scripts.write_text(json.dumps({"answers": [{"text": "played"}]}))
    options = [
        *("--port", "0", "--speed", "50", "--model", "tiny", "--model", "other"),
        *("--blocks", "100", "--cost", str(cost), "--playback", str(scripts)),
        *("--scheduling", "priority"),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, *options, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        ready = re.fullmatch(
            r"agentsched engine sim ready on (http://127\.0\.0\.1:\d+) \(model tiny, other; "
            r"100 blocks of 32 tokens, context 3168, priority, speed 50\)\n",
            line,
        )
        assert ready, line
        body = {"model": "other", "messages": [{"role": "user", "content": "hi"}], "priority": 3}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{ready[1]}/v1/chat/completions", json=body) as response,
        ):
            answer = await response.json()
        assert answer["choices"][0]["message"]["content"] == "played"
        process.send_signal(stop)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "b200"], "unknown preset"),
        (["--blocks", "10", "--max-model-len", "9999"], "cannot hold"),
        (["--cost", "/does/not/exist"], "cannot read"),
        (["--speed", "0"], "--speed"),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
