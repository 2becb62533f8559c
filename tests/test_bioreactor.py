"""A whole worker that doses, in virtual time: what is commanded, done, said, refused, kept over restarts, recorded."""

from __future__ import annotations

import json

import pytest
from stirbar.core import records
from stirbar.core.calibrations import active_path
from stirbar.core.config import ConfigError, load_config, parse_overrides
from stirbar.core.dose_account import DoseAccount
from stirbar.core.recording import replay
from watched_twin import WatchedTwin

VIAL = (
    "bioreactor.initial_volume_ml=14",
    "bioreactor.efflux_tube_volume_ml=14",
    "simulation.volume_ml=14",
    "simulation.waste_tube_ml=14",
    "simulation.pump_spread_percent=0",
)
PUMP_OUTPUTS = {2: "media", 3: "alt_media", 4: "waste"}


class Dosing(WatchedTwin):
    """A twin with a vial of 14 mL; keeps what its pumps were ordered."""

    def __init__(self, directory, *settings: str) -> None:
        self.orders: list[tuple[int, int, float]] = []
        super().__init__(directory, *VIAL, *settings, streams=("volume", "od2"))

    def run(self, seconds: float) -> None:
        super().run(seconds)
        self.orders += self.twin.loop.simulated_orders()

    def dose(self, **request: object) -> int:
        answer = self.ask(command="exchange" if "media_ml" in request else "dose", **request)
        assert answer["ok"], answer
        return answer["result"]["dose"]

    def end_of(self, number: int) -> dict:
        for _ in range(600):
            result = self.ask(command="dose_result", dose=number)["result"]
            if result["state"] not in ("queued", "running"):
                return result
            self.run(1.0)
        raise AssertionError(f"dose {number} does not end: {result}")

    def setting(self, name: str) -> object:
        return self.twin.host.settings[("bioreactor", name)]["value"]

    def pump_runs(self) -> list[tuple[str, float]]:
        """(pump, seconds) of each run that was ordered."""
        runs, on = [], {}
        for at_ns, output, duty in self.orders:
            if output in PUMP_OUTPUTS and duty > 0.0:
                on[output] = at_ns
            elif output in on:
                runs.append((PUMP_OUTPUTS[output], 1e-9 * (at_ns - on.pop(output))))
        assert not on, "a pump was left on"
        return runs


@pytest.fixture
def dosing(tmp_path):
    made = Dosing(tmp_path)
    made.run(15.0)
    return made


def test_an_exchange_in_the_vial(dosing):
    number = dosing.dose(media_ml=0.5, alt_media_ml=0.25)
    assert dosing.end_of(number) == {
        "dose": number,
        "kind": "exchange",
        "asked": {"media": 0.5, "alt_media": 0.25, "waste": 0.75},
        "state": "done",
        "cut": "",
        "moved_ml": {"media": 0.5, "alt_media": 0.25, "waste": 2.25},
        "source": "user",
    }
    assert [(pump, round(seconds, 6)) for pump, seconds in dosing.pump_runs()] == [
        ("waste", 1.5),
        ("media", 1.0),
        ("alt_media", 0.5),
        ("waste", 3.0),
    ]
    truth = dosing.twin.loop.simulated_truth()
    assert truth["pumped_ml"] == pytest.approx([0.5, 0.25, 2.25], abs=1e-5)
    assert truth["volume_ml"] == pytest.approx(14.0, abs=1e-6)
    assert dosing.setting("current_volume_ml") == 14.0
    assert dosing.setting("alt_media_fraction") == pytest.approx(0.25 / 14.75, abs=1e-4)
    assert dosing.setting("unseen_ml") == 0.75


def test_the_field_s_dosing_events(dosing):
    dosing.end_of(dosing.dose(media_ml=0.5, source="chemostat"))
    told = [event for event in dosing.events if event["code"] == "dose_step"]
    assert [(one["event"], round(one["volume_change"], 6)) for one in told] == [
        ("remove_waste", 0.5),
        ("add_media", 0.5),
        ("remove_waste", 1.0),
    ]
    assert {one["source_of_event"] for one in told} == {"chemostat"}


