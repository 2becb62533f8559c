"""API tokens: scopes, refusals, guessing, revoking, the file they lie in, and the command line."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import time

import pytest
from stirbar.core.leader_client import Leader, LeaderRefused
from stirbar.web import auth, tokens
from stirbar.web.app import Site, make_app, make_routes
from stirbar.web.live import Live
from stirbar.web.routes import PUBLIC, scope_of
from stirbar.web.server import Server
from stirbar.web.tokens import SCOPES, TokenError, Tokens, either

from .running import stirbar_environment
from .test_auth import Browser, error


class Store:
    """As much of a store as these requests reach."""

    def __init__(self):
        self.acknowledged = []
        self.created = []

    def alerts(self, unit_id, limit):
        return {"count": 0, "newest": None, "alerts": []}

    def acknowledge(self, first, last, unit_id, by):
        self.acknowledged.append((first, last, by))
        return ["vial1"]

    def experiments(self):
        return [{"name": name} for name in self.created]

    def create_experiment(self, name, description):
        self.created.append(name)


@pytest.fixture
def site(tmp_path):
    sessions, store = auth.Sessions(tmp_path, 3600.0), Store()
    live = Live(either(sessions, Tokens(tmp_path)), "test")
    live.start()
    yield Site(tmp_path, store=store, ingest=None, live=live, version="test", sessions=sessions)
    live.stop()


@pytest.fixture
def server(site):
    server = Server(make_app(site), "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def test_each_scope_opens_what_is_below_it(site, server):
    browser = Browser(server.port)
    asked = {
        "read": ("GET", "/api/alerts", None),
        "control": ("POST", "/api/alerts/acknowledge", {"id": 1}),
        "admin": ("GET", "/api/tokens", None),
    }
    for mine in SCOPES:
        secret = site.tokens.create(f"one-{mine}", mine)
        for needed, (method, path, body) in asked.items():
            response = browser(method, path, body, bearer(secret), csrf=False)
            allowed = SCOPES.index(mine) >= SCOPES.index(needed)
            assert response.status == (200 if allowed else 403), (mine, needed, response.text)
            if not allowed:
                found = error(response)
                assert f"needs {needed}" in found["error"] and f"one-{mine}" in found["error"]
                assert f"--scope {needed}" in found["remedy"]
        session = json.loads(browser("GET", "/api/session", headers=bearer(secret)).text)
        assert (session["user"], session["scope"], session["csrf"]) == (f"one-{mine}", mine, "")
    assert [by for _, _, by in site.store.acknowledged] == [f"one-{one} at 127.0.0.1" for one in ("control", "admin")]


def test_who_is_unknown_hears_which_scope_is_needed(server):
    browser = Browser(server.port)
    for method, path, scope in (
        ("GET", "/api/units", "read"), ("POST", "/api/experiments", "control"), ("POST", "/api/tokens", "admin"),
    ):  # fmt: skip
        response = browser(method, path, {} if method == "POST" else None)
        assert response.status == 401 and f"needs the scope {scope}" in error(response)["error"]


def test_every_route_but_the_public_ones_needs_a_scope_and_changes_need_more_than_read(site):
    routes = [route for route in make_routes(site).routes if route.rule.startswith("/api/")]
    assert len(routes) > 15
    scopes = {(route.method, route.rule): scope_of(route.method, route.callback) for route in routes}
    assert {key for key, scope in scopes.items() if scope == PUBLIC} == {
        ("POST", "/api/login"), ("GET", "/api/health"), ("GET", "/api/cluster/authority"),
        ("POST", "/api/cluster/join"), ("POST", "/api/cluster/renew"),
        ("POST", "/api/cluster/ask"), ("POST", "/api/cluster/answer"),
        ("GET", "/api/cluster/leadership"), ("POST", "/api/cluster/standby"), ("GET", "/api/cluster/book"),
    }  # fmt: skip
    reading = {key for key, scope in scopes.items() if key[0] != "GET" and scope == "read"}
    assert reading == {("POST", "/api/logout")}
    assert all(scope == "admin" for (_, rule), scope in scopes.items() if rule.startswith("/api/tokens"))


def test_the_page_may_everything(site, server):
    browser = Browser(server.port)
    site.password.set("correct horse")
    browser.login()
    made = browser("POST", "/api/tokens", {"name": "robot", "scope": "control", "days": 2})
    assert made.status == 201
    secret = json.loads(made.text)["token"]
    assert secret.startswith("stirbar_") and len(secret) > 40
    listed = browser("GET", "/api/tokens").text
    assert json.loads(listed)[0]["name"] == "robot" and secret.encode() not in listed
    assert browser("POST", "/api/tokens", {"name": "robot", "scope": "read"}).status == 409
    assert error(browser("POST", "/api/tokens", {"name": "a b", "scope": "read"}))["field"] == "name"
    assert error(browser("POST", "/api/tokens", {"name": "b", "scope": "all"}))["field"] == "scope"
    assert error(browser("POST", "/api/tokens", {"name": "b", "scope": "read", "days": 0}))["field"] == "days"
    other = Browser(server.port)
    assert other("GET", "/api/units", headers={"Authorization": f"Basic {secret}"}).status == 401
    assert other("GET", "/", headers=bearer(secret)).status == 303  # pages are for people
    assert browser("DELETE", "/api/tokens/robot", {}).status == 200
    assert browser("DELETE", "/api/tokens/robot", {}).status == 404
    assert other("GET", "/api/alerts", headers=bearer(secret)).status == 401


def test_a_token_needs_no_csrf_but_a_foreign_page_is_refused_all_the_same(site, server):
    secret = site.tokens.create("robot", "control")
    browser = Browser(server.port)
    headers = bearer(secret) | {"Origin": "https://evil.example"}
    assert browser("POST", "/api/experiments", {"name": "x"}, headers, csrf=False).status == 403
    assert browser("POST", "/api/experiments", {"name": "x"}, bearer(secret), csrf=False).status == 201


def test_a_wrong_token_with_a_good_cookie_does_not_get_in(site, server):
    site.password.set("correct horse")
    browser = Browser(server.port)
    browser.login()
    assert browser("GET", "/api/alerts", headers=bearer("stirbar_wrong")).status == 401


def test_wrong_tokens_have_to_wait_and_right_ones_do_not(site, server):
    secret = site.tokens.create("robot", "read")
    browser = Browser(server.port)
    statuses = [browser("GET", "/api/alerts", headers=bearer(f"stirbar_{i}")).status for i in range(7)]
    assert statuses == [401] * auth.FREE_FAILURES + [429] * 2
    refused = browser("GET", "/api/alerts", headers=bearer("stirbar_x"))
    assert int(refused.getheader("Retry-After")) >= 1 and error(refused)["field"] == "Authorization"
    assert browser("GET", "/api/alerts", headers=bearer(secret)).status == 200
    site.password.set("correct horse")
    assert browser.login().status == 200  # passwords have a count of their own


def test_a_token_ends_at_its_time(tmp_path):
    now = [1e9]
    found = Tokens(tmp_path, lambda: now[0])
    brief, lasting = found.create("brief", "admin", 1), found.create("lasting", "read")
    now[0] += tokens.DAY_S - 1
    assert found.find(brief).name == "brief" and found.valid(found.find(brief).key)
    key = found.find(brief).key
    now[0] += 1
    assert found.find(brief) is None and not found.valid(key) and found.find(lasting).scope == "read"
    assert {one["name"]: one["expired"] for one in found.listed()} == {"brief": True, "lasting": False}
    assert found.create("brief", "read") != brief  # the name of one that ended is free


def test_the_file_holds_no_secret_and_only_its_owner_reads_it(tmp_path):
    found = Tokens(tmp_path)
    secret = found.create("robot", "admin")
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o600
    assert secret.removeprefix("stirbar_") not in found.path.read_text()
    stored = json.loads(found.path.read_text())["robot"]["sha256"]
    assert found.find(stored) is None  # what is stored opens nothing


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"a": 3}', b'{"a": {"sha256": 1}}', b"\xff\xfe"])
def test_a_damaged_file_lets_nobody_in(tmp_path, damage):
    found = Tokens(tmp_path)
    secret = found.create("robot", "admin")
    found.path.write_bytes(damage)
    assert found.find(secret) is None and found.listed() == []


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a" * 33, "operator", "é", "a\n"])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(TokenError) as caught:
        Tokens(tmp_path).create(name, "read")
    assert caught.value.field == "name" and "letters" in caught.value.remedy


def test_revoking_ends_live_connections(site, server):
    secret = site.tokens.create("robot", "read")
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    sock.sendall(f"GET /api/live HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
    file = sock.makefile("rb")
    while not file.readline().startswith(b"event: hello"):
        pass
    asked = time.monotonic()
    site.tokens.revoke("robot")
    file.read()  # to the end of the connection
    assert time.monotonic() - asked < 4
    sock.close()


def test_the_client_takes_a_token(site, server):
    secret = site.tokens.create("robot", "control")
    address = f"http://127.0.0.1:{server.port}"
    with Leader(address, token=secret) as leader:
        assert leader.alerts(limit=5) == {"count": 0, "newest": None, "alerts": []}
        assert leader.acknowledge(7) == 1 and leader.acknowledge(through=9) == 1
        assert site.store.acknowledged == [(7, 7, "robot at 127.0.0.1"), (1, 9, "robot at 127.0.0.1")]
        with pytest.raises(LeaderRefused, match="either"):
            leader.acknowledge()
        with pytest.raises(LeaderRefused, match="needs admin") as caught:
            leader._get("/api/tokens")
        assert caught.value.status == 403
        stream = leader.live()
        assert next(stream)[0] == "hello"
        stream.close()


def run(directory, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "stirbar.core.cli", "leader", "token", *arguments,
         "--set", f"leader.config.data_directory={directory}"],
        env=stirbar_environment(), cwd=directory, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_the_command_line(tmp_path):
    made = run(tmp_path, "create", "robot", "--scope", "control", "--days", "30")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret not in made.stderr and Tokens(tmp_path).find(secret).scope == "control"
    again = run(tmp_path, "create", "robot")
    assert again.returncode == 1 and "already" in again.stderr and "revoke" in again.stderr
    listed = run(tmp_path, "list")
    assert "robot" in listed.stdout and "control" in listed.stdout and secret not in listed.stdout
    assert run(tmp_path, "revoke", "robot").returncode == 0 and Tokens(tmp_path).find(secret) is None
    gone = run(tmp_path, "revoke", "robot")
    assert gone.returncode == 1 and "no token 'robot'" in gone.stderr
