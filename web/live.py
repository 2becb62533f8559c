"""Live events for open pages (server-sent events), all of them from one thread.

The HTTP server hands a page's connection over to the hub; from then on it costs no thread. Events are serialised once,
gathered for a hundredth of a second, joined once for all pages with the same filter, and written without ever
waiting: a page that does not read loses its own oldest events, counted and told to it, and slows nobody.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from stirbar.web.wire import to_json

GATHER_S = 0.01  # events are joined for this long before they are written
READING_INTERVAL_S = 0.09  # at most about ten readings a second of one unit and stream
READING_HELD_S = 0.15  # a reading that no newer one replaced is sent after this
HEARTBEAT_S = 15.0
UNSEEN_S = 5.0  # a unit that was not heard of for this long is lost
STALLED_S = 60.0  # a page that took nothing for this long is closed
QUEUE_LIMIT_BYTES = 512 * 1024
PENDING_LIMIT = 20_000  # events between two rounds of the hub
OF_ALL = ("state", "event", "acknowledged")  # what a page may hear of every unit, whichever ones it shows
SEND_BUFFER_BYTES = 128 * 1024  # of the kernel: what waits there can not be dropped any more

Filter = frozenset[str] | None
Handler = tuple[str, str, dict[str, Any]]


class _Page:
    """One open page: its connection, its filter, and what it has not taken yet."""

    __slots__ = (
        "dropped",
        "offset",
        "progress",
        "queue",
        "session",
        "size",
        "sock",
        "states",
        "told",
        "units",
        "writing",
    )

    def __init__(self, sock: socket.socket, units: Filter, session: str, states: bool, now: float) -> None:
        self.sock = sock
        self.units = units
        self.states = states
        self.session = session
        self.queue: deque[tuple[bytes, int]] = deque()  # text, number of events in it
        self.size = 0
        self.offset = 0  # of the first text, already written
        self.dropped = 0
        self.told = 0
        self.progress = now
        self.writing = False


class _Held:
    """Readings of one unit and stream between two that are sent."""

    __slots__ = ("count", "due", "high", "latest", "low", "sent")

    def __init__(self) -> None:
        self.sent = -1e9
        self.latest: dict[str, Any] | None = None
        self.count = 0
        self.low: float | None = None
        self.high: float | None = None

    def add(self, reading: dict[str, Any]) -> None:
        self.latest = reading
        self.count += 1
        value = reading.get("value")
        if isinstance(value, int | float) and value == value:
            self.low = value if self.low is None else min(self.low, value)
            self.high = value if self.high is None else max(self.high, value)

    def take(self, now: float) -> dict[str, Any]:
        reading = {**(self.latest or {}), "count": self.count, "low": self.low, "high": self.high}
        self.sent, self.latest, self.count, self.low, self.high = now, None, 0, None, None
        return reading


class Live:
    """The hub of live events.

    `valid(session)` says whether a session key is still logged in; pages of those that are not are closed.

    Synchronization: `publish`, `add`, `close_session` and `counters` may be called from any thread and never wait for
    a page; the rest runs in the hub's own thread.
    """

    def __init__(self, valid: Callable[[str], bool] = lambda session: True, version: str = "") -> None:
        self._valid = valid
        self._version = version
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._lock = threading.Lock()  # protects the fields from here to the blank line
        self._pending: list[Handler] = []
        self._held: dict[tuple[str, Any], _Held] = {}
        self._seen: dict[str, float] = {}
        self._lost: set[str] = set()
        self._new: list[_Page] = []
        self._ended: list[str] = []
        self._woken = False

        self._pages: set[_Page] = set()
        self._running = False
        self._thread: threading.Thread | None = None
        self._flushed = 0.0
        self._counts = {"pages_opened": 0, "events_published": 0, "events_dropped": 0, "pages_stalled": 0}

    def start(self) -> None:
        self._running = True
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close every page and end the thread. May be called twice."""
        self._running = False
        self._wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def publish(self, kind: str, unit: str, value: dict[str, Any]) -> None:
        """Something happened to a unit: `kind` is one of those of docs/http-api.md."""
        now = time.monotonic()
        with self._lock:
            self._counts["events_published"] += 1
            if kind in ("reading", "status"):
                self._seen[unit] = now
                if unit in self._lost:
                    self._lost.discard(unit)
                    self._pending.append(("state", unit, {"state": "online"}))
            if kind == "reading":
                held = self._held.setdefault((unit, value.get("stream")), _Held())
                held.add(value)
                if now - held.sent < READING_INTERVAL_S:
                    return
                value = held.take(now)
            self._append(kind, unit, value)
        self._wake()

    def add(self, sock: socket.socket, units: Filter = None, session: str = "", states: bool = False) -> None:
        """Take over a connection whose headers were sent. `units` are the names it wants to hear of (None: all);
        `states` adds what is in OF_ALL of every other unit."""
        sock.settimeout(0)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with self._lock:
            self._new.append(_Page(sock, units, session, states, time.monotonic()))
        self._wake()

    def close_session(self, session: str) -> None:
        """Close the pages of a login that ended."""
        with self._lock:
            self._ended.append(session)
        self._wake()

    def seconds_unseen(self, unit: str) -> float | None:
        """How long ago a unit was heard of; None when never since the start."""
        with self._lock:
            seen = self._seen.get(unit)
        return None if seen is None else time.monotonic() - seen

    def counters(self) -> dict[str, int]:
        """Counts since the start, and the pages open now."""
        with self._lock:
            return {**self._counts, "pages_open": len(self._pages)}

    def _append(self, kind: str, unit: str, value: dict[str, Any]) -> None:
        """Put an event into the next round; the lock is held."""
        if len(self._pending) >= PENDING_LIMIT:
            self._counts["events_dropped"] += len(self._pending) // 2
            del self._pending[: len(self._pending) // 2]
        self._pending.append((kind, unit, value))

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            try:
                self._wake_write.send(b"\0")
            except OSError:
                pass  # full: the hub is about to wake anyway

    def _run(self) -> None:
        beat = second = time.monotonic()
        while self._running:
            for key, mask in self._selector.select(self._patience()):
                if key.data is None:
                    self._drain_wake()
                else:
                    self._serve(key.data, mask)
            now = time.monotonic()
            self._welcome()
            if now - self._flushed >= GATHER_S:
                self._flush(now)
            if now - second >= 1.0:
                second = now
                self._watch(now)
            if now - beat >= HEARTBEAT_S:
                beat = now
                for page in list(self._pages):
                    self._queue(page, b": beat\n\n", 0)
        for page in list(self._pages):
            self._close(page)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _patience(self) -> float:
        """How long the hub may sleep: until the next round when something waits for it, else half a second.

        Only the long sleep has to be ended by a wake: while something gathers, more of it costs none."""
        with self._lock:
            if self._pending:
                return max(0.0, self._flushed + GATHER_S - time.monotonic())
            if self._new or self._ended:
                return 0.0
            self._woken = False
            return 0.1 if any(held.latest is not None for held in self._held.values()) else 0.5

    def _drain_wake(self) -> None:
        try:
            self._wake_read.recv(4096)
        except OSError:
            pass

    def _welcome(self) -> None:
        """Take in new pages, and close those of sessions that ended."""
        with self._lock:
            new, self._new = self._new, []
            ended, self._ended = self._ended, []
            self._counts["pages_opened"] += len(new)
        for page in new:
            self._pages.add(page)
            self._selector.register(page.sock, selectors.EVENT_READ, page)
            hello = to_json({"t": time.time(), "version": self._version})
            self._queue(page, f"retry: 1000\nevent: hello\ndata: {hello}\n\n".encode(), 0)
        for page in list(self._pages):
            if page.session in ended:
                self._close(page)

    def _flush(self, now: float) -> None:
        """Write what gathered to every page that wants it."""
        with self._lock:
            for (unit, _), held in self._held.items():
                if held.latest is not None and now - held.sent >= READING_HELD_S:
                    self._append("reading", unit, held.take(now))
            pending, self._pending = self._pending, []
        self._flushed = now
        if not pending or not self._pages:
            return
        everything = any(page.units is None for page in self._pages)
        wanted = frozenset().union(*(page.units or () for page in self._pages))
        texts = [
            (unit, kind in OF_ALL, f"event: {kind}\ndata: {to_json({'unit': unit, **value})}\n\n".encode())
            for kind, unit, value in pending
            if everything or unit in wanted or kind in OF_ALL
        ]
        joined: dict[tuple[Filter, bool], tuple[bytes, int]] = {}
        for page in list(self._pages):
            key = (page.units, page.states)
            if key not in joined:
                names, states = key
                chosen = [text for unit, of_all, text in texts if names is None or unit in names or (states and of_all)]
                joined[key] = (b"".join(chosen), len(chosen))
            text, count = joined[key]
            if count:
                self._queue(page, text, count)

    def _watch(self, now: float) -> None:
        """Once a second: units that fell silent, pages that stalled or whose session ended."""
        with self._lock:
            for unit, seen in self._seen.items():
                if now - seen > UNSEEN_S and unit not in self._lost:
                    self._lost.add(unit)
                    self._append("state", unit, {"state": "lost"})
        for page in list(self._pages):
            if page.queue and now - page.progress > STALLED_S:
                with self._lock:
                    self._counts["pages_stalled"] += 1
                self._close(page)
            elif page.session and not self._valid(page.session):
                self._close(page)

    def _queue(self, page: _Page, text: bytes, count: int) -> None:
        """Give a page something to write; drops its oldest when it is too far behind."""
        if not page.queue:
            page.progress = time.monotonic()
            if page.dropped > page.told:
                text = f"event: dropped\ndata: {to_json({'count': page.dropped - page.told})}\n\n".encode() + text
                page.told = page.dropped
        page.queue.append((text, count))
        page.size += len(text)
        while page.size > QUEUE_LIMIT_BYTES and len(page.queue) > 2:
            oldest = 1 if page.offset else 0  # one that was begun has to be finished
            text, lost = page.queue[oldest]
            del page.queue[oldest]
            page.size -= len(text)
            page.dropped += lost
            with self._lock:
                self._counts["events_dropped"] += lost
        if not page.writing:
            self._write(page)

    def _serve(self, page: _Page, mask: int) -> None:
        if page not in self._pages:
            return
        if mask & selectors.EVENT_READ:
            try:
                if not page.sock.recv(4096):
                    self._close(page)
                    return
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError:
                self._close(page)
                return
        if mask & selectors.EVENT_WRITE:
            self._write(page)

    def _write(self, page: _Page) -> None:
        """Write until the page is up to date or takes no more."""
        try:
            while page.queue:
                text = page.queue[0][0]
                page.offset += page.sock.send(memoryview(text)[page.offset :])
                page.progress = time.monotonic()
                if page.offset == len(text):
                    page.queue.popleft()
                    page.size -= len(text)
                    page.offset = 0
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError:
            self._close(page)
            return
        writing = bool(page.queue)
        if writing != page.writing:
            page.writing = writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            self._selector.modify(page.sock, events, page)

    def _close(self, page: _Page) -> None:
        if page in self._pages:
            self._pages.discard(page)
            self._selector.unregister(page.sock)
            page.sock.close()
