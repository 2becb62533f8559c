"""The leader's end of the stored path: blocks in, one commit a second, acknowledgements out; holes are asked for again.

What a unit sends to be stored is acknowledged by stream and sequence, and never before its commit. `from` is a promise
too (what is below it is here), so it is said after the commit as well.
"""

from __future__ import annotations

import time

from stirbar.bridge.blocks import parse_json
from stirbar.bridge.packing import unpack_readings
from stirbar.bridge.store import StoreError, StoreUnavailable
from stirbar.bridge.topics import is_unit_id
from stirbar.core.records import STREAM_IDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.bridge.log import Log
    from stirbar.bridge.store import Store
    from stirbar.core.records import Header

    Key = tuple[bytes, bytes, int]  # unit_id, run_id, stream
    Acknowledge = Callable[[bytes, dict[str, Any]], None]

ASK_AGAIN_S = 5.0  # a hole in one stream is asked for at most this often
OTHERS_S = 4.0  # in a shared store a hole is one when nobody has filled it for so long
REFUSALS = 3  # so often one damaged block is asked for again; then it becomes a gap
REFUSED_MAXIMUM = 10_000  # blocks that are remembered as damaged
COUNTERS = (
    "blocks",
    "refused",  # blocks that the store could not take now
    "given_up",  # damaged blocks that became gaps
    "holes",  # blocks that came behind one
    "asked_again",
    "asks_answered",
    "acknowledgements",
    "commits",
    "commit_failures",
    "higher_epochs",
)


