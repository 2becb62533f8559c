"""The simulator kernel's board, from inside it, and how to get there; board_bench.py says how to use it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from board_base import Bench, Edge, Record, Transfer, ready_of
from board_fake import build


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

    @contextlib.contextmanager
    def record(self) -> Iterator[Record]:
        trace = pathlib.Path("/sys/kernel/tracing")
        (trace / "trace_clock").write_text("mono")
        (trace / "trace").write_text("")
        for system in ("gpio", "i2c"):
            (trace / "events" / system / "enable").write_text("1")
        (trace / "tracing_on").write_text("1")
        record = Record()
        levels = {line: self.level(line) for line in range(28)}
        try:
            yield record
        finally:
            (trace / "tracing_on").write_text("0")
            for system in ("gpio", "i2c"):
                (trace / "events" / system / "enable").write_text("0")
        _read_trace((trace / "trace").read_text(), levels, record)


_TRACED = re.compile(r"\s(\d+)\.(\d{6}): (gpio_value|i2c_\w+): (.*)")
_TRACED_EDGE = re.compile(r"(\d+) set (\d)")
_TRACED_MESSAGE = re.compile(r"i2c-1 #(\d+) a=(\w+) f=\w+ l=\d+(?: \[([^]]*)\])?")
_TRACED_RESULT = re.compile(r"i2c-1 n=\d+ ret=(-?\d+)")


def _read_trace(text: str, levels: dict[int, int], record: Record) -> None:
    """The kernel's trace of gpio and i2c events; stamps have a resolution of 1 us."""
    bases = list(pathlib.Path("/run/hil/gpio").glob("gpio/gpiochip*/base"))
    base = int(bases[0].read_text()) if bases else 512
    begin_ns, messages = 0, {}
    for seconds, micros, event, rest in _TRACED.findall(text):
        stamp_ns = (int(seconds) * 1_000_000 + int(micros)) * 1000
        if event == "gpio_value":
            if found := _TRACED_EDGE.match(rest):
                line, level = int(found[1]) - base, int(found[2])
                if levels.get(line) != level:
                    record.lines.setdefault(line, []).append(Edge(stamp_ns, level))
                levels[line] = level
        elif event == "i2c_result":
            found = _TRACED_RESULT.match(rest)
            record.transfers.append(Transfer(begin_ns, stamp_ns, int(found[1]), list(messages.values())))
            messages = {}
        elif found := _TRACED_MESSAGE.match(rest):
            if event != "i2c_reply" and found[1] == "0":
                begin_ns = stamp_ns
            data = bytes.fromhex((found[3] or "").replace("-", ""))
            messages[int(found[1])] = (int(found[2], 16), event != "i2c_write", data)


def in_kernel() -> bool:
    """Whether this process runs in the simulator kernel."""
    return os.environ.get("HIL") == "1"


def kernel_bench() -> KernelBench:
    """The bench of the simulator kernel's board; only inside it."""
    if not in_kernel():
        raise RuntimeError("not in the simulator kernel: start this by $STIRBAR_HIL/run.sh")
    bus = pathlib.Path("/run/hil/board/i2c-1")
    chips = ",".join(f"{chip.parent.name}:{chip.read_text().strip()}" for chip in sorted(bus.glob("*/type")))
    name = os.environ["HIL_PROFILE"]
    return KernelBench(chips if name == "custom" else name, ready_of(os.environ.get("HIL_RDY", "")))


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
