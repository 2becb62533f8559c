"""A connection to PostgreSQL that takes the statements of the SQLite store: `?` and `?1` for values, sqlite3's calls.

Synchronization: one thread at a time, as `sqlite3.Connection`; `interrupt` from any.
"""

from __future__ import annotations

import functools
import re

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import FloatLoader
from stirbar.bridge.store import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

CONNECT_S = 5
LOCK_MS = 1000  # how long to wait for another's lock; the ingest waits with it
ROWS_AT_ONCE = 500
_PLACE = re.compile(r"\?(\d*)")
_VALUES = re.compile(r"VALUES \([?,]+\)")


def shown(url: str) -> str:
    """The address without its password, for messages. Raises StoreError for one that is none."""
    try:
        parts = conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # its text may hold the password
        raise StoreError("the postgresql:// URL of the database cannot be read: postgresql://user@host/name") from None
    user = f"{parts['user']}@" if parts.get("user") else ""
    port = f":{parts['port']}" if parts.get("port") else ""
    host = parts.get("host") or ""
    return f"postgresql://{user}{host if not str(host).startswith('/') else ''}{port}/{parts.get('dbname') or ''}"


@functools.cache
def translated(statement: str) -> str:
    """The statement with psycopg's placeholders."""
    text = statement.replace("%", "%%")
    return _PLACE.sub(lambda found: f"%(p{found[1]})s" if found[1] else "%s", text)


class Link:
    """See the module. A connection that broke is made anew at the next statement outside a transaction.

    `greet` is called on every new connection.
    """

    def __init__(self, url: str, greet: Callable[[psycopg.Connection[Any]], None] | None = None) -> None:
        self._url = url
        self._greet = greet
        self._raw = self._connect()

    def _connect(self) -> psycopg.Connection[Any]:
        raw: psycopg.Connection[Any] = psycopg.connect(
            self._url, autocommit=True, connect_timeout=CONNECT_S, cursor_factory=psycopg.ClientCursor
        )
        raw.adapters.register_loader("numeric", FloatLoader)  # sums of counts
        raw.execute(f"SET lock_timeout = {LOCK_MS}")
        raw.execute("SET client_min_messages = warning")
        if self._greet is not None:
            try:
                self._greet(raw)
            except BaseException:
                raw.close()
                raise
        return raw

    @property
    def in_transaction(self) -> bool:
        return not self._raw.closed and self._raw.info.transaction_status != TransactionStatus.IDLE

    def execute(self, statement: str, values: Any = ()) -> psycopg.Cursor[Any]:
        if self._raw.closed:
            self._raw = self._connect()
        if "?1" in statement:
            values = {f"p{number}": value for number, value in enumerate(values, 1)}
        return self._raw.execute(translated(statement).encode(), values or None if "%" in statement else values)

    def executescript(self, script: str) -> None:
        """Several statements, without values."""
        self._raw.execute(script.encode())

    def executemany(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Many rows in one statement, unless one of them may be about the same row as another."""
        all_rows = list(rows)
        places = _VALUES.search(statement)
        if places is None or len({row[:2] for row in all_rows}) < len(all_rows):
            for row in all_rows:
                self.execute(statement, row)
            return
        one = places[0].removeprefix("VALUES ")
        for start in range(0, len(all_rows), ROWS_AT_ONCE):
            part = all_rows[start : start + ROWS_AT_ONCE]
            whole = statement.replace(places[0], "VALUES " + ",".join([one] * len(part)))
            text = whole.replace("%", "%%").replace("?", "%s")
            self._raw.execute(text.encode(), [value for row in part for value in row])

    def copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """COPY rows into a table; NaN becomes NULL, as SQLite has it."""
        with self._raw.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
            for row in rows:
                copy.write_row([None if value != value else value for value in row])

    def interrupt(self) -> None:
        self._raw.cancel()

    def close(self) -> None:
        self._raw.close()

    def __del__(self) -> None:
        raw = getattr(self, "_raw", None)
        if raw is not None:
            raw.close()
