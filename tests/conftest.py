"""Shared fixtures; lets `python setup.py build_ext --inplace && pytest` run with nothing installed.

Optional parts skip with a reason, and are counted in the last line; with STIRBAR_REQUIRE=all a skip is a failure.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import os
import pathlib
import sys

import pytest

if importlib.util.find_spec("stirbar") is None:
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "build" / "view"))

from board_plugin import BoardPlugin
from running import RunningWorker

_skipped: collections.Counter[str] = collections.Counter()


# --- skips -----------------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: a long campaign; runs only with -m soak")
    config.addinivalue_line("markers", "alone: has to have the machine to itself, because it looks at times")
    config.addinivalue_line("markers", "interop: with the real pioreactor package; runs only by `make interop`")
    config.addinivalue_line("markers", "hil: needs the simulator kernel that STIRBAR_HIL names")
    config.pluginmanager.register(BoardPlugin(config), "boards")


# Files whose tests look at times, or at what a whole machine does; `make test` runs the others two at a time.
ALONE = (
    *("test_bench", "test_board", "test_broker_gone", "test_deaths", "test_demo", "test_disturbance"),
    *("test_dosing_board", "test_fakeboard", "test_guard", "test_hardware", "test_isolation", "test_lgpio"),
    *("test_loop", "test_outputs", "test_page", "test_pairing", "test_protection", "test_watchdog", "test_worker"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(ALONE):
            item.add_marker("alone")
    if not os.environ.get("STIRBAR_INTEROP"):
        left_out = [item for item in items if item.get_closest_marker("interop")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("interop")]
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
