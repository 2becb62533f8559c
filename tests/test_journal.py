"""What a worker takes up again after it ended, and when heat is not among it."""

from __future__ import annotations

import json
import pathlib

import pytest
from stirbar.core import journal as journals
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.host import Host
from stirbar.core.journal import Journal
from stirbar.core.twin import Twin

BOOT_A, BOOT_B = b"a" * 16, b"b" * 16
SECOND = 1_000_000_000


class Unit:
    """A unit in a room of 24 degC whose worker is started again and again; `off(seconds)` lets time pass without it.

    The clock goes on from worker to worker, as the kernel's does until it boots.
    """

    def __init__(self, directory: pathlib.Path, *settings: str) -> None:
        self.directory = directory
        self.settings = ["unit.simulate=1", "simulation.ambient_temperature_degc=24", *settings]
        self.boot = BOOT_A
        self.passed_ns = 0
        self.events: list[dict] = []
        self.twin: Twin | None = None

    def start(self, *settings: str) -> None:
        config = load_config(overrides=parse_overrides([*self.settings, *settings]))
        self.twin = twin = Twin.__new__(Twin)
        Twin.__init__(twin, config, str(self.directory / "scratch"))
        began = self.passed_ns
        self.journal = Journal(str(self.directory), self.boot, lambda: self._clock(twin, began))
        twin.host = Host(
            twin.loop, config, unit="twin", unit_id=bytes(16), run_id=bytes(16), boot_id=self.boot,
            directory=str(self.directory), version="test", journal=self.journal,
        )  # fmt: skip
        self.began_ns = began
        twin.host.start_jobs()

    def _clock(self, twin: Twin, began: int) -> tuple[int, int]:
        now_ns = began + twin.loop.now_ns()
        return now_ns, 1_700_000_000 * SECOND + now_ns

    def run(self, seconds: float) -> None:
        assert self.twin is not None
        for topic, _, payload in self.twin.run(seconds):
            if topic == b"event":
                self.events.append(json.loads(payload))

    def crash(self) -> None:
        self.passed_ns, _ = self._clock(self.twin, self.began_ns)
        self.twin = None

    def end(self) -> None:
        self.journal.close()
        self.crash()

    def off(self, seconds: float, reboot: bool = False) -> None:
        self.passed_ns += int(seconds * SECOND)
        self.boot = BOOT_B if reboot else self.boot

    def set(self, job: str, setting: str, value: object) -> None:
        answers: list[dict] = []
        request = {"command": "set", "job": job, "setting": setting, "value": value}
        Commands(self.twin.host).handle(request, lambda answer, _: answers.append(answer))
        self.run(1)
        assert answers[0]["ok"], answers

    def value(self, job: str, setting: str) -> object:
        return self.twin.host.settings[(job, setting)]["value"]

    def said(self, code: str) -> list[str]:
        return [event["message"] for event in self.events if event["code"] == code]

    @property
    def automation(self) -> object:
        return self.value("temperature_automation", "automation_name")


@pytest.fixture
def unit(tmp_path: pathlib.Path) -> Unit:
    """A unit that has run for two minutes with set-points of its own, heat among them."""
    (tmp_path / "scratch").mkdir()
    made = Unit(tmp_path)
    made.start()
    made.run(5)
    made.set("stirring", "target_rpm", 700)
    made.set("od_reading", "ir_led_intensity", 60)
    made.set("temperature_automation", "target_temperature", 33)
    made.run(120)
    return made


def test_after_a_crash_jobs_and_set_points_are_those_of_before(unit: Unit) -> None:
    unit.crash()
    unit.off(20)
    unit.start()
    assert unit.value("stirring", "target_rpm") == 700.0
    assert unit.value("od_reading", "ir_led_intensity") == 60.0
    unit.run(10)
    assert unit.automation == "only_record_temperature", "heat waits for its sensor"
    unit.run(110)
    assert unit.automation == "thermostat"
    assert unit.value("temperature_automation", "target_temperature") == 33.0
    assert unit.said("heat_resumed") == ["heat resumed: 33 °C"]
    assert unit.twin.host.latest[8]["value"] == pytest.approx(700, abs=5)


def test_what_was_stopped_stays_stopped(unit: Unit) -> None:
    answers: list[dict] = []
    Commands(unit.twin.host).handle({"command": "stop", "job": "stirring"}, lambda answer, _: answers.append(answer))
    unit.run(5)
    unit.crash()
    unit.start()
    unit.run(5)
    states = {name: job.state for name, job in unit.twin.host.jobs.items()}
    assert states["stirring"] == "disconnected" and states["od_reading"] == "ready"