def test_doses_wait_for_one_another(dosing):
    numbers = [dosing.dose(pump=pump, ml=0.2) for pump in ("media", "alt_media", "waste")]
    assert [dosing.end_of(number)["state"] for number in numbers] == ["done"] * 3
    assert [pump for pump, _ in dosing.pump_runs()] == ["media", "alt_media", "waste"]
    assert dosing.setting("queued") == 0


def test_a_dose_waits_until_the_pumps_have_rested(tmp_path):
    dosing = Dosing(tmp_path, "dosing_automation.config.minimum_interval_s=30")
    dosing.run(15.0)
    dosing.end_of(dosing.dose(pump="media", ml=0.2))
    assert dosing.end_of(dosing.dose(pump="alt_media", ml=0.2))["state"] == "done"
    starts = [at_ns for at_ns, output, duty in dosing.orders if output in PUMP_OUTPUTS and duty > 0.0]
    assert 30.0 < 1e-9 * (starts[1] - starts[0]) < 34.0
    assert "dose_refused" not in dosing.codes()


def test_the_account_is_a_stream_of_readings(dosing):
    dosing.end_of(dosing.dose(media_ml=0.5, alt_media_ml=0.25))
    last = dosing.readings["volume"][-1]
    assert last["value"] == 14.0
    assert last["signal_v"] == pytest.approx(0.25 / 14.75, rel=1e-6)
    assert (last["reference_v"], last["ambient_v"], last["blank"]) == pytest.approx((0.5, 0.25, 2.25), rel=1e-6)
    assert last["used"] == 750 and last["rejected"] == 0
    assert last["se_instrument"] == pytest.approx(0.05 * 0.75, rel=1e-6)


def test_readings_of_od_say_that_it_is_being_mixed(dosing):
    before = dosing.twin.loop.now_ns()
    dosing.end_of(dosing.dose(pump="media", seconds=2.0))
    dosing.run(30.0)
    on, off = (at_ns for at_ns, output, _ in dosing.orders if output == 2 and at_ns > before)
    flagged = {True: [], False: []}
    for reading in dosing.readings["od2"]:
        if reading["monotonic_ns"] > before:
            flagged[bool(reading["flags"] & records.FLAGS["dosing"])].append(reading["monotonic_ns"])
    window_ns = 1e9 * dosing.readings["od2"][-1]["window_s"]
    assert min(flagged[True]) < on + 0.2e9
    assert all(not on + 0.2e9 < at_ns < off + 10e9 + window_ns - 0.2e9 for at_ns in flagged[False])
    assert max(flagged[True]) < off + 10.5e9 + window_ns


def test_the_heater_s_observer_knows_of_the_inflow(tmp_path):
    cold = Dosing(tmp_path, "temperature_automation.config.automation_name=thermostat")
    cold.run(30.0)
    volume_ml = 14.0
    cold.end_of(cold.dose(pump="media", ml=3.0))
    status = cold.twin.host.latest[records.STREAM_IDS["volume"]]
    assert status["value"] == pytest.approx(volume_ml + 3.0, abs=1e-4)
    cold.run(2.0)  # the vial takes over once a second what its pumps delivered
    assert cold.twin.loop.simulated_truth()["volume_ml"] == pytest.approx(17.0, abs=1e-4)


