"""Who may use the broker: one user for the leader, one per unit, each with a random password of its own.

The leader keeps hashes; a unit's password exists once, in that unit's password file (mode 0600).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import pathlib
import re
import secrets

from stirbar.bridge.topics import standby_subscriptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from stirbar.bridge.guests import Scope

LEADER = "stirbar-leader"
STANDBY = "stirbar-standby"  # hears what the units send, and says nothing
ITERATIONS = 101  # mosquitto's own default; the passwords have 192 random bits, stretching adds nothing
_UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class CredentialError(Exception):
    """A credential that cannot be issued; the sentence says why."""


def hash_password(password: str, salt: bytes | None = None) -> str:
    """mosquitto's format 7: PBKDF2-HMAC-SHA512, salt and digest in base 64."""
    salt = secrets.token_bytes(12) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS, 64)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def verify(password: str, hashed: str) -> bool:
    """Whether a password is the one that was hashed."""
    salt = base64.b64decode(hashed.split("$")[3])
    return hmac.compare_digest(hash_password(password, salt), hashed)


def check_unit_name(unit: str) -> None:
    """Raises CredentialError for a name that cannot be a user of the broker."""
    if not _UNIT_NAME.fullmatch(unit) or unit in (LEADER, STANDBY):
        raise CredentialError(
            f"unit name {unit[:70]!r}: 1 to 63 letters, digits, '-', '_' and '.', beginning with a letter or digit"
        )


