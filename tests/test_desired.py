"""What the leader wants of a unit, on the unit: kept whole through power cuts, above the files of the machine."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import types

import pytest
from running import wait_for
from stirbar.bridge.follower import Follower
from stirbar.core import config_command, desired, plugins
from stirbar.core.commands import Commands
from stirbar.core.config import ConfigError, load_config
from stirbar.core.desired import SHARED, UNIT, Desired

FAST = "[stirring.config]\ninitial_target_rpm = 700\n"
SLOW = "[stirring.config]\ninitial_target_rpm = 300\n"


def wanted(version: int, shared: str = "", unit: str = "", active: bool = True, epoch: int = 1) -> Desired:
    return Desired(version, epoch, active, {SHARED: shared, UNIT: unit})


# --- as a layer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    """config.ini, unit_config.ini and the place of what the leader wants."""
    (tmp_path / "config.ini").write_text(
        f"[unit]\nname = vial1\ndata_directory = {tmp_path}/data\n[stirring.config]\ninitial_target_rpm = 400\n"
    )
    (tmp_path / "unit_config.ini").write_text("[stirring.config]\npwm_hz = 250\n")
    return tmp_path


def load(machine, *overrides, of=None):
    return load_config(str(machine / "config.ini"), None, overrides, of)


def test_it_stands_above_the_machines_files_and_below_the_command_line(machine):
    before = load(machine)
    assert before.get("stirring.config", "initial_target_rpm") == 400 and before.desired is desired.NOTHING
    assert not (machine / "data").exists()  # to look makes nothing
    desired.keep(str(machine / "data/cluster/desired.json"), wanted(3, FAST, "[stirring.config]\npwm_hz = 300\n"))
    config = load(machine)
    assert config.get("stirring.config", "initial_target_rpm") == 700
    assert config.source("stirring.config", "initial_target_rpm") == "leader's config.ini:2"
    assert config.source("stirring.config", "pwm_hz") == "leader's unit_config.ini:2"
    assert config.get("unit", "name") == "vial1" and config.desired.version == 3
    assert config.digest() != before.digest()
    one = ("stirring.config", "initial_target_rpm", "500")
    assert load(machine, one).get("stirring.config", "initial_target_rpm") == 500
    assert load(machine, of=desired.NOTHING).digest() == before.digest()


def test_the_commands_of_the_machine_say_what_its_leader_has_set(machine, capsys):
    files = ["--config", str(machine / "config.ini")]
    assert config_command.main(["check", *files]) == 0 and "leader" not in capsys.readouterr().out
    desired.keep(str(machine / "data/cluster/desired.json"), wanted(3, FAST))
    assert config_command.main(["check", *files]) == 0 and "leader's: version 3\n" in capsys.readouterr().out
    assert config_command.main(["show", "--changed", *files]) == 0
    assert "initial_target_rpm = 700 " in (shown := capsys.readouterr().out) and "# rpm, leader's config.ini:2" in shown
    assert config_command.main(["set", *files, "stirring.config.initial_target_rpm=200"]) == 0
    assert "note: the leader distributes this key, and its value is in force" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_with_its_line(machine):
    with pytest.raises(ConfigError, match=r"^leader's config\.ini:2: \[stirring\.config\] initial_target_rpm = 9999"):
        load(machine, of=wanted(1, FAST.replace("700", "9999")))
    with pytest.raises(ConfigError, match=r"leader's unit_config\.ini:2: \[unit\] name may not be distributed"):
        load(machine, of=wanted(1, FAST, "[unit]\nname = other\n"))
    (machine / "unit_config.ini").write_text("[stirring.config]\nmaximum_rpm = 600\n")
    with pytest.raises(
        ConfigError, match=r"leader's config\.ini:2.*initial_target_rpm \(700 rpm\) is above maximum_rpm"
    ):
        load(machine, of=wanted(1, FAST))


def test_the_digest_changes_with_values_and_with_no_comment():
    assert wanted(1).digest() == "" and wanted(1, "# nothing\n").digest() == ""
    digest = wanted(1, FAST).digest()
    assert len(digest) == 16 and wanted(9, "# why\n" + FAST.replace(" = ", "=")).digest() == digest
    assert wanted(1, "", FAST).digest() == digest == wanted(1, SLOW, FAST).digest()
    assert wanted(1, SLOW).digest() != digest


@pytest.mark.parametrize(
    "change",
    [{"version": -1}, {"version": True}, {"version": "1"}, {"epoch": None}, {"active": 1}, {SHARED: None}, {UNIT: 3},
     {SHARED: "x" * 50_000}],
)  # fmt: skip
def test_what_is_no_desired_state_is_refused(change):
    assert desired.parse(wanted(1).as_dict()).version == 1
    with pytest.raises(ValueError, match="desired state"):
        desired.parse(wanted(1).as_dict() | change)
    with pytest.raises(ValueError, match="one JSON object"):
        desired.parse([])


# --- kept ------------------------------------------------------------------------------------------------------------


def test_a_kill_in_the_write_leaves_a_whole_version(tmp_path):
    path = str(tmp_path / "cluster" / "desired.json")
    desired.keep(path, wanted(1, FAST))
    chance = random.Random(1)
    for _ in range(20):
        begun = desired.read(path).version
        child = os.fork()
        if not child:
            version = begun
            while True:
                version += 1
                desired.keep(path, wanted(version, "# " + "x" * 20_000 + "\n" + FAST))
        wait_for(lambda begun=begun: desired.read(path).version > begun, 10.0, "a write")
        time.sleep(chance.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(path) as file:
            found = desired.parse(json.load(file))
        assert found.version > begun and found.files()[0].items[0].value == "700"


def test_a_damaged_file_gives_way_to_the_version_before(tmp_path):
    path = tmp_path / "desired.json"
    desired.keep(str(path), wanted(1, SLOW))
    desired.keep(str(path), wanted(2, FAST))
    assert desired.read(str(path)).version == 2
    whole = path.read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert desired.read(str(path)).texts[SHARED] == SLOW
    desired.keep(str(path), wanted(3, FAST))  # the damaged one is not kept as the one before
    assert desired.parse(json.loads((tmp_path / "desired.json.previous").read_text())).version == 1
    desired.forget(str(path))
    assert desired.read(str(path)) is desired.NOTHING


# --- the bridge's part -----------------------------------------------------------------------------------------------


class Unit:
    """A follower with everything around it in memory."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.path = machine / "data/cluster/desired.json"
        self.epoch = 1
        self.asked: list[dict[str, object]] = []
        self.reports: list[dict[str, object]] = []
        self.online = True
        self.begin()

    def begin(self) -> None:
        self.follower = Follower(
            str(self.path), lambda one: load(self.machine, of=one), self, self, self._publish, lambda *_: None
        )

    def follow_epoch(self, epoch: int) -> bool:
        self.epoch = max(self.epoch, epoch)
        return epoch == self.epoch

    def ask(self, body, on_reply, now) -> bool:
        self.asked.append(body)
        return True

    def _publish(self, payload: bytes) -> int:
        if self.online:
            self.reports.append(json.loads(payload))
        return int(self.online)

    def told(self, one: Desired) -> dict[str, object]:
        self.follower.handle(json.dumps(one.as_dict()).encode())
        return self.reports[-1]


