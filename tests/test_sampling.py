"""The sampling thread at every pace: on a bus that takes its time, with threads that wake late and clocks off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stirbar.core import events, records, simulation
from stirbar.core.profiles import Profile, load_profile
from stirbar.rt.od_arrays import choose_half_cycle, chop_cost, chop_rejection_db
from stirbar.rt.sampling_arrays import KINDS, SamplerBench, fit_light_path, light_share

from tests import light_path_twin

SECOND = 1_000_000_000
OD2 = records.STREAM_IDS["od2"]
NOISE = np.random.default_rng(7)
# wake-ups: 50 us late as a rule, 0.2 ms now and then
LATE_NS = NOISE.gamma(2.0, 25e3, 5000)
# a vial that does not change, without what the estimators are there to remove
STILL = {
    "culture_noise_percent": 0, "particle_noise_percent": 0, "growth_rate_maximum_per_hour": 0,
    "led_self_heating_degc": 0, "vortex_percent": 0, "hum_amplitude_v": 0, "flicker_percent": 0,
    "oscillator_spread_percent": 0.2,
}  # fmt: skip


def plan(pace: str, rate_hz: float, conversion_hz: float, read_ns: int, light_ns: int, **more: Any) -> dict[str, Any]:
    named = {"pace": pace, "rate_hz": rate_hz, "conversion_hz": conversion_hz}
    return named | {"read_ns": read_ns, "light_ns": light_ns, "settle_ns": 700_000} | more


READY = plan("ready", 860, 860, 290_000, 380_000)  # pointer preset, 100 kHz
READY_FAST = plan("ready", 860, 860, 75_000, 95_000)  # 400 kHz
HOST = plan("host", 150, 860, 470_000, 380_000, converter=0)  # 300/s in all, 100 kHz
HOST_FAST = plan("host", 200, 860, 120_000, 95_000, converter=0)  # 400/s in all, 400 kHz
SMOOTHED = plan("smoothed", 45, 122, 2_300_000, 300_000, settle_ns=205_000_000)
PILOT = plan("pilot", 860, 860, 75_000, 95_000)
SLOW = {"low": 8, "high": 23, "full_scale_v": 3.3, "window_s": 5.0, "readings_per_second": 1.0}
BOARDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ready": (READY_FAST, {}),
    "host 100 kHz": (HOST, {}),
    "host 400 kHz": (HOST_FAST, {}),
    "smoothed": (SMOOTHED, SLOW),
    "pilot": (PILOT, {}),
}


def bench(name: str, angles: tuple[int, ...] = (0, 90), late: bool = True, **settings: Any) -> SamplerBench:
    """A bench that has been started; settings of the vial by their names, the rest are the bench's."""
    row, options = BOARDS[name]
    vial = STILL | {key: value for key, value in settings.items() if key in simulation.BY_NAME}
    options = options | {key: value for key, value in settings.items() if key not in simulation.BY_NAME}
    made = SamplerBench(
        [row] * len(angles), angles, simulation.values(vial), late_ns=LATE_NS if late else None, **options
    )
    made.push(events.COMMAND_OD_START, 80.0)
    made.push(events.COMMAND_TEMPERATURE, 1.0)
    return made


def readings(data: bytes, stream: int = OD2) -> np.ndarray:
    array = np.frombuffer(data, np.dtype(records.READING_DTYPE))
    return array[array["stream"] == stream]


def conversions(data: bytes, channel: int) -> np.ndarray:
    items = np.frombuffer(data, np.dtype(records.TRACE_DTYPE))
    return items[(items["kind"] == 1) & (items["channel"] == channel)]


# --- every pace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error_percent", [-9.5, 0.0, 9.5])
@pytest.mark.parametrize("name", [name for name in BOARDS if name != "pilot"])
def test_the_planned_conversions_come_each_once(name: str, error_percent: float) -> None:
    """99.9 % of the plan, at the rate that the converters' clock or our grid gives."""
    made = bench(name, oscillator_error_percent=error_percent)
    made.push(events.COMMAND_TRACE, 1e6)
    made.run(4.0)
    before, begin_ns = made.look(), made.now_ns()
    _, trace, _ = made.run(10.0)
    look, seconds = made.look(), (made.now_ns() - begin_ns) / 1e9
    for channel in (0, 1):
        items = conversions(trace, channel)
        assert len(np.unique(items["index"])) == len(items)
        rate_hz = BOARDS[name][0]["rate_hz"]
        planned = seconds * (1.0 / look["adc_period_s"][channel] if name == "ready" else rate_hz)
        assert len(items) >= 0.999 * planned - 2, (channel, len(items), planned)
        assert look["missed"][channel] - before["missed"][channel] <= 0.001 * planned


