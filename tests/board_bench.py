"""Tests on a board: the same test on a fake at the system-call boundary and on the simulator kernel.

**In a test file**, say which board the tests need and take the fixture ``bench``::

    from board_bench import board

    pytestmark = board("eyespy", ready={0x48: 27})      # a module's, a class's or a test's; stacked: on each in turn

    def test_reads_its_temperature(bench):
        bench.write("board/i2c-1/4f/temp_mc", 37000)
        assert my_reader("/dev/i2c-1").celsius() == 37.0    # opens the device in this process, as on a Pi

Each such test becomes two items, ``[fake-eyespy]`` and ``[kernel-eyespy]`` (mark ``hil``). On the host, the first item
of a board starts the board and one more pytest on it, which runs all items of that board there, in its own process, and
hands the reports back (board_plugin.py):

- fake: a pytest under the interposer ``tests/fakeboard/shim.c``; programs that it starts inherit the board;
- kernel: ``$STIRBAR_HIL/run.sh -c eyespy -a 48:27 python -m pytest ..``; without STIRBAR_HIL these are skipped.

    python -m pytest tests/test_x.py                                     # fake, and kernel where STIRBAR_HIL is set
    STIRBAR_HIL=<folder of run.sh> python -m pytest -m hil tests/test_x.py       # kernel only
    python tests/board_bench.py -c eyespy python -m pytest -p no:cacheprovider tests/test_x.py -s    # by hand, in it

The last is ``$STIRBAR_HIL/run.sh -c eyespy ..``, with what a host with a newer processor than the kernel knows needs.

Fixtures wider than a function therefore live once per board, in that process. The bench is reset before each test.

**Without the fixture**, on the host: the program under test runs in a process of its own::

    with fake_board("hat1.0", plant=True) as bench:
        run_on(bench, "script.py")                      # or subprocess with env={**os.environ, **bench.environment}

**The bench** writes and reads paths as they are under /run/hil of the simulator kernel, whose README gives the units:
``bench.write("board/i2c-1/48/osc_ppm", 80000)``, ``bench.read("gpio/sim_gpio17/value")``; methods name what is often
wanted. Only the fake has ``board/i2c-1/2c/ema_ppm`` (the microcontroller's running mean: share of a new window,
parts per million) and the options of `fake_board` that the kernel's command line lacks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import pytest

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE / "fakeboard"
FOREVER = 0xFFFFFFFF  # operations, for fail_next
MOTOR, HEATER = 17, 18  # BCM lines that the stirrer and the heater follow

_ENVIRONMENT = "STIRBAR_BENCH"  # in the process on a fake: which one, as JSON


class Layout(NamedTuple):
    """A board of the field: chips on the bus, lines (BCM), version in the HAT's EEPROM."""

    chips: str
    hall: int = 21
    button: int = 4
    led: int = 23
    product_version: str = "0x0011"
    ready: tuple[tuple[int, int], ...] = ()


LAYOUTS = {
    "all": Layout("48:ads1115,49:dac43608,4f:tmp1075,2c:pico", 25, 24),
    "hat1.0": Layout("48:ads1115,49:dac43608,4f:tmp1075", 25, 24, product_version="0x0010"),
    "hat1.1": Layout("2c:pico,4f:tmp1075"),
    "hat1.2": Layout("2c:pico,4f:tmp1075", product_version="0x0012"),
    "model1.5": Layout("2c:pico,48:ads1114,49:ads1114,4f:tmp1075"),
    "xr1.5": Layout("2c:pico,48:ads1114,49:ads1114,4a:ads1114,4b:ads1114,4f:tmp1075"),
    "eyespy": Layout("48:ads1115,2c:pico,4f:tmp1075", ready=((0x48, 27),)),
}


def layout(name: str) -> Layout:
    """The layout of a board, or of a list of chips such as ``48:ads1114,4f:tmp1075``."""
    if ":" in name:
        return Layout(name, 25, 24)
    try:
        return LAYOUTS[name]
    except KeyError:
        known = ", ".join(LAYOUTS)
        raise ValueError(f"board {name!r}: none of {known}, nor a list such as 48:ads1115,4f:tmp1075") from None


class Conversion(NamedTuple):
    """One conversion that an ADS111x made."""

    number: int  # 1: the first since the board began
    begin_ns: int  # CLOCK_MONOTONIC
    end_ns: int
    volts: float  # mean of the input, before rounding
    code: int


