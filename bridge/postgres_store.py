"""The store in PostgreSQL, for a laboratory that outgrows one file: the same tables, statements and promises.

Readings come by COPY. What people enter is committed with `synchronous_commit = on`, streams without waiting for the
disk: a crash of the server may take the last moments, and their marks with them, so the units send them again.
"""

from __future__ import annotations

import pathlib
import time
from contextlib import suppress

import psycopg
from stirbar.bridge.postgres_link import Link, shown
from stirbar.bridge.sqlite_check import MIGRATIONS, migration_steps
from stirbar.bridge.sqlite_reader import SqliteReader
from stirbar.bridge.sqlite_store import SqliteStore
from stirbar.bridge.store import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.bridge.sqlite_rows import Pending

LEADER_LOCK = 0x73746972  # of pg_try_advisory_lock, within one database
LEADER_LOCK_S = 3.0  # a leader that was killed leaves its lock when the server notices
_TINY = "9.094947017729282e-13"  # 2 ** -40: sums that overflow are an error in PostgreSQL
_ADDED = (
    "CASE WHEN abs(old.sum) < 1e307 AND abs(excluded.sum) < 1e307 THEN old.sum + excluded.sum "
    "ELSE 'Infinity'::double precision END"
)


class PostgresStore(SqliteStore):
    """See `Store`, and `SqliteStore`, whose statements it speaks through a `Link`.

    An advisory lock of the writing connection keeps a second leader away.
    """

    ERROR = psycopg.Error
    TRY_LOCK = "pg_try_advisory_lock"
    SUM = (
        f"CASE WHEN abs(sum({{0}} * {_TINY})) < 1e295 THEN sum({{0}} * {_TINY}) / {_TINY} "
        "ELSE 'Infinity'::double precision END"
    )

    def __init__(self, url: str) -> None:
        SqliteReader.__init__(self, pathlib.Path())
        self.name = shown(url)
        self._url = url
        self._open_lock()
        self._commits = 0  # the number of the transaction that is open
        try:
            self._writer = Link(url, self._take_lock)
            try:
                self._migrate()
                self._load()
            except BaseException:
                self._writer.close()
                raise
        except psycopg.Error as error:
            raise StoreError(f"database {self.name} cannot be used: {_first_line(error)}") from None

    # Opening

    def _take_lock(self, raw: psycopg.Connection[Any]) -> None:
        end = time.monotonic() + LEADER_LOCK_S
        while True:
            row = raw.execute(f"SELECT {self.TRY_LOCK}({LEADER_LOCK})").fetchone()
            if row is not None and row[0]:
                return
            if time.monotonic() > end:
                raise StoreError(f"database {self.name} is in use by another leader: stop it, or name another database")
            time.sleep(0.1)

    def _migrate(self) -> None:
        execute = self._writer.execute
        tables = "SELECT 1 FROM pg_tables WHERE schemaname = current_schema()"
        if execute(f"{tables} AND tablename = 'stirbar_schema'").fetchone():
            (version,) = execute("SELECT version FROM stirbar_schema").fetchone()
        elif execute(f"{tables} LIMIT 1").fetchone():
            raise StoreError(f"database {self.name} has tables of something else: name another database")
        else:
            version = 0
        steps = migration_steps(MIGRATIONS / "postgres")
        if version > steps[-1][0]:
            raise StoreError(
                f"database {self.name} has schema version {version}, this stirbar knows {steps[-1][0]}: update stirbar"
            )
        for number, step in steps:
            if number > version:
                keep = "CREATE TABLE IF NOT EXISTS stirbar_schema (version BIGINT NOT NULL); DELETE FROM stirbar_schema"
                script = f"BEGIN; {step.read_text(encoding='utf-8')}; {keep}"
                self._writer.executescript(f"{script}; INSERT INTO stirbar_schema VALUES ({number}); COMMIT")

    def _connect_to_read(self) -> Any:
        link = Link(self._url)
        link.execute("SET default_transaction_read_only = on")
        return link

    # Writing

    def _begin(self, synchronous: str) -> None:
        """Each transaction has a number, by which `_end` knows it again."""
        self._writer.execute("BEGIN")
        self._writer.execute(f"SET LOCAL synchronous_commit = {'on' if synchronous == 'FULL' else 'off'}")
        (self._commits,) = self._writer.execute(
            "UPDATE leadership SET commits = commits + 1 RETURNING commits"
        ).fetchone()

    def _end(self) -> None:
        """A COMMIT whose answer was lost may have gone through: it is asked, lest data come twice."""
        try:
            self._writer.execute("COMMIT")
        except psycopg.OperationalError:
            if self._writer.in_transaction:
                raise
            (commits,) = self._writer.execute("SELECT commits FROM leadership").fetchone()
            if commits != self._commits:
                raise

    def _write(self, pending: Pending) -> None:
        self._writer.copy("reading", pending.readings)
        pending.write_rest(self._writer, _ADDED)

    def _size(self) -> int | None:
        with suppress(StoreError):
            return int(self._rows("SELECT pg_database_size(current_database())")[0][0])
        return None

    def _let_go(self) -> None:
        self._writer.close()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
