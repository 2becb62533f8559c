"""The Bottle application: pages, static files, log-in, and the gate that every request passes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bottle import Bottle, HTTPError, HTTPResponse, request, response, static_file, template
from stirbar.bridge.books import Books
from stirbar.bridge.desired_state import DesiredState
from stirbar.bridge.enrolment import Enrolment
from stirbar.bridge.standing import Standing
from stirbar.core.config import Config
from stirbar.web import (
    alerts,
    api,
    audit_routes,
    config_routes,
    enrolment,
    found_routes,
    nodes_routes,
    openapi,
    standby_routes,
    token_routes,
)
from stirbar.web.audit import SAFE_METHODS, Audit, audited
from stirbar.web.auth import USER, Links, Password, RateLimit, Session, Sessions, secure
from stirbar.web.live import Live
from stirbar.web.routes import PUBLIC, Kinds, body_fields, caller, guarded, note, scope_of, takes
from stirbar.web.tokens import READ, Caller, Tokens, caller_of_session
from stirbar.web.wire import answer, refuse

HERE = Path(__file__).parent
TEMPLATES = str(HERE / "templates")
STATIC = str(HERE / "static")
DEFAULT_SESSION_S = 12 * 3600.0
PUBLIC_PATHS = ("/login", "/favicon.ico")
BEARER = "bearer "
LOGIN_FIELDS: dict[str, Kinds] = {"password": str, "token": str}
PAGES = {
    "/": ("overview", "Units"),
    "/nodes": ("nodes", "Nodes"),
    "/experiments": ("experiments", "Experiments"),
    "/config": ("config", "Configuration"),
    "/events": ("events", "Events"),
    "/audit": ("audit", "Audit"),
}
NO_PASSWORD = (
    "No password is set yet: use the one-time link that the leader printed, "
    "or set a password with `stirbar leader password`."
)
AFTER_LINK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/">
<title>stirbar</title></head><body><p>You are logged in: <a href="/">go on to the units</a>.</p></body></html>
"""


class Site:
    """What the pages and the API work with.

    `store`, `ingest` and `broker` are the leader's (`broker` is None when it is somebody else's); secrets are kept in
    `directory`. `enrolment` lets units of other machines in, `books` a standby; None: nobody is. `standing` says
    whether this machine leads; where it does not, its pages and the API change nothing.
    `desired` tells the units what they are to be, and `config` is the leader's own.

    Synchronization: the members are each safe from any thread; but for `standing`, which is replaced as a whole, the
    site itself does not change after it is made.
    """

    def __init__(
        self,
        directory: Path,
        store: Any,
        ingest: Any,
        live: Live,
        broker: Any = None,
        version: str = "",
        sessions: Sessions | None = None,
    ) -> None:
        self.store = store
        self.ingest = ingest
        self.broker = broker
        self.live = live
        self.enrolment: Enrolment | None = None
        self.books: Books | None = None
        self.standing = Standing()
        self.standing_changed: Callable[[], object] = lambda: None
        self.desired: DesiredState | None = None
        self.config: Config | None = None
        self.version = version
        self.password = Password(directory)
        self.links = Links(directory)
        self.sessions = sessions or Sessions(directory, DEFAULT_SESSION_S)
        self.limit = RateLimit()
        self.tokens = Tokens(directory)
        self.token_limit = RateLimit()
        self.audit = Audit(directory)
        self.started = time.time()


def session() -> Session | None:
    """The login of the request under way; None as well when a token sent it."""
    found = caller()
    return None if found is None else found.session


def cookie_name() -> str:
    """Cookies do not know ports: two leaders on one machine would take each other's."""
    return f"stirbar_{request.environ['SERVER_PORT']}"


def make_app(site: Site) -> Callable[..., Iterable[bytes]]:
    """The WSGI application of a leader."""
    return secure(audited(make_routes(site), site.audit))


def make_routes(site: Site) -> Bottle:
    """All routes, behind the gate."""
    app = Bottle(catchall=True)
    app.add_hook("before_request", functools.partial(_gate, site, app))
    app.default_error_handler = _error_page
    for path, (page, title) in PAGES.items():
        app.route(path, "GET", functools.partial(_page, site, page, title))
    app.route("/units/<unit>", "GET", lambda unit: _page(site, "unit", unit, unit=unit))
    app.route("/login", "GET", functools.partial(_login_page, site))
    app.route("/static/<path:path>", "GET", _static)
    app.route("/favicon.ico", "GET", lambda: _static("icon.svg"))
    app.route("/api/login", "POST", guarded(site, _login))
    app.route("/api/logout", "POST", guarded(site, _logout))
    app.route("/api/session", "GET", guarded(site, _session))
    api.add_routes(app, site)
    alerts.add_routes(app, site)
    nodes_routes.add_routes(app, site)
    token_routes.add_routes(app, site)
    audit_routes.add_routes(app, site)
    openapi.add_routes(app, site)
    enrolment.add_routes(app, site)
    found_routes.add_routes(app, site)
    standby_routes.add_routes(app, site)
    config_routes.add_routes(app, site)
    return app


