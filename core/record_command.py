"""`stirbar record`: follows a worker's trace, and waits for a worker that is not there or went away.

Synchronization: one thread.
"""

from __future__ import annotations

import os
import sys
import time

from stirbar.core.client import CommandRefused, WorkerUnreachable
from stirbar.core.recorder import CHUNK_S, Recorder, RecorderError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from stirbar.core.client import Worker
    from stirbar.core.config import Config
    from stirbar.core.records import Header

LEASE_S = 30.0  # for which the worker is asked to trace
IDLE_S = 0.5  # without a message: what is gathered goes to the disk
RETRY_S = 2.0
KEEP_MB_MINIMUM = 16


class Source:
    """A worker whose trace is wanted. One that does not answer is waited for when `patient`, else WorkerUnreachable.

    `description` is what the worker says of itself, with its config; empty before it first answered. `run` is the run
    that it is of.
    """

    def __init__(self, worker: Worker, patient: bool, retry_s: float) -> None:
        self.worker = worker
        self.patient = patient
        self.retry_s = retry_s
        self.description: dict[str, Any] = {}
        self.run = ""
        self.away = False
        self._asked_about: str | None = None
        self._renew_at_s = 0.0
        self._retry_at_s = 0.0

    def batches(self) -> Iterator[tuple[Header, bytes] | None]:
        """Trace and snapshot messages of `run`; None when none came for IDLE_S. Those of a run that ended before it
        could be asked what it is are left out."""
        while True:
            try:
                for batch in self.worker.batches("trace/", "snapshot/", timeout_s=IDLE_S, idle=True):
                    run = None if batch is None else batch[1].run_id.hex()
                    if self._is_due(run):
                        self._ask(run)
                    if batch is None:
                        yield None
                    elif run == self.run:
                        yield batch[1], batch[2]
            except WorkerUnreachable as error:
                self._wait(error)

    def _is_due(self, run: str | None) -> bool:
        """Whether to ask, when a message of this run came, or none (None)."""
        now_s = time.monotonic()
        if run == self.run and not self.away:
            return now_s >= self._renew_at_s
        return now_s >= self._retry_at_s or run not in (None, self._asked_about)

    def _ask(self, run: str | None) -> None:
        """Ask for the trace, and who the worker is unless it goes on as before."""
        self._asked_about = run
        if run != self.run or self.away:
            description = self.worker.describe()
            if description["run_id"] != self.run:
                self.description = {**description, "config": self.worker.command("config")["config"]}
                self.run = description["run_id"]
        self.worker.command("raw", seconds=LEASE_S)
        if self.away:
            print(f"stirbar record: the worker at {self.worker.address} answers", file=sys.stderr)
        self.away = False
        now_s = time.monotonic()
        self._renew_at_s, self._retry_at_s = now_s + LEASE_S / 2, now_s + self.retry_s

    def _wait(self, error: WorkerUnreachable) -> None:
        if not self.patient:
            raise error
        if not self.away:
            print(f"stirbar record: {error} Waiting for it.", file=sys.stderr)
        self.away = True
        self._retry_at_s = time.monotonic() + self.retry_s


def record(
    worker: Worker,
    path: str,
    seconds: float | None = None,
    keep_bytes: int = 0,
    *,
    retry_s: float = RETRY_S,
    chunk_s: float = CHUNK_S,
) -> dict[str, Any]:
    """Record a worker's trace until `seconds` have passed or the caller interrupts; returns Recorder.summary(), empty
    when no worker answered until then.

    With `keep_bytes` a worker that is not there, or goes away, is waited for; without it is an error
    (WorkerUnreachable).
    """
    end_s = float("inf") if seconds is None else time.monotonic() + seconds
    source = Source(worker, keep_bytes > 0, retry_s)
    recorder = None
    run = reported = ""
    try:
        for batch in source.batches():
            if time.monotonic() >= end_s:
                break
            if not source.run:
                continue
            if recorder is None:
                recorder = Recorder(path, source.description, keep_bytes, chunk_s=chunk_s)
            elif source.run != run:
                recorder.flush()
                recorder.describe(source.description)
            run = source.run
            if batch is None:
                recorder.idle()
            else:
                recorder.message(*batch)
            if recorder.failure != reported:
                reported = recorder.failure
                print(f"stirbar record: {reported or 'the disk takes data again'}", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    finally:
        if recorder is not None:
            recorder.close()
    return {} if recorder is None else recorder.summary()


def main(argv: list[str]) -> int:
    """`stirbar record`"""
    import argparse
    import signal

    from stirbar.core import paths
    from stirbar.core.client import Worker
    from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

    parser = argparse.ArgumentParser(
        prog="stirbar record",
        description="Write a worker's raw conversions: to one file, or continuously to a directory that keeps the "
        "newest ([recorder.config] keep_mb).",
    )
    parser.add_argument("--unit", help="name of the unit (default: that of the config)")
    parser.add_argument("--out", help="file to write; must not exist")
    parser.add_argument("--continuous", action="store_true", help="until stopped, in a directory of bounded size")
    parser.add_argument("--directory", help="of --continuous (default: [recorder.config] directory)")
    parser.add_argument("--keep-mb", type=int, help="size of --continuous (default: [recorder.config] keep_mb)")
    parser.add_argument("--seconds", type=float, help="stop after so long (default: at Ctrl-C)")
    parser.add_argument("--address", help="base address of the worker's sockets")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    if bool(arguments.out) == arguments.continuous:
        parser.error("name a file (--out FILE) or record --continuous")
    if arguments.unit:
        arguments.set = [*(arguments.set or []), f"unit.name={arguments.unit}"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = config_from_arguments(arguments)
        keep_mb = arguments.keep_mb or int(config.get("recorder.config", "keep_mb"))
        if arguments.continuous and keep_mb < KEEP_MB_MINIMUM:
            parser.error(f"--keep-mb is at least {KEEP_MB_MINIMUM}")
        path = arguments.out or arguments.directory or directory(config, paths.data_directory(config))
        if arguments.out and os.path.exists(arguments.out):
            raise FileExistsError(arguments.out)
        with Worker(arguments.address, config=config) as worker:
            done = record(worker, path, arguments.seconds, keep_mb * 1_000_000 if arguments.continuous else 0)
    except FileExistsError:
        print(f"stirbar record: {arguments.out} exists and is not overwritten; name another file", file=sys.stderr)
        return 1
    except WorkerUnreachable as error:
        kept = f" What came until then is in {path}." if os.path.exists(path) else " `--continuous` waits for one."
        print(f"stirbar record: {error}{kept}", file=sys.stderr)
        return 1
    except (ConfigError, RecorderError, CommandRefused, ValueError, OSError) as error:
        print(f"stirbar record: {error}", file=sys.stderr)
        return 1
    if not done:
        print("stirbar record: stopped before a worker answered; nothing was recorded", file=sys.stderr)
        return 0
    print(f"{done['items']} items, {done['bytes']} bytes, {done['holes']} holes in {done['path']}")
    return 0


def directory(config: Config, data_directory: str) -> str:
    """Where a continuous recording goes."""
    return str(config.get("recorder.config", "directory") or "") or os.path.join(data_directory, "raw")
