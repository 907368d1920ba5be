from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.bus.messages import (
    PAYLOAD_BYTES_MAX,
    EngineMessage,
    ToolMessage,
    read_message,
    schemas,
    write_message,
)
from agentsched.bus.topics import (
    EngineTopic,
    ReplicaTopic,
    TenantTopic,
    ToolTopic,
    read_topic,
    subscriptions,
    write_topic,
)

IDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
TOPICS = st.one_of(
    st.builds(
        ToolTopic, IDS, st.one_of(st.just(""), IDS.filter(lambda i: i != "-")), st.just("finished")
    ),
    st.builds(EngineTopic, IDS, IDS),
    st.builds(TenantTopic, IDS, IDS),
    st.builds(ReplicaTopic, IDS),
)


@given(cluster=IDS, topic=TOPICS)
def test_every_topic_comes_back(cluster: str, topic: ToolTopic) -> None:
    name = write_topic(cluster, topic)
    assert read_topic(cluster, name) == topic
    assert "+" not in name
    assert "#" not in name
    assert read_topic(cluster + "x", name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "agentsched/c",
        "agentsched/c/tools/p/c",
        "agentsched/c/tools/p/c/exploded",
        "agentsched/c/tools//c/started",
        "agentsched/c/tools/%ff/c/started",
        "agentsched/c/planets/x",
        "agentsched/other/replicas/r",
        "homeassistant/c/replicas/r",
        "agentsched/c/replicas/" + "x" * 5_000,
    ],
)
def test_foreign_and_malformed_names(name: str) -> None:
    assert read_topic("c", name) is None


@given(st.text(max_size=60))
def test_no_name_breaks_it(name: str) -> None:
    read_topic("c", name)
    read_topic("c", "agentsched/c/" + name)


def test_tools_are_heard_at_least_once() -> None:
    assert subscriptions("c")["agentsched/c/tools/+/+/+"] == 1
    assert subscriptions("a/b")["agentsched/a%2Fb/replicas/+"] == 1


@pytest.mark.parametrize(
    "payload",
    [b"{", b"[]", b'"x"', b'{"took_s": -1}', b'{"took_s": "long"}', b'{"took_s": 1e99}', b"\xff"],
)
def test_malformed_messages(payload: bytes) -> None:
    assert read_message(ToolTopic("p", "c", "finished"), payload) is None


def test_messages_of_other_versions_are_heard() -> None:
    topic = ToolTopic("p", "c", "finished")
    assert read_message(topic, b"") == ToolMessage()
    heard = read_message(topic, b'{"took_s": 1.5, "mood": "good"}')
    assert heard == ToolMessage(took_s=1.5)
    assert read_message(topic, b'{"tool": "%s"}' % (b"x" * PAYLOAD_BYTES_MAX)) is None


def test_messages_come_back() -> None:
    said = EngineMessage(running_steps=3, resident_tokens=100)
    assert read_message(EngineTopic("e", "r"), write_message(said)) == said


def test_schemas_are_published() -> None:
    found = schemas()
    assert set(found) == {"tools", "engines", "tenants", "replicas"}
    assert all(schema["type"] == "object" for schema in found.values())
