"""The loop and its small parts: ring, histogram, sleep policy, task driver, virtual time, commands, counters."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.core import events, records
from stirbar.core.config import load_config
from stirbar.core.twin import Twin
from stirbar.rt.core_arrays import (
    HISTOGRAM_BINS,
    Histogram,
    Ring,
    SleepPolicy,
    drive_tasks,
    histogram_bin,
    histogram_edges_ns,
)
from stirbar.rt.loop import Loop, cpu_mask

SECOND = 1_000_000_000
FOREVER = 2**63 - 1
SAMPLING, ACTUATORS = 0, 1


def virtual_loop(*settings: tuple[str, str, str]) -> Loop:
    return Loop(load_config(overrides=[("unit", "simulate", "1"), *settings]), virtual=True)


# --- ring ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 2**32 - 3])
def test_a_ring_keeps_order_and_says_when_it_is_full(start: int) -> None:
    ring = Ring(4, 8, start)
    items = [bytes([i]) * 4 for i in range(8)]
    assert all(ring.push(item) for item in items) and len(ring) == 8
    assert not ring.push(b"late") and not ring.push(b"late") and ring.dropped == 2
    assert [ring.pop() for _ in range(3)] == items[:3]
    assert ring.push(b"next") and len(ring) == 6
    assert ring.pop_many(100) == b"".join(items[3:]) + b"next"
    assert ring.pop() is None and ring.pop_many(4) == b"" and len(ring) == 0 and ring.dropped == 2


@pytest.mark.parametrize("capacity", [0, 3, 12])
def test_a_ring_of_another_size_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Ring(8, capacity)


@given(steps=st.lists(st.integers(-20, 20), max_size=200), start=st.sampled_from([0, 2**31 - 5, 2**32 - 7]))
@settings(max_examples=100, deadline=None)
def test_a_ring_behaves_as_a_bounded_queue(steps: list[int], start: int) -> None:
    """Positive steps push so many, negative ones pop so many."""
    ring, queue, number, dropped = Ring(4, 16, start), [], 0, 0
    for step in steps:
        for _ in range(max(step, 0)):
            item = number.to_bytes(4, "little")
            number += 1
            assert ring.push(item) == (len(queue) < 16)
            if len(queue) < 16:
                queue.append(item)
            else:
                dropped += 1
        if step < 0:
            taken, queue = queue[:-step], queue[-step:]
            assert ring.pop_many(-step) == b"".join(taken)
        assert (len(ring), ring.dropped) == (len(queue), dropped)


@pytest.mark.parametrize(("capacity", "batch", "count"), [(1, 1, 20_000), (8, 1, 300_000), (1024, 64, 3_000_000)])
def test_two_threads_lose_and_reorder_nothing(capacity: int, batch: int, count: int) -> None:
    ring = Ring(8, capacity, 2**32 - count // 2)
    producer = threading.Thread(target=ring.produce, args=(7, count))
    producer.start()
    assert ring.consume(7, count, batch) == 0
    producer.join()
    assert len(ring) == 0


# --- histogram -------------------------------------------------------------------------------------------------------


def test_bins_are_an_eighth_of_an_octave_and_leave_no_gap() -> None:
    edges = histogram_edges_ns()
    assert len(edges) == HISTOGRAM_BINS and edges[0] == 0 and np.all(np.diff(edges) > 0)
    assert list(edges[:20]) == [*range(16), 16, 18, 20, 22]
    width = np.diff(edges[8:]) / edges[8:-1]
    assert width.max() <= 0.125 and width[8:].min() >= 1 / 16
    for index, edge in enumerate(edges.tolist()):
        assert histogram_bin(edge) == index
        assert histogram_bin(max(edge - 1, 0)) == max(index - 1, 0)
    assert histogram_bin(FOREVER) == HISTOGRAM_BINS - 1


@given(st.lists(st.integers(0, 2**40), max_size=300))
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_numpy_and_add_up(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    expected, _ = np.histogram(array, bins=[*histogram_edges_ns().tolist(), 2**62])
    whole, first, second = Histogram(), Histogram(), Histogram()
    whole.add(array)
    first.add(array[: len(array) // 3])
    second.add(array[len(array) // 3 :])
    assert np.array_equal(whole.counts, expected)
    assert np.array_equal(first.counts + second.counts, whole.counts)
    assert whole.worst_ns == max([0, *values]) and whole.early == 0


def test_waking_early_is_counted_apart() -> None:
    histogram = Histogram()
    histogram.add(np.array([-1, -(2**40), 5], dtype=np.int64))
    assert histogram.early == 2 and histogram.counts.sum() == 1 and histogram.worst_ns == 5


# --- sleep policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late_ns", "target_ns", "overruns"),
    [
        (0, 1010, 0),
        (1, 1010, 0),
        (9, 1010, 0),
        (10, 1020, 1),  # the next target is now: it was missed
        (11, 1020, 1),
        (19, 1020, 1),
        (20, 1030, 2),
        (1005, 2010, 100),
    ],
)
def test_a_late_task_skips_whole_periods_and_keeps_its_phase(late_ns: int, target_ns: int, overruns: int) -> None:
    policy = SleepPolicy(1000, 10)
    assert policy.next(1000 + late_ns) == target_ns
    assert policy.overruns == overruns


@given(
    period=st.integers(1000, 10**10),
    first=st.integers(0, 10**15),
    lateness=st.lists(st.integers(0, 10**11), min_size=1, max_size=50),
)
def test_targets_stay_on_the_grid_and_every_period_is_run_or_counted(
    period: int, first: int, lateness: list[int]
) -> None:
    policy = SleepPolicy(first, period)
    for late in lateness:
        now = policy.target_ns + late
        target = policy.next(now)
        assert now < target <= now + period and (target - first) % period == 0
    assert (policy.target_ns - first) // period == len(lateness) + policy.overruns


def test_following_another_clock_never_aims_at_the_past() -> None:
    policy = SleepPolicy(0, 0)
    assert policy.until(150, 100) == 150
    assert policy.until(50, 100) == 100
    assert policy.for_ever() == FOREVER and policy.overruns == 0


# --- task driver -----------------------------------------------------------------------------------------------------


def tasks(*rows: tuple[int, int, int], until: int):
    """Rows of (first, period, cost)."""
    columns = [np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)]
    return drive_tasks(*columns, until, 10_000)


def test_tasks_run_in_order_of_their_targets_and_the_table_decides_ties() -> None:
    woken, task, ticks, overruns, lateness, end = tasks((0, 30, 0), (0, 10, 0), (5, 20, 0), until=30)
    assert list(zip(woken.tolist(), task.tolist(), strict=True)) == [
        (0, 0), (0, 1), (5, 2), (10, 1), (20, 1), (25, 2), (30, 0), (30, 1)
    ]  # fmt: skip
    assert ticks.tolist() == [2, 4, 2] and not overruns.any() and lateness[0] == 8 and end == 30


def test_a_long_task_makes_others_late_once_and_is_counted() -> None:
    woken, task, ticks, overruns, lateness, _ = tasks((0, 100, 35), (0, 10, 1), until=99)
    assert overruns.tolist() == [0, 3]  # 10, 20 and 30 passed while the first ran until 35
    quick = woken[task == 1]
    assert quick.tolist()[:4] == [35, 40, 50, 60] and ticks[1] + overruns[1] == 10
    assert lateness[histogram_bin(35)] == 1 and lateness.sum() == ticks.sum()


def test_the_driver_ends_at_the_limit_even_when_nothing_is_due() -> None:
    woken, _, ticks, _, _, end = tasks((500, 10, 0), until=100)
    assert len(woken) == 0 and ticks.tolist() == [0] and end == 100


# --- the whole loop in virtual time ----------------------------------------------------------------------------------


def run(loop: Loop, seconds: float, steps: int = 10) -> bytes:
    """All readings of some virtual seconds, with OD, stirring and temperature on."""
    loop.push(SAMPLING, 1, events.COMMAND_OD_START, 0, 0, 80.0)
    loop.push(SAMPLING, 2, events.COMMAND_TEMPERATURE, 0, 0, 1.0)
    loop.push(ACTUATORS, 3, events.COMMAND_STIR_RPM, 0, 0, 500.0)
    start, parts = loop.now_ns(), []
    for step in range(1, steps + 1):
        loop.run_until(start + round(seconds * SECOND * step / steps))
        parts += [batch[4] for batch in sorted(loop.drain_readings())]
    return b"".join(parts)


def readings(data: bytes, stream: str) -> np.ndarray:
    array = np.frombuffer(data, np.dtype(records.READING_DTYPE))
    return array[array["stream"] == records.STREAM_IDS[stream]]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    first, again, other = (run(virtual_loop(("simulation", "seed", seed)), 20.0) for seed in "112")
    assert first == again
    assert readings(first, "od2")["value"].tolist() != readings(other, "od2")["value"].tolist()


def test_how_often_the_host_looks_changes_no_reading() -> None:
    one, many = (run(virtual_loop(), 10.0, steps) for steps in (2, 100))
    for stream in ("od2", "rpm", "temperature"):
        assert readings(one, stream).tobytes() == readings(many, stream).tobytes()


def test_virtual_time_stops_where_it_is_told_and_ticks_exactly() -> None:
    loop = virtual_loop(("loop.config", "control_period_ms", "10"))
    start = loop.now_ns()
    for seconds in (0.0, 0.005, 1.0, 2.5):
        loop.run_until(start + round(seconds * SECOND))
        assert loop.now_ns() == start + round(seconds * SECOND)
    # idle: actuators every 10 ms, housekeeping every 20 ms, temperature every second; each also at 0
    assert loop.counters()["ticks"] == 251 + 126 + 3
    assert loop.counters()["overruns"] == 0
    assert sum(count for _, _, count in loop.lateness(ACTUATORS)["counts"]) == 251
    assert loop.lateness(ACTUATORS)["worst_ns"] == 0


def test_readings_come_on_time_with_every_sequence_number() -> None:
    data = run(virtual_loop(), 30.0)
    od, rpm, celsius = (readings(data, stream) for stream in ("od2", "rpm", "temperature"))
    assert len(od) == pytest.approx(290, abs=10) and len(rpm) == pytest.approx(29, abs=2) and len(celsius) >= 29
    for stream in (od, rpm, celsius):
        assert np.array_equal(stream["sequence"], np.arange(len(stream)))
        assert np.all(stream["version"] == records.RECORD_VERSION)
        assert np.all(stream["flags"] & records.FLAGS["simulated"])
    assert rpm["value"][-1] == pytest.approx(500, rel=0.02)


def test_counters_add_up() -> None:
    loop = virtual_loop()
    run(loop, 30.0)
    counters = loop.counters()
    assert counters["ring_drops"] == counters["bus_errors"] == counters["overruns"] == 0
    # two photodiodes at the converter's own rate, which is up to 10 % off 860 a second
    assert 0.9 * 51_600 < counters["conversions"] + counters["missed_conversions"] < 1.1 * 51_600
    assert counters["missed_conversions"] <= 0.001 * counters["conversions"]
    ticks = sum(count for thread in (0, 1) for _, _, count in loop.lateness(thread)["counts"])
    assert ticks == counters["ticks"]


def test_a_full_ring_drops_the_newest_and_counts_them() -> None:
    """Nobody drains for three minutes: the ring holds 512 readings, the rest are counted and leave a hole."""
    loop = virtual_loop()
    loop.push(SAMPLING, 1, events.COMMAND_OD_START, 0, 0, 80.0)
    loop.run_until(loop.now_ns() + 180 * SECOND)
    drained = [batch for batch in loop.drain_readings() if batch[0] == records.STREAM_IDS["od2"]]
    assert [(count, first) for _, _, count, first, _ in drained] == [(512, 0)]
    made = loop.sequences()[records.STREAM_IDS["od2"]]
    assert loop.counters()["ring_drops"] == made - 512 > 0
    loop.run_until(loop.now_ns() + SECOND)
    assert loop.drain_readings()[0][3] == made


# --- commands --------------------------------------------------------------------------------------------------------


def answers(loop: Loop) -> dict[int, tuple[int, float]]:
    """Answers to commands since the last call: {id: (event code, limit)}."""
    loop.run_until(loop.now_ns() + SECOND // 10)
    done = (events.EVENT_COMMAND_DONE, events.EVENT_COMMAND_REFUSED)
    return {argument: (code, value) for _, value, argument, code, _ in loop.drain_events() if code in done}


def test_every_command_is_answered_once() -> None:
    loop = virtual_loop()
    commands = {
        1: (SAMPLING, events.COMMAND_EXPERIMENT, 0, 3, 0.0),
        2: (ACTUATORS, events.COMMAND_EXPERIMENT, 0, 3, 0.0),
        3: (SAMPLING, events.COMMAND_OD_START, 0, 0, 80.0),
        4: (SAMPLING, events.COMMAND_BLANK, 1, 0, 0.01),
        5: (SAMPLING, events.COMMAND_LED, 0, 0, 50.0),
        6: (SAMPLING, events.COMMAND_TRACE, 0, 0, 1.0),
        7: (ACTUATORS, events.COMMAND_TRACE, 0, 0, 1.0),
        8: (ACTUATORS, events.COMMAND_STIR_RPM, 0, 0, 500.0),
        9: (ACTUATORS, events.COMMAND_STIR_DUTY, 0, 0, 30.0),
        10: (ACTUATORS, events.COMMAND_STIR_STOP, 0, 0, 0.0),
        11: (SAMPLING, events.COMMAND_TEMPERATURE, 0, 0, 1.0),
        12: (SAMPLING, events.COMMAND_SIMULATION, 0, 0, 10.0),
        13: (SAMPLING, events.COMMAND_OD_STOP, 0, 0, 0.0),
    }
    for identifier, (thread, *rest) in commands.items():
        assert loop.push(thread, identifier, *rest)
    assert answers(loop) == dict.fromkeys(commands, (events.EVENT_COMMAND_DONE, 0.0))
    assert answers(loop) == {}


@pytest.mark.parametrize(
    "command",
    [
        (SAMPLING, 0, 0, 0, 0.0),
        (SAMPLING, 99, 0, 0, 0.0),
        (SAMPLING, events.COMMAND_STIR_RPM, 0, 0, 500.0),  # of the other thread
        (SAMPLING, events.COMMAND_BLANK, 4, 0, 0.0),
        (SAMPLING, events.COMMAND_SIMULATION, 0, 9999, 0.0),
        (SAMPLING, events.COMMAND_SIMULATION, 0, -1, 0.0),
        (SAMPLING, events.COMMAND_SIMULATION, 0, 0, float("nan")),
        (ACTUATORS, events.COMMAND_OD_START, 0, 0, 80.0),
        (ACTUATORS, events.COMMAND_STIR_RPM, 0, 0, 1e9),
        (ACTUATORS, events.COMMAND_STIR_RPM, 0, 0, float("nan")),
        (ACTUATORS, events.COMMAND_STIR_DUTY, 0, 0, 101.0),
        (ACTUATORS, events.COMMAND_STIR_DUTY, 0, 0, -1.0),
    ],
)
def test_a_command_outside_its_limits_is_refused_and_changes_nothing(command: tuple) -> None:
    loop = virtual_loop()
    loop.push(command[0], 77, *command[1:])
    assert answers(loop)[77][0] == events.EVENT_COMMAND_REFUSED
    assert loop.counters()["conversions"] == 0 and loop.counters()["bus_errors"] == 0


def test_commands_beyond_the_ring_are_refused_at_once() -> None:
    loop = virtual_loop()
    taken = [loop.push(SAMPLING, i, events.COMMAND_EXPERIMENT, 0, 0, 0.0) for i in range(1, 71)]
    assert taken == [True] * 64 + [False] * 6
    # the ring of events holds 64 answers
    assert len(answers(loop)) == 64


def test_what_is_measured_carries_the_experiment_of_its_time() -> None:
    loop = virtual_loop()
    loop.push(SAMPLING, 1, events.COMMAND_OD_START, 0, 0, 80.0)
    loop.run_until(loop.now_ns() + 5 * SECOND)
    loop.push(SAMPLING, 2, events.COMMAND_EXPERIMENT, 0, 1, 0.0)
    changed_ns = loop.now_ns()
    loop.run_until(changed_ns + 5 * SECOND)
    batches = [batch for batch in loop.drain_readings() if batch[0] == 2]
    assert [batch[1] for batch in batches] == [0, 1]
    first, second = (readings(batch[4], "od2") for batch in batches)
    # a command waits for the next housekeeping tick, 20 ms at most
    assert first["monotonic_ns"][-1] <= changed_ns + 20_000_000 < second["monotonic_ns"][1]
    assert first["sequence"][-1] + 1 == second["sequence"][0]


# --- the loop with real threads --------------------------------------------------------------------------------------


def test_processors_are_read_as_the_config_lists_them() -> None:
    assert [cpu_mask(text) for text in ("", "0", "2,3", "0,2-4")] == [0, 1, 12, 29]
    with pytest.raises(ValueError, match="processor 40"):
        cpu_mask("40")


def test_only_a_loop_in_virtual_time_is_run_by_hand() -> None:
    loop = Loop(load_config(overrides=[("unit", "simulate", "1")]))
    with pytest.raises(RuntimeError, match="virtual"):
        loop.run_until(0)
    loop.stop()
    loop.stop()


def test_a_worker_answers_counts_and_refuses(worker) -> None:
    from stirbar.core.client import CommandRefused

    assert worker.set("stirring", "target_rpm", 400) == 400
    with pytest.raises(CommandRefused) as refused:
        worker.set("stirring", "target_rpm", 1e6)
    assert refused.value.error["field"] == "target_rpm" and "limit" in refused.value.error
    with pytest.raises(CommandRefused, match="no command"):
        worker.command("explode")
    seen = set()
    for block in worker.stream("", timeout_s=10.0):
        seen.add(records.STREAMS[int(block["stream"][0])])
        if seen >= {"od2", "rpm", "temperature"}:
            break
    status = worker.status()
    assert status["counters"]["conversions"] > 0 and status["commands_refused"] == 2
    assert status["jobs"] == {
        "od_reading": "ready",
        "stirring": "ready",
        "temperature_automation": "ready",
        "leds": "disconnected",
        "bioreactor": "ready",
        "monitor": "ready",
    }


@pytest.mark.parametrize("slowness", [1.0, 4.0])
def test_a_simulated_bus_counts_its_transfers_and_their_time(slowness: float, tmp_path) -> None:
    """Two converters of 860/s, 29 bits of 10 us a read; and the LED's changes."""
    config = load_config(
        None,
        None,
        [
            ("unit", "simulate", "1"),
            ("unit", "hardware", "simulated"),
            ("simulation", "oscillator_spread_percent", "0"),
            ("simulation", "bus_slowness", str(slowness)),
        ],
    )
    twin = Twin(config, str(tmp_path))
    for _ in twin.run(5.0):
        pass
    before = twin.loop.counters()
    for _ in twin.run(10.0):
        pass
    counters = twin.loop.counters()
    reads = counters["conversions"] - before["conversions"]
    transfers = counters["bus_transfers"] - before["bus_transfers"]
    assert reads <= transfers < 1.3 * reads
    busy_ms = counters["bus_busy_ms"] - before["bus_busy_ms"]
    assert busy_ms == pytest.approx(slowness * 0.29 * reads, rel=0.25)
