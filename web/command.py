"""`stirbar leader`: broker, store, ingest and page of a cluster, in one process and its mosquitto.

`stirbar leader password` sets the password of the page, `stirbar leader link` prints a one-time link to it, `stirbar
leader token` makes, lists and revokes API tokens.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import getpass
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from stirbar.bridge.broker import Broker, BrokerError
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.ingest import Ingest
from stirbar.bridge.store import Store, StoreError, open_store
from stirbar.core import identity, paths
from stirbar.core.config import Config, ConfigError, add_config_options, config_from_arguments
from stirbar.core.version import VERSION
from stirbar.web import access_command
from stirbar.web.app import Site, link_address, make_app
from stirbar.web.auth import LINK_LIFETIME_S, Links, Password, Sessions, write_secret
from stirbar.web.certificate import CertificateError, certificate_files, is_loopback, server_context
from stirbar.web.live import Live
from stirbar.web.server import Server
from stirbar.web.tokens import Tokens, either

DATABASE = "stirbar.sqlite"
ADDRESS_FILE = "address"


class LeaderError(Exception):
    """One sentence: why the leader cannot start, and what to do."""


def leader_directory(config: Config) -> Path:
    """Where the leader keeps its files; made, readable by its owner only, when it is not there."""
    chosen = str(config.get("leader.config", "data_directory"))
    directory = Path(chosen).expanduser() if chosen else Path(paths.data_directory(config)) / "leader"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def database_path(config: Config, directory: Path) -> Path:
    """The SQLite file of readings and events."""
    chosen = str(config.get("leader.config", "database"))
    return Path(chosen).expanduser() if chosen else directory / DATABASE


def page_address(config: Config, port: int | None = None) -> str:
    """The address that a person opens on this machine."""
    host = str(config.get("web.config", "bind"))
    scheme = "http" if is_loopback(host) else "https"
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{shown}:{port or config.get('web.config', 'port')}"


def take_lock(directory: Path) -> int:
    """Hold the leader's directory until this process ends; raises LeaderError when another leader does."""
    descriptor = os.open(directory / "leader.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise LeaderError(f"another leader (process {holder}) works in {directory}: stop it first") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


class Leader:
    """All that `stirbar leader` runs. `start` says in one line each what it started, `stop` ends it in reverse order.

    Synchronization: start and stop from one thread.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.directory = leader_directory(config)
        self.address = ""
        self.broker: Broker | None = None
        self.store: Store | None = None
        self.ingest: Ingest | None = None
        self.live: Live | None = None
        self.server: Server | None = None
        self._lock = take_lock(self.directory)

    def start(self) -> None:
        """Raises LeaderError, StoreError, BrokerError, CredentialError, CertificateError; what ran is then stopped."""
        try:
            connection = self._start_broker()
            path = database_path(self.config, self.directory)
            self.store = open_store(path)
            say(f"store: {path}")
            self.ingest = Ingest(
                self.store,
                **connection,
                topic_root=self.config.get("mqtt", "topic_root"),
                data_root=self.config.get("mqtt", "data_root"),
            )
            hours = float(self.config.get("web.config", "session_hours"))
            sessions = Sessions(self.directory, hours * 3600.0)
            self.live = Live(either(sessions, Tokens(self.directory)), VERSION)
            self.live.start()
            self.ingest.listen(self.live.publish)
            self.ingest.start()
            site = Site(self.directory, self.store, self.ingest, self.live, self.broker, VERSION, sessions=sessions)
            self._start_page(site)
        except BaseException:
            self.stop()
            raise

    def _start_broker(self) -> dict[str, Any]:
        """How ingest reaches the broker; starts our own if the config asks for it."""
        get = self.config.get
        if get("leader.config", "broker") == "own":
            bind = get("leader.config", "broker_bind")
            files = None if is_loopback(bind) else certificate_files(self.directory, bind)
            self.broker = Broker(
                self.directory,
                port=get("mqtt", "broker_port"),
                bind=bind,
                tls=files,
                topic_root=get("mqtt", "topic_root"),
                data_root=get("mqtt", "data_root"),
                log=say,
            )
            self.broker.start()
            say(f"broker: mosquitto at {self.broker.bind}:{self.broker.port}")
            self._admit_own_unit(self.broker)
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.broker.bind, self.broker.bind)
            return {
                "host": host,
                "port": self.broker.port,
                "username": self.broker.username,
                "password": self.broker.password,
                "tls": files[0] if files else None,
            }
        host, port = get("mqtt", "broker_address"), get("mqtt", "broker_port")
        say(f"broker: {host}:{port}, not ours")
        authority = str(get("mqtt", "ca_file"))
        return {
            "host": host,
            "port": port,
            "username": get("mqtt", "username"),
            "password": _first_line(str(get("mqtt", "password_file"))),
            "tls": os.path.expanduser(authority) if get("mqtt", "use_tls") else None,
        }

    def _admit_own_unit(self, broker: Broker) -> None:
        """A leader may be a worker too: let this machine's own unit in, where `stirbar bridge` looks for it."""
        name = paths.unit_name(self.config)
        identifier = identity.unit_id(paths.data_directory(self.config))
        try:
            broker.issue(name, identifier, Path(paths.local_password_file(self.config)))
        except CredentialError as error:
            say(f"this machine's own unit is not let in: {error}")

    def _start_page(self, site: Site) -> None:
        host, port = self.config.get("web.config", "bind"), self.config.get("web.config", "port")
        context, fingerprint = (None, "") if is_loopback(host) else server_context(self.directory, host)
        try:
            self.server = Server(make_app(site), host, port, context)
        except OSError as error:
            why = "it is taken by another program" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise LeaderError(
                f"the page cannot listen on {host} port {port}: {why}; "
                "choose another with --set web.config.port=… or web.config.bind=…"
            ) from None
        self.server.start()
        self.address = page_address(self.config, self.server.port)
        write_secret(self.directory / ADDRESS_FILE, self.address + "\n")
        say(f"page: {self.address}")
        if fingerprint:
            say(f"certificate authority: {self.directory / 'tls' / 'ca.pem'}, SHA-256 {fingerprint}")

    def stop(self) -> None:
        """End everything in reverse order; what is not running is left out."""
        if self.server is not None:
            self.server.stop()
        if self.live is not None:
            self.live.stop()
        if self.ingest is not None:
            self.ingest.stop()
        if self.store is not None:
            self.store.close()
        if self.broker is not None:
            self.broker.stop()
        self.server = self.live = self.ingest = self.store = self.broker = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def say(line: str) -> None:
    """One line to whoever started the leader."""
    print(f"stirbar leader: {line}", file=sys.stderr, flush=True)


def _first_line(path: str) -> str:
    if not path:
        return ""
    try:
        with Path(path).expanduser().open() as file:
            return file.readline().strip()
    except OSError as error:
        raise LeaderError(f"[mqtt] password_file {path} cannot be read: {error.strerror}") from None


def run(config: Config) -> int:
    """Run a leader until SIGTERM or SIGINT."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    for warning in config.warnings:
        say(warning)
    leader = Leader(config)
    leader.start()
    if sys.stdout.isatty():
        token = Links(leader.directory).issue()
        say(f"log in within {LINK_LIFETIME_S / 60:.0f} minutes, once, at:")
        print(link_address(leader.address, token), flush=True)
    else:
        # standard output may be a log: no secret goes there
        say("log in: `stirbar leader link` prints a one-time link")
    ended.wait()
    leader.stop()
    say("stopped")
    return 0


def set_password(config: Config) -> int:
    """Ask for the password of the page, twice at a terminal, once from a pipe, and keep its hash."""
    if sys.stdin.isatty():
        password = getpass.getpass("New password of the page: ")
        if getpass.getpass("Once more: ") != password:
            raise LeaderError("the two are not the same: nothing was changed")
    else:
        password = sys.stdin.readline().rstrip("\n")
    try:
        Password(leader_directory(config)).set(password)
        access_command.note(leader_directory(config), "password")
    except ValueError as error:
        raise LeaderError(str(error)) from None
    say("the password is set; who was logged in has to log in again")
    return 0


def print_link(config: Config) -> int:
    """A one-time link to the leader that runs, or will run, in this data directory."""
    directory = leader_directory(config)
    try:
        address = (directory / ADDRESS_FILE).read_text().strip()
    except OSError:
        address = page_address(config)
    print(link_address(address, Links(directory).issue()))
    access_command.note(directory, "link")
    return 0


def main(argv: list[str]) -> int:
    """`stirbar leader`"""
    if argv[:1] and argv[0] in access_command.ACTIONS:
        return access_command.main(argv, leader_directory, say)
    parser = argparse.ArgumentParser(prog="stirbar leader", description="Run broker, store and page of a cluster.")
    parser.add_argument(
        "action",
        nargs="?",
        choices=("run", "password", "link"),
        default="run",
        help="run (default); password: set that of the page; link: print a one-time link to the page",
    )
    parser.epilog = "`stirbar leader token --help`: API tokens; `stirbar leader audit`: who did what."
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    action = {"run": run, "password": set_password, "link": print_link}[arguments.action]
    try:
        return action(config_from_arguments(arguments))
    except (ConfigError, LeaderError, StoreError, BrokerError, CredentialError, CertificateError, OSError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
