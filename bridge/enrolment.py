"""The leader's side of a cluster: invite a unit, let it in, take it out. All of it is in files below the leader's
directory, under one lock, so that the running leader and `stirbar cluster` do the same thing in the same way.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket

from stirbar.bridge.authority import Authority, CertificateError, is_loopback, machine_names
from stirbar.bridge.credentials import STANDBY, CredentialError, Credentials, check_unit_name, locked
from stirbar.bridge.inventory import read_inventory, write_inventory
from stirbar.bridge.invitations import InvitationError, Invitations, Token
from stirbar.bridge.standing import read_standing
from stirbar.core import identity, paths
from stirbar.core.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from stirbar.core.config import Config

INVITATION_MINUTES = (1.0, 30.0, 7 * 24 * 60.0)  # lowest, usual, highest
ADDRESSES_MAXIMUM = 4
STANDBY_REMEDY = "run `stirbar leader standby-token` on the leader for another"


class EnrolmentError(Exception):
    """A unit is not let in, or not changed: the text says why, `remedy` what to do, `status` is that of HTTP."""

    def __init__(self, text: str, field: str, remedy: str, status: int = 409) -> None:
        super().__init__(text)
        self.field = field
        self.remedy = remedy
        self.status = status


class Enrolment:
    """Who belongs to the cluster of a leader. `changed` is called when accounts or certificates have changed, `say`
    with a sentence when something has to be done by hand.

    Raises CertificateError where there is no authority. Synchronization: any thread, any process.
    """

    def __init__(self, config: Config, changed: Callable[[], object], say: Callable[[str], None]) -> None:
        self.directory = pathlib.Path(paths.leader_directory(config))
        self.authority = Authority(self.directory / "tls")
        self.own_unit = paths.unit_name(config)
        self._config = config
        self._changed = changed
        self._say = say
        self._credentials = Credentials(self.directory / "credentials")
        self._invitations = Invitations(self.directory)

    def own_unit_id(self) -> str:
        """The id of this machine's own unit, in hexadecimal digits; empty where no unit ever ran."""
        directory = paths.data_directory(self._config)
        return identity.unit_id(directory).hex() if os.path.exists(os.path.join(directory, "unit_id")) else ""

    def check_open(self) -> None:
        """Raises EnrolmentError where no unit of another machine would reach this leader."""
        self._addresses()

    def invite(self, minutes: float, name: str = "") -> Token:
        """A token for one unit: for a new one, or for the one that has this name already. Raises EnrolmentError."""
        self._check_minutes(minutes)
        if name:
            self._check_name(name)
        known = self._credentials.units().get(name)
        return self._token(minutes, name, known.hex() if known else "")

    def invite_standby(self, minutes: float) -> Token:
        """A token for a standby, which is given all that this leader has. Raises EnrolmentError."""
        self._check_minutes(minutes)
        return self._token(minutes, STANDBY, "")

    def admit_standby(self, secret: str) -> str:
        """Let the standby in that shows its invitation; its password. Raises EnrolmentError."""
        with self._changing():
            try:
                with self._invitations.use(bytes_of({"secret": secret}, "secret")) as invitation:
                    if invitation["name"] != STANDBY:
                        raise EnrolmentError(
                            "this invitation is for a unit",
                            "secret",
                            "`stirbar leader standby-token` on the leader prints one for a standby",
                            403,
                        )
                    password = self._credentials.admit_standby()
            except InvitationError as error:
                raise EnrolmentError(str(error), "secret", STANDBY_REMEDY, 403) from None
        self._changed()
        return password

    def rename(self, old: str, new: str, minutes: float) -> Token:
        """A token by which a unit joins once more, under a new name; until then all stays as it is."""
        unit_id = self._known(old)
        self._check_name(new)
        if new in self._credentials.units():
            raise self._taken(new)
        return self._token(minutes, new, unit_id.hex())

    def join(self, asked: dict[str, str]) -> dict[str, Any]:
        """Let a unit in that shows an invitation; `asked` is what it sends (docs/cluster.md). Raises EnrolmentError,
        and then the invitation is as good as before."""
        secret, unit_id = bytes_of(asked, "secret"), bytes_of(asked, "unit_id", 16)
        with self._changing():
            try:
                with self._invitations.use(secret) as invitation:
                    name = invitation["name"] or asked.get("name", "")
                    self._check_name(name)
                    old = self._admissible(name, unit_id, invitation["unit_id"], asked.get("password", ""))
                    answer = self._admit(name, unit_id, asked.get("request", ""))
            except InvitationError as error:
                raise EnrolmentError(str(error), "secret", error.remedy, 403) from None
            changes: dict[str, bool | None] = {old: None} if old not in ("", name) else {}
            self._say(f"unit '{name}' (id {unit_id.hex()}) has joined" + (f"; it was '{old}'" if changes else ""))
            self._write_inventory(changes | {name: True})
        return answer

    def check_newcomer(self, name: str, unit_id: bytes) -> None:
        """Raises EnrolmentError where a unit that is new cannot be let in under this name, or is not new."""
        self._check_name(name)
        self._credentials.read()
        self._admissible(name, unit_id, "", "")

    def admit(self, name: str, unit_id: bytes, request: str) -> dict[str, Any]:
        """Let a unit in whom a person has approved, and that `check_newcomer` found good. Raises EnrolmentError."""
        with self._changing():
            admitted = self._credentials.units()
            if admitted.get(name, unit_id) != unit_id:
                raise self._taken(name)
            old = {known: None for known, one in admitted.items() if one == unit_id and known != name}
            answer = self._admit(name, unit_id, request)
            self._say(f"unit '{name}' (id {unit_id.hex()}) was approved, and has joined")
            self._write_inventory({**old, name: True})
        return answer

    def renew(self, asked: dict[str, str]) -> dict[str, Any]:
        """A new certificate for a unit that proves itself by its password."""
        name = asked.get("name", "")
        if not self._credentials.proves(name, asked.get("password", "")):
            raise EnrolmentError(
                f"'{name[:63]}' is no unit of this leader, or its password is another",
                "password",
                "join again: `stirbar cluster invite` on the leader prints a token",
                403,
            )
        with self._changing():
            issued = self._sign(asked.get("request", ""), name, self._known(name), replace=False)
        return {"certificate": issued[0], "ends": issued[1]}

    def revoke(self, name: str) -> None:
        """Take a unit's account and certificate away; it stays in the inventory, out of use."""
        self._withdraw(name)
        self._write_inventory({name: False})

    def remove(self, name: str) -> None:
        """Take a unit out of the cluster; what it has measured stays in the store."""
        if name in self._credentials.units():
            self._withdraw(name)
        elif name not in read_inventory(self._config):
            raise self._unknown(name)
        self._write_inventory({name: None})

    def activate(self, name: str, active: bool) -> None:
        """Mark a unit in the inventory: 1 in use, 0 out of use."""
        if name not in self._credentials.units() and name not in read_inventory(self._config):
            raise self._unknown(name)
        self._write_inventory({name: active})

    def units(self) -> list[dict[str, Any]]:
        """All that are known: unit, unit_id, active, state (`joined`, `this machine`, `revoked` or `expected`: in the
        inventory alone), ends (of the certificate, in Unix seconds, or None)."""
        inventory = read_inventory(self._config)
        self._credentials.read()
        admitted = self._credentials.units()
        issued = list(self.authority.issued().values())
        revoked = {item["unit"]: item["unit_id"] for item in issued if item["revoked"]}
        found = []
        for name in sorted({*inventory, *admitted}):
            unit_id = admitted[name].hex() if name in admitted else revoked.get(name, "")
            ends = [item["ends"] for item in issued if item["unit_id"] == unit_id and not item["revoked"]]
            if name in admitted:
                state = "joined" if ends or name != self.own_unit else "this machine"
            else:
                state = "revoked" if unit_id else "expected"
            active = inventory.get(name, name in admitted)
            found.append(
                {"unit": name, "unit_id": unit_id, "active": active, "state": state, "ends": max(ends, default=None)}
            )
        return found

    # The parts

    def _check_minutes(self, minutes: float) -> None:
        low, _, high = INVITATION_MINUTES
        if not low <= minutes <= high:
            raise EnrolmentError(f"an invitation for {minutes:g} min", "minutes", f"name {low:g} to {high:g} minutes")

    def _token(self, minutes: float, name: str, unit_id: str) -> Token:
        addresses = self._addresses()
        port = int(self._config.get("web.config", "port"))
        secret = self._invitations.issue(minutes * 60, name, unit_id)
        return Token(addresses, port, self.authority.fingerprint(), secret)

    def _addresses(self) -> list[str]:
        """Where a unit may find this leader, the most durable first. Raises EnrolmentError when nobody else can."""
        open_ports(self._config)
        bind = str(self._config.get("web.config", "bind"))
        if bind not in ("0.0.0.0", "::"):
            return [bind]
        named = [str(self._config.get("cluster.topology", f"leader_{key}")) for key in ("address", "hostname")]
        _, addresses = machine_names(bind)
        usual = [f"{socket.gethostname()}.local", *sorted(addresses, key=lambda one: (":" in one, one))]
        own = read_standing(self.directory).own
        named = [own.host, *named] if own is not None else named
        found = [one for one in named if one and one != "localhost"] + [one for one in usual if not is_loopback(one)]
        return list(dict.fromkeys(found))[:ADDRESSES_MAXIMUM]

    def _admissible(self, name: str, unit_id: bytes, invited: str, password: str) -> str:
        """The name under which the unit was known, or nothing; raises EnrolmentError for what is another's."""
        admitted = self._credentials.units()
        if admitted.get(name, unit_id) != unit_id:
            raise self._taken(name)
        old = next((known for known, one in admitted.items() if one == unit_id), "")
        if invited and invited != unit_id.hex():
            raise EnrolmentError(
                f"this invitation is for the unit of id {invited}, and this one's is {unit_id.hex()}",
                "unit_id",
                "ask for an invitation without a name; if this is a new machine under an old name, first "
                "`stirbar cluster remove` the old one",
            )
        if old and not invited and not self._credentials.proves(old, password):
            # an id is no secret: whoever holds an open invitation shall not take another unit's place
            raise EnrolmentError(
                f"a unit of this id is in the cluster as '{old}', and this machine does not prove to be it",
                "unit_id",
                f"invite it by its name: `stirbar cluster invite --name {old}` on the leader",
            )
        return old

    def _admit(self, name: str, unit_id: bytes, request: str) -> dict[str, Any]:
        """Account and certificate, and what the unit has to know."""
        certificate, ends = self._sign(request, name, unit_id)
        get = self._config.get
        hostname = str(get("cluster.topology", "leader_hostname"))
        answer = {
            "unit": name,
            "password": self._credentials.admit(name, unit_id),
            "certificate": certificate,
            "ends": ends,
            "leader_hostname": socket.gethostname() if hostname == "localhost" else hostname,
            "broker_port": get("leader.config", "broker_tls_port"),
            "topic_root": get("mqtt", "topic_root"),
            "data_root": get("mqtt", "data_root"),
            "version": VERSION,
        }
        self._changed()
        return answer

    def _sign(self, request: str, name: str, unit_id: bytes, replace: bool = True) -> tuple[str, float]:
        try:
            issued = self.authority.sign(request, name, unit_id, replace)
        except CertificateError as error:
            raise EnrolmentError(str(error), "request", "run the same command again", 400) from None
        self._changed()
        return issued.pem, issued.ends

    def _withdraw(self, name: str) -> None:
        with self._changing():
            unit_id = self._known(name)
            if name == self.own_unit and not self.authority.revoke(unit_id):
                raise EnrolmentError(
                    f"'{name}' is this machine's own unit",
                    "unit",
                    f"a leader that is no worker: `stirbar cluster deactivate {name}`, and stop its worker and bridge",
                )
            self.authority.revoke(unit_id)
            self._credentials.revoke(name)
            self._invitations.withdraw(name)
            self._changed()

    def _known(self, name: str) -> bytes:
        self._credentials.read()
        unit_id = self._credentials.units().get(name)
        if unit_id is None:
            raise self._unknown(name)
        return unit_id

    def _unknown(self, name: str) -> EnrolmentError:
        return EnrolmentError(
            f"there is no unit '{name[:63]}' in this cluster", "unit", "`stirbar cluster list` names them", 404
        )

    def _taken(self, name: str) -> EnrolmentError:
        return EnrolmentError(
            f"the name '{name}' belongs to another unit of this cluster",
            "name",
            f"choose another with `--name`, or `stirbar cluster remove {name}` on the leader if that one is gone",
        )

    def _check_name(self, name: str) -> None:
        if name in self._credentials.guests():
            raise self._taken(name)
        try:
            check_unit_name(name)
        except CredentialError as error:
            raise EnrolmentError(str(error), "name", "choose another with `--name`", 400) from None

    def _write_inventory(self, changes: dict[str, bool | None]) -> None:
        wrong = write_inventory(self._config, changes)
        if wrong:
            self._say(wrong)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with locked(self.directory / "cluster.lock"):
            self._credentials.read()
            yield


def open_ports(config: Config) -> tuple[int, int]:
    """The ports of page and broker for other machines. Raises EnrolmentError when nobody else can reach them."""
    doors = [("web.config", "bind"), ("leader.config", "broker_bind")]
    shut = [f"[{section}] {key}" for section, key in doors if is_loopback(str(config.get(section, key)))]
    if config.get("leader.config", "broker") != "own" or shut:
        raise EnrolmentError(
            f"no other machine reaches this leader: {' and '.join(shut) or '[leader.config] broker is external'}",
            "bind",
            "set [web.config] bind = 0.0.0.0 and [leader.config] broker_bind = 0.0.0.0, broker = own, and start "
            "the leader again",
        )
    return int(config.get("web.config", "port")), int(config.get("leader.config", "broker_tls_port"))


def bytes_of(asked: dict[str, str], field: str, size: int = 0) -> bytes:
    """Hexadecimal digits of a request."""
    try:
        value = bytes.fromhex(asked.get(field, ""))
    except ValueError:
        value = b""
    if not value or (size and len(value) != size):
        raise EnrolmentError(f"'{field}' is not what a unit sends", field, "update stirbar on both machines", 400)
    return value
