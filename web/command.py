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

from stirbar.bridge.authority import machine_names
from stirbar.bridge.broker import Broker, BrokerError, Network
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.enrolment import Enrolment
from stirbar.bridge.ingest import Ingest
from stirbar.bridge.places import DATABASE, backup_directory, database_path, database_url, leader_directory
from stirbar.bridge.store import Store, StoreError, open_store
from stirbar.bridge.upkeep import Settings, Upkeep
from stirbar.core import identity, paths
from stirbar.core.config import Config, ConfigError, add_config_options, config_from_arguments
from stirbar.core.version import VERSION
from stirbar.web import access_command
from stirbar.web.app import Site, link_address, make_app
from stirbar.web.auth import LINK_LIFETIME_S, Links, Password, Sessions, write_secret
from stirbar.web.certificate import CertificateError, is_loopback, open_authority, renew, server_context
from stirbar.web.ingests import Ingests
from stirbar.web.live import Live
from stirbar.web.server import Server
from stirbar.web.tokens import Tokens, either

ADDRESS_FILE = "address"
BROKER = "broker"  # its certificate's name
RENEWAL_INTERVAL_S = 6 * 3600.0


class LeaderError(Exception):
    """One sentence: why the leader cannot start, and what to do."""


def page_address(config: Config, port: int | None = None) -> str:
    """The address that a person opens on this machine."""
    host = str(config.get("web.config", "bind"))
    scheme = "http" if is_loopback(host) else "https"
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{shown}:{port or config.get('web.config', 'port')}"


