"""`stirbar leader`: broker, store, ingest and page of a cluster, in one process and its mosquitto.

`stirbar leader password` sets the password of the page, `stirbar leader link` prints a one-time link to it, `stirbar
leader token` makes, lists and revokes API tokens; `standing_command` has what is about a standby.
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
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from stirbar.bridge.authority import machine_names
from stirbar.bridge.books import PASSWORD_FILE, Books
from stirbar.bridge.broker import Bridge, Broker, BrokerError, Network
from stirbar.bridge.config_history import history_of
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.desired_state import DesiredState
from stirbar.bridge.enrolment import Enrolment
from stirbar.bridge.ingest import Ingest
from stirbar.bridge.places import DATABASE, backup_directory, database_path, database_url, leader_directory
from stirbar.bridge.standdown import StandDown
from stirbar.bridge.standing import STANDBY, Standing, StandingError, check_own_access, read_standing
from stirbar.bridge.store import Store, StoreError, open_store
from stirbar.bridge.upkeep import Settings, Upkeep
from stirbar.core import desired, identity, paths, schema
from stirbar.core.config import Config, ConfigError, add_config_options, config_from_arguments
from stirbar.core.version import VERSION
from stirbar.web import access_command, standing_command
from stirbar.web.app import Site, link_address, make_app
from stirbar.web.auth import LINK_LIFETIME_S, Links, Password, Sessions, write_secret
from stirbar.web.certificate import CertificateError, is_loopback, open_authority, renew, server_context
from stirbar.web.ingests import Ingests
from stirbar.web.leader_options import ADDRESS_FILE
from stirbar.web.live import Live
from stirbar.web.server import Server
from stirbar.web.tending import Tending
from stirbar.web.tokens import Tokens, either

BROKER, BRIDGE = "broker", "standby"  # their certificates' names
RENEWAL_INTERVAL_S = 6 * 3600.0


class LeaderError(Exception):
    """One sentence: why the leader cannot start, and what to do."""


def page_address(config: Config, port: int | None = None) -> str:
    """The address that a person opens on this machine."""
    host = str(config.get("web.config", "bind"))
    scheme = "http" if is_loopback(host) else "https"
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{shown}:{port or config.get('web.config', 'port')}"


def names_of(config: Config, standing: Standing) -> list[str]:
    """What this machine is called by those who read the same config.ini, and by its standby or leader; `localhost` is
    no name for others."""
    names = [config.get("cluster.topology", key) for key in ("leader_hostname", "leader_address")]
    if os.path.exists(paths.cluster_file(config)):
        names = []  # this machine is a unit as well: they are another's
    own = [standing.own.host] if standing.own is not None else []
    return [name for name in [*own, *names] if name and name != "localhost"]


def local_port(config: Config) -> int:
    """Of our own broker on loopback. On a machine that is another leader's unit as well, [mqtt] is about that one."""
    if os.path.exists(paths.cluster_file(config)):
        key = schema.find("mqtt", "broker_port")
        assert key is not None
        return int(key.default)
    return int(config.get("mqtt", "broker_port"))


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
        self.standdown: StandDown | None = None
        self.desired: DesiredState | None = None
        self.live: Live | None = None
        self.server: Server | None = None
        self.site: Site | None = None
        self._lock = take_lock(self.directory)
        self.wake: Callable[[], None] = lambda: None  # what is called when `take_standing` has something to take
        self._tending = Tending(config, self.directory, say)
        self.standing = self._begun = read_standing(self.directory)

    def start(self) -> None:
        """Raises LeaderError, StoreError, BrokerError, CredentialError, CertificateError; what ran is then stopped."""
        try:
            # one that was away may have been replaced meanwhile: that is found out before any unit is let in
            led = self.standing.leads
            if led:
                self.standing = self._tending.step(self.standing, None, lambda: None)
            self._begun = self.standing
            if not self.standing.leads:
                say(f"{self.standing.refusal()}: {self.standing.remedy()}")
            url = database_url(self.config)
            if self.standing.role == STANDBY and url:
                say("the database follows that of the leader by itself; broker and page start with the promotion")
                self._tending.start(lambda: self.standing, None, self.reload, self.wake)
                return
            connection = self._start_broker()
            path = database_path(self.config, self.directory)
            processes = int(self.config.get("leader.config", "ingest_processes")) if self.standing.leads else 0
            self.store = open_store(url or path, shared=processes > 0)
            say(f"store: {self.store.name}")
            if self.standing.leads and self.standing.epoch > self.store.epoch():
                self.store.set_epoch(self.standing.epoch)
            if led and not self.standing.leads:
                self.store.add_event(None, "error", "leader", "deposed", self.standing.refusal())
            self.ingest = Ingest(
                self.store,
                **connection,
                topic_root=self.config.get("mqtt", "topic_root"),
                data_root=self.config.get("mqtt", "data_root"),
                refusal=self.standing.refusal(),
            )
            self.ingest.tell_leaders(self.standing.leaders())
            hours = float(self.config.get("web.config", "session_hours"))
            sessions = Sessions(self.directory, hours * 3600.0)
            self.live = Live(either(sessions, Tokens(self.directory)), VERSION)
            self.live.start()
            self.ingest.listen(self.live.publish)
            self.ingest.start()
            if processes:
                self.ingests = Ingests(processes, self.options, self.directory, say)
                self.ingests.start()
            if self.standing.leads:
                self._lead(self.store, self.ingest)
            self._start_page(self._site(sessions))
            self.upkeep = self._upkeep(self.store, None if url else path)
            self.upkeep.start()
            self._tending.start(lambda: self.standing, self.store, self.reload, self.wake)
        except BaseException:
            self.stop()
            raise

    def _lead(self, store: Store, ingest: Ingest) -> None:
        """What a leader asks of units, and a standby does not."""
        self.standdown = StandDown(store, ingest)
        self.standdown.start()
        self.desired = DesiredState(self.config, history_of(self.config), ingest, self.directory, say)
        self.desired.start()

    def _site(self, sessions: Sessions) -> Site:
        """What the page works with; one that leads an open cluster lets units and a standby in."""
        assert self.store is not None and self.live is not None
        site = Site(self.directory, self.store, self.ingest, self.live, self.broker, VERSION, sessions=sessions)
        site.standing, site.standing_changed = self.standing, self.take_standing
        site.desired, site.config = self.desired, self.config
        closed = is_loopback(self.config.get("leader.config", "broker_bind"))
        if self.broker is not None and self.standing.leads and not closed:
            site.enrolment = Enrolment(self.config, self.broker.reload, say)
            site.books = Books(self.config, self.store, site.enrolment)
        self.site = site
        return site

    def take_standing(self) -> bool:
        """Take in what another process or a standby has changed; whether this machine has to begin anew by it."""
        before, self.standing = self.standing, read_standing(self.directory)
        begun, now = self._begun, self.standing
        if begun.role != now.role or (not now.leads and begun.leaders() != now.leaders()):
            return True
        if self.site is not None:
            self.site.standing = self.standing
        if self.ingest is not None and before.leaders() != now.leaders():
            self.ingest.tell_leaders(self.standing.leaders())
        return False

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
                port=local_port(self.config),
                network=self._network(),
                legacy=self._legacy(),
                bridge=self._bridge(),
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
        """The broker's door for other machines, if the config opens one and this machine leads."""
        bind, port = (self.config.get("leader.config", key) for key in ("broker_bind", "broker_tls_port"))
        if is_loopback(bind) or not self.standing.leads:
            return None
        authority = open_authority(self.directory, bind)
        certificate, key, _ = authority.server(BROKER, *machine_names(bind, names_of(self.config, self.standing)))
        say(f"broker: open to units with a certificate at {bind}:{port}")
        return Network(bind, port, (str(authority.certificate_path), certificate, key, str(authority.revoked_path)))

    def _legacy(self) -> tuple[str, int] | None:
        """The broker's door without TLS, if the config opens one."""
        bind, port = (self.config.get("leader.config", key) for key in ("legacy_bind", "legacy_port"))
        if not port or not self.standing.leads:
            return None
        say(f"broker: open WITHOUT TLS at {bind}:{port} to legacy guests; who listens there reads what they say")
        return bind, port

    def _bridge(self) -> Bridge | None:
        """The leader's broker, if this machine is its standby."""
        leader = self.standing.peer
        if self.standing.role != STANDBY or leader is None:
            return None
        authority = open_authority(self.directory, str(leader))
        certificate, key, _ = authority.client(BRIDGE)
        password = _first_line(str(self.directory / PASSWORD_FILE))
        say(f"broker: listens to that of the leader at {leader}:{leader.broker_port}")
        files = (str(authority.certificate_path), certificate, key)
        return Bridge(leader.host, leader.broker_port, password, files)

    def reload(self) -> None:
        """Let accounts and certificates that another process has changed be in force."""
        if self.broker is not None:
            try:
                self.broker.reload()
            except (CredentialError, OSError) as error:
                say(f"the broker goes on with the accounts it had: {error}")
        if self.desired is not None:
            self.desired.reload()

    def renew(self) -> None:
        """Make certificates anew that are near their end; open connections stay."""
        try:
            self._renew()
        except CertificateError as error:
            say(str(error))

    def _renew(self) -> None:
        names = names_of(self.config, self.standing)
        bind, host = self.config.get("leader.config", "broker_bind"), self.config.get("web.config", "bind")
        if self.broker is not None and self.standing.leads and not is_loopback(bind):
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
        if self.standing.role == STANDBY or os.path.exists(paths.cluster_file(self.config)):
            return  # its unit, if there is one, joined the leader, and its account came with the book
        identifier = identity.unit_id(paths.data_directory(self.config))
        try:
            broker.issue(name, identifier, Path(paths.local_password_file(self.config)))
        except CredentialError as error:
            say(f"this machine's own unit is not let in: {error}")

    def _start_page(self, site: Site) -> None:
        host, port = self.config.get("web.config", "bind"), self.config.get("web.config", "port")
        context, fingerprint = (
            (None, "")
            if is_loopback(host)
            else server_context(self.directory, host, names_of(self.config, self.standing))
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
        self._tending.stop()
        parts = (self.upkeep, self.server, self.live, self.standdown, self.desired, self.ingests, self.ingest)
        for part in parts:
            if part is not None:
                part.stop()
        if self.store is not None:
            self.store.close()
        if self.broker is not None:
            self.broker.stop()
        self.upkeep = self.server = self.live = self.standdown = self.desired = self.ingests = self.ingest = None
        self.store = self.broker = self.site = None
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


def _started(config: Config, options: list[str], wake: Callable[[], None]) -> Leader:
    leader = Leader(config, options)
    leader.wake = wake
    leader.start()
    return leader


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
    leader = _started(config, options or [], asked.set)
    if sys.stdout.isatty():
        token = Links(leader.directory).issue()
        say(f"log in within {LINK_LIFETIME_S / 60:.0f} minutes, once, at:")
        print(link_address(leader.address, token), flush=True)
    else:
        # standard output may be a log: no secret goes there
        say("log in: `stirbar leader link` prints a one-time link")
    while not ended.is_set():
        if not asked.wait(RENEWAL_INTERVAL_S):
            leader.renew()
            continue
        asked.clear()
        leader.reload()
        if leader.take_standing() and not ended.is_set():
            leader.stop()
            leader = _started(config, options or [], asked.set)
    leader.stop()
    say("stopped")
    return 0


def set_password(config: Config) -> int:
    """Ask for the password of the page, twice at a terminal, once from a pipe, and keep its hash."""
    check_own_access(leader_directory(config))
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
    if argv[:1] and argv[0] in standing_command.ACTIONS:
        return standing_command.main(argv, say)
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
    parser.epilog = (
        "`stirbar leader token --help`: API tokens; `stirbar leader audit`: who did what; `stirbar leader "
        "standby-token`, `standby`, `promote`, `standing`, `standby-forget`: a standby (docs/standby.md)."
    )
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    try:
        # a text that does not fit this machine must not keep anybody from correcting it
        config = config_from_arguments(arguments, wanted=desired.NOTHING)
        if arguments.action == "run":
            return run(config, [one for one in argv if one != "run"])
        return {"password": set_password, "link": print_link}[arguments.action](config)
    except (
        ConfigError, LeaderError, StoreError, BrokerError, CredentialError, CertificateError, StandingError, OSError,
    ) as error:  # fmt: skip
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
