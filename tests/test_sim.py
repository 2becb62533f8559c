"""The simulated vial against closed forms, slow twins and the statistics that its parameters promise."""

from __future__ import annotations

import errno
import pathlib
import re
import time

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from stirbar.core import simulation
from stirbar.rt import sim_arrays

SECOND = 1_000_000_000
LSB_V = 1.024 / 32768
ROOT = pathlib.Path(__file__).parents[1]

# Everything that disturbs is off, every unit is nominal: what remains is the model under test.
QUIET = {
    **dict.fromkeys(
        (
            "adc_gain_spread_percent",
            "adc_noise_factor",
            "adc_offset_spread_lsb",
            "ambient_light_v",
            "bubble_rate_hz",
            "culture_noise_percent",
            "edge_jitter_us",
            "edge_latency_us",
            "fan_spread_percent",
            "fan_variation_percent",
            "flicker_percent",
            "growth_rate_maximum_per_hour",
            "hum_amplitude_v",
            "led_ageing_percent_per_1000_h",
            "led_self_heating_degc",
            "led_temperature_coefficient_percent_per_degc",
            "mains_wander_hz",
            "oscillator_drift_ppm_per_degc",
            "oscillator_spread_percent",
            "particle_noise_percent",
            "pump_spread_percent",
            "ready_jitter_us",
            "ready_latency_us",
            "reference_ambient_percent",
            "sensitivity_spread_percent",
            "temperature_noise_degc",
            "vortex_percent",
        ),
        0.0,
    ),
    "feedback_resistance_ohm": 1e3,
    "photodiode_settling_ms": 0.001,
}


def make(seed=1, angles=(0, 90, -1, -1), base=QUIET, **changes):
    return sim_arrays.SimulatedVial(simulation.values(base | changes), seed=seed, angles=angles)


def change(vial, **changes):
    for name, value in changes.items():
        vial.set(simulation.BY_NAME[name].index, value)


def lit(vial, channel=1, count=2000, full_scale_v=1.024, percent=100.0):
    """Volts of `count` conversions under constant light."""
    vial.led_write(percent, 0)
    vial.adc_start(channel, full_scale_v, 860.0, 0)
    data, _ = vial.record(channel, count + 2, 0)
    return data["code"][2:] * full_scale_v / 32768


# --- table ---


def test_table_equals_enum():
    names = [parameter.name for parameter in simulation.PARAMETERS]
    assert [parameter.index for parameter in simulation.PARAMETERS] == list(range(len(names)))
    assert {name: index for index, name in enumerate(names)} == sim_arrays.PARAMETER_NUMBERS
    assert len(names) == sim_arrays.PARAMETER_COUNT
    assert simulation.FIRST_ACTUATOR == sim_arrays.FIRST_ACTUATOR
    for parameter in simulation.PARAMETERS:
        assert parameter.low <= parameter.default <= parameter.high, parameter.name
        assert parameter.source and parameter.help, parameter.name
        assert simulation.owner(parameter.index) == sim_arrays.parameter_owner(parameter.index)


def test_enum_covers_the_pxd():
    text = (ROOT / "pyx" / "sim_parameters.pxd").read_text()
    numbers = {name.lower(): int(value) for name, value in re.findall(r"PARAM_(\w+) = (\d+)", text)}
    assert numbers.pop("count") == len(simulation.PARAMETERS)
    assert numbers.pop("first_actuator") == simulation.FIRST_ACTUATOR
    assert numbers == sim_arrays.PARAMETER_NUMBERS


def test_document_holds_the_table():
    text = (ROOT / "docs" / "simulation.md").read_text()
    assert simulation.parameter_table() in text, "paste what stirbar.core.simulation.parameter_table() returns"


def test_values_refuse_what_is_wrong():
    with pytest.raises(ValueError, match="did you mean 'hum_amplitude_v'"):
        simulation.values({"hum_amplitud_v": 1})
    with pytest.raises(ValueError, match="allowed is 0 to 1 V"):
        simulation.values({"hum_amplitude_v": 2})
    with pytest.raises(ValueError, match="allowed is"):
        simulation.values({"hum_amplitude_v": float("nan")})
    with pytest.raises(OSError):
        make().set(len(simulation.PARAMETERS), 1.0)
    with pytest.raises(OSError):
        make(angles=(0, 91, -1, -1))


# --- random numbers ---


def test_normal_numbers():
    z = sim_arrays.normal(1_000_000, seed=7)
    assert abs(z.mean()) < 4e-3 and abs(z.std() - 1) < 3e-3
    assert abs((z**4).mean() - 3) < 0.05
    edges = np.linspace(-3.5, 3.5, 57)
    from scipy.stats import norm

    expected = np.diff(norm.cdf(edges)) * z.size
    found = np.histogram(z, edges)[0]
    assert (((found - expected) ** 2) / expected).sum() < 56 + 5 * np.sqrt(2 * 56)
    tail = (np.abs(z) > 3.6541528853610088).mean()
    assert tail == pytest.approx(2 * norm.sf(3.6541528853610088), rel=0.3)
    u = sim_arrays.uniform(100_000)
    assert u.min() > 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.004


# --- culture ---


def cardinal(t, low, best, high):
    """Rosso's model, as published."""
    if not low < t < high:
        return 0.0
    return ((t - high) * (t - low) ** 2) / (
        (best - low) * ((best - low) * (t - best) - (best - high) * (best + low - 2 * t))
    )


