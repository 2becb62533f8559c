"""`stirbar ingest`: one of several processes that share a leader's load, by MQTT 5 shared subscriptions.

The leader hears everything but the blocks to be stored; of those the broker gives each to one process of the group, on
the leader's machine or on others, and all of them write one PostgreSQL. Each acknowledges how far a stream is in the
database without a hole, whoever stored what.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from stirbar.bridge.ingest import Ingest
from stirbar.bridge.places import database_path, database_url, leader_directory
from stirbar.bridge.store import StoreError, open_store
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.config import Config

GROUP = "leader"


class SharedIngest(Ingest):
    """See `Ingest`: this one takes blocks from the shared subscription of a group, stores and acknowledges them."""

    def __init__(self, *arguments: Any, group: str = GROUP, **named: Any) -> None:
        self._group = group
        super().__init__(*arguments, **named)

    def _subscriptions(self) -> list[tuple[str, bool]]:
        return [(f"$share/{self._group}/{self._data_root}/+/store/+", True)]

    def _will(self) -> tuple[str, bytes] | None:
        return None  # the leader's state is the leader's to tell

    def _online(self) -> None:
        with self._lock:
            self._connected = True

    def _look_for_silent_units(self) -> None:
        """Who stores only hears no unit live."""

    def _goodbye(self) -> None:
        """Who stores only has nothing to say at the end."""


def connection(config: Config) -> dict[str, Any]:
    """How an ingest reaches the leader's broker: on the leader's machine by its own account, else as [mqtt] says.

    Raises OSError.
    """
    get = config.get
    if get("leader.config", "broker") == "own":
        secret = leader_directory(config) / "credentials" / "leader.password"
        where = {"host": "127.0.0.1", "username": "stirbar-leader", "tls": None}
    else:
        secret = Path(str(get("mqtt", "password_file"))).expanduser()
        authority = os.path.expanduser(str(get("mqtt", "ca_file")))
        where = {
            "host": get("mqtt", "broker_address"),
            "username": get("mqtt", "username"),
            "tls": authority if get("mqtt", "use_tls") else None,
        }
    password = secret.read_text(encoding="utf-8").strip() if secret.name else ""
    return {**where, "port": get("mqtt", "broker_port"), "password": password}


def serve(config: Config, group: str) -> None:
    """Store and acknowledge until SIGTERM or SIGINT. Raises StoreError and OSError."""
    store = open_store(database_url(config) or database_path(config, leader_directory(config)), shared=True)
    try:
        roots = {name: config.get("mqtt", name) for name in ("topic_root", "data_root")}
        ingest = SharedIngest(store, group=group, **connection(config), **roots)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        ingest.start()
        ended.wait()
        ingest.stop()
    finally:
        store.close()


def main(argv: list[str]) -> int:
    """`stirbar ingest`"""
    import argparse

    parser = argparse.ArgumentParser(
        prog="stirbar ingest", description="Store what the broker gives to this process of several (docs/scale.md)."
    )
    parser.add_argument("--share", metavar="GROUP", default=GROUP, help=f"name of the shared subscription ({GROUP})")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    try:
        serve(config_from_arguments(arguments), arguments.share)
    except (ConfigError, StoreError, OSError) as error:
        print(f"stirbar ingest: {error}", file=sys.stderr)
        return 1
    return 0