@pytest.fixture
def unit(machine):
    return Unit(machine)


def test_the_highest_epoch_and_version_wins(unit):
    assert unit.told(wanted(5, FAST))["version"] == 5
    assert unit.told(wanted(4, SLOW))["version"] == 5
    assert unit.told(wanted(9, SLOW, epoch=0))["version"] == 5  # an older leader's
    assert unit.told(wanted(6, SLOW))["digest"] == wanted(6, SLOW).digest()
    assert unit.told(wanted(2, FAST, epoch=2))["version"] == 2  # a new leader counts anew
    assert unit.told(wanted(7, SLOW))["version"] == 2
    assert desired.read(str(unit.path)).as_dict() == wanted(2, FAST, epoch=2).as_dict()
    count = len(unit.reports)
    unit.told(wanted(2, FAST, epoch=2))
    assert len(unit.reports) == count  # what was said is not said again,
    unit.follower.forget()
    unit.follower.say()
    assert len(unit.reports) == count + 1  # but to another broker


def test_a_refused_version_leaves_the_one_before_and_says_where(unit):
    unit.told(wanted(1, SLOW))
    report = unit.told(wanted(2, "\n" + FAST.replace("700", "9999")))
    assert report["version"] == 1 and report["refused"]["version"] == 2
    assert report["refused"]["problems"][0].startswith("leader's config.ini:3: [stirring.config] initial_target_rpm")
    assert load(unit.machine).get("stirring.config", "initial_target_rpm") == 300
    unit.begin()  # a bridge that was restarted is told again
    assert unit.told(wanted(2, "\n" + FAST.replace("700", "9999")))["refused"]["version"] == 2
    assert unit.told(wanted(3, FAST))["refused"] is None
    assert load(unit.machine).get("stirring.config", "initial_target_rpm") == 700


