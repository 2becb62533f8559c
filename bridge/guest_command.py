"""`stirbar cluster guest`: let a client that is no unit into the broker, say who is, and take it out again."""

from __future__ import annotations

import json
import pathlib

from stirbar.bridge import joining
from stirbar.bridge.authority import Authority, is_loopback
from stirbar.bridge.credentials import CredentialError, Credentials, write_private
from stirbar.bridge.foreign import foreign_id
from stirbar.bridge.guests import Scope
from stirbar.core import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from stirbar.core.config import Config

TLS_DIRECTORY = "tls"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stirbar cluster guest`."""
    parser.add_argument("guest", nargs="?", metavar="NAME", help="left out: the guests are listed")
    parser.add_argument("--units", default="", metavar="A,B", help="whose dialect it reads (default: everybody's)")
    parser.add_argument("--control", action="store_true", help="it may set their settings, within their envelopes")
    parser.add_argument(
        "--jobs", default="", metavar="J,K", help="foreign jobs that it runs for them, such as growth_rate_calculating"
    )
    parser.add_argument("--legacy", action="store_true", help="it may come without TLS ([leader.config] legacy_port)")
    parser.add_argument(
        "--certificate", default="", metavar="DIR", help="write a key and certificate for the door to other machines"
    )
    parser.add_argument("--remove", action="store_true", help="take its access away")
    parser.add_argument("--json", action="store_true", help="list as JSON")


class Guests:
    """The guests of the leader on this machine. Raises CredentialError where that leader has no broker of its own."""

    def __init__(self, config: Config) -> None:
        directory = pathlib.Path(paths.leader_directory(config))
        if config.get("leader.config", "broker") != "own":
            raise CredentialError("[leader.config] broker is external: its guests are made where that broker is kept")
        self.tls = directory / TLS_DIRECTORY
        self.root = str(config.get("mqtt", "topic_root"))
        self._config = config
        self._credentials = Credentials(directory / "credentials")

    def listed(self) -> list[dict[str, object]]:
        return [{"guest": name, **scope.kept()} for name, scope in sorted(self._credentials.guests().items())]

    def admit(self, name: str, scope: Scope, certificate: str) -> str:
        """Let a guest in, or give it another scope; its new password."""
        password = self._credentials.admit_guest(name, scope)
        if certificate:
            self._certify(name, pathlib.Path(certificate))
        return password

    def remove(self, name: str) -> None:
        if name not in self._credentials.guests():
            raise CredentialError(f"there is no guest '{name[:63]}': `stirbar cluster guest` names them")
        self._credentials.revoke(name)
        if self.tls.exists():
            Authority(self.tls).revoke(foreign_id(self.root, name))

    def _certify(self, name: str, place: pathlib.Path) -> None:
        """Key and certificate in one file, and the authority that vouches for the broker."""
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = Authority(self.tls)
        key, request = joining.make_request(joining.Files(self._config))
        issued = authority.sign(request, name, foreign_id(self.root, name))
        write_private(place / f"{name}.pem", key + issued.pem)
        write_private(place / "ca.pem", authority.pem)

    def warnings(self, scope: Scope, certificate: str) -> list[str]:
        """What is not yet as the guest will need it."""
        get = self._config.get
        found = []
        if scope.legacy and not get("leader.config", "legacy_port"):
            found.append("the door without TLS is shut: set [leader.config] legacy_port and start the leader again")
        if certificate and is_loopback(str(get("leader.config", "broker_bind"))):
            found.append("no other machine reaches the broker: set [leader.config] broker_bind")
        return found


def _split(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",") if one.strip())


def guest(
    config: Config, arguments: argparse.Namespace, say: Callable[[str], None], tell: Callable[[], object]
) -> None:
    """Make, list or remove; `say` has the sentences, `tell` lets the leader know."""
    guests = Guests(config)
    name = arguments.guest
    if not name:
        _show(guests, arguments.json)
    elif arguments.remove:
        guests.remove(name)
        tell()
        say(f"'{name}' has no access any more")
    else:
        scope = Scope(_split(arguments.units), arguments.control, _split(arguments.jobs), arguments.legacy)
        password = guests.admit(name, scope, arguments.certificate)
        tell()
        for sentence in guests.warnings(scope, arguments.certificate):
            say(sentence)
        say(f"'{name}' reads {_words(scope)}, and has '{guests.root}/{name}/' for itself; shown once, its password is:")
        print(password, flush=True)


def _words(scope: Scope) -> str:
    whose = "the units " + ", ".join(scope.units) if scope.units else "all units"
    more = ["sets their settings"] if scope.control else []
    more += [f"speaks as their {job}" for job in scope.jobs]
    more += ["may come without TLS"] if scope.legacy else []
    return ", ".join([whose, *more])


def _show(guests: Guests, as_json: bool) -> None:
    if as_json:
        print(json.dumps(guests.listed()))
    for one in [] if as_json else guests.listed():
        print(f"{one.pop('guest')}: reads {_words(Scope.of(one))}")