class Bench:
    """The bench side of a board. Synchronization: one thread."""

    where = ""

    def __init__(self, name: str, ready: dict[int, int], environment: dict[str, str]) -> None:
        self.profile = name  # the board's name, or the list of its chips
        self.layout = layout(name)
        self.ready = ready  # address of a converter -> line of its ALERT/RDY
        self.environment = environment  # for processes that shall meet this board
        self.hall, self.button, self.led = self.layout.hall, self.layout.button, self.layout.led
        pairs = (item.split(":") for item in self.layout.chips.split(","))
        self.chips = {int(address, 16): kind for address, kind in pairs}

    def write(self, path: str, value: object) -> None:
        raise NotImplementedError

    def read(self, path: str) -> str:
        raise NotImplementedError

    def number(self, path: str) -> int:
        """What a path holds, as a whole number."""
        return int(self.read(path))

    # --- lines ---------------------------------------------------------------------------------------------------

    def drive(self, line: int, level: bool | int) -> None:
        """Sets what an input line reads."""
        self.write(f"gpio/sim_gpio{line}/pull", "pull-up" if level else "pull-down")

    def level(self, line: int) -> int:
        """The level of any line now."""
        return self.number(f"gpio/sim_gpio{line}/value")

    def strict_gpio(self, on: bool) -> None:
        """Whether a released output falls back to its pull (mainline); off: keeps its level (Raspberry Pi OS)."""
        raise NotImplementedError

    # --- chips ---------------------------------------------------------------------------------------------------

    def chip(self, address: int, name: str) -> str:
        """The path of something of a chip."""
        return f"board/i2c-1/{address:02x}/{name}"

    def unplug(self, address: int) -> None:
        """Takes a chip off the bus: it does not acknowledge, its outputs are dead."""
        self.write(self.chip(address, "unplugged"), 1)

    def replug(self, address: int) -> None:
        """Puts it back, as after power-on."""
        self.write(self.chip(address, "unplugged"), 0)

    def set_volts(self, address: int, channel: int, volts: float) -> None:
        """The dark level of a converter's input."""
        self.write(self.chip(address, f"ain{channel}_uv"), round(volts * 1e6))

    def set_ambient(self, address: int, channel: int, volts: float, volts_per_s: float = 0.0) -> None:
        """Room light on a converter's input from now on, a level or a ramp."""
        self.write(self.chip(address, f"ain{channel}_ambient_uv"), f"{round(volts * 1e6)} {round(volts_per_s * 1e6)}")

    def set_hum(self, address: int, channel: int, *tones: tuple[float, float, float]) -> None:
        """Sine waves on a converter's input: (volts of amplitude, Hz, degrees at CLOCK_MONOTONIC 0), at most four."""
        text = " ".join(f"{round(volts * 1e6)}:{round(hz * 1e3)}:{round(deg * 1e3)}" for volts, hz, deg in tones)
        self.write(self.chip(address, f"ain{channel}_tone"), text + "\n")

    def set_noise(self, address: int, channel: int, volts: float) -> None:
        """White noise on a converter's input: sigma of one conversion at 860/s."""
        self.write(self.chip(address, f"ain{channel}_noise_nv"), round(volts * 1e9))

    def led_to_photodiode(
        self, led: tuple[int, int], photodiode: tuple[int, int], volts: float, *more: tuple[tuple[int, int], float]
    ) -> None:
        """An LED output (address of its driver, channel) at full code gives so many volts on a converter's input.

        The converter's input is (address, channel). `more`: further LEDs on the same input, each with its volts;
        those of an earlier call are forgotten.
        """
        lights = [(led, volts), *more]
        text = " ".join(f"{address:x}:{channel}:{round(v / 255 * 1e9)}" for (address, channel), v in lights)
        self.write(self.chip(photodiode[0], f"ain{photodiode[1]}_led"), text + "\n")

    def led_code(self, address: int, channel: int) -> int | None:
        """Code on an output of an LED driver, None: powered down."""
        code = self.number(self.chip(address, f"dac{channel}"))
        return None if code < 0 else code

    def set_celsius(self, address: int, celsius: float) -> None:
        """Temperature of a TMP1075 that no heater model owns."""
        self.write(self.chip(address, "temp_mc"), round(celsius * 1000))

    def register(self, address: int, register: int) -> int:
        """A chip's register as the chip has it, without a transfer."""
        return int(self.read(self.chip(address, "regs")).splitlines()[register].split()[1], 16)

    def conversions(self, address: int) -> list[Conversion]:
        """The last 2048 conversions of an ADS111x."""
        rows = (row.split() for row in self.read(self.chip(address, "conversions")).splitlines())
        return [Conversion(int(n), int(a), int(b), int(nv) / 1e9, int(code)) for n, a, b, nv, code in rows]

    # --- faults --------------------------------------------------------------------------------------------------

    def fail(self, where: str, count: int = FOREVER, errno: int | None = None) -> None:
        """Fails the next operations of ``i2c-1``, of a chip (``i2c-1/48``) or of ``pwm``; 0 ends it."""
        if errno is not None:
            self.write(f"board/{where}/fail_errno", errno)
        self.write(f"board/{where}/fail_next", count)

    def stick_sda(self, clocks: int = 9) -> None:
        """A chip holds SDA low until SCL (line 3) was raised by hand so often; 0: it lets go."""
        self.write("board/i2c-1/sda_stuck", clocks)

    def stretch(self, address: int, microseconds: int) -> None:
        """A chip holds SCL low for so long in each message."""
        self.write(self.chip(address, "stretch_us"), microseconds)

    def plant(self) -> None:
        """The stirrer follows line 17 and drives the hall line; the heater follows line 18 and warms the TMP1075."""
        for name, value in (("hall", self.hall), ("gpio", MOTOR)):
            self.write(f"board/stir/{name}", value)
        self.write("board/heat/gpio", HEATER)
        self.write("board/heat/chip", 0x4F)

    # --- a fresh board -------------------------------------------------------------------------------------------

    def reset(self, plant: bool = False, bus_hz: int = 100_000, strict: bool = False) -> None:
        """Everything as at power-on, all chips in place, no light, no fault."""
        self.write("board/i2c-1/sda_stuck", 0)
        self.write("board/i2c-1/bus_hz", bus_hz)
        self.strict_gpio(strict)
        for where in ("i2c-1", "pwm", *(f"i2c-1/{address:02x}" for address in self.chips)):
            for name, value in (("fail_next", 0), ("fail_errno", 5 if where == "pwm" else 121), ("delay_us", 0)):
                self.write(f"board/{where}/{name}", value)
        self._reset_plant()
        for address, kind in self.chips.items():
            self._reset_chip(address, kind)
        for line in range(28):
            if line not in self.ready.values():
                self.drive(line, line in (2, 3, self.hall))
        if plant:
            self.plant()

    def _reset_plant(self) -> None:
        settings = {
            "stir": {"gpio": -1, "pwm": -1, "hall": -1, "full_mhz": 50_000, "dead_ppm": 100_000, "start_ppm": 150_000,
                     "tau_ms": 400, "jitter_us": 0, "magnets": 1, "stall": 1},
            "heat": {"chip": 0, "gpio": -1, "pwm": -1, "ambient_mc": 22_000, "full_mc": 30_000, "tau_ms": 600_000},
        }  # fmt: skip
        for which, values in settings.items():
            for name, value in values.items():
                self.write(f"board/{which}/{name}", value)
        self.write("board/stir/stall", 0)

    def _reset_chip(self, address: int, kind: str) -> None:
        inputs = {"ads1115": 4, "ads1114": 2, "pico": 4}.get(kind, 0)
        for channel in range(inputs):
            for name, value in (("uv", 0), ("noise_nv", 0), ("led", "\n"), ("tone", "\n"), ("ambient_uv", "0 0")):
                self.write(self.chip(address, f"ain{channel}_{name}"), value)
        more = {"ads1115": "osc_ppm", "ads1114": "osc_ppm", "pico": "window_us"}
        if kind in more:
            self.write(self.chip(address, more[kind]), 0)
        if kind == "tmp1075":
            self.set_celsius(address, 25)
        self.stretch(address, 0)
        self.unplug(address)
        self.replug(address)


