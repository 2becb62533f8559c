"""The reference's own temperature coefficient: learned from the LED's warming-up, not from growth, and removed."""

from __future__ import annotations

import numpy as np
import pytest
from stirbar.core import calibration_files as files
from stirbar.core import calibrations_command, records
from stirbar.core.calibration_files import CalibrationError
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin
from stirbar.rt.calibration_arrays import ReferenceRegression

NOISE_R = 4e-6  # relative, of a second


def warm_up(
    seconds: int, coefficient: float, growth_per_h: float = 0.0, noise: float = 3e-4, seed: int = 1, depth=0.04
):
    """S and R of an LED that warms up with 20 s, second by second; S follows R with 1 + coefficient, and grows."""
    rng = np.random.default_rng(seed)
    t = np.arange(seconds) + 1.0
    log_r = np.log(0.3) - depth * (1.0 - np.exp(-t / 20.0))
    log_s = np.log(0.2) + (1.0 + coefficient) * (log_r - np.log(0.3)) + growth_per_h * t / 3600.0
    return np.exp(log_s + noise * rng.normal(size=seconds)), np.exp(log_r + NOISE_R * rng.normal(size=seconds))


SETTLE = 5  # seconds that are left out before a stretch


def slow_twin(signal, light, bins=24, seconds=5):
    """One stretch by least squares: ln S on ln R, 1, t, t^2; coefficient and its standard error, before the prior."""
    used = slice(SETTLE, SETTLE + bins * seconds)
    y, x = (np.log(one[used]).reshape(bins, seconds).mean(axis=1) for one in (signal, light))
    t = np.linspace(-1.0, 1.0, bins)
    design = np.stack([x - x.mean(), np.ones(bins), t, t * t], axis=1)
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ found
    variance = residual @ residual / (bins - 4) * np.linalg.inv(design.T @ design)[0, 0]
    return found[0] - 1.0, np.sqrt(variance)


@pytest.mark.parametrize("growth", [0.0, 0.6, 1.5])
def test_one_stretch_is_least_squares(growth) -> None:
    signal, light = warm_up(125, 0.12, growth)
    fit = ReferenceRegression()
    fit.push(signal, light, NOISE_R * light)
    raw, error = slow_twin(signal, light)
    assert fit.stretches == 1
    assert fit.learned_se == pytest.approx(error, rel=1e-3)
    assert fit.learned == pytest.approx(raw * 0.01 / (0.01 + error**2), rel=1e-3)
    assert fit.coefficient == fit.learned


def test_it_is_unbiased_in_a_growing_culture_and_its_error_is_true() -> None:
    found = []
    for seed in range(300):
        fit = ReferenceRegression()
        signal, light = warm_up(125, 0.12, 1.0, seed=seed)
        fit.push(signal, light, NOISE_R * light)
        weight = 0.01 / (0.01 + fit.learned_se**2)
        found.append((fit.learned / weight, fit.learned_se))
    found = np.array(found)
    spread = found[:, 0].std()
    assert found[:, 0].mean() == pytest.approx(0.12, abs=4 * spread / np.sqrt(300))
    assert np.sqrt(np.mean(found[:, 1] ** 2)) == pytest.approx(spread, rel=0.1)


def test_growth_and_slow_drifts_alone_teach_nothing() -> None:
    """Hours of growth while the room's temperature drifts: no stretch is clear, nothing is corrected."""
    t = np.arange(4 * 3600.0)
    light = (
        0.3
        * np.exp(0.004 * np.sin(2 * np.pi * t / 14400.0))
        * (1 + NOISE_R * np.random.default_rng(1).normal(size=t.size))
    )
    signal = 0.1 * np.exp(0.5 * t / 3600.0) * light / 0.3
    fit = ReferenceRegression()
    values = fit.push(signal, light, NOISE_R * light)
    assert fit.stretches == 0 and np.isnan(fit.learned) and fit.coefficient == 0.0
    np.testing.assert_allclose(values, signal * light[0] / light, rtol=1e-12)


def test_more_warm_ups_make_it_better_known() -> None:
    fit = ReferenceRegression()
    errors = []
    for seed in range(9):
        fit.light()
        signal, light = warm_up(125, -0.08, 0.3, seed=seed)
        fit.push(signal, light, NOISE_R * light)
        errors.append(fit.learned_se)
    assert errors[8] == pytest.approx(errors[0] / 3.0, rel=0.25)
    assert fit.learned == pytest.approx(-0.08, abs=4 * errors[8])


def test_a_dose_in_a_stretch_counts_for_little() -> None:
    fit = ReferenceRegression()
    for seed in range(4):
        fit.light()
        signal, light = warm_up(125, 0.1, seed=seed)
        if seed == 2:
            signal[50:] *= 0.96
        fit.push(signal, light, NOISE_R * light)
    assert fit.stretches == 4 and fit.learned == pytest.approx(0.1, abs=0.03)


def test_seconds_that_are_not_quiet_are_left_out() -> None:
    signal, light = warm_up(125, 0.1)
    usable = np.ones(125)
    usable[10::7] = 0
    signal[10::7] *= 3.0
    fit = ReferenceRegression()
    fit.push(signal, light, NOISE_R * light, usable)
    assert fit.learned == pytest.approx(0.1, abs=0.05)
    broken = np.ones(125)
    broken[60:64] = 0
    fit = ReferenceRegression()
    fit.push(signal, light, NOISE_R * light, broken)
    assert fit.stretches == 0, "half a bin and more: the stretch begins anew"


