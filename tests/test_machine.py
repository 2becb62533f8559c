"""A unit that the leader starts anew, switches off, or whose journal it reads: programs of the test's, by a bridge."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bridge_doubles import UNIT_ID, wait_for
from node_lab import Lab, Node
from outage_bench import Caller
from stirbar.bridge import machine as machine_module
from stirbar.bridge.command import settings_from_config
from stirbar.bridge.machine import ANSWERED_HERE, what_runs
from stirbar.core.config import load_config, parse_overrides

IDLE = [
    {"job": "bioreactor", "setting": "dose", "value": None},
    {"job": "bioreactor", "setting": "queued", "value": 0},
    {"job": "self_test", "setting": "$state", "value": "disconnected"},
]
DOSING = [{**IDLE[0], "value": {"dose": 3, "kind": "media"}}, *IDLE[1:]]
TESTING = [*IDLE[:2], {**IDLE[2], "value": "ready"}]


def programs(place: Path, **more: list[str]) -> dict[str, list[str]]:
    """Harmless ones, which leave a line in a file."""
    note = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + chr(10))"
    ran = {name: [sys.executable, "-c", note, str(place / "ran"), name] for name in ("reboot", "shutdown")}
    return {**ran, "journal": [sys.executable, "-c", "import sys; print(sys.argv[1:]); print('zu spät')"], **more}


class Desk:
    """One node, and who asks it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.lab = Lab(place)
        self.caller = Caller(self.lab.broker.port, UNIT_ID.hex())

    def node(self, settings: list[dict[str, object]] = IDLE, **more: list[str]) -> Node:
        node = self.lab.node("vial1", "growth", machine_commands=programs(self.place, **more))
        node.worker.more_settings = settings
        return node

    def call(self, **body: Any) -> dict[str, Any]:
        return self.caller.call(**{"id": os.urandom(8).hex(), **body})

    def ran(self) -> list[str]:
        return (self.place / "ran").read_text().split() if (self.place / "ran").exists() else []

    def close(self) -> None:
        self.caller.close()
        self.lab.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="sb") as name:
        one = Desk(Path(name))
        yield one
        one.close()


def test_an_idle_unit_is_started_anew_and_switched_off(desk: Desk) -> None:
    node = desk.node()
    assert desk.call(command="reboot")["result"] == {"action": "reboot"}
    assert desk.call(command="shutdown", force=False)["ok"]
    assert desk.ran() == ["reboot", "shutdown"]
    # whatever the worker said a moment ago: its pumps are stopped before
    assert [request["command"] for request in node.worker.requests].count("dose_stop") == 2


@pytest.mark.parametrize(("settings", "why"), [(DOSING, "its pumps run"), (TESTING, "it tests itself")])
def test_a_busy_unit_is_left_alone_unless_that_is_forced(
    desk: Desk, settings: list[dict[str, object]], why: str
) -> None:
    node = desk.node(settings)
    error = desk.call(command="reboot")["error"]
    assert error["message"].startswith(f"no reboot: {why}") and "force it" in error["remedy"]
    assert not desk.ran() and not [one for one in node.worker.requests if one["command"] == "dose_stop"]
    assert desk.call(command="reboot", force=True)["ok"] and desk.ran() == ["reboot"]


def test_a_unit_without_its_worker_is_started_anew(desk: Desk) -> None:
    node = desk.node()
    node.worker.end()
    wait_for(lambda: not node.relay.remote.worker_present, 10, "a bridge that misses its worker")
    assert desk.call(command="reboot")["ok"] and desk.ran() == ["reboot"]


def test_a_unit_that_may_not_says_so_and_what_helps(desk: Desk) -> None:
    denied = [sys.executable, "-c", "print('Call to Reboot failed: Interactive authentication required.'); exit(1)"]
    desk.node(reboot=denied, shutdown=[], journal=["/no/such/program"])
    error = desk.call(command="reboot")["error"]
    assert error["message"].endswith("Call to Reboot failed: Interactive authentication required.")
    assert "50-stirbar-power.rules" in error["remedy"]
    error = desk.call(command="shutdown")["error"]
    assert error["message"] == "this unit does no shutdown from afar" and "shutdown_command" in error["remedy"]
    assert "/no/such/program cannot be run" in desk.call(command="journal")["error"]["message"]


def test_the_journal_is_bounded_in_lines_bytes_and_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "RUN_LIMIT_S", 0.5)
    node = desk.node()
    assert desk.call(command="journal", lines=7)["result"]["lines"] == ["['--lines=7']", "zu spät"]
    for lines in (0, 501, 1.5, True, "all"):
        assert "1 to 500" in desk.call(command="journal", lines=lines)["error"]["remedy"]
    flood = "import os\nwhile True: os.write(1, b'x' * 999 + b'\\n')"
    node.relay._machine._commands["journal"] = [sys.executable, "-c", flood]
    assert not desk.call(command="journal")["ok"], "it was ended"
    long = "for n in range(500): print(n, 'y' * 200)"
    node.relay._machine._commands["journal"] = [sys.executable, "-c", long]
    lines = desk.call(command="journal")["result"]["lines"]
    assert lines[-1].startswith("499 ") and sum(len(line) + 1 for line in lines) <= machine_module.OUTPUT_BYTES


def test_what_is_asked_twice_is_done_once(desk: Desk) -> None:
    slow = [sys.executable, "-c", f"import time; open({str(desk.place / 'ran')!r}, 'a').write('x '); time.sleep(0.5)"]
    desk.node(reboot=slow)
    desk.caller.send(command="reboot", id="one-that-is-unique")
    other = desk.call(command="reboot", id="the-other-that-is-unique")
    assert other["error"]["message"] == "this unit is about to do another such thing"
    assert desk.call(command="reboot", id="one-that-is-unique")["ok"] and desk.ran() == ["x"]


def test_a_worker_that_does_not_say_what_runs_is_busy() -> None:
    for reply in ({"ok": False}, {"ok": True, "result": {}}, {"ok": True, "result": {"settings": 1}}):
        assert what_runs(reply) == "its worker does not say whether its pumps run"
    assert what_runs({"ok": True, "result": {"settings": [None, {"job": []}, *IDLE]}}) == ""


def test_the_programs_are_those_of_the_configuration(tmp_path: Path) -> None:
    words = {"unit.data_directory": str(tmp_path), "bridge.config.shutdown_command": "none", "unit.name": "vial1"}
    config = load_config(None, None, parse_overrides([f"{name}={value}" for name, value in words.items()]))
    commands = settings_from_config(config).machine_commands
    assert set(commands) == {*ANSWERED_HERE} - {"shutdown"}
    assert commands["reboot"] == ["systemctl", "reboot"]
    assert commands["journal"][0] == "journalctl"
