"""The contract of the two benches: the fake board does what the simulator kernel does, and both what the chips do."""

from __future__ import annotations

import errno
import fcntl
import glob
import itertools
import math
import os
import pathlib
import statistics
import struct
import threading
import time

import pytest
from board_bench import board
from board_uapi import (
    FALLING,
    GET_CHIPINFO,
    INPUT,
    OUTPUT,
    PULL_UP,
    RISING,
    I2c,
    Lines,
    raises,
    wait_for,
)

READY = 27
pytestmark = board("all", ready={0x48: READY})

ADC, DAC, TMP, MCU = 0x48, 0x49, 0x4F, 0x2C
RATES = (8, 16, 32, 64, 128, 250, 475, 860)
FULL_SCALES = (6.144, 4.096, 2.048, 1.024, 0.512, 0.256)
START, SINGLE, QUIET = 0x8000, 0x0100, 0x0003
ON_AIN0 = 0x4000  # single-ended; + gain << 9, + rate << 5


@pytest.fixture
def bus():
    with I2c() as it:
        it.set_timeout(100)
        yield it


def single_shot(bench, bus: I2c, config: int):
    """The conversion that a start makes."""
    before = bench.number("board/i2c-1/48/nconv")
    bus.put(ADC, 1, config | START | SINGLE)
    wait_for(lambda: bus.get(ADC, 1) & START)
    (conversion,) = [c for c in bench.conversions(ADC) if c.number > before]
    assert bus.get(ADC, 0) == conversion.code & 0xFFFF
    return conversion


def ready_mode(bus: I2c) -> None:
    bus.put(ADC, 2, 0)
    bus.put(ADC, 3, 0x8000)


def continuous(bench, bus: I2c, count: int, config: int = ON_AIN0 | 1 << 9 | 7 << 5 | QUIET):
    """So many conversions of free running, without the first."""
    before = bench.number("board/i2c-1/48/nconv")
    bus.put(ADC, 1, config)

    def made():
        return [c for c in bench.conversions(ADC) if c.number > before + 1][:count]

    wait_for(lambda: len(made()) == count, 5 + count / RATES[config >> 5 & 7])
    bus.put(ADC, 1, SINGLE | QUIET)
    return made()


# --- what is there ---------------------------------------------------------------------------------------------------


def test_every_chip_of_the_board_acknowledges_and_no_other(bench, bus):
    found = []
    for address in range(0x08, 0x78):
        try:
            bus.quick(address)
        except OSError as error:
            assert error.errno == errno.EREMOTEIO
        else:
            found.append(address)
    assert found == sorted(bench.chips)


@board("hat1.0")
@board("xr1.5")
def test_boards_of_the_field(bench, bus):
    version = pathlib.Path("/proc/device-tree/hat/product_ver").read_text().rstrip("\0")
    assert version == {"hat1.0": "0x0010", "xr1.5": "0x0011"}[bench.profile]
    assert pathlib.Path("/proc/device-tree/hat/vendor").read_text() == "Pioreactor Inc.\0"
    assert bench.hall == {"hat1.0": 25, "xr1.5": 21}[bench.profile]
    kinds = {"hat1.0": ["ads1115", "dac43608", "tmp1075"], "xr1.5": ["pico", *["ads1114"] * 4, "tmp1075"]}
    assert [bench.read(bench.chip(address, "type")) for address in sorted(bench.chips)] == kinds[bench.profile]
    for address in bench.chips:
        bus.quick(address)