def test_a_stirrer_that_stalls_in_an_exchange(dosing):
    number = dosing.dose(media_ml=1.0)
    while "media" not in [PUMP_OUTPUTS.get(output) for _, output, duty in dosing.orders if duty > 0.0]:
        dosing.run(0.25)
    dosing.simulate(fan_stalled=1)
    result = dosing.end_of(number)
    assert result["state"] in ("cut", "done")  # at 0.5 mL/s the inflow may be over before ten seconds without an edge
    again = dosing.ask(command="exchange", media_ml=1.0)
    while again["ok"]:
        dosing.end_of(again["result"]["dose"])
        again = dosing.ask(command="exchange", media_ml=1.0)
    assert "nobody sees it" in again["error"]["message"]
    assert dosing.setting("current_volume_ml") == 14.0
    assert dosing.twin.loop.simulated_truth()["volume_ml"] == pytest.approx(14.0, abs=0.01)
    dosing.pump_runs()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"command": "dose", "pump": "media", "ml": 5}, "does not fit into the vial"),
        ({"command": "dose", "pump": "media"}, "exactly one of"),
        ({"command": "dose", "pump": "media", "ml": 1, "seconds": 1}, "exactly one of"),
        ({"command": "dose", "pump": "air", "ml": 1}, "no pump"),
        ({"command": "dose", "pump": "media", "ml": "much"}, "must be a number"),
        ({"command": "dose", "pump": "media", "ml": -1}, "must be from"),
        ({"command": "dose", "pump": "media", "ml": 1, "source": 7}, "source must be"),
        ({"command": "exchange", "media_ml": 1, "waste_ml": 0.5}, "less than the 1 mL"),
        ({"command": "exchange"}, "must be from"),
        ({"command": "dose_stop", "finish": "yes"}, "true or false"),
        ({"command": "dose_renew"}, "no pump runs continuously"),
        ({"command": "dose_result", "dose": 99}, "no dose 99"),
        ({"command": "set", "job": "bioreactor", "setting": "current_volume_ml", "value": 19}, "from 0 to 18"),
        ({"command": "set", "job": "bioreactor", "setting": "unseen_ml", "value": 0}, "no setting"),
    ],
)
def test_a_refusal_says_what_and_why(dosing, request_, words):
    answer = dosing.ask(**request_)
    assert not answer["ok"] and words in answer["error"]["message"]
    dosing.run(2.0)
    assert dosing.pump_runs() == []
    assert dosing.end_of(dosing.dose(pump="waste", ml=0.1))["state"] == "done"


def test_too_much_without_a_look(tmp_path):
    dosing = Dosing(tmp_path, "dosing_automation.config.inflow_without_evidence_ml=1")
    dosing.run(15.0)
    dosing.end_of(dosing.dose(media_ml=0.6))
    dosing.run(5.0)
    error = dosing.ask(command="exchange", media_ml=0.6)["error"]
    assert error["limit"] == "1 mL" and "stirbar dose volume" in error["remedy"]
    assert dosing.ask(command="set", job="bioreactor", setting="current_volume_ml", value=14)["ok"]
    assert dosing.end_of(dosing.dose(media_ml=0.6))["state"] == "done"


def test_an_outlet_that_needs_no_pump_is_evidence_enough(tmp_path):
    dosing = Dosing(tmp_path, "dosing_automation.config.inflow_without_evidence_ml=1", "bioreactor.passive_overflow=1")
    dosing.run(15.0)
    for _ in range(3):
        dosing.end_of(dosing.dose(media_ml=0.6))
        dosing.run(5.0)
    assert dosing.setting("overflow_detectable") is True


def test_a_continuous_pump_stops_when_nobody_asks_any_more(dosing):
    number = dosing.dose(pump="waste", continuously=True)
    for _ in range(5):
        dosing.run(1.0)
        assert dosing.ask(command="dose_renew")["ok"]
    result = dosing.end_of(number)
    assert result["cut"] == "lease"
    ((pump, seconds),) = dosing.pump_runs()
    assert pump == "waste" and 8.0 < seconds < 11.0


