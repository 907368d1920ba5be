"""A tiny Llama made on the spot: a real architecture and tokenizer, random weights, noise out.

With `--load-format dummy` vLLM needs no weights, only configuration and tokenizer. Output is noise,
but lengths, caching, scheduling and errors are vLLM's own, which is all that a replay needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Final

from agentsched.model import ConfigError

VOCABULARY_SIZE: Final = 4096
#: KV bytes per token: layers x (K and V) x KV heads x head dimension x bytes of bfloat16.
KV_BYTES_PER_TOKEN: Final = 4 * 2 * 2 * 32 * 2

_END_OF_TEXT: Final = "<|endoftext|>"
_START: Final = "<|im_start|>"
_END: Final = "<|im_end|>"
#: In the order of their ids, from 0.
_SPECIAL: Final = (_END_OF_TEXT, _START, _END)
_MAKE_TOKENIZER: Final = Path(__file__).with_name("make_tokenizer.py")
_MAKE_TIMEOUT_S: Final = 300.0

_MODEL: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY_SIZE,
    "bos_token_id": _SPECIAL.index(_END_OF_TEXT),
    "eos_token_id": _SPECIAL.index(_END),
    "pad_token_id": _SPECIAL.index(_END_OF_TEXT),
}
_GENERATION: Final = {
    "bos_token_id": _SPECIAL.index(_END_OF_TEXT),
    "eos_token_id": [_SPECIAL.index(_END), _SPECIAL.index(_END_OF_TEXT)],
    "pad_token_id": _SPECIAL.index(_END_OF_TEXT),
}

# Each message is rendered by itself and nothing is said about the end of the list, so that a longer
# conversation always begins with the shorter one's text: the prefix cache lives on that. Tools come
# first, as in every template that takes them; tool calls are in the form that the `hermes` parser
# reads back. Arguments may arrive parsed or as the client's text.
_CHAT_TEMPLATE: Final = """\
{%- macro block(role, text) -%}
<|im_start|>{{ role }}
{{ text }}<|im_end|>
{% endmacro -%}
{%- if tools -%}
<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == "assistant" and message.tool_calls -%}
<|im_start|>assistant
{{ message.content or "" }}
{%- for call in message.tool_calls -%}
{%- set arguments = call.function.arguments -%}
{{ "\\n" if message.content or not loop.first }}<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": \
{{ arguments if arguments is string else arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% elif message.role == "tool" -%}
{{ block("tool", "<tool_response>\n" ~ (message.content or "") ~ "\n</tool_response>") }}
{%- else -%}
{{ block(message.role, message.content or "") }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

_TOKENIZER: Final = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 32768,
    "clean_up_tokenization_spaces": False,
    "bos_token": None,
    "eos_token": _END,
    "pad_token": _END_OF_TEXT,
    "chat_template": _CHAT_TEMPLATE,
}
_VERSIONS: Final = (
    "import sys, importlib.metadata as m; import importlib.util as u; "
    "assert u.find_spec('vllm'), 'no vllm'; "
    "print(sys.version, m.version('tokenizers'))"
)


def cache_root() -> Path:
    """Where made models are kept: `$XDG_CACHE_HOME/agentsched`, or `~/.cache/agentsched`."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(configured) if configured else Path.home() / ".cache") / "agentsched"


def python_env() -> dict[str, str]:
    """This process's environment, made safe for another virtual environment's Python."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    # A script's own directory must not hide packages of that Python.
    return env | {"PYTHONSAFEPATH": "1"}


async def ensure_tiny_model(python: Path, *, root: Path | None = None) -> Path:
    """The directory of the tiny model, made by `python` (vLLM's) unless it is there already.

    The directory's name is a hash of all that goes into the model, so a change makes another
    one. Safe to call from several processes at once: the first complete one is kept.

    Raises:
        ConfigError: `python` has no vLLM or tokenizers, or could not make the tokenizer.
    """
    versions = await _run(python, "-c", _VERSIONS)
    directory = (root or cache_root()) / f"tiny-model-{_key(versions)}"
    if (directory / "config.json").exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=directory.parent))
    try:
        await _make(python, draft)
        _publish(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return directory


def _key(versions: str) -> str:
    parts = (
        json.dumps([_MODEL, _GENERATION, _TOKENIZER, _SPECIAL], sort_keys=True),
        _MAKE_TOKENIZER.read_text("utf-8"),
        versions,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


async def _make(python: Path, directory: Path) -> None:
    tokenizer = directory / "tokenizer.json"
    await _run(python, str(_MAKE_TOKENIZER), str(tokenizer), str(VOCABULARY_SIZE), *_SPECIAL)
    for name, content in (
        ("generation_config.json", _GENERATION),
        ("tokenizer_config.json", _TOKENIZER),
        ("config.json", _MODEL),
    ):
        (directory / name).write_text(json.dumps(content, indent=1), "utf-8")


def _publish(draft: Path, directory: Path) -> None:
    try:
        draft.rename(directory)
    except OSError:
        # Another process was first: its directory is the same as ours.
        if not (directory / "config.json").exists():
            raise


async def _run(python: Path, *arguments: str) -> str:
    """Run vLLM's Python and return what it printed."""
    try:
        child = await asyncio.create_subprocess_exec(
            str(python), *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=python_env()
        )
    except OSError as error:
        raise ConfigError(f"cannot run {python}: {error.strerror}") from error
    try:
        async with asyncio.timeout(_MAKE_TIMEOUT_S):
            out, err = await child.communicate()
    except BaseException:
        child.kill()
        await child.wait()
        raise
    if child.returncode:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(f"{python} is not a Python with vLLM: {' '.join(last)}")
    return out.decode().strip()
