"""The fake board: a server process and an interposer, from tests/fakeboard; board_bench.py says how to use it."""

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

import pytest
from board_base import Bench, Edge, Record, Transfer, layout, ready_text

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE / "fakeboard"

ENVIRONMENT = "STIRBAR_BENCH"  # in the process on a fake: which one, as JSON


class FakeBench(Bench):
    """A board whose server runs at `directory`."""

    where = "fake"

    def __init__(self, name: str, ready: dict[int, int], directory: str, shim: str) -> None:
        inherited = os.environ.get("LD_PRELOAD", "")
        preload = inherited if shim in inherited else f"{shim} {inherited}".strip()
        super().__init__(name, ready, {"STIRBAR_BOARD": directory, "LD_PRELOAD": preload})
        self.environment[ENVIRONMENT] = json.dumps([name, sorted(ready.items()), directory, shim])
        self.server_pid: int | None = None  # known to whoever started it
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

    @contextlib.contextmanager
    def record(self) -> Iterator[Record]:
        record = Record()
        self.write("record/on", 1)
        yield record
        for row in self._recorded("edges"):
            stamp_ns, line, level = (int(field) for field in row.split())
            record.lines.setdefault(line, []).append(Edge(stamp_ns, level))
        for row in self._recorded("transfers"):
            begin, end, result, *texts = row.split()
            fields = (text.split(":") for text in texts)
            messages = [(int(address, 16), kind == "r", bytes.fromhex(data)) for address, kind, data in fields]
            record.transfers.append(Transfer(int(begin), int(end), int(result), messages))
        self.write("record/on", 0)

    def _recorded(self, what: str) -> list[str]:
        text = ""
        while more := self._ask(f"R record/{what}/{len(text)}"):
            text += more
        return text.splitlines()

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
        preloaded = {"shim": ["shim.c", "shim_paths.c"], "wide_state": ["wide_state.c"]}
        for name, parts in preloaded.items():
            paths = [SOURCES / part for part in parts]
            command = [*flags, "-shared", "-fPIC", "-o", made / f"{name}.so", *paths, "-ldl", "-lpthread"]
            subprocess.run(command, check=True)
        others = {part for parts in preloaded.values() for part in parts}
        models = [source for source in sources if source.suffix == ".c" and source.name not in others]
        subprocess.run([*flags, "-o", made / "server", *models, "-lm"], check=True)
        with contextlib.suppress(OSError):  # another process was quicker
            made.rename(target)
        shutil.rmtree(made, ignore_errors=True)
    return target


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
            bench.server_pid = process.pid
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
