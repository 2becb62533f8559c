"""A silent converter's clock from the light's own edges: lock, accuracy, numbering, loss and return; NumPy twins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pilot_bench import MS, Board, Run, run
from sampled_run import QUIET, SECOND, SampledRun
from stirbar.core.records import FLAGS
from stirbar.rt import pilot_arrays
from stirbar.rt.pilot_arrays import PilotChain

PERIOD_NS = 1e9 / 860


def errors(result: Run, low_s: float, high_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Phase (ns) and relative rate of the clock less the truth, between two times after the lock."""
    time = np.array(result.time_s) - result.lock_s
    inside = (time >= low_s) & (time < high_s)
    assert inside.sum() > 3
    return np.array(result.phase_ns)[inside], np.array(result.rate_error)[inside]


# --- finding it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_error", np.linspace(-0.1, 0.1, 9))
@pytest.mark.parametrize("read_ns", [0.09 * MS, 0.29 * MS, 0.6 * MS])
def test_the_clock_is_found_at_any_rate_and_bus_speed(rate_error: float, read_ns: float) -> None:
    result = run(Board(rate_error=rate_error, read_ns=read_ns, seed=int(1000 * (1 + rate_error))), 1.0)
    assert result.lock_s < 0.2 and result.relocks == 0 and result.misnumbered == 0
    phase, rate = errors(result, 0.4, 1.0)
    assert np.abs(phase).max() < 100e3 and np.abs(rate).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "board", "within_s"),
    [
        ("10 mV at 1.024 V", Board(swing=320), 0.2),
        ("1 mV", Board(swing=32), 0.3),
        ("0.5 mV", Board(swing=16), 0.5),
        ("hum a tenth of the light", Board(swing=320, hum=32), 0.3),
        ("hum three tenths of it", Board(swing=320, hum=96), 0.7),
        ("5 bubbles a second", Board(bubbles_per_s=5), 0.3),
        ("40 bubbles a second", Board(bubbles_per_s=40), 1.0),
        ("ambient light steps 16 times a second", Board(step_s=0.06), 0.3),
        ("late 1 time in 20", Board(late_often=0.05), 0.3),
        ("light settles in 0.1 ms", Board(tau_ns=1e5, settle_ns=690_000), 0.2),
    ],
)
def test_the_clock_is_found_in_bad_light(name: str, board: Board, within_s: float) -> None:
    for seed in range(8):
        board.seed = seed
        board.rate_error = np.random.default_rng(seed).uniform(-0.1, 0.1)
        result = run(board, 1.5)
        assert result.lock_s < within_s, (name, seed)
        assert result.relocks == 0 and result.misnumbered == 0
        assert np.abs(errors(result, 0.0, 2.0)[1]).max() < 0.01, "locked to a wrong rate"


@pytest.mark.parametrize("swing", [0.0, 1.0, 4.0])
def test_without_light_it_says_that_it_does_not_know(swing: float) -> None:
    result = run(Board(swing=swing), 5.0)
    assert result.made == 0 and np.isnan(result.lock_s)


# --- holding it ------------------------------------------------------------------------------------------------------


def test_phase_and_rate_after_ten_seconds() -> None:
    phases, rates = [], []
    for seed in range(6):
        result = run(Board(seed=seed, rate_error=0.02 * seed - 0.05), 12.0, every=5)
        phase, rate = errors(result, 9.5, 11.5)
        phases.append(phase)
        rates.append(rate)
        assert result.capture >= 0.999 and result.misnumbered == 0
        assert np.std(phase) < 2e3  # what all edges have in common is not seen, and does not matter
        # the filter's own opinion is right within a factor of two
        sd = np.array(result.end_sd_ns)[-200:]
        assert np.all((sd > 0.5e3) & (sd < 5e3))
    assert np.abs(np.concatenate(phases)).max() < 20e3 and np.ptp(np.concatenate(phases)) < 10e3
    assert np.sqrt(np.mean(np.concatenate(rates) ** 2)) < 1.5e-6


@pytest.mark.parametrize("rate_error", [-0.1, -0.05, 0.0, 0.05, 0.1])
def test_nearly_every_conversion_is_read_with_a_late_thread(rate_error: float) -> None:
    result = run(Board(rate_error=rate_error, seed=7), 25.0)
    assert result.made > 18_000
    assert result.capture >= 0.999 and result.misnumbered == 0
    counters = result.counters
    # every hole is counted: what was made is what was read and what is said to be missed
    assert result.made - result.captured == counters["missed"]