@pytest.mark.parametrize("step_s", [0.1, 6.0, 60.0])
def test_growth_against_ode(step_s):
    p = simulation.values({"lag_h": 0.5})
    named = {parameter.name: p[parameter.index] for parameter in simulation.PARAMETERS}
    mu = named["growth_rate_maximum_per_hour"] * cardinal(36.0, 4.9, 41.0, 47.5)

    def slope(_, y):
        x, s, q = y
        rate = mu * q / (1 + q) * max(s, 0) / (named["half_saturation_g_per_l"] + max(s, 0))
        return [rate * x, -rate * x / named["yield_od_per_g_per_l"], mu * q]

    hours = 8.0
    steps = round(hours * 3600 / step_s)
    found = sim_arrays.grow(p, 36.0, step_s, steps)
    at = np.linspace(0.5, hours, 16)
    start = [0.05, 8.0, 1 / np.expm1(mu * 0.5)]
    twin = solve_ivp(slope, (0, hours), start, t_eval=at, method="LSODA", rtol=1e-9, atol=1e-12).y
    index = np.rint(at * 3600 / step_s).astype(int) - 1
    np.testing.assert_allclose(found[index, 0], twin[0], rtol=2e-3)
    np.testing.assert_allclose(found[:, 0] + 1.1 * found[:, 1], 0.05 + 1.1 * 8.0, rtol=1e-12)
    assert found[:, 1].min() >= 0


def test_exponential_phase_is_exact_and_stops_outside_the_temperatures():
    p = simulation.values({"lag_h": 0, "half_saturation_g_per_l": 1e-6, "substrate_g_per_l": 100})
    mu = 1.0 * cardinal(37.0, 4.9, 41.0, 47.5)
    found = sim_arrays.grow(p, 37.0, 10.0, 720)
    assert found[-1, 0] == pytest.approx(0.05 * np.exp(2 * mu), rel=1e-6)
    for celsius in (4.0, 48.0):
        assert sim_arrays.grow(p, celsius, 60.0, 100)[-1, 0] == 0.05
    assert sim_arrays.grow(p, 41.0, 10.0, 360)[-1, 0] == pytest.approx(0.05 * np.e, rel=1e-5)


def test_time_acceleration_speeds_the_culture_only():
    slow, fast = make(growth_rate_maximum_per_hour=1.0), make(growth_rate_maximum_per_hour=1.0, time_acceleration=60)
    slow.temperature_read(3600 * SECOND)
    fast.temperature_read(60 * SECOND)
    assert fast.truth["biomass_od"] == pytest.approx(slow.truth["biomass_od"], rel=2e-3)
    slow.adc_start(1, now_ns=3600 * SECOND)
    fast.adc_start(1, now_ns=60 * SECOND)
    assert slow.truth["rate_hz"] == fast.truth["rate_hz"]


def test_pumps_dilute_and_spill():
    vial = make(biomass_od=1.0, substrate_g_per_l=2.0)
    vial.pump(0, 0.1, SECOND)
    vial.pump(0, 0.0, 11 * SECOND)
    vial.temperature_read(20 * SECOND)
    truth = vial.truth
    assert truth["volume_ml"] == pytest.approx(15.0, abs=1e-5)
    assert truth["biomass_od"] == pytest.approx(14 / 15, rel=1e-5)
    assert truth["substrate_g_per_l"] == pytest.approx((2.0 * 14 + 8.0) / 15, rel=1e-5)
    vial.pump(2, 1.0, 21 * SECOND)
    vial.pump(2, 0.0, 31 * SECOND)
    vial.temperature_read(40 * SECOND)
    assert vial.truth["volume_ml"] == 14.0, "the waste tube ends there"
    vial.pump(1, 1.0, 41 * SECOND)
    vial.pump(1, 0.0, 51 * SECOND)
    vial.temperature_read(60 * SECOND)
    assert vial.truth["volume_ml"] == 20.0
    assert vial.truth["overflow_ml"] == pytest.approx(4.0, abs=1e-5)
    with pytest.raises(OSError):
        vial.pump(3, 1.0, 60 * SECOND)


def test_pumps_differ_from_their_calibration_and_can_be_blocked():
    def delivered(seed, **changes):
        vial = make(seed, vial_capacity_ml=100, **changes)
        vial.pump(0, 0.1, 0)
        vial.edges_read(100 * SECOND)
        vial.temperature_read(101 * SECOND)
        return vial.truth["volume_ml"] - 14.0

    volumes = np.array([delivered(seed, pump_spread_percent=5) for seed in range(200)])
    assert np.log(volumes / 10).std() == pytest.approx(0.05, rel=0.2)
    assert delivered(1, media_pump_efficiency_percent=0) == 0.0
    assert delivered(1, media_pump_efficiency_percent=50) == pytest.approx(5.0, abs=1e-4)


# --- temperature ---


def test_thermal_steady_state_and_step_response():
    vial = make(ambient_temperature_degc=22)
    vial.heater(1.0)
    a = np.array([[-(0.3 + 0.06) / 8, 0.3 / 8], [0.3 / 58.52, -(0.3 + 0.06) / 58.52]])
    b = np.array([3.3 / 8, 0.0])
    for minutes in (5, 20):
        twin = solve_ivp(lambda _, y: a @ y + b, (0, 60 * minutes), [0, 0], rtol=1e-9).y[:, -1]
        for second in range((minutes - 15 if minutes > 5 else 0) * 60, 60 * minutes, 10):
            vial.temperature_read(second * SECOND)
        vial.temperature_read(60 * minutes * SECOND)
        assert vial.truth["board_degc"] - 22 == pytest.approx(twin[0], rel=1e-3)
        assert vial.truth["liquid_degc"] - 22 == pytest.approx(twin[1], rel=1e-3)
    vial.temperature_read(6 * 3600 * SECOND)
    assert vial.truth["board_degc"] == pytest.approx(22 - (np.linalg.inv(a) @ b)[0], abs=0.01)
    with pytest.raises(OSError):
        vial.heater(1.5)


