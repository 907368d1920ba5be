"""The command line: lazy verbs, one clear line per failure, exit codes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import agentsched
from agentsched import cli
from agentsched.cli import main, verbs
from agentsched.cli.summary import summary

VERBS = '''
"""A stranger's verbs."""
import os
import typer
from agentsched.model import ConfigError, EngineUnreachable, PolicyError

app = typer.Typer(help="A group of commands.")
helpful = typer.Typer(help="Another one.", no_args_is_help=True)

@helpful.command()
def first() -> None:
    """The first thing."""

@helpful.command()
def second() -> None:
    """The second thing."""

def greet(name: str, times: int = 1) -> None:
    """Greet somebody.

    More than one line.
    """
    print("hello " * times + name)

async def _unused() -> None: ...

def fail(how: str) -> int:
    """Fail in some way."""
    match how:
        case "config": raise ConfigError("no engine\\ngiven (write --engine URL)")
        case "policy": raise PolicyError("no such policy")
        case "engine": raise EngineUnreachable("http://x: connection refused")
        case "os": open("/nonexistent/file")
        case "defect": raise KeyError("surprise")
        case "group": raise ExceptionGroup("all", [ExceptionGroup("in", [ConfigError("deep")])])
        case "interrupt": raise KeyboardInterrupt
        case "abort": raise typer.Abort
        case "exit": raise typer.Exit(7)
        case "code": return 9
    return 0

@app.command("list")
def list_() -> None:
    """List things."""
    print("things")

@app.command()
def debug() -> None:
    """Say whether tracebacks are wanted."""
    print(os.environ.get("AGENTSCHED_DEBUG"))