def test_a_stop_forgets_what_waits(dosing):
    first = dosing.dose(media_ml=1.0)
    second = dosing.dose(pump="media", ml=1.0)
    while "media" not in [PUMP_OUTPUTS.get(output) for _, output, duty in dosing.orders if duty > 0.0]:
        dosing.run(0.25)
    assert dosing.ask(command="dose_stop", finish=True)["ok"]
    assert dosing.end_of(first)["cut"] == "stopped"
    assert dosing.end_of(second)["state"] == "stopped"
    dosing.run(60.0)
    assert dosing.setting("current_volume_ml") == 14.0
    assert dosing.twin.loop.simulated_truth()["volume_ml"] == pytest.approx(14.0, abs=1e-3)


# --- restarts --------------------------------------------------------------------------------------------------------


def test_the_account_outlives_the_worker(dosing, tmp_path):
    dosing.end_of(dosing.dose(media_ml=0.5, alt_media_ml=0.25))
    dosing.end_of(dosing.dose(pump="media", ml=1.0))
    before = {name: dosing.setting(name) for name in ("current_volume_ml", "alt_media_fraction", "unseen_ml")}
    again = Dosing(tmp_path)
    again.run(15.0)
    assert {name: again.setting(name) for name in before} == pytest.approx(before)
    assert again.setting("cumulative_media_added_ml") == pytest.approx(1.5)
    assert again.setting("held") is None
    assert again.twin.host.latest[11]["value"] == pytest.approx(15.0)


def test_after_a_crash_in_a_dose_nothing_is_dosed_until_somebody_has_looked(dosing, tmp_path):
    dosing.dose(media_ml=1.0)
    while "media" not in [PUMP_OUTPUTS.get(output) for _, output, duty in dosing.orders if duty > 0.0]:
        dosing.run(0.25)
    again = Dosing(tmp_path)  # the worker before ended without a word
    again.run(15.0)
    assert "dosing_held" in again.codes()
    assert again.setting("current_volume_ml") == pytest.approx(15.0)  # all of it may have come in
    error = again.ask(command="dose", pump="media", ml=0.1)["error"]
    assert "up to 1.00 mL" in error["message"] and "stirbar dose volume" in error["remedy"]
    once_more = Dosing(tmp_path)  # and a restart forgets nothing
    once_more.run(15.0)
    assert not once_more.ask(command="dose", pump="media", ml=0.1)["ok"]
    assert once_more.ask(command="set", job="bioreactor", setting="current_volume_ml", value=14.6)["ok"]
    assert once_more.end_of(once_more.dose(pump="media", ml=0.1))["state"] == "done"
    assert once_more.setting("current_volume_ml") == pytest.approx(14.7)
    assert not any(event["code"] == "dose_step" for event in again.events)


def test_an_orderly_end_in_a_dose_counts_what_came_in(dosing):
    dosing.dose(pump="media", ml=2.0)
    while "media" not in [PUMP_OUTPUTS.get(output) for _, output, duty in dosing.orders if duty > 0.0]:
        dosing.run(0.25)
    dosing.twin.loop.stop()
    dosing.twin.host.step()
    dosing.orders += dosing.twin.loop.simulated_orders()
    dosing.pump_runs()
    assert dosing.twin.host.bioreactor.account.open_dose is None
    true_ml = dosing.twin.loop.simulated_truth()["pumped_ml"][0]
    assert dosing.setting("current_volume_ml") == pytest.approx(14.0 + true_ml, abs=0.03)


def test_a_full_disk_refuses_the_dose_and_says_so(dosing, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stirbar.core.dose_account.write_atomically", full)
    error = dosing.ask(command="dose", pump="media", ml=0.1)["error"]
    assert "No space left" in error["message"]
    dosing.run(5.0)
    assert dosing.pump_runs() == []
    monkeypatch.undo()
    assert dosing.end_of(dosing.dose(pump="media", ml=0.1))["state"] == "done"


def test_a_file_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "bioreactor").write_text("{]")
    assert not DoseAccount(str(tmp_path), {"current_volume_ml": 3.0}).found
    (tmp_path / "bioreactor").write_text(json.dumps({"version": 1, "values": {"current_volume_ml": "x"}}))
    kept = DoseAccount(str(tmp_path), {"current_volume_ml": 3.0})
    assert kept.values["current_volume_ml"] == 3.0