def test_device_files(bench):
    assert glob.glob("/dev/gpiochip*") == ["/dev/gpiochip0"]
    assert glob.glob("/dev/i2c-*") == ["/dev/i2c-1"]
    assert os.access("/dev/i2c-1", os.R_OK | os.W_OK)
    assert not os.path.exists("/dev/i2c-7")
    with raises(errno.ENOENT):
        os.open("/dev/i2c-7", os.O_RDWR)
    chip = os.open("/dev/gpiochip0", os.O_RDWR)
    info = bytearray(68)
    fcntl.ioctl(chip, GET_CHIPINFO, info)
    name, label, lines = struct.unpack("32s32sI", info)
    assert (name.rstrip(b"\0"), label.rstrip(b"\0"), lines) == (b"gpiochip0", b"pinctrl-bcm2711", 58)
    os.close(chip)
    with Lines(5, INPUT) as line, I2c() as bus:
        for fd, refusal in ((line.fd, errno.EINVAL), (bus.fd, errno.ENOTTY)):
            with raises(refusal):
                fcntl.ioctl(fd, 0x5413, bytearray(8))  # TIOCGWINSZ


def test_registers_after_power_on(bench, bus):
    assert [bus.get(ADC, register) for register in range(4)] == [0, 0x8583, 0x8000, 0x7FFF]
    assert [bus.get(TMP, register) for register in (0, 1, 15)] == [0x1900, 0x00FF, 0x7500]
    assert [bus.get(DAC, register) for register in (1, 2, 8)] == [0x00FF, 0x0300, 0]
    assert bus.transfer((MCU, b"\x08"), (MCU, 2)) == [b"\x04\x00"]
    assert bench.register(ADC, 1) == 0x0583


def test_the_pointer_stays(bench, bus):
    bus.put(ADC, 3, 0x1234)
    assert bus.transfer((ADC, 2)) == [b"\x12\x34"]
    fcntl.ioctl(bus.fd, 0x703, ADC)
    os.write(bus.fd, b"\x02")
    assert os.read(bus.fd, 2) == b"\x80\x00"
    assert bus.transfer((ADC, 4)) == [b"\x80\x00\xff\xff"]


# --- converters ------------------------------------------------------------------------------------------------------


def test_codes_of_all_inputs_and_gains(bench, bus):
    for channel, volts in enumerate((0.1234567, 0.9, 2.5, 0.0311)):
        bench.set_volts(ADC, channel, volts)
        for gain, full_scale in enumerate(FULL_SCALES):
            code = round(round(volts, 6) / full_scale * 32768)
            got = single_shot(bench, bus, (4 + channel) << 12 | gain << 9 | 7 << 5 | QUIET)
            assert got.code == min(code, 32767)
    got = single_shot(bench, bus, 0 << 12 | 2 << 9 | 7 << 5 | QUIET)  # AIN0 against AIN1
    assert got.code == round((0.123457 - 0.9) / 2.048 * 32768)


@board("48:ads1114")
def test_an_ads1114_has_no_multiplexer(bench, bus):
    bench.set_volts(ADC, 0, 0.5)
    bench.set_volts(ADC, 1, 0.1)
    assert single_shot(bench, bus, 7 << 12 | 3 << 9 | 7 << 5 | QUIET).code == round(0.4 / 1.024 * 32768)


def test_a_conversion_takes_its_rates_time(bench, bus):
    for rate, ppm in ((4, 0), (5, 0), (6, 50_000), (7, 0), (7, 80_000), (7, -80_000)):
        bench.write("board/i2c-1/48/osc_ppm", ppm)
        got = single_shot(bench, bus, ON_AIN0 | 1 << 9 | rate << 5 | QUIET)
        assert got.end_ns - got.begin_ns == pytest.approx(1e9 / RATES[rate] * (1 + ppm * 1e-6), abs=2)


def test_the_os_bit_says_whether_it_converts(bench, bus):
    bus.put(ADC, 1, START | SINGLE | ON_AIN0 | QUIET)  # 8/s: 125 ms
    assert not bus.get(ADC, 1) & START
    wait_for(lambda: bus.get(ADC, 1) & START)
    assert bench.number("board/i2c-1/48/nconv") == bench.conversions(ADC)[-1].number


