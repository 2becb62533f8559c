"""Where the leader keeps what the units measured: the interface of every store, and how one is opened.

A store is written by one ingest thread (`add`, then `commit` at most once a second) and read by any number of others.
Only what `commit` has returned for may be acknowledged to a unit. Unit and run ids are 16 raw bytes, times are Unix
seconds, streams are the numbers of `stirbar.core.records.STREAMS`.
"""

from __future__ import annotations

import os
import pathlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from stirbar.core.records import Header

    Marks = dict[tuple[bytes, bytes, int], int]


POSTGRES_SCHEMES = ("postgresql", "postgres")


class StoreError(Exception):
    """The store cannot do what was asked: the sentence says what, and what helps."""


class StoreUnavailable(StoreError):
    """Not now: locked, disk full or too much waiting. Nothing was lost that the store had; try again."""


class Store:
    """The interface. Synchronization: any method from any thread; `add` and `commit` from one thread at a time.

    `name` says which one it is, without a password.
    """

    name: str
    shared = False  # whether other processes write it too: then what this one was given says nothing of holes

    def epoch(self) -> int:
        """The leadership epoch: 1 for the first leader of a cluster."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Keep the epoch of a new leadership. Raises StoreUnavailable."""
        raise NotImplementedError

    def add(self, header: Header, payload: bytes) -> None:
        """Buffer one block from `store/<stream>`: readings, events (JSON), a raw chunk or a gap.

        What is here already is left out (key: unit, run, stream, sequence). Raises ValueError when header and payload
        do not agree or a field is out of its range, StoreUnavailable when too much waits for a commit; then nothing of
        the block was taken.
        """
        raise NotImplementedError

    def add_gap(self, header: Header, reason: str) -> None:
        """Buffer a gap over the sequence numbers of `header`, whatever its kind. Raises ValueError for a bad one."""
        raise NotImplementedError

    def commit(self) -> Marks:
        """Write what is buffered in one transaction; return the high-water marks that moved.

        Raises StoreUnavailable when that is not possible now; the buffer stays, and the next call tries again.
        """
        raise NotImplementedError

    def set_clock(self, unit_id: bytes, boot_id: bytes, zero_ns: int, error_ns: int) -> None:
        """Of a boot of a unit: the leader's time of monotonic zero, and how far the unit's wall clock is ahead of it.

        Wall times of that boot that differ by more than two seconds from `zero_ns` + monotonic time are replaced by it
        and flagged (CLOCK_CORRECTED): from now on and, the first time that anything is said of a boot, with the next
        commit in what is stored already.
        """
        raise NotImplementedError

    def expected(self, unit_id: bytes, run_id: bytes, stream: int) -> int:
        """The sequence number that comes next without a hole, counting what is only buffered."""
        raise NotImplementedError

    def high_water(self, unit_id: bytes, run_id: bytes) -> dict[int, int]:
        """{stream: mark}: every datum below the mark is committed, or committed as a gap."""
        raise NotImplementedError

    def units(self) -> list[dict[str, Any]]:
        """`unit_id`, `unit` (name), `describe` (dict), `first_seen`, `experiment` and `label` (or None), `tags`; in
        order of name."""
        raise NotImplementedError

    def upsert_units(self, units: list[tuple[bytes, str, dict[str, Any]]]) -> None:
        """Take note of units, (unit_id, name, description) each, in one transaction. Raises StoreUnavailable."""
        raise NotImplementedError

    def upsert_unit(self, unit_id: bytes, name: str, describe: dict[str, Any]) -> None:
        """The same of one unit."""
        self.upsert_units([(unit_id, name, describe)])

    def experiments(self) -> list[dict[str, Any]]:
        """`name`, `description`, `created_at`, `units` (names of the units assigned now), newest first."""
        raise NotImplementedError

    def create_experiment(self, name: str, description: str = "") -> None:
        """Raises StoreError for a name that exists or that cannot be part of an MQTT topic."""
        raise NotImplementedError

    def adopt_experiment(self, name: str, description: str, created_at: float) -> None:
        """Have an experiment as another leader has it, whether it is here already or not. Raises StoreUnavailable."""
        raise NotImplementedError

    def assign(self, unit_id: bytes, experiment: str | None) -> None:
        """Assign a unit to an experiment from now on (None: to no one). Raises StoreError when one is unknown."""
        raise NotImplementedError

    def assignments(self) -> dict[bytes, str]:
        """{unit_id: experiment} now in force."""
        raise NotImplementedError

    def assignment_history(
        self, unit_id: bytes | None = None, experiment: str | None = None, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Newest first: `unit_id`, `unit`, `experiment`, `label` (or None), `from`, `until` (None: in force)."""
        raise NotImplementedError

    def set_label(self, unit_id: bytes, experiment: str, label: str) -> str:
        """What people call a unit within an experiment; "" takes it away. Raises StoreError for one that is taken."""
        raise NotImplementedError

    def labels(self, experiment: str) -> dict[bytes, str]:
        """{unit_id: label} within an experiment, those that have left it included."""
        raise NotImplementedError

    def set_tags(self, unit_id: bytes, tags: list[str]) -> list[str]:
        """The words by which a unit is chosen, all of them; returns them sorted. Raises StoreError for one that is
        none."""
        raise NotImplementedError

    def replace(self, experiment: str, failed_id: bytes, spare_id: bytes) -> dict[str, Any]:
        """In one transaction: the spare gets the failed unit's assignment, label and tags, which are returned, and the
        failed one has to stand down. Raises StoreError when one is not where it should be."""
        raise NotImplementedError

    def standing_down(self) -> list[bytes]:
        """The units that were replaced and have not stopped their jobs yet."""
        raise NotImplementedError

    def stood_down(self, unit_id: bytes) -> None:
        """A replaced unit has stopped its jobs."""
        raise NotImplementedError

    def vitals(self, unit_id: bytes, start_s: float, end_s: float, points: int) -> list[dict[str, Any]]:
        """How a unit's computer was: per figure that it tells `name`, `unit_of_value`, and lists `t`, `low`, `mean`,
        `high`, at most `points` + 1 bins of equal length; `t` is a bin's middle."""
        raise NotImplementedError

    def drop_vitals(self, before_s: float) -> int:
        """Take away a batch of older vitals; returns how many, 0 for no more. Raises StoreUnavailable."""
        raise NotImplementedError

    def experiment_events(self, experiment: str) -> Iterator[dict[str, Any]]:
        """In order of arrival, the events of units while in an experiment: `id`, `wall_ns`, `unit`, `unit_id`, `level`,
        `source`, `code`, `message`, and `object`, the JSON text as it came."""
        raise NotImplementedError

    def experiment_gaps(self, experiment: str) -> list[dict[str, Any]]:
        """What is known to be lost of runs that have data in an experiment: `unit`, `unit_id`, `run_id`, `stream`,
        `first_sequence`, `count`, `reason`, `wall_ns`."""
        raise NotImplementedError

    def series(
        self,
        stream: int,
        start_s: float,
        end_s: float,
        points: int,
        unit_ids: list[bytes] | None = None,
        experiment: str | None = None,
    ) -> list[dict[str, Any]]:
        """One line per unit and angle: `unit_id`, `unit`, `stream`, `angle`, and lists `t`, `low`, `high`, `mean`.

        At most `points` + 1 points a line. A point is one reading (low = high = mean), or a bin of equal length
        with the extremes and the mean of its finite values, at the bin's middle; bins without one are left out.
        """
        raise NotImplementedError

    def csv_rows(self, experiment: str, stream: int | None = None) -> Iterator[list[str]]:
        """The readings of an experiment as rows of text, names of the columns first. Raises StoreError if unknown."""
        raise NotImplementedError

    def add_event(self, unit_id: bytes | None, level: str, source: str, code: str, message: str) -> dict[str, Any]:
        """Buffer an event that the leader itself makes, about a unit or about no one; return it as `events` would."""
        raise NotImplementedError

    def events(
        self, unit_id: bytes | None = None, limit: int = 100, before: float | None = None
    ) -> list[dict[str, Any]]:
        """Newest first: `id`, `t`, `unit_id`, `unit` (None: the leader), `level`, `source`, `code`, `message`, `value`,
        and `acknowledged_at`, `acknowledged_by` (None: not acknowledged).

        `before` (a `t`) is exclusive.
        """
        raise NotImplementedError

    def alerts(self, unit_id: bytes | None = None, limit: int = 100) -> dict[str, Any]:
        """Warnings and errors that nobody has acknowledged: `count` of all, the `newest` of their ids, and `alerts`.

        `alerts` are the newest as `events` gives them, each with `over`: when it ended by itself, None while it lasts
        or where nobody says.
        """
        raise NotImplementedError

    def acknowledge(self, first: int, last: int, unit_id: bytes | None, by: str) -> list[str | None]:
        """Acknowledge the alerts with ids from `first` to `last`, of a unit or of all, for ever.

        Returns the names of the units that they were of, one for each alert. Raises StoreError for a single id that is
        none of a warning or error.
        """
        raise NotImplementedError

    def gaps(self, unit_id: bytes | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Newest first: `unit_id`, `unit`, `run_id`, `stream`, `first_sequence`, `count`, `reason`, `t`."""
        raise NotImplementedError

    def raw_chunks(self, unit_id: bytes, start_s: float, end_s: float) -> list[tuple[Header, bytes]]:
        """The raw chunks made between two times, oldest first, as they came (kind 5)."""
        raise NotImplementedError

    def aged_series(self, before_s: float) -> list[int]:
        """Numbers of the series of readings, for `thin`, of runs that were known before a time."""
        raise NotImplementedError

    def thin(self, series: int, before_s: float) -> int:
        """Keep a batch of the older readings of a series as roll-ups only; returns how many, 0 when there are no more.

        Whole roll-ups only: `before_s` is rounded down to the coarsest. Raises StoreUnavailable.
        """
        raise NotImplementedError

    def drop_raw(self, before_s: float) -> int:
        """Take away a batch of older raw chunks; returns how many, 0 for no more. Raises StoreUnavailable."""
        raise NotImplementedError

    def counters(self) -> dict[str, Any]:
        """What was stored, left out, refused, retried and waits, since this store was opened."""
        raise NotImplementedError

    def close(self) -> None:
        """Commit what is buffered, if possible, and let go of the database."""
        raise NotImplementedError


def open_store(url_or_path: str | os.PathLike[str], shared: bool = False) -> Store:
    """Open the store behind a file path, `sqlite://<path>` (three slashes with an absolute one) or `postgresql://…`.

    It is made, and brought up to date, when needed. `shared`: several processes write it, which only PostgreSQL can.

    Raises StoreError: not a store, made by a newer stirbar, in use by another leader, or a kind of database that this
    version does not speak.
    """
    text = os.fspath(url_or_path)
    scheme, separator, rest = text.partition("://")
    if separator and scheme in POSTGRES_SCHEMES:
        try:
            from stirbar.bridge.postgres_shared import SharedPostgresStore
            from stirbar.bridge.postgres_store import PostgresStore
        except ImportError:
            raise StoreError(
                "psycopg, which speaks to PostgreSQL, is missing: pip install 'stirbar[postgres]'"
            ) from None
        return SharedPostgresStore(text) if shared else PostgresStore(text)
    if separator and scheme != "sqlite":
        raise StoreError(f"store '{scheme}://…' is not spoken here: give a path, sqlite://<path> or postgresql://…")
    if shared:
        raise StoreError(
            "SQLite is written by one process: for several ingest processes name a PostgreSQL database in "
            "[leader.config] database (docs/scale.md)"
        )
    from stirbar.bridge.sqlite_store import SqliteStore

    return SqliteStore(pathlib.Path(rest if separator else text).expanduser())
