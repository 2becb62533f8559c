"""What lets a test with the fixture ``bench`` run on a board: board_bench.py says how to use it.

On the host an item of such a test runs nothing here: one more pytest per board runs it there and writes its reports to
a file, from which they are given out as this pytest's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import pytest
from board_base import Bench, layout, ready_of, ready_text
from board_bench import FakeBench, board, current_bench, fake_board
from board_kernel import kernel_command

_REPORTS = "STIRBAR_BENCH_REPORTS"  # where the pytest on a board writes its reports
LONGEST_S = float(os.environ.get("STIRBAR_BOARD_SECONDS", "300"))  # that one item may take


class Variant(NamedTuple):
    """On what one item runs."""

    where: str
    name: str
    ready: str
    travel: bool
    beside: bool
    seldom: bool
    settings: dict[str, object]

    @property
    def key(self) -> tuple[str, str, str, bool]:
        return self.where, self.name, self.ready, self.travel and self.where == "kernel"


def _variants(definition: pytest.Item, where: str) -> list[Variant]:
    marks: list[pytest.Mark] = []
    for node in reversed(definition.listchain()):
        marks = [mark for mark in node.own_markers if mark.name == "board"]
        if marks:
            break
    found = []
    for mark in reversed(marks or [board().mark]):
        settings = dict(mark.kwargs)
        name, ready, *flags = (settings.pop(key) for key in ("name", "ready", "travel", "beside", "seldom"))
        found.append(Variant(where, name, ready_text(ready), *flags, settings))
    return found


class BoardRun:
    """One more pytest, on a board, that runs the items of a group there."""

    def __init__(self, config: pytest.Config, variant: Variant, nodeids: list[str]) -> None:
        self._config = config
        self._stack = contextlib.ExitStack()
        self._reports: dict[str, list[object]] = {}
        self._finished: set[str] = set()
        directory = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self._output = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._written = directory / "reports"
        self._read = 0  # bytes of it
        # Everything that was selected here is selected there.
        pytest_command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "soak or not soak", *nodeids]
        environment = {**os.environ, _REPORTS: str(self._written), "PYTHONDONTWRITEBYTECODE": "1"}
        if variant.where == "fake":
            bench = self._stack.enter_context(fake_board(variant.name, ready_of(variant.ready)))
            command = pytest_command
            environment |= bench.environment
        else:
            wiring = [*(["-a", variant.ready] if variant.ready else []), *(["-T"] if variant.travel else [])]
            options = ["-t", "1200", "-c", variant.name, *wiring, "-w", str(directory)]
            command, more = kernel_command(*options, *pytest_command)
            environment |= more
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=config.rootpath,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        self._stack.callback(self._end)

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()

    def _take(self) -> None:
        if not self._written.exists():
            return
        new, end, _ = self._written.read_bytes()[self._read :].rpartition(b"\n")
        self._read += len(new) + len(end)
        for line in new.splitlines():
            data = json.loads(line)
            if "finished" in data:
                self._finished.add(data["finished"])
                continue
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)  # a skip's: JSON knows no tuples
            self._reports.setdefault(report.nodeid, []).append(report)

    def reports(self, nodeid: str) -> list[object] | None:
        """The reports of an item, None: the process ended, or did nothing for long, without them."""
        done, deadline = len(self._finished), time.monotonic() + LONGEST_S
        while nodeid not in self._finished:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.03)
            ended = self._process.poll() is not None
            self._take()
            if len(self._finished) > done:
                done, deadline = len(self._finished), time.monotonic() + LONGEST_S
            if ended or time.monotonic() > deadline:
                break
        return self._reports.get(nodeid) if nodeid in self._finished else None

    def did_something(self) -> bool:
        """Whether any item finished."""
        return bool(self._finished)

    def output(self) -> str:
        """What the process said."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def close(self) -> None:
        self._stack.close()