def test_new_settings_count_from_the_next_conversion(bench, bus):
    bench.set_volts(ADC, 0, 0.2)
    bench.set_volts(ADC, 1, 0.3)
    before = bench.number("board/i2c-1/48/nconv")
    bus.put(ADC, 1, ON_AIN0 | 1 << 9 | 4 << 5 | QUIET)  # 128/s
    time.sleep(0.02)
    bus.put(ADC, 1, 0x5000 | 2 << 9 | 7 << 5 | QUIET)
    changed = time.monotonic_ns()
    wait_for(lambda: bench.conversions(ADC)[-1].end_ns > changed + 20_000_000)
    made = [c for c in bench.conversions(ADC) if c.number > before]
    first = next(i for i, c in enumerate(made) if c.end_ns - c.begin_ns < 2_000_000)
    assert {c.code for c in made[:first]} == {round(0.2 / 4.096 * 32768)}
    assert {c.code for c in made[first:]} == {round(0.3 / 2.048 * 32768)}
    assert made[first - 1].begin_ns < changed
    assert made[first].begin_ns == made[first - 1].end_ns > changed - 2_000_000


@pytest.mark.parametrize(("rate", "ppm"), [(7, 0), (7, 80_000), (7, -80_000), (4, 0)])
def test_one_ready_edge_per_conversion_stamped_with_its_end(bench, bus, rate, ppm):
    bench.write("board/i2c-1/48/osc_ppm", ppm)
    ready_mode(bus)
    with Lines(READY, INPUT | FALLING, room=1024) as ready:
        bus.put(ADC, 1, ON_AIN0 | 1 << 9 | rate << 5)
        events = ready.events(400 if rate == 7 else 40)
        number_at = {c.end_ns: c.number for c in bench.conversions(ADC)}
        numbers = [number_at[event.stamp_ns] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(events)))
    assert [event.line_number for event in events] == list(range(1, len(events) + 1))
    period = (events[-1].stamp_ns - events[0].stamp_ns) / (len(events) - 1)
    assert period == pytest.approx(1e9 / RATES[rate] * (1 + ppm * 1e-6), abs=2)


def test_the_ready_pulse_is_8_us_long(bench, bus):
    ready_mode(bus)
    with Lines(READY, INPUT | FALLING | RISING, room=1024) as ready:
        bus.put(ADC, 1, ON_AIN0 | 7 << 5)
        events = ready.events(100)
    falling, rising = events[0::2], events[1::2]
    assert {event.id for event in falling} == {2}
    assert {event.id for event in rising} == {1}
    assert {b.stamp_ns - a.stamp_ns for a, b in zip(falling, rising, strict=False)} == {8000}


def test_ready_after_a_single_shot_stays_low_until_the_next(bench, bus):
    ready_mode(bus)
    with Lines(READY, INPUT | FALLING | RISING, room=64) as ready:
        for _ in range(3):
            bus.put(ADC, 1, START | SINGLE | ON_AIN0 | 7 << 5)
            assert ready.events(1)[0].stamp_ns == bench.conversions(ADC)[-1].end_ns
            assert bench.level(READY) == 0
            bus.put(ADC, 1, START | SINGLE | ON_AIN0 | 7 << 5)
            assert [event.id for event in ready.events(2)] == [1, 2]
            bus.put(ADC, 1, SINGLE | QUIET)
            assert ready.events(1)[0].id == 1


@pytest.mark.parametrize(("low", "high", "queue"), [(0, 0x8000, 3), (0, 0x7FFF, 0), (0x8000, 0x8000, 0)])
def test_no_ready_edges_unless_it_is_set_up(bench, bus, low, high, queue):
    made = bench.number("board/i2c-1/48/nedges")
    bus.put(ADC, 2, low)
    bus.put(ADC, 3, high)
    with Lines(READY, INPUT | FALLING) as ready:
        bus.put(ADC, 1, ON_AIN0 | 7 << 5 | queue)
        assert ready.events(seconds=0.1) == []
    assert bench.level(READY) == 1
    assert bench.number("board/i2c-1/48/nedges") == made


