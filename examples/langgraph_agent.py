"""LangGraph: the thread is the program, a sub-graph its sub-program, tools are reported.

pip install 'agentsched[sdk]' langgraph langchain-openai  # in a checkout: '.[sdk]'
AGENTSCHED_URL=http://127.0.0.1:8900 python examples/langgraph_agent.py thread-1 "6 times 7?"
"""

from __future__ import annotations

import os
import sys
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentsched.sdk.integrations import langgraph as through_proxy

MODEL = os.environ.get("MODEL", "sim")


@tool
def multiply(a: float, b: float) -> float:
    """Multiply two numbers."""
    return a * b


model = ChatOpenAI(model=MODEL, max_tokens=256, **through_proxy.connection())


def checker() -> Any:
    """A sub-agent with a conversation of its own: it sees the answer, not the way to it."""

    def check(state: MessagesState) -> dict[str, Any]:
        question = f"Check this: {state['messages'][-1].content}"
        return {"messages": [model.invoke([HumanMessage(question)])]}

    return StateGraph(MessagesState).add_node(check).add_edge(START, "check").compile()


def agent() -> Any:
    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.bind_tools([multiply]).invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node(think)
    graph.add_node("tools", ToolNode([multiply]))
    graph.add_node("checker", checker())
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition, {"tools": "tools", "__end__": "checker"})
    graph.add_edge("tools", "think")
    return graph.compile(checkpointer=InMemorySaver())


def answer(thread: str, question: str) -> list[str]:
    config: Any = {
        "configurable": {"thread_id": thread},
        "callbacks": [through_proxy.Tools()],
    }
    done = agent().invoke({"messages": [HumanMessage(question)]}, config)
    through_proxy.close(thread)  # nobody will come back to it
    return [str(message.content) for message in done["messages"][-2:]]


if __name__ == "__main__":
    print("\n".join(answer(*sys.argv[1:])))
