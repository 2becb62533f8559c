"""The job `stirring` of a whole worker in virtual time: what is asked of it, and what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stirbar.core import records
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
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

    def set(self, setting: str, value: object) -> dict:
        return self.ask(command="set", job="stirring", setting=setting, value=value)

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