# --- calibrations, config --------------------------------------------------------------------------------------------


def test_a_calibration_in_force_is_what_a_millilitre_is(tmp_path):
    calibrated(
        tmp_path,
        media_pump={"name": "fast", "coefficients": [1.0, 0.0], "dc": 50.0},
        waste_pump={"name": "bent", "coefficients": [0.1, 1.0, 0.0], "dc": 100.0},
    )
    dosing = Dosing(tmp_path)
    dosing.run(15.0)
    dosing.end_of(dosing.dose(pump="media", ml=1.0))
    assert dosing.pump_runs() == [("media", pytest.approx(1.0))]
    assert [duty for _, output, duty in dosing.orders if output == 2 and duty > 0.0] == [50.0]
    assert any("'bent'" in event["message"] for event in dosing.events if event["code"] == "calibration")
    assert dosing.setting("media_ml_per_s") == 1.0 and dosing.setting("waste_ml_per_s") == 0.5


def calibrated(directory, **devices: dict) -> None:
    (directory / "calibrations").mkdir(exist_ok=True)
    with open(active_path(str(directory)), "w") as file:
        json.dump({"version": 1, "devices": devices}, file)


def test_a_calibration_that_comes_in_a_dose_is_for_the_next(dosing, tmp_path):
    first = dosing.dose(pump="media", ml=1.0)
    calibrated(tmp_path, media_pump={"name": "fast", "coefficients": [1.0, 0.0], "dc": 50.0})
    assert dosing.ask(command="calibrations", reload=True)["ok"]
    assert dosing.setting("media_ml_per_s") == 0.5
    dosing.end_of(first)
    dosing.run(3.0)
    assert dosing.setting("media_ml_per_s") == 1.0
    dosing.end_of(dosing.dose(pump="media", ml=1.0))
    assert dosing.pump_runs() == [("media", pytest.approx(2.0)), ("media", pytest.approx(1.0))]


def test_a_calibration_beyond_what_a_pump_can_do_is_named(tmp_path):
    calibrated(tmp_path, media_pump={"name": "odd", "coefficients": [0.5, 2.0], "dc": 100.0})
    dosing = Dosing(tmp_path)
    dosing.run(5.0)
    said = [event["message"] for event in dosing.events if event["code"] == "calibration"]
    assert said == ["calibration of the media pump: offset 2 mL is not within -1 to 1; calibrate it again"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("bioreactor.initial_volume_ml=19", "above 18 mL"),
        ("bioreactor.efflux_tube_volume_ml=19", "above 18 mL"),
        ("bioreactor.minimum_volume_ml=14", "not below initial_volume_ml"),
        ("dosing_automation.config.maximum_on_time_s=61", "0.1 to 60"),
        ("dosing_automation.config.max_subdose=0", "0.01 to 100"),
    ],
)
def test_limits_that_make_no_sense(setting, words):
    with pytest.raises(ConfigError, match=words):
        load_config(overrides=parse_overrides(["unit.simulate=1", *VIAL, setting]))


def test_a_recording_with_doses_repeats_itself(tmp_path):
    dosing = Dosing(tmp_path)
    recorder = dosing.twin.record(str(tmp_path / "doses.sbr"))
    dosing.run(20.0)
    dosing.end_of(dosing.dose(media_ml=0.5, alt_media_ml=0.25))
    dosing.run(20.0)
    recorder.close()
    volumes = dosing.readings["volume"][-4:]  # one of each run of a pump
    repeated = [r for r in replay(str(tmp_path / "doses.sbr"), dosing.twin.host.config) if r["stream"] == 11]
    unknown = ("sequence", "wall_ns", "experiment", "flags")  # a replay does not know that the vial is simulated
    for live, again in zip(volumes, repeated[-4:], strict=True):
        assert {k: v for k, v in live.items() if k not in unknown} == {
            k: v for k, v in again.items() if k not in unknown
        }
