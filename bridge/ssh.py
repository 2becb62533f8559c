"""SSH to fresh machines by the system's OpenSSH: one connection for each, whose key was seen and is pinned.

OpenSSH rather than a library: nothing more to install, agents and hardware keys work, and each Debian keeps it safe.
A password goes to `ssh` through a FIFO in a directory of ours, so it is in no argument, environment, log or file.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

from stirbar.bridge.credentials import write_private

CONNECT_LIMIT_S = 8
LOGIN_LIMIT_S = 60.0
LOOK_INTERVAL_S = 0.02
COMMAND_LIMIT_S = 3600.0  # the longest is a Pi Zero that compiles
ALIVE_INTERVAL_S = 15
KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")  # the first that a host has is shown and pinned
ASKPASS = '#!/bin/sh\nIFS= read -r line <"${0%/*}/answer" && printf \'%s\\n\' "$line"\n'


class SshError(Exception):
    """A host is not reached, or does not let us in; the text says why, `remedy` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


class Target(NamedTuple):
    """A machine as it was named: `[user@]host[:port]`."""

    user: str
    host: str
    port: int

    @property
    def known_as(self) -> str:
        """The name in a known_hosts file."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != 22 else "")


def parse_target(text: str, user: str, port: int) -> Target:
    """Raises ValueError for what names no machine; a leading - would be an option to ssh."""
    name, at, rest = text.rpartition("@")
    host, given = rest, ""
    if rest.startswith("["):
        host, _, given = rest[1:].partition("]")
        given = given.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, given = rest.partition(":")
    user = name if at else user
    wrong = not host or not user or (user + host).startswith("-") or host.startswith("-") or not host.isprintable()
    if wrong or " " in text or (given and not given.isdecimal()) or not 0 < int(given or port) < 65536:
        raise ValueError(f"'{text}' names no host: write HOST, USER@HOST or USER@HOST:PORT")
    return Target(user, host, int(given or port))


class HostKey(NamedTuple):
    """A host's public key, as a known_hosts file has it."""

    kind: str
    text: str  # base 64

    @property
    def fingerprint(self) -> str:
        """As ssh shows it."""
        digest = hashlib.sha256(base64.b64decode(self.text)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def fetch_keys(target: Target) -> list[HostKey]:
    """The keys that a host shows, the best first; nothing is trusted yet. Raises SshError."""
    command = ["ssh-keyscan", "-T", str(CONNECT_LIMIT_S), "-p", str(target.port), "--", target.host]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * CONNECT_LIMIT_S)
        said, lines = done.stderr, [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    except FileNotFoundError:
        raise SshError("OpenSSH is not installed here", "sudo apt install openssh-client") from None
    except subprocess.TimeoutExpired:
        said, lines = "", []
    keys = [HostKey(words[1], words[2]) for words in lines if len(words) >= 3 and words[1] in KEY_TYPES]
    if not keys:
        why = next((line for line in said.splitlines() if line and not line.startswith("#")), "no answer")
        raise SshError(
            f"no SSH at {target.host} port {target.port} ({why.strip()[-120:]})",
            "is it on, on this network, and is SSH enabled? On a Raspberry Pi: `sudo raspi-config nonint do_ssh 0`",
        )
    return sorted(keys, key=lambda key: KEY_TYPES.index(key.kind))


class KnownHosts:
    """The keys that were seen and confirmed, in a file as ssh reads it.

    Synchronization: any thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def find(self, target: Target) -> HostKey | None:
        """The key that is pinned for a host."""
        for line in self._lines():
            words = line.split()
            if len(words) >= 3 and words[0] == target.known_as:
                return HostKey(words[1], words[2])
        return None

    def pin(self, target: Target, key: HostKey) -> None:
        """Keep a host's key."""
        with self._lock:
            write_private(self.path, "".join(f"{line}\n" for line in self._lines()) + _line(target, key))

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text().splitlines()
        except FileNotFoundError:
            return []


def _line(target: Target, key: HostKey) -> str:
    return f"{target.known_as} {key.kind} {key.text}\n"


def own_key(directory: Path) -> Path:
    """The leader's private key, made at first use; its public half is beside it. Raises SshError."""
    path = directory / "id_ed25519"
    if not path.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "stirbar-leader", "-f", str(path)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, umask=0o077)
        if done.returncode:
            raise SshError(f"ssh-keygen made no key: {done.stderr.strip()[-200:]}", f"can {directory} be written?")
        if os.geteuid() == 0:
            place = directory.stat()
            for made in (path, path.with_suffix(".pub")):
                os.chown(made, place.st_uid, place.st_gid)
    return path


