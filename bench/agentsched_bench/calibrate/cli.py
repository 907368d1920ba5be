"""`agentsched calibrate`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from agentsched.model import ConfigError
from agentsched_bench.calibrate.fit import Served, fit_costs
from agentsched_bench.calibrate.model_file import ModelFile, of_config, write_model
from agentsched_bench.calibrate.probe import config_of, measure, rounds, sizes_of
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live import options
from agentsched_bench.whole_file import refuse_unwritable

Url = Annotated[str, typer.Argument(help="An engine: vLLM, or anything with OpenAI's API.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Where the model goes; `simulate --model` takes it.")
]
Seqs = Annotated[int, typer.Option(min=1, help="Calls that it batches at most (--max-num-seqs).")]
Step = Annotated[
    int, typer.Option(min=1, help="Tokens of a step at most (--max-num-batched-tokens).")
]
Blocks = Annotated[int | None, typer.Option(min=2, help="KV blocks, where it does not say.")]
BlockSize = Annotated[int | None, typer.Option(min=1, help="Tokens per block, likewise.")]
Repeats = Annotated[int, typer.Option(min=1, help="How often each probe is sent.")]


def calibrate(
    url: Url,
    *,
    out: Out = Path("engine-model.json"),
    max_num_seqs: Seqs = 256,
    step_tokens: Step = 2048,
    blocks: Blocks = None,
    block_size: BlockSize = None,
    repeat: Repeats = 2,
    seed: options.Seed = 0,
    api_key: options.ApiKey = None,
    as_json: options.AsJson = False,
) -> None:
    """Fit the engine model to an engine that runs, in minutes, by short calls.

    The engine should serve nobody else meanwhile. Sizes come from `/v1/models` and vLLM's metrics.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"not a URL: {url!r} (write http://host:port)")
    refuse_unwritable(out)
    found = asyncio.run(
        fit_engine(
            url,
            max_num_seqs=max_num_seqs,
            step_tokens=step_tokens,
            blocks=blocks,
            block_size=block_size,
            repeats=repeat,
            seed=seed,
            api_key=api_key,
            is_quiet=as_json,
        )
    )
    write_model(out, found)
    if as_json:
        typer.echo(msgspec.json.encode(found))
        return
    _print(found, out)


async def fit_engine(
    url: str,
    *,
    max_num_seqs: int = 256,
    step_tokens: int = 2048,
    blocks: int | None = None,
    block_size: int | None = None,
    repeats: int = 2,
    seed: int = 0,
    api_key: str | None = None,
    is_quiet: bool = True,
) -> ModelFile:
    """Probe an engine that runs, and fit the model to what it did.

    Raises:
        EngineError: it does not answer, or not as it was asked to.
    """
    sizes = await sizes_of(url)
    sizes = replace(sizes, blocks=blocks or sizes.blocks, block_size=block_size or sizes.block_size)
    config = config_of(sizes, max_num_seqs=max_num_seqs, step_tokens=step_tokens)
    served = await probe(
        url, config, model=sizes.model, repeats=repeats, seed=seed, api_key=api_key, quiet=is_quiet
    )
    fit = fit_costs(served, config)
    return of_config(
        replace(config, cost=fit.cost),
        source=f"fitted to {url} ({sizes.model}), {len(served)} calls",
        fit=fit.row,
        measured={"probes": len(served), "repeats": repeats},
    )


async def probe(
    url: str,
    config: EngineConfig,
    *,
    model: str,
    repeats: int,
    seed: int = 0,
    api_key: str | None = None,
    quiet: bool = True,
) -> list[Served]:
    """Send the probes, with contents that nobody sent before, and say what came of them."""
    probes = rounds(
        config, rng=random.Random(f"calibrate/{seed}/{time.time_ns()}"), repeats=repeats
    )
    with _progress(len(probes), is_quiet=quiet) as show:
        return await measure(url, config, probes, model=model, api_key=api_key, on_round=show)


def _print(found: ModelFile, out: Path) -> None:
    console = Console()
    cost = found.cost
    console.print(
        f"{found.source}\n"
        f"step {cost['base_ns'] / 1e6:.2f} ms + {cost['per_prefill_token_ns'] / 1e3:.1f} us per "
        f"new token (+ {cost['per_prefill_position_ns']:.1f} ns per token before it) + "
        f"{cost['per_decode_ns'] / 1e3:.0f} us per answer (+ {cost['per_decode_context_ns']:.1f} "
        f"ns per token of its context); {cost['per_call_ns'] / 1e6:.1f} ms per call outside",
        highlight=False,
        markup=False,
    )
    if found.fit is not None:
        console.print(
            f"held-out calls: first tokens off by {found.fit.first_token_error:.0%}, answers by "
            f"{found.fit.answer_error:.0%} (median of {found.fit.held_out})",
            highlight=False,
        )
    console.print(f"model: {out}", highlight=False, markup=False)


@contextmanager
def _progress(total: int, *, is_quiet: bool) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield lambda _done: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("probing", total=total)
        yield lambda done: bar.update(task, completed=done)