def write_private(path: pathlib.Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Replace a file at once, mode 0600, owned by (uid, gid) if given; else, by root, by whom the directory belongs to,
    so that a command of root's leaves nothing that the service cannot read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = owner or _heir(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_private(directory: pathlib.Path) -> pathlib.Path:
    """A directory of mode 0700, of the owner of what it is in."""
    if not directory.exists():
        owner = _heir(directory.parent)
        directory.mkdir(mode=0o700)
        if owner is not None:
            os.chown(directory, *owner)
    return directory


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold a lock file, among the threads and processes that use it; it gets the owner of its directory."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        owner = _heir(path.parent)
        if owner is not None:
            os.fchown(descriptor, *owner)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _heir(directory: pathlib.Path) -> tuple[int, int] | None:
    """Whom root makes files for in a directory; None for everybody else."""
    if os.geteuid() != 0:
        return None
    place = directory.stat()
    return place.st_uid, place.st_gid


def admitted(directory: pathlib.Path) -> dict[str, bytes] | None:
    """{unit's name: unit_id} of those let in; None where a leader keeps no accounts, because its broker is another's.
    Only looks: nothing is made. Raises CredentialError."""
    try:
        users = json.loads((directory / "users.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise CredentialError(
            f"{directory / 'users.json'} is damaged: remove it; every unit then joins again"
        ) from None
    return {name: bytes.fromhex(user["unit_id"]) for name, user in users.items() if name != LEADER}


class Credentials:
    """The users of one broker, kept in `<directory>/users.json` and `<directory>/leader.password`.

    Synchronization: one thread of a process at a time; processes take turns by a lock on `users.lock`.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory / "users.json"
        self._users: dict[str, dict[str, Any]] = {}
        with self._changing():
            self.leader_password = self._issue(LEADER, None, directory / "leader.password")

    def read(self) -> None:
        """Take in what another process has changed."""
        try:
            self._users = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._users = {}
        except ValueError:
            raise CredentialError(f"{self._path} is damaged: remove it; every unit then joins again") from None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with locked(self.directory / "users.lock"):
            self.read()
            yield

    def issue(self, unit: str, unit_id: bytes, password_file: pathlib.Path) -> str:
        """Let a unit in and leave its password in `password_file`; return the user name.

        A file whose password is already right stays as it is. Raises CredentialError for a name that cannot be a user.
        """
        check_unit_name(unit)
        with self._changing():
            self._free_of_guests(unit)
            self._issue(unit, unit_id, password_file)
        return unit

    def admit(self, unit: str, unit_id: bytes) -> str:
        """Let a unit on another machine in, under this name alone, and return its new password, which is kept nowhere
        here. Raises CredentialError for a name that cannot be a user."""
        check_unit_name(unit)
        password = secrets.token_hex(24)
        with self._changing():
            self._free_of_guests(unit)
            other = [name for name, user in self._users.items() if user["unit_id"] == unit_id.hex()]
            for name in other:
                del self._users[name]
            self._users[unit] = {"hash": hash_password(password), "unit_id": unit_id.hex()}
            self._save()
        return password

    def admit_all(self, units: dict[str, bytes]) -> dict[str, str]:
        """Let many units in at once, {name: unit_id}; return their passwords, which are kept nowhere here. Raises
        CredentialError for a name that cannot be a user."""
        for unit in units:
            check_unit_name(unit)
        passwords = {unit: secrets.token_hex(24) for unit in units}
        with self._changing():
            for unit, unit_id in units.items():
                self._users[unit] = {"hash": hash_password(passwords[unit]), "unit_id": unit_id.hex()}
            self._save()
        return passwords

    def admit_guest(self, name: str, scope: Scope) -> str:
        """Let a client in that is no unit, or change what it may; its new password. Raises CredentialError."""
        check_unit_name(name)
        password = secrets.token_hex(24)
        with self._changing():
            if name in self.units():
                raise CredentialError(f"'{name}' is a unit of this cluster: give the guest another name")
            self._users[name] = {"hash": hash_password(password), "unit_id": None, "guest": scope.kept()}
            self._save()
        return password

    def guests(self) -> dict[str, Scope]:
        """{name: what it may} of those let in that are no units."""
        from stirbar.bridge.guests import Scope

        return {name: Scope.of(user["guest"]) for name, user in self._users.items() if "guest" in user}

    def proves(self, unit: str, password: str) -> bool:
        """Whether this is the password of this unit."""
        self.read()
        user = self._users.get(unit)
        return unit not in (LEADER, STANDBY) and user is not None and verify(password, user["hash"])

    def revoke(self, unit: str) -> None:
        """Take a unit's access away. Raises CredentialError if it has none."""
        with self._changing():
            if unit in (LEADER, STANDBY) or self._users.pop(unit, None) is None:
                raise CredentialError(f"no unit '{unit}' has a credential")
            self._save()

    def units(self) -> dict[str, bytes]:
        """{unit's name: unit_id} of those let in."""
        return {name: bytes.fromhex(user["unit_id"]) for name, user in self._users.items() if user["unit_id"]}

    # The standby

    def admit_standby(self) -> str:
        """Let a standby in, in place of any other; its password, which is kept nowhere here."""
        password = secrets.token_hex(24)
        with self._changing():
            self._users[STANDBY] = {"hash": hash_password(password), "unit_id": None}
            self._save()
        return password

    def proves_standby(self, password: str) -> bool:
        """Whether this is the password of the standby."""
        self.read()
        user = self._users.get(STANDBY)
        return user is not None and verify(password, user["hash"])

    def dismiss_standby(self) -> None:
        """Let no standby in any more."""
        with self._changing():
            if self._users.pop(STANDBY, None) is not None:
                self._save()

    def book(self) -> dict[str, dict[str, Any]]:
        """All users but the leader's own and its standby: what a standby has to know to let them in."""
        self.read()
        return {name: user for name, user in self._users.items() if name not in (LEADER, STANDBY)}

    def adopt(self, book: dict[str, dict[str, Any]]) -> None:
        """Have the users of another leader's `book`, and our own leader's."""
        with self._changing():
            new = {LEADER: self._users[LEADER], **{name: user for name, user in book.items() if name != LEADER}}
            if new != self._users:
                self._users = new
                self._save()

    def password_text(self, legacy: bool = False) -> str:
        """mosquitto's password file; of the door without TLS it holds those guests alone that may come so."""
        names = [name for name, scope in self.guests().items() if scope.legacy] if legacy else list(self._users)
        return "".join(f"{name}:{self._users[name]['hash']}\n" for name in names)

    def legacy_acl_text(self, topic_root: str) -> str:
        """mosquitto's ACL file of the door without TLS."""
        guests = [(name, scope) for name, scope in self.guests().items() if scope.legacy]
        return "".join(line + "\n" for name, scope in guests for line in scope.acl(name, topic_root))

    def acl_text(self, topic_root: str, data_root: str) -> str:
        """mosquitto's ACL file: the leader everything, a unit its own topics and what is said to all, a guest what it
        was granted."""
        lines = [f"user {LEADER}", "topic readwrite #", "topic read $SYS/#"]
        if STANDBY in self._users:
            lines += [f"user {STANDBY}"]
            lines += [f"topic read {topic}" for topic, _ in standby_subscriptions(topic_root, data_root)]
        for name, unit_id in self.units().items():
            lines += [
                f"user {name}",
                f"topic readwrite {data_root}/{unit_id.hex()}/#",
                f"topic readwrite {topic_root}/{name}/#",
                f"topic read {topic_root}/$broadcast/#",
            ]
        for name, scope in self.guests().items():
            lines += scope.acl(name, topic_root)
        return "\n".join(lines) + "\n"

    def _free_of_guests(self, name: str) -> None:
        if "guest" in self._users.get(name, ()):
            raise CredentialError(f"'{name}' is a guest: `stirbar cluster guest {name} --remove`, or another name")

    def _issue(self, name: str, unit_id: bytes | None, password_file: pathlib.Path) -> str:
        user = self._users.get(name)
        wanted_id = None if unit_id is None else unit_id.hex()
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            password = ""
        if user is None or not verify(password, user["hash"]):
            password = secrets.token_hex(24)
            write_private(password_file, password + "\n")
            user = None
        if user is None or user["unit_id"] != wanted_id:
            self._users[name] = {"hash": user["hash"] if user else hash_password(password), "unit_id": wanted_id}
            self._save()
        return password

    def _save(self) -> None:
        write_private(self._path, json.dumps(self._users, indent=1) + "\n")
