"""The leader's look at its units: where they differ from what they should be, when that is told, what is ordered."""

from __future__ import annotations

import json
import time

import pytest
from stirbar.bridge import desired_state
from stirbar.bridge.config_history import ConfigHistory
from stirbar.bridge.desired_state import DesiredState, number_above, read_state
from stirbar.bridge.drift import describe_drift, drift_of, facts_of, parse_report
from stirbar.bridge.store import open_store
from stirbar.core.config import load_config
from stirbar.core.desired import SHARED, UNIT, Desired

FAST = "[stirring.config]\ninitial_target_rpm = 700\n"


# --- where a unit differs --------------------------------------------------------------------------------------------

DIGEST = Desired(4, 1, True, {SHARED: FAST, UNIT: ""}).digest()
SHOULD = {"version": 4, "active": True, "digest": DIGEST, "stirbar_version": "", "plugins": None}
APPLIED = {
    "version": 4, "epoch": 1, "digest": DIGEST, "active": True, "refused": None, "restart_needed": False,
    "stirbar": "1.0", "host": "pi",
}  # fmt: skip
ABOUT = {"version": "1.0", "build_id": "b", "board": "simulated", "plugins": []}


@pytest.mark.parametrize(
    ("applied", "should", "state", "what", "words"),
    [
        ({}, {}, "online", [], ""),
        (
            {"digest": "x", "version": 3},
            {},
            "online",
            ["config"],
            "version 3 of the configuration, and 4 is the newest",
        ),
        ({"digest": "x", "version": 3}, {}, "lost", ["config"], "it is lost, and told when it is back"),
        (
            {"version": 9},
            {"digest": "", "version": 0},
            "online",
            ["config"],
            "version 9 of a configuration that is not known",
        ),
        ({"digest": DIGEST, "version": 3}, {}, "lost", [], ""),  # the same but for comments
        ({"restart_needed": True}, {}, "online", ["restart"], "`stirbar cluster repair vial1 --restart`"),
        (
            {"refused": {"version": 4, "problems": ["a", "b", "c", "d"]}},
            {},
            "online",
            ["config"],
            "a; b; c (and 1 more)",
        ),
        ({}, {"active": False}, "online", ["active"], "out of use"),
        ({"active": False, "digest": "x"}, {"active": False}, "online", [], ""),
        ({"active": False}, {}, "offline", ["active"], "that it is in use"),
        ({}, {"stirbar_version": "1.0", "plugins": []}, "online", [], ""),
        ({"host": "pi4"}, {"stirbar_version": "1.1"}, "online", ["version"], "`stirbar cluster bootstrap pi4.local`"),
        ({}, {"plugins": ["a==1"]}, "online", ["plugins"], "it has the plug-ins none, and a==1 are wanted"),
    ],
)
def test_each_difference_is_named_with_what_to_do(applied, should, state, what, words):
    report = {"unit": "vial1", "state": state, "facts": ABOUT, "applied": APPLIED | applied}
    drift = drift_of(report, SHOULD | should, False)
    assert [one["what"] for one in drift] == what and words in describe_drift(drift)


def test_a_unit_that_says_nothing_differs_only_where_something_is_wanted():
    report = {"unit": "vial1", "state": "online", "facts": ABOUT, "applied": {}}
    assert drift_of(report, SHOULD | {"version": 0}, False) == []
    assert "does not say" in describe_drift(drift_of(report, SHOULD, False))


@pytest.mark.parametrize(
    "change",
    [{"version": "4"}, {"version": True}, {"epoch": None}, {"active": 1}, {"refused": []}, {"refused": {}}, {"host": 3},
     {"refused": {"version": 1, "problems": "x"}}, {"restart_needed": "no"}, {"digest": ["x"]}],
)  # fmt: skip
def test_what_is_no_report_is_refused(change):
    with pytest.raises(ValueError, match="report"):
        parse_report(APPLIED | change)


def test_of_what_a_unit_says_so_much_is_taken():
    found = parse_report({**APPLIED, "host": "x" * 9999, "more": 1, "refused": {"version": 1, "problems": [{}] * 9999}})
    assert len(found["host"]) == 500 and len(found["refused"]["problems"]) == 100 and "more" not in found
    about = {"version": 7, "plugins": "all", "board": ["x"]}
    assert facts_of(about) == {"version": None, "build_id": None, "board": None, "plugins": None}
    assert facts_of({"plugins": [1, "a==1"]})["plugins"] == ["1", "a==1"]


# --- the leader's look -----------------------------------------------------------------------------------------------