@pytest.mark.parametrize("name", BOARDS)
def test_readings_are_right_within_their_error(name: str) -> None:
    """The vial's own level and the scatter of independent windows, on every kind of board."""
    made = bench(name)
    made.run(12.0)
    data, _, _ = made.run(150.0 if name == "smoothed" else 30.0)
    read = readings(data)
    apart = read[:: int(np.ceil(read["window_s"].max() * (1 if name == "smoothed" else 10)))]
    truth = (
        readings(bench("ready", late=False).run(10.0)[0])["signal_v"][-1] if name != "ready" else apart["signal_v"][0]
    )
    error = float(np.median(read["se_instrument"]))
    # a microcontroller's converter is not linear (IS-24), two ranges of gain errors lie between the others
    assert abs(apart["signal_v"].mean() / truth - 1.0) < (0.02 if name == "smoothed" else 1e-3)
    scatter = apart["value"].std(ddof=1)
    assert scatter < 1.35 * error and scatter > error / 2.5
    assert np.all(read["half_cycle"][10:] == made.look()["half_cycle"])


def test_single_shots_are_begun_on_the_grid_and_never_see_two_lights() -> None:
    made = bench("host 100 kHz")
    made.push(events.COMMAND_TRACE, 1e6)
    made.run(5.0)
    _, trace, _ = made.run(5.0)
    moved = made.transfers()
    begun = moved[moved["kind"] == KINDS.index("convert")]
    begun = begun[begun["begin_ns"] > moved["begin_ns"][-1] - 4 * SECOND]
    for channel in (0, 1):
        own = begun[begun["channel"] == channel]["begin_ns"]
        grid = (own - own[0]) / (SECOND / 150.0)
        assert np.abs(grid - np.round(grid)).max() * SECOND / 150.0 < 400_000  # a thread that woke late, no more
        assert np.array_equal(np.diff(np.round(grid)), np.ones(len(grid) - 1))
        # the light changes between a turn's last fetch and the next begin: no conversion is lost to it
        assert np.count_nonzero(conversions(trace, channel)["phase"] == 2) == 0
    lights = moved[moved["kind"] == KINDS.index("light")]
    for light in lights[-40:]:
        running = begun[(begun["end_ns"] < light["end_ns"]) & (begun["end_ns"] + 1_280_000 > light["begin_ns"])]
        assert len(running) == 0


def test_a_running_mean_is_used_only_when_it_has_settled() -> None:
    made = bench("smoothed")
    made.push(events.COMMAND_TRACE, 1e6)
    made.run(15.0)
    look = made.look()
    assert look["tau_ns"] == pytest.approx(1e9 / 122 / -np.log(0.75), rel=0.1)
    assert look["half_cycle"] - look["discard"] >= 4
    _, trace, _ = made.run(20.0)
    phases = conversions(trace, 1)["phase"]
    assert 0.3 < np.count_nonzero(phases != 2) / len(phases) < 0.8


SLOW_KINDS = [KINDS.index(kind) for kind in ("temperature", "rail", "check")]


# --- slow devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slow_ns"), [("ready", 120_000), ("host 100 kHz", 470_000), ("smoothed", 470_000)])
def test_slow_devices_never_delay_a_conversion(name: str, slow_ns: int) -> None:
    """Each read of sensor and rail ends before the next transfer for a conversion was due."""
    made = bench(name, late=False, slow_ns=slow_ns)
    made.run(20.0)
    moved = made.transfers()
    slow = np.flatnonzero(np.isin(moved["kind"], [KINDS.index("temperature"), KINDS.index("rail")]))
    assert len(slow) >= 36 and made.look()["slow_forced"] == 0 and made.look()["rail_v"] == 5.0
    undisturbed = bench(name, late=False, slow_ns=0)
    undisturbed.run(20.0)
    other = undisturbed.transfers()
    own = moved[~np.isin(moved["kind"], SLOW_KINDS)]
    their = other[~np.isin(other["kind"], SLOW_KINDS)]
    # the bus schedule is the same, to the nanosecond, as with devices that take no time at all
    assert np.array_equal(own["begin_ns"], their["begin_ns"]) and np.array_equal(own["kind"], their["kind"])