class StoredPath:
    """Puts blocks into the store and says what the units are to be told, by `acknowledge(unit_id, object)`.

    Synchronization: the ingest thread alone, except `counters`, whose values are read as they are.
    """

    def __init__(self, store: Store, acknowledge: Acknowledge, log: Log) -> None:
        self.epoch = store.epoch()
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._store = store
        self._send = acknowledge
        self._log = log
        self._touched: dict[bytes, dict[bytes, set[int]]] = {}  # to be acknowledged after the next commit
        self._runs: dict[bytes, dict[bytes, set[int]]] = {}  # streams heard since the start
        self._holes: dict[Key, int] = {}  # something is missing below this sequence number
        self._asked: dict[Key, float] = {}
        self._stuck: dict[Key, tuple[int, float]] = {}  # of a shared store: mark, since when
        self._questions: dict[bytes, dict[bytes, set[int]]] = {}  # of units, to be answered after the next commit
        self._refused: dict[tuple[Key, int], int] = {}

    def add(self, header: Header, body: bytes) -> bool:
        """Take a block; whether the store has it now, in its buffer at least. Raises ValueError for a damaged one."""
        self.counters["blocks"] += 1
        key = (header.unit_id, header.run_id, header.stream)
        expected = 0 if self._store.shared else self._store.expected(*key)
        try:
            self._store.add(header, unpack_readings(header, body))
        except StoreUnavailable as error:
            self.counters["refused"] += 1
            self._log("error", f"a block was not taken and will be asked for again: {error}", "refused")
            return False
        except ValueError as error:
            self._refuse(header, key, str(error))
            raise
        self._touch(key)
        if self._store.shared:
            self._holes[key] = max(header.first_sequence, self._holes.get(key, 0))
        elif header.first_sequence > expected:
            self._miss(key, header.first_sequence)
        return True

    def commit(self) -> bool:
        """Write what has come, then acknowledge it; what cannot be written stays and is not acknowledged."""
        try:
            self._store.commit()
        except StoreError as error:
            self.counters["commit_failures"] += 1
            self._log("error", f"nothing is acknowledged until the store can be written: {error}", "commit")
            return False
        if self._touched:
            self.counters["commits"] += 1
        # everything that came is committed now: what is expected next is the mark
        through, self._touched = self._touched, {}
        origins, self._questions = self._questions, {}
        for unit_id, run_id, stream in self._holes_to_ask_for():
            origins.setdefault(unit_id, {}).setdefault(run_id, set()).add(stream)
        for unit_id in {**through, **origins}:
            what = {"through": self._marks(unit_id, through.get(unit_id, {}))}
            if unit_id in origins:
                what["from"] = self._marks(unit_id, origins[unit_id])
            self._acknowledge(unit_id, what)
        return True

    def answer(self, unit_id: bytes, ask: dict[str, Any]) -> None:
        """A unit asks from where to go on. Raises ValueError for a question that is none."""
        runs, epoch = ask.get("runs"), ask.get("epoch", 0)
        if not isinstance(runs, dict) or not isinstance(epoch, int):
            raise ValueError("question without runs or epoch")
        if epoch > self.epoch:
            self._hear_of_newer(unit_id, epoch)
            return
        wanted = {_run_id(run): _streams(streams) for run, streams in runs.items()}
        self.counters["asks_answered"] += 1
        self._say_from(unit_id, wanted)

    def _hear_of_newer(self, unit_id: bytes, epoch: int) -> None:
        """A unit says that it follows a newer leader. It is left alone; what this leader is, a unit does not decide."""
        text = f"unit {unit_id.hex()} follows a leader of epoch {epoch}, ours is {self.epoch}"
        self._log("error", text, "epoch")
        self.counters["higher_epochs"] += 1
        if self.counters["higher_epochs"] == 1:
            self._store.add_event(unit_id, "error", "leader", "two_leaders", text)

    def offer(self, unit_id: bytes, run_id: bytes | None) -> None:
        """Tell a unit without being asked from where to go on: what it sent while we were away never arrived."""
        runs = dict(self._runs.get(unit_id, {}))
        if run_id is not None and run_id not in runs:
            runs[run_id] = set(self._store.high_water(unit_id, run_id))
        runs = {run: streams for run, streams in runs.items() if streams}
        if runs:
            self._say_from(unit_id, runs)

    def _say_from(self, unit_id: bytes, runs: dict[bytes, set[int]]) -> None:
        """At once, if all that came from the unit is committed."""
        if unit_id in self._touched:
            questions = self._questions.setdefault(unit_id, {})
            for run_id, streams in runs.items():
                questions.setdefault(run_id, set()).update(streams)
        else:
            marks = self._kept_marks(unit_id, runs) if self._store.shared else self._marks(unit_id, runs)
            self._acknowledge(unit_id, {"through": marks, "from": marks})

    def _kept_marks(self, unit_id: bytes, runs: dict[bytes, set[int]]) -> dict[str, dict[str, int]]:
        """As `_marks`, of streams that others store: one question to the database for each run."""
        kept = {run_id: self._store.high_water(unit_id, run_id) for run_id in runs}
        return {
            run_id.hex(): {str(stream): kept[run_id].get(stream, 0) for stream in sorted(streams)}
            for run_id, streams in runs.items()
        }

    def _marks(self, unit_id: bytes, runs: dict[bytes, set[int]]) -> dict[str, dict[str, int]]:
        return {
            run_id.hex(): {str(stream): self._store.expected(unit_id, run_id, stream) for stream in sorted(streams)}
            for run_id, streams in runs.items()
        }

    def _acknowledge(self, unit_id: bytes, what: dict[str, Any]) -> None:
        self.counters["acknowledgements"] += 1
        self._send(unit_id, {"epoch": self.epoch, **what})

    def _touch(self, key: Key) -> None:
        unit_id, run_id, stream = key
        self._touched.setdefault(unit_id, {}).setdefault(run_id, set()).add(stream)
        runs = self._runs.setdefault(unit_id, {})
        if run_id not in runs and len(runs) >= 8:
            del runs[next(iter(runs))]
        runs.setdefault(run_id, set()).add(stream)

    def _miss(self, key: Key, below: int) -> None:
        """Something is missing below a sequence number: asked for after the commit, if it has not come by then."""
        self.counters["holes"] += 1
        self._holes[key] = max(below, self._holes.get(key, 0))

    def _holes_to_ask_for(self) -> list[Key]:
        """The streams that still have a hole, each at most every ASK_AGAIN_S."""
        now = time.monotonic()
        found = []
        for key, below in list(self._holes.items()):
            mark = self._store.expected(*key)
            if mark >= below:
                del self._holes[key]
                self._asked.pop(key, None)
                self._stuck.pop(key, None)
            elif self._store.shared and self._moves(key, mark, now):
                continue
            elif now - self._asked.get(key, -ASK_AGAIN_S) >= ASK_AGAIN_S:
                self._asked[key] = now
                self.counters["asked_again"] += 1
                found.append(key)
        return found

    def _moves(self, key: Key, mark: int, now: float) -> bool:
        """Whether others have filled the stream up to a mark in the last while: they may fill the rest too."""
        before, since = self._stuck.get(key, (-1, now))
        if mark != before:
            self._stuck[key] = (mark, now)
            return True
        return now - since < OTHERS_S

    def _refuse(self, header: Header, key: Key, why: str) -> None:
        """A block with a readable header is damaged. Sent again it may be whole; else it would be sent for ever."""
        if len(self._refused) >= REFUSED_MAXIMUM:
            self._refused.clear()
        place = (key, header.first_sequence)
        times = self._refused[place] = self._refused.get(place, 0) + 1
        if times < REFUSALS:
            self._miss(key, header.first_sequence + 1)
            return
        del self._refused[place]
        self._store.add_gap(header, f"refused: {why}")
        self.counters["given_up"] += 1
        self._touch(key)
        text = f"sequence {header.first_sequence} to {header.end_sequence - 1} of stream {header.stream}: {why}"
        self._store.add_event(header.unit_id, "error", "leader", "block_refused", f"damaged {times} times, {text}")


def parse_object(payload: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    value = parse_json(payload)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _run_id(text: str) -> bytes:
    if not is_unit_id(text):
        raise ValueError(f"run id {text[:50]!r}, expected 32 hex digits")
    return bytes.fromhex(text)


def _streams(values: object) -> set[int]:
    """The numbers of streams, from their numbers or names."""
    if not isinstance(values, list):
        raise ValueError(f"expected a list of streams, got {type(values).__name__}")
    found = set()
    for value in values:
        number = STREAM_IDS.get(value, value) if isinstance(value, str) else value
        if isinstance(number, str) and number.isdecimal() and len(number) < 4:
            number = int(number)
        if not isinstance(number, int) or number not in STREAM_IDS.values():
            raise ValueError(f"unknown stream {str(value)[:50]!r}")
        found.add(number)
    return found
