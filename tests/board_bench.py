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

Any command, by hand (the second is ``$STIRBAR_HIL/run.sh ..``, with what a host whose processor is newer than that
kernel needs)::

    python tests/board_bench.py fake -c hat1.0 -p stirbar hardware scan
    python tests/board_bench.py kernel -c eyespy python -m pytest -p no:cacheprovider -s tests/test_x.py

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

import argparse
import json
import os
import subprocess
import sys

import pytest
from board_base import (
    FOREVER,
    HEATER,
    LAYOUTS,
    MOTOR,
    Bench,
    Conversion,
    Edge,
    Layout,
    Record,
    Transfer,
    layout,
    ready_of,
)
from board_fake import ENVIRONMENT, FakeBench, fake_board, run_on
from board_kernel import KernelBench, in_kernel, kernel_bench, kernel_command

__all__ = [
    "FOREVER",
    "HEATER",
    "LAYOUTS",
    "MOTOR",
    "Bench",
    "Conversion",
    "Edge",
    "FakeBench",
    "KernelBench",
    "Layout",
    "Record",
    "Transfer",
    "board",
    "current_bench",
    "fake_board",
    "kernel_bench",
    "layout",
    "run_on",
]


def current_bench() -> Bench | None:
    """The bench of the board that this process runs on, None: it runs on none."""
    if in_kernel():
        return kernel_bench()
    if ENVIRONMENT in os.environ:
        name, ready, directory, shim = json.loads(os.environ[ENVIRONMENT])
        return FakeBench(name, dict(ready), directory, shim)
    return None


def board(
    name: str = "all",
    ready: dict[int, int] | None = None,
    plant: bool = False,
    bus_hz: int = 100_000,
    strict: bool = False,
    travel: bool = False,
    beside: bool = False,
    seldom: bool = False,
) -> pytest.MarkDecorator:
    """Mark: on which board a test runs; see the module's text. `travel`: on the kernel, sleeping takes no time.

    `beside`: the next board's tests, where they are marked so too, may run at the same time. `seldom`: its fake only in
    `make soak`, because other boards have the same chips.
    """
    ready = dict(layout(name).ready) if ready is None else ready
    return pytest.mark.board(
        name=name, ready=ready, plant=plant, bus_hz=bus_hz, strict=strict, travel=travel, beside=beside, seldom=seldom
    )


def _fake_command(arguments: list[str]) -> int:
    """Runs a command on a fake board: [-c BOARD] [-a RDY] [-p] [-s] COMMAND .."""
    parser = argparse.ArgumentParser(prog="board_bench.py fake")
    parser.add_argument("-c", default="all", metavar="BOARD", help="as run.sh -c")
    parser.add_argument("-a", default=None, metavar="RDY", help="ALERT/RDY wiring: address:line,..")
    parser.add_argument("-p", action="store_true", help="stirrer and heater follow their lines")
    parser.add_argument("-s", action="store_true", help="a released output falls back to its pull")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    ready = None if given.a is None else ready_of(given.a)
    with fake_board(given.c, ready, plant=given.p, strict=given.s) as bench:
        return subprocess.run(given.command, env={**os.environ, **bench.environment}, check=False).returncode


def main(arguments: list[str]) -> int:
    """``board_bench.py fake|kernel ..``"""
    if arguments[:1] == ["fake"]:
        return _fake_command(arguments[1:])
    if arguments[:1] != ["kernel"]:
        sys.exit("usage: board_bench.py fake [-c BOARD] [-a RDY] [-p] [-s] COMMAND .. | kernel (as run.sh)")
    command, additions = kernel_command(*arguments[1:])
    return subprocess.run(command, env={**os.environ, **additions}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
