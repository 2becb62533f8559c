"""Live events: fifty pages, slow pages, coalescing, sessions that end, units that fall silent."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time

import pytest
from stirbar.web import live as live_module
from stirbar.web.app import Site, make_app
from stirbar.web.live import Live
from stirbar.web.server import Server

PAGES = 50


class Page:
    """A raw client of /api/live: what a browser's EventSource does."""

    def __init__(self, port, cookie, query="", wrap=None, receive_buffer=None):
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(10)
        self.sock.connect(("127.0.0.1", port))
        if wrap:
            self.sock = wrap(self.sock)
        request = f"GET /api/live{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n\r\n"
        self.sock.sendall(request.encode())
        self.file = self.sock.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            self.headers[name.lower()] = value

    def events(self):
        kind = None
        for line in self.file:
            if line.startswith(b"event: "):
                kind = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                yield kind, json.loads(line[6:])

    def until(self, kind, **fields):
        """The events up to the first of this kind with these fields."""
        seen = []
        for found, event in self.events():
            seen.append((found, event))
            if found == kind and all(event.get(key) == value for key, value in fields.items()):
                return seen
        raise AssertionError(f"the connection ended before {kind} {fields}: {seen[-3:]}")

    def close(self):
        self.file.close()
        self.sock.close()


def wait_for(condition, deadline_s=5.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, store=None, ingest=None, live=Live(version="test"))
    site.live = Live(site.sessions.valid, "test")
    site.live.start()
    yield site
    site.live.stop()


