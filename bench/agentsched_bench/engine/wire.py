"""Request bodies of four dialects, read strictly where vLLM is strict, into one `Ask`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from agentsched.model.errors import WireError
from agentsched_bench.engine.ask import (
    CHOICES,
    Ask,
    Dialect,
    Said,
    Tool,
    answers,
    first_user,
    last_user,
    render,
)
from agentsched_bench.engine.tokenizer import encode

Scalar: TypeAlias = str | int | float | bool
Object: TypeAlias = dict[str, Any]


_T = TypeVar("_T")
#: What vLLM calls a body that does not validate; other errors have names like `BadRequestError`.
INVALID = "Bad Request"
#: How deep content may be nested in content.
_DEPTH_MAX = 64


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """Fields that several dialects share, with vLLM's extras."""

    model: str | None = None
    stream: bool | None = False
    seed: int | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    min_tokens: int | None = 0
    ignore_eos: bool | None = False
    priority: int | None = 0
    cache_salt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream_options: StreamOptions | None = None
    vllm_xargs: dict[str, Scalar | list[Scalar]] | None = None


class ChatBody(Common, kw_only=True):
    messages: list[Object]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Object] | None = None
    tool_choice: str | Object | None = None


class CompletionBody(Common, kw_only=True):
    prompt: str | list[int | str | list[int]]
    max_tokens: int | None = 16
    return_token_ids: bool | None = None


class ResponsesBody(Common, kw_only=True):
    input: str | list[Object]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[Object] | None = None
    tool_choice: str | Object | None = None
    previous_response_id: str | None = None
    metadata: Object | None = None
    parallel_tool_calls: bool | None = True


class MessagesBody(msgspec.Struct, kw_only=True):
    model: str
    messages: list[Object]
    max_tokens: int | None = None
    system: str | list[Object] | None = None
    tools: list[Object] | None = None
    tool_choice: Object | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    cache_salt: str | None = None
    vllm_xargs: dict[str, Scalar | list[Scalar]] | None = None


class EmbeddingBody(msgspec.Struct, kw_only=True):
    input: str | list[int | str | list[int]]
    model: str | None = None
    encoding_format: str | None = "float"
    dimensions: int | None = None
    priority: int | None = 0


