"""Tells the proxy about tools: in batches, from a thread of its own, never in the agent's way.

Off until a proxy is known (`configure` or `AGENTSCHED_URL`). What cannot be sent is dropped: a
report that comes late is worth nothing, and an agent must not feel that its proxy is away. A proxy
that is there and refuses will not take the next report either: that its user reads, once for each
reason, as a warning of the logger `agentsched.sdk`.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import http.client

    from agentsched.sdk.complaints import Complaints

_QUEUE_MAX: Final = 10_000
_BATCH_MAX: Final = 500
#: Reports that come together are sent together.
_GATHER_S: Final = 0.01
_TIMEOUT_S: Final = 2.0
_BACK_OFF_S: Final = (0.5, 2.0, 8.0, 30.0)
#: What is older when it could be sent is dropped.
_STALE_S: Final = 30.0
#: For what is left when the process ends.
_LAST_S: Final = 0.5
#: For the HTTP client to be imported by then: a slow machine is no proxy that is away.
_LOAD_S: Final = 10.0
_PATH: Final = "/agentsched/v1/tools"
#: So many reports about unknown programs, and none that counted, are no chance, as one is that
#: comes before its program's first call, or that reached another replica.
_UNKNOWN_MAX: Final = 20
#: Headers that carry a key, in the order in which the proxy looks for them; and one for the tenant.
KEYS: Final = ("x-agentsched-key", "authorization", "x-api-key")
TENANT: Final = "x-agentsched-tenant"
#: What a header may hold as it is.
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))


def in_header(value: object) -> str:
    """A name of the user's as any HTTP client can send it, and as the proxy would clean it.

    What is beyond ASCII is percent-encoded: most clients refuse a request with anything else.
    """
    text = str(value)
    if not (text.isascii() and text.isprintable()):
        kept = "".join(c for c in text if c.isprintable() or not c.isascii())
        text = quote(kept, safe=_PRINTABLE, errors="surrogatepass")
    return text.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the proxy is, and who asks it."""

    url: str = ""
    api_key: str = ""
    tenant: str = ""


class Word(dict[str, Any]):
    """A report that can be taken back for as long as it waits in the queue."""

    __slots__ = ("__weakref__", "is_void")

    def __init__(self, **said: Any) -> None:
        super().__init__(said)
        self.is_void = False


