"""mosquitto as the leader's own child: generated configuration, passwords and ACL; it dies with the leader.

Three traps are avoided here. Started by root, mosquitto would drop to its own user after reading its command line,
would then be unable to read a root-only password file, and would lose its parent-death signal: so setpriv changes the
user first and sets the signal last. The broker's user may be unable to walk to the leader's data directory: so the
process starts *inside* its own directory and every path in its configuration is relative. And the kernel sends the
parent-death signal when the *thread* that forked ends: so the thread that starts the broker stays with it.
"""

from __future__ import annotations

import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from stirbar.bridge.authority import is_loopback
from stirbar.bridge.credentials import LEADER, STANDBY, Credentials, write_private
from stirbar.bridge.topics import standby_subscriptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

START_LIMIT_S = 10.0
PORT_WAIT_S = 3.0  # an earlier broker that is just dying may hold the port that long
BACK_OFF_S = (0.1, 10.0)  # first and longest pause before the broker is started again
SETTLED_S = 30.0  # after this long without dying, the pause starts small again
STOP_LIMIT_S = 5.0
LOG_LIMIT_BYTES = 1 << 20

RIGHTS = """\
allow_anonymous false
password_file password
acl_file acl
"""

# Queues have no limit of messages but one of bytes, so that nothing is dropped while the leader is slow; what is
# dropped beyond it is counted by the broker and sent again by the units.
CONFIGURATION = """\
{scope}listener {port} {bind}
{tls}{rights}{network}{legacy}persistence true
persistence_location ./
persistence_file broker.db
autosave_interval 300
persistent_client_expiration 1d
max_queued_messages 0
max_queued_bytes 268435456
max_inflight_messages 200
max_packet_size 8388608
set_tcp_nodelay true
sys_interval 5
connection_messages false
log_dest stderr
log_type error
log_type warning
"""


# For guests that know no TLS, and for nobody else; its passwords and rights are of their own.
LEGACY = """\
listener {port} {bind}
max_connections 64
allow_anonymous false
password_file legacy-password
acl_file legacy-acl
"""


# Other machines must show a certificate of our authority that is not revoked, and then a password as well.
NETWORK = """\
listener {port} {bind}
cafile network-ca.pem
certfile network.pem
keyfile network-key.pem
crlfile network-crl.pem
require_certificate true
tls_version tlsv1.2
"""


# A standby hears what the units tell the leader, by the leader's network door and with an account that may only read.
# What it does not fetch waits at the leader; what is lost beyond that, it asks the units for when it is promoted.
BRIDGE = """\
connection {username}
address {host}:{port}
remote_username {username}
remote_password {password}
remote_clientid {username}
bridge_cafile bridge-ca.pem
bridge_certfile bridge.pem
bridge_keyfile bridge-key.pem
bridge_tls_version tlsv1.2
bridge_protocol_version mqttv50
cleansession false
notifications false
keepalive_interval 15
restart_timeout 1 10
"""


class BrokerError(Exception):
    """The broker cannot run; one sentence says why and what helps."""


class Network:
    """Where units on other machines reach the broker, by TLS 1.2 or later and with a certificate of their own; `files`
    are CA, certificate, key and list of revoked certificates.

    Synchronization: immutable by convention.
    """

    __slots__ = ("bind", "files", "port")

    def __init__(self, bind: str, port: int, files: tuple[str, str, str, str]) -> None:
        self.bind = bind
        self.port = port
        self.files = files


class Bridge:
    """The leader's broker, which a standby's own listens to; `files` are CA, certificate and key.

    Synchronization: immutable by convention.
    """

    __slots__ = ("files", "host", "password", "port")

    def __init__(self, host: str, port: int, password: str, files: tuple[str, str, str]) -> None:
        self.host = host
        self.port = port
        self.password = password
        self.files = files

    def text(self, topic_root: str, data_root: str) -> str:
        """The part of mosquitto's configuration."""
        heard = standby_subscriptions(topic_root, data_root)
        given = BRIDGE.format(username=STANDBY, host=self.host, port=self.port, password=self.password)
        return given + "".join(f"topic {topic} in {qos}\n" for topic, qos in heard)