def decode(body: bytes, kind: type[_T]) -> _T:
    """`body` as a `kind`.

    Raises:
        WireError: not JSON, or a field is missing or of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind, strict=True)
    except msgspec.ValidationError as error:
        raise WireError(str(error), code=INVALID, param=_field(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"the body is not JSON: {error}", code=INVALID) from error


def parse_chat(body: bytes, *, default_model: str) -> Ask:
    """A chat completion request."""
    given = decode(body, ChatBody)
    if not given.messages:
        raise WireError("messages must not be empty", code="BadRequestError", param="messages")
    messages = [_chat_message(message) for message in given.messages]
    limit = given.max_completion_tokens
    return _ask(
        given,
        dialect=Dialect.CHAT,
        default_model=default_model,
        prompt=render(messages, tools=given.tools),
        max_tokens=limit if limit is not None else given.max_tokens,
        messages=messages,
        tools=_tools(given.tools),
        tool_choice=_choice(given.tool_choice),
    )


def parse_completion(body: bytes, *, default_model: str) -> Ask:
    """A text completion request: one prompt, as text or as token ids."""
    given = decode(body, CompletionBody)
    prompts = prompt_list(given.prompt)
    if len(prompts) != 1:
        raise WireError(
            "this engine takes one prompt per request", code="BadRequestError", param="prompt"
        )
    return _ask(
        given,
        dialect=Dialect.COMPLETION,
        default_model=default_model,
        prompt=prompts[0],
        max_tokens=given.max_tokens,
        messages=[],
        return_token_ids=bool(given.return_token_ids),
    )


def parse_responses(body: bytes, *, default_model: str) -> Ask:
    """A Responses request; nothing is stored, so it cannot continue an earlier one by id."""
    given = decode(body, ResponsesBody)
    if given.previous_response_id:
        raise WireError(
            f"Response with id '{given.previous_response_id}' not found.",
            status=404,
            code="invalid_request_error",
            param="response_id",
        )
    messages = [Said(role="system", text=given.instructions)] if given.instructions else []
    if isinstance(given.input, str):
        messages.append(Said(role="user", text=given.input))
    else:
        messages += [_response_item(item) for item in given.input]
    echo = {
        "instructions": given.instructions,
        "metadata": given.metadata,
        "parallel_tool_calls": given.parallel_tool_calls is not False,
        "tool_choice": given.tool_choice or "auto",
        "tools": given.tools or [],
        "temperature": 1.0 if given.temperature is None else given.temperature,
        "top_p": 1.0 if given.top_p is None else given.top_p,
        "max_output_tokens": given.max_output_tokens,
    }
    return _ask(
        given,
        dialect=Dialect.RESPONSES,
        default_model=default_model,
        prompt=render(_joined(messages), tools=given.tools),
        max_tokens=given.max_output_tokens,
        messages=messages,
        tools=_tools(given.tools),
        tool_choice=_choice(given.tool_choice),
        echo=echo,
    )


def parse_messages(body: bytes, *, counting: bool = False) -> Ask:
    """An Anthropic Messages request; `counting` is `count_tokens`, which needs no `max_tokens`."""
    given = decode(body, MessagesBody)
    if given.max_tokens is None and not counting:
        raise WireError("max_tokens: Field required", code=INVALID, param="body.max_tokens")
    if given.max_tokens is not None and given.max_tokens < 1:
        raise WireError("max_tokens must be positive", code=INVALID, param="body.max_tokens")
    messages: list[Said] = []
    if given.system:
        messages.append(Said(role="system", text=_text(given.system)))
    for message in given.messages:
        messages += _anthropic_message(message)
    choice = given.tool_choice or {}
    wanted = {"any": "required", "none": "none"}.get(str(choice.get("type")), "auto")
    if choice.get("type") == "tool":
        wanted = str(choice.get("name"))
    common = Common(
        model=given.model,
        stream=given.stream,
        stop=given.stop_sequences,
        cache_salt=given.cache_salt,
    )
    return _ask(
        common,
        dialect=Dialect.MESSAGES,
        default_model=given.model,
        prompt=render(messages, tools=given.tools),
        max_tokens=given.max_tokens,
        messages=messages,
        tools=_tools(given.tools),
        tool_choice=wanted,
    )


def prompt_list(prompt: str | list[int | str | list[int]]) -> list[list[int]]:
    """Every shape in which prompts may come, as lists of token ids.

    Raises:
        WireError: empty, or an id that is no 32-bit number.
    """
    lists: list[list[int]] = []
    bare: list[int] = []
    for one in [prompt] if isinstance(prompt, str) else prompt:
        if isinstance(one, int):
            bare.append(one)
        else:
            lists.append(encode(one) if isinstance(one, str) else one)
    if bare:
        lists.append(bare)
    if not lists or not all(lists):
        raise WireError("the prompt must not be empty", code="BadRequestError", param="prompt")
    for ids in lists:
        if min(ids) < 0 or max(ids) >= 1 << 32:
            raise WireError("token id out of range", code="BadRequestError", param="prompt")
    return lists


def chat_prompt(messages: list[Object], *, tools: Any, open_answer: bool) -> list[int]:
    """The tokens of chat messages, for `/tokenize`."""
    said = [_chat_message(message) for message in messages]
    return render(said, tools=tools, open_answer=open_answer)


def _ask(
    given: Common,
    *,
    dialect: Dialect,
    default_model: str,
    prompt: list[int],
    max_tokens: int | None,
    messages: Sequence[Said],
    tools: tuple[Tool, ...] = (),
    tool_choice: str = "auto",
    echo: Object | None = None,
    return_token_ids: bool = False,
) -> Ask:
    _check_numbers(given, max_tokens)
    options = given.stream_options or StreamOptions()
    if given.stream_options is not None and not given.stream:
        raise WireError(
            "Stream options can only be defined when `stream=True`.",
            code="BadRequestError",
            param="stream_options",
        )
    stop = (given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ())
    return Ask(
        dialect=dialect,
        model=given.model or default_model,
        prompt=prompt,
        max_tokens=max_tokens,
        min_tokens=given.min_tokens or 0,
        ignore_eos=bool(given.ignore_eos),
        stop=tuple(text for text in stop if text),
        stream=bool(given.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats and options.include_usage),
        seed=given.seed or 0,
        priority=given.priority or 0,
        salt=given.cache_salt or "",
        tools=tools,
        tool_choice=tool_choice,
        first_user=first_user(messages),
        last_user=last_user(messages),
        answers=answers(messages),
        echo=echo or {},
        return_token_ids=return_token_ids,
    )


def _check_numbers(given: Common, max_tokens: int | None) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise WireError(
            f"max_tokens must be at least 1, got {max_tokens}.",
            code="BadRequestError",
            param="max_tokens",
        )
    least = given.min_tokens or 0
    if least < 0 or (max_tokens is not None and least > max_tokens):
        raise WireError(
            f"min_tokens must be between 0 and max_tokens={max_tokens}, got {least}.",
            code="BadRequestError",
            param="min_tokens",
        )
    if given.n not in (None, 1):
        raise WireError("this engine gives one answer (n=1)", code="BadRequestError", param="n")
    if given.temperature is not None and given.temperature < 0:
        raise WireError(
            f"temperature must be non-negative, got {given.temperature}.",
            code="BadRequestError",
            param="temperature",
        )


def _field(message: str) -> str | None:
    """vLLM's `param` for msgspec's words: where in the body."""
    _, missing, name = message.partition("missing required field `")
    _, found, path = message.partition("at `$.")
    if found:
        return "body." + path.rstrip("`").split(".")[0].split("[")[0]
    return f"body.{name.rstrip('`')}" if missing else None


def _choice(value: str | Object | None) -> str:
    if value is None:
        return "auto"
    if isinstance(value, str):
        if value not in CHOICES:
            raise WireError(
                f"tool_choice must be one of {', '.join(CHOICES)} or name a function",
                code="BadRequestError",
                param="tool_choice",
            )
        return value
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else value.get("name")
    if not isinstance(name, str):
        raise WireError(
            "tool_choice names no function", code="BadRequestError", param="tool_choice"
        )
    return name


def _tools(given: list[Object] | None) -> tuple[Tool, ...]:
    """The callable tools of any dialect; those that run at the provider are left out."""
    tools: list[Tool] = []
    for tool in given or ():
        if tool.get("type") == "namespace":
            tools += _tools(tool.get("tools"))
            continue
        function = tool.get("function")
        source = function if isinstance(function, dict) else tool
        name = source.get("name")
        if isinstance(name, str) and name:
            parameters = source.get("parameters", source.get("input_schema"))
            tools.append(Tool(name=name, parameters=parameters))
    return tuple(tools)


def _text(content: object, *, depth: int = 0) -> str:
    """The text of any content: a string, or parts; a part without text stands as its JSON."""
    if depth > _DEPTH_MAX:
        raise WireError("content is nested too deeply", code="BadRequestError", param="messages")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text(part, depth=depth + 1) for part in content)
    if isinstance(content, dict):
        for key in ("text", "content", "thinking", "refusal"):
            if isinstance(content.get(key), str | list):
                return _text(content[key], depth=depth + 1)
    return msgspec.json.encode(content, order="deterministic").decode()


def _role(message: Object) -> str:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise WireError("a message needs a role", code="BadRequestError", param="messages")
    return "system" if role == "developer" else role


def _call(name: object, arguments: object) -> tuple[str, str]:
    if not isinstance(name, str):
        raise WireError("a tool call needs a name", code="BadRequestError", param="messages")
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments if arguments is not None else {}).decode()
    return name, arguments


def _chat_message(message: Object) -> Said:
    given = message.get("tool_calls") or []
    if not isinstance(given, list):
        raise WireError("tool_calls must be a list", code="BadRequestError", param="messages")
    calls = []
    for call in given:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise WireError(
                "a tool call needs a function", code="BadRequestError", param="messages"
            )
        calls.append(_call(function.get("name"), function.get("arguments")))
    return Said(role=_role(message), text=_text(message.get("content")), calls=tuple(calls))


def _anthropic_message(message: Object) -> list[Said]:
    role = _role(message)
    content = message.get("content")
    if not isinstance(content, list):
        return [Said(role=role, text=_text(content))]
    said: list[Said] = []
    text = ""
    calls: list[tuple[str, str]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            calls.append(_call(block.get("name"), block.get("input")))
        elif kind == "tool_result":
            said.append(Said(role="tool", text=_text(block.get("content"))))
        elif kind not in ("thinking", "redacted_thinking"):
            text += _text(block)
    if text or calls or not said:
        said.append(Said(role=role, text=text, calls=tuple(calls)))
    return said


def _response_item(item: Object) -> Said:
    kind = item.get("type", "message")
    if kind == "function_call":
        call = _call(item.get("name"), item.get("arguments"))
        return Said(role="assistant", text="", calls=(call,))
    if kind == "function_call_output":
        return Said(role="tool", text=_text(item.get("output")))
    if kind == "message":
        return Said(role=_role(item), text=_text(item.get("content")))
    return Said(role=str(kind), text=_text(item))


def _joined(messages: Sequence[Said]) -> list[Said]:
    """Items of one answer as one message, as the answer's tokens were generated."""
    joined: list[Said] = []
    for said in messages:
        last = joined[-1] if joined else None
        if last is not None and last.role == said.role == "assistant" and not said.text:
            calls = last.calls + said.calls
            joined[-1] = Said(role="assistant", text=last.text, calls=calls)
        else:
            joined.append(said)
    return joined
