"""The loop on a real board: readings from every board's converters, and what happens when a part of it fails."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator

import numpy as np
import pytest
from board_bench import Bench, board
from stirbar.core import events, records
from stirbar.core.config import load_config
from stirbar.core.profiles import Profile, load_profile
from stirbar.rt.loop import HardwareError, Loop

SAMPLING = 0
ANGLES = {1: "REF", 2: "90", 3: "45", 4: "135"}
VOLTS = 0.2  # that a photodiode gives for the LED at full code
FULL_CODE_SHARE = 204 / 255  # of it at 80 %
DARK_V = 0.02


def sensor(profile: Profile, channel: int) -> tuple[int, int]:
    """Address and input of a photodiode's converter."""
    section = f"photodiode.{channel}"
    return profile.get(section, "address"), profile.get(section, "input") or 0


def led(profile: Profile) -> tuple[int, int]:
    return profile.get("led", "address"), profile.get("led", profile.get("led", "ir"))


class Run:
    """A loop that measures on a bench; what it said is kept."""

    def __init__(self, bench: Bench, tmp_path: pathlib.Path, profile: Profile | None = None) -> None:
        self.profile = profile or load_profile(bench.profile)
        self.bench = bench
        self.events: list[tuple[int, float, int, int, int]] = []
        self.readings: dict[int, list[np.ndarray]] = {}
        for channel in self.profile.channels():
            at = sensor(self.profile, channel)
            bench.set_volts(*at, DARK_V)
            bench.set_noise(*at, 30e-6)
            bench.led_to_photodiode(led(self.profile), at, VOLTS)
        self.loop = Loop(load_config(overrides=self._settings(tmp_path)), profile=self.profile)
        self.loop.start()
        self.loop.push(SAMPLING, 1, events.COMMAND_OD_START, 0, 0, 80.0)
        self.loop.push(SAMPLING, 2, events.COMMAND_TEMPERATURE, 0, 0, 1.0)

    def _settings(self, tmp_path: pathlib.Path) -> list[tuple[str, str, str]]:
        channels = self.profile.channels()
        angles = {channel: angle if channel in channels else "" for channel, angle in ANGLES.items()}
        return [
            ("unit", "data_directory", str(tmp_path)),
            ("unit", "runtime_directory", str(tmp_path)),
            ("loop.config", "lock_memory", "0"),
            *[("od_config.photodiode_channel", str(channel), angle) for channel, angle in angles.items()],
        ]

    def drain(self) -> None:
        self.events += self.loop.drain_events()
        for stream, _, _, _, data in self.loop.drain_readings():
            self.readings.setdefault(stream, []).append(np.frombuffer(data, np.dtype(records.READING_DTYPE)))

    def stream(self, name: str) -> np.ndarray:
        parts = self.readings.get(records.STREAM_IDS[name])
        return np.concatenate(parts) if parts else np.empty(0, np.dtype(records.READING_DTYPE))

    def until(self, condition, seconds: float = 20.0) -> None:
        """Let the loop run until the condition holds; fails when that takes too long."""
        end = time.monotonic() + seconds
        while True:
            self.drain()
            if condition():
                return
            assert time.monotonic() < end, f"{self.loop.counters()} {self.events}"
            time.sleep(0.05)

    def said(self, name: str, source: str) -> int:
        """How often an event about a stream came."""
        found = [event for event in self.events if event[4] == records.STREAM_IDS[source]]
        return [events.EVENTS[event[3]][0] for event in found if event[3] in events.EVENTS].count(name)

    def announced(self, name: str) -> int:
        """How often an event came, whatever it is about."""
        return [events.EVENTS[event[3]][0] for event in self.events if event[3] in events.EVENTS].count(name)

    def good(self, name: str) -> np.ndarray:
        """Readings of a photodiode that see the light as it is."""
        rows = self.stream(name)
        return rows[np.abs(rows["signal_v"] / (VOLTS * FULL_CODE_SHARE) - 1) < 2e-3]