@pytest.mark.parametrize(("off_s", "resumed"), [(25 * 60, True), (35 * 60, False)])
def test_heat_is_resumed_only_after_a_short_outage(unit: Unit, off_s: float, resumed: bool) -> None:
    unit.crash()
    unit.off(off_s)
    unit.start()
    unit.run(700)
    assert (unit.automation == "thermostat") is resumed
    if not resumed:
        (message,) = unit.said("heat_not_resumed")
        assert "the unit was off for" in message and "Set target_temperature to heat to 33 °C" in message
        unit.set("temperature_automation", "target_temperature", 33)
        assert unit.automation == "thermostat"


def test_after_a_boot_the_outage_is_known_only_by_a_clock_that_was_set(unit: Unit, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(journals, "SYNCHRONISED", (str(tmp_path / "synchronised"),))
    unit.crash()
    unit.off(60, reboot=True)
    unit.start()
    unit.run(300)
    assert unit.automation == "only_record_temperature"
    (tmp_path / "synchronised").touch()
    unit.run(5)
    assert unit.automation == "thermostat", "it was set meanwhile"


def test_after_an_end_in_good_order_heat_is_resumed_however_long_it_was_off(unit: Unit) -> None:
    unit.end()
    unit.off(86_400, reboot=True)
    unit.start()
    unit.run(120)
    assert unit.automation == "thermostat"


def test_a_lost_sensor_or_a_still_stirrer_keeps_heat_off(unit: Unit) -> None:
    unit.crash()
    unit.start("simulation.temperature_fault=1")
    unit.run(700)
    (message,) = unit.said("heat_not_resumed")
    assert "its sensor is not believed" in message


def test_too_low_a_voltage_keeps_heat_off(unit: Unit, tmp_path, monkeypatch) -> None:
    (tmp_path / "throttled").write_text("50005\n")
    monkeypatch.setattr(journals, "THROTTLED", str(tmp_path / "throttled"))
    unit.crash()
    unit.start()
    unit.run(700)
    assert "voltage was too low" in unit.said("heat_not_resumed")[0]


def test_the_fourth_crash_within_an_hour_each_is_the_last_that_heats(unit: Unit) -> None:
    for _ in range(3):
        unit.crash()
        unit.start()
        unit.run(120)
        assert unit.automation == "thermostat"
    unit.crash()
    unit.start()
    unit.run(700)
    assert unit.automation == "only_record_temperature"
    assert "3 times without an hour" in unit.said("heat_not_resumed")[-1]
    unit.crash()
    unit.start()
    unit.run(700)
    assert unit.automation == "only_record_temperature", "held until somebody decides"
    unit.set("temperature_automation", "target_temperature", 34)
    assert unit.automation == "thermostat"


def test_an_hour_of_running_forgives(unit: Unit) -> None:
    for _ in range(5):
        unit.crash()
        unit.start()
        unit.run(3700)
        assert unit.automation == "thermostat"


@pytest.mark.parametrize(
    ("mode", "automation", "rpm"), [("never", "only_record_temperature", 500.0), ("all", "thermostat", 700.0)]
)
def test_the_config_decides(unit: Unit, mode: str, automation: str, rpm: float) -> None:
    unit.crash()
    unit.off(86_400, reboot=True)
    unit.start(f"worker.config.resume={mode}")
    unit.run(5)
    assert unit.automation == automation
    assert unit.value("stirring", "target_rpm") == rpm


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "clean": 1}', "\0" * 100])
def test_a_journal_that_cannot_be_read_is_a_first_start(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    journal = Journal(str(tmp_path), BOOT_A, lambda: (5 * SECOND, 7 * SECOND))
    assert journal.before is None and journal.resumes == 0 and not journal.held
    journal.note({"stirring": {"running": True}})
    assert Journal(str(tmp_path), BOOT_A, lambda: (6 * SECOND, 8 * SECOND)).job("stirring") == {"running": True}


def test_set_points_that_are_no_longer_allowed_are_left_out(unit: Unit) -> None:
    unit.crash()
    path = unit.directory / "journal"
    document = json.loads(path.read_text())
    document["jobs"]["stirring"]["target_rpm"] = 99_999
    document["jobs"]["temperature_automation"]["target_degc"] = "hot"
    path.write_text(json.dumps(document))
    unit.start()
    unit.run(5)
    assert unit.value("stirring", "target_rpm") == 500.0
    assert unit.twin.host.jobs["temperature_automation"].target_degc == 30.0


def test_what_had_failed_is_not_tried_again(unit: Unit) -> None:
    """A stirrer that was given up sleeps until a person looks at it."""
    answers: list[dict] = []
    Commands(unit.twin.host).handle(
        {"command": "simulate", "set": {"fan_stalled": 1}}, lambda answer, _: answers.append(answer)
    )
    unit.run(60)
    assert answers[0]["ok"], answers
    assert unit.twin.host.jobs["stirring"].state == "sleeping"
    unit.crash()
    unit.start()
    unit.run(5)
    assert unit.twin.host.jobs["stirring"].state == "disconnected"
