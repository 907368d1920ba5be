"""`agentsched serve`: usage, and failures in one clear line."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentsched.cli import main
from agentsched.telemetry.beside import BesideHandler


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sets logging up for its process, which here has other tests to run."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [h for h in root.handlers if isinstance(h, BesideHandler)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--engine", "--config", "--host", "--port", "--profile", "--max-wait"):
        assert option in said
    assert "base URL" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no engine is given (write --engine http://127.0.0.1:8000)"),
        (["--engine", "foo"], "engines.0.url"),
        (["--engine", "ftp://x"], "engines.0.url"),
        (["--engine", "http://u:secret@x"], "no user"),
        (["--engine", "http://x", "--engine", "http://x"], "two engines are called x:80"),
        (["--engine", "a b=http://x"], "engines.0.id"),
        (["--engine", "http://x", "--port", "99999"], "port: "),
        (["--engine", "http://x", "--max-wait", "soon"], "limits.max_wait: not a length of time"),
        (["--engine", "http://x", "--profile", "none"], "'none'"),
        (["--engine", "http://x", "--log-level", "loud"], "log_level"),
        (["--config", "nowhere.toml"], "cannot read nowhere.toml"),
        (["--port", "x"], "--port"),
        (["--wrong"], "--wrong"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert "secret" not in said


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code = main(["serve", "--engine", "e=http://127.0.0.1:1", "--port", port])
    assert code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert "address already in use" in said[-1]
    assert port in said[-1]


def test_it_takes_as_many_files_as_it_may(capsys: pytest.CaptureFixture[str]) -> None:
    """Two for each request: a service or a container often begins with room for 500 requests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 512, "this machine lets nobody have more"
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            assert main(["serve", "--engine", "e=http://127.0.0.1:1", "--port", port]) == 1
        now = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert now == (65_536 if hard == resource.RLIM_INFINITY else min(65_536, hard), hard)


def test_a_journal_is_never_written_over(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    journal = tmp_path / "j"
    journal.write_text("precious")
    code = main(["serve", "--engine", "http://127.0.0.1:1", "--journal", str(journal)])
    assert code == 2
    assert "never written over" in capsys.readouterr().err
    assert journal.read_text() == "precious"


@pytest.mark.parametrize("name", ["j", "j.gz"])
def test_a_start_that_fails_leaves_no_journal_in_the_way_of_the_next(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    journal = tmp_path / name
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["serve", "--engine", "e=http://127.0.0.1:1", "--journal", str(journal)]
        assert main([*arguments, "--port", str(taken.getsockname()[1])]) == 1
    assert "address already in use" in capsys.readouterr().err
    assert not journal.exists()
