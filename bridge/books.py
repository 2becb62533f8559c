"""What a leader's standby has to know to take its place: the book, given by one and taken by the other.

In it are the accounts of the units (hashes), the certificates issued and revoked, the inventory, who may use the page,
and what people entered: experiments, and which unit belongs to which. Readings are not in it: they come by the broker.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import socket

from stirbar.bridge import credentials
from stirbar.bridge.authority import Authority
from stirbar.bridge.config_history import history_of
from stirbar.bridge.credentials import Credentials, write_private
from stirbar.bridge.inventory import read_inventory, write_inventory
from stirbar.bridge.invitations import Invitations
from stirbar.bridge.standing import DEPOSED, LEADER, STANDBY, Place, Standing, change_standing, read_standing
from stirbar.core import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.bridge.enrolment import Enrolment
    from stirbar.bridge.store import Store
    from stirbar.core.config import Config

FILES = ("password.json", "tokens.json")  # of the page
PASSWORD_FILE = "standby.password"


class StandbyError(Exception):
    """This machine does not become the standby, or not the leader: the text says why, and what to do."""


class Books:
    """The leader's side. Synchronization: any thread."""

    def __init__(self, config: Config, store: Store, enrolment: Enrolment) -> None:
        self._config = config
        self._store = store
        self._enrolment = enrolment
        self._credentials = Credentials(enrolment.directory / "credentials")

    def admit(self, secret: str, own: str, standby: Place) -> dict[str, Any]:
        """Take on a standby by its invitation's secret; `own` is where it found us. Raises EnrolmentError."""
        password = self._enrolment.admit_standby(secret)
        get = self._config.get
        here = Place(own, int(get("web.config", "port")), int(get("leader.config", "broker_tls_port")))
        epoch = self._store.epoch()
        change_standing(self._enrolment.directory, lambda old: old.but(epoch=epoch, own=here, peer=standby))
        authority = self._enrolment.authority
        return {
            "password": password,
            "authority": authority.pem,
            "authority_key": (authority.directory / "ca.key").read_text(),
            "host": standby.host,
            "broker_port": here.broker_port,
            "topic_root": get("mqtt", "topic_root"),
            "data_root": get("mqtt", "data_root"),
            "book": self.book(),
        }

    def proves(self, password: str) -> bool:
        """Whether who asks is our standby."""
        return self._credentials.proves_standby(password)

    def book(self) -> dict[str, Any]:
        """All of it, as it is now."""
        directory = self._enrolment.directory
        files = {name: (directory / name).read_text() for name in FILES if (directory / name).exists()}
        return {
            "epoch": self._store.epoch(),
            "users": self._credentials.book(),
            "issued": self._enrolment.authority.issued(),
            "inventory": read_inventory(self._config),
            "files": files,
            "experiments": [
                {name: one[name] for name in ("name", "description", "created_at")} for one in self._store.experiments()
            ],
            "assignments": {unit_id.hex(): name for unit_id, name in self._store.assignments().items()},
            "labels": {
                one["name"]: {unit_id.hex(): label for unit_id, label in self._store.labels(one["name"]).items()}
                for one in self._store.experiments()
            },
            "tags": {one["unit_id"].hex(): one["tags"] for one in self._store.units()},
            "config": history_of(self._config).book(),
        }


def digest(book: dict[str, Any]) -> str:
    """By which a standby says which book it has."""
    return hashlib.sha256(json.dumps(book, sort_keys=True).encode()).hexdigest()


# The standby's side


def become_standby(config: Config, directory: pathlib.Path, leader: Place, answer: dict[str, Any]) -> None:
    """Write what the leader has given. Raises StandbyError for what does not fit, and then nothing was changed."""
    for name in ("topic_root", "data_root"):
        if answer[name] != config.get("mqtt", name):
            raise StandbyError(f"the leader's [mqtt] {name} is '{answer[name]}': set it here too, and use a new token")
    get = config.get
    own = Place(str(answer["host"]), int(get("web.config", "port")), int(get("leader.config", "broker_tls_port")))
    there = Place(leader.host, leader.page_port, int(answer["broker_port"]))
    tls = directory / "tls"
    if not (tls / "ca.pem").exists() or (tls / "ca.pem").read_text() != answer["authority"]:
        shutil.rmtree(tls, ignore_errors=True)  # of a leader of nobody: `check_free` has looked
        tls.mkdir(mode=0o700, parents=True)
        write_private(tls / "ca.key", answer["authority_key"])
        write_private(tls / "ca.pem", answer["authority"])
    write_private(directory / PASSWORD_FILE, answer["password"] + "\n")
    take_files(config, directory, answer["book"])
    epoch = int(answer["book"]["epoch"])
    change_standing(directory, lambda old: Standing(STANDBY, max(epoch, old.epoch), own, there))
    _hand_over(directory, pathlib.Path(paths.data_directory(config)))