def _gate(site: Site, app: Bottle) -> None:
    """Before each request: who is it, may they, and did their own page send it?"""
    path = request.path
    found = _caller(site, path.startswith("/api/"))
    request.environ["stirbar.caller"] = found
    needed = _scope_needed(app, path)
    if needed != PUBLIC:
        _check_scope(found, needed, path)
    if request.method in SAFE_METHODS:
        return
    refusal = site.standing.refusal()
    if refusal and needed != PUBLIC and path != "/api/logout":
        refuse(409, refusal, remedy=site.standing.remedy())
    origin = request.environ.get("HTTP_ORIGIN")
    if origin and urlsplit(origin).netloc != request.environ.get("HTTP_HOST"):
        refuse(403, f"the request came from a page of {origin[:100]}", "Origin", "send it from the leader's own page")
    if needed == PUBLIC or (found and found.session is None):  # no browser adds a token by itself
        return
    if not (found and found.session and found.session.allows(request.environ.get("HTTP_X_CSRF_TOKEN", ""))):
        refuse(
            403, "the request carries no valid token", "X-CSRF-Token", "send the value of csrf from GET /api/session"
        )


def _caller(site: Site, tokens: bool) -> Caller | None:
    """Who sent the request: by its token where tokens count, else by its cookie."""
    header = request.environ.get("HTTP_AUTHORIZATION", "")
    if tokens and header:
        return _bearer(site, header)
    secret = request.get_cookie(cookie_name())
    opened = site.sessions.find(secret) if secret else None
    return caller_of_session(opened) if opened else None


def _bearer(site: Site, header: str) -> Caller:
    """Who shows this token. A wrong one makes its address wait, and right ones of the same address not: a script that
    was forgotten must not lock out its neighbours, and 256 bits cannot be guessed."""
    secret = header[len(BEARER) :].strip()
    found = site.tokens.find(secret) if header.lower().startswith(BEARER) else None
    if found is not None:
        return found
    _count_guess(site.token_limit, "tokens", "Authorization", "send a token that is in force")
    return refuse(
        401,
        "this is no token in force: it is unknown, revoked or has expired",
        "Authorization",
        "send 'Bearer' and a token; `stirbar leader token create NAME --scope SCOPE` makes one",
        WWW_Authenticate="Bearer",
    )


def _scope_needed(app: Bottle, path: str) -> str:
    """The scope of the route that the request is for."""
    if path in PUBLIC_PATHS or path.startswith("/static/"):
        return PUBLIC
    try:
        route, _ = app.router.match(request.environ)
    except HTTPError:
        return READ  # there is no such route, which is nobody else's business
    return scope_of(route.method, route.callback)


def _check_scope(found: Caller | None, needed: str, path: str) -> None:
    """Refuse who is not known, and who may less than this."""
    if found is None:
        if path.startswith("/api/"):
            refuse(
                401,
                f"not logged in; this needs the scope {needed}",
                remedy="log in at /login, POST a password to /api/login, or send a token as 'Authorization: Bearer …'",
            )
        raise HTTPResponse(status=303, headers={"Location": "/login"})
    if not found.may(needed):
        refuse(
            403,
            f"the token '{found.name}' has the scope {found.scope}; this needs {needed}",
            "Authorization",
            f"use a token made with `stirbar leader token create NAME --scope {needed}`",
        )


def _error_page(error: HTTPError) -> str:
    """What Bottle itself refuses: an unknown path, a wrong method, a failure inside."""
    status = error.status_code
    text = {404: "there is nothing at this address", 405: "this address does not take that method"}.get(
        status, "the leader failed to answer; its log says why" if status >= 500 else str(error.body)
    )
    if request.path.startswith("/api/"):
        response.content_type = "application/json"
        body: str = answer({"error": text, "field": None, "remedy": "docs/http-api.md lists the API"}).body
        return body
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{status} · stirbar</title>'
        f'<link rel="stylesheet" href="/static/style.css"></head><body><main><h1>{status}</h1><p>{text}.</p>'
        '<p><a href="/">To the units</a></p></main></body></html>'
    )