@pytest.fixture
def server(site):
    server = Server(make_app(site), "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def session(site):
    return site.sessions.open()


@pytest.fixture
def open_page(server, session):
    opened = []

    def open_one(query="", **options):
        page = Page(server.port, f"stirbar_{server.port}={session.secret}", query, **options)
        opened.append(page)
        return page

    yield open_one
    for page in opened:
        page.close()


def reading(sequence, stream="od2", value=0.5):
    return {"stream": stream, "sequence": sequence, "value": value, "se_culture": float("nan"), "t": time.time()}


def test_fifty_pages_freeze_nothing(site, server, session, open_page):
    threads_before = threading.active_count()
    pages = [open_page() for _ in range(PAGES)]
    assert all(page.status == 200 and page.headers["content-type"].startswith("text/event-stream") for page in pages)
    wait_for(lambda: site.live.counters()["pages_open"] == PAGES)
    wait_for(lambda: server.connections() == 0)
    assert threading.active_count() <= threads_before + 1  # open pages hold no thread
    delays = []
    stop = threading.Event()

    def visit():
        """Meanwhile somebody else uses the site."""
        while not stop.is_set():
            begun = time.monotonic()
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as other:
                cookie = f"Cookie: stirbar_{server.port}={session.secret}"
                other.sendall(f"GET /api/session HTTP/1.1\r\n{cookie}\r\nConnection: close\r\n\r\n".encode())
                assert b" 200 " in other.recv(4096)
            delays.append(time.monotonic() - begun)

    visitor = threading.Thread(target=visit)
    visitor.start()
    for number in range(100):
        site.live.publish("event", "unit1", {"message": f"event {number}"})
    site.live.publish("event", "unit1", {"message": "last"})
    for page in pages:
        events = [event["message"] for kind, event in page.until("event", message="last") if kind == "event"]
        assert events == [f"event {number}" for number in range(100)] + ["last"]
    stop.set()
    visitor.join()
    assert site.live.counters()["events_dropped"] == 0
    assert sorted(delays)[len(delays) // 2] < 0.5
    for page in pages:
        page.close()
    wait_for(lambda: site.live.counters()["pages_open"] == 0)


def test_a_page_that_does_not_read_loses_only_its_own(site, open_page, monkeypatch):
    monkeypatch.setattr(live_module, "QUEUE_LIMIT_BYTES", 20_000)
    stuck = open_page(receive_buffer=4096)
    reads = open_page()
    wait_for(lambda: site.live.counters()["pages_open"] == 2)
    received = threading.Thread(target=lambda: seen.extend(reads.until("event", code="end")))
    seen = []
    received.start()
    number, deadline = 0, time.monotonic() + 20
    while site.live.counters()["events_dropped"] == 0:
        assert time.monotonic() < deadline
        site.live.publish("event", "unit1", {"number": number, "message": "x" * 1000})
        number += 1
        if number % 10 == 0:
            time.sleep(0.001)  # lets the hub have the interpreter
    site.live.publish("event", "unit1", {"code": "end"})
    received.join(10)
    numbers = [event["number"] for kind, event in seen if kind == "event" and "number" in event]
    assert numbers == list(range(number))
    late = stuck.until("event", code="end")
    site.live.publish("event", "unit1", {"code": "after"})
    late += stuck.until("event", code="after")
    kept = [event["number"] for kind, event in late if "number" in event]
    told = sum(event["count"] for kind, event in late if kind == "dropped")
    assert kept == sorted(set(kept)) and len(kept) < number
    assert len(kept) + told == number == len(kept) + site.live.counters()["events_dropped"]


def test_readings_are_thinned_and_extremes_kept(site, open_page):
    page = open_page()
    wait_for(lambda: site.live.counters()["pages_open"] == 1)
    begun = time.monotonic()
    number = 0
    while time.monotonic() - begun < 1.0:
        for stream in ("od2", "rpm"):
            site.live.publish("reading", "unit1", reading(number, stream, 9.0 if number == 13 else 0.5))
        number += 1
        time.sleep(0.01)
    page_events = page.until("reading", sequence=number - 1, stream="rpm")
    for stream in ("od2", "rpm"):
        found = [event for kind, event in page_events if kind == "reading" and event["stream"] == stream]
        assert 6 <= len(found) <= 15
        assert max(event["high"] for event in found) == 9.0
        assert found[0]["sequence"] == 0 and found[0]["se_culture"] is None  # the first at once; NaN is null
    counted = sum(event["count"] for kind, event in page_events if kind == "reading" and event["stream"] == "rpm")
    assert counted == number


def test_filter_by_unit(site, open_page):
    page = open_page("?units=unit2,unit%203")
    wait_for(lambda: site.live.counters()["pages_open"] == 1)
    for unit in ("unit1", "unit2", "unit 3"):
        site.live.publish("state", unit, {"state": "online"})
    seen = page.until("state", unit="unit 3")
    assert [event["unit"] for kind, event in seen if kind == "state"] == ["unit2", "unit 3"]


def test_logout_and_expiry_close_pages(site, session, open_page):
    page = open_page()
    wait_for(lambda: site.live.counters()["pages_open"] == 1)
    site.sessions.close(session)
    site.live.close_session(session.key)
    assert page.file.read().count(b"event: hello") == 1  # and then the end
    other = site.sessions.open()
    assert site.sessions.valid(other.key) and not site.sessions.valid(session.key)


def test_page_of_an_expired_session_is_closed(site, session, open_page):
    page = open_page()
    wait_for(lambda: site.live.counters()["pages_open"] == 1)
    site.sessions.close(session)  # nobody tells the hub: it looks once a second
    page.file.read()
    assert site.live.counters()["pages_open"] == 0


def test_no_live_without_login(server):
    page = Page(server.port, "stirbar=nonsense")
    assert page.status == 401
    page.close()


def test_silent_unit_is_lost_and_comes_back(site, open_page, monkeypatch):
    monkeypatch.setattr(live_module, "UNSEEN_S", 0.2)
    page = open_page()
    site.live.publish("reading", "unit1", reading(0))
    page.until("state", state="lost", unit="unit1")
    site.live.publish("reading", "unit1", reading(1))
    page.until("state", state="online", unit="unit1")


def test_heartbeat(site, open_page, monkeypatch):
    monkeypatch.setattr(live_module, "HEARTBEAT_S", 0.1)
    page = open_page()
    for line in page.file:
        if line.startswith(b": "):
            break


def test_live_over_tls(site, session, tmp_path):
    certificate = pytest.importorskip("stirbar.web.certificate")
    pytest.importorskip("cryptography")
    context, _ = certificate.server_context(tmp_path, "0.0.0.0")
    server = Server(make_app(site), "0.0.0.0", 0, context)
    server.start()
    client = ssl.create_default_context(cafile=tmp_path / "tls" / "ca.pem")
    cookie = f"stirbar_{server.port}={session.secret}"
    page = Page(server.port, cookie, wrap=lambda sock: client.wrap_socket(sock, server_hostname="localhost"))
    wait_for(lambda: site.live.counters()["pages_open"] == 1)
    for number in range(300):  # more than one TLS record and more than the socket takes at once
        site.live.publish("event", "unit1", {"number": number, "message": "x" * 2000})
    seen = page.until("event", number=299)
    assert [event["number"] for kind, event in seen if kind == "event"] == list(range(300))
    page.close()
    server.stop()


def test_stop_ends_pages(site, open_page):
    pages = [open_page() for _ in range(5)]
    wait_for(lambda: site.live.counters()["pages_open"] == 5)
    site.live.stop()
    for page in pages:
        page.file.read()