# --- the fake --------------------------------------------------------------------------------------------------------


class FakeBench(Bench):
    """A board whose server runs at `directory`."""

    where = "fake"

    def __init__(self, name: str, ready: dict[int, int], directory: str, shim: str) -> None:
        inherited = os.environ.get("LD_PRELOAD", "")
        preload = inherited if shim in inherited else f"{shim} {inherited}".strip()
        super().__init__(name, ready, {"STIRBAR_BOARD": directory, "LD_PRELOAD": preload})
        self.environment[_ENVIRONMENT] = json.dumps([name, sorted(ready.items()), directory, shim])
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.connect(f"{directory}/control")

    def _ask(self, text: str) -> str:
        self._control.send(text.encode())
        result, _, answer = self._control.recv(1 << 20).decode().partition(" ")
        if not result:
            raise RuntimeError("the fake board has gone")
        if int(result):
            raise OSError(-int(result), os.strerror(-int(result)), text.split()[1])
        return answer

    def write(self, path: str, value: object) -> None:
        self._ask(f"W {path} {value}")

    def read(self, path: str) -> str:
        return self._ask(f"R {path}").strip()

    def strict_gpio(self, on: bool) -> None:
        self.write("board/strict", int(on))

    def reset(self, plant: bool = False, bus_hz: int = 100_000, strict: bool = False) -> None:
        super().reset(plant, bus_hz, strict)
        for address, kind in self.chips.items():
            if kind == "pico":
                self.write(self.chip(address, "ema_ppm"), 0)

    def close(self) -> None:
        self._control.close()


