"""The audit log: who did what and what came of it, without secrets, bounded, for those who may everything."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from urllib.parse import quote

import pytest
from stirbar.web import audit as audit_module
from stirbar.web.app import Site, make_app
from stirbar.web.audit import Audit, summary
from stirbar.web.live import Live
from stirbar.web.server import Server

from .running import stirbar_environment
from .test_auth import Browser, error
from .test_tokens import Store, bearer

UNIT_ID = bytes(16)


class Ingest:
    """Units that answer as they are told."""

    def __init__(self):
        self.commands = []
        self.reply = {"ok": True, "result": {}}

    def units(self, brief=False):
        return [{"unit_id": UNIT_ID.hex(), "unit": "vial1", "state": "online", "last_seen": 9e9}]

    def command(self, unit_id, fields, timeout_s):
        self.commands.append(fields)
        return self.reply


@pytest.fixture
def site(tmp_path):
    store = Store()
    store.units = list
    site = Site(tmp_path, store=store, ingest=Ingest(), live=Live(), version="test")
    site.password.set("correct horse")
    return site


@pytest.fixture
def server(site):
    server = Server(make_app(site), "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


def test_who_did_what_and_what_came_of_it(site, server):
    robot = Browser(server.port)
    secret = bearer(site.tokens.create("robot", "control"))
    command = lambda **body: robot("POST", "/api/units/vial1/command", body, secret, csrf=False)  # noqa: E731
    assert command(command="dose", pump="media", ml=0.5).status == 200
    site.ingest.reply = {"ok": False, "error": {"message": "target_rpm is out of range"}}
    assert command(command="set", job="stirring", setting="target_rpm", value=9000).status == 200
    assert command(command="status").status == 200  # changes nothing
    assert command(command="explode").status == 400
    newest = site.audit.read(10)
    assert [(one["who"], one["address"], one["unit"], one["action"], one["status"]) for one in newest] == [
        ("robot", "127.0.0.1", "vial1", "explode", 400),
        ("robot", "127.0.0.1", "vial1", "set", 200),
        ("robot", "127.0.0.1", "vial1", "dose", 200),
    ]
    assert "no command 'explode'" in newest[0]["result"]
    assert newest[1]["arguments"] == "job=stirring setting=target_rpm value=9000"
    assert newest[1]["result"] == "refused by the unit: target_rpm is out of range"
    assert newest[2]["arguments"] == "pump=media ml=0.5" and newest[2]["result"] == "done"


def test_the_unit_hears_who_asked(site, server):
    robot = Browser(server.port)
    secret = bearer(site.tokens.create("robot", "control"))
    for body, source in (
        ({"command": "dose", "pump": "media", "ml": 0.5}, ("source", "robot")),
        ({"command": "exchange", "media_ml": 0.5, "source": "operator"}, ("source", "robot: operator")),
        ({"command": "led", "channels": {"B": 1}}, ("source_of_event", "robot")),
        ({"command": "dose_stop"}, ("source", None)),
    ):
        robot("POST", "/api/units/vial1/command", body, secret, csrf=False)
        assert site.ingest.commands[-1].get(source[0]) == source[1]


def test_logins_and_tokens_are_in_it_and_their_secrets_are_not(site, server):
    browser = Browser(server.port)
    browser.login("a wrong guess")
    browser.login()
    link = site.links.issue()
    Browser(server.port)("GET", f"/login?token={link}")
    Browser(server.port)("GET", f"/login?token={link}")
    Browser(server.port)("POST", "/api/login", {"token": link})
    made = json.loads(browser("POST", "/api/tokens", {"name": "robot", "scope": "read"}).text)["token"]
    browser("DELETE", "/api/tokens/robot", {})
    assert [(one["who"], one["action"], one["status"]) for one in reversed(site.audit.read(20))] == [
        ("", "POST /api/login", 403),
        ("operator", "POST /api/login", 200),
        ("operator", "GET /login", 200),
        ("", "GET /login", 403),
        ("", "POST /api/login", 403),
        ("operator", "POST /api/tokens", 201),
        ("operator", "DELETE /api/tokens/robot", 200),
    ]
    text = site.audit.path.read_text()
    for secret in ("a wrong guess", "correct horse", link, made, browser.cookie.split("=")[1], browser.csrf):
        assert secret not in text and quote(secret) not in text
    assert stat.S_IMODE(site.audit.path.stat().st_mode) == 0o600


def test_secrets_are_left_out_at_any_depth():
    assert summary({"password": "p", "set": {"token": "t", "a": 1}, "b": True}) == "password=… set={token=… a=1} b=true"
    assert len(summary({"x": "y" * 10_000, **{f"a{i}": "z" * 90 for i in range(50)}})) <= 400


def test_only_admin_reads_it(site, server):
    browser = Browser(server.port)
    for scope, status in (("read", 403), ("control", 403), ("admin", 200)):
        secret = bearer(site.tokens.create(f"one-{scope}", scope))
        assert browser("GET", "/api/audit", headers=secret).status == status
        assert browser("GET", "/api/audit?limit=0", headers=secret).status == (400 if status == 200 else status)
    assert browser("GET", "/audit").status == 303
    browser.login()
    page = browser("GET", "/audit").text.decode()
    assert 'id="audit"' in page and "/static/audit.js" in page
    (entry,) = json.loads(browser("GET", "/api/audit?limit=5").text)
    assert entry["who"] == "operator" and entry["arguments"] == "password=…"
    assert json.loads(browser("GET", f"/api/audit?before={entry['t']}").text) == []
    assert error(browser("GET", "/api/audit?before=x"))["field"] == "before"


def test_strangers_cannot_push_the_others_out(site, server):
    site.audit.write("operator", "dose")
    browser = Browser(server.port)
    for _ in range(audit_module.STRANGERS_A_MINUTE + 15):
        assert browser("POST", "/api/experiments", {"name": "x"}).status == 401
    site.audit.write("operator", "stop")
    found = site.audit.read(1000)
    assert len(found) == audit_module.STRANGERS_A_MINUTE + 2
    assert found[0]["left_out"] == 15 and found[-1]["action"] == "dose"


def test_the_files_are_bounded_and_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_module, "FILE_BYTES", 2000)
    audit = Audit(tmp_path)
    for number in range(400):
        audit.write("robot", f"turn {number}")
    files = sorted(tmp_path.glob("audit*.jsonl"))
    assert len(files) == audit_module.FILES
    assert all(file.stat().st_size < 2100 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    kept = [int(one["action"].split()[1]) for one in audit.read(10_000)]
    assert kept == list(range(399, 399 - len(kept), -1)) and 100 < len(kept) < 400


def test_a_damaged_line_costs_itself_only(tmp_path):
    audit = Audit(tmp_path)
    audit.write("robot", "first")
    with audit.path.open("ab") as file:
        file.write(b'\xff\x00{"t": 1\n[]\n{"t": "x"}\n3\n')
    audit.write("robot", "second")
    assert [one["action"] for one in audit.read(10)] == ["second", "first"]


def test_lines_of_many_writers_stay_whole(tmp_path):
    def write(number):
        audit = Audit(tmp_path)  # as another process would
        for turn in range(50):
            audit.write(f"w{number}", f"turn {turn}", arguments="x" * 300)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Audit(tmp_path).read(1000)) == 200


def test_a_disk_that_takes_nothing_keeps_nobody_from_acting(site, server, capsys):
    site.audit.path.mkdir()  # cannot be opened for writing
    browser = Browser(server.port)
    assert browser.login().status == 200 and site.audit.failed() == 1
    assert "audit log" in capsys.readouterr().err


def run(directory, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "stirbar.core.cli", "leader", *arguments,
         "--set", f"leader.config.data_directory={directory}"],
        env=stirbar_environment(), cwd=directory, capture_output=True, text=True, timeout=30, input="long enough\n",
    )  # fmt: skip


def test_the_command_line_reads_it_and_is_in_it(tmp_path):
    assert "nothing was done yet" in run(tmp_path, "audit").stderr
    for arguments in (("token", "create", "robot"), ("password",), ("link",)):
        assert run(tmp_path, *arguments).returncode == 0
    Audit(tmp_path).write("robot", "set", unit="vial\n1", result="done")
    lines = run(tmp_path, "audit").stdout.splitlines()
    assert len(lines) == 4 and "token create name=robot scope=read" in lines[0] and "command line" in lines[0]
    assert "password" in lines[1] and "long enough" not in "".join(lines) and "link" in lines[2]
    assert "robot at ?: vial?1 set: done" in lines[3]
    assert len(run(tmp_path, "audit", "--limit", "1").stdout.splitlines()) == 1