def test_a_new_coefficient_makes_no_step() -> None:
    """What R did before it was known is not corrected afterwards; what it does from then on is."""
    signal, light = warm_up(360, 0.2, noise=0.0)
    light[240:] *= np.exp(-0.02 * np.arange(120) / 120.0)
    signal[240:] *= np.exp(-1.2 * 0.02 * np.arange(120) / 120.0)
    fit = ReferenceRegression()
    values = fit.push(signal, light, NOISE_R * light)
    plain = signal * light[0] / light
    assert np.abs(np.diff(np.log(values))).max() <= np.abs(np.diff(np.log(plain))).max() + 2e-5
    assert abs(np.log(values[-1] / values[239])) < 1.5e-4 < 0.0035 < abs(np.log(plain[-1] / plain[239]))


def test_a_stored_coefficient_acts_from_the_first_reading_on() -> None:
    signal, light = warm_up(100, 0.2, noise=0.0)
    values = ReferenceRegression(0.2).push(signal, light, NOISE_R * light)
    np.testing.assert_allclose(values, values[0], rtol=3e-5)


def test_a_change_of_the_drive_is_no_temperature() -> None:
    """The LED is dimmed: S and R fall alike, and nothing is corrected for it."""
    fit = ReferenceRegression(0.2)
    before = fit.push([0.2] * 10, [0.3] * 10, 1e-6)
    fit.light()
    # push divides by its own first R here, so the ratio shows what the correction did
    after = fit.push([0.1] * 10, [0.15] * 10, 1e-6)
    np.testing.assert_allclose(after / 0.1, before / 0.2, rtol=1e-12)


# --- in the chain, with the simulated vial ----------------------------------------------------------------------------


def twin(directory, mode: str, *changes: str) -> Twin:
    base = ("unit.simulate=1", "simulation.growth_rate_maximum_per_hour=0.0001", "simulation.biomass_od=0.5",
            "simulation.reference_excess_ppm_per_degc=1000", "simulation.seed=2",
            f"od_reading.config.ref_normalization={mode}")  # fmt: skip
    return Twin(load_config(overrides=parse_overrides([*base, *changes])), str(directory))


def values(messages) -> np.ndarray:
    return np.array([
        (fields[1] * 1e-9, fields[3], fields[9])
        for topic, _, payload in messages
        if topic == b"reading/od2"
        for fields in records.READING.iter_unpack(payload)
    ])  # fmt: skip


def tempco_ppm_per_degc(vial: Twin) -> float:
    """What 10 °C less around the unit does to the readings, per degree; the LED follows the air."""
    list(vial.run(140))
    before = values(vial.run(60))
    Commands(vial.host).handle({"command": "simulate", "set": {"ambient_temperature_degc": 26}}, lambda *_: None)
    for _ in range(4):
        list(vial.run(900))
    after = values(vial.run(60))
    assert 0.07 < np.log(after[:, 2].mean() / before[:, 2].mean()) < 0.11, "R rises by 0.9 % and more a degree"
    return 1e6 * np.log(after[:, 1].mean() / before[:, 1].mean()) / -10.0


class TwinWorker:
    """What measure_reference asks of a worker, on a twin."""

    def __init__(self, vial: Twin) -> None:
        self.vial = vial
        self.commands = Commands(vial.host)

    def _ask(self, **request: object) -> None:
        answers: list[dict] = []
        self.commands.handle(request, lambda answer, frames: answers.append(answer))
        while not answers:
            list(self.vial.run(0.5))
        assert answers[0]["ok"], answers

    def stop(self, job: str) -> None:
        self._ask(command="stop", job=job)

    def start(self, job: str) -> None:
        self._ask(command="start", job=job)

    def settings(self) -> dict:
        return {key: body["value"] for key, body in self.vial.host.settings.items()}


def test_the_coefficient_is_published_with_its_error(tmp_path) -> None:
    vial = twin(tmp_path, "unity", "simulation.growth_rate_maximum_per_hour=0.6", "simulation.lag_h=0")
    list(vial.run(140))
    learned = vial.host.settings[("od_reading", "reference_coefficient2")]["value"]
    assert learned["coefficient"] == pytest.approx(0.107, abs=3.5 * learned["standard_error"])
    assert 0.005 < learned["standard_error"] < 0.03


def test_the_temperature_coefficient_goes(tmp_path) -> None:
    """1000 ppm/degC of the reference: left as it is, learned in one warm-up, and measured before by the procedure."""
    plain = tempco_ppm_per_degc(twin(tmp_path, "unity"))
    assert plain == pytest.approx(-1000, abs=120)
    learned = tempco_ppm_per_degc(twin(tmp_path, "regressed"))
    assert abs(learned) < 450

    vial = twin(tmp_path, "unity")
    found = calibrations_command.measure_reference(TwinWorker(vial), lambda s: list(vial.run(s)), 2, 10, 90.0)
    assert found["standard_error"] < 0.007
    files.put_reference(str(tmp_path), 2, found)
    measured = tempco_ppm_per_degc(twin(tmp_path, "regressed"))
    assert abs(measured) < 160
    print(f"{plain:.0f} ppm/degC before, {learned:.0f} after one warm-up, {measured:.0f} with the stored coefficient")


def test_nothing_learned_is_said(tmp_path) -> None:
    vial = twin(tmp_path, "unity", "simulation.led_self_heating_degc=0")
    with pytest.raises(CalibrationError, match="photodiode 2 learned nothing"):
        calibrations_command.measure_reference(TwinWorker(vial), lambda s: list(vial.run(s)), 2, 1, 10.0)