def build() -> pathlib.Path:
    """Compiles the fake board where that was not done yet; the folder of its server and its interposers."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the fake board")
    sources = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    root = HERE.parent / "build"
    if not os.access(root if root.exists() else HERE.parent, os.W_OK):
        root = pathlib.Path(tempfile.gettempdir()) / f"stirbar-{os.getuid()}"
    target = root / f"fakeboard-{digest}"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        made = pathlib.Path(tempfile.mkdtemp(dir=root))
        flags = [compiler, "-std=gnu11", "-O2", "-Wall"]
        preloaded = [SOURCES / "shim.c", SOURCES / "wide_state.c"]
        for source in preloaded:
            output = made / f"{source.stem}.so"
            subprocess.run([*flags, "-shared", "-fPIC", "-o", output, source, "-ldl", "-lpthread"], check=True)
        models = [source for source in sources if source.suffix == ".c" and source not in preloaded]
        subprocess.run([*flags, "-o", made / "server", *models, "-lm"], check=True)
        with contextlib.suppress(OSError):  # another process was quicker
            made.rename(target)
        shutil.rmtree(made, ignore_errors=True)
    return target


def ready_text(ready: dict[int, int]) -> str:
    """The wiring of ALERT/RDY as run.sh -a takes it."""
    return ",".join(f"{address:x}:{line}" for address, line in sorted(ready.items()))


@contextlib.contextmanager
def fake_board(
    board: str = "eyespy",
    ready: dict[int, int] | None = None,
    plant: bool = False,
    bus_hz: int = 100_000,
    strict: bool = False,
    **options: object,
) -> Iterator[FakeBench]:
    """A board for as long as the block runs; programs meet it with ``bench.environment``.

    `ready`: address of an ADS111x -> line of its ALERT/RDY. Further options: gpio_number, gpio_label, i2c_number,
    pwm_number, model (of the Pi), product_version ("" = no HAT), seed (of noise and jitter).
    """
    shape = layout(board)
    ready = dict(shape.ready) if ready is None else ready
    built = build()
    settings = {"chips": shape.chips, "hall": shape.hall, "product_version": shape.product_version, **options}
    settings.update(ready=ready_text(ready), plant=int(plant), bus_hz=bus_hz, strict=int(strict))
    # A short name: a socket's has at most 107 characters.
    directory = os.path.realpath(tempfile.mkdtemp(prefix="board-", dir="/tmp"))
    command = [str(built / "server"), directory, *(f"{key}={value}" for key, value in settings.items())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the fake board did not start: status {process.wait()}")
        with contextlib.closing(FakeBench(board, ready, directory, str(built / "shim.so"))) as bench:
            yield bench
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)


def run_on(
    bench: Bench,
    *command: str | os.PathLike[str],
    code: str | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Runs a Python script (``run_on(bench, "x.py", "arg")``), a module (``"-m", "x"``) or `code` on the board."""
    arguments = [sys.executable, *(["-c", code] if code is not None else []), *command]
    everything = {**os.environ, **bench.environment, **(environment or {})}
    return subprocess.run(arguments, env=everything, capture_output=True, text=True, timeout=timeout, check=False)


