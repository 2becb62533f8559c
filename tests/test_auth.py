"""Log-in, one-time links, sessions, guessing, forged requests, headers: over real HTTP and HTTPS."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import stat
import threading
import time

import pytest
from stirbar.web import auth, certificate
from stirbar.web.app import Site, make_app
from stirbar.web.live import Live
from stirbar.web.server import MAXIMUM_BODY_BYTES, Server

PASSWORD = "correct horse"


class Browser:
    """One client with its cookie and CSRF token."""

    def __init__(self, port, context=None):
        self.port = port
        self.context = context
        self.cookie = ""
        self.csrf = ""

    def __call__(self, method, path, body=None, headers=None, csrf=True):
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=self.context)
            if self.context
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        )
        sent = dict(headers or {})
        if self.cookie:
            sent.setdefault("Cookie", self.cookie)
        if csrf and method != "GET":
            sent.setdefault("X-CSRF-Token", self.csrf)
        data = body
        if body is not None and not isinstance(body, bytes):
            sent.setdefault("Content-Type", "application/json")
            data = json.dumps(body).encode()
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if response.getheader("Set-Cookie"):
            self.cookie = response.getheader("Set-Cookie").split(";")[0]
        response.text = text
        return response

    def login(self, password=PASSWORD):
        response = self("POST", "/api/login", {"password": password})
        if response.status == 200:
            self.csrf = json.loads(self("GET", "/api/session").text)["csrf"]
        return response


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, store=None, ingest=None, live=Live(), version="test")
    site.password.set(PASSWORD)
    return site


@pytest.fixture
def server(site):
    server = Server(make_app(site), "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def browser(server):
    return Browser(server.port)


def error(response):
    assert response.getheader("Content-Type").startswith("application/json")
    found = json.loads(response.text)
    assert set(found) == {"error", "field", "remedy"}
    return found


def test_nothing_without_login(browser):
    for path in ("/", "/units/unit1", "/experiments", "/events"):
        response = browser("GET", path)
        assert (response.status, response.getheader("Location")) == (303, "/login")
    for path in ("/api/units", "/api/session", "/api/live", "/api/readings", "/api/events", "/api/nothing"):
        assert browser("GET", path).status == 401
        assert "log in" in error(browser("GET", path))["remedy"]
    assert browser("POST", "/api/experiments", {"name": "x"}).status == 401


def test_password_opens_and_logout_closes(browser, tmp_path):
    assert browser.login("wrong password").status == 403
    response = browser.login()
    assert response.status == 200
    flags = response.getheader("Set-Cookie").lower()
    assert "httponly" in flags and "samesite=strict" in flags and "secure" not in flags
    assert json.loads(browser("GET", "/api/session").text)["version"] == "test"
    assert browser("POST", "/api/logout", {}).status == 200
    assert browser("GET", "/api/session", headers={"Cookie": browser.cookie}).status == 401


def test_logged_out_cookie_is_worthless(browser):
    browser.login()
    stolen = browser.cookie
    browser("POST", "/api/logout", {})
    assert browser("GET", "/api/session", headers={"Cookie": stolen}).status == 401


def test_one_time_link_works_once(site, browser):
    token = site.links.issue()
    response = browser("GET", f"/login?token={token}")
    assert response.status == 200 and b'http-equiv="refresh"' in response.text
    assert browser("GET", "/api/session").status == 200
    second = Browser(browser.port)
    assert second("GET", f"/login?token={token}").status == 403
    assert not second.cookie


def test_link_as_token_of_the_api(site, browser):
    token = site.links.issue()
    assert browser("POST", "/api/login", {"token": token}).status == 200
    assert "one-time" in error(Browser(browser.port)("POST", "/api/login", {"token": token}))["error"]


def test_link_expires(tmp_path):
    now = [1000.0]
    links = auth.Links(tmp_path, lambda: now[0])
    early, late = links.issue(), links.issue()
    now[0] += auth.LINK_LIFETIME_S - 1
    assert links.redeem(early)
    now[0] += 2
    assert not links.redeem(late)
    assert not links.redeem("guessed")


def test_link_of_another_process_and_race(tmp_path):
    token = auth.Links(tmp_path).issue()  # `stirbar leader link`
    results = []
    threads = [threading.Thread(target=lambda: results.append(auth.Links(tmp_path).redeem(token))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_secrets_on_disk(site, browser, tmp_path):
    token = site.links.issue()
    browser.login()
    secret = browser.cookie.split("=", 1)[1]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"password.json", "links.json", "sessions.json"} <= {path.name for path in files}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        for text in (PASSWORD, token, secret, browser.csrf):
            assert text not in path.read_text()


def test_session_survives_restart_and_ends(tmp_path):
    now = [1e9]
    sessions = auth.Sessions(tmp_path, 3600.0, lambda: now[0])
    secret = sessions.open().secret
    again = auth.Sessions(tmp_path, 3600.0, lambda: now[0])
    assert again.find(secret) is not None
    now[0] += 2000  # used in the second half of its life: prolonged
    assert again.find(secret) is not None
    now[0] += 3000
    assert again.find(secret) is not None
    now[0] += 3601
    assert again.find(secret) is None
    assert again.find("guessed") is None


def test_new_password_ends_sessions(site, browser):
    browser.login()
    assert browser("GET", "/api/session").status == 200
    site.password.set("another password")
    os.utime(site.password.path, (time.time() + 1, time.time() + 1))  # file times are coarser than a test
    assert browser("GET", "/api/session").status == 401


def test_damaged_files_let_nobody_in(tmp_path):
    for name in ("password.json", "links.json", "sessions.json"):
        for text in ("", "null", "[1]", '{"a": "b"}', '{"salt": "zz", "hash": "", "scrypt": {}}', "\0"):
            (tmp_path / name).write_text(text)
            assert not auth.Password(tmp_path).check("")
            assert not auth.Links(tmp_path).redeem("a")
            assert auth.Sessions(tmp_path, 60.0).find("a") is None


def test_guessing_is_slowed(browser, site):
    for _ in range(auth.FREE_FAILURES):
        assert browser.login("wrong password").status == 403
    response = browser.login()
    assert response.status == 429 and int(response.getheader("Retry-After")) >= 1
    assert "one-time link" in error(response)["remedy"]
    assert browser("POST", "/api/login", {"token": site.links.issue()}).status == 200  # the owner is not locked out


def test_rate_limit_doubles_and_forgets():
    now = [0.0]
    limit = auth.RateLimit(lambda: now[0])
    assert [limit.attempt("a") for _ in range(auth.FREE_FAILURES)] == [0.0] * auth.FREE_FAILURES
    waits = []
    for _ in range(12):
        wait = limit.attempt("a")
        waits.append(round(wait))
        now[0] += wait
        assert limit.attempt("a") == 0.0
    assert waits[:4] == [2, 4, 8, 16] and waits[-1] == auth.LONGEST_DELAY_S
    assert limit.attempt("b") == 0.0
    now[0] += auth.FORGET_FAILURES_S + 1
    assert limit.attempt("a") == 0.0
    limit.succeeded("a")
    assert limit.attempt("a") == 0.0


@pytest.mark.parametrize(
    ("headers", "body", "status", "field"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"password=x", 415, "Content-Type"),
        ({"Content-Type": "text/plain"}, b'{"password": "x"}', 415, "Content-Type"),
        ({"Origin": "http://evil.example"}, {"password": PASSWORD}, 403, "Origin"),
        ({}, {"password": 7}, 400, "password"),
        ({}, {"passwort": "x"}, 400, "passwort"),
        ({}, {}, 400, "password"),
        ({"Content-Type": "application/json"}, b"[1]", 400, None),
        ({"Content-Type": "application/json"}, b"{", 400, None),
        ({"Content-Type": "application/json"}, b"[" * 60000, 400, None),
        ({"Content-Type": "application/json"}, b'{"password": "\xff"}', 400, None),
    ],
)
def test_bad_logins(browser, headers, body, status, field):
    response = browser("POST", "/api/login", body, headers)
    assert response.status == status
    assert error(response)["field"] == field
    assert not browser.cookie


def test_forged_requests_are_refused(browser):
    browser.login()
    refused = browser("POST", "/api/logout", {}, csrf=False)
    assert refused.status == 403 and error(refused)["field"] == "X-CSRF-Token"
    assert browser("POST", "/api/logout", {}, {"X-CSRF-Token": "0" * 64}).status == 403
    assert browser("POST", "/api/logout", {}, {"X-CSRF-Token": "é".encode("latin-1")}).status == 403
    assert browser("POST", "/api/logout", {}, {"Origin": "http://evil.example"}).status == 403
    assert browser("POST", "/api/logout", {}, {"Origin": "null"}).status == 403
    own = f"http://127.0.0.1:{browser.port}"
    assert browser("POST", "/api/logout", {}, {"Origin": own}).status == 200


def test_headers_on_every_answer(browser):
    for path in ("/login", "/", "/nothing", "/static/nothing.js", "/api/units", "/api/health/x", "/login?token=x"):
        response = browser("GET", path)
        policy = response.getheader("Content-Security-Policy")
        assert "default-src 'self'" in policy and "unsafe" not in policy, path
        assert response.getheader("X-Content-Type-Options") == "nosniff"
        assert response.getheader("X-Frame-Options") == "DENY"
        assert response.getheader("Referrer-Policy") == "no-referrer"
        assert response.getheader("Cache-Control") == "no-store"
        assert response.getheader("Server") is None


def test_log_says_no_secret(site, browser, capfd):
    token = site.links.issue()
    browser("GET", f"/login?token={token}")
    browser.login("a wrong password")
    browser("GET", "/%ff%00/..", headers={"X-Odd": "1"})
    captured = capfd.readouterr()
    assert token not in captured.out + captured.err
    assert "wrong password" not in captured.out + captured.err


def test_no_password_set(tmp_path):
    site = Site(tmp_path, store=None, ingest=None, live=Live())
    server = Server(make_app(site), "127.0.0.1", 0)
    server.start()
    try:
        response = Browser(server.port).login("anything at all")
        assert response.status == 403 and "stirbar leader password" in error(response)["remedy"]
    finally:
        server.stop()


def test_password_length(tmp_path):
    password = auth.Password(tmp_path)
    with pytest.raises(ValueError, match="7 characters; allowed are 8 to"):
        password.set("7 chars")
    assert not password.exists()
    password.set("pässwörter")
    assert password.check("pässwörter") and not password.check("passworter") and not password.check("")


def test_server_limits(server):
    def talk(text):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(text)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer

    head = b"POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert b" 413 " in talk(head + b"Content-Length: %d\r\n\r\n" % (MAXIMUM_BODY_BYTES + 1))
    assert b" 411 " in talk(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert b" 400 " in talk(head + b"Content-Length: many\r\n\r\n")
    assert b" 400 " in talk(head + b"Content-Length: -1\r\n\r\n")
    assert b" 414 " in talk(b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n")
    assert b" 431 " in talk(b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(200)) + b"\r\n")
    assert b" 400 " in talk(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert server.failures == 0


def test_connection_is_kept_and_pipelined(server):
    request = b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        for _ in range(3):
            connection.sendall(b"HEAD /login HTTP/1.1\r\nHost: x\r\n\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1)
            assert head.startswith(b"HTTP/1.1 200") or b" 500 " in head
        assert server.connections() == 1
        connection.sendall(request[:20])
    deadline = time.monotonic() + 5
    while server.connections() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.connections() == 0  # a client that leaves in mid-request leaves nothing behind


def test_stop_is_quick_with_clients_open(site):
    server = Server(make_app(site), "127.0.0.1", 0)
    server.start()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 2.0
    for connection in idle:
        connection.close()
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)


@pytest.fixture(scope="module")
def tls_directory(tmp_path_factory):
    pytest.importorskip("cryptography")
    return tmp_path_factory.mktemp("tls")


def test_https_beyond_loopback(tls_directory, tmp_path):
    site = Site(tmp_path, store=None, ingest=None, live=Live())
    site.password.set(PASSWORD)
    context, fingerprint = certificate.server_context(tls_directory, "0.0.0.0")
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", fingerprint)
    server = Server(make_app(site), "0.0.0.0", 0, context)
    server.start()
    stalled = socket.create_connection(("127.0.0.1", server.port))  # never shakes hands, and stops nobody
    try:
        trusting = ssl.create_default_context(cafile=tls_directory / "tls" / "ca.pem")  # verifies name and chain
        browser = Browser(server.port, trusting)
        response = browser.login()
        assert response.status == 200 and "secure" in response.getheader("Set-Cookie").lower()
        with pytest.raises(ssl.SSLCertVerificationError):
            Browser(server.port, ssl.create_default_context())("GET", "/login")
        plain = Browser(server.port)("GET", "/login")  # plain HTTP: sent to https, nothing else is said
        assert (plain.status, plain.getheader("Location")) == (301, f"https://127.0.0.1:{server.port}/")
    finally:
        stalled.close()
        server.stop()


def test_certificate_is_kept_and_renewed(tls_directory):
    _, first = certificate.server_context(tls_directory, "0.0.0.0")
    folder = tls_directory / "tls"
    before = (folder / "server.pem").read_bytes()
    assert certificate.server_context(tls_directory, "0.0.0.0")[1] == first
    assert (folder / "server.pem").read_bytes() == before
    certificate.server_context(tls_directory, "192.0.2.7")  # another address: a new certificate, the same authority
    assert (folder / "server.pem").read_bytes() != before
    assert certificate.server_context(tls_directory, "0.0.0.0")[1] == first
    (folder / "server.pem").write_text("damaged")
    certificate.server_context(tls_directory, "0.0.0.0")
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_without_cryptography_one_sentence(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    with pytest.raises(certificate.CertificateError, match=r"pip install stirbar\[tls\]"):
        certificate.server_context(tmp_path, "0.0.0.0")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("leader.local", False)],
)  # fmt: skip
def test_what_is_loopback(host, loopback):
    assert certificate.is_loopback(host) is loopback
