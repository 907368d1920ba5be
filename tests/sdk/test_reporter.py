"""Reports go out in batches, and never get into the agent's way."""

from __future__ import annotations

import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import pytest

import agentsched
from agentsched.sdk import reporter as module
from agentsched.sdk.reporter import Reporter, Settings, reporter


def test_off_without_a_proxy() -> None:
    agentsched.configure("")
    reporter().put({"event": "started"})
    assert not reporter().is_on
    assert reporter().flush(0)


def test_where_the_proxy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSCHED_URL", "http://proxy:8900/v1/")
    monkeypatch.setenv("AGENTSCHED_API_KEY", "k")
    agentsched.configure()
    assert reporter().settings == Settings(url="http://proxy:8900", api_key="k")
    with pytest.raises(ValueError, match="proxy"):
        agentsched.configure("proxy:8900")


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://[fd00::a1]", "fd00::a1", 80),
        ("https://[::1]", "::1", 443),
        ("http://[::1]:8900", "::1", 8900),
        ("http://proxy", "proxy", 80),
    ],
)
def test_a_proxy_is_found_by_its_address(url: str, host: str, port: int) -> None:
    """Of `[::1]` without a port, `http.client` made the host `:` and the port 1."""
    connection = Reporter(Settings(url=url))._connected()
    assert (connection.host, connection.port) == (host, port)


def test_batches_with_key_and_tenant(inbox: Any) -> None:
    agentsched.configure(inbox.url + "/v1", api_key="secret", tenant="red")
    for n in range(100):
        reporter().put({"event": "started", "program": str(n)})
    assert reporter().flush(60)
    sender = {"x-agentsched-tenant": "blue", "authorization": "Bearer other"}
    reporter().put({"event": "started", "program": "x"}, sender=sender)
    assert reporter().flush(60)
    posts = []
    while not inbox.posts.empty():
        posts.append(inbox.posts.get())
    assert sum(len(body["events"]) for _, _, body in posts) == 101
    assert len(posts) < 10
    assert {path for path, _, _ in posts} == {"/agentsched/v1/tools"}
    assert [p[1]["authorization"] for p in (posts[0], posts[-1])] == [
        "Bearer secret",
        "Bearer other",
    ]
    assert [p[1]["x-agentsched-tenant"] for p in (posts[0], posts[-1])] == ["red", "blue"]
    assert reporter().sent == 101


def test_without_a_thread_to_be_had_the_tool_runs_all_the_same(
    inbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a limit of processes, or of memory."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    agentsched.configure(inbox.url)
    with agentsched.program(id="p"):
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refused)
            reporter().put({"event": "started", "program": "first"})
            agentsched.tool_call(name="bash")(lambda: None)()
            assert not reporter().flush(0)
            other = Reporter(Settings(url=inbox.url))
            other.put({"event": "started"})
            other.stop()
        reporter().put({"event": "started", "program": "last"})
        assert reporter().flush(60)
        told = inbox.events(reporter().sent)
    assert [told[0]["program"], told[-1]["program"]] == ["first", "last"]
    assert [event.get("tool") for event in told[1:-1]] == ["bash", "bash"]


def test_too_many_push_out_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUEUE_MAX", 10)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        idle = Reporter(Settings(url=f"http://127.0.0.1:{taken.getsockname()[1]}"))
        for n in range(50):
            idle.put({"n": n})
        assert idle.dropped >= 30
        idle.stop()


