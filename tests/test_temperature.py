"""A whole worker that holds a temperature, in virtual time: what is commanded, said, refused, recorded."""

from __future__ import annotations

import pytest
from stirbar.core import records
from stirbar.core.config import ConfigError, load_config, parse_overrides
from stirbar.core.jobs import CommandError
from stirbar.core.recording import replay
from watched_twin import WatchedTwin

ROOM = ("simulation.ambient_temperature_degc=24", "temperature_automation.config.automation_name=thermostat")


class Warm(WatchedTwin):
    """A twin in a room of 24 degC; keeps its readings of liquid and board."""

    def __init__(self, directory, *settings: str) -> None:
        super().__init__(directory, *ROOM, *settings, streams=("liquid", "temperature"))

    def set(self, setting: str, value: object) -> dict:
        return self.ask(command="set", job="temperature_automation", setting=setting, value=value)

    @property
    def duty(self) -> float:
        return self.readings["liquid"][-1]["signal_v"]


@pytest.fixture
def warm(tmp_path):
    made = Warm(tmp_path, "temperature_automation.config.target_temperature=37")
    made.run(900)
    return made


def test_a_worker_holds_its_temperature(warm):
    held = warm.readings["liquid"][-200:]
    assert all(abs(reading["value"] - 37.0) < 0.4 for reading in held)
    assert all(reading["reference_v"] == 37.0 for reading in held)
    board = [reading["value"] for reading in warm.readings["temperature"]][-200:]
    assert 37.5 < sum(board) / len(board) < 41.0, "the board is warmer than what it warms"
    assert warm.twin.host.settings[("temperature_automation", "heater_limited")]["value"] == []


def test_commands_are_answered_with_what_was_done_or_why_not(warm):
    answer = warm.set("target_temperature", 30)
    assert answer["result"]["value"] == 30.0
    warm.run(600)
    assert abs(warm.readings["liquid"][-1]["value"] - 30.0) < 0.6
    refused = warm.set("target_temperature", 51)
    assert not refused["ok"] and refused["error"]["limit"] == "0.1 to 50 °C"
    assert warm.twin.host.settings[("temperature_automation", "target_temperature")]["value"] == 30.0
    assert not warm.set("heater_duty_cycle", 101)["ok"]
    assert warm.set("heater_duty_cycle", 20)["ok"]
    warm.run(90)
    assert warm.duty == pytest.approx(20.0)
    assert not warm.set("automation_name", "pid")["ok"]
    assert warm.set("automation_name", "only_record_temperature")["ok"]
    warm.run(5)
    assert warm.duty == 0.0
    assert warm.set("automation_name", "thermostat")["ok"]
    assert warm.ask(command="stop", job="temperature_automation")["ok"]
    warm.run(5)
    assert warm.twin.host.jobs["temperature_automation"].state == "disconnected"
    count = len(warm.readings["liquid"])
    warm.run(10)
    assert len(warm.readings["liquid"]) == count


def test_a_host_that_stands_still_loses_the_heater_within_its_lease(warm):
    assert warm.duty > 20.0
    loop = warm.twin.loop
    loop.run_until(loop.now_ns() + 8_000_000_000)
    warm.run(1)
    assert "heat_no_lease" in warm.codes()
    late = next(event for event in warm.events if event["code"] == "heat_no_lease")
    renewed = max(reading["monotonic_ns"] for reading in warm.readings["liquid"] if reading["signal_v"] > 20.0)
    assert late["monotonic_ns"] - renewed < 2_100_000_000 + 5_000_000_000
    warm.run(120)
    assert "heat_no_lease_over" in warm.codes()
    assert warm.duty > 20.0


@pytest.mark.parametrize(("fault", "limit_s"), [(1, 75), (2, 200)])
def test_a_sensor_that_is_lost_or_frozen_ends_the_heat(warm, fault, limit_s):
    warm.simulate(temperature_fault=fault)
    began = warm.twin.elapsed_s
    warm.run(limit_s)
    assert {"heat_blind", "heat_untrusted"} <= set(warm.codes())
    off = next(event for event in warm.events if event["code"] == "heat_untrusted")
    assert off["monotonic_ns"] / 1e9 - began < limit_s
    warm.simulate(temperature_fault=0)
    warm.run(600)
    assert warm.duty > 0.0
    assert warm.codes()[-1] != "heat_untrusted"


def test_stirring_that_stops_halves_the_heat(warm):
    assert warm.ask(command="stop", job="stirring")["ok"]
    warm.run(30)
    assert "heat_unstirred" in warm.codes()
    assert warm.set("target_temperature", 50)["ok"]
    warm.run(60)
    assert warm.duty == pytest.approx(50.0, abs=0.1)


def test_a_recording_repeats_the_liquids_temperature(tmp_path):
    made = Warm(tmp_path, "temperature_automation.config.target_temperature=37")
    path = str(tmp_path / "warm.rec")
    recorder = made.twin.record(path)
    made.run(120)
    recorder.close()
    again = [
        reading for reading in replay(path, made.twin.host.config) if reading["stream"] == records.STREAM_IDS["liquid"]
    ]
    assert len(again) > 100
    live = {reading["monotonic_ns"]: reading for reading in made.readings["liquid"]}
    for reading in again:
        original = live[reading["monotonic_ns"]]
        assert (reading["value"], reading["signal_v"]) == (original["value"], original["signal_v"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["temperature_automation.config.target_temperature=60"], "target_maximum_degc"),
        (["temperature_automation.config.target_maximum_degc=64"], "63 °C"),
        (["unit.vial=pioreactor_30ml"], "vial"),
        (["temperature_automation.config.dither_period_s=60"], "120 to 1200"),
    ],
)
def test_limits_out_of_order_are_refused_at_start(settings, says):
    with pytest.raises(ConfigError, match=says):
        load_config(overrides=parse_overrides(["unit.simulate=1", *settings]))


def test_a_loop_that_takes_no_commands_does_not_end_the_host(warm, monkeypatch):
    monkeypatch.setattr(type(warm.twin.host), "send", _full)
    warm.run(10)
    monkeypatch.undo()
    assert "heat_no_lease" in warm.codes()
    warm.run(90)
    assert warm.duty > 10.0


def _full(*_: object) -> None:
    raise CommandError("the loop's command queue is full")