class Reporter:
    """A bounded queue and the thread that empties it. Safe to use from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: What the environment says may be no URL; its user hears of it from the clients.
        self._is_on = is_root(settings.url)
        #: Reports that were thrown away: too many, too old, or refused.
        self.dropped = 0
        self.sent = 0
        #: Made with the first one.
        self._made: Complaints | None = None
        #: Whether a report has counted, or its user knows that none does.
        self._is_heard = False
        #: Reports about programs that the proxy has not seen, until one counts.
        self._unknown = 0
        #: The process ends, and nobody waits for the thread any more: it must not write now.
        self._is_left = False
        #: When it was told, as whom, and what.
        self._queue: deque[tuple[float, Mapping[str, str], Mapping[str, Any]]] = deque()
        # A report may come in the middle of another one, from a signal's handler or a finalizer:
        # such a queue takes that, and so does a condition's own lock.
        #: Whatever is put here wakes the thread.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._is_idle = True
        #: Whether the thread can send; it imports the HTTP client first.
        self._loaded = threading.Event()
        #: Of `_is_idle` and `_wake` together; it is notified when the thread has nothing to do.
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._is_stopping = False

    @property
    def is_on(self) -> bool:
        """Whether there is a proxy to tell."""
        return self._is_on

    def put(self, report: Mapping[str, Any], *, sender: Mapping[str, str] | None = None) -> None:
        """Queue a report. Never blocks, never raises; the oldest goes when there are too many.

        `sender` are headers that say whose program it is, as its LLM calls do; else the settings'.
        """
        if not self._is_on:
            return
        if len(self._queue) >= _QUEUE_MAX:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append((time.monotonic(), sender or {}, report))
        if self._thread is None:
            self._begin()
        if self._wake.empty():
            with self._lock:  # else the thread, which has just found nothing, would call it idle
                self._is_idle = False
                self._wake.put(None)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that was queued is sent or dropped; False when that took too long."""
        if self._thread is None:
            return not self._queue
        with self._lock:
            # In this order: the thread is no longer idle before it takes the last one.
            return self._lock.wait_for(lambda: not self._queue and self._is_idle, timeout_s)

    def stop(self, timeout_s: float = _LAST_S) -> None:
        """Send what is left, for so long at most once the HTTP client is loaded."""
        self._is_stopping = True
        self._wake.put(None)
        if self._thread is not None and self._thread.is_alive():
            self._loaded.wait(_LOAD_S)
            self._thread.join(timeout_s)
        self._is_left = True

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None and not self._is_stopping:
                thread = threading.Thread(target=self._run, name="agentsched-reports", daemon=True)
                # First, for a signal's handler that reports meanwhile.
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError:  # none can be had; the next report tries again
                    self._thread = None
                    return
                self._stop_with_a_forked_worker()

    def _stop_with_a_forked_worker(self) -> None:
        # A worker that `multiprocessing` forks ends without what `atexit` held before the fork:
        # only its own finalizers run there.
        processes = sys.modules.get("multiprocessing.process")
        if processes is not None and processes.parent_process() is not None:
            util = importlib.import_module("multiprocessing.util")
            util.Finalize(None, self.stop, exitpriority=0)

    def _run(self) -> None:
        try:
            # Here, because it takes longer to import than all of the SDK.
            importlib.import_module("http.client")
        finally:
            self._loaded.set()
        try:
            self._work()
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection; the next report opens one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _work(self) -> None:
        failures = 0
        while True:
            self._wake.get()
            if not self._is_stopping:
                time.sleep(_GATHER_S)
            while not self._wake.empty():  # what came meanwhile goes with it
                self._wake.get()
            while self._queue:
                with self._lock:  # it was, while it waited for a proxy that is away
                    self._is_idle = False
                sender, batch = self._take()
                if not batch or self._send(batch, sender):
                    failures = 0
                    continue
                if self._is_stopping:
                    return
                self._wait_out(failures)
                failures += 1
            if self._is_stopping:
                return
            with self._lock:
                if not self._queue and self._wake.empty():
                    self._rest()

    def _rest(self) -> None:
        """Whoever waits for it need wait no longer."""
        with self._lock:
            self._is_idle = True
            self._lock.notify_all()

    def _wait_out(self, failures: int) -> None:
        """The proxy is away: knock again later. What is queued meanwhile is bounded."""
        self._rest()
        until = time.monotonic() + _BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)]
        while not self._is_stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _take(self) -> tuple[Mapping[str, str], list[Mapping[str, Any]]]:
        """The oldest reports, of one sender."""
        batch: list[Mapping[str, Any]] = []
        owner = self._queue[0][1]
        oldest = time.monotonic() - _STALE_S
        while self._queue and len(batch) < _BATCH_MAX and self._queue[0][1] == owner:
            at, _, report = self._queue.popleft()
            if isinstance(report, Word) and report.is_void:
                continue
            if at < oldest:
                self.dropped += 1
            else:
                batch.append(report)
        return owner, batch

    def _send(self, batch: list[Mapping[str, Any]], sender: Mapping[str, str]) -> bool:
        """Whether the proxy takes what it is told; what it did not take is dropped."""
        from http.client import HTTPException

        events = self._encoded(batch)
        if not events:
            return True
        is_taken = False
        try:
            body = b'{"events": [%s]}' % b",".join(events)
            status, said = self._post(body, self._headers(sender))
            is_taken = status < 300
            # What is beyond is a proxy in trouble, or nobody behind a load balancer: it is away.
            if 300 <= status < 500:
                self._complaints().refused(status, said)
        except (OSError, HTTPException) as error:
            self.hang_up()
            # Of a certificate that is not trusted: asking again does not help.
            if why := getattr(error, "verify_message", ""):
                self._complaints().untrusted(why)
        except ValueError:  # what no request can hold: the proxy is not away
            self.hang_up()
            self.dropped += len(events)
            self._complaints().unsendable()
            return True
        if is_taken:
            self.sent += len(events)
            if not self._is_heard:
                self._look_whether_heard(said)
        else:
            self.dropped += len(events)
        return is_taken

    def _look_whether_heard(self, said: bytes) -> None:
        """Until the first report counts: where none ever does, the calls are somebody else's."""
        try:
            told = json.loads(said)
            counted, unknown = told["accepted"], told["ignored"].get("unknown_program", 0)
            self._is_heard = counted > 0
            self._unknown += unknown
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return  # nobody who counts
        if self._unknown >= _UNKNOWN_MAX and not self._is_heard:
            self._is_heard = True
            self._complaints().unknown(self._unknown)

    def _complaints(self) -> Complaints:
        if self._made is None:
            from agentsched.sdk.complaints import Complaints

            self._made = Complaints(self.settings.url)
        self._made.is_muted = self._is_left
        return self._made

    def _encoded(self, batch: list[Mapping[str, Any]]) -> list[bytes]:
        """Each report by itself: one that cannot be written takes no other with it."""
        events = []
        for report in batch:
            try:
                text = json.dumps(report, allow_nan=False, ensure_ascii=False)
                # Half of a character, as a file's name may have it, would spoil all of the batch.
                events.append(text.encode(errors="replace"))
            except (TypeError, ValueError, RecursionError):
                self.dropped += 1
        return events

    def _headers(self, sender: Mapping[str, str]) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        # A key of the sender's own counts, whichever header it stands in.
        if self.settings.api_key and sender.keys().isdisjoint(KEYS):
            headers["authorization"] = f"Bearer {self.settings.api_key}"
        if self.settings.tenant:
            headers[TENANT] = in_header(self.settings.tenant)
        return headers | dict(sender)

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """The answer's status and body. A connection that was idle may have been ended from the
        other side, which is seen only when it is used again: then it is told once more, over a
        fresh one.
        """
        was_open = self._connection is not None
        try:
            return self._posted(body, headers)
        except ConnectionError:
            if not was_open:
                raise
            self.hang_up()
        return self._posted(body, headers)

    def _posted(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = self._connected()
        path = urlsplit(self.settings.url).path.rstrip("/") + _PATH
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            from http.client import HTTPConnection, HTTPSConnection

            parts = urlsplit(self.settings.url)
            kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
            # Without a port, it would be looked for behind the last colon, also of an address.
            port = parts.port or kind.default_port
            self._connection = kind(parts.hostname or "", port, timeout=_TIMEOUT_S)
        return self._connection


def _from_environment() -> Settings:
    url = _said("URL")
    return Settings(
        # What is no URL stays as it was written, for whoever is told so.
        url=_root(url) if is_root(_root(url)) else url,
        api_key=_said("API_KEY"),
        tenant=_said("TENANT"),
    )


def _said(name: str) -> str:
    # What comes out of a file ends in a line break, which no header may hold.
    return os.environ.get(f"AGENTSCHED_{name}", "").strip()


def _root(url: str) -> str:
    """The proxy's own root, also where somebody wrote the `/v1` that clients need."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_root(url: str) -> bool:
    """Whether a proxy can be there."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def checked_root(url: str) -> str:
    """The proxy's own root.

    Raises:
        ValueError: not an http or https URL.
    """
    root = _root(url)
    if not is_root(root):
        raise ValueError(f"not the URL of a proxy: {url!r} (write http://127.0.0.1:8900)")
    return root


_reporter = Reporter(_from_environment())


def configure(
    url: str | None = None, *, api_key: str | None = None, tenant: str | None = None
) -> None:
    """Say where the proxy is; without an argument, what the environment says counts.

    `url` as `http://127.0.0.1:8900`; an empty one turns all reporting off.

    Raises:
        ValueError: not an http or https URL.
    """
    global _reporter
    base = _from_environment()
    given = base.url if url is None else url
    settings = Settings(
        url=checked_root(given) if given else "",
        api_key=base.api_key if api_key is None else api_key,
        tenant=base.tenant if tenant is None else tenant,
    )
    old, _reporter = _reporter, Reporter(settings)
    old.stop()


def reporter() -> Reporter:
    """The reporter in use."""
    return _reporter


def _after_fork() -> None:
    # The child has no thread; its parent sends what the parent queued.
    global _reporter
    _reporter.hang_up()
    _reporter = Reporter(_reporter.settings)


def _at_exit() -> None:
    _reporter.stop()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
