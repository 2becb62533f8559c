"""The routes by which a unit joins: without a login, because the invitation's secret or the unit's password is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse, request
from stirbar.bridge.enrolment import EnrolmentError
from stirbar.bridge.pairing import WAITING, Pairing
from stirbar.web.auth import RateLimit
from stirbar.web.routes import PUBLIC, Kinds, body_fields, guarded, note, takes
from stirbar.web.wire import answer, refuse, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.web.app import Site

PATHS = tuple(f"/api/cluster/{what}" for what in ("authority", "join", "renew", "ask", "answer"))
RENEWED: dict[str, Kinds] = dict.fromkeys(("name", "request", "password"), str)
JOINED: dict[str, Kinds] = {**RENEWED, "secret": str, "unit_id": str}
ASKED: dict[str, Kinds] = dict.fromkeys(("name", "unit_id", "request", "commitment", "board", "version"), str)
WAITS = to_json({"state": WAITING})
ANSWERED: dict[str, Kinds] = {"secret": str, "nonce": str}


def add_routes(app: Bottle, site: Site) -> None:
    """Put the routes onto an application."""
    limit, asking = RateLimit(), RateLimit()  # apart: who asks does not make good for who guesses

    @takes(scope=PUBLIC, body=JOINED)
    def join(site: Site) -> HTTPResponse:
        """A unit joins with an invitation's secret: its certificate, account and configuration."""
        return _limited(limit, enrolment_of(site).join, JOINED)

    @takes(scope=PUBLIC, body=RENEWED)
    def renew(site: Site) -> HTTPResponse:
        """A unit that is known has its certificate renewed."""
        return _limited(limit, enrolment_of(site).renew, RENEWED)

    @takes(scope=PUBLIC, body=ASKED)
    def ask(site: Site) -> HTTPResponse:
        """A unit without an invitation asks to be let in: a secret to come back with, and the leader's number."""
        address = request.environ.get("REMOTE_ADDR", "")
        return _limited(asking, lambda asked: Pairing(enrolment_of(site)).ask(asked, address), ASKED)

    @takes(scope=PUBLIC, body=ANSWERED)
    def answered(site: Site) -> HTTPResponse:
        """A unit that asked shows its number, and learns whether somebody has approved it."""
        done = _limited(asking, Pairing(enrolment_of(site)).answer, ANSWERED)
        note(only_looks=done.body == WAITS)  # it comes every other second
        return done

    app.route(PATHS[0], "GET", guarded(site, _authority))
    app.route(PATHS[1], "POST", guarded(site, join))
    app.route(PATHS[2], "POST", guarded(site, renew))
    app.route(PATHS[3], "POST", guarded(site, ask))
    app.route(PATHS[4], "POST", guarded(site, answered))


def enrolment_of(site: Site) -> Any:
    """What lets units in; refuses where this leader takes none."""
    if site.enrolment is None:
        if not site.standing.leads:
            refuse(409, site.standing.refusal(), remedy=site.standing.remedy())
        refuse(
            409,
            "this leader takes no units of other machines",
            remedy="set [web.config] bind and [leader.config] broker_bind = 0.0.0.0, and start it again",
        )
    return site.enrolment


@takes(scope=PUBLIC, answer="application/x-pem-file")
def _authority(site: Site) -> HTTPResponse:
    """The certificate of the leader's authority, which is public; a unit holds it against its token."""
    return HTTPResponse(body=enrolment_of(site).authority.pem, **{"Content-Type": "application/x-pem-file"})


def _limited(
    limit: RateLimit, act: Callable[[dict[str, Any]], dict[str, Any]], kinds: dict[str, Kinds]
) -> HTTPResponse:
    address = request.environ.get("REMOTE_ADDR", "")
    wait = limit.attempt(address)
    if wait > 0:
        seconds = int(wait) + 1
        refuse(429, f"too many attempts from {address}", "secret", f"wait {seconds} s", Retry_After=str(seconds))
    try:
        done = act(body_fields(kinds))
    except EnrolmentError as error:
        if error.status != 403:  # the secret was good: this was no guess
            limit.succeeded(address)
        refuse(error.status, str(error), error.field, error.remedy)
    limit.succeeded(address)
    return answer(done)