def test_a_slow_sweep_of_the_whole_range_is_followed() -> None:
    result = run(Board(wobble=0.1, wobble_s=120.0, seed=2), 60.0)
    assert result.capture >= 0.999 and result.misnumbered == 0 and result.relocks == 0
    assert np.abs(errors(result, 1.0, 60.0)[0]).max() < 60e3


@pytest.mark.parametrize(
    ("drift_per_s", "phase_ns", "rate"), [(1e-6, 20e3, 3e-6), (1e-5, 25e3, 2e-5), (1e-4, 40e3, 1.5e-4)]
)
def test_drift_of_the_oscillator_is_followed(drift_per_s: float, phase_ns: float, rate: float) -> None:
    result = run(Board(drift_per_s=drift_per_s, seed=3), 15.0)
    phase, relative = errors(result, 5.0, 15.0)
    assert np.abs(phase).max() < phase_ns and np.abs(relative).max() < rate and result.relocks == 0


def test_a_settling_light_path_is_only_a_delay() -> None:
    quick, slow = (run(Board(tau_ns=tau, settle_ns=settle, seed=4), 4.0) for tau, settle in ((0, 0), (1e5, 690_000)))
    unknown = run(Board(tau_ns=1e5, settle_ns=0, seed=4), 4.0)
    there = [np.mean(errors(result, 1.0, 4.0)[0]) for result in (quick, slow, unknown)]
    assert abs(there[1] - there[0]) < 3e3  # known: taken off
    assert -1.1e5 < there[2] - there[0] < -0.8e5  # not known: its time constant early, all the time
    assert unknown.capture > 0.999


# --- losing it -------------------------------------------------------------------------------------------------------


def test_it_coasts_through_constant_light() -> None:
    result = run(Board(dark=(8.0, 18.0), seed=5), 22.0, every=5)
    assert result.relocks == 0 and result.misnumbered == 0 and result.capture > 0.999
    time, sd = np.array(result.time_s), np.array(result.end_sd_ns)
    phase, _ = errors(result, 16.0, 17.8)
    assert np.abs(phase).max() < 60e3
    assert sd[(time > 17.5) & (time < 18)].min() > 3 * sd[(time > 7.5) & (time < 8)].max()
    assert sd[-1] < 5e3


def test_too_long_without_an_edge_is_a_lost_lock_and_is_found_again() -> None:
    result = run(Board(dark=(4.0, 80.0), seed=6), 84.0)
    last_known = max(t for t in result.time_s if t < 80.0)
    assert 10.0 < last_known < 60.0
    assert min(t for t in result.time_s if t > 80.0) < 80.4
    assert result.relocks == 1 and np.abs(errors(result, 82.0, 84.0)[0]).max() < 40e3


def test_another_phase_is_noticed() -> None:
    """The converter was started anew behind the pilot's back: half a period off, at the same rate."""
    board = Board(seed=8)
    board.jump = (2.0, 0.5)
    result = run(board, 4.0)
    assert result.relocks == 1
    after = [t for t in result.time_s if t > 2.0]
    assert np.abs(errors(result, 2.0, 4.0)[0]).max() < 60e3 and min(t for t in after if t > 2.3) < 2.8


def test_reads_near_the_end_of_a_conversion_are_given_up() -> None:
    chain = locked_chain()
    newest, missed = chain.index, chain.counters()["missed"]
    end = chain.end_ns(newest + 2)
    assert chain.read(end + 10_000, 0) == pilot_arrays.UNSURE
    assert chain.read(end - 10_000, 0) == pilot_arrays.UNSURE
    assert chain.read(end + int(0.3 * PERIOD_NS), 0) == pilot_arrays.NEW
    assert chain.index == newest + 2 and chain.counters()["missed"] == missed + 1
    assert chain.read(end + int(0.5 * PERIOD_NS), 0) == pilot_arrays.REPEATED
    assert chain.counters()["unsure"] >= 2 and chain.counters()["repeated"] >= 1


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"rate of 0\.0"):
        PilotChain(0.0)
    with pytest.raises(ValueError, match="-1 ns"):
        PilotChain(860.0, -1)
    with pytest.raises(ValueError, match="2 times, 1 codes"):
        PilotChain(860.0).reads([1, 2], [3])


# --- twins -----------------------------------------------------------------------------------------------------------