@contextlib.contextmanager
def running(bench: Bench, tmp_path: pathlib.Path, profile: Profile | None = None) -> Iterator[Run]:
    """A loop that measures; at the end it is stopped, and its light is off."""
    made = Run(bench, tmp_path, profile)
    try:
        yield made
    finally:
        made.loop.stop()
    assert bench.led_code(*led(made.profile)) in (None, 0)


@pytest.fixture
def run(bench: Bench, tmp_path: pathlib.Path):
    with running(bench, tmp_path) as made:
        yield made


@board("hat1.0", travel=True)
@board("hat1.1", travel=True)
@board("hat1.2", travel=True)
@board("model1.5", travel=True)
@board("xr1.5", travel=True)
@board("eyespy", travel=True)
def test_every_board_measures(run: Run, bench: Bench) -> None:
    bench.set_celsius(0x4F, 37.0)
    run.until(lambda: len(run.good("od2")) >= 3 and len(run.stream("temperature")) >= 2)
    assert run.stream("temperature")["value"][-1] == 37.0
    assert run.loop.missing == []
    full_scale_v = 3.3 if run.profile.get("photodiode.2", "chip") == "rp2040" else 1.024
    assert run.loop.volts_per_code()[2] == full_scale_v / 32768, "a client reads raw conversions in volts by this"
    counters = run.loop.counters()
    assert counters["bus_transfer_errors"] == counters["garbage"] == counters["bus_timeouts"] == 0
    assert counters["bus_transfers"] > 100 and counters["bus_busy_ms"] > 10


@board("48:ads1114,49:ads1114,4a:dac43608,4f:tmp1075", ready={0x48: 27, 0x49: 22}, bus_hz=400_000, travel=True)
def test_the_custom_example_measures(bench: Bench, tmp_path: pathlib.Path) -> None:
    bench.set_celsius(0x4F, 37.0)
    with running(bench, tmp_path, load_profile("custom-example")) as run:
        run.until(lambda: len(run.good("od2")) >= 3 and len(run.stream("temperature")) >= 2)
        assert run.loop.missing == [] and run.stream("temperature")["value"][-1] == 37.0
        counters = run.loop.counters()
        assert counters["bus_transfer_errors"] == counters["garbage"] == counters["ready_lost"] == 0


@board("hat1.0", travel=True, seldom=True)
@board("hat1.1", travel=True)
@board("hat1.2", travel=True, seldom=True)
@board("model1.5", travel=True, seldom=True)
@board("xr1.5", travel=True, seldom=True)
@board("eyespy", travel=True)
def test_slow_devices_cost_no_conversion(run: Run, bench: Bench) -> None:
    """Sensor and rail, and what is read back every ten seconds; a minute where sleeping takes no time."""
    rail = (0x48, 3) if 0x2C not in bench.chips else (0x2C, 1)
    bench.set_volts(*rail, 0.134 * 12.0)
    run.until(lambda: len(run.good("od2")) >= 3)
    begun = time.monotonic()
    run.until(lambda: time.monotonic() - begun > (60 if bench.where == "kernel" else 3), 90)
    counters = run.loop.counters()
    print({name: counters[name] for name in ("conversions", "missed_conversions", "slow_reads_forced", "bus_busy_ms")})
    assert run.loop.rail_v() == pytest.approx(12.0, rel=0.02)
    assert counters["bus_transfer_errors"] == counters["garbage"] == 0
    if bench.where == "kernel":  # the fake's clock is the busy machine's
        assert counters["slow_reads_forced"] == counters["missed_conversions"] == 0
        assert len(run.stream("temperature")) >= 59


@board("eyespy", travel=True)
@board("hat1.0", travel=True)
@board("hat1.1", travel=True)
def test_a_converter_is_unplugged_and_put_back(run: Run, bench: Bench) -> None:
    address, _ = sensor(run.profile, 2)
    run.until(lambda: len(run.good("od2")) >= 2)
    bench.unplug(address)
    run.until(lambda: run.said("sensor_lost", "od2") == 1)
    run.until(lambda: bool((run.stream("od2")["flags"] & records.FLAGS["sensor_lost"]).any()))
    errors = run.loop.counters()["bus_transfer_errors"]
    begun = time.monotonic()
    run.until(lambda: time.monotonic() - begun > 2.2)
    assert run.loop.counters()["bus_transfer_errors"] - errors < 60  # asked again once a second
    count = len(run.good("od2"))
    bench.replug(address)
    run.until(lambda: run.said("sensor_back", "od2") == 1)
    run.until(lambda: len(run.good("od2")) >= count + 3)