def test_time_passes_while_nobody_looks(bench, bus):
    bus.put(ADC, 1, ON_AIN0 | 7 << 5 | QUIET)
    before = bench.number("board/i2c-1/48/nconv")
    time.sleep(0.5)
    now_ns = time.monotonic_ns()
    last = bench.conversions(ADC)[-1]
    assert last.end_ns > now_ns - 2_000_000
    assert last.number - before >= 425


# --- light -----------------------------------------------------------------------------------------------------------


def led(bus: I2c, code: int, channel: int = 0) -> tuple[int, int]:
    """Sets an LED; the clock before and after."""
    before = time.monotonic_ns()
    bus.put(DAC, 8 + channel, code << 4)
    return before, time.monotonic_ns()


def test_dark_ambient_and_leds_add_up(bench, bus):
    bus.put(DAC, 1, 0xFC)
    bench.set_volts(ADC, 0, 0.010)
    bench.set_ambient(ADC, 0, 0.050)
    bench.led_to_photodiode((DAC, 0), (ADC, 0), 1.02, ((DAC, 1), 0.1275), ((MCU, 2), 0.255))
    for a, b, c in ((0, 0, 0), (255, 0, 0), (0, 255, 0), (10, 20, 30), (255, 255, 255)):
        led(bus, a)
        led(bus, b, 1)
        bus.transfer((MCU, bytes((2, c))))
        volts = 0.060 + a * 0.004 + b * 0.0005 + c * 0.001
        assert single_shot(bench, bus, ON_AIN0 | 1 << 9 | 7 << 5 | QUIET).code == round(volts / 4.096 * 32768)
    bus.put(DAC, 1, 0xFF)  # powered down
    assert bench.led_code(DAC, 0) is None
    assert single_shot(bench, bus, ON_AIN0 | 1 << 9 | 7 << 5 | QUIET).volts == pytest.approx(0.315, abs=1e-8)


def test_a_conversion_that_straddles_a_light_edge_is_its_mean(bench, bus):
    bus.put(DAC, 1, 0xFE)
    bench.led_to_photodiode((DAC, 0), (ADC, 0), 2.0)
    led(bus, 0)
    bus.put(ADC, 1, ON_AIN0 | 1 << 9 | 7 << 5 | QUIET)
    begun = bench.number("board/i2c-1/48/nconv")
    edges = []
    for i in range(24):
        edges.append(led(bus, 0 if i % 2 else 255))
        time.sleep(0.0093)
    wait_for(lambda: bench.conversions(ADC)[-1].end_ns > edges[-1][1] + 5_000_000)
    made = [c for c in bench.conversions(ADC) if c.number > begun]
    full = 255 * round(2.0 / 255 * 1e9) / 1e9
    for i, (before, after) in enumerate(edges):
        touched = [c for c in made if c.end_ns > before - 100_000 and c.begin_ns < after + 100_000]
        assert sum(0.002 * full < c.volts < 0.998 * full for c in touched) <= 1
        # Light that has come since the first of them began says when the edge was.
        area = sum(c.volts * (c.end_ns - c.begin_ns) for c in touched) / full
        on_ns = touched[-1].end_ns - area if i % 2 == 0 else touched[0].begin_ns + area
        # Four bytes of nine bits, start and stop, at 100 kHz: the light changes with the last of them.
        assert before + 370_000 <= on_ns <= after


def test_ambient_light_as_a_ramp(bench, bus):
    before = time.monotonic_ns()
    bench.set_ambient(ADC, 0, 0.1, 0.5)
    after = time.monotonic_ns()
    for c in continuous(bench, bus, 100):
        elapsed = (c.begin_ns + c.end_ns) / 2 - (before + after) / 2
        assert c.volts == pytest.approx(0.1 + 0.5 * elapsed / 1e9, abs=0.5 * (after - before) / 1e9 + 1e-6)


