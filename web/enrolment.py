"""The routes by which a unit joins: without a login, because the invitation's secret or the unit's password is one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse, request
from stirbar.bridge.enrolment import EnrolmentError
from stirbar.web import api
from stirbar.web.auth import RateLimit
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.web.app import Site

PATHS = ("/api/cluster/authority", "/api/cluster/join", "/api/cluster/renew")
FIELDS: dict[str, type | tuple[type, ...]] = dict.fromkeys(("secret", "name", "unit_id", "request", "password"), str)


def add_routes(app: Bottle, site: Site) -> None:
    """Put the routes onto an application."""
    limit = RateLimit()
    app.route(PATHS[0], "GET", functools.partial(_authority, site))
    app.route(PATHS[1], "POST", functools.partial(_guarded, site, limit, "join"))
    app.route(PATHS[2], "POST", functools.partial(_guarded, site, limit, "renew"))


def _enrolment(site: Site) -> Any:
    if site.enrolment is None:
        refuse(
            409,
            "this leader takes no units of other machines",
            remedy="set [web.config] bind and [leader.config] broker_bind = 0.0.0.0, and start it again",
        )
    return site.enrolment


def _authority(site: Site) -> HTTPResponse:
    """The certificate of the leader's authority, which is public; a unit holds it against its token."""
    return HTTPResponse(body=_enrolment(site).authority.pem, **{"Content-Type": "application/x-pem-file"})


def _guarded(site: Site, limit: RateLimit, what: str) -> HTTPResponse:
    enrolment = _enrolment(site)
    address = request.environ.get("REMOTE_ADDR", "")
    wait = limit.attempt(address)
    if wait > 0:
        seconds = int(wait) + 1
        refuse(429, f"too many attempts from {address}", "secret", f"wait {seconds} s", Retry_After=str(seconds))
    act: Callable[[dict[str, Any]], dict[str, Any]] = enrolment.join if what == "join" else enrolment.renew
    try:
        done = act(api.body_fields(FIELDS))
    except EnrolmentError as error:
        if error.status != 403:  # the secret was good: this was no guess
            limit.succeeded(address)
        refuse(error.status, str(error), error.field, error.remedy)
    limit.succeeded(address)
    return answer(done)
