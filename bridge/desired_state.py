"""The leader's side of the desired state: tells every unit what it should be, compares that with what the unit says
it is, and says where they differ.

Each unit is told by one retained message, and looked at when it connects or reports, and on a schedule. A difference
that lasts is an event `drift`, its end `drift_over`. What was found last is in `state.json` in the leader's directory,
where `stirbar cluster state` reads it; what that command wants done comes by a file beside it and a signal.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from stirbar.bridge.calls import CommandNotSent, CommandTimeout
from stirbar.bridge.config_history import EVERY_UNIT, ConfigHistory, Version, nothing_yet, texts
from stirbar.bridge.credentials import CredentialError, admitted, write_private
from stirbar.bridge.drift import describe_drift, drift_of
from stirbar.bridge.inventory import read_inventory
from stirbar.bridge.store import StoreError
from stirbar.core import desired
from stirbar.core.config import ConfigError, build_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stirbar.bridge.ingest import Ingest
    from stirbar.core.config import Config

STATE_FILE, ORDER_FILE = "state.json", "order-{}.json"
GATHER_S = 0.1  # what happens within it is looked at together,
QUIET_TIMES, QUIET_S = 10, 5.0  # and for so many times as long as a look took, or so long, there is no other
GRACE_S = 3.0  # a difference that lasts as long is one; a unit that was just told is still at it
RESTART_LIMIT_S = 5.0
ORDERS_KEPT = 20
ASKED_PER_TEXT = 4  # versions of each text whose meaning is remembered
ASKED = ("digest", "stirbar_version", "plugins")


class DesiredState:
    """`start()` runs the thread, `stop()` ends it.

    Synchronization: `start` and `stop` from one thread, every other public method from any.
    """

    def __init__(
        self, config: Config, history: ConfigHistory, ingest: Ingest, directory: Path, say: Callable[[str], None]
    ) -> None:
        self.history = history
        self._config = config
        self._ingest = ingest
        self._directory = directory
        self._say = say
        self._interval_s = float(config.get("leader.config", "state_check_minutes")) * 60.0
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # protects what follows, to the blank line
        self._units: list[dict[str, Any]] = []
        self._again: set[str] = set()  # unit_id of those that are to be told once more
        self._restarts: dict[str, dict[str, str]] = {}  # order: {unit: what came of it}

        # of whoever holds the lock of a look
        self._looking = threading.Lock()
        self._since: dict[str, tuple[str, float]] = {}  # unit_id: a difference, and since when (monotonic)
        self._told: dict[str, str] = {}  # unit_id: the difference that an event has told
        # (version for all, version of the unit): digest, stirbar_version, plugins
        self._asked: dict[tuple[int, int], tuple[str, str, list[str] | None]] = {}

    def start(self) -> None:
        self._told = {one["unit_id"]: one["told"] for one in read_state(self._directory)["units"] if one["told"]}
        self._stop_listening = self._ingest.listen(self._hear)
        self._thread = threading.Thread(target=self._run, name="desired", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop_listening()
            self._ended.set()
            self._wake.set()
            thread.join()

    def reload(self) -> None:
        """Something was changed by another process: a text, the inventory, or an order is there."""
        self._wake.set()

    def state(self) -> list[dict[str, Any]]:
        """All units as they should be and as they are, in order of name (docs/desired-state.md)."""
        with self._lock:
            return list(self._units)

    def tell_again(self, unit_ids: set[str]) -> None:
        """Tell units once more, whether something has changed or not: they look at their own files anew."""
        with self._lock:
            self._again |= unit_ids
        self._wake.set()

    def restart(self, unit_id: bytes) -> str:
        """Have a unit's worker begin anew; returns why it does not, or nothing."""
        try:
            reply = self._ingest.command(unit_id, {"command": "restart"}, RESTART_LIMIT_S)
        except (CommandTimeout, CommandNotSent) as error:
            return str(error)
        error_of = reply.get("error") or {}
        remedy = f": {error_of['remedy']}" if error_of.get("remedy") else ""
        return "" if reply.get("ok") else f"{error_of.get('message')}{remedy}"

    def overtake(self, who: str) -> None:
        """Where a unit holds a version of a history that is lost here, number the newest above it, so that it is taken.
        Raises StoreError."""
        number = number_above(self.state())
        if number and self.history.heads():
            head = self.history.head(EVERY_UNIT)
            self.history.save(EVERY_UNIT, head.text, who, head.number, number)
            self._wake.set()

    def look(self) -> float:
        """Tell every unit what it should be, and see what each is; returns when to look again, in seconds."""
        with self._looking:
            heads = self.history.heads()
            inventory = read_inventory(self._config)
            members = admitted(self._directory / "credentials")
            names = {} if members is None else {unit_id: name for name, unit_id in members.items()}
            if len(self._asked) > len(heads) * ASKED_PER_TEXT:
                self._asked.clear()
            with self._lock:
                again, self._again = self._again, set()
            units, again_s = [], self._interval_s
            for report in self._ingest.reports():
                unit_id = bytes.fromhex(report["unit_id"])
                if members is not None and unit_id not in names:
                    continue  # revoked or removed: it hears of nothing
                report["unit"] = names.get(unit_id, report["unit"])  # it may not have said its name yet
                wanted = self._wanted(report, heads, inventory)
                self._ingest.set_desired(unit_id, wanted["message"], report["unit_id"] in again)
                found = {**_facts(report), **_compared(report, wanted)}
                again_s = min(again_s, self._judge(report["unit_id"], describe_drift(found["drift"])))
                units.append({**found, "told": self._told.get(report["unit_id"], "")})
            units.sort(key=lambda one: (one["unit"], one["unit_id"]))
            with self._lock:
                self._units = units
            self._write()
        return again_s

    def _judge(self, unit_id: str, text: str) -> float:
        """Tell of a difference that has lasted, and of the end of one; returns when the next is due, in seconds."""
        now = time.monotonic()
        known, since = self._since.get(unit_id, (None, now))
        if text != known:
            self._since[unit_id] = text, now
            since = now
        if text and now - since < GRACE_S:
            return GRACE_S - (now - since)
        self._tell(unit_id, text)
        return float("inf")

    # The thread

    def _run(self) -> None:
        wait_s = 0.0
        while True:
            woken = self._wake.wait(wait_s)
            if self._ended.wait(GATHER_S if woken else 0.0):
                return
            self._wake.clear()
            start = time.monotonic()
            try:
                self.follow_orders()
                wait_s = self.look()
            except (StoreError, ConfigError, CredentialError, OSError) as error:
                self._say(f"the units' state is not known: {error}")
                wait_s = self._interval_s
            except Exception as error:  # a mistake of ours must not end the thread
                self._say(f"the units' state is not known: {type(error).__name__}: {error}")
                wait_s = self._interval_s
            self._ended.wait(min(QUIET_TIMES * (time.monotonic() - start), QUIET_S))

    def _hear(self, kind: str, unit: str, value: dict[str, Any]) -> None:
        if kind in ("state", "applied", "described"):
            self._wake.set()

    def follow_orders(self) -> None:
        """What `stirbar cluster` wants done; an order is done once, and no restart is late."""
        for path in self._directory.glob(ORDER_FILE.format("*")):
            try:
                order = json.loads(path.read_text())
            except ValueError:
                order = {}
            path.unlink()
            done: dict[str, str] = {}
            if order.get("overtake"):
                self.overtake(str(order["who"]))
            self.tell_again(set(order.get("tell") or ()))
            if time.time() < order.get("expires_at", 0.0):
                for unit_id in order["restart"]:
                    done[unit_id] = self.restart(bytes.fromhex(unit_id)) or "restarted"
            with self._lock:
                self._restarts[path.stem] = done
                while len(self._restarts) > ORDERS_KEPT:
                    del self._restarts[next(iter(self._restarts))]

    def _wanted(
        self, report: dict[str, Any], heads: dict[bytes, Version], inventory: dict[str, bool]
    ) -> dict[str, Any]:
        unit_id = bytes.fromhex(report["unit_id"])
        versions = [heads.get(one, nothing_yet(one)) for one in (EVERY_UNIT, unit_id)]
        number = max(version.number for version in versions)
        active = inventory.get(report["unit"], True)
        wanted = desired.Desired(number, 0, active, texts(unit_id, heads))
        key = (versions[0].number, versions[1].number)
        if key not in self._asked:
            self._asked[key] = (wanted.digest(), *_asked_of_units(wanted))
        message = {name: value for name, value in wanted.as_dict().items() if name != "epoch"}
        return {"message": message, **dict(zip(ASKED, self._asked[key], strict=True))}

    def _tell(self, unit_id: str, text: str) -> None:
        if text == self._told.get(unit_id, ""):
            return
        code = "drift" if text else "drift_over"
        self._ingest.make_event(bytes.fromhex(unit_id), "warning" if text else "info", code, text or "as it should be")
        if text:
            self._told[unit_id] = text
        else:
            del self._told[unit_id]

    def _write(self) -> None:
        with self._lock:
            state = {"t": time.time(), "units": self._units, "restarts": self._restarts}
        write_private(self._directory / STATE_FILE, json.dumps(state) + "\n")


