"""The loan of a worker's jobs to a self-test (core/self_test.py): what ran before is kept and put back.

The borrower starts, stops and sets as it likes, says every few seconds that it lives, and hands in results. When it
ends, or falls silent, everything is as it was.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import json
import os

from stirbar.core.ini import write_atomically
from stirbar.core.jobs import DISCONNECTED, READY, CommandError, all_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.core.host import Host

    Result = dict[str, object]
    Done = Callable[[bool, float], None]

SOURCE = "self_test"
FILE = "self_test.json"  # of the last results, in the data directory
LEASE_NS = 10_000_000_000
RESULTS_MAXIMUM = 64
NAME_LENGTH, TEXT_LENGTH = 64, 400
FIELDS = ("value", "unit", "threshold", "reason", "remedy")
PASSED, FAILED, SKIPPED = "ok", "FAIL", "skip"


class Loan:
    """Who has the jobs now: `before` is what each was doing, empty while nobody has borrowed them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.before: dict[str, dict[str, object]] = {}
        self.results: list[Result] = []
        self._kept: dict[str, dict[str, object]] = {}  # what the journal holds of them
        self._held = False
        self._until_ns = 0
        host.publish_setting(SOURCE, "$state", DISCONNECTED)

    def begin(self, names: tuple[str, ...], tests: list[str], experiment: str, done: Done) -> None:
        """Stop the jobs of these names and lend them; `experiment`: what must not be disturbed, empty for none.

        Raises CommandError where somebody else wants them.
        """
        host = self.host
        if self.before:
            raise CommandError("a self-test is running", "command", remedy="wait for its end, or interrupt it")
        running = [name for name in names if host.jobs[name].state != DISCONNECTED]
        if running and experiment:
            raise CommandError(
                f"{', '.join(running)} run in the experiment '{experiment}', which a self-test would disturb",
                "job",
                remedy="stop them first, or use --stop-jobs: they are put back afterwards",
            )
        if getattr(host.jobs["temperature_automation"], "waits_ns", 0):
            raise CommandError(
                "heat waits to be resumed after a crash", "job", remedy="wait ten minutes, or set target_temperature"
            )
        self._kept = {name: host.kept(name) for name in names}
        self.before = {name: {key: getattr(host.jobs[name], key) for key in host.jobs[name].lent} for name in names}
        self._held = host.journal is not None and host.journal.held
        self.results = []
        for name in tests:
            host.publish_setting(SOURCE, f"test_{name}", None)
        host.publish_setting(SOURCE, "all_tests_passed", None)
        host.publish_setting(SOURCE, "$state", READY)
        self.renew()
        self._stop_all(done)

    def kept(self, name: str) -> dict[str, object] | None:
        """What a job that is lent was doing before, for the journal."""
        return self._kept.get(name) if self.before else None

    def renew(self) -> None:
        """The borrower lives. Raises CommandError when its loan has ended."""
        if not self.before:
            raise CommandError("no self-test is running", "command", remedy="begin one; it must renew every 10 s")
        self._until_ns = self.host.loop.now_ns() + LEASE_NS

    def result(self, result: Result) -> None:
        """Keep and publish what a test found; a failure is an event, and so is its end."""
        self.renew()
        if len(self.results) >= RESULTS_MAXIMUM:
            raise CommandError(f"more than {RESULTS_MAXIMUM} results", "result", RESULTS_MAXIMUM)
        checked = _checked(result)
        name, status = str(checked["name"]), checked["status"]
        was_bad = any(one.get("name") == name and one.get("status") == FAILED for one in last(self.host.directory))
        self.results.append(checked)
        if status == SKIPPED:
            return
        self.host.publish_setting(SOURCE, f"test_{name}", int(status == PASSED))
        code = f"self_test_{name}"
        if status == FAILED:
            measured = " ".join(str(checked[key]) for key in ("value", "unit", "reason") if checked[key] is not None)
            text = f"{name}: {measured.strip()}, allowed is {checked['threshold']}; {checked['remedy']}"
            self.host.event("warning", SOURCE, text, code=code)
        elif was_bad:
            self.host.event("notice", SOURCE, f"{name} is well again", code=f"{code}_over")

    def end(self, done: Done) -> None:
        """Keep the results, and put everything back."""
        if not self.before:
            done(True, 0.0)
            return
        failed = [one for one in self.results if one["status"] == FAILED]
        if self.results:
            self.host.publish_setting(SOURCE, "all_tests_passed", int(not failed))
            realtime_ns = self.host.loop.clock_triple()[2]
            document = {"wall_ns": realtime_ns, "version": self.host.version, "results": self.results}
            write_atomically(os.path.join(self.host.directory, FILE), json.dumps(document) + "\n")
        self._until_ns = self.host.loop.now_ns() + LEASE_NS
        self._stop_all(lambda ok, limit: self._put_back(done))

    def tend(self) -> None:
        """Once a second: a borrower that fell silent has lost the loan."""
        if self.before and self.host.loop.now_ns() > self._until_ns:
            text = "the self-test fell silent: its jobs are put back"
            self.host.event("warning", SOURCE, text, code="self_test_lost")
            self.end(_ignore)

    def _stop_all(self, done: Done) -> None:
        jobs = [self.host.jobs[name] for name in self.before if self.host.jobs[name].state != DISCONNECTED]
        if not jobs:
            done(True, 0.0)
            return
        answered = all_of(len(jobs), done)
        for job in jobs:
            job.stop(answered)

    def _put_back(self, done: Done) -> None:
        """The set-points as they were, then the jobs that ran."""
        host, before, kept = self.host, self.before, self._kept
        self.before = {}
        if host.journal is not None:
            host.journal.held = self._held
        for name, values in before.items():
            for key, value in values.items():
                setattr(host.jobs[name], key, value)
            host.jobs[name].publish()
        host.publish_setting(SOURCE, "$state", DISCONNECTED)
        ran = [name for name in before if kept[name]["running"]]
        answered = all_of(max(1, len(ran)), done)
        if not ran:
            answered(True, 0.0)
        for name in ran:
            try:
                host.jobs[name].start(answered)
            except CommandError as error:
                host.say_not_started(name, error)
                answered(True, 0.0)


def last(directory: str) -> list[Result]:
    """The results of the last self-test that was kept in a data directory; none where there are none."""
    try:
        with open(os.path.join(directory, FILE), encoding="utf-8") as file:
            results = json.load(file)["results"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [one for one in results if isinstance(one, dict)] if isinstance(results, list) else []


def _checked(result: Result) -> Result:
    """A result with its known fields alone, or CommandError."""
    name, status = result.get("name"), result.get("status")
    if not isinstance(name, str) or not name.isidentifier() or len(name) > NAME_LENGTH:
        raise CommandError(f"the name of a result is letters, digits and _, at most {NAME_LENGTH}", "name")
    if status not in (PASSED, FAILED, SKIPPED):
        raise CommandError(f"a result is {PASSED}, {FAILED} or {SKIPPED}, not {status!r}", "status")
    checked: Result = {"name": name, "status": status}
    for field in FIELDS:
        value = result.get(field)
        checked[field] = value if value is None or isinstance(value, int | float) else str(value)[:TEXT_LENGTH]
    return checked


def _ignore(ok: bool, limit: float) -> None:
    """For the end of a loan that nobody waits for."""