def slow_bench(profile: Profile, slow: bool = True) -> SamplerBench:
    """A profile's converters and slow devices, each with its bits on the wire and 30 us for driver and system call;
    without `slow` they take no time."""
    bit_ns = 1e9 / profile.get("i2c", "clock_hz")

    def taking(bits: int) -> int:
        return round(bits * bit_ns) + 30_000

    rows = []
    for n in profile.channels():
        section = f"photodiode.{n}"
        pace, stretched = profile.get(section, "pace"), profile.get(section, "chip") == "rp2040"
        rows.append(
            plan(
                pace,
                profile.get(section, "rate_hz"),
                profile.get(section, "conversion_hz"),
                taking(47 if stretched else 29) + 1_800_000 * stretched,
                taking(57 if pace == "host" else 38),
                converter=profile.get(section, "converter"),
                lends_rail=int(pace == "host"),
            )
        )
    options = SLOW if rows[0]["pace"] == "smoothed" else {}
    made = SamplerBench(
        rows,
        (0, 90, 45, 135)[: len(rows)] if len(rows) > 1 else (90,),
        simulation.values(STILL),
        slow_ns=taking(29) if slow else 0,
        check_ns=taking(49) if slow else 0,
        **options,
    )
    made.push(events.COMMAND_OD_START, 80.0)
    made.push(events.COMMAND_TEMPERATURE, 1.0)
    return made


@pytest.mark.parametrize("name", ["hat1.0", "hat1.1", "model1.5", "xr1.5", "eyespy"])
def test_the_slow_devices_of_every_board_find_their_gaps(name: str) -> None:
    """None waits for a second, none costs a conversion; sensor and LED driver are read back every ten seconds."""
    missed = []
    for slow in (False, True):
        made = slow_bench(load_profile(name), slow)
        made.run(5.0)
        before = sum(made.look()["missed"])
        made.run(60.0)
        missed.append(sum(made.look()["missed"]) - before)
    look, kinds = made.look(), made.transfers()["kind"]
    assert look["slow_forced"] == 0
    # the four converters of an XR have clocks of their own: when all are due at once some are late, slow devices or not
    assert missed[0] == 0 or name == "xr1.5"
    assert missed[1] <= 1.1 * missed[0]
    assert np.count_nonzero(kinds == KINDS.index("temperature")) >= 63
    assert np.count_nonzero(kinds == KINDS.index("check")) >= 12
    assert look["rail_v"] == 5.0 and np.count_nonzero(kinds == KINDS.index("rail")) >= 12


def test_a_rail_on_the_photodiodes_converter_takes_the_place_of_a_conversion() -> None:
    """Its begin and end are those of the grid, nothing is missed, and readings know of no gap."""
    made = slow_bench(load_profile("hat1.0"))
    made.run(10.0)
    made.push(events.COMMAND_TRACE, 1e6)
    data, trace, _ = made.run(30.0)
    moved = made.transfers()
    rail = moved[(moved["kind"] == KINDS.index("rail")) & (moved["begin_ns"] > moved["begin_ns"][-1] - 30 * SECOND)]
    begun = moved[moved["kind"] == KINDS.index("convert")]["begin_ns"]
    grid = (rail["begin_ns"][rail["end_ns"] - rail["begin_ns"] > 500_000] - begun[-1]) / (SECOND / 300.0)
    assert len(grid) == 3 and np.abs(grid - np.round(grid)).max() * SECOND / 300.0 < 100_000
    left_out = [items for items in (conversions(trace, 0), conversions(trace, 1)) if (items["phase"] == 2).any()]
    assert len(left_out) == 1 and np.count_nonzero(left_out[0]["phase"] == 2) == 3
    assert np.array_equal(np.diff(left_out[0]["index"].astype(np.int64)), np.ones(len(left_out[0]) - 1))
    assert not (readings(data)["flags"] & records.FLAGS["gap"]).any()


