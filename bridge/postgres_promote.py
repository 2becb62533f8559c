"""`stirbar leader promote` where the store is a PostgreSQL server that follows another by streaming replication."""

from __future__ import annotations

import psycopg
from stirbar.bridge.postgres_link import CONNECT_S, shown
from stirbar.bridge.store import StoreError

PATIENCE_S = 60
REMEDY = "run `pg_ctl promote` (Debian: `pg_ctlcluster VERSION NAME promote`) on its machine, then this command again"


def promote(url: str) -> str:
    """A sentence about what was done. Raises StoreError, with what to do by hand."""
    name = shown(url)
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_S) as connection:
            if not _one(connection, "SELECT pg_is_in_recovery()"):
                return f"database {name} takes writes already"
            if not _one(connection, f"SELECT pg_promote(true, {PATIENCE_S})"):
                raise StoreError(f"database {name} was not promoted within {PATIENCE_S} s: {REMEDY}")
    except psycopg.errors.InsufficientPrivilege:
        raise StoreError(f"database {name} follows another, and this account may not promote it: {REMEDY}") from None
    except psycopg.Error as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreError(f"database {name} cannot be asked ({first}): {REMEDY}") from None
    return f"database {name} was promoted: it takes writes now"


def _one(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> bool:
    row = connection.execute(statement.encode()).fetchone()
    return row is not None and bool(row[0])
