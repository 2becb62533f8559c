"""The job `stirring` of a whole worker in virtual time: what is asked of it, and what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stirbar.core import calibration_files as files
from stirbar.core import calibrations_command, records, stirring_calibration
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.recording import replay
from stirbar.core.twin import Twin

QUIET = ("simulation.culture_noise_percent=0.01", "simulation.bubble_rate_hz=0")


class Stirred:
    """A twin, what it published, and commands that are answered in its own time."""

    def __init__(self, directory, *settings: str) -> None:
        overrides = parse_overrides(["unit.simulate=1", *QUIET, *settings])
        self.twin = Twin(load_config(overrides=overrides), str(directory))
        self.commands = Commands(self.twin.host)
        self.messages: list[tuple[bytes, bytes, bytes]] = []

    def run(self, seconds: float) -> None:
        self.messages += self.twin.run(seconds)

    def ask(self, **request: object) -> dict:
        answers: list[dict] = []
        self.commands.handle(request, lambda answer, frames: answers.append(answer))
        for _ in range(50):
            if answers:
                break
            self.run(0.1)
        json.dumps(answers[0], allow_nan=False)
        return answers[0]

    def set(self, *words: object) -> dict:
        job, setting, value = ("stirring", *words)[-3:]
        return self.ask(command="set", job=job, setting=setting, value=value)

    # what stirring_calibration.measure asks of a worker

    def start(self, job: str) -> None:
        assert self.ask(command="start", job=job)["ok"]

    def stop(self, job: str) -> None:
        assert self.ask(command="stop", job=job)["ok"]

    def latest(self, stream: str) -> dict:
        return self.ask(command="status")["result"]["latest"][stream]

    def settings(self) -> dict:
        return {key: body["value"] for key, body in self.twin.host.settings.items()}

    def setting(self, name: str) -> object:
        return self.twin.host.settings[("stirring", name)]["value"]

    def readings(self, stream: str) -> np.ndarray:
        topic = b"reading/" + stream.encode()
        parts = [np.frombuffer(data, records.READING_DTYPE) for name, _, data in self.messages if name == topic]
        return np.concatenate(parts) if parts else np.zeros(0, records.READING_DTYPE)

    def events(self) -> list[dict]:
        return [json.loads(data) for name, _, data in self.messages if name == b"event"]


@pytest.fixture
def stirred(tmp_path):
    return lambda *settings: Stirred(tmp_path, *settings)


def test_a_ramp_of_the_config_and_one_set_while_it_runs(stirred) -> None:
    vial = stirred("stirring.config.ramp_rpm_per_s=50")
    vial.run(12)
    asked = vial.readings("rpm")["reference_v"]
    assert asked[0] == pytest.approx(250, abs=20)
    assert np.diff(asked[:4]) == pytest.approx(50, abs=2)
    answer = vial.set("ramp_rpm_per_s", 200)
    assert answer["result"]["value"] == 200 == vial.setting("ramp_rpm_per_s")
    vial.set("target_rpm", 1400)
    vial.messages.clear()
    vial.run(8)
    rows = vial.readings("rpm")
    assert np.diff(rows["reference_v"][:4]) == pytest.approx(200, abs=5)
    assert rows["value"][-1] == pytest.approx(1400, rel=0.01)
    assert rows["value"].max() < 1.03 * 1400


@pytest.mark.parametrize("value", [-1, 10_001, "fast", True])
def test_a_ramp_that_cannot_be_is_refused_with_its_limit(stirred, value) -> None:
    vial = stirred()
    error = vial.set("ramp_rpm_per_s", value)["error"]
    assert error["field"] == "ramp_rpm_per_s" and error["limit"] == "0 to 10000 rpm/s"
    assert vial.setting("ramp_rpm_per_s") == 0


def test_a_ramp_is_taken_up_by_the_run_after(stirred) -> None:
    job = stirred().twin.host.jobs["stirring"]
    job.recall({"target_rpm": 700, "ramp_rpm_per_s": 30, "use_rpm": True})
    assert job.remember() == {"use_rpm": True, "target_rpm": 700, "duty_percent": 30, "ramp_rpm_per_s": 30}
    job.recall({"ramp_rpm_per_s": 1e9})
    assert job.ramp_rpm_per_s == 30


# --- calibration ---

FAR = (
    "simulation.fan_full_speed_rpm=6000",
    "simulation.fan_run_duty_percent=12",
    "simulation.fan_start_duty_percent=16",
)


def made(name: str, x: list[float], y: list[float], **changes: object) -> dict:
    document = stirring_calibration.document(name, "unit", x, y, 200.0, 5.0) | changes
    return files.for_worker(files.check(document, name), "stirring")


def start_of(vial: Stirred) -> tuple[float, float]:
    """Highest speed and the speed after three seconds, of a start from rest to 500 rpm, per turn."""
    vial.run(0.2)
    vial.stop("stirring")
    vial.run(6)
    vial.messages.clear()
    vial.start("stirring")
    vial.run(5)
    rows = vial.readings("rpm")
    return float(rows["value"].max()), float(rows["value"][3])


def test_measured_on_the_vial_and_put_in_force_it_starts_better(stirred, tmp_path) -> None:
    vial = stirred(*FAR)
    vial.run(3)
    highest_before, _ = start_of(vial)
    x, y = stirring_calibration.measure(vial, vial.run, stirring_calibration.sweep(14, 30, 5))
    assert len(x) == len(y) == 15
    assert np.all(np.diff(np.array(y)[4::-1]) > 0)
    assert stirring_calibration.hysteresis_rpm(x, y) < 25
    assert vial.setting("target_rpm") == 500 and vial.setting("duty_cycle") is None, "as it was before"
    curve = made("far", x, y)
    files.put_in_force(str(tmp_path), "stirring", curve)
    answer = vial.ask(command="calibrations", reload=True)["result"]["calibrations"]
    assert [one["name"] for one in answer] == ["far"]
    assert vial.setting("calibration")["low_rpm"] == pytest.approx(curve["low_rpm"])
    highest, after_3s = start_of(vial)
    assert highest_before > 1.12 * 500
    assert highest < 1.06 * 500
    assert after_3s == pytest.approx(500, rel=0.01)

    again = Stirred(tmp_path, *FAR)
    again.run(6)
    assert again.setting("calibration")["name"] == "far", "loaded at the next start"
    assert again.readings("rpm")["value"].max() < 1.06 * 500
    files.put_in_force(str(tmp_path), "stirring", None)
    again.ask(command="calibrations", reload=True)
    assert again.setting("calibration") is None


def test_what_does_not_match_is_said(stirred, tmp_path) -> None:
    curve = made("other", [20, 30, 40], [300, 600, 900], pwm_hz=100.0)
    files.put_in_force(str(tmp_path), "stirring", curve)
    vial = stirred()
    vial.run(3)
    said = [event["message"] for event in vial.events() if event["code"].startswith("calibration")]
    assert said == ["calibration 'other' was made at a PWM of 100 Hz, it is 200 Hz: the same duty gives another speed"]
    vial.messages.clear()
    vial.set("target_rpm", 1200)
    vial.set("target_rpm", 1200)
    vial.set("target_rpm", 800)
    said = [event["message"] for event in vial.events() if event["code"] == "calibration_range"]
    assert len(said) == 1 and "1200 rpm is outside calibration 'other' (300 to 900 rpm)" in said[0]


@pytest.mark.parametrize(
    ("curve", "says"),
    [
        ({"name": "old"}, "calibration 'old' of stirring has no table of duties: put it in force anew"),
        ({"name": "flat", "duty_percent": [30] * 16, "low_rpm": 1, "high_rpm": 900}, "does not rise within 0 to 100 %"),
        ({"name": "short", "duty_percent": [30, 40], "low_rpm": 1, "high_rpm": 900}, "does not rise"),
    ],
)
def test_a_table_that_cannot_be_is_refused_and_nothing_changes(stirred, tmp_path, curve, says) -> None:
    vial = stirred()
    vial.run(1)
    files.write_active(str(tmp_path), {"devices": {"stirring": curve}})
    answer = vial.ask(command="calibrations", reload=True)
    assert says in answer["error"]["message"]
    assert vial.setting("calibration") is None if ("stirring", "calibration") in vial.twin.host.settings else True


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([20, 30, 40, 50, 60], [300, 600, 700, 600, 500], "does not rise at a duty of"),
        ([], [], "has no recorded_data"),
        ([20, 30, 40], [-300, -200, -100], "gives no speed between 20 and 40 %"),
    ],
)
def test_a_curve_that_gives_no_duty_for_a_speed_is_refused(x, y, says) -> None:
    curve = {"type": "poly", "coefficients": np.polyfit(x, y, 2).tolist() if x else [20.0, 0.0]}
    with pytest.raises(files.CalibrationError, match=says):
        made("bad", x or [20, 30, 40], y or [1, 2, 3], curve_data_=curve, recorded_data={"x": x, "y": y})


def test_a_stirrer_that_stands_still_is_left_out_or_ends_it(stirred) -> None:
    vial = stirred("simulation.fan_run_duty_percent=25", "simulation.fan_start_duty_percent=30")
    vial.run(2)
    said: list[str] = []
    x, _ = stirring_calibration.measure(vial, vial.run, stirring_calibration.sweep(20, 45, 6), say=said.append)
    assert min(x) == 30 and any("20.00 %" in line and "does not turn" in line for line in said)
    vial.stop("stirring")
    vial.ask(command="simulate", set={"fan_stalled": 1})
    with pytest.raises(ValueError, match="turned at 0 of 3 duties, 3 are needed"):
        stirring_calibration.measure(vial, vial.run, [40, 30, 20], measure_s=1)
    assert vial.twin.host.jobs["stirring"].state == "disconnected", "as it was before"


def test_the_command_measures_a_running_worker(start_worker, capsys) -> None:
    running = start_worker()
    options = ["--set", "unit.name=w", "--set", f"unit.runtime_directory={running.directory}/run"]
    options += ["--set", f"unit.data_directory={running.directory}/data"]
    words = ["run", "stirring", "--name", "mine", "--low", "20", "--high", "40", "--points", "3", "--set-active"]
    words += ["--settle-seconds", "0.5", "--measure-seconds", "1", *options]
    assert calibrations_command.main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out.count(" rpm\n") >= 9 and "in force" in out
    assert running.client.settings()["stirring", "calibration"]["name"] == "mine"
    assert calibrations_command.main(words) == 1
    assert "has a calibration 'mine'" in capsys.readouterr().err
    assert calibrations_command.main([*words[:3], "x", "--low", "50", "--high", "40", *options]) == 1
    assert "expected 0 < low < high" in capsys.readouterr().err


# --- turns ---


def test_the_vials_own_variation_is_published(stirred) -> None:
    jitter = ("simulation.edge_jitter_us=50", "simulation.edge_latency_us=400")
    still = stirred("simulation.fan_variation_percent=0", *jitter)
    still.run(40)
    ideal = still.readings("turns")[1:]
    assert len(ideal) >= 2
    assert ideal["value"] == pytest.approx(50 * 2**0.5, rel=0.35)
    assert ideal["se_culture"].max() < 60
    assert ideal["signal_v"] == pytest.approx(120e3, rel=0.002)
    assert (ideal["flags"] & ~np.uint32(records.FLAGS["simulated"]) == 0).all()

    varied = Stirred(still.twin.host.directory, "simulation.fan_variation_percent=1.5")
    varied.run(40)
    rows = varied.readings("turns")[1:]
    assert rows["se_culture"].min() > 3 * ideal["se_culture"].max()
    assert rows["se_culture"] == pytest.approx(rows["value"], rel=0.2)
    assert varied.latest("turns")["used"] > 70


# --- dodging ---


@pytest.mark.parametrize("quiet_rpm", [0, 200])
def test_optical_density_goes_on_while_the_stirrer_dodges(stirred, quiet_rpm) -> None:
    vial = stirred(
        "stirring.config.enable_dodging_od=1",
        "stirring.config.dodging_od_s=6",
        f"stirring.config.target_rpm_during_od_reading={quiet_rpm}",
    )
    vial.run(90)
    od = vial.readings("od2")
    od = od[od["monotonic_ns"] > od["monotonic_ns"][0] + 25_000_000_000]
    assert (np.diff(od["sequence"]) == 1).all()
    assert np.diff(od["monotonic_ns"]).max() < 0.25e9, "the stream never stops"
    assert not (od["flags"] & records.FLAGS["gap"]).any()
    phase_s = od["monotonic_ns"] * 1e-9 % 20
    off = (od["flags"] & records.FLAGS["stirring_off"]) != 0
    if quiet_rpm == 0:
        assert off[(phase_s > 0.2) & (phase_s < 5.9)].all() and not off[(phase_s > 7)].any()
    assert not [event for event in vial.events() if event["code"] in ("stir_stall", "stir_fault", "heat_unstirred")]
    rpm = vial.readings("rpm")
    rpm = rpm[rpm["monotonic_ns"] > 25e9]
    phase_s = rpm["monotonic_ns"] * 1e-9 % 20
    assert rpm["value"][(phase_s > 4.5) & (phase_s < 6)] == pytest.approx(quiet_rpm, abs=10)
    assert rpm["value"][phase_s > 11] == pytest.approx(500, rel=0.02)


def test_dodging_is_set_while_it_runs_and_refused_with_reasons(stirred) -> None:
    vial = stirred("stirring.config.target_rpm_during_od_reading=200", "stirring.config.dodging_od_s=10")
    vial.run(3)
    assert vial.set("enable_dodging_od", True)["result"]["value"] is True
    assert vial.set("target_rpm_during_od_reading", 100)["result"]["value"] == 100
    vial.run(1)
    vial.messages.clear()
    vial.run(25)
    assert set(vial.readings("rpm")["reference_v"].tolist()) == {100, 500}
    assert "liquid that nobody stirs" in vial.set("target_rpm_during_od_reading", 0)["error"]["message"]
    assert vial.set("target_rpm_during_od_reading", 30)["error"]["limit"] == "0 (off), or 60 to 1500 rpm"
    assert vial.set("enable_dodging_od", "perhaps")["error"]["limit"] == [True, False]
    assert vial.set("enable_dodging_od", False)["result"]["value"] is False
    vial.run(12)
    assert vial.readings("rpm")["value"][-1] == pytest.approx(500, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["dodging_period_s=10", "dodging_od_s=9.5"], "must leave a second of dodging_period_s"),
        (["target_rpm_during_od_reading=30"], "must be 0, or 60 to maximum_rpm"),
        (["dodging_od_s=9"], "at rest: write at most 8 s"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_at_the_start(settings, says) -> None:
    from stirbar.core.config import ConfigError

    with pytest.raises(ConfigError, match=says):
        load_config(overrides=parse_overrides([f"stirring.config.{one}" for one in settings]))


def test_a_recording_repeats_ramps_curves_schedule_and_turns(stirred, tmp_path) -> None:
    vial = stirred("stirring.config.dodging_period_s=30", "stirring.config.dodging_od_s=8")
    path = str(tmp_path / "stirred.rec")
    recorder = vial.twin.record(path)
    vial.run(3)
    vial.set("ramp_rpm_per_s", 150)
    files.put_in_force(str(tmp_path), "stirring", made("mine", [20, 30, 40], [300, 600, 900]))
    assert vial.ask(command="calibrations", reload=True)["ok"]
    vial.set("enable_dodging_od", True)
    vial.set("target_rpm", 800)
    vial.run(70)
    recorder.close()
    again = list(replay(path, vial.twin.host.config))
    for stream, fewest in (("rpm", 60), ("turns", 2)):
        live = {int(row["monotonic_ns"]): row for row in vial.readings(stream)}
        rows = [row for row in again if row["stream"] == records.STREAM_IDS[stream]]
        assert len(rows) >= fewest
        for row in rows:
            original = live[row["monotonic_ns"]]
            for name in ("value", "signal_v", "reference_v", "used", "se_culture"):
                assert np.array_equal(np.float64(row[name]), np.float64(original[name]), equal_nan=True), (stream, name)


# --- by hand ---


def test_jobs_are_run_from_the_command_line(start_worker, capsys) -> None:
    from stirbar.core import cli

    running = start_worker()

    def run(*words: str) -> tuple[int, str]:
        status = cli.main([*words, "--address", running.address])
        said = capsys.readouterr()
        return status, (said.err if status else said.out).strip()

    assert run("set", "stirring", "target_rpm", "600") == (0, "stirring target_rpm = 600.0")
    assert run("set", "stirring", "enable_dodging_od", "true") == (0, "stirring enable_dodging_od = true")
    assert run("stop", "stirring") == (0, "stirring: disconnected")
    status, said = run("set", "stirring", "duty_cycle", "35")
    assert (status, said) == (0, "stirring duty_cycle = 35.0 (the job is disconnected: in force when it starts)")
    assert run("start", "stirring") == (0, "stirring: ready")
    assert running.client.settings()["stirring", "target_rpm"] is None
    status, said = run("set", "stirring", "target_rpm", "5000")
    assert status == 1 and said == "stirbar set: target_rpm must be from 0 to 1500 rpm, not 5000"
    status, said = run("set", "stirring", "colour", "red")
    assert status == 1 and "no setting 'colour'" in said and "allowed: ['target_rpm'" in said
    status, said = run("start", "dancing")
    assert status == 1 and "no job 'dancing'" in said and "od_reading" in said
