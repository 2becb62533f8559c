"""The routes by which a unit joins: without a login, because the invitation's secret or the unit's password is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse, request
from stirbar.bridge.enrolment import EnrolmentError
from stirbar.web.auth import RateLimit
from stirbar.web.routes import PUBLIC, Kinds, body_fields, guarded, takes
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.web.app import Site

PATHS = ("/api/cluster/authority", "/api/cluster/join", "/api/cluster/renew")
RENEWED: dict[str, Kinds] = dict.fromkeys(("name", "request", "password"), str)
JOINED: dict[str, Kinds] = {**RENEWED, "secret": str, "unit_id": str}


def add_routes(app: Bottle, site: Site) -> None:
    """Put the routes onto an application."""
    limit = RateLimit()

    @takes(scope=PUBLIC, body=JOINED)
    def join(site: Site) -> HTTPResponse:
        """A unit joins with an invitation's secret: its certificate, account and configuration."""
        return _limited(site, limit, "join")

    @takes(scope=PUBLIC, body=RENEWED)
    def renew(site: Site) -> HTTPResponse:
        """A unit that is known has its certificate renewed."""
        return _limited(site, limit, "renew")

    app.route(PATHS[0], "GET", guarded(site, _authority))
    app.route(PATHS[1], "POST", guarded(site, join))
    app.route(PATHS[2], "POST", guarded(site, renew))


def _enrolment(site: Site) -> Any:
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
    return HTTPResponse(body=_enrolment(site).authority.pem, **{"Content-Type": "application/x-pem-file"})


def _limited(site: Site, limit: RateLimit, what: str) -> HTTPResponse:
    enrolment = _enrolment(site)
    address = request.environ.get("REMOTE_ADDR", "")
    wait = limit.attempt(address)
    if wait > 0:
        seconds = int(wait) + 1
        refuse(429, f"too many attempts from {address}", "secret", f"wait {seconds} s", Retry_After=str(seconds))
    act: Callable[[dict[str, Any]], dict[str, Any]] = enrolment.join if what == "join" else enrolment.renew
    try:
        done = act(body_fields(JOINED if what == "join" else RENEWED))
    except EnrolmentError as error:
        if error.status != 403:  # the secret was good: this was no guess
            limit.succeeded(address)
        refuse(error.status, str(error), error.field, error.remedy)
    limit.succeeded(address)
    return answer(done)
