"""SWE-agent's `.traj`: one JSON object with `trajectory` (what was done) and `history` (messages).

Three shapes are in use. Before 1.0 an action is a text in a code block, and nothing is timed. From
1.0 an action is a tool call with its `execution_time`, and each step has `messages` (the history up
to its observation). From 1.1 a step has `query` instead: the very messages that were sent, with old
observations elided; what an answer called is in the next of them. Answers of a wrong form, which
were asked for again, are steps but no part of the history. `query` is taken as the prompt where it
is there; else a prompt is the history before the answer. An agent that tries several times has
`attempts`, each a trajectory of its own. Tokens are estimated, and scaled to the run's recorded
totals where they count the same calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import (
    Usage,
    command_of,
    fenced_command,
    read_tool_calls,
    said,
)
from agentsched_bench.workload.importers.draft import (
    Call,
    Chain,
    Conversation,
    Imported,
    Runs,
    command_word,
)
from agentsched_bench.workload.importers.files import InputFile, OnError, documents
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_json,
    as_list,
    as_name,
    as_object,
    as_objects,
    as_seconds,
    as_text,
    first,
    flat,
)
from agentsched_bench.workload.token_estimate import estimate_tokens
from agentsched_bench.workload.trace import (
    RecordedMessage,
    RecordedTool,
    RecordedToolCall,
    Recording,
    TraceError,
)

#: What its messages have beside a role and a content.
_OWN: Final = frozenset({"message_type", "thought", "is_demo"})


@dataclass(frozen=True, slots=True)
class SweAgent:
    """Reads SWE-agent trajectories of all versions."""

    name: str = "swe-agent"
    title: str = "SWE-agent .traj"

    def claims(self, head: Sequence[Any]) -> bool:
        value = as_object(next(iter(flat(head)), None))
        steps = as_objects(value.get("trajectory"))
        # OpenHands' downloads have a `trajectory` of events, which say their source.
        steps = [step for step in steps[:5] if "source" not in step]
        named = any("action" in step or "response" in step for step in steps)
        if any("trajectory" in attempt for attempt in as_objects(value.get("attempts"))):
            return True
        told = as_objects(value.get("history"))[:5]
        if any("role" in message and _OWN.intersection(message) for message in told):
            # Demonstrations may have no more than the history.
            return True
        return named or ("trajectory" in value and ("history" in value or "environment" in value))

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        for file in files:
            for found in documents(file, on_error=on_error):
                value = as_object(found.value)
                name = _session_id(file, value, mark=found.mark)
                runs = _runs(value, name)
                is_found = False
                for own_name, run in runs:
                    recording = _recording(run, own_name, options, is_cut=found.is_cut)
                    if recording is not None:
                        is_found = True
                        yield Imported(recording=recording)
                if not is_found:
                    text = "no step with an answer in it"
                    on_error(TraceError(text, path=file.path, line=found.line))


def _runs(value: Object, name: str) -> list[tuple[str, Object]]:
    """Each attempt with its name. Beside them the file repeats the best one."""
    attempts = [a for a in as_objects(value.get("attempts")) if "trajectory" in a]
    if len(attempts) > 1:
        return [(f"{name}/attempt-{n}", run) for n, run in enumerate(attempts, start=1)]
    return [(name, attempts[0] if attempts else value)]


def _recording(
    value: Object, name: str, options: ImportOptions, *, is_cut: bool
) -> Recording | None:
    reader = _Trajectory(value)
    reader.read()
    return reader.conversation.recording(
        session_id=name,
        source=options.source or "swe-agent",
        keeps_text=options.keeps_text,
        workload="swe-bench",
        agent="SWE-agent",
        model=_model(value),
        token_source=reader.token_source(),
        exit_status=as_name(reader.info.get("exit_status")) or None,
        is_cut=is_cut,
    )


def _session_id(file: InputFile, value: Object, *, mark: str) -> str:
    if mark:
        return as_name(value.get("instance_id"), default=f"{file.name}{mark}")
    problem = as_object(_config(value).get("problem_statement"))
    return file.name or as_name(problem.get("id"), default="trajectory")


def _config(value: Object) -> Object:
    """How the run was set up: an object, from some versions one as JSON in a string."""
    return as_object(as_json(value.get("replay_config")))


def _model(value: Object) -> str | None:
    model = as_object(as_object(_config(value).get("agent")).get("model"))
    info = as_object(value.get("info"))
    return as_name(first(model.get("name"), info.get("model_name"), value.get("model"))) or None


@dataclass(slots=True)
class _Trajectory:
    """One trajectory while it is read."""

    value: Object
    conversation: Conversation = field(default_factory=Conversation)
    is_scaled: bool = False
    #: Calls whose tokens were recorded.
    counted: int = 0

    @property
    def info(self) -> Object:
        return as_object(self.value.get("info"))

    def token_source(self) -> dict[str, str | None]:
        counted = "estimated, scaled to recorded totals" if self.is_scaled else "estimated"
        if self.counted:
            is_whole = self.counted == len(self.conversation.calls)
            counted = "recorded" if is_whole else "recorded, partly"
        return {"input": counted, "output": counted, "result": "estimated"}

    def read(self) -> None:
        steps = as_objects(self.value.get("trajectory"))
        history = as_objects(self.value.get("history"))
        if not history and steps:
            # Cut off before the history: a step's messages begin as the history did.
            history = _beginning(as_objects(steps[0].get("messages")))
        if any(as_list(step.get("query")) for step in steps):
            self._read_queries(steps, history)
        else:
            self._read_history(history, steps)
        stats = as_object(self.info.get("model_stats"))
        sent, received = as_count(stats.get("tokens_sent")), as_count(stats.get("tokens_received"))
        calls = as_count(stats.get("api_calls"))
        is_whole = calls == len(self.conversation.calls)
        if sent and received and is_whole and not self.counted:
            self.is_scaled = self.conversation.scale_to(prompt_tokens=sent, output_tokens=received)

    def _read_queries(self, steps: Sequence[Object], history: Sequence[Object]) -> None:
        """Prompts as they were sent. Equal messages are kept once, so cuts show by themselves."""
        for step, following in zip(steps, [*steps[1:], {}], strict=True):
            query = [message for message in as_objects(step.get("query")) if message]
            calls = _calls_of(step) or _repeated_calls(step, following, history)
            answer = _message("assistant", _answer_text(step), tool_calls=tuple(calls))
            if not query and (_is_own(answer.text or "") or not (answer.text or calls)):
                continue
            chain = Chain()
            for message in query:
                chain.append(self.conversation.known(_known(message)))
            self._call(chain.snapshot(), self.conversation.known(answer), step, calls)

    def _read_history(self, history: Sequence[Object], steps: Sequence[Object]) -> None:
        """Each answer in the history is a call, and what stands before it is its prompt."""
        chain = Chain()
        at = 0
        spare = len(steps) - sum(map(_is_answer, history))
        for message in history:
            if not _is_answer(message):
                chain.append(self._add(message, as_name(message.get("role"), default="user")))
                continue
            found = _step_of(message, steps, at, spare=spare)
            for failed in steps[at:found]:
                self._read_failed(failed, chain)
            spare -= found - at
            step: Object = steps[found] if found < len(steps) else {}
            at = found + 1
            calls = read_tool_calls(message) or _calls_of(step)
            prompt = chain.snapshot()
            # Text-only versions put the command in the answer; its action repeats it.
            text = said(message) or _answer_text(step)
            if _is_own(text):
                continue
            answer = self.conversation.add("assistant", text, tool_calls=read_tool_calls(message))
            chain.append(answer)
            step = step or {"action": message.get("action")}
            self._call(prompt, answer, step, calls)
        self._read_rest(steps[at:], chain)

    def _read_failed(self, step: Object, chain: Chain) -> None:
        """A call whose answer was of a wrong form: it was asked for again, and told to no other."""
        text = _answer_text(step)
        if (text or as_text(step.get("action"))) and not _is_own(text):
            answer = self.conversation.add("assistant", text)
            self._call(chain.snapshot(), answer, step, [])

    def _read_rest(self, steps: Sequence[Object], chain: Chain) -> None:
        """Steps that the history does not reach, because the file was cut off in it."""
        for step in steps:
            text, calls = _answer_text(step), _calls_of(step)
            if _is_own(text) or not (text or calls):
                continue
            prompt = chain.snapshot()
            answer = self.conversation.add("assistant", text, tool_calls=calls)
            chain.append(answer)
            self._call(prompt, answer, step, calls)
            chain.append(self.conversation.add("user", as_text(step.get("observation"))))

    def _add(self, message: Object, role: str) -> int:
        ids = as_list(message.get("tool_call_ids"))
        call_id = as_name(first(message.get("tool_call_id"), ids[0] if ids else None)) or None
        return self.conversation.add(role, said(message), call_id=call_id)

    def _call(
        self, prompt: Runs, answer: int, step: Object, calls: Sequence[RecordedToolCall]
    ) -> None:
        duration_s = as_seconds(step.get("execution_time"))
        result = step.get("observation")
        tokens = estimate_tokens(as_text(result)) if isinstance(result, str) else None
        tools = _tools(step, calls, duration_s=duration_s, result_tokens=tokens)
        usage = _usage(step)
        self.counted += usage.input_tokens is not None
        took_ms = as_seconds(as_object(step.get("turn_statistics")).get("inference_time"))
        self.conversation.calls.append(
            Call(
                prompt=prompt,
                answer=answer,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                llm_s=None if took_ms is None else took_ms / 1000,
                tools=tools,
                gap_s=duration_s if tools else None,
            )
        )


def _beginning(messages: Sequence[Object]) -> list[Object]:
    """What stands before the first answer."""
    found: list[Object] = []
    for message in messages:
        if _is_answer(message):
            break
        found.append(message)
    return found


def _is_own(answer: str) -> bool:
    """Whether SWE-agent itself wrote an answer, when it gave up without asking a model."""
    return answer.lower().startswith(("exit due to ", "exiting due to "))


def _is_answer(message: Object) -> bool:
    return as_name(message.get("role")) == "assistant" and not message.get("is_demo")


def _step_of(answer: Object, steps: Sequence[Object], at: int, *, spare: int) -> int:
    """Which step gave an answer of the history: the one at `at`, where none is known to be it.

    `spare` of the steps are not in the history. Versions differ in what a step says of its answer.
    """
    near = range(at, min(at + max(0, spare) + 1, len(steps)))
    same = [n for n in near if _answer_text(steps[n]) == said(answer)]
    exact = [n for n in same if steps[n].get("action") == answer.get("action")]
    return (exact or same or [at])[0]


def _repeated_calls(
    step: Object, following: Object, history: Sequence[Object]
) -> list[RecordedToolCall]:
    """The tool calls of an answer, which the next prompt repeats; of the last one, the history."""
    for messages in (as_objects(following.get("query")), history):
        answers = (message for message in reversed(messages) if _is_answer(message))
        last = next((one for one in answers if not _is_own(said(one))), None)
        if last is not None:
            is_same = last.get("action") in (None, step.get("action"))
            return read_tool_calls(last) if is_same and said(last) == _answer_text(step) else []
    return []


def _answer_text(step: Object) -> str:
    return as_text(first(step.get("response"), step.get("thought"), ""))


def _usage(step: Object) -> Usage:
    """What was counted of a step's call: in a fork of 1.0 (The Complexity Trap), nowhere else."""
    tokens = as_object(as_object(step.get("turn_statistics")).get("tokens"))
    cached = as_count(tokens.get("cached_input"))
    prompt = (as_count(tokens.get("raw_input")) or 0) + (cached or 0)
    if not prompt:
        return Usage()
    return Usage(
        input_tokens=prompt,
        output_tokens=as_count(tokens.get("output")),
        cached_tokens=cached,
        reasoning_tokens=as_count(tokens.get("internal_reasoning")) or 0,
    )