def names_of(config: Config) -> list[str]:
    """What this machine is called by those who read the same config.ini; `localhost` is no name for others."""
    names = (config.get("cluster.topology", key) for key in ("leader_hostname", "leader_address"))
    return [name for name in names if name and name != "localhost"]


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

    def __init__(self, config: Config, options: list[str] | None = None) -> None:
        self.config = config
        self.options = options or []  # of the command line, for processes of the leader's own
        self.ingests: Ingests | None = None
        self.directory = leader_directory(config)
        self.address = ""
        self.broker: Broker | None = None
        self.store: Store | None = None
        self.upkeep: Upkeep | None = None
        self.ingest: Ingest | None = None
        self.live: Live | None = None
        self.server: Server | None = None
        self._lock = take_lock(self.directory)

    def start(self) -> None:
        """Raises LeaderError, StoreError, BrokerError, CredentialError, CertificateError; what ran is then stopped."""
        try:
            connection = self._start_broker()
            path = database_path(self.config, self.directory)
            url = database_url(self.config)
            processes = int(self.config.get("leader.config", "ingest_processes"))
            self.store = open_store(url or path, shared=processes > 0)
            say(f"store: {self.store.name}")
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
            if processes:
                self.ingests = Ingests(processes, self.options, self.directory, say)
                self.ingests.start()
            site = Site(self.directory, self.store, self.ingest, self.live, self.broker, VERSION, sessions=sessions)
            if self.broker is not None and not is_loopback(self.config.get("leader.config", "broker_bind")):
                site.enrolment = Enrolment(self.config, self.broker.reload, say)
            self._start_page(site)
            self.upkeep = self._upkeep(self.store, None if url else path)
            self.upkeep.start()
        except BaseException:
            self.stop()
            raise

    def _upkeep(self, store: Store, database: Path | None) -> Upkeep:
        names = ("backup_interval_hours", "backup_keep", "keep_readings_days", "keep_raw_days")
        numbers = [self.config.get("leader.config", name) for name in names]
        if database is None:
            say("backups of PostgreSQL are those of its server: docs/store.md")
            numbers[0] = 0.0
        file = database or self.directory / DATABASE
        return Upkeep(store, Settings(file, backup_directory(self.config, file), *numbers), say)

    def _start_broker(self) -> dict[str, Any]:
        """How ingest reaches the broker; starts our own if the config asks for it."""
        get = self.config.get
        if get("leader.config", "broker") == "own":
            self.broker = Broker(
                self.directory,
                port=get("mqtt", "broker_port"),
                network=self._network(),
                topic_root=get("mqtt", "topic_root"),
                data_root=get("mqtt", "data_root"),
                log=say,
            )
            self.broker.start()
            say(f"broker: mosquitto at {self.broker.bind}:{self.broker.port}")
            self._admit_own_unit(self.broker)
            return {
                "host": self.broker.bind,
                "port": self.broker.port,
                "username": self.broker.username,
                "password": self.broker.password,
                "tls": None,
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

    def _network(self) -> Network | None:
        """The broker's door for other machines, if the config opens one."""
        bind, port = (self.config.get("leader.config", key) for key in ("broker_bind", "broker_tls_port"))
        if is_loopback(bind):
            return None
        authority = open_authority(self.directory, bind)
        certificate, key, _ = authority.server(BROKER, *machine_names(bind, names_of(self.config)))
        say(f"broker: open to units with a certificate at {bind}:{port}")
        return Network(bind, port, (str(authority.certificate_path), certificate, key, str(authority.revoked_path)))

    def reload(self) -> None:
        """Let accounts and certificates that another process has changed be in force."""
        if self.broker is not None:
            try:
                self.broker.reload()
            except (CredentialError, OSError) as error:
                say(f"the broker goes on with the accounts it had: {error}")

    def renew(self) -> None:
        """Make certificates anew that are near their end; open connections stay."""
        try:
            self._renew()
        except CertificateError as error:
            say(str(error))

    def _renew(self) -> None:
        names = names_of(self.config)
        bind, host = self.config.get("leader.config", "broker_bind"), self.config.get("web.config", "bind")
        if self.broker is not None and not is_loopback(bind):
            made = open_authority(self.directory, bind).server(BROKER, *machine_names(bind, names))[2]
            if made:
                self.broker.reload()
        if self.server is not None and self.server.tls is not None:
            renew(self.directory, host, self.server.tls, names)

    def _admit_own_unit(self, broker: Broker) -> None:
        """A leader may be a worker too: let this machine's own unit in, where `stirbar bridge` looks for it."""
        name = paths.unit_name(self.config)
        if not self.config.section("cluster.inventory").get(name, True):
            return  # a leader that is no worker
        identifier = identity.unit_id(paths.data_directory(self.config))
        try:
            broker.issue(name, identifier, Path(paths.local_password_file(self.config)))
        except CredentialError as error:
            say(f"this machine's own unit is not let in: {error}")

    def _start_page(self, site: Site) -> None:
        host, port = self.config.get("web.config", "bind"), self.config.get("web.config", "port")
        context, fingerprint = (
            (None, "") if is_loopback(host) else server_context(self.directory, host, names_of(self.config))
        )
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
        if self.upkeep is not None:
            self.upkeep.stop()
        if self.server is not None:
            self.server.stop()
        if self.live is not None:
            self.live.stop()
        if self.ingests is not None:
            self.ingests.stop()
        if self.ingest is not None:
            self.ingest.stop()
        if self.store is not None:
            self.store.close()
        if self.broker is not None:
            self.broker.stop()
        self.upkeep = self.server = self.live = self.ingests = self.ingest = self.store = self.broker = None
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


def run(config: Config, options: list[str] | None = None) -> int:
    """Run a leader until SIGTERM or SIGINT; `options` are those of the command line."""
    ended, asked = threading.Event(), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()
        asked.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGUSR1, lambda number, frame: asked.set())  # `stirbar cluster` has changed something
    for warning in config.warnings:
        say(warning)
    leader = Leader(config, options)
    leader.start()
    if sys.stdout.isatty():
        token = Links(leader.directory).issue()
        say(f"log in within {LINK_LIFETIME_S / 60:.0f} minutes, once, at:")
        print(link_address(leader.address, token), flush=True)
    else:
        # standard output may be a log: no secret goes there
        say("log in: `stirbar leader link` prints a one-time link")
    while not ended.is_set():
        if asked.wait(RENEWAL_INTERVAL_S):
            asked.clear()
            leader.reload()
        else:
            leader.renew()
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
    try:
        config = config_from_arguments(arguments)
        if arguments.action == "run":
            return run(config, [one for one in argv if one != "run"])
        return {"password": set_password, "link": print_link}[arguments.action](config)
    except (ConfigError, LeaderError, StoreError, BrokerError, CredentialError, CertificateError, OSError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