@pytest.mark.parametrize(("hz", "degrees"), [(50, 0), (60, 90), (120, -30)])
def test_hum_is_averaged_over_the_conversion(bench, bus, hz, degrees):
    bench.set_hum(ADC, 0, (0.1, hz, degrees), (0.02, 3 * hz, 45))

    def mean_sine(c, hz, degrees):
        half = math.pi * hz * (c.end_ns - c.begin_ns) / 1e9
        turns = hz * ((c.begin_ns + c.end_ns) // 2 % 1_000_000_000) / 1e9
        return math.sin(2 * math.pi * turns + math.radians(degrees)) * math.sin(half) / half

    for rate in (4, 7):
        for c in continuous(bench, bus, 50, ON_AIN0 | 1 << 9 | rate << 5 | QUIET):
            expected = 0.1 * mean_sine(c, hz, degrees) + 0.02 * mean_sine(c, 3 * hz, 45)
            assert c.volts == pytest.approx(expected, abs=2e-7)


def test_noise_is_white_and_falls_with_the_root_of_the_time(bench, bus):
    bench.set_noise(ADC, 0, 0.001)
    fast = [c.volts for c in continuous(bench, bus, 1200)]
    slow = [c.volts for c in continuous(bench, bus, 150, ON_AIN0 | 1 << 9 | 4 << 5 | QUIET)]
    assert statistics.stdev(fast) == pytest.approx(1e-3, rel=0.1)
    assert statistics.stdev(slow) == pytest.approx(1e-3 * math.sqrt(128 / 860), rel=0.25)
    pairs = sum(a * b for a, b in itertools.pairwise(fast)) / len(fast)
    assert abs(pairs) / statistics.pvariance(fast) < 0.12


def mcu_volts(bus: I2c, channel: int) -> float:
    raw = bus.transfer((MCU, bytes((4 + channel,))), (MCU, 2))[0]
    return int.from_bytes(raw, "little") / 4095 / 32 * 3.3


def test_the_microcontrollers_converter_sees_its_own_led(bench, bus):
    bench.set_volts(MCU, 1, 0.1)
    bench.led_to_photodiode((MCU, 0), (MCU, 1), 0.51)
    for code in (0, 100, 255):
        bus.transfer((MCU, bytes((0, code))))
        assert mcu_volts(bus, 1) == pytest.approx(0.1 + 0.51 * code / 255, abs=3e-5)


def test_the_microcontroller_averages_over_a_window(bench, bus):
    bench.led_to_photodiode((MCU, 0), (MCU, 0), 1.0)
    bench.write("board/i2c-1/2c/window_us", 20_000)
    time.sleep(0.045)
    bus.transfer((MCU, b"\x00\xff"))
    end = time.monotonic() + 0.06
    seen = [mcu_volts(bus, 0)]
    while time.monotonic() < end:
        seen.append(mcu_volts(bus, 0))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0, abs=1e-4)
    assert len(set(seen)) <= 3  # dark, one mixed window, lit


def test_temperature(bench, bus):
    for celsius in (-10.0, 0.0, 24.9375, 37.5, 84.98):
        bench.set_celsius(TMP, celsius)
        code = bus.get(TMP, 0)
        assert (code - 65536 if code & 0x8000 else code) / 256 == round(celsius * 16) / 16


# --- the bus ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [100_000, 400_000])
def test_a_transfer_takes_its_time_on_the_bus(bench, bus, hz):
    bench.write("board/i2c-1/bus_hz", hz)
    took = []
    for _ in range(20):
        before = time.monotonic_ns()
        bus.transfer((ADC, b"\x00"), (ADC, 2))
        took.append(time.monotonic_ns() - before)
    bits = 11 + 9 + 11 + 18
    assert min(took) >= bits * 1e9 / hz
    assert min(took) < bits * 1e9 / hz + 400_000


def test_transfers_of_two_threads_follow_each_other(bench, bus):
    bench.stretch(MCU, 5_000)

    def ask() -> None:
        with I2c() as mine:
            mine.transfer((MCU, 2))

    before = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - before >= 4 * 0.00529