def locked_chain() -> PilotChain:
    """A chain that was fed an ideal converter until it locked."""
    chain, now, edges = PilotChain(860.0), 0.0, []
    rng = np.random.default_rng(0)
    while not chain.locked:
        now = max(now + 1e3, min(chain.next_ns(), chain.next_edge_ns))
        if now >= chain.next_edge_ns:
            now += rng.uniform(0, 40e3)
            edges.append(now)
            chain.edge(int(now) - 20_000, int(now) + 20_000)
        number = np.floor(now / PERIOD_NS)
        share = level_of(edges, (number - 1) * PERIOD_NS, number * PERIOD_NS)
        chain.read(int(now), int(8000 * share))
    return chain


def level_of(edges: list[float], begin: float, end: float) -> float:
    """Share of [begin, end] with the light on; it goes on at edges 0, 2, 4..."""
    total = 0.0
    for on, off in zip(edges[::2], [*edges[1::2], np.inf], strict=False):
        total += max(0.0, min(off, end) - max(on, begin))
    return total / (end - begin)


def test_the_filter_is_kalmans() -> None:
    """State and covariance against the textbook's matrices, while the residuals are ordinary."""
    chain = locked_chain()
    rng = np.random.default_rng(1)
    covariance = chain.covariance()
    period = chain.period_ns
    for _ in range(200):
        steps = int(rng.integers(3, 9))
        variance = chain.edge_sd_ns**2
        q = (1e-6 * period) ** 2 * period * 1e-9
        move = np.array([[1.0, steps], [0.0, 1.0]])
        wander = q * np.array([[steps**3 / 3, steps**2 / 2], [steps**2 / 2, steps]])
        covariance = move @ covariance @ move.T + wander
        total = covariance[0, 0] + variance
        residual = rng.uniform(-0.5, 0.5) * np.sqrt(total)
        gain = covariance[:, 0] / total
        covariance = covariance - np.outer(gain, covariance[0])
        period += gain[1] * residual
        chain.correct(steps, residual)
        assert chain.period_ns == pytest.approx(period, rel=1e-12)
        assert chain.covariance() == pytest.approx(covariance, rel=1e-9)


def moment_twin(gone: np.ndarray, seen: np.ndarray, tolerance: float, noise: float) -> complex:
    """First circular moment of the likelihood of 16 phases: every read against the model's three levels."""
    misfits = []
    phases = (np.arange(16) + 0.5) / 16
    for phase in phases:
        low, high = 0.03 + tolerance * phase, 0.03 + tolerance * (1 + phase)
        misfit = 0.0
        for u, y in zip(gone, seen, strict=True):
            levels = []
            if u < phase + low:
                levels.append(0.0)
            if phase - low <= u <= phase + 1 + high and (u < phase + low or u >= phase + low):
                levels.append(phase)
            if u >= phase + 1 - high and u >= phase + low:
                levels.append(1.0)
            misfit += min((y - level) ** 2 for level in levels)
        misfits.append(misfit)
    weight = np.exp(-(np.array(misfits) - min(misfits)) / (2 * noise))
    return complex(np.sum(weight * np.exp(2j * np.pi * phases)) / np.sum(weight))


def test_the_periodogram_is_the_plain_sum_over_edges() -> None:
    """Five half-cycles of exact reads: the chain's sums against every edge's moment, turned for every rate."""
    nominal, period = PERIOD_NS, PERIOD_NS / 1.04
    chain = PilotChain(860.0)
    edges = np.cumsum(np.array([5.0, 4.0, 6.5, 6.5, 4.0, 4.0])) * nominal + np.array([0, 3, 1, 7, 5, 2]) * 7e4
    times = np.arange(0.2, 31.0, 0.27) * nominal
    ends = np.floor(times / period) * period
    codes = np.array([round(6400 * level_of(list(edges), end - period, end)) for end in ends])
    rates = chain.periodogram()[0]
    expected = np.zeros(len(rates), dtype=complex)
    cursor = 0
    for edge in edges:
        while times[cursor] < edge:
            chain.read(int(times[cursor]), int(codes[cursor]))
            cursor += 1
        chain.edge(int(edge), int(edge))
    tolerance = 52 * 0.0022
    settled = (2 + 2.2 * tolerance) * nominal
    levels, noise = [], 1.0
    for begin, end in zip([0.0, *edges], edges, strict=False):
        inside = (times > begin + settled) & (times < end)
        levels.append(np.mean(codes[inside]))
    for number in range(5):
        begin, end = edges[number], edges[number + 1]
        inside = (times > begin) & (times <= begin + settled) & (times < end)
        noise = chain_noise(codes, times, [0.0, *edges], settled, number + 2)
        step = levels[number + 1] - levels[number]
        blur = (noise + 1 / 12) * 1.5 / step**2 + 0.05**2
        moment = moment_twin(
            (times[inside] - begin) / nominal, (codes[inside] - levels[number]) / step, tolerance, blur
        )
        expected = expected * 0.96875 + moment * np.exp(2j * np.pi * begin * 1e-9 * rates)
    sums = chain.periodogram()[1]
    assert sums == pytest.approx(expected, abs=1e-3)
    assert rates[np.argmax(np.abs(sums))] == pytest.approx(1e9 / period, rel=0.005)


