"""Shared fixtures; lets `python setup.py build_ext --inplace && pytest` run with nothing installed.

Optional parts skip with a reason, and are counted in the last line; with STIRBAR_REQUIRE=all a skip is a failure.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
VIEW = ROOT / "build" / "view"
INSTALLED = importlib.util.find_spec("stirbar") is not None

if not INSTALLED:
    sys.path.insert(0, str(VIEW))

READY_S = 30.0
STOP_S = 15.0
_skipped: collections.Counter[str] = collections.Counter()


# --- skips -----------------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: a long campaign; runs only with -m soak")
    config.addinivalue_line("markers", "hil: needs the simulator kernel that STIRBAR_HIL names")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def skip_is_failure(optional_hardware: bool) -> bool:
    """Whether a skip fails the run: STIRBAR_REQUIRE=all, but for the simulator kernel where none is named."""
    if os.environ.get("STIRBAR_REQUIRE") != "all":
        return False
    return not optional_hardware or bool(os.environ.get("STIRBAR_HIL"))


def _judge_skip(report: pytest.TestReport | pytest.CollectReport, optional_hardware: bool) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if skip_is_failure(optional_hardware):
        report.outcome = "failed"
        report.longrepr = f"skipped, but STIRBAR_REQUIRE=all: {reason}"
    else:
        _skipped[reason] += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    _judge_skip(report, item.get_closest_marker("hil") is not None)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _judge_skip(report, False)
    return report


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not config.option.collectonly:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted(_skipped.items()))
        total = _skipped.total()
        reporter.write_line(f"optional parts skipped: {total}" + (f" ({reasons})" if total else ""))


# --- workers ---------------------------------------------------------------------------------------------------------


def stirbar_environment() -> dict[str, str]:
    """The environment in which a child process finds this stirbar, and none of the user's own settings."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("STIRBAR_")}
    if not INSTALLED:
        environment["PYTHONPATH"] = str(VIEW)
    return environment


def wait_for(condition, seconds: float, what: str, every_s: float = 0.02):
    """The first true value of condition(); fails, naming what was waited for, when none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every_s)


class RunningWorker:
    """A simulated worker in a process of its own, with directories of its own; `client` is connected to it."""

    def __init__(self, settings: tuple[str, ...], code: str | None, environment: dict[str, str]) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
        self.address = f"ipc://{self.directory}/run/w"
        arguments = ["worker", "--simulate"]
        for setting in (
            "unit.name=w",
            f"unit.data_directory={self.directory}/data",
            f"unit.runtime_directory={self.directory}/run",
            *settings,
        ):
            arguments += ["--set", setting]
        start = ["-m", "stirbar.core.cli"] if code is None else ["-c", code]
        with open(self.directory / "stderr", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *start, *arguments],
                env=stirbar_environment() | environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self.client = self._connect()

    def _connect(self):
        from stirbar import Worker
        from stirbar.core.client import WorkerUnreachable

        client = Worker(self.address, timeout_s=10.0)

        def answers() -> bool:
            assert self.process.poll() is None, f"the worker ended at once: {self.errors()}"
            with contextlib.suppress(WorkerUnreachable):
                return bool(client.command("describe", timeout_s=0.5))
            return False

        try:
            wait_for(answers, READY_S, "an answer of the worker")
        except BaseException:
            self.process.kill()
            self.process.wait()
            client.close()
            raise
        return client

    def errors(self) -> str:
        """What the worker wrote to its standard error."""
        return (self.directory / "stderr").read_text(errors="replace")

    def threads(self) -> dict[str, int]:
        """Thread ids of the process by name."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return {(task / "comm").read_text().strip(): int(task.name) for task in tasks}

    def stop(self, *, check: bool = True) -> None:
        """End the worker; with `check` it must have lost nothing and end by itself with status 0."""
        try:
            if check and self.process.poll() is None:
                counters = self.client.status()["counters"]
                assert counters["ring_drops"] == 0 and counters["trace_drops"] == 0, counters
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            status = self.process.wait(STOP_S)
            assert not check or status == 0, f"the worker ended with status {status}: {self.errors()}"
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.client.close()
            shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture
def start_worker():
    """Starts simulated workers: start_worker("section.key=value", ..., code=None, environment={}) -> RunningWorker.

    At the end of the test each must have dropped nothing and stop with status 0.
    """
    started: list[RunningWorker] = []

    def start(*settings: str, code: str | None = None, environment: dict[str, str] | None = None) -> RunningWorker:
        started.append(RunningWorker(settings, code, environment or {}))
        return started[-1]

    yield start
    with contextlib.ExitStack() as stack:
        for worker in started:
            stack.callback(worker.stop)


@pytest.fixture
def worker(start_worker):
    """A `stirbar.Worker` client of a running simulated worker."""
    return start_worker().client