class Broker:
    """`start()` runs mosquitto and a thread that starts it again whenever it dies; `stop()` ends both.

    `port` 0 takes a free one at `start`. `bind` is this machine's own door and on loopback, with TLS if `tls` names CA,
    certificate and key files; `network` is the door for other machines, `legacy` (address, port) the one without TLS
    for guests, `bridge` the leader of a standby.
    Synchronization: `start`, `stop`, `issue` and `revoke` from one thread; `reload`, `alive`, `port` and `counters`
    from any.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        port: int = 0,
        bind: str = "127.0.0.1",
        topic_root: str = "pioreactor",
        data_root: str = "stirbar",
        tls: tuple[str, str, str] | None = None,
        network: Network | None = None,
        legacy: tuple[str, int] | None = None,
        bridge: Bridge | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        if not is_loopback(bind):
            raise BrokerError(
                f"{bind} is open to the network, which is served by TLS and to those with a certificate alone: "
                "set [leader.config] broker_bind"
            )
        self.port = port
        self.bind = bind
        self.username = LEADER
        self._directory = directory / "broker"
        self._roots = (topic_root, data_root)
        self._tls = tls
        self._network = network
        self._legacy = legacy
        self._bridge = bridge
        self._log = log or _log
        self._credentials = Credentials(directory / "credentials")
        self._owner = _broker_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._reloading = threading.Lock()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._failure = ""
        self._starts = 0
        self._started_at = 0.0

    @property
    def password(self) -> str:
        """The leader's own password; user name: `username`."""
        return self._credentials.leader_password

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def alive(self) -> bool:
        """Whether the broker runs and has been reachable."""
        return self._ready.is_set() and self.pid is not None

    def counters(self) -> dict[str, Any]:
        alive = self.alive()
        return {
            "alive": alive,
            "pid": self.pid,
            "port": self.port,
            "restarts": max(0, self._starts - 1),
            "uptime_s": time.monotonic() - self._started_at if alive else 0.0,
            "last_error": self._failure,
        }

    # Credentials

    def issue(self, unit: str, unit_id: bytes, password_file: pathlib.Path) -> str:
        """Let a unit in; see `Credentials.issue`. In force at once, also while the broker runs."""
        username = self._credentials.issue(unit, unit_id, password_file)
        self.reload()
        return username

    def revoke(self, unit: str) -> None:
        """Take a unit's access away; a connection that exists ends with its next message."""
        self._credentials.revoke(unit)
        self.reload()

    def reload(self) -> None:
        """Let users, certificates and the list of revoked ones as they are on disk now be in force."""
        with self._reloading:
            self._credentials.read()
            if self._thread is not None:
                self._write_users()
                self._write_network()
                process = self._process
                if process is not None and process.poll() is None:
                    process.send_signal(signal.SIGHUP)

    def _write_users(self) -> None:
        owner = self._owner[1:] if self._owner else None
        write_private(self._directory / "password", self._credentials.password_text(), owner)
        write_private(self._directory / "acl", self._credentials.acl_text(*self._roots), owner)
        if self._legacy is not None:
            write_private(self._directory / "legacy-password", self._credentials.password_text(legacy=True), owner)
            write_private(self._directory / "legacy-acl", self._credentials.legacy_acl_text(self._roots[0]), owner)

    # Life

    def start(self) -> None:
        """Start the broker and wait until it can be reached. Raises BrokerError."""
        command = self._command()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._owner:
            os.chown(self._directory, *self._owner[1:])
        self.port = self._take_port(self.bind, self.port, "[mqtt] broker_port")
        if self._network is not None:
            self._take_port(self._network.bind, self._network.port, "[leader.config] broker_tls_port")
        if self._legacy is not None:
            self._take_port(*self._legacy, "[leader.config] legacy_port")
        self._write_users()
        self._write_configuration()
        self._stopping.clear()
        self._ready.clear()
        self._failure = ""
        self._thread = threading.Thread(target=self.supervise, args=(command,), name="broker", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_LIMIT_S
        while not self._ready.wait(0.02):
            if self._failure or time.monotonic() > deadline:
                self.stop()
                raise BrokerError(f"mosquitto did not start: {self._failure or 'it does not answer'}")

    def stop(self) -> None:
        """End the broker; it keeps what is retained."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        deadline = time.monotonic() + STOP_LIMIT_S
        while thread.is_alive():
            process = self._process
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            thread.join(0.1)
        self._ready.clear()

    def supervise(self, command: list[str]) -> None:
        """Body of the broker's thread: run it, and after each death again, later and later, until `stop`."""
        first_pause, longest_pause = BACK_OFF_S
        pause = first_pause
        while not self._stopping.is_set():
            started = time.monotonic()
            self._run_once(command)
            if self._stopping.is_set():
                return
            self._ready.clear()
            if time.monotonic() - started > SETTLED_S:
                pause = first_pause
            self._log(f"broker: mosquitto ended ({self._failure}), starting it again in {pause:.1f} s")
            self._stopping.wait(pause)
            pause = min(longest_pause, pause * 2)

    def _run_once(self, command: list[str]) -> None:
        """One life of the broker, from start to death."""
        log_path = self._directory / "broker.log"
        too_long = log_path.exists() and log_path.stat().st_size > LOG_LIMIT_BYTES
        try:
            with open(log_path, "wb" if too_long else "ab") as log:
                place = log.tell()
                process = subprocess.Popen(
                    command,
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            self._failure = str(error)
            return
        self._process = process
        self._starts += 1
        self._started_at = time.monotonic()
        while process.poll() is None and not self._stopping.is_set():
            if self._answers():
                self._failure = ""
                self._ready.set()
                break
            self._stopping.wait(0.02)
        status = process.wait()
        if status < 0:
            self._failure = signal.Signals(-status).name
        else:
            self._failure = _last_line(log_path, place) or f"exit status {status}"

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.bind, self.port), timeout=1.0):
                return True
        except OSError:
            return False

    def _command(self) -> list[str]:
        mosquitto = shutil.which("mosquitto", path=_search_path())
        if mosquitto is None:
            raise BrokerError(
                "mosquitto is not installed: `sudo apt install mosquitto`, or use another broker "
                "([leader.config] broker = external)"
            )
        setpriv = shutil.which("setpriv", path=_search_path())
        if setpriv is None:
            raise BrokerError(
                "setpriv is not installed, which ties the broker's life to ours: `sudo apt install util-linux`"
            )
        command = [setpriv, "--pdeathsig", "TERM", "--no-new-privs"]
        if self._owner:
            command += ["--reuid", str(self._owner[1]), "--regid", str(self._owner[2]), "--clear-groups"]
        return [*command, "--", mosquitto, "-c", "mosquitto.conf"]

    def _take_port(self, bind: str, port: int, key: str) -> int:
        """Make sure that the port is free; choose one for port 0."""
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        deadline = time.monotonic() + PORT_WAIT_S
        while True:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((bind, port))
                    return int(probe.getsockname()[1])
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise BrokerError(
                            f"port {port} of {bind} cannot be had ({error.strerror}): is another broker "
                            f"running? Stop it, or choose another {key}"
                        ) from None
            self._stopping.wait(0.1)

    def _write_network(self) -> None:
        """Copies of the network's files that the broker's user can read."""
        owner = self._owner[1:] if self._owner else None
        if self._network is not None:
            names = ("network-ca.pem", "network.pem", "network-key.pem", "network-crl.pem")
            for name, source in zip(names, self._network.files, strict=True):
                write_private(self._directory / name, pathlib.Path(source).read_text(encoding="utf-8"), owner)

    def _write_configuration(self) -> None:
        owner = self._owner[1:] if self._owner else None
        tls = ""
        if self._tls is not None:
            for option, name, source in zip(
                ("cafile", "certfile", "keyfile"), ("ca.pem", "certificate.pem", "key.pem"), self._tls, strict=True
            ):
                write_private(self._directory / name, pathlib.Path(source).read_text(encoding="utf-8"), owner)
                tls += f"{option} {name}\n"
        network = ""
        if self._network is not None:
            self._write_network()
            network = NETWORK.format(port=self._network.port, bind=self._network.bind)
        scope = legacy = ""
        if self._legacy is not None:
            # each listener has rights of its own then, and repeats them
            scope, network = "per_listener_settings true\n", network and network + RIGHTS
            legacy = LEGACY.format(bind=self._legacy[0], port=self._legacy[1])
        text = CONFIGURATION.format(
            scope=scope, port=self.port, bind=self.bind, tls=tls, rights=RIGHTS, network=network, legacy=legacy
        )
        if self._bridge is not None:
            for name, source in zip(("bridge-ca.pem", "bridge.pem", "bridge-key.pem"), self._bridge.files, strict=True):
                write_private(self._directory / name, pathlib.Path(source).read_text(encoding="utf-8"), owner)
            text += self._bridge.text(*self._roots)
        write_private(self._directory / "mosquitto.conf", text, owner)


def _broker_user() -> tuple[str, int, int] | None:
    """Whom the broker runs as when we are root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("mosquitto", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return name, entry.pw_uid, entry.pw_gid
    raise BrokerError("no user 'mosquitto' or 'nobody' to run the broker as: start the leader as an unprivileged user")


def _search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"


def _last_line(path: pathlib.Path, place: int) -> str:
    """What the broker said last, after `place`."""
    with open(path, "rb") as file:
        file.seek(place)
        lines = file.read(65536).decode(errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return said[-1].strip() if said else ""


def _log(line: str) -> None:
    print(f"stirbar leader: {line}", file=sys.stderr, flush=True)