def chain_noise(codes: np.ndarray, times: np.ndarray, edges: list[float], settled: float, halves: int) -> float:
    """Variance of settled reads, from 1, by quarters of each half-cycle's own."""
    noise = 1.0
    for begin, end in list(itertools.pairwise(edges))[:halves]:
        inside = (times > begin + settled) & (times < end)
        noise += (np.var(codes[inside], ddof=1) - noise) * 0.25
    return noise


# --- in the worker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_error", ["-10", "0", "10"])
def test_a_silent_board_is_as_good_as_one_with_ready_lines(rate_error: str) -> None:
    """Two silent ADS1114 (model 1.5) beside two with ALERT/RDY, on the same light."""
    vial = QUIET | {"oscillator_error_percent": rate_error}
    silent, ready = (SampledRun(name, simulation=vial).run(44.0) for name in ("model1.5", "simulated"))
    for run_ in (silent, ready):
        assert run_.readings()["monotonic_ns"][0] - run_.start_ns < 0.5 * SECOND
        assert run_.loop.counters()["missed_conversions"] == 0
    rate = 860 * (1 + float(rate_error) / 100)
    assert [value for _, name, _, value in silent.events if name == "rate_locked"] == pytest.approx(
        [rate] * 2, rel=3e-3
    )
    quiet, noisy = silent.readings(low_s=4.0), ready.readings(low_s=4.0)
    assert len(quiet) == len(noisy)
    assert quiet["used"].mean() == pytest.approx(noisy["used"].mean(), rel=0.02)
    # the median: seconds before the hum is tracked have errors ten times as large
    assert np.median(quiet["se_instrument"]) / np.median(noisy["se_instrument"]) == pytest.approx(1.0, abs=0.05)
    assert np.std(quiet["value"]) < 1.5 * np.std(noisy["value"])
    assert quiet["value"].mean() == pytest.approx(noisy["value"].mean(), rel=5e-4)
    assert not np.any(quiet["flags"] & FLAGS["gap"])


def test_a_silent_converter_that_is_unplugged_comes_back() -> None:
    board = SampledRun("model1.5", simulation=QUIET).run(3.0)
    board.set("adc2_fault", 1)
    board.run(6.0)
    assert board.times("sensor_lost") and np.all(board.readings(low_s=4.0)["flags"] & FLAGS["sensor_lost"])
    board.set("adc2_fault", 0)
    board.run(10.0)
    assert len(board.times("sensor_back")) == 1
    after = board.readings(low_s=8.5)
    assert len(after) >= 10 and after["value"] == pytest.approx(board.readings(high_s=3.0)["value"][-1], rel=1e-3)


def test_a_reference_that_is_plugged_in_later_finds_its_clock_beside_the_masters() -> None:
    board = SampledRun("model1.5", simulation=QUIET | {"oscillator_error_percent": "7"})
    board.set("adc1_fault", 1)  # in the tick of the start, before anything is known of it
    board.run(4.0)
    assert not board.times("rate_locked", 1) and len(board.times("rate_locked", 2)) == 1
    board.set("adc1_fault", 0)
    board.run(9.0)
    rates = [value for _, name, channel, value in board.events if name == "rate_locked" and channel == 1]
    assert len(rates) == 1 and rates[0] == pytest.approx(860 * 1.07, rel=3e-3)
    assert np.isfinite(board.readings(low_s=8.0)["reference_v"]).all()


def test_light_that_is_out_for_a_minute_is_a_lost_sensor_that_returns() -> None:
    board = SampledRun("model1.5", simulation=QUIET).run(3.0)
    board.set("led_dead", 1)
    board.run(63.0)
    assert board.times("sensor_lost")
    board.set("led_dead", 0)
    board.run(70.0)
    assert board.readings(low_s=67.0)["value"] == pytest.approx(board.readings(high_s=3.0)["value"][-1], rel=0.02)
