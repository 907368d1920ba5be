"""The real agents' command lines: where they are, how each is pointed at a URL, how it is run.

Each run has a home and a working folder of its own and an environment that holds nothing of ours.
The lines of configuration are those of docs/clients.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agentsched.model import ConfigError

MODEL: Final = "sim"
#: The model that OpenCode names its conversations with.
SMALL_MODEL: Final = "sim-small"
#: OpenHands as its own documentation runs it, on the task that is its argument.
OPENHANDS_TASK: Final = """\
import os, sys

from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.sdk.context.condenser import LLMSummarizingCondenser
from openhands.tools.terminal import TerminalTool

llm = LLM(
    usage_id="agent",
    model=os.environ["LLM_MODEL"],
    base_url=os.environ["LLM_BASE_URL"],
    api_key=os.environ["LLM_API_KEY"],
)
condenser = None
if events_max := int(os.environ["EVENTS_MAX"]):
    own = llm.model_copy(update={"usage_id": "condenser"})
    condenser = LLMSummarizingCondenser(llm=own, max_size=events_max, keep_first=2)
tools = [Tool(name=TerminalTool.name)]
agent = Agent(llm=llm, tools=tools, condenser=condenser)
conversation = Conversation(agent=agent, workspace=os.getcwd())
conversation.send_message(sys.argv[1])
conversation.run()
"""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KILL_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """One agent, ready to be run against one URL. `files` are written before each run."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    files: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What became of a run."""

    status: int
    output: str
    errors: str

    def events(self) -> list[dict[str, Any]]:
        """The output's lines of JSON."""
        found = []
        for line in self.output.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found


def is_installation(folder: Path) -> bool:
    """Whether `scripts/install-clients` has filled this folder."""
    return (folder / ".installed").is_file()