@board("xr1.5", travel=True)
@board("hat1.0", travel=True)
@board("hat1.1", travel=True)
def test_a_converter_that_is_absent_at_the_start_is_lost_and_comes(bench: Bench, tmp_path: pathlib.Path) -> None:
    """Its readings say so from the start, the others measure, and it is asked again until it is there."""
    address, _ = sensor(load_profile(bench.profile), 2)
    bench.unplug(address)
    with running(bench, tmp_path) as run:
        assert any(f"{address:#04x}" in sentence for sentence in run.loop.missing)
        run.until(lambda: len(run.stream("od2")) >= 2)
        assert (run.stream("od2")["flags"] & records.FLAGS["sensor_lost"]).all()
        assert run.said("sensor_lost", "od2") == 1
        for name in [f"od{n}" for n in run.profile.channels() if n > 2 and sensor(run.profile, n)[0] != address]:
            run.until(lambda name=name: len(run.good(name)) >= 3)
            if bench.where == "kernel":  # the fake's clock is the busy machine's: a silent converter's may not be found
                assert run.said("sensor_lost", name) == 0
        assert {event[2] for event in run.events if event[3] == events.EVENT_COMMAND_DONE} == {1, 2}
        bench.replug(address)
        run.until(lambda: run.said("sensor_back", "od2") == 1)
        run.until(lambda: len(run.good("od2")) >= 3)


@board("xr1.5", travel=True)
@board("hat1.0", travel=True)
def test_a_light_that_is_absent_at_the_start_is_tried_until_it_shines(bench: Bench, tmp_path: pathlib.Path) -> None:
    profile = load_profile(bench.profile)
    address, _ = led(profile)
    bench.unplug(address)
    with running(bench, tmp_path) as run:
        errors = run.loop.counters()["bus_transfer_errors"]
        run.until(lambda: run.loop.counters()["bus_transfer_errors"] > errors + 4)  # each is tried twice
        assert {event[2] for event in run.events if event[3] == events.EVENT_COMMAND_DONE} == {1, 2}
        assert len(run.good("od2")) == 0
        bench.replug(address)
        run.until(lambda: len(run.good("od2")) >= 3)


@board("eyespy", travel=True)
def test_a_bus_that_is_held_stalls_nobody_for_long(run: Run, bench: Bench) -> None:
    run.until(lambda: len(run.good("od2")) >= 2)
    bench.stick_sda(9)
    run.until(lambda: run.said("sensor_lost", "od2") == 1)
    ticks = run.loop.counters()["ticks"]
    begun = time.monotonic()
    run.until(lambda: time.monotonic() - begun > 2.2)
    counters = run.loop.counters()
    assert counters["bus_timeouts"] <= 5  # of 20 ms each
    assert counters["ticks"] - ticks > 100  # commands and the actuator thread go on
    count = len(run.good("od2"))
    bench.stick_sda(0)
    run.until(lambda: len(run.good("od2")) >= count + 3)
    assert run.said("sensor_back", "od2") == 1


