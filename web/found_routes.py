"""Units that are on the network and not in the cluster: who they are, and the button that lets one in."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse
from stirbar.bridge import discovery
from stirbar.bridge.enrolment import EnrolmentError
from stirbar.bridge.pairing import Pairing
from stirbar.web.enrolment import enrolment_of
from stirbar.web.routes import Kinds, body_fields, guarded, takes
from stirbar.web.tokens import ADMIN
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from stirbar.web.app import Site

LISTEN_AGAIN_S = 30.0  # while somebody looks
DECIDED: dict[str, Kinds] = {"code": str}


class Ear:
    """What was heard by mDNS, listened for in a thread of its own while somebody asks, so that no request waits.

    Synchronization: safe from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: list[dict[str, str]] = []
        self._remedy = ""
        self._next = 0.0
        self._listening = False

    def heard(self) -> tuple[list[dict[str, str]], bool, str]:
        """Units, whether it listens now, and what to do where nobody can be heard."""
        with self._lock:
            if not self._listening and time.monotonic() >= self._next:
                self._listening = True
                threading.Thread(target=self._listen, name="mdns", daemon=True).start()
            return self._heard, self._listening, self._remedy

    def _listen(self) -> None:
        heard, remedy = [], ""
        try:
            heard = discovery.units()
        except discovery.DiscoveryError as error:
            remedy = f"{error}: {error.remedy}"
        finally:
            with self._lock:
                self._heard, self._remedy, self._listening = heard, remedy, False
                self._next = time.monotonic() + LISTEN_AGAIN_S


def add_routes(app: Bottle, site: Site) -> None:
    """Put the routes onto an application."""
    ear = Ear()

    @takes(scope=ADMIN)
    def found(site: Site) -> HTTPResponse:
        """Units that ask to be let in, or announce themselves by mDNS, and are not in the cluster."""
        if site.enrolment is None:  # nobody can be let in, so nobody is looked for
            return answer({"units": [], "listening": False, "remedy": None})
        heard, listening, remedy = ear.heard()
        units = Pairing(site.enrolment).found(heard)
        return answer({"units": units, "listening": listening, "remedy": remedy or None})

    app.route("/api/cluster/found", "GET", guarded(site, found))
    app.route("/api/cluster/found/<unit_id>/approve", "POST", guarded(site, approve))
    app.route("/api/cluster/found/<unit_id>/refuse", "POST", guarded(site, refuse_unit))


@takes(scope=ADMIN, body=DECIDED, required=("code",))
def approve(site: Site, unit_id: str) -> HTTPResponse:
    """Let a unit in that asks, and that shows this code."""
    return _decide(site, "approve", unit_id)


@takes(scope=ADMIN, body=DECIDED, required=("code",))
def refuse_unit(site: Site, unit_id: str) -> HTTPResponse:
    """Forget a unit that asks, and that shows this code."""
    return _decide(site, "refuse", unit_id)


def _decide(site: Site, what: str, unit_id: str) -> HTTPResponse:
    pairing = Pairing(enrolment_of(site))
    decide = functools.partial(pairing.approve if what == "approve" else pairing.refuse, unit_id)
    fields: dict[str, Any] = body_fields(DECIDED)
    try:
        return answer({"unit": decide(fields.get("code", ""))})
    except EnrolmentError as error:
        refuse(error.status, str(error), error.field, error.remedy)
