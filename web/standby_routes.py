"""The routes between a leader and its standby: an invitation's secret lets one in, its password opens the book."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse, request
from stirbar.bridge.books import digest, seen_host
from stirbar.bridge.enrolment import EnrolmentError
from stirbar.bridge.leaders import parse_leaders
from stirbar.bridge.peer import PASSWORD_HEADER
from stirbar.bridge.standing import Place
from stirbar.web.auth import RateLimit
from stirbar.web.routes import PUBLIC, TEXT, Kinds, body_fields, guarded, takes
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from stirbar.bridge.books import Books
    from stirbar.web.app import Site

PATHS = ("/api/cluster/leadership", "/api/cluster/standby", "/api/cluster/book")
ADMITTED: dict[str, Kinds] = {"secret": str, "leader": str, "host": str, "page_port": int, "broker_port": int}


def add_routes(app: Bottle, site: Site) -> None:
    """Put the routes onto an application."""
    limit = RateLimit()

    @takes(scope=PUBLIC, body=ADMITTED)
    def admit(site: Site) -> HTTPResponse:
        """A standby comes in with an invitation's secret: its account, the authority with its key, and the book."""
        return _admit(site, limit)

    @takes(scope=PUBLIC, query={"have": TEXT})
    def book(site: Site) -> HTTPResponse:
        """What a standby has to know, for its password; nothing when it has this book already."""
        return _book(site, limit)

    app.route(PATHS[0], "GET", guarded(site, _leadership))
    app.route(PATHS[1], "POST", guarded(site, admit))
    app.route(PATHS[2], "GET", guarded(site, book))


@takes(scope=PUBLIC)
def _leadership(site: Site) -> HTTPResponse:
    """Whether this machine leads, and by which epoch: what leader and standby ask each other."""
    return answer({"role": site.standing.role, "epoch": max(site.standing.epoch, site.store.epoch())})


def _books(site: Site) -> Books:
    if site.books is None:
        if not site.standing.leads:
            refuse(409, site.standing.refusal(), remedy=site.standing.remedy())
        refuse(
            409,
            "no other machine reaches this leader",
            remedy="set [web.config] bind and [leader.config] broker_bind = 0.0.0.0, and start it again",
        )
    return site.books


def _slowed(limit: RateLimit, field: str) -> str:
    """The caller's address; refuses one that has guessed too often."""
    address = str(request.environ.get("REMOTE_ADDR", ""))
    wait = limit.attempt(address)
    if wait > 0:
        seconds = int(wait) + 1
        refuse(429, f"too many attempts from {address}", field, f"wait {seconds} s", Retry_After=str(seconds))
    return address


def _admit(site: Site, limit: RateLimit) -> HTTPResponse:
    books = _books(site)
    asked: dict[str, Any] = body_fields(ADMITTED)
    missing = [name for name in ADMITTED if name not in asked]
    if missing:
        refuse(400, f"'{missing[0]}' is missing", missing[0], "update stirbar on both machines")
    address = _slowed(limit, "secret")
    standby = Place(asked["host"] or seen_host(address), asked["page_port"], asked["broker_port"])
    try:
        parse_leaders([[standby.host, standby.broker_port, standby.page_port], [asked["leader"], 1, 1]])
    except ValueError as error:
        refuse(400, str(error), "host", "`--host` names an address of this machine; update stirbar on both")
    try:
        done = books.admit(asked["secret"], asked["leader"], standby)
    except EnrolmentError as error:
        refuse(error.status, str(error), error.field, error.remedy)
    limit.succeeded(address)
    site.standing_changed()
    return answer(done)


def _book(site: Site, limit: RateLimit) -> HTTPResponse:
    books = _books(site)
    address = _slowed(limit, "password")
    if not books.proves(request.get_header(PASSWORD_HEADER, "")):
        refuse(403, "this is not the password of the standby", "password", "`stirbar leader standby` with a new token")
    limit.succeeded(address)
    found = books.book()
    same = request.query.get("have") == digest(found)
    return answer({"same": same, "book": None if same else found})
