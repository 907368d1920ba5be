"""Anthropic's own client through the proxy: every answer is what the engine says without it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.real.conftest import Pair

MESSAGES = "messages.create"
COUNT = "messages.count_tokens"
RUNNING = "vllm:num_requests_running"
GENERATED = "vllm:generation_tokens_total"
TOOL: Any = {
    "name": "bash",
    "description": "Run a command.",
    "input_schema": {
        "type": "object",
        # Little to choose from: a model without sense ends an open text when it must.
        "properties": {"command": {"type": "string", "enum": ["ls", "pwd"]}},
        "required": ["command"],
        "additionalProperties": False,
    },
}
USER: Any = {"role": "user", "content": "List the files of this folder, and say what they hold."}
#: The newest client has no argument for the temperature.
GREEDY: Any = {"temperature": 0}
ASKED: Any = {"messages": [USER], "max_tokens": 12, "extra_body": GREEDY}
HISTORY: Any = [
    USER,
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me look. größe 日本"},
            {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a.py b.py"}],
    },
]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"system": "You are an agent in a shell."},
    "system parts": {"system": [{"type": "text", "text": "Be short."}]},
    "stop": {"stop_sequences": ["e", "a"], "max_tokens": 40},
    "cached parts": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}
                ],
            }
        ]
    },
    "history": {"messages": HISTORY, "tools": [TOOL]},
    "tools offered": {"tools": [TOOL], "tool_choice": {"type": "auto"}},
    "tool required": {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 120},
    "tool named": {
        "tools": [TOOL],
        "tool_choice": {"type": "tool", "name": "bash"},
        "max_tokens": 120,
    },
    "metadata": {"metadata": {"user_id": "somebody"}, "extra_body": {"top_k": 1}},
}
WRONG: dict[str, dict[str, Any]] = {
    "bad type": {"max_tokens": "many"},
    "nothing to say": {"max_tokens": 0},
    "bad role": {"messages": [{"role": 7, "content": "x"}]},
    "too long": {"messages": [{"role": "user", "content": "word and word " * 4_000}]},
}
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
BLOCKING = pytest.mark.parametrize("is_blocking", [False, True], ids=["async", "sync"])


@FORMS
@pytest.mark.parametrize("case", CASES)
async def test_messages_are_equal(case: str, stream: bool, claude: Pair) -> None:
    answer = await claude.equal(MESSAGES, **(ASKED | CASES[case] | {"stream": stream}))

    assert "error" not in answer
    if stream:
        kinds = [kind["type"] for kind in answer["kinds"]["all"]]
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
    else:
        assert answer["usage"]["output_tokens"] > 0


@FORMS
async def test_forced_tools_are_called(stream: bool, claude: Pair) -> None:
    answer = await claude.equal(MESSAGES, **(ASKED | CASES["tool required"] | {"stream": stream}))

    # A model without sense does not end its call, which then is none in a whole answer; here no
    # seed can be given.
    if stream or not claude.target.is_real:
        assert "'type': 'tool_use'" in str(answer)


@FORMS
@BLOCKING
async def test_both_forms_of_the_client_get_the_same(
    is_blocking: bool, stream: bool, claude: Pair
) -> None:
    answer = await claude.equal(MESSAGES, is_blocking=is_blocking, **(ASKED | {"stream": stream}))

    assert "error" not in answer


@FORMS
@pytest.mark.parametrize("case", WRONG)
async def test_errors_are_equal(case: str, stream: bool, claude: Pair) -> None:
    answer = await claude.equal(MESSAGES, **(ASKED | WRONG[case] | {"stream": stream}))

    assert 400 <= answer["status"] < 500


@FORMS
async def test_odd_requests_get_what_the_engine_makes_of_them(stream: bool, claude: Pair) -> None:
    await claude.equal(MESSAGES, **(ASKED | {"messages": [], "stream": stream}))


@FORMS
@BLOCKING
async def test_an_unknown_model_is_not_found(is_blocking: bool, stream: bool, claude: Pair) -> None:
    wrong = ASKED | {"model": "no-such-model", "stream": stream}
    direct, proxied = await claude.both(MESSAGES, is_blocking=is_blocking, **wrong)

    # No engine has it, so the proxy answers: the same error, in words of its own.
    for answer in (direct, proxied):
        assert (answer["error"], answer["status"]) == ("NotFoundError", 404)
        assert "no-such-model" in answer["message"]
        assert "does not exist" in answer["message"]
    assert proxied["body"]["error"]["type"] == "not_found_error"


@BLOCKING
async def test_errors_reach_both_forms_of_the_client(is_blocking: bool, claude: Pair) -> None:
    answer = await claude.equal(MESSAGES, is_blocking=is_blocking, **(ASKED | WRONG["too long"]))

    assert (answer["error"], answer["status"]) == ("BadRequestError", 400)


@pytest.mark.parametrize("case", ["plain", "system", "history"])
async def test_tokens_are_counted(case: str, claude: Pair) -> None:
    asked = {"messages": [USER]} | CASES[case]
    answer = await claude.equal(COUNT, **asked)

    assert answer["input_tokens"] > 5


async def test_tokens_of_an_unknown_model_are_not_counted(claude: Pair) -> None:
    answer = await claude.equal(COUNT, messages=[USER], model="no-such-model")

    assert answer["status"] == 404


async def test_the_helper_for_streams_assembles_the_same_message(claude: Pair) -> None:
    finals = []
    for client in (claude.direct, claude.direct, claude.proxied):
        async with client.messages.stream(model=claude.target.model, **ASKED) as stream:
            final = await stream.get_final_message()
        finals.append(final.to_dict(mode="json", warnings=False) | {"id": ""})

    assert finals[1] == finals[2]
    assert finals[2]["usage"]["output_tokens"] > 0


async def test_steps_of_a_conversation_name_one_program(claude: Pair) -> None:
    messages = [USER]
    programs = set()
    for step in range(3):
        raw = await claude.proxied.messages.with_raw_response.create(
            model=claude.target.model, **(ASKED | {"messages": messages})
        )
        programs.add(raw.headers["x-agentsched-program"])
        # Awaited in some versions of the client, not in others.
        parsed = raw.parse()
        content = (await parsed if inspect.isawaitable(parsed) else parsed).content
        messages = [
            *messages,
            {"role": "assistant", "content": [block.to_dict() for block in content] or "..."},
            {"role": "user", "content": f"Go on, step {step}."},
        ]

    assert len(programs) == 1


@pytest.mark.slow
async def test_hanging_up_in_a_stream_frees_the_engine(claude: Pair) -> None:
    target = claude.target
    await target.until(RUNNING, 0)
    before = await target.gauge(GENERATED)
    stream = await claude.proxied.messages.create(
        model=target.model,
        messages=[USER],
        max_tokens=3_500,
        stream=True,
        # There is no way to forbid an early end here; by chance it would not come at once.
        extra_body={"temperature": 1.0},
    )
    async for event in stream:
        if event.type == "content_block_delta":
            break
    await stream.close()
    await target.until(RUNNING, 0)

    assert await target.gauge(GENERATED) - before < 3_000
    assert target.gateway.host.live_steps == 0