class BoardPlugin:
    """Makes the items, and has them run where they belong; conftest.py registers it."""

    def __init__(self, config: pytest.Config) -> None:
        config.addinivalue_line(
            "markers", "board(name, ready, plant, bus_hz, strict, travel, beside): the board a test runs on"
        )
        self._config = config
        self._here = current_bench()
        self._runs: dict[tuple[str, str, str, bool], BoardRun] = {}
        self._to_write = os.environ.get(_REPORTS)

    # --- on either side ------------------------------------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "bench" not in metafunc.fixturenames:
            return
        places = ("fake", "kernel") if self._here is None else (self._here.where,)
        parameters = []
        for where in places:
            for variant in _variants(metafunc.definition, where):
                marks = [pytest.mark.hil] if where == "kernel" else []
                if where == "fake" and variant.seldom:
                    marks.append(pytest.mark.soak)
                if where == "kernel" and self._here is None and "STIRBAR_HIL" not in os.environ:
                    marks.append(pytest.mark.skip(reason="STIRBAR_HIL names no simulator kernel"))
                if self._here is not None and not self._fits(variant):
                    need = f"-c {variant.name}" + (f" -a {variant.ready}" if variant.ready else "")
                    marks.append(pytest.mark.skip(reason=f"needs a board {need}"))
                parameters.append(pytest.param(variant, marks=marks, id=f"{where}-{variant.name}"))
        metafunc.parametrize("bench", parameters, indirect=True)

    def _fits(self, variant: Variant) -> bool:
        here = self._here
        assert here is not None
        kinds = dict(item.split(":") for item in layout(variant.name).chips.split(","))
        same_chips = {int(address, 16): kind for address, kind in kinds.items()} == here.chips
        return same_chips and ready_text(here.ready) == variant.ready

    @pytest.fixture
    def bench(self, request: pytest.FixtureRequest) -> Bench:
        """The bench of the board that this test runs on, everything as at power-on."""
        assert self._here is not None
        self._here.reset(**request.param.settings)
        return self._here

    # --- on the host -------------------------------------------------------------------------------------------------

    @staticmethod
    def _variant(item: pytest.Item) -> Variant | None:
        variant = getattr(item, "callspec", None) and item.callspec.params.get("bench")
        return variant if isinstance(variant, Variant) and item.get_closest_marker("skip") is None else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        variant = self._variant(item)
        if self._here is not None or variant is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._run(item, variant).reports(item.nodeid) or [self._no_report(item, variant)]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # What an earlier item that ran here left for this one, which needs nothing here.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def _run(self, item: pytest.Item, variant: Variant) -> BoardRun:
        rest = item.session.items[item.session.items.index(item) :]
        if variant.beside:
            after = (other for other in rest if (its := self._variant(other)) and its.key != variant.key)
            following = next(after, None)
            its = following and self._variant(following)
            if following is not None and its and its.beside and its.where == variant.where:
                self._begin(following, its)
        return self._begin(item, variant)

    def _begin(self, item: pytest.Item, variant: Variant) -> BoardRun:
        if variant.key not in self._runs:
            rest = item.session.items[item.session.items.index(item) :]
            mine = [other for other in rest if (its := self._variant(other)) and its.key == variant.key]
            self._runs[variant.key] = BoardRun(self._config, variant, [other.nodeid for other in mine])
        return self._runs[variant.key]

    def _no_report(self, item: pytest.Item, variant: Variant) -> pytest.TestReport:
        run = self._runs[variant.key]
        text = f"the pytest on the board ended without a report of this test; it said:\n{run.output()[-6000:]}"
        if run.did_something():  # the board is good: the rest of its items get another one
            self._runs.pop(variant.key).close()
        return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call", [], 0)

    def pytest_sessionfinish(self) -> None:
        for run in self._runs.values():
            run.close()
        if isinstance(self._here, FakeBench):
            self._here.close()

    # --- on the board ------------------------------------------------------------------------------------------------

    def _say(self, data: object) -> None:
        if self._to_write:
            with open(self._to_write, "a") as file:
                file.write(json.dumps(data) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._to_write:
            self._say(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._say({"finished": nodeid})