def test_a_device_that_finds_no_gap_waits_a_second_and_is_counted() -> None:
    made = bench("ready", slow_ns=1_300_000, late=False)
    made.run(10.0)
    look = made.look()
    moved = made.transfers()
    taken = np.count_nonzero(np.isin(moved["kind"], [KINDS.index("temperature"), KINDS.index("rail")]))
    assert 0 < look["slow_forced"] <= taken
    assert sum(look["missed"]) <= 4 * taken


# --- lost and found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOARDS)
def test_a_lost_converter_is_asked_once_a_second_and_comes_back(name: str) -> None:
    made = bench(name)
    made.run(6.0)
    made.stick(0, True)  # each transfer to it now takes the adapter's time-out
    made.run(1.0)
    before, count = made.look(), len(made.transfers())
    _, _, seen = made.run(5.0)
    tries = made.transfers()[count:]
    tries = tries[(tries["channel"] == 0) & (tries["kind"] < KINDS.index("light"))]
    assert 3 <= len(tries) <= 6 and made.look()["lost"][0]
    # the other photodiode goes on: 20 ms of five seconds' conversions are gone with each try
    rate_hz = BOARDS[name][0]["rate_hz"]
    assert made.look()["conversions"][1] - before["conversions"][1] > 0.93 * 5.0 * rate_hz * 0.99
    made.stick(0, False)
    data, _, seen = made.run(8.0)
    assert [code for *_, code, source in seen if source == 1].count(events_code("sensor_back")) == 1
    assert not made.look()["lost"][0] and len(readings(data)) > 2


def events_code(name: str) -> int:
    return next(code for code, row in events.EVENTS.items() if row[0] == name)


def test_the_light_goes_on_at_the_pace_of_another_photodiode() -> None:
    made = bench("ready", angles=(0, 90, 135))
    made.run(3.0)
    assert made.look()["master"] == 1
    made.stick(1, True)
    made.run(1.0)
    data, _, _ = made.run(4.0)
    look = made.look()
    assert look["master"] == 2 and look["half_cycle"] > 0
    od3 = readings(data, records.STREAM_IDS["od3"])
    assert len(od3) >= 35 and not np.any(od3["flags"] & records.FLAGS["unchopped"])


def test_without_any_photodiode_the_light_is_off() -> None:
    made = bench("host 100 kHz")
    made.run(3.0)
    made.stick(0, True)
    made.stick(1, True)
    made.run(2.0)
    assert not made.look()["led_on"]
    made.stick(0, False)
    made.stick(1, False)
    data, _, _ = made.run(5.0)
    assert len(readings(data)) > 10


# --- the light path --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau_ms", [0.1, 0.5, 1.0, 5.0, 16.0])
def test_the_light_path_is_found_and_chopped_by(tau_ms: float) -> None:
    """IS-25: what is used lacks a thousandth of the step at most; the slower the light, the slower the chop."""
    made = bench("ready", photodiode_settling_ms=tau_ms)
    _, _, seen = made.run(25.0)
    look = made.look()
    assert look["tau_ns"] / 1e6 == pytest.approx(tau_ms, rel=0.1)
    period_ns = 1e9 * look["adc_period_s"][1]
    lacks = 1.0 - light_share([look["settle_ns"]], period_ns, 1e12, tau_ms * 1e6)[0]
    assert lacks < 1.6e-3
    assert look["half_cycle"] > look["discard"]
    half_ns = look["half_cycle"] * period_ns
    assert half_ns > look["settle_ns"] and half_ns < 4 * look["settle_ns"] + 12e6
    path = [(argument, value) for _, value, argument, code, _ in seen if code == events.EVENT_LIGHT_PATH]
    assert path[-1] == (look["discard"], pytest.approx(look["tau_ns"] / 1e6))
    assert abs(look["chop_period_ns"] - 2 * half_ns) < 1e-3 * half_ns
    data, _, _ = made.run(15.0)
    read = readings(data)
    quick = bench("ready")
    quick.run(10.0)
    truth = readings(quick.run(3.0)[0])["signal_v"].mean()
    assert read["signal_v"].mean() / truth == pytest.approx(1.0, abs=2.5e-3)