def _message(role: str, text: str, *, tool_calls: tuple[RecordedToolCall, ...]) -> RecordedMessage:
    return RecordedMessage(role=role, text=text, tool_calls=tool_calls)


def _known(message: Object) -> RecordedMessage:
    ids: Json = as_list(message.get("tool_call_ids"))
    role = as_name(message.get("role"), default="user")
    call_id = as_name(first(message.get("tool_call_id"), ids[0] if ids else None)) or None
    calls = tuple(read_tool_calls(message)) if role == "assistant" else ()
    return RecordedMessage(role=role, text=said(message), tool_calls=calls, call_id=call_id)


def _calls_of(step: Object) -> list[RecordedToolCall]:
    calls = read_tool_calls(step)
    if calls:
        return calls
    for message in reversed(as_objects(step.get("messages"))):
        if message.get("role") == "assistant":
            return read_tool_calls(message)
    return []


def _tools(
    step: Object,
    calls: Sequence[RecordedToolCall],
    *,
    duration_s: float | None,
    result_tokens: int | None,
) -> list[RecordedTool]:
    """The tools of a step. One time is recorded for all calls of a step: the last one has it."""
    action = as_text(step.get("action"))
    if not calls:
        command = action or fenced_command(_answer_text(step)) or ""
        if not command.strip():
            return []
        word = command_word(command)
        return [
            RecordedTool(
                name="bash", duration_s=duration_s, result_tokens=result_tokens, command=word
            )
        ]
    last = len(calls) - 1
    return [
        RecordedTool(
            name=call.name,
            duration_s=duration_s if index == last else None,
            result_tokens=result_tokens if index == last else None,
            command=command_of(call) or (command_word(action) if last == 0 else None),
            call_id=call.id or None,
        )
        for index, call in enumerate(calls)
    ]