def test_a_chip_that_is_pulled_out_and_put_back(bench, bus):
    bus.put(ADC, 1, 0x42E3)
    bus.put(DAC, 1, 0)
    led(bus, 200)
    bench.unplug(ADC)
    with raises(errno.EREMOTEIO):
        bus.get(ADC, 1)
    assert bus.get(TMP, 1) == 0x00FF
    assert bench.led_code(DAC, 0) == 200
    bench.unplug(DAC)
    bench.replug(DAC)
    bench.replug(ADC)
    assert bench.led_code(DAC, 0) is None
    assert bus.get(ADC, 1) == 0x8583


def test_operations_that_fail(bench, bus):
    bench.fail("i2c-1/48", 2, errno.EIO)
    for _ in range(2):
        with raises(errno.EIO):
            bus.get(ADC, 1)
        bus.get(TMP, 0)
    assert bus.get(ADC, 1) == 0x8583
    bench.fail("i2c-1", 1, errno.EAGAIN)
    with raises(errno.EAGAIN):
        bus.get(TMP, 0)
    seen = bench.number("board/i2c-1/48/count")
    bench.write("board/i2c-1/48/delay_us", 20_000)
    before = time.monotonic()
    bus.get(ADC, 1)
    assert time.monotonic() - before >= 0.020
    assert bench.number("board/i2c-1/48/count") == seen + 1


def test_a_stuck_bus_is_freed_by_nine_clocks(bench, bus):
    bus.put(ADC, 1, 0x42E3)
    bus.set_timeout(2)
    bench.stick_sda(9)
    for address in (ADC, TMP):
        before = time.monotonic()
        with raises(errno.ETIMEDOUT):
            bus.get(address, 1)
        assert 0.0199 <= time.monotonic() - before < 0.5
    with Lines(2, INPUT | PULL_UP) as sda, Lines(3, OUTPUT, 1) as scl:
        seen = []
        for _ in range(9):
            scl.set(0)
            scl.set(1)
            seen.append(sda.get())
    assert seen == [0] * 8 + [1]
    assert bus.get(ADC, 1) == 0x42E3


def test_clock_stretching(bench, bus):
    bench.stretch(MCU, 3_000)
    before = time.monotonic()
    bus.transfer((MCU, b"\x08"), (MCU, 2))
    assert time.monotonic() - before >= 0.00649
    bus.set_timeout(2)
    bench.stretch(MCU, 30_000)
    with raises(errno.ETIMEDOUT):
        bus.transfer((MCU, b"\x08"), (MCU, 2))
    assert bus.get(TMP, 1) == 0x00FF


def test_the_bench_records_transfers_and_edges(bench, bus):
    with Lines([5, 6], OUTPUT, 0) as lines, bench.record() as log:
        begun = time.monotonic_ns()
        bus.transfer((ADC, b"\x01"), (ADC, 2))
        bus.put(TMP, 1, 0x00FF)
        with raises(errno.EREMOTEIO):
            bus.get(0x33, 0)
        for bits in (0b01, 0b01, 0b10, 0b11):
            lines.set(bits, 0b11)
        ended = time.monotonic_ns()
    first, second, third = log.transfers
    assert (first.result, first.messages) == (2, [(ADC, False, b"\x01"), (ADC, True, b"\x85\x83")])
    assert (second.result, second.messages) == (1, [(TMP, False, b"\x01\x00\xff")])
    assert third.result == -errno.EREMOTEIO
    assert begun - 2_000 <= first.begin_ns < first.end_ns <= second.begin_ns + 2_000 < third.end_ns <= ended + 2_000
    assert first.end_ns - first.begin_ns >= 488_000
    assert [edge.level for edge in log.edges(5)] == [1, 0, 1]
    assert [edge.level for edge in log.edges(6)] == [1]
    assert third.end_ns <= log.edges(5)[0].stamp_ns + 2_000
    assert all(a.stamp_ns <= b.stamp_ns for a, b in itertools.pairwise(log.edges(5)))
    assert log.edges(5)[-1].stamp_ns <= ended + 2_000
