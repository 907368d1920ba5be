"""The official clients against the embedded engine: all dialects, whole and streamed, tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.playback import Playback, Script, ScriptedAnswer, ScriptedCall
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import RunningEngine, ServerConfig, running_engine

SCRIPT = Script(
    match="list the files",
    answers=(
        ScriptedAnswer(
            text="Let me look: ",
            tool_calls=(
                ScriptedCall(name="bash", arguments={"command": "ls -l"}),
                ScriptedCall(name="bash", arguments={"command": "pwd", "café": "größe 日本"}),
            ),
        ),
        ScriptedAnswer(text="There are two files: café and 日本."),
    ),
)
CHAT_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "bash",
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["command", "count"],
        },
    },
}
RESPONSES_TOOL: Any = {"type": "function", **CHAT_TOOL["function"], "strict": False}
ANTHROPIC_TOOL: Any = {"name": "bash", "input_schema": CHAT_TOOL["function"]["parameters"]}


@pytest.fixture
async def engine() -> AsyncIterator[RunningEngine]:
    config = ServerConfig(
        engine=EngineConfig.from_preset(preset("h100-8b")),
        speed=1000,
        playback=Playback((SCRIPT,)),
    )
    async with running_engine(config) as served:
        yield served
        served.driver.model.check()
        assert len(served.driver.model) == 0


@pytest.fixture
async def chat(engine: RunningEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{engine.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def claude(engine: RunningEngine) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=engine.url, api_key="none", max_retries=0
    ) as client:
        yield client


def user(text: str) -> Any:
    return {"role": "user", "content": text}


async def test_chat_whole_and_streamed_agree(chat: openai.AsyncOpenAI) -> None:
    whole = await chat.chat.completions.create(model="sim", messages=[user("hello " * 200)])
    text = ""
    usage = None
    finish = []
    stream = await chat.chat.completions.create(
        model="sim",
        messages=[user("hello " * 200)],
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                finish.append(choice.finish_reason)
    assert text == whole.choices[0].message.content
    assert text
    assert finish == [whole.choices[0].finish_reason] == ["stop"]
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 0
    assert usage.prompt_tokens_details is not None
    # All full blocks but the one that holds the last token were cached by the first call.
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 16 * 16


async def test_exact_lengths(chat: openai.AsyncOpenAI) -> None:
    answer = await chat.chat.completions.create(
        model="sim",
        messages=[user("hi")],
        max_tokens=77,
        extra_body={"ignore_eos": True, "min_tokens": 77},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 77
    assert answer.choices[0].finish_reason == "length"
    ids = await chat.completions.create(
        model="sim", prompt=[1, 2, 3, 4], max_tokens=9, extra_body={"ignore_eos": True}
    )
    assert ids.usage is not None
    assert (ids.usage.prompt_tokens, ids.usage.completion_tokens) == (4, 9)


async def test_seeds_decide(chat: openai.AsyncOpenAI) -> None:
    async def say(seed: int) -> str | None:
        answer = await chat.chat.completions.create(
            model="sim", messages=[user("hi")], max_tokens=30, seed=seed
        )
        return answer.choices[0].message.content

    assert await say(1) == await say(1)
    assert await say(1) != await say(2)


async def test_stop_strings(chat: openai.AsyncOpenAI) -> None:
    full = await chat.completions.create(model="sim", prompt="go on", max_tokens=40)
    word = full.choices[0].text.split()[5]
    cut = await chat.completions.create(model="sim", prompt="go on", max_tokens=40, stop=[word])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].text == full.choices[0].text.split(word)[0]
    assert cut.choices[0].model_extra is not None
    assert cut.choices[0].model_extra["stop_reason"] == word


async def test_chat_tools_play_back(chat: openai.AsyncOpenAI) -> None:
    messages = [user("please list the files")]
    first = await chat.chat.completions.create(model="sim", messages=messages, tools=[CHAT_TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content == "Let me look: "
    assert message.tool_calls is not None
    assert len({call.id for call in message.tool_calls}) == 2
    assert json.loads(message.tool_calls[1].function.arguments) == {  # type: ignore[union-attr]
        "command": "pwd",
        "café": "größe 日本",
    }
    messages.append(message.model_dump(exclude_none=True))
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "a b"} for call in message.tool_calls
    ]
    second = await chat.chat.completions.create(model="sim", messages=messages, tools=[CHAT_TOOL])
    assert second.choices[0].message.content == "There are two files: café and 日本."
    assert second.choices[0].finish_reason == "stop"
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens_details is not None
    # The answer came back as a message with the tokens that were generated for it: all of the first
    # call is found again, up to the last full block.
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert second.usage.prompt_tokens_details.cached_tokens == known // 16 * 16


async def test_chat_tools_streamed(chat: openai.AsyncOpenAI) -> None:
    async with chat.chat.completions.stream(
        model="sim", messages=[user("please list the files")], tools=[CHAT_TOOL]
    ) as stream:
        final = await stream.get_final_completion()
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look: "
    assert choice.message.tool_calls is not None
    assert [
        json.loads(call.function.arguments)["command"] for call in choice.message.tool_calls
    ] == [
        "ls -l",
        "pwd",
    ]


async def test_required_tools_get_sound_arguments(chat: openai.AsyncOpenAI) -> None:
    answer = await chat.chat.completions.create(
        model="sim", messages=[user("hi")], tools=[CHAT_TOOL], tool_choice="required"
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert json.loads(calls[0].function.arguments) == {  # type: ignore[union-attr]
        "command": "value",
        "count": 1,
    }


async def test_completion_streams(chat: openai.AsyncOpenAI) -> None:
    whole = await chat.completions.create(model="sim", prompt="abc", max_tokens=12)
    text = ""
    async for chunk in await chat.completions.create(
        model="sim", prompt="abc", max_tokens=12, stream=True
    ):
        text += chunk.choices[0].text
    assert text == whole.choices[0].text


async def test_responses_whole(chat: openai.AsyncOpenAI) -> None:
    answer = await chat.responses.create(
        model="sim", input="please list the files", tools=[RESPONSES_TOOL], instructions="be short"
    )
    assert answer.status == "completed"
    assert answer.output_text == "Let me look: "
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    follow: Any = [{"role": "user", "content": "please list the files"}]
    follow += [item.model_dump(exclude_none=True) for item in answer.output]
    follow += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "a"}
        for item in answer.output
        if item.type == "function_call"
    ]
    second = await chat.responses.create(
        model="sim", input=follow, tools=[RESPONSES_TOOL], instructions="be short"
    )
    assert second.output_text.startswith("There are two files")
    assert second.usage is not None
    assert answer.usage is not None
    known = answer.usage.input_tokens + answer.usage.output_tokens - 1
    assert second.usage.input_tokens_details.cached_tokens == known // 16 * 16


async def test_responses_streamed(chat: openai.AsyncOpenAI) -> None:
    kinds = []
    async with chat.responses.stream(
        model="sim", input="please list the files", tools=[RESPONSES_TOOL]
    ) as stream:
        numbers = []
        async for event in stream:
            kinds.append(event.type)
            numbers.append(event.sequence_number)
        final = await stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert numbers == sorted(set(numbers))
    assert final.output_text == "Let me look: "
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]


async def test_functions_of_a_namespace_are_called_in_it(chat: openai.AsyncOpenAI) -> None:
    space: Any = {
        "type": "namespace",
        "name": "shell",
        "description": "commands",
        "tools": [RESPONSES_TOOL],
    }
    response = await chat.responses.create(
        model="sim", input="list the files", tools=[space], tool_choice="required"
    )
    calls = [item.model_dump() for item in response.output if item.type == "function_call"]
    assert [(call["namespace"], call["name"]) for call in calls] == [("shell", "bash")] * 2


async def test_responses_cut_short(chat: openai.AsyncOpenAI) -> None:
    answer = await chat.responses.create(model="sim", input="hi", max_output_tokens=5)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_messages_whole(claude: anthropic.AsyncAnthropic) -> None:
    conversation: Any = [user("please list the files")]
    first = await claude.messages.create(
        model="sim",
        max_tokens=400,
        messages=conversation,
        tools=[ANTHROPIC_TOOL],
        system="be short",
    )
    assert first.stop_reason == "tool_use"
    assert [block.type for block in first.content] == ["text", "tool_use", "tool_use"]
    conversation.append({"role": "assistant", "content": first.content})
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "a b"}
        for block in first.content
        if block.type == "tool_use"
    ]
    conversation.append({"role": "user", "content": results})
    second = await claude.messages.create(
        model="sim",
        max_tokens=400,
        messages=conversation,
        tools=[ANTHROPIC_TOOL],
        system="be short",
    )
    assert second.stop_reason == "end_turn"
    assert second.content[0].type == "text"
    assert second.content[0].text.startswith("There are two files")
    counted = await claude.messages.count_tokens(
        model="sim", messages=conversation, tools=[ANTHROPIC_TOOL], system="be short"
    )
    assert second.usage.cache_read_input_tokens is not None
    assert second.usage.cache_read_input_tokens > 0
    assert second.usage.cache_creation_input_tokens is not None
    total = second.usage.input_tokens + second.usage.cache_read_input_tokens
    total += second.usage.cache_creation_input_tokens
    assert counted.input_tokens == total


async def test_messages_streamed(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.stream(
        model="sim",
        max_tokens=400,
        messages=[user("please list the files")],
        tools=[ANTHROPIC_TOOL],
    ) as stream:
        final = await stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    assert final.content[1].type == "tool_use"
    assert final.content[1].input == {"command": "ls -l"}
    assert final.usage.output_tokens > 10


async def test_messages_cut_short_and_stopped(claude: anthropic.AsyncAnthropic) -> None:
    short = await claude.messages.create(model="sim", max_tokens=5, messages=[user("hi")])
    assert short.stop_reason == "max_tokens"
    assert short.usage.output_tokens == 5
    assert short.content[0].type == "text"
    word = short.content[0].text.split()[2]
    stopped = await claude.messages.create(
        model="sim", max_tokens=5, messages=[user("hi")], stop_sequences=[word]
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)


async def test_embeddings(chat: openai.AsyncOpenAI) -> None:
    answer = await chat.embeddings.create(model="sim", input=["one", "two", "one"])
    vectors = [item.embedding for item in answer.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, rel=1e-4)


async def test_models(chat: openai.AsyncOpenAI) -> None:
    models = await chat.models.list()
    assert [model.id for model in models.data] == ["sim"]


async def test_errors_are_typed(chat: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await chat.chat.completions.create(model="other", messages=[user("x")])
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await chat.chat.completions.create(model="sim", messages=[user("word " * 600_000)])
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(model="other", max_tokens=4, messages=[user("x")])
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.create(model="sim", max_tokens=0, messages=[user("x")])
