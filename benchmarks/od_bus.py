"""What each board's rate plan asks of its I2C bus, and what it gives: `python -m benchmarks.od_bus`.

Per profile: the share of the time that the bits of the plan keep the bus busy, as docs/hardware.md counts them, and
what a whole worker counts on a fake board (tests/board_fake.py); and the standard error of a reading for white noise of
100 uV a conversion at 860/s, from the plan's price in B0. Beside it the field's way on the same converter: 40 single
conversions of each photodiode in 0.85 s, once in 5 s, with the light on all the while.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from stirbar import Worker as Client
from stirbar.core.bench import Row, child_environment
from stirbar.core.bus_plan import ADS_WRITE_BITS, LED_BITS, READ_BITS, bus_share, discarded, noise_over_b0
from stirbar.core.client import WorkerUnreachable
from stirbar.core.profiles import Profile, load_profile

from .od_field_method import CONVERSIONS_S, INTERVAL_S, SAMPLES, SPAN_S
from .od_report import main

if TYPE_CHECKING:
    from board_fake import FakeBench

BOARDS = ("hat1.0", "hat1.1", "hat1.2", "model1.5", "xr1.5", "eyespy")
TESTS = pathlib.Path(__file__).parents[1] / "tests"
NOISE_UV = 100.0  # of one conversion at 860/s; goes with the root of the conversion's rate
RATE_HZ = 860.0
ANGLES = {1: "REF", 2: "90", 3: "45", 4: "135"}
TRIMMED = 2  # smallest and largest
CAPTURE_LIMIT_PERCENT = 99.9


class Counted(NamedTuple):
    """What a worker counted over some seconds on a fake board."""

    busy: float  # share of the time
    conversions_hz: float  # of each photodiode
    missed: float  # share of the conversions
    half_cycle: int
    noise_over_b0: float


def noise_uv(conversion_hz: float) -> float:
    """Of one conversion: white noise averaged for longer is less."""
    return NOISE_UV * math.sqrt(conversion_hz / RATE_HZ)


def field_bus_s(profile: Profile) -> float:
    """Bus time of one reading of one photodiode: per sample a start and the answer, and the LED twice."""
    clock_hz = profile.get("i2c", "clock_hz")
    sample = READ_BITS + (0 if profile.get("photodiode.2", "chip") == "rp2040" else ADS_WRITE_BITS + READ_BITS)
    return (SAMPLES * sample + 2 * LED_BITS[profile.get("led", "chip")]) / clock_hz


def field_noise_uv(profile: Profile, seconds: float) -> float:
    """Standard error of the field's mean over so many seconds for white noise; dark batch and sine add to it."""
    converter = "RP2040" if profile.get("photodiode.2", "chip") == "rp2040" else "ADS111x"
    readings = max(1.0, seconds / INTERVAL_S)
    return noise_uv(1 / CONVERSIONS_S[converter]) / math.sqrt((SAMPLES - TRIMMED) * readings)


def plan_noise_uv(profile: Profile, seconds: float) -> float:
    """Standard error of a reading over so many seconds by the plan."""
    section = "photodiode.2"
    noise = noise_uv(min(RATE_HZ, profile.get(section, "conversion_hz")))
    b0 = noise / math.sqrt(profile.get(section, "rate_hz") * seconds)
    return float(profile.get("plan", "noise_over_b0") * b0)


def half_cycles(profile: Profile) -> str:
    """The range of k that the profile leaves, and its price in B0."""
    section = "photodiode.2"
    lost = discarded(profile, section)
    low = max(profile.get(section, "half_cycle_low"), lost + 1)
    high = profile.get(section, "half_cycle_high")
    price = f"{noise_over_b0(low, lost):.2f} to {noise_over_b0(high, lost):.2f} B0"
    return f"k {low} to {high}, {lost} lost to each change: {price}"


def wire(profile: Profile, bench: FakeBench) -> None:
    """Each photodiode sees the OD LED, with noise."""
    led = (profile.get("led", "address"), profile.get("led", profile.get("led", "ir")))
    for n in profile.channels():
        section = f"photodiode.{n}"
        at = (profile.get(section, "address"), profile.get(section, "input") or 0)
        bench.led_to_photodiode(led, at, 0.2)
        bench.set_noise(*at, 1e-6 * NOISE_UV)
        if profile.get(section, "chip") == "rp2040":
            bench.write(bench.chip(at[0], "window_us"), 8192)
            bench.write(bench.chip(at[0], "ema_ppm"), 250_000)