class Session:
    """A connection to one host, by a control master of ssh; `close` ends it.

    Synchronization: one thread.
    """

    def __init__(self, target: Target, host_key: HostKey, own: Path, directory: Path) -> None:
        self.target = target
        self._directory = directory  # private, short-lived, of this session alone
        self._control = directory / "c"
        self._master: subprocess.Popen[bytes] | None = None
        known = directory / "known_hosts"
        known.write_text(_line(target, host_key))
        self._options = [
            *("-F", "none", "-p", str(target.port), "-l", target.user, "-i", str(own)),
            *_as_options(
                UserKnownHostsFile=known, GlobalKnownHostsFile="/dev/null", StrictHostKeyChecking="yes",
                HostKeyAlgorithms=_algorithms(host_key.kind), UpdateHostKeys="no", ConnectTimeout=CONNECT_LIMIT_S,
                ServerAliveInterval=ALIVE_INTERVAL_S, ServerAliveCountMax=4, ControlPath=self._control,
                ForwardAgent="no", ForwardX11="no", ClearAllForwardings="yes", LogLevel="ERROR",
            ),
        ]  # fmt: skip

    def open(self, password: str | None = None) -> bool:
        """Log in, by a key, or by a password alone; whether the host lets us in. Raises SshError for all else."""
        by = _as_options(BatchMode="yes", PreferredAuthentications="publickey")
        environment, offered = dict(os.environ), -1
        if password is not None:
            methods = "password,keyboard-interactive"
            by = _as_options(PreferredAuthentications=methods, PubkeyAuthentication="no", NumberOfPasswordPrompts=1)
            environment |= {"SSH_ASKPASS": self._askpass(), "SSH_ASKPASS_REQUIRE": "force"}
            offered = self._offer(password)
        try:
            return self._connect([*by, *self._options], environment)
        finally:
            if offered >= 0:
                os.close(offered)  # what nobody has read is gone with it
                (self._directory / "answer").unlink()

    def _connect(self, options: list[str], environment: dict[str, str]) -> bool:
        """Start the master, which ends with us, and wait until it is in: then its socket is there."""
        log = self._directory / "log"
        command = ["setpriv", "--pdeathsig", "TERM", "--", "ssh", "-M", "-N", *options, "--", self.target.host]
        quiet = subprocess.DEVNULL
        with log.open("wb") as file:
            self._master = subprocess.Popen(
                command, env=environment, stdin=quiet, stdout=quiet, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + LOGIN_LIMIT_S
        while not self._control.exists() and self._master.poll() is None:
            if time.monotonic() > deadline:
                self.close()
                raise SshError(f"{self.target.host} does not let us in", "look at its load and its network")
            time.sleep(LOOK_INTERVAL_S)
        if self._control.exists():
            return True
        self.close()
        said = log.read_text(errors="replace").strip()
        if "Permission denied" in said or "Too many authentication failures" in said:
            return False
        raise SshError(f"ssh to {self.target}: {said.splitlines()[-1][-200:] if said else 'failed'}", "try it by hand")

    def run(self, script: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a shell script there, which holds no secrets: `data` is its standard input. Raises SshError."""
        command = ["ssh", "-o", "ControlMaster=no", *self._options, "--", self.target.host]
        try:
            done = subprocess.run(
                [*command, "sh -c " + shlex.quote(script)], input=data, capture_output=True, timeout=COMMAND_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise SshError(
                f"no end after {COMMAND_LIMIT_S:.0f} s", "look at the host's load, and run it again"
            ) from None
        if done.returncode == 255:
            said = done.stderr.decode(errors="replace").strip()
            raise SshError(f"the connection broke ({said[-160:] or 'no reason given'})", "run the same command again")
        return done

    def close(self) -> None:
        """End the connection; safe where there is none."""
        if self._master is not None:
            self._master.terminate()
            self._master.wait()
            self._master = None
        self._control.unlink(missing_ok=True)

    def _askpass(self) -> str:
        path = self._directory / "askpass"
        path.write_text(ASKPASS)
        path.chmod(0o700)
        return str(path)

    def _offer(self, password: str) -> int:
        """Put the password into the FIFO that the helper reads; its descriptor."""
        path = self._directory / "answer"
        os.mkfifo(path, 0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(descriptor, password.encode() + b"\n")
        return descriptor


def _as_options(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _algorithms(kind: str) -> str:
    return "rsa-sha2-512,rsa-sha2-256" if kind == "ssh-rsa" else kind
