"""A PostgreSQL of our own for the tests, as an unprivileged user: initdb refuses root."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

USER = "nobody"  # who runs the server when the tests are root


def programs() -> pathlib.Path | None:
    """Where initdb and postgres are; the newest of several."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else pathlib.Path(on_path).resolve().parent if on_path else None


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run one on a Unix socket alone; yields a function's worth of address: a URL without the name of a database."""
    bin_directory = programs()
    if bin_directory is None:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'stirbar[postgres]'")
    first = [bin_directory / "initdb", "-U", "stirbar", "-A", "trust", "-E", "UTF8", "--no-sync", "-D"]
    with _running(bin_directory, first) as address:
        yield address


@contextlib.contextmanager
def follower(address: str) -> Iterator[str]:
    """A second one, which follows the first by streaming replication."""
    bin_directory = programs()
    assert bin_directory is not None
    source = address.partition("?host=")[2]
    copied = [bin_directory / "pg_basebackup", "-h", source, "-U", "stirbar", "-R", "-c", "fast", "--no-sync", "-D"]
    with _running(bin_directory, copied) as second:
        yield second


@contextlib.contextmanager
def _running(bin_directory: pathlib.Path, made_by: list[object]) -> Iterator[str]:
    """A server whose data directory a command makes that is given its place as the last word."""
    directory = tempfile.mkdtemp(prefix="stirbar-pg-")
    data, prefix = f"{directory}/data", []
    if os.geteuid() == 0:
        shutil.chown(directory, USER)
        prefix = ["setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": directory}
    try:
        subprocess.run([*prefix, *made_by, data], check=True, capture_output=True, env=environment, cwd=directory)
        options = f"-c listen_addresses='' -c unix_socket_directories={directory} -c fsync=off"
        control = [*prefix, bin_directory / "pg_ctl", "-D", data, "-w"]
        subprocess.run(
            [*control, "-l", f"{directory}/log", "-o", options, "start"],
            check=True, env=environment, cwd=directory, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield f"postgresql://stirbar:secret@/{{}}?host={directory}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], env=environment, cwd=directory, capture_output=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def fresh(address: str, name: str) -> str:
    """The URL of a new, empty database."""
    import psycopg

    with psycopg.connect(address.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return address.format(name)