def test_temperature_sensor_steps_noise_and_faults():
    vial = make(ambient_temperature_degc=30.02, temperature_noise_degc=0.1)
    found = np.array([vial.temperature_read(k * SECOND // 10) for k in range(3000)])
    assert np.all(found * 16 == np.rint(found * 16))
    assert found.mean() == pytest.approx(30.02, abs=0.01)
    assert found.std() == pytest.approx(np.hypot(0.1, 0.0625 / np.sqrt(12)), rel=0.06)
    change(vial, temperature_fault=2)
    assert len({vial.temperature_read((300 + k) * SECOND) for k in range(20)}) == 1
    change(vial, temperature_fault=1)
    with pytest.raises(OSError) as lost:
        vial.temperature_read(400 * SECOND)
    assert lost.value.errno == errno.EREMOTEIO
    change(vial, temperature_fault=0)
    assert vial.temperature_read(401 * SECOND) == pytest.approx(30, abs=1)


# --- light ---


@pytest.mark.parametrize(("angle", "slope", "fold"), [(45, 0.125, 8.0), (90, 0.375, 4.0), (135, 0.56, 2.5)])
def test_scatter_rises_and_folds_back(angle, slope, fold):
    od = np.linspace(0, 60, 6001)
    x = od / fold
    twin = slope * (od * np.exp(-x) + 0.2 * fold * (1 - np.exp(-x)))
    found = sim_arrays.scatter(od, slope, fold, 0.2)
    np.testing.assert_allclose(found, twin, rtol=1e-12, atol=1e-15)
    assert od[found.argmax()] == pytest.approx(1.2 * fold, abs=0.02)
    vial = make(angles=(0, angle, -1, -1))
    levels = []
    for value in (0.0, 0.1, fold, 1.2 * fold, 4 * fold):
        change(vial, biomass_od=value)
        levels.append(vial.truth["level_v"][1])
    stray = simulation.BY_NAME[f"stray_{angle}_v"].default
    np.testing.assert_allclose(
        np.array(levels) - stray,
        sim_arrays.scatter([0.0, 0.1, fold, 1.2 * fold, 4 * fold], slope, fold, 0.2),
        atol=1e-12,
    )
    assert levels[0] < levels[1] < levels[2] < levels[3] > levels[4]


def test_transmission_falls_and_reference_ignores_the_culture():
    vial = make(angles=(0, 180, -1, -1))
    change(vial, biomass_od=0.0)
    clear = vial.truth["level_v"]
    change(vial, biomass_od=2.0)
    dense = vial.truth["level_v"]
    assert dense[0] == clear[0] == 0.375
    assert (dense[1] - 0.005) / (clear[1] - 0.005) == pytest.approx(np.exp(-2.0))


def test_default_levels_suit_the_full_scale():
    p = simulation.values()
    for angle in (45, 90, 135, 180):
        vial = sim_arrays.SimulatedVial(p, angles=(0, angle, -1, -1))
        for od in np.geomspace(0.01, 50, 40):
            change(vial, biomass_od=od)
            assert vial.truth["level_v"][1] < 0.95


def test_led_temperature_coefficient():
    levels = []
    for celsius in (25, 30, 40):
        vial = make(ambient_temperature_degc=celsius, led_temperature_coefficient_percent_per_degc=-0.9)
        levels.append(lit(vial, channel=0).mean())
    assert levels[0] == pytest.approx(0.375, abs=LSB_V)
    assert levels[1] / levels[0] == pytest.approx(1 - 0.045, abs=2e-4)
    assert levels[2] / levels[0] == pytest.approx(1 - 0.135, abs=2e-4)


def test_led_heats_itself_and_ages():
    vial = make(
        ambient_temperature_degc=25,
        led_temperature_coefficient_percent_per_degc=-0.9,
        led_self_heating_degc=12,
        led_heating_time_s=20,
    )
    volts = lit(vial, channel=0, count=860 * 60)
    t = (np.arange(volts.size) + 3) / 860
    twin = 0.375 * (1 - 0.009 * 12 * (1 - np.exp(-t / 20)))
    assert np.abs(volts - twin).max() < 0.375 * 0.009 * 12 * 0.1 / 20 + 2 * LSB_V  # held for 100 ms
    chopped = make(led_self_heating_degc=12)
    chopped.adc_start(0)
    chopped.record(0, 860 * 100, 0, half_cycle=5, percent=80)
    assert chopped.truth["led_heating_degc"] == pytest.approx(12 * 0.4, rel=0.02)
    assert chopped.truth["led_drive_h"] - 100 == pytest.approx(0.4 * 100 / 3600, rel=0.02)
    old = make(led_ageing_percent_per_1000_h=2, led_drive_h=10_000)
    assert lit(old, channel=0).mean() == pytest.approx(0.375 * 0.8, abs=LSB_V)


def test_sensitivities_differ_between_units():
    levels = np.array([make(seed, sensitivity_spread_percent=7.1).truth["level_v"][:2] for seed in range(400)])
    assert np.log(levels).std(axis=0) == pytest.approx([0.071, 0.071], rel=0.12)
    assert abs(np.corrcoef(levels.T)[0, 1]) < 0.2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_conversion_across_an_edge_sees_the_fraction(share):
    vial = make(photodiode_settling_ms=0.001)
    vial.adc_start(0)
    period_ns = SECOND / 860
    first = vial.adc_read(0, 10 * SECOND)
    assert first is not None
    begin = first[0]
    vial.led_write(100, int(begin + share * period_ns))
    across = vial.adc_read(0, int(begin + 1.01 * period_ns))
    after = vial.adc_read(0, int(begin + 2.01 * period_ns))
    expected = 0.375 / LSB_V * ((1 - share) - 0.001 * 0.86)
    assert across[2] == pytest.approx(expected, abs=1.5)
    assert after[2] == pytest.approx(0.375 / LSB_V, abs=1)
    assert (across[1], after[1]) == (first[1] + 1, first[1] + 2)


def test_settling_of_the_photodiode_and_several_edges_in_one_conversion():
    vial = make(photodiode_settling_ms=0.4)
    vial.adc_start(0)
    begin = vial.adc_read(0, SECOND)[0]
    edges = [(0.1, 1.0), (0.35, 0.2), (0.8, 0.6), (1.4, 0.0), (2.7, 1.0)]
    for at, level in edges:
        vial.led_write(100 * level, int(begin + at * 1e6))
    # slow twin: Euler steps of 100 ns
    dt, tau = 1e-7, 0.4e-3
    t = np.arange(0, 4 / 860, dt)
    target = np.zeros_like(t)
    for at, level in edges:
        target[t >= at * 1e-3] = level
    light = np.zeros_like(t)
    for i in range(1, t.size):
        light[i] = light[i - 1] + dt / tau * (target[i - 1] - light[i - 1])
    for k in range(4):
        code = vial.adc_read(0, int(begin + (k + 1.001) * SECOND / 860))[2]
        window = (t >= k / 860) & (t < (k + 1) / 860)
        assert code == pytest.approx(0.375 / LSB_V * light[window].mean(), abs=6)


def test_shot_noise_follows_the_light():
    spreads = []
    for percent in (25, 100):
        vial = make(feedback_resistance_ohm=1e9)
        spreads.append(lit(vial, channel=0, count=20_000, percent=percent).std())
    expected = np.sqrt(1.602e-19 * 1e9 * 0.375 * 860)
    assert spreads[1] == pytest.approx(expected, rel=0.03)
    assert spreads[1] / spreads[0] == pytest.approx(2, rel=0.04)


def test_culture_noise_level_and_correlation():
    vial = make(culture_noise_percent=2.0, culture_noise_time_s=0.06)
    volts = lit(vial, count=300_000)
    x = volts / volts.mean() - 1
    assert x.std() == pytest.approx(0.02, rel=0.05)
    lag = round(0.06 * 860)
    assert np.corrcoef(x[:-lag], x[lag:])[0, 1] == pytest.approx(np.exp(-1), abs=0.05)
    sparse = make(particle_noise_percent=1.0, biomass_od=0.04)
    volts = lit(sparse, count=300_000)
    assert volts.std() / volts.mean() == pytest.approx(0.05, rel=0.05), "1/sqrt(OD)"


# --- disturbances ---


def fitted(volts, hz, rate):
    """Complex amplitude of a line by least squares."""
    t = np.arange(volts.size) / rate
    basis = np.column_stack([np.ones_like(t), np.cos(2 * np.pi * hz * t), np.sin(2 * np.pi * hz * t)])
    c = np.linalg.lstsq(basis, volts, rcond=None)[0]
    return c[1] - 1j * c[2]


def line_hz(volts, rate, near, width=0.5):
    grid = np.linspace(near - width, near + width, 2001)
    window = np.hanning(volts.size)
    t = np.arange(volts.size) / rate
    power = [abs(np.sum(window * (volts - volts.mean()) * np.exp(-2j * np.pi * f * t))) for f in grid]
    return grid[int(np.argmax(power))]


@pytest.mark.parametrize("nominal", [50.0, 60.0])
def test_hum_and_flicker_have_their_frequencies_and_amplitudes(nominal):
    vial = make(mains_hz=nominal, hum_amplitude_v=0.02, hum_third_harmonic_percent=30)
    vial.adc_start(1)
    data, _ = vial.record(1, 8600, 0)
    volts = data["code"] * LSB_V
    assert line_hz(volts, 860, nominal) == pytest.approx(nominal, abs=0.002)
    for harmonic, share in ((1, 1.0), (2, 0.1), (3, 0.3), (5, 0.1)):
        reach = np.sinc(harmonic * nominal / 860)
        assert abs(fitted(volts, harmonic * nominal, 860)) == pytest.approx(0.02 * share * reach, rel=0.02)
    lamp = make(mains_hz=nominal, ambient_light_v=0.2, flicker_percent=10)
    lamp.adc_start(1)
    volts = lamp.record(1, 8600, 0)[0]["code"] * LSB_V
    assert abs(fitted(volts, 2 * nominal, 860)) == pytest.approx(0.02 * np.sinc(2 * nominal / 860), rel=0.02)
    assert abs(fitted(volts, nominal, 860)) < 1e-5
    assert volts.mean() == pytest.approx(0.2, abs=2e-4)


def test_mains_frequency_wanders_around_its_nominal():
    vial = make(mains_wander_hz=0.02, mains_wander_time_s=10, hum_amplitude_v=0.1)
    found = []
    for second in range(10, 20_000, 10):
        vial.temperature_read(second * SECOND)
        found.append(vial.truth["mains_hz"])
    assert np.mean(found) == pytest.approx(50, abs=0.003)
    assert np.std(found) == pytest.approx(0.02, rel=0.1)
    vial.adc_start(1, now_ns=20_000 * SECOND)
    data, _ = vial.record(1, 860, 20_000 * SECOND)
    assert line_hz(data["code"] * LSB_V, 860, 50) == pytest.approx(vial.truth["mains_hz"], abs=0.02)


def test_hum_is_continuous_and_common_to_all_channels():
    vial = make(
        angles=(0, 90, 90, -1),
        hum_amplitude_v=0.1,
        hum_second_harmonic_percent=0,
        hum_third_harmonic_percent=0,
        hum_fifth_harmonic_percent=0,
        mains_wander_hz=0.05,
    )
    vial.adc_start(1)
    vial.adc_start(2)
    a, _ = vial.record(1, 1720, 0)
    x = a["code"].astype(float)
    # three points of a sinusoid: x[n+1] + x[n-1] = 2 cos(w) x[n], whatever the phase; a jump would break it
    residual = x[2:] + x[:-2] - 2 * np.cos(2 * np.pi * vial.truth["mains_hz"] / 860) * x[1:-1]
    assert np.abs(residual).max() < 40 + 0.005 * np.abs(x).max()
    both = make(angles=(0, 90, 90, -1), hum_amplitude_v=0.1)
    both.adc_start(1)
    both.adc_start(2)
    for k in range(1, 200):
        now = k * SECOND // 860 + 500_000
        assert abs(both.adc_read(1, now)[2] - both.adc_read(2, now)[2]) <= 1


def runs(mask):
    """(start, length) of the runs of True."""
    padded = np.diff(np.concatenate([[0], mask.astype(int), [0]]))
    starts, ends = np.flatnonzero(padded == 1), np.flatnonzero(padded == -1)
    return starts, ends - starts


def test_bubbles_come_in_runs():
    vial = make(bubble_rate_hz=1.0, bubble_amplitude_od=0.5, bubble_minimum_ms=10, bubble_maximum_ms=100)
    quiet = lit(make(), count=10).mean()
    volts = lit(vial, count=860 * 1000)
    starts, lengths = runs(volts > quiet + 3 * LSB_V)
    # a conversion touched at either end belongs to the run: about one more than the bubble's own length
    seconds = (lengths - 1) / 860
    assert len(starts) == pytest.approx(1000 / (1 + 0.055), rel=0.1)
    assert seconds.min() >= 0.008 and seconds.max() <= 0.1015
    assert seconds.mean() == pytest.approx(0.055, rel=0.06)
    gaps = np.diff(starts) / 860 - lengths[:-1] / 860
    assert gaps.mean() == pytest.approx(1.0, rel=0.12) and gaps.std() == pytest.approx(1.0, rel=0.15)
    heights = np.array([np.median(volts[s : s + n]) for s, n in zip(starts, lengths, strict=True)]) - quiet
    expected = 0.5 * 0.375 * np.exp(-0.05 / 4)
    assert heights.mean() == pytest.approx(expected, rel=0.12)
    change(vial, bubble_rate_hz=0)
    vial.record(1, 200, 1001 * SECOND)
    tail, _ = vial.record(1, 8600, 1002 * SECOND)
    assert np.ptp(tail["code"]) <= 1


def test_channels_see_the_same_bubbles():
    vial = make(angles=(0, 45, 135, -1), bubble_rate_hz=3.0, bubble_amplitude_od=0.1)
    vial.led_write(100, 0)
    for channel in (0, 1, 2):
        vial.adc_start(channel)
    rows = []
    for k in range(2, 20_000):
        now = k * SECOND // 860 + 300_000
        rows.append([vial.adc_read(channel, now)[2] for channel in (0, 1, 2)])
    rows = np.array(rows, dtype=float)
    assert np.corrcoef(rows[:, 1], rows[:, 2])[0, 1] > 0.999
    assert np.ptp(rows[:, 0]) <= 1, "the reference sees none"


def test_ambient_steps_by_hand_and_at_random():
    vial = make(ambient_light_v=0.05, reference_ambient_percent=2)
    vial.adc_start(0)
    vial.adc_start(1)
    assert vial.adc_read(1, SECOND)[2] * LSB_V == pytest.approx(0.05, abs=LSB_V)
    assert vial.adc_read(0, SECOND)[2] * LSB_V == pytest.approx(0.001, abs=LSB_V)
    change(vial, ambient_light_v=0.15)
    assert vial.adc_read(1, 2 * SECOND)[2] * LSB_V == pytest.approx(0.15, abs=LSB_V)
    random = make(ambient_step_v=0.1, ambient_step_rate_hz=1.0)
    random.adc_start(1)
    volts = random.record(1, 860 * 400, 0)[0]["code"] * LSB_V
    assert (volts > 0.05).mean() == pytest.approx(0.5, abs=0.12)
    crossings = np.flatnonzero(np.diff((volts > 0.05).astype(int)))
    assert len(crossings) == pytest.approx(400, rel=0.15)
    between = (volts > 2 * LSB_V) & (volts < 0.1 - 2 * LSB_V)
    assert runs(between)[1].max() == 1, "a step lies within one conversion"
    assert 0.8 * len(crossings) < between.sum() <= len(crossings)


def test_vortex_turns_with_the_fan():
    vial = make(vortex_percent=5.0)
    vial.stirrer_write(30, 0)
    vial.edges_read(30 * SECOND)
    vial.led_write(100, 30 * SECOND)
    vial.adc_start(1, now_ns=30 * SECOND)
    times, volts, edges = [], [], []
    for k in range(1, 6 * 860):
        now = 30 * SECOND + k * SECOND // 860 + 300_000
        if k % 9 == 0:
            edges += list(vial.edges_read(now))
        conversion = vial.adc_read(1, now)
        if k > 5:
            times.append(conversion[0] / 1e9 - 0.5 / 860)
            volts.append(conversion[2] * LSB_V)
    hz = (len(edges) - 1) / ((edges[-1] - edges[0]) / 1e9)
    assert hz * 60 == pytest.approx(500, abs=3)
    turn = (np.array(times) - edges[0] / 1e9) * hz * 2 * np.pi
    x = np.array(volts) / np.mean(volts) - 1
    basis = np.column_stack([np.cos(turn), np.sin(turn), np.cos(2 * turn), np.sin(2 * turn)])
    c = np.linalg.lstsq(basis, x, rcond=None)[0]
    # the edge is at angle 0, where the modulation is highest
    assert c[0] == pytest.approx(0.05 * (hz * 60 / 500) ** 2, rel=0.03)
    assert c[2] == pytest.approx(0.05 / 3 * (hz * 60 / 500) ** 2, rel=0.05)
    assert abs(c[1]) < 0.003 and abs(c[3]) < 0.003


# --- converter ---


@pytest.mark.parametrize(("full_scale_v", "peak_to_peak_uv"), [(1.024, 64.3), (0.256, 35.8), (4.096, 266.9)])
def test_converter_noise_and_quantisation(full_scale_v, peak_to_peak_uv):
    lsb = full_scale_v / 32768
    vial = make(adc_noise_factor=1, stray_90_v=0.1003, biomass_od=0)
    volts = lit(vial, count=50_000, full_scale_v=full_scale_v)
    assert volts.mean() == pytest.approx(0.1003, abs=0.3 * lsb)
    assert volts.std() == pytest.approx(np.hypot(peak_to_peak_uv * 1e-6 / 6.6, lsb / np.sqrt(12)), rel=0.25)
    loud = make(adc_noise_factor=20, stray_90_v=0.1003, biomass_od=0)
    spread = lit(loud, count=50_000, full_scale_v=full_scale_v).std()
    assert spread == pytest.approx(20 * peak_to_peak_uv * 1e-6 / 6.6, rel=0.02)


def test_slower_rates_are_quieter():
    spreads = []
    for rate in (250.0, 64.0):
        vial = make(adc_noise_factor=20)
        vial.adc_start(1, 2.048, rate)
        spreads.append(vial.record(1, 20_000, 0)[0]["code"].std())
    assert spreads[0] == pytest.approx(20 * 84.0e-6 / 6.6 / 62.5e-6, rel=0.03)
    assert spreads[0] / spreads[1] == pytest.approx(np.sqrt(250 / 64), rel=0.03)


def test_converter_clips_and_refuses_what_it_has_not():
    vial = make(biomass_od=4.0)
    vial.led_write(100, 0)
    vial.adc_start(1, 0.256)
    data, _ = vial.record(1, 5, 0)
    assert np.all(data["code"][1:] == 32767) and np.all(data["clipped"][1:] == 1)
    assert lit(make(biomass_od=4.0)).mean() > 0.5
    for full_scale_v, rate in ((1.0, 860.0), (1.024, 1000.0)):
        with pytest.raises(OSError) as refused:
            vial.adc_start(1, full_scale_v, rate)
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(OSError) as absent:
        vial.adc_start(2)
    assert absent.value.errno == errno.ENODEV
    with pytest.raises(OSError):
        vial.adc_read(0, SECOND)


def test_gain_and_offset_errors_belong_to_the_converter():
    gains, offsets = [], []
    for seed in range(300):
        vial = make(seed, adc_gain_spread_percent=1, adc_offset_spread_lsb=5)
        dark = lit(vial, channel=0, count=1, percent=0)[0] / LSB_V
        bright = lit(make(seed, adc_gain_spread_percent=1, adc_offset_spread_lsb=5), channel=0, count=1)[0] / LSB_V
        offsets.append(dark)
        gains.append((bright - dark) * LSB_V / 0.375 - 1)
    assert np.std(gains) == pytest.approx(0.01, rel=0.15)
    assert np.std(offsets) == pytest.approx(5, rel=0.15)
    vial = make(3, adc_gain_spread_percent=1)
    first = lit(vial, channel=0, count=1, full_scale_v=0.512)[0]
    vial.adc_start(0, 1.024, now_ns=SECOND)
    other = vial.record(0, 3, SECOND)[0]["code"][-1] * LSB_V
    vial.adc_start(0, 0.512, now_ns=2 * SECOND)
    again = vial.record(0, 3, 2 * SECOND)[0]["code"][-1] * 0.512 / 32768
    assert again == first and abs(other - first) > 1e-4


def test_oscillators_are_off_by_up_to_ten_percent():
    rates = []
    for seed in range(300):
        vial = make(seed, oscillator_spread_percent=10)
        vial.adc_start(0)
        rates.append(vial.truth["rate_hz"][0] / 860 - 1)
    assert np.abs(rates).max() <= 0.1
    assert np.std(rates) == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
    vial = make(oscillator_error_percent=-7)
    vial.adc_start(1)
    data, _ = vial.record(1, 8600, 0)
    hz = 1e9 * (data["index"][-1] - data["index"][0]) / (data["ready_ns"][-1] - data["ready_ns"][0])
    assert hz == pytest.approx(860 * 0.93, rel=1e-7)
    assert np.all(np.diff(data["index"]) == 1)
    warm = make(oscillator_drift_ppm_per_degc=100, ambient_temperature_degc=35)
    warm.adc_start(1)
    assert warm.truth["rate_hz"][1] == pytest.approx(860 * 1.001, rel=1e-9)


def test_ready_stamps_and_lost_conversions():
    vial = make(ready_latency_us=10, ready_jitter_us=4)
    vial.adc_start(1)
    data, now = vial.record(1, 4000, 0)
    true = data["ready_ns"][0] + (data["index"] - data["index"][0]).astype(float) * SECOND / 860
    late = data["ready_ns"] - true
    assert np.ptp(late) < 8001 and np.ptp(late) > 7500
    assert vial.adc_read(1, now) is None
    jumped = vial.adc_read(1, now + SECOND)
    assert jumped[1] == data["index"][-1] + 860
    assert jumped[0] <= now + SECOND and jumped[0] > now + SECOND - SECOND // 860 - 20_000
    assert vial.adc_read(1, now + SECOND + 1000) is None


# --- fan ---


def spin(vial, seconds, start=0.0):
    """Read edges every 10 ms; returns their stamps and the speed at each read."""
    edges, speeds = [], []
    for k in range(1, round(seconds * 100) + 1):
        edges += list(vial.edges_read(round((start + k / 100) * SECOND)))
        speeds.append(vial.truth["fan_rpm"])
    return np.array(edges), np.array(speeds)


def test_fan_step_response_against_ode():
    vial = make()
    vial.stirrer_write(30, 0)
    _, speeds = spin(vial, 4)
    slope = lambda _, n: (2600 * 0.24 - n - n * n / 2000) / 0.8  # noqa: E731
    at = np.arange(1, 401) / 100
    twin = solve_ivp(slope, (0, 4), [0], t_eval=at, rtol=1e-9).y[0]
    np.testing.assert_allclose(speeds, twin, atol=0.05)
    _, speeds = spin(vial, 6, 4)
    assert speeds[-1] == pytest.approx(1000 * (np.sqrt(1 + 4 * 624 / 2000) - 1), abs=0.01)


def test_static_friction_and_stopping():
    vial = make()
    vial.stirrer_write(14, 0)
    assert spin(vial, 2)[1].max() == 0.0, "below the starting duty"
    vial.stirrer_write(16, 2 * SECOND)
    spin(vial, 3, 2)
    vial.stirrer_write(10, 5 * SECOND)
    _, speeds = spin(vial, 8, 5)
    assert speeds[-1] == pytest.approx(1000 * (np.sqrt(1 + 4 * 104 / 2000) - 1), rel=0.01), "runs on below it"
    vial.stirrer_write(5, 13 * SECOND)
    edges, speeds = spin(vial, 5, 13)
    assert speeds[-1] == 0.0 and edges[-1] < 18 * SECOND
    with pytest.raises(OSError):
        vial.stirrer_write(101, 20 * SECOND)


def test_edges_are_spaced_by_the_speed():
    vial = make(fan_pulses_per_turn=2)
    vial.stirrer_write(30, 0)
    spin(vial, 10)
    edges, speeds = spin(vial, 10, 10)
    np.testing.assert_allclose(np.diff(edges) / 1e9, 60 / speeds[-1] / 2, rtol=1e-4)
    rough = make(edge_latency_us=50, edge_jitter_us=10)
    rough.stirrer_write(30, 0)
    spin(rough, 10)
    edges, _ = spin(rough, 60, 10)
    residual = edges - np.polyval(np.polyfit(np.arange(edges.size), edges, 1), np.arange(edges.size))
    assert residual.std() == pytest.approx(10_000, rel=0.12)


def test_load_varies_the_speed():
    vial = make(fan_variation_percent=5)
    vial.stirrer_write(30, 0)
    spin(vial, 5)
    _, speeds = spin(vial, 100, 5)
    assert speeds.mean() == pytest.approx(500, rel=0.01)
    # first-order answer of the linearised fan to Ornstein-Uhlenbeck noise of 0.2 s
    tau = 0.8 / (1 + 2 * 500 / 2000)
    expected = 0.05 * 500 / 1.5 * np.sqrt(0.2 / (0.2 + tau))
    assert speeds.std() == pytest.approx(expected, rel=0.2)


def test_fan_faults():
    vial = make()
    vial.stirrer_write(30, 0)
    spin(vial, 3)
    change(vial, fan_stalled=1)
    edges, speeds = spin(vial, 2, 3)
    assert speeds[-1] == 0.0 and edges.size == 0
    change(vial, fan_stalled=0)
    edges, speeds = spin(vial, 3, 5)
    assert speeds[-1] > 450 and edges.size > 10
    change(vial, tachometer_silent=1)
    edges, speeds = spin(vial, 2, 8)
    assert speeds[-1] > 450 and edges.size == 0
    change(vial, tachometer_silent=0)
    vial.edges_read(70 * SECOND)
    assert vial.truth["edges_lost"] > 0, "the kernel's queue holds 64"


# --- faults of the optics and the converter ---


def test_optical_faults():
    vial = make()
    vial.led_write(100, 0)
    vial.adc_start(0)
    vial.adc_start(1)
    reference, signal = vial.adc_read(0, SECOND)[2], vial.adc_read(1, SECOND)[2]
    assert reference == pytest.approx(0.375 / LSB_V, abs=1) and signal > 1000
    change(vial, light_leak_v=0.1)
    assert vial.adc_read(1, 2 * SECOND)[2] - signal == pytest.approx(0.1 / LSB_V, abs=1)
    assert vial.adc_read(0, 2 * SECOND)[2] == reference
    change(vial, light_leak_v=0, reference_lost=1)
    assert (vial.adc_read(0, 3 * SECOND)[2], vial.adc_read(1, 3 * SECOND)[2]) == (0, signal)
    change(vial, reference_lost=0, led_dead=1)
    assert (vial.adc_read(0, 4 * SECOND)[2], vial.adc_read(1, 4 * SECOND)[2]) == (0, 0)
    change(vial, led_dead=0)
    assert (vial.adc_read(0, 5 * SECOND)[2], vial.adc_read(1, 5 * SECOND)[2]) == (reference, signal)
    change(vial, reference_swapped=1)
    assert (vial.adc_read(0, 6 * SECOND)[2], vial.adc_read(1, 6 * SECOND)[2]) == (signal, reference)
    change(vial, reference_swapped=1)
    assert vial.adc_read(0, 7 * SECOND)[2] == signal
    change(vial, reference_swapped=0, vial_missing=1)
    assert vial.adc_read(0, 8 * SECOND)[2] == reference
    assert vial.adc_read(1, 8 * SECOND)[2] == pytest.approx(0.1 * 0.025 / LSB_V, abs=1)
    with pytest.raises(OSError):
        vial.led_write(101, 8 * SECOND)
    swapped = make(reference_swapped=1)
    swapped.led_write(100, 0)
    swapped.adc_start(1)
    assert swapped.adc_read(1, SECOND)[2] == reference


def test_a_missing_stir_bar_neither_drags_nor_modulates():
    vial = make(vortex_percent=1.0, stir_bar_missing=1)
    vial.stirrer_write(30, 0)
    _, speeds = spin(vial, 10)
    assert speeds[-1] == pytest.approx(2600 * 0.24, rel=1e-3), "without drag the speed is the drive"
    assert lit(vial).std() < 2 * LSB_V
    there = make(vortex_percent=1.0)
    there.stirrer_write(30, 0)
    spin(there, 10)
    assert lit(there).std() > 4 * LSB_V


def test_without_a_vial_the_heat_stays_in_the_board():
    """The board alone: its capacity, its loss."""
    with_vial, without = make(), make(vial_missing=1)
    for vial in (with_vial, without):
        vial.heater(0.3)
    rise = without.temperature_read(133 * SECOND) - 36.0
    assert rise == pytest.approx(0.3 * 3.3 / 0.06 * (1 - np.exp(-133 * 0.06 / 8)), abs=0.3)
    assert with_vial.temperature_read(133 * SECOND) - 36.0 < 0.5 * rise


def test_the_stirrers_pwm_is_picked_up_while_it_turns():
    vial = make(pwm_pickup_v=0.02)
    still = lit(vial, percent=0.0)
    vial.stirrer_write(30, 10 * SECOND)
    spin(vial, 3, 10)
    data, _ = vial.record(1, 2000, 14 * SECOND)
    turning = data["code"][100:] * 1.024 / 32768
    left = np.sinc(200 / 860)  # of the line after a conversion's averaging
    assert np.ptp(still) < 2 * LSB_V and turning.std() == pytest.approx(0.02 * left / np.sqrt(2), rel=0.05)


def test_converter_faults():
    vial = make(adc_noise_factor=5)
    vial.adc_start(1)
    normal, now = vial.record(1, 100, 0)
    change(vial, adc2_fault=3)
    stuck, now = vial.record(1, 100, now + SECOND // 860)
    assert np.all(stuck["code"] == normal["code"][-1]) and np.all(np.diff(stuck["index"]) == 1)
    change(vial, adc2_fault=2)
    garbage, now = vial.record(1, 4000, now + SECOND // 860)
    assert garbage["code"].std() == pytest.approx(65536 / np.sqrt(12), rel=0.05)
    change(vial, adc2_fault=1)
    with pytest.raises(OSError) as lost:
        vial.adc_read(1, now + SECOND)
    assert lost.value.errno == errno.EREMOTEIO
    with pytest.raises(OSError):
        vial.adc_start(1, now_ns=now + SECOND)
    change(vial, adc2_fault=0)
    assert np.ptp(vial.record(1, 100, now + 2 * SECOND)[0]["code"]) < 100


# --- the whole ---


def test_same_seed_same_codes():
    def run(seed):
        vial = sim_arrays.SimulatedVial(simulation.values({"time_acceleration": 60}), seed=seed)
        vial.stirrer_write(30, 0)
        vial.adc_start(0)
        vial.adc_start(1)
        vial.edges_read(SECOND)
        data, now = vial.record(1, 4000, 0, half_cycle=5)
        edges = vial.edges_read(5 * SECOND)
        vial.set(simulation.BY_NAME["bubble_rate_hz"].index, 5.0)
        more, now = vial.record(1, 4000, now + 1_000_000, half_cycle=5)
        return data, more, edges, vial.temperature_read(now), vial.adc_read(0, now)

    first, second, other = run(5), run(5), run(6)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first[0]["code"], other[0]["code"])


def test_how_often_one_channel_is_read_does_not_change_another():
    """Each converter draws from a random stream of its own."""

    def run(busy):
        vial = sim_arrays.SimulatedVial(simulation.values({"bubble_rate_hz": 0}), seed=5, angles=(0, 90, 135, -1))
        for channel in range(3):
            vial.adc_start(channel)
        codes = []
        for k in range(1, 2000):
            now = k * SECOND // 700
            if busy:
                vial.adc_read(2, now)
            codes.append(vial.adc_read(1, now)[2])
        return codes

    assert run(False) == run(True)


def test_a_day_of_absence_costs_little():
    vial = sim_arrays.SimulatedVial(simulation.values(), seed=2)
    vial.adc_start(1)
    _, now = vial.record(1, 1000, 0, half_cycle=5)
    rate = vial.truth["rate_hz"][1]
    began = time.process_time()
    ready, index, _, _ = vial.adc_read(1, now + 86_400 * SECOND)
    spent = time.process_time() - began
    assert vial.truth["slow_steps"] < 9000 and spent < 0.5
    assert index == pytest.approx(999 + 86_400 * rate, abs=2)
    assert now + 86_400 * SECOND - ready < 1.1 * SECOND / rate
    data, _ = vial.record(1, 1000, now + 86_401 * SECOND, half_cycle=5)
    assert np.all(np.diff(data["index"][1:]) == 1)
    assert vial.truth["biomass_od"] > 8 and vial.truth["substrate_g_per_l"] < 1e-6


def test_a_day_fits_the_budget_of_virtual_time():
    """Not a benchmark: a factor of ten above what was measured, against accidents."""
    vial = sim_arrays.SimulatedVial(simulation.values(), seed=2)
    vial.stirrer_write(30, 0)
    vial.adc_start(0)
    vial.adc_start(1)
    began = time.process_time()
    conversions, _ = sim_arrays.run_chopped(vial, 2, 300.0, 5)
    assert conversions > 400_000
    assert (time.process_time() - began) / conversions < 400e-9