@contextlib.contextmanager
def running_worker(profile: Profile, bench: FakeBench, directory: str) -> Iterator[Client]:
    """A worker on that board; a client that it has answered."""
    settings = [
        "unit.name=w",
        f"unit.hardware={profile.name}",
        f"unit.runtime_directory={directory}",
        f"unit.data_directory={directory}/data",
        "loop.config.lock_memory=0",
        *(f"od_config.photodiode_channel.{n}={text * (n in profile.channels())}" for n, text in ANGLES.items()),
    ]
    command = [sys.executable, "-m", "stirbar.core.cli", "worker"]
    for setting in settings:
        command += ["--set", setting]
    environment = child_environment(command) | bench.environment
    worker = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = Client(f"ipc://{directory}/w", timeout_s=10)
    try:
        for _ in range(60):
            with contextlib.suppress(WorkerUnreachable):
                client.command("describe", timeout_s=0.5)
                break
        yield client
    finally:
        client.close()
        worker.terminate()
        worker.wait(20)


def counted(profile: Profile, seconds: float) -> Counted:
    """What a worker on a fake board counts, looked at for so long once it chops as it means to."""
    sys.path.insert(0, str(TESTS))
    from board_fake import fake_board

    smoothed = profile.get("photodiode.2", "pace") == "smoothed"
    with (
        fake_board(profile.name) as bench,
        tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as directory,
    ):
        wire(profile, bench)
        with running_worker(profile, bench, directory) as client:
            time.sleep(9.0 if smoothed else 3.0)
            first, begun = client.status()["counters"], time.monotonic()
            time.sleep(seconds)
            last, elapsed = client.status()["counters"], time.monotonic() - begun
            settings = client.settings()
    got = {key: last[key] - first[key] for key in last}
    made = got["conversions"] + got["missed_conversions"]
    return Counted(
        got["bus_busy_ms"] / (1e3 * elapsed),
        got["conversions"] / elapsed / len(profile.channels()),
        got["missed_conversions"] / max(1, made),
        settings[("od_reading", "half_cycle")],
        settings[("od_reading", "noise_over_b0")],
    )


def rows_of(profile: Profile, here: Counted) -> list[Row]:
    """One board's figures."""
    name, field_share = profile.name, len(profile.channels()) * field_bus_s(profile) / INTERVAL_S
    busy = (
        f"{100 * bus_share(profile, 0.10):.0f} % with converters 10 % fast; a worker on a fake board counts"
        f" {100 * here.busy:.1f} % with what the system calls add; the field's way {100 * field_share:.1f} %"
    )
    distinct = f"the field's way {SAMPLES / INTERVAL_S:g}/s, all within {SPAN_S} s of {INTERVAL_S:g}"
    captured = (
        f"a worker on a fake board: {here.conversions_hz:.1f}/s of each photodiode; a figure of wall time: repeat it on"
        " a machine with nothing else to do"
    )
    error = (
        f"{plan_noise_uv(profile, 1):.2f} uV over 1 s; the field's mean of {SAMPLES - TRIMMED}, room light and hum left"
        f" in: {field_noise_uv(profile, 5):.2f} uV"
    )
    chosen = f"{half_cycles(profile)}; the worker chose k = {here.half_cycle}: {here.noise_over_b0:.2f} B0"
    return [
        Row(f"{name}: bus busy with the bits of the plan", 100 * bus_share(profile), "%", 80.0, note=busy),
        Row(
            f"{name}: distinct conversions of each photodiode",
            profile.get("photodiode.2", "rate_hz"),
            "/s",
            note=distinct,
        ),
        Row(
            f"{name}: captured of the plan",
            100 * (1 - here.missed),
            "%",
            CAPTURE_LIMIT_PERCENT,
            at_least=True,
            note=captured,
        ),
        Row(f"{name}: expected noise over B0", profile.get("plan", "noise_over_b0"), "", note=chosen),
        Row(f"{name}: standard error over 5 s", plan_noise_uv(profile, 5), "uV", note=error),
    ]


def measure(quick: bool) -> tuple[list[Row], dict]:
    rows, details = [], {}
    for name in BOARDS:
        profile = load_profile(name)
        details[name] = counted(profile, 4.0 if quick else 15.0)
        rows += rows_of(profile, details[name])
    return rows, details


if __name__ == "__main__":
    main(__doc__, measure, None)
