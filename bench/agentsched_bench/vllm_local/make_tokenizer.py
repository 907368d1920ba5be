"""Train the tiny model's tokenizer. Run by vLLM's own Python, since `tokenizers` lives there.

    python make_tokenizer.py OUT VOCABULARY_SIZE SPECIAL...

Writes a byte-level BPE `tokenizer.json`. The text is the source of a fixed list of standard-library
modules: prose, code and doctests at hand on every machine, so that word pieces come out about as
long as those of a real tokenizer on an agent's prompts. The same interpreter and the same
`tokenizers` give the same file.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from sys import argv

MODULES = (
    "argparse",
    "ast",
    "collections/__init__",
    "configparser",
    "contextlib",
    "csv",
    "dataclasses",
    "datetime",
    "difflib",
    "doctest",
    "email/message",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "http/client",
    "inspect",
    "json/decoder",
    "logging/__init__",
    "mailbox",
    "optparse",
    "os",
    "pathlib",
    "pickle",
    "pydoc",
    "random",
    "shutil",
    "smtplib",
    "statistics",
    "subprocess",
    "tarfile",
    "textwrap",
    "threading",
    "tokenize",
    "turtle",
    "typing",
    "unittest/case",
    "urllib/request",
    "zipfile",
)


def _lines() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for module in MODULES:
        yield from (root / f"{module}.py").read_text("utf-8").splitlines(keepends=True)


def main(out: str, vocabulary_size: str, *special: str) -> None:
    # Only vLLM's environment has this package.
    from tokenizers import (  # type: ignore[import-not-found,unused-ignore]
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=int(vocabulary_size),
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    made = tokenizer.get_vocab_size()
    if made != int(vocabulary_size):
        raise SystemExit(f"the text gave {made} word pieces, not {vocabulary_size}")
    tokenizer.save(out)


if __name__ == "__main__":
    main(*argv[1:])