def _page(site: Site, page: str, title: str, **variables: str) -> str:
    found = session()
    rendered: str = template(
        f"{page}.tpl",
        template_lookup=[TEMPLATES],
        title=title,
        page=page,
        csrf=found.csrf if found else "",
        user=USER if found else "",
        version=site.version,
        refusal=site.standing.refusal(),
        remedy=site.standing.remedy(),
        **variables,
    )
    return rendered


def _static(path: str) -> HTTPResponse:
    """A static file. Modules import each other by plain names, so browsers ask each time whether theirs is the
    newest (an empty 304); what is vendored changes with a release only."""
    caching = "public, max-age=86400" if path.startswith("vendor/") else "no-cache"
    return static_file(path, root=STATIC, headers={"Cache-Control": caching})


def _open_session(site: Site, target: HTTPResponse) -> HTTPResponse:
    opened = site.sessions.open()
    note(who=USER, result="logged in")
    target.set_cookie(
        cookie_name(),
        opened.secret,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.environ["wsgi.url_scheme"] == "https",
        maxage=int(site.sessions.lifetime_s),
    )
    return target


def _login_page(site: Site) -> HTTPResponse | str:
    """The form; or, with a one-time token, straight in.

    The way on is a page that refreshes, not a redirect: a browser would not send the strict cookie with a redirect
    that began at a link on another site (a chat, a mail)."""
    token = request.query.get("token")
    if token and request.method == "GET":
        good = site.links.redeem(token)
        note(result="" if good else "the one-time link was used already or is too old")
        if good:
            return _open_session(
                site, HTTPResponse(body=AFTER_LINK, headers={"Content-Type": "text/html; charset=UTF-8"})
            )
        response.status = 403
        message = "This link was used already or is too old. `stirbar leader link` prints a new one."
        return _page(site, "login", "Log in", message=message)
    if session() is not None:
        return HTTPResponse(status=303, headers={"Location": "/"})
    message = "" if site.password.exists() else NO_PASSWORD
    return _page(site, "login", "Log in", message=message)


@takes(scope=PUBLIC, body=LOGIN_FIELDS)
def _login(site: Site) -> HTTPResponse:
    """Change a password or a one-time token for a session."""
    fields = body_fields(LOGIN_FIELDS)
    if fields.get("token"):
        if not site.links.redeem(fields["token"]):
            refuse(
                403, "the one-time token was used already or is too old", "token", "ask for one: `stirbar leader link`"
            )
    else:
        _check_password(site, fields.get("password"))
    return _open_session(site, answer({"ok": True}))


def _check_password(site: Site, password: str | None) -> None:
    if not password:
        refuse(400, "a password is missing", "password", 'send {"password": "..."} as JSON')
    if not site.password.exists():
        refuse(403, "no password is set", "password", "use the one-time link, or run `stirbar leader password`")
    _count_guess(site.limit, "passwords", "password", "use a one-time link")
    if not site.password.check(password):
        refuse(403, "this is not the password", "password", "try again, or use a one-time link: `stirbar leader link`")
    site.limit.succeeded(request.environ.get("REMOTE_ADDR", ""))


def _count_guess(limit: RateLimit, guesses: str, field: str, remedy: str) -> None:
    """Refuse an address that guessed too often."""
    address = request.environ.get("REMOTE_ADDR", "")
    wait = limit.attempt(address)
    if wait > 0:
        seconds = int(wait) + 1
        text = f"too many wrong {guesses} from {address}"
        refuse(429, text, field, f"wait {seconds} s, or {remedy}", Retry_After=str(seconds))


@takes(scope=READ)
def _logout(site: Site) -> HTTPResponse:
    """End the session."""
    found = session()
    result = answer({"ok": True})
    if found is not None:
        site.sessions.close(found)
        site.live.close_session(found.key)
        result.delete_cookie(cookie_name(), path="/")
    return result


def _session(site: Site) -> HTTPResponse:
    """Who is logged in, and may what."""
    found, opened = caller(), session()
    return answer(
        {
            "csrf": opened.csrf if opened else "",
            "user": found.name if found else "",
            "scope": found.scope if found else "",
            "version": site.version,
            "t": time.time(),
        }
    )


def link_address(base: str, token: str) -> str:
    """The address that a one-time token makes with the leader's own."""
    return f"{base}/login?token={quote(token)}"