class Heard:
    """An ingest that knows one unit."""

    def __init__(self) -> None:
        self.applied = dict(APPLIED)
        self.wanted: dict[bytes, dict[str, object]] = {}
        self.again: list[bool] = []
        self.events: list[tuple[str, str, str]] = []
        self.commands: list[dict[str, object]] = []

    def listen(self, callback):
        return lambda: None

    def reports(self):
        about = {"unit": "vial1", "unit_id": "01" * 16, "state": "online", "facts": ABOUT, "epoch": 1}
        return [{**about, "applied": self.applied}]

    def set_desired(self, unit_id, what, again):
        self.wanted[unit_id] = what
        self.again.append(again)

    def make_event(self, unit_id, level, code, text):
        self.events.append((level, code, text))

    def command(self, unit_id, request, limit_s):
        self.commands.append(request)
        return {"ok": False, "error": {"message": "a pump runs", "remedy": "ask again"}}


@pytest.fixture
def looking(tmp_path, monkeypatch):
    """The leader's side, without its thread."""
    monkeypatch.setattr(desired_state, "GRACE_S", 0.05)
    (tmp_path / "config.ini").write_text(f"[unit]\ndata_directory = {tmp_path}/data\n")
    open_store(tmp_path / "leader.sqlite").close()
    history = ConfigHistory(tmp_path / "leader.sqlite")
    history.save(b"", FAST, "anna", 0)
    config = load_config(str(tmp_path / "config.ini"))
    return lambda ingest: DesiredState(config, history, ingest, tmp_path, print)


def test_a_difference_that_lasts_is_one_event_and_so_is_its_end(looking, tmp_path):
    ingest = Heard()
    state = looking(ingest)
    ingest.applied |= {"digest": "x", "version": 0}
    assert 0 < state.look() <= 0.05 and not ingest.events  # it was told a moment ago
    assert ingest.wanted[b"\1" * 16] == {"version": 1, "active": True, SHARED: FAST, UNIT: ""}
    time.sleep(0.06)
    state.look()
    state.look()
    assert [event[:2] for event in ingest.events] == [("warning", "drift")]
    assert "it has version 0 of the configuration" in ingest.events[0][2]
    state = looking(ingest)  # a leader that was restarted does not say it again
    state.start()
    state.stop()
    time.sleep(0.06)
    state.look()
    assert len(ingest.events) == 1
    ingest.applied |= {"digest": DIGEST, "version": 1}
    state.look()
    assert ingest.events[1:] == [("info", "drift_over", "as it should be")]
    assert read_state(tmp_path)["units"] == state.state()


def test_a_version_that_only_the_unit_knows_is_numbered_over(looking):
    ingest = Heard()
    state = looking(ingest)
    ingest.applied |= {"digest": "x", "version": 41}
    state.look()
    assert state.state()[0]["is_ahead"]
    state.overtake("ben")
    state.look()
    assert ingest.wanted[b"\1" * 16]["version"] == 42 and not state.state()[0]["is_ahead"]
    ingest.applied |= {"version": 50, "epoch": 9}  # another leader's word, which is not ours to overtake
    state.look()
    assert not state.state()[0]["is_ahead"]


def test_what_is_saved_here_goes_above_what_units_hold(looking):
    ingest = Heard()
    state = looking(ingest)
    ingest.applied |= {"digest": "x", "version": 41}
    state.look()
    head = state.history.head(b"")
    assert number_above(state.state()) == 42
    assert state.history.save(b"", "", "ben", head.number, number_above(state.state())).number == 42
    state.look()
    assert number_above(state.state()) == 0


def test_what_was_ordered_is_done_once_and_no_restart_is_late(looking, tmp_path):
    ingest = Heard()
    state = looking(ingest)
    order = {"who": "anna", "expires_at": time.time() + 60, "restart": ["01" * 16], "tell": ["01" * 16]}
    late = {**order, "expires_at": time.time() - 1, "tell": []}
    for name, text in (("one", json.dumps(order)), ("late", json.dumps(late)), ("cut", "{")):
        (tmp_path / desired_state.ORDER_FILE.format(name)).write_text(text)
    for _ in range(2):
        state.follow_orders()
        state.look()
    assert ingest.commands == [{"command": "restart"}] and ingest.again == [True, False]
    assert not list(tmp_path.glob("order-*"))
    assert read_state(tmp_path)["restarts"] == {
        "order-one": {"01" * 16: "a pump runs: ask again"}, "order-late": {}, "order-cut": {},
    }  # fmt: skip
