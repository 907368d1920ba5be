"""The agents in one shape, so that one test can be put to all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agentsched_bench.clients.command_lines import CommandLine, Installed
from agentsched_bench.engine.playback import Script, ScriptedAnswer, ScriptedCall

#: What OpenCode asks its small model for, before the first step of a new conversation.
TITLE: Final = Script(match="Generate a title", answers=(ScriptedAnswer(text="A title"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent: how it is pointed at a URL, how it is given a task, how it calls a shell.

    `shell` makes a call that runs a command. `last_word` makes the answer that ends a task with a
    text. `prompt_is` says which user message holds the task: Codex sends its surroundings first.
    `continues_cut`: of a text whose connection broke it asks for the rest.
    """

    name: str
    line: Callable[[Installed, str, Path], CommandLine]
    task: Callable[[str], tuple[str, ...]]
    shell: Callable[[str], ScriptedCall]
    last_word: Callable[[str], ScriptedAnswer]
    prompt_is: Literal["first", "last"] = "first"
    streams: bool = True
    sends_ids: bool = True
    continues_cut: bool = False
    is_installed: Callable[[Installed], bool] = lambda _: True

    def script(self, task: str, commands: Sequence[str], *, last_word: str) -> tuple[Script, ...]:
        """Playback in which the agent runs the commands one after the other, and then ends."""
        looks = (
            ScriptedAnswer(text=f"{_LONG} \n", tool_calls=(self.shell(command),))
            for command in commands
        )
        answers = (*looks, self.last_word(last_word))
        if self.prompt_is == "first":
            return (TITLE, Script(match=task, answers=answers))
        return (Script(last=task, answers=answers),)


#: Long enough to be cut in the middle.
_LONG: Final = "Let me look at that, one thing after the other, and then at the rest of it. " * 4


def say(text: str, *calls: ScriptedCall) -> ScriptedAnswer:
    """An answer with a text and calls beside it."""
    return ScriptedAnswer(text=text, tool_calls=calls)


def claude_bash(command: str) -> ScriptedCall:
    return ScriptedCall(name="Bash", arguments={"command": command, "description": "look"})


def codex_exec(command: str) -> ScriptedCall:
    return ScriptedCall(name="exec_command", arguments={"cmd": command, "yield_time_ms": 30_000})


def opencode_bash(command: str) -> ScriptedCall:
    return ScriptedCall(name="bash", arguments={"command": command, "description": "look"})


def mini_bash(command: str) -> ScriptedCall:
    return ScriptedCall(name="bash", arguments={"command": command})


def qwen_shell(command: str) -> ScriptedCall:
    arguments = {"command": command, "is_background": False, "description": "look"}
    return ScriptedCall(name="run_shell_command", arguments=arguments)


def openhands_terminal(command: str) -> ScriptedCall:
    return ScriptedCall(name="terminal", arguments={"command": command})


CODEX_OPTIONS: Final = (
    "--json",
    "--dangerously-bypass-approvals-and-sandbox",
    "--skip-git-repo-check",
)

AGENTS: Final = (
    Agent(
        name="claude-code",
        line=Installed.claude_code,
        task=lambda text: ("-p", text),
        shell=claude_bash,
        last_word=say,
    ),
    Agent(
        name="codex",
        line=Installed.codex,
        task=lambda text: ("exec", *CODEX_OPTIONS, text),
        shell=codex_exec,
        last_word=say,
        prompt_is="last",
    ),
    Agent(
        name="opencode",
        line=Installed.opencode,
        task=lambda text: ("run", "--format", "json", text),
        shell=opencode_bash,
        last_word=say,
    ),
    Agent(
        name="qwen",
        line=Installed.qwen_code,
        task=lambda text: ("-p", text),
        shell=qwen_shell,
        last_word=say,
        sends_ids=False,
        continues_cut=True,
    ),
    Agent(
        name="openhands",
        line=Installed.openhands,
        task=lambda text: (text,),
        shell=openhands_terminal,
        last_word=say,
        streams=False,
        is_installed=lambda installed: installed.has_openhands,
    ),
    Agent(
        name="mini-swe-agent",
        line=Installed.mini_swe_agent,
        task=lambda text: ("-t", text),
        shell=mini_bash,
        streams=False,
        sends_ids=False,
        last_word=lambda text: say(
            "", mini_bash(f"echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo {text}")
        ),
    ),
)
