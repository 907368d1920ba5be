"""A proxy that refuses reports is named in a warning: once for each reason, and without secrets."""

from __future__ import annotations

import json
import logging
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentsched.sdk.complaints import Complaints
from agentsched.sdk.reporter import Reporter, Settings
from agentsched_bench.services.certificates import make_certificate

KEY = "sk-very-secret"


def tell(told: Reporter) -> bool:
    """One report, as the reporter's thread sends it; whether it was taken."""
    try:
        return told._send([{"event": "started", "program": "p"}], {})
    finally:
        told.hang_up()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "agentsched.sdk"]


def refusing(inbox: Any, status: int, code: str = "", message: str = "") -> None:
    inbox.status = status
    inbox.answer = json.dumps({"error": {"code": code, "message": message}}).encode()


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, "invalid_api_key", "AGENTSCHED_API_KEY"),
        (403, "forbidden", "AGENTSCHED_API_KEY"),
        (404, "", "AGENTSCHED_URL"),
        (301, "", "AGENTSCHED_URL"),
        (429, "report_quota", "auth.reports_per_s"),
        (400, "bad_report", ""),
    ],
)
def test_each_reason_is_said_once(
    inbox: Any, caplog: pytest.LogCaptureFixture, status: int, code: str, hint: str
) -> None:
    told = Reporter(Settings(url=inbox.url, api_key=KEY))
    refusing(inbox, status, code, f"Wrong key: {KEY}")
    for _ in range(2):
        assert not tell(told)
    (said,) = warnings(caplog)
    assert inbox.url in said
    assert f"HTTP {status}" in said
    assert code in said
    assert hint in said
    assert KEY not in said
    refusing(inbox, 418, "teapot")
    assert not tell(told)
    assert "HTTP 418 (teapot)" in warnings(caplog)[1]
    assert told.dropped == 3


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_proxy_in_trouble_is_away(
    inbox: Any, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    inbox.status = status
    assert not tell(Reporter(Settings(url=inbox.url)))
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"[" * 100_000,
        b'{"error": "no"}',
        b'{"error": {"code": 7}}',
        b'{"error": {"code": "sk-very-secret"}}',
        b'{"error": {"code": "' + b"a" * 65 + b'"}}',
        b'{"error": {"code": "line\\nbreak"}}',
    ],
    ids=["empty", "page", "deep", "text", "number", "key", "long", "lines"],
)
def test_only_a_short_word_of_the_answer_is_said(
    inbox: Any, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    inbox.status, inbox.answer = 401, answer
    assert not tell(Reporter(Settings(url=inbox.url)))
    (said,) = warnings(caplog)
    assert "HTTP 401:" in said


def test_a_key_that_no_header_can_hold_is_said(
    inbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tell(Reporter(Settings(url=inbox.url, api_key="sk-\u6771")))
    (said,) = warnings(caplog)
    assert "no HTTP request can hold" in said
    assert "\u6771" not in said


def test_what_a_handler_raises_ends_no_reports(inbox: Any) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("no room on the disk")

    broken = Broken()
    logging.getLogger("agentsched.sdk").addHandler(broken)
    try:
        told = Reporter(Settings(url=inbox.url))
        inbox.status = 401
        assert not tell(told)
        inbox.status = 202
        assert tell(told)
    finally:
        logging.getLogger("agentsched.sdk").removeHandler(broken)


def test_a_certificate_that_is_not_trusted(
    inbox: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is a `ValueError` as well, as that of a key is which no header can hold."""
    own = make_certificate(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own.pair)
    inbox.socket = context.wrap_socket(inbox.socket, server_side=True)
    assert not tell(Reporter(Settings(url=inbox.url.replace("http:", "https:"))))
    (said,) = warnings(caplog)
    assert "its certificate is not trusted (" in said


def test_a_password_in_the_url_is_not_said(caplog: pytest.LogCaptureFixture) -> None:
    Complaints("https://me:hush@proxy:8900/x").unsendable()
    (said,) = warnings(caplog)
    assert "https://proxy:8900/x" in said
    assert "hush" not in said


def counting(inbox: Any, accepted: int, unknown: int) -> None:
    ignored = {"unknown_program": unknown} if unknown else {}
    inbox.answer = json.dumps({"accepted": accepted, "ignored": ignored}).encode()


def test_reports_of_which_none_counts_are_said_once(
    inbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent's calls go past the proxy, or come as another tenant's."""
    told = Reporter(Settings(url=inbox.url))
    counting(inbox, 0, 10)
    assert tell(told)
    assert warnings(caplog) == []
    for _ in range(5):
        assert tell(told)
    (said,) = warnings(caplog)
    assert "none of the programs of 20 reports" in said
    assert "the same key and tenant" in said


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"", b'{"accepted": "x", "ignored": 1}'])
def test_reports_of_which_some_count_need_no_word(
    inbox: Any, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    told = Reporter(Settings(url=inbox.url))
    inbox.answer = answer  # of somebody who does not count
    assert tell(told)
    counting(inbox, 1, 19)
    assert tell(told)
    counting(inbox, 0, 500)
    assert tell(told)
    assert warnings(caplog) == []


def test_nothing_is_said_when_nobody_waits_for_it_any_more(
    inbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """At its end the interpreter stops the thread wherever it is, also in the middle of a line."""
    inbox.status = 401
    told = Reporter(Settings(url=inbox.url))
    told.stop()
    assert not tell(told)
    assert warnings(caplog) == []


def test_whoever_has_ever_new_reasons_is_not_listened_to_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    complaints = Complaints("http://proxy")
    for status in range(400, 500):
        complaints.refused(status, b"")
    assert len(warnings(caplog)) == 16


def test_its_user_reads_it_without_any_logging_set_up(inbox: Any) -> None:
    """A process of its own, which ends at once: Python prints warnings that nobody takes."""
    inbox.status = 401
    code = "import agentsched\nwith agentsched.program(id='p'):\n  pass\n"
    made = {"AGENTSCHED_URL": inbox.url, "AGENTSCHED_API_KEY": KEY}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **made},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "HTTP 401: is it the right key" in ended.stderr
    assert KEY not in ended.stderr