def test_a_light_path_that_becomes_slower_is_found_within_the_hour() -> None:
    made = SamplerBench([READY_FAST], [90], simulation.values(STILL | {"photodiode_settling_ms": 0.5}), mains_hz=50.0)
    made.push(events.COMMAND_OD_START, 80.0)
    made.run(10.0)
    first = made.look()
    made.set(simulation.BY_NAME["photodiode_settling_ms"].index, 0.8)
    seen = [event for _ in range(62) for event in made.run(60.0)[2]]
    found = [value for _, value, _, code, _ in seen if code == events.EVENT_LIGHT_PATH]
    assert found == [pytest.approx(0.8, rel=0.1)]
    assert made.look()["settle_ns"] > 1.3 * first["settle_ns"]


@pytest.mark.parametrize("tau_ms", [0.1, 0.7, 3.0, 20.0])
def test_the_response_is_that_of_the_twin(tau_ms: float) -> None:
    aperture, half = 1.163e6, 12e6
    lags = np.array([-1.1e6, -0.6e6, -0.01e6, 0.0, 0.3e6, 2e6, 9e6])
    mine = light_share(lags, aperture, half, tau_ms * 1e6)
    assert mine == pytest.approx([light_path_twin.share(lag, aperture, half, tau_ms * 1e6) for lag in lags], abs=2e-4)


@pytest.mark.parametrize("tau_ms", [0.15, 0.6, 2.0, 8.0])
def test_the_fit_is_that_of_all_conversions_at_once(tau_ms: float) -> None:
    rng = np.random.default_rng(int(100 * tau_ms))
    aperture, half, n = 1.163e6, 20e6, 6000
    lag = rng.integers(-1_100_000, 18_000_000, n)
    on = rng.integers(0, 2, n).astype(np.uint8)
    seen = light_share(lag, aperture, half, tau_ms * 1e6)
    codes = np.round(500 + 3000 * np.where(on == 1, seen, 1 - seen) + rng.normal(0, 5, n)).astype(np.int32)
    found = fit_light_path(lag, codes, on, aperture, half)
    twin = light_path_twin.fit(lag, codes, on, aperture, half)
    assert twin == pytest.approx(tau_ms * 1e6, rel=0.03)
    assert found["tau_ns"] == pytest.approx(twin, rel=0.05)


def test_no_light_has_no_time_constant() -> None:
    rng = np.random.default_rng(3)
    lag = rng.integers(-1_000_000, 5_000_000, 2000)
    codes = rng.normal(500, 5, 2000).astype(np.int32)
    assert np.isnan(fit_light_path(lag, codes, lag & 1, 1.163e6, 5.8e6)["tau_ns"])


# --- the choice of k -------------------------------------------------------------------------------------------------


def test_half_cycles_count_what_is_discarded() -> None:
    for discard in (1, 3, 8, 30):
        k = choose_half_cycle(860.0, 50.0, 500.0, 4, 9, discard)
        assert discard < k <= discard + 60
        assert discard < 3 or 1.2 * discard < k <= 3 * discard + 2
    assert chop_cost(860.0, 8, 50.0, discard=4) > chop_cost(860.0, 8, 50.0, discard=1)
    # half of a slow half-cycle is kept, near enough
    assert 40 <= choose_half_cycle(860.0, 50.0, 0.0, 4, 9, 30) <= 90


def test_a_pwm_that_is_not_locked_is_kept_off_the_comb() -> None:
    """860/s, k = 5: the third tooth of 86 Hz is at 258 Hz."""
    free = [chop_cost(860.0, k, 50.0) for k in range(4, 10)]
    near = [chop_cost(860.0, k, 50.0, pwm_hz=258.0) for k in range(4, 10)]
    assert near[1] / free[1] > 2.0 and near[1] / free[1] == max(b / a for a, b in zip(free, near, strict=True))


