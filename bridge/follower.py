"""The unit's side of the desired state: takes what the leader wants, checks it, keeps it, says what came of it.

The leader's word is retained, so that a unit that was away hears it when it is back; the highest epoch and version
wins. What this machine's own files and the schema do not allow is refused with file, line and key, and the version
before stays in force. The worker reads its configuration at its start, and is never restarted for it from here: that
a restart is needed is told. A unit that its leader has taken out of use is: its worker begins anew, sees it, and waits.

Synchronization: one thread.
"""

from __future__ import annotations

import json
import os

from stirbar.core import desired
from stirbar.core.config import ConfigError
from stirbar.core.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.bridge.log import Log
    from stirbar.bridge.spool import Spool
    from stirbar.bridge.worker_link import WorkerLink
    from stirbar.core.config import Config

    Load = Callable[[desired.Desired], Config]
    Publish = Callable[[bytes], object]

MESSAGE_BYTES = 4 * desired.TEXT_BYTES  # two texts, as JSON writes them
PROBLEMS_TOLD = 20
STOP_AGAIN_S = 5.0  # a worker that is to stop and runs, because it doses, is asked again
OWN_SECTIONS = ("bridge.config", "mqtt")  # what the bridge itself reads, and one key more
OWN_KEY = ("od_reading.config", "raw")


class Follower:
    """`load(desired)` is the machine's configuration with it, or raises ConfigError; `publish` sends the report,
    retained, and returns 0 where it could not. `restart_asked`: the bridge itself has to begin anew.
    """

    def __init__(self, path: str, load: Load, spool: Spool, link: WorkerLink, publish: Publish, log: Log) -> None:
        self.restart_asked = False
        self.refused = 0
        self._path = path
        self._load = load
        self._spool = spool
        self._link = link
        self._publish = publish
        self._log = log
        self._kept = desired.read(path)
        self._refusal: dict[str, object] | None = None
        self._worker_digest: str | None = None  # that in force in the worker; None: no worker, or not known yet
        self._said = b""
        self._stop_at = 0.0
        self._own: tuple[object, ...] = ()
        try:
            self._own = _own_values(load(self._kept))
        except ConfigError as error:  # the machine's own files, or stirbar, have changed since it was taken
            self._refuse(self._kept.version, list(error.problems))

    def handle(self, payload: bytes) -> None:
        """The leader's word. Raises ValueError for what cannot be read."""
        if len(payload) > MESSAGE_BYTES:
            raise ValueError(f"a desired state of {len(payload)} bytes, at most {MESSAGE_BYTES}")
        try:
            found = desired.parse(json.loads(payload))
        except RecursionError:
            raise ValueError("a desired state nested too deeply") from None
        kept = self._kept
        if not self._spool.follow_epoch(found.epoch):
            self._log(
                "warning", f"desired state of epoch {found.epoch} refused: this unit follows a newer leader", "old"
            )
        elif (found.epoch, found.version) < (kept.epoch, kept.version):
            self._log("warning", f"desired state {found.version} refused: this unit has {kept.version} already", "old")
        elif (found := _kept_where_nothing_is_said(found, kept)).as_dict() == kept.as_dict():
            self._refusal = None if self._own else self._refusal  # it went back to what is in force
        else:
            self._take(found)
        self.say()

    def _take(self, found: desired.Desired) -> None:
        kept, own = self._kept, self._own
        problems: list[str] = []
        if found.texts != kept.texts or not own:
            try:
                own = _own_values(self._load(found))
            except ConfigError as error:
                problems = list(error.problems)
        # whether the unit is in use does not wait for a good text
        wanted = desired.Desired(kept.version, kept.epoch, found.active, kept.texts) if problems else found
        if wanted.as_dict() != kept.as_dict():
            try:
                desired.keep(self._path, wanted)
                self._kept = wanted
            except OSError as error:
                problems = [f"{self._path} cannot be written: {error.strerror}"]
        self._stop_at = 0.0
        if problems:
            self._refuse(found.version, problems)
            return
        self._refusal = None
        self.restart_asked = own != self._own
        if (found.texts, found.active) != (kept.texts, kept.active):
            use = "" if found.active else ", and this unit is out of use"
            self._log("notice", f"the leader's configuration, version {found.version}, is taken{use}")

    def _refuse(self, version: int, problems: list[str]) -> None:
        self.refused += 1
        self._refusal = {"version": version, "problems": problems[:PROBLEMS_TOLD]}
        self._log("error", f"the leader's configuration, version {version}, is refused: {'; '.join(problems)}")

    def worker_says(self, describe: dict[str, object] | None) -> None:
        """The worker has described itself; None: it has gone."""
        self._worker_digest = None if describe is None else str(describe.get("desired_digest", ""))
        self.say()

    def step(self, worker_present: bool, now: float) -> None:
        """A worker that runs although the unit is out of use begins anew, and then waits."""
        if not self._kept.active and worker_present and now >= self._stop_at:
            self._stop_at = now + STOP_AGAIN_S
            self._link.ask({"command": "restart"}, self._stopped, now)

    def _stopped(self, answer: dict[str, object], _: list[bytes]) -> None:
        error = answer.get("error")
        if isinstance(error, dict):
            self._log("warning", f"the worker of a unit out of use goes on: {error.get('message')}", "stop")

    def forget(self) -> None:
        """Another connection: the broker may not have our report."""
        self._said = b""

    def say(self) -> None:
        """What this unit has made of it, when that has changed."""
        kept = self._kept
        digest = kept.digest()
        report = {
            "version": kept.version,
            "epoch": kept.epoch,
            "digest": digest,
            "active": kept.active,
            "refused": self._refusal,
            "restart_needed": self._worker_digest not in (None, digest),
            "stirbar": VERSION,
            "host": os.uname().nodename,
        }
        said = json.dumps(report, separators=(",", ":")).encode()
        if said != self._said and self._publish(said):
            self._said = said


def _kept_where_nothing_is_said(found: desired.Desired, kept: desired.Desired) -> desired.Desired:
    """A leader that has never saved a text, as one that took another's place may not have, takes none away."""
    if found.version or not kept.version:
        return found
    return desired.Desired(kept.version, found.epoch, found.active, kept.texts)


def _own_values(config: Config) -> tuple[object, ...]:
    values = [value for section in OWN_SECTIONS for value in config.section(section).values()]
    return (*values, config.get(*OWN_KEY))