def test_a_leader_that_has_saved_nothing_takes_nothing_away(unit):
    unit.told(wanted(5, FAST))
    report = unit.told(wanted(0, epoch=2, active=False))
    assert (report["version"], report["epoch"], report["active"]) == (5, 2, False)
    assert load(unit.machine).get("stirring.config", "initial_target_rpm") == 700
    assert unit.told(wanted(6, "", epoch=2))["digest"] == ""


def test_out_of_use_does_not_wait_for_a_good_text(unit):
    unit.told(wanted(1, SLOW))
    report = unit.told(wanted(2, "[nonsense\n", active=False))
    assert report["active"] is False and report["version"] == 1 and report["refused"]["version"] == 2
    unit.follower.step(True, 100.0)
    unit.follower.step(True, 101.0)  # it is asked, and not again at once
    assert unit.asked == [{"command": "restart"}]
    unit.follower.step(True, 106.0)
    assert len(unit.asked) == 2
    assert unit.told(wanted(3, SLOW))["active"] is True
    unit.follower.step(True, 200.0)
    assert len(unit.asked) == 2


def test_a_restart_is_needed_until_the_worker_has_read_it(unit):
    unit.follower.worker_says({"desired_digest": ""})
    report = unit.told(wanted(1, FAST))
    assert report["restart_needed"] and not unit.follower.restart_asked
    unit.follower.worker_says({"desired_digest": report["digest"]})
    assert not unit.reports[-1]["restart_needed"]
    assert not unit.told(wanted(2, "# a comment\n" + FAST))["restart_needed"]
    unit.follower.worker_says(None)
    assert not unit.told(wanted(3, SLOW))["restart_needed"]  # no worker runs: the next one reads it


def test_the_bridge_begins_anew_for_its_own_values_only(unit):
    unit.told(wanted(1, FAST))
    assert not unit.follower.restart_asked
    unit.told(wanted(2, FAST + "[bridge.config]\nblock_interval_s = 2\n"))
    assert unit.follower.restart_asked


def test_what_no_longer_fits_is_said_and_can_be_corrected(unit):
    unit.told(wanted(1, FAST))
    (unit.machine / "unit_config.ini").write_text("[stirring.config]\nmaximum_rpm = 600\n")
    unit.begin()
    unit.follower.say()
    assert "is above maximum_rpm" in unit.reports[-1]["refused"]["problems"][0]
    report = unit.told(wanted(2, SLOW))
    assert report["refused"] is None and report["version"] == 2 and unit.follower.restart_asked


def test_a_disk_that_takes_nothing_is_a_refusal(unit, monkeypatch):
    unit.told(wanted(1, SLOW))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(desired, "write_atomically", full)
    report = unit.told(wanted(2, FAST))
    assert report["version"] == 1 and "No space left on device" in report["refused"]["problems"][0]


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"\xff", b'{"version":1}', b"[" * 100_000, b"x" * 300_000])
def test_what_cannot_be_read_is_dropped(unit, payload):
    with pytest.raises(ValueError):
        unit.follower.handle(payload)
    assert not unit.path.exists()


# --- the worker's part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a pump", "a queue", "a self-test", ""])
def test_a_worker_does_not_begin_anew_in_the_middle_of_something(what):
    host = types.SimpleNamespace(
        bioreactor=types.SimpleNamespace(
            current="a dose" if what == "a pump" else None, queue=["a dose"] * (what == "a queue")
        ),
        loan=types.SimpleNamespace(before={"stirring": {}} if what == "a self-test" else {}),
        event=lambda *_, **__: None,
        restart_asked=False,
    )
    answers = []
    Commands(host).handle({"command": "restart", "id": "x"}, lambda answer, frames: answers.append(answer))
    assert answers[0]["ok"] == host.restart_asked == (not what)
    assert what or answers[0]["result"] == {}


# --- plug-ins --------------------------------------------------------------------------------------------------------


def test_installed_plugins_are_found_by_their_entry_points(tmp_path):
    for name, text in (
        ("Growth_Rate-1.2", "[console_scripts]\nx = y\n\n[stirbar.plugins]\ngrowth = growth:job\n"),
        ("other-3.0", "[console_scripts]\nx = y\n"),
        ("none-1.0", None),
        ("another-0.1", "[stirbar.plugins]\na = b\n"),
    ):
        (tmp_path / f"{name}.dist-info").mkdir()
        if text is not None:
            (tmp_path / f"{name}.dist-info" / "entry_points.txt").write_text(text)
    found = plugins.installed([str(tmp_path), str(tmp_path / "missing")])
    assert found == ["another==0.1", "growth-rate==1.2"]
    assert plugins.wanted("growth_rate==1.2, Another==0.1") == found
    assert plugins.wanted("") is None and plugins.wanted("none") == []