def test_a_proxy_that_is_away_costs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 3_600.0)  # whoever waited for it would not come back
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        agentsched.configure(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        reporter().put({"event": "started"})
        taken, _ = deaf.accept()  # and nothing is said
        with taken:
            for _ in range(1_000):
                with agentsched.program(id="p"), agentsched.tool_call("bash"):
                    pass
            assert reporter().sent == 0
            agentsched.configure("")


def test_what_is_refused_is_dropped(inbox: Any) -> None:
    inbox.status = 403
    reporter().put({"event": "started"})
    inbox.posts.get(timeout=60)
    assert reporter().flush(60)
    assert reporter().dropped == 1


class _Refused(Reporter):
    """Refused, with a report that comes while the first is on its way; the second stays there."""

    def __init__(self) -> None:
        super().__init__(Settings(url="http://proxy"))
        self.posts = 0
        self.rests = threading.Event()
        self.is_on_its_way = threading.Event()
        self.goes_on = threading.Event()

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self.posts += 1
        if self.posts == 1:
            self.put({"event": "finished"})
            return 403, b"{}"
        self.is_on_its_way.set()
        self.goes_on.wait(60)
        return 202, b"{}"

    def _rest(self) -> None:
        super()._rest()
        self.rests.set()


def test_what_waits_behind_a_refusal_is_not_called_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread waits before it knocks again; a report in the queue was "sent or dropped"."""
    monkeypatch.setattr(module, "_BACK_OFF_S", (3_600.0,))
    told = _Refused()
    told.put({"event": "started"})
    assert told.rests.wait(60)
    assert not told.flush(0)
    told.stop()


def test_what_is_on_its_way_after_a_refusal_is_not_called_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BACK_OFF_S", (0.0,))
    told = _Refused()
    told.put({"event": "started"})
    assert told.is_on_its_way.wait(60)
    assert not told.flush(0)
    told.goes_on.set()
    assert told.flush(60)
    assert (told.sent, told.dropped) == (1, 1)
    told.stop()


def test_a_connection_that_the_proxy_has_ended_costs_no_report(
    inbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: queue.Queue[object] = queue.Queue()
    shut_down = inbox.shutdown_request

    def tell(request: Any) -> None:
        shut_down(request)
        ended.put(request)

    monkeypatch.setattr(inbox, "shutdown_request", tell)
    inbox.ends_when_idle = True
    for n in range(3):
        reporter().put({"event": "finished", "program": str(n)})
        assert reporter().flush(60)
        ended.get(timeout=60)
    assert [e["program"] for e in inbox.events(3)] == ["0", "1", "2"]
    assert (reporter().sent, reporter().dropped) == (3, 0)


def test_a_proxy_that_hangs_up_is_asked_twice_and_no_more(inbox: Any) -> None:
    reporter().put({"event": "started", "program": "first"})
    assert reporter().flush(60)
    inbox.is_mute = True
    reporter().put({"event": "started", "program": "second"})
    assert reporter().flush(60)
    assert reporter().dropped == 1
    assert [e["program"] for e in inbox.events(2)] == ["first", "second"]
    assert [e["program"] for e in inbox.events(1)] == ["second"]
    assert inbox.posts.empty()


@pytest.mark.parametrize(
    "wrong",
    [
        {"event": "started", "program": object()},
        {"event": "started", "program": "p", "expected_s": float("inf")},
    ],
    ids=["no JSON", "no number"],
)
def test_a_report_that_cannot_be_written_takes_no_other_with_it(inbox: Any, wrong: Any) -> None:
    reporter().put({"event": "started", "program": "a"})
    reporter().put(wrong)
    reporter().put({"event": "started", "program": "b"})
    assert [e["program"] for e in inbox.events(2)] == ["a", "b"]
    assert reporter().flush(60)
    assert (reporter().sent, reporter().dropped) == (2, 1)


def test_names_that_are_no_text_spoil_no_batch(inbox: Any) -> None:
    """The proxy refuses a whole body in which a name is a number, or ends in half a character."""
    with agentsched.program(id="p"):
        with agentsched.tool_call("kept"):
            pass
        with agentsched.tool_call(name=7):  # type: ignore[call-overload]
            pass
        with agentsched.tool_call("cut\ud83d", call_id="\ude00"):
            pass
    told = inbox.events(7)
    assert [e.get("tool") for e in told[::2]] == ["kept", "7", "cut?", None]
    assert [e.get("call_id") for e in told[4:6]] == ["?", "?"]
    assert reporter().flush(60)
    assert reporter().dropped == 0


def test_a_header_that_cannot_be_sent_is_no_end_of_reports(inbox: Any) -> None:
    reporter().put({"event": "started", "program": "x"}, sender={"authorization": "Bearer \u6771"})
    assert reporter().flush(60)
    reporter().put({"event": "started", "program": "p"})
    assert [e["program"] for e in inbox.events(1)] == ["p"]
    assert reporter().dropped == 1


def test_a_report_in_the_middle_of_another_one_waits_for_nobody(inbox: Any) -> None:
    """As a signal's handler makes it, or a finalizer, wherever the agent's code is just then."""
    told = reporter()

    def interrupted(after: int) -> bool:
        """Report, with another report before so many lines of it; whether it has so many."""
        left = after

        def trace(frame: Any, event: str, arg: object) -> Any:
            nonlocal left
            left -= event == "line"
            if not left:
                left = -1
                told.put({"event": "started", "program": "handler"})
            return trace

        sys.settrace(trace)
        try:
            told.put({"event": "started", "program": "agent"})
        finally:
            sys.settrace(None)
        return left < 0

    def everywhere() -> None:
        told.put({"event": "started", "program": "first"})
        after = 0
        # Each begins with a thread that waits: only then is there anything to tell it.
        while told.flush(60) and interrupted(after := after + 1):
            lines.append(after)

    lines: list[int] = []
    # An agent that waits for itself does so for ever, and must not take the tests with it.
    agent = threading.Thread(target=everywhere, daemon=True)
    agent.start()
    agent.join(30)
    assert not agent.is_alive(), lines
    assert len(lines) > 5
    assert told.flush(60)
    assert (told.sent, told.dropped) == (2 + 2 * len(lines), 0)


@pytest.mark.parametrize("url", ["proxy:8900", "http://proxy:http", "http://", "ftp://proxy"])
def test_what_is_no_url_is_told_to_nobody(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSCHED_URL", url)
    idle = Reporter(module._from_environment())
    idle.put({"event": "started", "program": "p"})
    assert not idle.is_on
    assert idle.flush(0)
    with pytest.raises(ValueError, match=re.escape(repr(url))):
        agentsched.configure()
    with pytest.raises(ValueError, match=re.escape(repr(url))):
        agentsched.httpx_hooks(url)


def test_what_the_environment_says_may_end_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSCHED_URL", "http://proxy:8900\n")
    monkeypatch.setenv("AGENTSCHED_API_KEY", "k\n")
    monkeypatch.setenv("AGENTSCHED_TENANT", "red\n")
    told = module._from_environment()
    assert told == Settings(url="http://proxy:8900", api_key="k", tenant="red")


def test_a_forked_child_sends_its_own(inbox: Any) -> None:
    reporter().put({"event": "started", "program": "parent"})
    assert reporter().flush(60)
    child = os.fork()
    if not child:
        code = 2
        try:
            reporter().put({"event": "started", "program": "child"})
            code = 0 if reporter().flush(60) else 1
        finally:
            os._exit(code)  # whatever happens, the child is no second run of these tests
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [e["program"] for e in inbox.events(2)] == ["parent", "child"]


#: A machine that stalls: the half second of a process that ends lasts as long as it must. It is
#: still half a second that was asked for, and it begins when the HTTP client is loaded.
STALLED = """
import os, threading
from agentsched.sdk import reporter as module
module._TIMEOUT_S = module._LOAD_S = 60.0
join = threading.Thread.join
def patient(thread, timeout=None):
    if timeout != 0.5 or not module.reporter()._loaded.is_set():
        os._exit(3)
    join(thread, 60)
threading.Thread.join = patient
"""
#: The HTTP client is not loaded before the process ends.
SLOW_TO_LOAD = """
import sys
ending = threading.Event()
loaded = module.reporter()._loaded
wait = loaded.wait
def waited(timeout=None):
    ending.set()
    return wait(timeout)
loaded.wait = waited
class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "http.client":
            ending.wait(60)
sys.meta_path.insert(0, Slow)
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", SLOW_TO_LOAD], ids=["quick", "slow"])
def test_what_is_left_goes_out_at_exit(inbox: Any, before: str) -> None:
    code = STALLED + before + "import agentsched\nwith agentsched.program(id='last'): pass\n"
    environment = os.environ | {"AGENTSCHED_URL": inbox.url}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert inbox.events(1) == [{"event": "closed", "program": "last"}]


#: A worker that is forked for one agent: Python ends it without what `atexit` holds.
WORKER = """
import multiprocessing
import agentsched
def work():
    with agentsched.program(id="worker"):
        pass
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
"""


@pytest.mark.slow
def test_what_a_forked_worker_says_last_goes_out(inbox: Any) -> None:
    code = STALLED + WORKER
    environment = os.environ | {"AGENTSCHED_URL": inbox.url}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert inbox.events(1) == [{"event": "closed", "program": "worker"}]