THING = 5
'''

BROKEN = "import surely_not_installed_anywhere\n\ndef verb() -> None:\n    '''Needs more.'''\n"


@pytest.fixture
def join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Join verbs of a stranger's package to the command line."""
    package = tmp_path / "stranger"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "verbs.py").write_text(VERBS)
    (package / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(cli.DEBUG, raising=False)

    def joined(names: Mapping[str, str]) -> None:
        entries = [
            EntryPoint(name=name, value=value, group=verbs.GROUP) for name, value in names.items()
        ]
        monkeypatch.setattr(verbs, "entry_points", lambda *, group: entries)

    yield joined
    for name in [n for n in sys.modules if n.partition(".")[0] == "stranger"]:
        del sys.modules[name]


FAIL = {"fail": "stranger.verbs:fail"}


def test_help_lists_without_importing(
    join: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    join(
        {
            "greet": "stranger.verbs:greet",
            "many": "stranger.verbs:app",
            "engine far": "stranger.verbs:fail",
            "machine near": "stranger.verbs:greet",
            "broken": "stranger.broken:verb",
            "gone": "stranger.gone:verb",
        }
    )
    assert main(["--help"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["greet"].endswith("  Greet somebody.")
    assert lines["many"].endswith("  A group of commands.")
    assert lines["broken"].endswith("  Needs more.")
    assert "embedded" in lines["engine"]
    assert lines["machine"].endswith("  Commands: near.")
    assert lines["gone"].strip() == "gone"
    assert "stranger.verbs" not in sys.modules


def test_no_arguments_is_help(
    join: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    join({})
    assert main([]) == 0
    assert "version" in capsys.readouterr().out


def test_function_is_a_command(
    join: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    join({"greet": "stranger.verbs:greet"})
    assert main(["greet", "Ada", "--times", "2"]) == 0
    assert capsys.readouterr().out == "hello hello Ada\n"
    assert main(["greet", "--help"]) == 0
    assert "More than one line." in capsys.readouterr().out


def test_group_by_name_and_by_typer(
    join: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    join({"engine far": "stranger.verbs:greet", "many": "stranger.verbs:app"})
    assert main(["engine", "far", "Ada"]) == 0
    assert main(["many", "list"]) == 0
    assert capsys.readouterr().out == "hello Ada\nthings\n"


def test_debug_reaches_the_command(
    join: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(cli.DEBUG, "")
    join({"many": "stranger.verbs:app"})
    assert main(["--debug", "many", "debug"]) == 0
    assert capsys.readouterr().out == "1\n"


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("config", 2, "agentsched: no engine given (write --engine URL)"),
        ("policy", 2, "agentsched: no such policy"),
        ("engine", 1, "agentsched: http://x: connection refused"),
        ("os", 1, "agentsched: [Errno 2] No such file or directory: '/nonexistent/file'"),
        ("group", 2, "agentsched: deep"),
        ("interrupt", 130, ""),
        ("abort", 130, ""),
        ("exit", 7, ""),
        ("code", 9, ""),
        ("not", 0, ""),
    ],
)
def test_failure_is_one_line(
    join: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    how: str,
    code: int,
    line: str,
) -> None:
    join(FAIL)
    assert main(["fail", how]) == code
    assert capsys.readouterr().err.strip() == line


def test_words_of_others_do_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise OSError("it says \x1b[2J\x07")

    monkeypatch.setattr("agentsched.cli.root.run", fail)
    assert main([]) == 1
    assert (
        capsys.readouterr().err
        == "agentsched: it says \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}\n"
    )


def test_defect_has_a_traceback_on_request(
    join: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join(FAIL)
    assert main(["fail", "defect"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("agentsched: KeyError: 'surprise' (a defect")
    monkeypatch.setenv(cli.DEBUG, "1")
    assert main(["fail", "defect"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fails"], "agentsched: No such command 'fails'. Did you mean 'fail'?"),
        (["fail"], "agentsched fail: Missing argument 'how'."),
        (["fail", "--hwo"], "agentsched fail: No such option: --hwo"),
        (["--nope"], "agentsched: No such option: --nope"),
        (["engine", "far", "--times"], "agentsched engine far: Option '--times' requires an "),
        (["engine"], "agentsched engine: Missing command."),
    ],
)
def test_wrong_usage(
    join: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    join({**FAIL, "engine far": "stranger.verbs:greet"})
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert line.endswith(" --help')")


def test_a_group_alone_shows_its_help(
    join: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    join({"helpful": "stranger.verbs:helpful"})
    assert main(["helpful", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "The second thing." in shown
    assert main(["helpful"]) == 2
    assert capsys.readouterr().err == shown


def test_missing_package_is_named(
    join: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    join({"broken": "stranger.broken:verb", "gone": "stranger.verbs:absent"})
    assert main(["broken"]) == 2
    assert "needs surely_not_installed_anywhere (pip install" in capsys.readouterr().err
    assert main(["gone"]) == 2
    assert "command 'gone'" in capsys.readouterr().err


def test_not_a_command(join: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    join({"thing": "stranger.verbs:THING"})
    assert main(["thing"]) == 2
    assert "stranger.verbs:THING is no command" in capsys.readouterr().err


def test_offered_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    values = ("json.tool:main", "this:that", "json.tool:main")
    entries = [EntryPoint(name="replay", value=v, group=verbs.GROUP) for v in values]
    monkeypatch.setattr(verbs, "entry_points", lambda *, group: entries)
    assert main(["replay"]) == 2
    assert "offered twice: json.tool:main, this:that" in capsys.readouterr().err


def test_own_commands_cannot_be_taken(
    join: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    join({"version": "stranger.verbs:greet"})
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agentsched"] == agentsched.__version__
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"agentsched {agentsched.__version__}\n")


def test_version_option(join: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    join({})
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"agentsched {agentsched.__version__}\n"


def test_summary_of_odd_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_source.py").write_text("def verb(:\n")
    (tmp_path / "odd_class.py").write_text("class Verb:\n    '''A class.\n\n    More.'''\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    entry = EntryPoint(name="x", value="odd_source:verb", group=verbs.GROUP)
    assert summary(entry) == ""
    assert summary(EntryPoint(name="x", value="odd_class:Verb", group=verbs.GROUP)) == "A class."
    assert summary(EntryPoint(name="x", value="sys:exit", group=verbs.GROUP)) == ""


@pytest.mark.slow
def test_installed_program_imports_no_verb() -> None:
    """The real list of commands, in a process of its own."""
    code = (
        "import sys\nfrom agentsched.cli import main\nassert main(['--help']) == 0\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for verb in ("serve", "engine", "demo", "replay", "trace", "version"):
        assert f"\n  {verb} " in done.stdout
    modules = done.stderr.split()
    heavy = {"aiohttp", "httpx", "msgspec", "networkx", "pydantic", "rich", "sqlalchemy"}
    assert heavy & set(modules) == set()
    assert [m for m in modules if m.startswith(("agentsched_", "agentsched.proxy"))] == []