@board("eyespy", travel=True)
def test_a_held_bus_that_can_be_freed_costs_one_time_out(bench: Bench, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "recovery.ini"
    path.write_text(f"[profile]\ntitle = x\nextends = {bench.profile}\n[i2c]\nrecovery = lines\n")
    with running(bench, tmp_path, load_profile(str(path))) as run:
        run.until(lambda: len(run.good("od2")) >= 2)
        bench.stick_sda(5)
        run.until(lambda: run.loop.counters()["bus_recoveries"] == 1)
        count = len(run.good("od2"))  # whichever device met it was lost for a second
        run.until(lambda: len(run.good("od2")) >= count + 15)
        counters = run.loop.counters()
        assert (counters["bus_recoveries"], counters["bus_timeouts"]) == (1, 1)


@board("hat1.0", travel=True)
def test_a_sensor_that_stretches_for_ever_leaves_the_converters_alone(run: Run, bench: Bench) -> None:
    run.until(lambda: len(run.good("od2")) >= 2 and len(run.stream("temperature")) >= 1)
    bench.stretch(0x4F, 60_000)
    run.until(lambda: run.said("sensor_lost", "temperature") == 1)
    count = len(run.good("od2"))
    run.until(lambda: len(run.good("od2")) >= count + 5)
    assert run.said("sensor_lost", "od2") == 0
    bench.stretch(0x4F, 0)
    run.until(lambda: run.said("sensor_back", "temperature") == 1)


@board("hat1.0", travel=True)
@board("model1.5", travel=True)
def test_a_driver_of_the_light_that_is_unplugged_is_named_and_comes_back(run: Run, bench: Bench) -> None:
    """Only the driver: the converters answer, and nothing says that they do not."""
    address, _ = led(run.profile)
    run.until(lambda: len(run.good("od2")) >= 2)
    bench.unplug(address)
    run.until(lambda: run.announced("light_lost") == 1)
    lost_ns = run.events[-1][0]
    run.until(lambda: (run.stream("od2")["monotonic_ns"] > lost_ns + 4_500_000_000).any())
    rows = run.stream("od2")
    rows = rows[rows["monotonic_ns"] > lost_ns + 1_500_000_000]  # after the last window with light
    assert len(rows) >= 3 and np.isnan(rows["value"]).all()
    assert (rows["flags"] == records.FLAGS["dark"]).all()
    assert run.announced("sensor_lost") == 0
    # asked again once a second; a darkness that is owed, each 50 ms
    assert run.loop.counters()["bus_transfer_errors"] < 400
    count = len(run.good("od2"))
    bench.replug(address)
    run.until(lambda: run.announced("light_back") == 1)
    run.until(lambda: len(run.good("od2")) >= count + 3)
    assert run.announced("light_lost") == 1


@board("hat1.0", travel=True)
def test_one_change_of_the_light_that_is_refused_costs_half_a_cycle(run: Run, bench: Bench) -> None:
    run.until(lambda: len(run.good("od2")) >= 2)
    bench.fail("i2c-1/49", 2)  # each is tried twice
    errors = run.loop.counters()["bus_errors"]
    run.until(lambda: run.loop.counters()["bus_errors"] > errors)
    count = len(run.stream("od2"))
    run.until(lambda: len(run.stream("od2")) >= count + 15)
    assert run.announced("light_lost") == 0
    assert not (run.stream("od2")["flags"][2:] & (records.FLAGS["unchopped"] | records.FLAGS["dark"])).any()


@board("hat1.0", travel=True)
def test_the_light_goes_off_at_the_end_even_after_failures(run: Run, bench: Bench) -> None:
    run.until(lambda: len(run.good("od2")) >= 1)
    bench.fail("i2c-1/49", 4)  # twice two: the last words are said three times
    # the fixture looks at the light


@board("hat1.0", travel=True)
def test_a_board_that_lacks_a_photodiode_says_which(bench: Bench, tmp_path: pathlib.Path) -> None:
    config = load_config(overrides=[("od_config.photodiode_channel", "4", "135")])
    with pytest.raises((HardwareError, ValueError), match=r"photodiode 4.*photodiode_channel\] 4"):
        Loop(config, profile=load_profile("hat1.0"))


def test_a_board_needs_a_profile() -> None:
    with pytest.raises(HardwareError, match=r"hardware profile.*--simulate"):
        Loop(load_config())


@board("hat1.0", travel=True)
def test_a_board_in_use_is_refused_in_one_sentence(run: Run, bench: Bench, tmp_path: pathlib.Path) -> None:
    with pytest.raises(HardwareError, match=r"another worker.* has /dev/i2c-1"):
        Loop(load_config(), profile=load_profile("hat1.0"))
    run.until(lambda: len(run.good("od2")) >= 1)