def number_above(units: list[dict[str, Any]]) -> int:
    """The least number of a version that units take which hold a higher one than is known here; 0: any does."""
    return max((one["actual"]["version"] + 1 for one in units if one["is_ahead"]), default=0)


def read_state(directory: Path) -> dict[str, Any]:
    """What a leader found last: `t` (0: nothing yet), `units`, `restarts`."""
    try:
        found = json.loads((directory / STATE_FILE).read_text())
    except (OSError, ValueError):
        found = {}
    return {"t": 0.0, "units": [], "restarts": {}, **(found if isinstance(found, dict) else {})}


def _asked_of_units(wanted: desired.Desired) -> tuple[str, list[str] | None]:
    """Version of stirbar and plug-ins that a configuration asks for; nothing where the texts are not valid together."""
    from stirbar.core.plugins import wanted as wanted_plugins

    try:
        config = build_config(wanted.files())
    except ConfigError:
        return "", None
    return config.get("desired", "stirbar_version"), wanted_plugins(config.get("desired", "plugins"))


def _facts(report: dict[str, Any]) -> dict[str, Any]:
    """What a unit is, as it says."""
    facts, applied = report["facts"], report["applied"]
    actual = {name: applied.get(name) for name in ("version", "epoch", "digest", "active")}
    actual |= {"stirbar_version": facts["version"] or applied.get("stirbar")}
    actual |= {name: facts[name] for name in ("build_id", "plugins", "board")}
    return {
        "unit": report["unit"],
        "unit_id": report["unit_id"],
        "state": report["state"],
        "actual": actual,
        "refused": applied.get("refused"),
        "restart_needed": bool(applied.get("restart_needed")),
    }


def _compared(report: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What it should be, and where it differs."""
    message, applied = wanted["message"], report["applied"]
    should = {name: message[name] for name in ("version", "active")}
    should |= {name: wanted[name] for name in ASKED}
    epoch, version = applied.get("epoch") or 0, applied.get("version") or 0
    is_ahead = epoch == report["epoch"] and version > message["version"]
    return {"desired": should, "is_ahead": is_ahead, "drift": drift_of(report, should, is_ahead)}
