"""OpenAI's own client through the proxy: every answer is what the engine says without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.real.conftest import Pair

CHAT = "chat.completions.create"
COMPLETIONS = "completions.create"
RESPONSES = "responses.create"
RUNNING = "vllm:num_requests_running"
GENERATED = "vllm:generation_tokens_total"
SCHEMA: Any = {
    "type": "object",
    # Little to choose from: a model without sense ends an open text or number when it must.
    "properties": {"command": {"type": "string", "enum": ["ls", "pwd"]}},
    "required": ["command"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "bash", "parameters": SCHEMA}}
FLAT_TOOL: Any = {"type": "function", "name": "bash", "parameters": SCHEMA, "strict": False}
NAMED: Any = {"type": "function", "function": {"name": "bash"}}
USER: Any = {"role": "user", "content": "List the files of this folder, and say what they hold."}
ASKED: Any = {"messages": [USER], "temperature": 0, "max_tokens": 12}
HISTORY: Any = [
    {"role": "system", "content": "You are an agent in a shell. größe 日本 🙂"},
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "bash", "arguments": '{"command": "ls"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "a.py\nb.py\n"},
]
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": ["e", "a"], "max_tokens": 40},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "seed": {"temperature": 0.8, "seed": 7},
    "several": {"n": 2, "temperature": 0.9, "seed": 3},
    "long": {"max_tokens": 200, "extra_body": {"ignore_eos": True, "min_tokens": 200}},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}]},
    "history": {"messages": HISTORY, "tools": [TOOL]},
    "tools offered": {"tools": [TOOL], "tool_choice": "auto"},
    "tools refused": {"tools": [TOOL], "tool_choice": "none"},
    "tool required": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 120},
    "tool named": {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 120},
    "metadata": {"user": "somebody", "extra_headers": {"x-session-id": "s-1", "x-title": "t"}},
}
WRONG: dict[str, dict[str, Any]] = {
    "no messages": {"messages": []},
    "bad temperature": {"temperature": -3},
    "bad type": {"max_tokens": "many"},
    "nothing to say": {"max_tokens": 0},
    "bad role": {"messages": [{"role": 7, "content": "x"}]},
    "required without tools": {"tool_choice": "required"},
    "too long": {"messages": [{"role": "user", "content": "word and word " * 4_000}]},
    "too much": {"max_tokens": 100_000},
}
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
BLOCKING = pytest.mark.parametrize("is_blocking", [False, True], ids=["async", "sync"])


@FORMS
@pytest.mark.parametrize("case", CHATS)
async def test_chats_are_equal(case: str, stream: bool, chat: Pair) -> None:
    answer = await chat.equal(CHAT, **(ASKED | CHATS[case] | {"stream": stream}))

    # The embedded engine gives one answer to a request, and says so.
    assert ("error" in answer) == (case == "several" and not chat.target.is_real)


@FORMS
@BLOCKING
async def test_both_forms_of_the_client_get_usage(
    is_blocking: bool, stream: bool, chat: Pair
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    answer = await chat.equal(CHAT, is_blocking=is_blocking, **(ASKED | options))

    last = answer["kinds"]["all"][-1] if stream else answer
    assert last["usage"]["completion_tokens"] == 12


async def test_a_stream_that_did_not_ask_for_usage_gets_none(chat: Pair) -> None:
    answer = await chat.equal(CHAT, **(ASKED | {"stream": True}))

    assert "all" not in answer["kinds"]
    assert all(not kind.get("usage") for kind in answer["kinds"]["0"])


@FORMS
async def test_forced_tools_are_called(stream: bool, chat: Pair) -> None:
    forced = ASKED | CHATS["tool required"] | {"stream": stream, "temperature": 1.0}
    # A model without sense seldom ends what it has to write; some seed lets it.
    for seed in range(12):
        answer = await chat.equal(CHAT, **(forced | {"seed": seed, "max_tokens": 40}))
        if "'name': 'bash'" in str(answer):
            break
    else:
        pytest.fail("no call came of any seed")
    assert "'tool_calls': " in str(answer)


@FORMS
@pytest.mark.parametrize("case", WRONG)
async def test_errors_are_equal(case: str, stream: bool, chat: Pair) -> None:
    answer = await chat.equal(CHAT, **(ASKED | WRONG[case] | {"stream": stream}))

    if case != "required without tools":
        assert 400 <= answer["status"] < 500


@BLOCKING
async def test_errors_reach_both_forms_of_the_client(is_blocking: bool, chat: Pair) -> None:
    answer = await chat.equal(CHAT, is_blocking=is_blocking, **(ASKED | WRONG["too long"]))

    assert (answer["error"], answer["status"]) == ("BadRequestError", 400)


@FORMS
@BLOCKING
@pytest.mark.parametrize("resource", [CHAT, COMPLETIONS, RESPONSES])
async def test_an_unknown_model_is_not_found(
    resource: str, is_blocking: bool, stream: bool, chat: Pair
) -> None:
    prompt: dict[str, Any] = {
        CHAT: {"messages": [USER]},
        COMPLETIONS: {"prompt": "x"},
        RESPONSES: {"input": "x"},
    }
    wrong = prompt[resource] | {"model": "no-such-model", "stream": stream}
    direct, proxied = await chat.both(resource, is_blocking=is_blocking, **wrong)

    # No engine has it, so the proxy answers: the same error, in words of its own.
    for answer in (direct, proxied):
        assert (answer["error"], answer["status"]) == ("NotFoundError", 404)
        assert "no-such-model" in answer["message"]
        assert "does not exist" in answer["message"]
    assert proxied["body"]["code"] == "model_not_found"


@FORMS
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"prompt": [5, 6, 7, 8, 9]},
        {"logprobs": 2},
        {"echo": True},
        {"stop": ["e"]},
        {"n": 2, "temperature": 0.9, "seed": 5},
        {"prompt": ["one", "two"]},
        {"suffix": "never"},
        {"prompt": "word " * 8_000},
    ],
    ids=lambda case: next(iter(case), "plain"),
)
async def test_completions_are_equal(case: dict[str, Any], stream: bool, chat: Pair) -> None:
    asked: dict[str, Any] = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 10}
    await chat.equal(COMPLETIONS, **(asked | case | {"stream": stream}))


RESPONSE_CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "items": {"input": [{"role": "user", "content": "Hello."}], "instructions": "Be short."},
    "parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello."}]}]},
    "tools": {"tools": [FLAT_TOOL]},
    "tool required": {"tools": [FLAT_TOOL], "tool_choice": "required", "max_output_tokens": 120},
    "history": {
        "tools": [FLAT_TOOL],
        "input": [
            {"role": "user", "content": "List the files."},
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "bash",
                "arguments": '{"command": "ls"}',
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "a.py"},
        ],
    },
    "stored nowhere": {"store": False, "metadata": {"a": "b"}},
}


@FORMS
@pytest.mark.parametrize("case", RESPONSE_CASES)
async def test_responses_are_equal(case: str, stream: bool, chat: Pair) -> None:
    asked: dict[str, Any] = {"input": "Say hello.", "temperature": 0, "max_output_tokens": 12}
    answer = await chat.equal(RESPONSES, **(asked | RESPONSE_CASES[case] | {"stream": stream}))

    assert "error" not in answer or answer["error"] is None
    if stream:
        kinds = [kind["type"] for kind in answer["kinds"]["all"]]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] in ("response.completed", "response.incomplete")


@pytest.mark.parametrize(
    "case",
    [
        {"temperature": -3},
        {"input": "word and word " * 4_000},
        {"previous_response_id": "resp_never"},
    ],
    ids=lambda case: next(iter(case)),
)
async def test_wrong_responses_are_equal(case: dict[str, Any], chat: Pair) -> None:
    asked: dict[str, Any] = {"input": "Say hello.", "temperature": 0, "max_output_tokens": 12}
    answer = await chat.equal(RESPONSES, **(asked | case))

    assert 400 <= answer["status"] < 500


async def test_models_are_listed(chat: Pair) -> None:
    direct = [model.id async for model in chat.direct.models.list()]
    proxied = [model.id async for model in chat.proxied.models.list()]

    assert proxied == direct == [chat.target.model]


async def test_steps_of_a_conversation_name_one_program(chat: Pair) -> None:
    messages = list(HISTORY[:2])
    seen = []
    for step in range(3):
        raw = await chat.proxied.chat.completions.with_raw_response.create(
            model=chat.target.model, **(ASKED | {"messages": messages})
        )
        answer = raw.parse().choices[0].message
        seen.append((raw.headers["x-agentsched-program"], raw.headers["x-agentsched-step"]))
        messages.append(answer.to_dict(warnings=False))
        messages.append({"role": "user", "content": f"Go on, step {step}."})

    assert len({program for program, _ in seen}) == 1
    assert len({step for _, step in seen}) == 3


@pytest.mark.slow
async def test_hanging_up_in_a_stream_frees_the_engine(chat: Pair) -> None:
    target = chat.target
    await target.until(RUNNING, 0)
    before = await target.gauge(GENERATED)
    long = {"max_tokens": 3_500, "extra_body": {"ignore_eos": True, "min_tokens": 3_500}}
    stream = await chat.proxied.chat.completions.create(
        model=target.model, stream=True, **(ASKED | long)
    )
    chunks = 0
    async for _ in stream:
        chunks += 1
        if chunks == 3:
            break
    assert await target.gauge(RUNNING) == 1

    await stream.close()
    await target.until(RUNNING, 0)

    assert await target.gauge(GENERATED) - before < 3_000
    assert target.gateway.host.live_steps == 0