def _hand_over(directory: pathlib.Path, data: pathlib.Path) -> None:
    """What root has made in a leader's directory belongs to whom the data directory belongs: the service's user."""
    if os.geteuid() != 0:
        return
    place = data.stat()
    ours = [directory, directory / "tls", directory / "credentials"]
    for one in (*ours, *(file for folder in ours for file in folder.iterdir() if file.is_file())):
        os.chown(one, place.st_uid, place.st_gid, follow_symlinks=False)


def check_free(config: Config, directory: pathlib.Path, authority: str) -> None:
    """Raises StandbyError where a cluster of another authority is led from this directory."""
    known = directory / "tls" / "ca.pem"
    if not known.exists() or known.read_text() == authority:
        return
    units = [item["unit"] for item in Authority(directory / "tls").issued().values() if not item["revoked"]]
    if units:
        raise StandbyError(
            f"{directory} leads a cluster of its own, with {', '.join(sorted(set(units)))}: take them out first "
            "(`stirbar cluster remove`), or use another machine"
        )


def take_files(config: Config, directory: pathlib.Path, book: dict[str, Any]) -> str:
    """Write all of a book but what belongs into the store; returns what is to be done by hand, or nothing."""
    Credentials(directory / "credentials").adopt(book["users"])
    Authority(directory / "tls").adopt(book["issued"])
    for name in FILES:
        path, text = directory / name, book["files"].get(name)
        if text is not None and (not path.exists() or path.read_text() != text):
            write_private(path, text)
    return write_inventory(config, dict(book["inventory"]))


def take_entries(store: Store, book: dict[str, Any]) -> bool:
    """Enter what people entered at the leader; whether all of it could be. Raises StoreUnavailable."""
    known = {one["name"]: one for one in store.experiments()}
    for one in book["experiments"]:
        there = known.get(one["name"])
        if there is None or any(there[key] != one[key] for key in ("description", "created_at")):
            store.adopt_experiment(one["name"], one["description"], one["created_at"])
    wanted = {bytes.fromhex(unit_id): name for unit_id, name in book["assignments"].items()}
    here, heard = store.assignments(), {unit["unit_id"] for unit in store.units()}
    for unit_id in heard:
        if wanted.get(unit_id) != here.get(unit_id):
            store.assign(unit_id, wanted.get(unit_id))
    _take_labels(store, book)
    return set(wanted) <= heard


def _take_labels(store: Store, book: dict[str, Any]) -> None:
    """Have the leader's labels and tags, of the units that are known here."""
    tags = {one["unit_id"]: one["tags"] for one in store.units()}
    for unit_id, words in tags.items():
        wanted = book["tags"].get(unit_id.hex(), words)
        if wanted != words:
            store.set_tags(unit_id, wanted)
    for experiment, theirs in book["labels"].items():
        ours = store.labels(experiment)
        due = {one: theirs.get(one.hex(), "") for one in tags if theirs.get(one.hex(), "") != ours.get(one, "")}
        for unit_id in due:
            store.set_label(unit_id, experiment, "")  # it may be another unit's in a moment
        for unit_id, label in due.items():
            store.set_label(unit_id, experiment, label)


def promote(directory: pathlib.Path) -> Standing:
    """Make this machine the leader, of an epoch above all that it knows. Raises StandbyError."""

    def change(old: Standing) -> Standing:
        if old.leads:
            raise StandbyError("this machine leads already")
        return old.but(role=LEADER, epoch=old.epoch + 1)

    return change_standing(directory, change)


def step_down(directory: pathlib.Path, epoch: int) -> Standing:
    """Another one leads, by a higher epoch: this machine does not any more."""
    return change_standing(directory, lambda old: old.but(role=DEPOSED, epoch=epoch))


def forget_standby(directory: pathlib.Path) -> None:
    """Let no standby in any more, nor by a token that is still open, and tell units of none. Raises StandbyError."""
    if not read_standing(directory).leads:
        raise StandbyError("this machine does not lead: do it on the one that does")
    Invitations(directory).withdraw(credentials.STANDBY)
    Credentials(directory / "credentials").dismiss_standby()
    change_standing(directory, lambda old: old.but(peer=None))


def seen_host(address: str) -> str:
    """The address that a request came from, as others can use it; IPv4 in IPv6's clothes is IPv4."""
    return address.removeprefix("::ffff:") or socket.gethostname()
