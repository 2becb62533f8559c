"""Every version of the configuration that the leader distributes, in its store: who saved it, when, and the text.

The leader and `stirbar cluster config` both write here, each call on a connection of its own and in one transaction:
two editors of one text are told apart by the version that each began with.
"""

from __future__ import annotations

import difflib
import sqlite3
import time
import urllib.parse
from contextlib import contextmanager

from stirbar.bridge.credentials import admitted
from stirbar.bridge.places import database_path, database_url, leader_directory
from stirbar.bridge.store import StoreError, StoreUnavailable
from stirbar.core import desired
from stirbar.core.config import ConfigError, build_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from stirbar.core.config import Config

EVERY_UNIT = b""
LOCK_S = 5.0
COLUMNS = "version, unit_id, saved_ns, saved_by, text, digest"


class Refused(Exception):
    """A text that cannot be distributed; `problems` holds one sentence each, with file, line and key."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Changed(Exception):
    """Somebody else has saved this text meanwhile; `version` is theirs."""

    def __init__(self, version: Version) -> None:
        super().__init__(f"version {version.number} was saved meanwhile by {version.saved_by}")
        self.version = version


class Version:
    """One saved text. Synchronization: immutable by convention."""

    __slots__ = ("digest", "number", "saved_at", "saved_by", "text", "unit_id")

    def __init__(self, number: int, unit_id: bytes, saved_ns: int, saved_by: str, text: str, digest: str) -> None:
        self.number = number
        self.unit_id = bytes(unit_id)
        self.saved_at = saved_ns / 1e9
        self.saved_by = saved_by
        self.text = text
        self.digest = digest

    def as_dict(self) -> dict[str, Any]:
        """Without the text."""
        return {"version": self.number, "t": self.saved_at, "who": self.saved_by, "digest": self.digest}


def nothing_yet(unit_id: bytes) -> Version:
    """What a text is before it was ever saved."""
    return Version(0, unit_id, 0, "", "", "")


class ConfigHistory:
    """See the module. `place` is the SQLite file or the PostgreSQL URL. Synchronization: any thread, any process."""

    def __init__(self, place: Path | str) -> None:
        self._place = place

    def heads(self) -> dict[bytes, Version]:
        """The newest version of every text that was ever saved: {unit_id: version}; EVERY_UNIT is the shared one."""
        newest = "SELECT max(version) FROM config_version GROUP BY unit_id"
        return {one.unit_id: one for one in self._select(f"WHERE version IN ({newest})")}

    def head(self, unit_id: bytes) -> Version:
        """The newest version of a text."""
        found = self.versions(unit_id, 1)
        return found[0] if found else nothing_yet(unit_id)

    def versions(self, unit_id: bytes, limit: int = 100) -> list[Version]:
        """Newest first."""
        return self._select("WHERE unit_id = ? ORDER BY version DESC LIMIT ?", unit_id, limit)

    def version(self, unit_id: bytes, number: int) -> Version:
        """A version of a text; 0 is the empty one before the first. Raises StoreError for one that is not there."""
        if number == 0:
            return nothing_yet(unit_id)
        found = self._select("WHERE unit_id = ? AND version = ?", unit_id, number)
        if not found:
            raise StoreError(f"there is no version {number} of this configuration: `stirbar cluster config history`")
        return found[0]

    def save(self, unit_id: bytes, text: str, who: str, expected: int, at_least: int = 0) -> Version:
        """Save a text that was made from version `expected`, with a number of `at_least` so much.

        The same text as before is saved anew only where that number asks for it. Raises Refused for a text that is not
        valid, Changed when another version is the newest.
        """
        heads = self.heads()
        problems, _ = check(text, unit_id, heads)
        if problems:
            raise Refused(problems)
        layer = desired.Desired(0, 0, True, {desired.SHARED: text, desired.UNIT: ""})
        with self._connection() as connection:
            self._begin(connection)
            row = connection.execute(
                f"SELECT {COLUMNS} FROM config_version WHERE unit_id = ? ORDER BY version DESC LIMIT 1", (unit_id,)
            ).fetchone()
            head = Version(*row) if row else nothing_yet(unit_id)
            if head.number != expected:
                raise Changed(head)
            if head.text == text and head.number >= at_least:
                return head
            (last,) = connection.execute("SELECT coalesce(max(version), 0) FROM config_version").fetchone()
            saved = (max(last + 1, at_least), unit_id, time.time_ns(), who, text, layer.digest())
            connection.execute(f"INSERT INTO config_version ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", saved)
            connection.execute("COMMIT")
        return Version(*saved)

    def book(self) -> list[dict[str, Any]]:
        """The newest version of every text, for a leader that is to take this one's place."""
        return [
            {**one.as_dict(), "unit_id": one.unit_id.hex(), "text": one.text} for _, one in sorted(self.heads().items())
        ]

    def adopt(self, book: list[dict[str, Any]]) -> None:
        """Keep what another leader's `book` has, under the same numbers."""
        rows = [
            (
                one["version"],
                bytes.fromhex(one["unit_id"]),
                round(one["t"] * 1e9),
                one["who"],
                one["text"],
                one["digest"],
            )
            for one in book
        ]
        insert = f"INSERT INTO config_version ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (version) DO NOTHING"
        with self._connection() as connection:
            self._begin(connection)
            for row in rows:
                connection.execute(insert, row)
            connection.execute("COMMIT")

    def units(self) -> dict[str, bytes]:
        """{name: unit_id} of the units that the store knows."""
        with self._connection() as connection:
            return {name: bytes(one) for name, one in connection.execute("SELECT name, unit_id FROM unit").fetchall()}

    def _select(self, rest: str, *values: object) -> list[Version]:
        with self._connection() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM config_version {rest}", values).fetchall()
        return [Version(*row) for row in rows]

    def _begin(self, connection: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("BEGIN IMMEDIATE")
        else:
            connection.execute("BEGIN")
            connection.execute("LOCK TABLE config_version IN EXCLUSIVE MODE")

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """Closed at the end; what was begun and not committed is undone by that."""
        connect, name, error_type = self._connect()
        try:
            connection = connect()
            try:
                yield connection
            finally:
                connection.close()
        except error_type as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StoreUnavailable(
                f"{name}: {text}; the leader makes it, and brings it up to date, when it starts"
            ) from None

    def _connect(self) -> tuple[Callable[[], Any], str, type[Exception]]:
        """How to connect, to what, and what it raises."""
        place = self._place
        if isinstance(place, str):
            import psycopg
            from stirbar.bridge.postgres_link import Link, shown

            return lambda: Link(place), shown(place), psycopg.Error
        address = f"file:{urllib.parse.quote(str(place.absolute()))}?mode=rw"
        return (
            lambda: sqlite3.connect(address, uri=True, isolation_level=None, timeout=LOCK_S), str(place), sqlite3.Error,
        )  # fmt: skip


def history_of(config: Config) -> ConfigHistory:
    """That of the leader on this machine."""
    url = database_url(config)
    return ConfigHistory(url if url is not None else database_path(config, leader_directory(config)))


def unit_ids(config: Config, history: ConfigHistory) -> dict[str, bytes]:
    """{name: unit_id} of the units that a leader may tell something, also of those that never connected yet."""
    members = admitted(leader_directory(config) / "credentials")
    return history.units() if members is None else members


def texts(unit_id: bytes, heads: dict[bytes, Version]) -> dict[str, str]:
    """What a unit is told."""
    own = heads[unit_id].text if unit_id != EVERY_UNIT and unit_id in heads else ""
    return {desired.SHARED: heads[EVERY_UNIT].text if EVERY_UNIT in heads else "", desired.UNIT: own}


def check(text: str, unit_id: bytes, heads: dict[bytes, Version]) -> tuple[list[str], list[str]]:
    """What is wrong with a text for a unit or for all, and what deserves attention. A shared text has to fit every
    unit's own."""
    if len(text.encode("utf-8", "replace")) > desired.TEXT_BYTES or "\0" in text:
        return [f"the text is longer than {desired.TEXT_BYTES} bytes, or no text: take out what has its default"], []
    wanted = dict(heads)
    wanted[unit_id] = Version(0, unit_id, 0, "", text, "")
    problems: dict[str, None] = {}
    warnings: dict[str, None] = {}
    for one in [unit_id] if unit_id else wanted:
        files = desired.Desired(0, 0, True, texts(one, wanted)).files()
        refused = desired.objections(files)
        if not refused:
            try:
                config = build_config(files)
                warnings |= dict.fromkeys([*config.warnings, *config.ignored])
            except ConfigError as error:
                refused = list(error.problems)
        problems |= dict.fromkeys(refused)
    return list(problems), list(warnings)


def difference(old: Version, new: Version) -> str:
    """From one version to another, as `diff -u` shows it; empty where they are the same."""
    lines = difflib.unified_diff(
        old.text.splitlines(), new.text.splitlines(), f"version {old.number}", f"version {new.number}", lineterm=""
    )
    return "".join(f"{line}\n" for line in lines)