# --- the simulator kernel --------------------------------------------------------------------------------------------


class KernelBench(Bench):
    """The board of the simulator kernel that this process runs in."""

    where = "kernel"

    def __init__(self, name: str, ready: dict[int, int]) -> None:
        super().__init__(name, ready, {})
        self._root = pathlib.Path("/run/hil")

    def write(self, path: str, value: object) -> None:
        with open(self._root / path, "wb", buffering=0) as file:
            file.write(str(value).encode())

    def read(self, path: str) -> str:
        return (self._root / path).read_text().strip()

    def strict_gpio(self, on: bool) -> None:
        pathlib.Path("/sys/module/gpio_sim/parameters/persist_outputs").write_text("N" if on else "Y")


def in_kernel() -> bool:
    """Whether this process runs in the simulator kernel."""
    return os.environ.get("HIL") == "1"


def kernel_command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command, and what its environment needs, that runs ``run.sh ARGUMENTS``; STIRBAR_HIL names its folder."""
    run = str(pathlib.Path(os.environ["STIRBAR_HIL"]) / "run.sh")
    with open("/proc/cpuinfo") as file:
        wide = "amx_tile" in file.read()
    return [run, *arguments], {"HIL_OUT": str(_with_wide_state(run))} if wide else {}


def _with_wide_state(run: str) -> pathlib.Path:
    """A folder of the simulator kernel's files in which the kernel starts with tests/fakeboard/wide_state.c."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    work = os.environ.get("HIL_WORK") or pathlib.Path(cache, "stirbar-hil")
    out = pathlib.Path(os.environ.get("HIL_OUT") or pathlib.Path(work, "out"))
    if not (out / "linux").exists():
        subprocess.run([run, "true"], capture_output=True, check=False)  # unpacks it, whether it boots or not
    target = build() / f"kernel-{hashlib.sha256(str(out).encode()).hexdigest()[:8]}"
    if not target.exists():
        made = pathlib.Path(tempfile.mkdtemp(dir=target.parent))
        for file in out.iterdir():
            if file.name != "linux":
                (made / file.name).symlink_to(file)
        script = f'#!/bin/sh\nLD_PRELOAD={target.parent}/wide_state.so exec {out}/linux "$@"\n'
        (made / "linux").write_text(script)
        (made / "linux").chmod(0o755)
        with contextlib.suppress(OSError):
            made.rename(target)
        shutil.rmtree(made, ignore_errors=True)
    return target


def ready_of(text: str) -> dict[int, int]:
    """The same, read back."""
    pairs = (item.split(":") for item in text.split(",") if item)
    return {int(address, 16): int(line) for address, line in pairs}


def kernel_bench() -> KernelBench:
    """The bench of the simulator kernel's board; only inside it."""
    if not in_kernel():
        raise RuntimeError("not in the simulator kernel: start this by $STIRBAR_HIL/run.sh")
    bus = pathlib.Path("/run/hil/board/i2c-1")
    chips = ",".join(f"{chip.parent.name}:{chip.read_text().strip()}" for chip in sorted(bus.glob("*/type")))
    name = os.environ["HIL_PROFILE"]
    return KernelBench(chips if name == "custom" else name, ready_of(os.environ.get("HIL_RDY", "")))


def current_bench() -> Bench | None:
    """The bench of the board that this process runs on, None: it runs on none."""
    if in_kernel():
        return kernel_bench()
    if _ENVIRONMENT in os.environ:
        name, ready, directory, shim = json.loads(os.environ[_ENVIRONMENT])
        return FakeBench(name, dict(ready), directory, shim)
    return None


def board(
    name: str = "all",
    ready: dict[int, int] | None = None,
    plant: bool = False,
    bus_hz: int = 100_000,
    strict: bool = False,
) -> pytest.MarkDecorator:
    """Mark: on which board a test runs; see the module's text."""
    ready = dict(layout(name).ready) if ready is None else ready
    return pytest.mark.board(name=name, ready=ready, plant=plant, bus_hz=bus_hz, strict=strict)


if __name__ == "__main__":
    command_line, additions = kernel_command(*sys.argv[1:])
    os.execve(command_line[0], command_line, {**os.environ, **additions})