def test_k_is_chosen_again_when_the_rate_moves() -> None:
    """By 0.5 %, on either side of the rate where another k begins; less changes nothing (IS-17)."""
    made = bench("ready", late=False, oscillator_error_percent=-7.2, oscillator_spread_percent=0)

    def k_at(error_percent: float) -> tuple[int, int]:
        made.set(simulation.BY_NAME["oscillator_error_percent"].index, error_percent)
        made.run(8.0)
        look = made.look()
        rate_hz = 1.0 / look["adc_period_s"][0]
        return look["half_cycle"], choose_half_cycle(rate_hz, 50.0, discard=look["discard"])

    assert k_at(-7.2) == (6, 6)
    assert k_at(-7.6) == (6, 5), "0.4 % is no reason"
    assert k_at(-7.9) == (5, 5)


def test_k_follows_stirrer_and_pwm() -> None:
    """IS-17: chosen for the speed in force once that holds still, and for a PWM that refuses the lock."""
    rpms = np.arange(300.0, 2001.0, 25.0)
    start = choose_half_cycle(860.0, 50.0, 500.0)
    rpm = next(rpm for rpm in rpms if choose_half_cycle(860.0, 50.0, rpm) != start)
    made = bench("ready", late=False, oscillator_spread_percent=0, rpm=500.0)
    made.stir(500.0)
    made.run(5.0)
    assert made.look()["half_cycle"] == start
    for passing in (0.3, 0.5, 0.8):  # it runs up
        made.stir(rpm * passing)
        made.run(1.0)
    assert made.look()["half_cycle"] == start
    made.stir(rpm * 1.001)
    made.run(1.0)
    made.stir(rpm)
    made.run(1.0)
    k = choose_half_cycle(860.0, 50.0, rpm)
    assert made.look()["half_cycle"] == k
    made.stir(0.0)
    made.run(2.0)
    assert made.look()["half_cycle"] == k, "a stirrer that stops changes nothing"
    hz = 3 * 860.0 / (2 * k)  # the third tooth of the chop
    made.stir(rpm, hz)
    made.run(1.0)
    assert made.look()["half_cycle"] == choose_half_cycle(860.0, 50.0, rpm, pwm_hz=hz) != k


def test_what_is_left_of_ambient_light() -> None:
    """IS-19: DC to 5 Hz at T = 1 s, k = 5: -60 dB, k = 7: -54, k = 16: -40."""
    for k, decibel in ((5, -60.0), (7, -54.0), (16, -40.0)):
        assert chop_rejection_db(5.0, 860.0, k, 1.0) == pytest.approx(decibel, abs=2.0)
    levels = [chop_rejection_db(hertz, 860.0, 5, 1.0) for hertz in (0.1, 1.0, 5.0)]
    assert levels == sorted(levels) and levels[0] < -100.0


# --- bursts and hours ------------------------------------------------------------------------------------------------


def test_bursts_light_the_led_for_their_share_and_only_they_are_read() -> None:
    made = bench("ready", led_duty=10.0, late=False)
    made.run(15.0)
    hours, begin_ns = made.look()["led_seconds"], made.now_ns()
    data, _, _ = made.run(100.0)
    lit = (made.look()["led_seconds"] - hours) / (0.8 * (made.now_ns() - begin_ns) / 1e9)
    assert lit == pytest.approx(0.10, abs=0.02)
    read = readings(data)
    gaps = np.diff(read["monotonic_ns"]) / 1e9
    assert 0.05 < len(read) / 1000.0 < 0.3 and gaps.max() > 3.0
    full = read[read["window_s"] > 0.9]
    assert len(full) >= 5 and full["signal_v"].std() < 1e-3 * full["signal_v"].mean()


def test_led_hours_outlive_a_run(tmp_path: Any) -> None:
    from stirbar.core.led_hours import LedHours

    first = LedHours(str(tmp_path), 0)
    first.update(1800.0, 30 * SECOND)
    assert first.hours == 0.5 and LedHours(str(tmp_path), 0).hours == 0.0  # not written before a minute has passed
    first.update(3600.0, 60 * SECOND)
    assert LedHours(str(tmp_path), 0).hours == pytest.approx(1.0)
    (tmp_path / "led_hours").write_text("many\n")
    with pytest.raises(ValueError, match="led_hours holds no number"):
        LedHours(str(tmp_path), 0)