class Installed:
    """The agents that `scripts/install-clients` put into a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises: ConfigError: they are not there."""
        if not is_installation(folder):
            raise ConfigError(f"no agent clients in {folder} (run scripts/install-clients)")
        self._modules = folder / "node/node_modules"
        self._python = folder / "python/bin"
        self._openhands = folder / "openhands/bin/python"
        machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "x64")
        self._platform = f"{platform.system().lower()}-{machine}"

    def claude_code(
        self, url: str, home: Path, *, environment: Mapping[str, str] | None = None
    ) -> CommandLine:
        """Claude Code; further arguments begin with `-p PROMPT`."""
        binary = self._modules / f"@anthropic-ai/claude-code-{self._platform}/claude"
        return CommandLine(
            name="claude-code",
            arguments=(str(binary), "--output-format=json", "--dangerously-skip-permissions"),
            environment={
                "HOME": str(home),
                "ANTHROPIC_BASE_URL": url,
                "ANTHROPIC_API_KEY": "no-key",
                "ANTHROPIC_MODEL": MODEL,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_TELEMETRY": "1",
                "DISABLE_ERROR_REPORTING": "1",
                "DISABLE_AUTOUPDATER": "1",
                "IS_SANDBOX": "1",  # else it refuses to run without questions as root
                **(environment or {}),
            },
        )

    def codex(self, url: str, home: Path) -> CommandLine:
        """Codex; further arguments begin with `exec`."""
        vendor = self._modules / f"@openai/codex-{self._platform}/vendor"
        binary = next(vendor.glob("*/bin/codex"), vendor / "codex")
        config = f"""\
model = "{MODEL}"
model_provider = "agentsched"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[model_providers.agentsched]
name = "agentsched"
base_url = "{url}/v1"
env_key = "AGENTSCHED_KEY"
wire_api = "responses"
[analytics]
enabled = false
[otel]
exporter = "none"
"""
        return CommandLine(
            name="codex",
            arguments=(str(binary),),
            environment={
                "HOME": str(home),
                "CODEX_HOME": str(home / ".codex"),
                "AGENTSCHED_KEY": "no-key",
            },
            files={home / ".codex/config.toml": config},
        )

    def opencode(
        self, url: str, home: Path, *, options: Mapping[str, Any] | None = None
    ) -> CommandLine:
        """OpenCode; further arguments begin with `run`."""
        models = {
            name: {"limit": {"context": 128_000, "output": 8_192}} for name in (MODEL, SMALL_MODEL)
        }
        config = {
            "autoupdate": False,
            "share": "disabled",
            "model": f"agentsched/{MODEL}",
            "small_model": f"agentsched/{SMALL_MODEL}",
            "permission": {"bash": "allow", "edit": "allow"},
            "provider": {
                "agentsched": {
                    "npm": "@ai-sdk/openai-compatible",
                    "options": {"baseURL": f"{url}/v1", "apiKey": "no-key"},
                    "models": models,
                }
            },
            **(options or {}),
        }
        file = home / "opencode.json"
        return CommandLine(
            name="opencode",
            arguments=(str(self._modules / f"opencode-{self._platform}/bin/opencode"),),
            environment={
                "HOME": str(home),
                "OPENCODE_CONFIG": str(file),
                "OPENCODE_DISABLE_AUTOUPDATE": "1",
                "OPENCODE_DISABLE_MODELS_FETCH": "1",
                "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            },
            files={file: json.dumps(config)},
        )

    def qwen_code(
        self, url: str, home: Path, *, environment: Mapping[str, str] | None = None
    ) -> CommandLine:
        """Qwen Code; further arguments begin with `-p PROMPT`."""
        return CommandLine(
            name="qwen",
            arguments=(
                str(self._modules / f"node-{self._platform}/bin/node"),
                str(self._modules / "@qwen-code/qwen-code/cli-entry.js"),
                *("--auth-type", "openai", "-y", "-o", "json"),
            ),
            environment={
                "HOME": str(home),
                "OPENAI_API_KEY": "no-key",
                "OPENAI_BASE_URL": f"{url}/v1",
                "OPENAI_MODEL": MODEL,
                **(environment or {}),
            },
        )

    @property
    def has_openhands(self) -> bool:
        """Whether there was a Python that OpenHands runs on."""
        return self._openhands.exists()

    def openhands(self, url: str, home: Path, *, events_max: int = 0) -> CommandLine:
        """OpenHands by its SDK; the further argument is the task.

        After `events_max` events it condenses its history (0: never).
        """
        script = home / "openhands_task.py"
        return CommandLine(
            name="openhands",
            arguments=(str(self._openhands), str(script)),
            environment={
                "HOME": str(home),
                "LLM_BASE_URL": f"{url}/v1",
                "LLM_MODEL": f"openai/{MODEL}",
                "LLM_API_KEY": "no-key",
                "EVENTS_MAX": str(events_max),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "OPENHANDS_SUPPRESS_BANNER": "1",
            },
            files={script: OPENHANDS_TASK},
        )

    def mini_swe_agent(self, url: str, home: Path) -> CommandLine:
        """mini-swe-agent; further arguments begin with `-t TASK`."""
        return CommandLine(
            name="mini-swe-agent",
            arguments=(
                str(self._python / "mini"),
                *("-m", f"openai/{MODEL}", "-y", "--exit-immediately"),
                *("-c", "mini.yaml", "-c", f"model.model_kwargs.api_base={url}/v1"),
                *("-c", "agent.mode=yolo"),
            ),
            environment={
                "HOME": str(home),
                "OPENAI_API_KEY": "no-key",
                "MSWEA_CONFIGURED": "true",
                "MSWEA_COST_TRACKING": "ignore_errors",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
        )


async def run(line: CommandLine, *arguments: str, folder: Path, limit_s: float) -> Run:
    """Run an agent to its end in `folder`; what it leaves behind in its group is killed.

    Raises:
        TimeoutError: it took longer than `limit_s`; the text has the end of what it said.
    """
    for path, text in line.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *line.arguments,
        *arguments,
        cwd=folder,
        env={"PATH": _PATH, "LANG": "C.UTF-8", "TERM": "dumb", **line.environment},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output = asyncio.create_task(process.stdout.read())
    errors = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(limit_s):
            status = await process.wait()
    except TimeoutError:
        _kill(process.pid)
        await process.wait()
        said = [(await _rest(task)).decode(errors="replace")[-2_000:] for task in (output, errors)]
        raise TimeoutError(f"{line.name} took longer than {limit_s:g} s: {said}") from None
    finally:
        # Whatever it left running holds the pipes open, and is of no use.
        _kill(process.pid)
    said = [(await _rest(task)).decode(errors="replace") for task in (output, errors)]
    return Run(status=status, output=said[0], errors=said[1])


async def _rest(task: asyncio.Task[bytes]) -> bytes:
    async with asyncio.timeout(_KILL_S):
        return await task


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def texts(events: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """The texts of an agent's events of one kind (Codex: `agent_message`, OpenCode: `text`)."""
    found = []
    for event in events:
        item = event.get("item") or event.get("part") or {}
        if isinstance(item, dict) and item.get("type") == kind:
            found.append(str(item.get("text", "")))
    return found
