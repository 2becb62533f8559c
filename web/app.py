"""The Bottle application: pages, static files, log-in, and the gate that every request passes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bottle import Bottle, HTTPError, HTTPResponse, request, response, static_file, template
from stirbar.bridge.enrolment import Enrolment
from stirbar.web import alerts, api, enrolment
from stirbar.web.auth import USER, Links, Password, RateLimit, Session, Sessions, secure
from stirbar.web.live import Live
from stirbar.web.wire import answer, refuse

HERE = Path(__file__).parent
TEMPLATES = str(HERE / "templates")
STATIC = str(HERE / "static")
DEFAULT_SESSION_S = 12 * 3600.0
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
PUBLIC_PATHS = ("/login", "/api/login", "/api/health", "/favicon.ico", *enrolment.PATHS)
PAGES = {
    "/": ("overview", "Units"),
    "/experiments": ("experiments", "Experiments"),
    "/events": ("events", "Events"),
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
    `directory`. `enrolment` lets units of other machines in; None: nobody is.

    Synchronization: the members are each safe from any thread; the site itself does not change after it is made.
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
        self.version = version
        self.password = Password(directory)
        self.links = Links(directory)
        self.sessions = sessions or Sessions(directory, DEFAULT_SESSION_S)
        self.limit = RateLimit()
        self.started = time.time()


def session() -> Session | None:
    """The login of the request under way."""
    found: Session | None = request.environ.get("stirbar.session")
    return found


def cookie_name() -> str:
    """Cookies do not know ports: two leaders on one machine would take each other's."""
    return f"stirbar_{request.environ['SERVER_PORT']}"


def make_app(site: Site) -> Callable[..., Iterable[bytes]]:
    """The WSGI application of a leader."""
    app = Bottle(catchall=True)
    app.add_hook("before_request", functools.partial(_gate, site))
    app.default_error_handler = _error_page
    for path, (page, title) in PAGES.items():
        app.route(path, "GET", functools.partial(_page, site, page, title))
    app.route("/units/<unit>", "GET", lambda unit: _page(site, "unit", unit, unit=unit))
    app.route("/login", "GET", functools.partial(_login_page, site))
    app.route("/static/<path:path>", "GET", _static)
    app.route("/favicon.ico", "GET", lambda: _static("icon.svg"))
    app.route("/api/login", "POST", functools.partial(_login, site))
    app.route("/api/logout", "POST", functools.partial(_logout, site))
    app.route("/api/session", "GET", functools.partial(_session, site))
    api.add_routes(app, site)
    alerts.add_routes(app, site)
    enrolment.add_routes(app, site)
    return secure(app)


def _gate(site: Site) -> None:
    """Before each request: who is it, may they, and did their own page send it?"""
    secret = request.get_cookie(cookie_name())
    found = site.sessions.find(secret) if secret else None
    request.environ["stirbar.session"] = found
    path = request.path
    public = path in PUBLIC_PATHS or path.startswith("/static/")
    if found is None and not public:
        if path.startswith("/api/"):
            refuse(401, "not logged in", remedy="log in at /login, or POST a password to /api/login")
        raise HTTPResponse(status=303, headers={"Location": "/login"})
    if request.method in SAFE_METHODS:
        return
    origin = request.environ.get("HTTP_ORIGIN")
    if origin and urlsplit(origin).netloc != request.environ.get("HTTP_HOST"):
        refuse(403, f"the request came from a page of {origin[:100]}", "Origin", "send it from the leader's own page")
    if not public and not (found and found.allows(request.environ.get("HTTP_X_CSRF_TOKEN", ""))):
        refuse(
            403, "the request carries no valid token", "X-CSRF-Token", "send the value of csrf from GET /api/session"
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
        if site.links.redeem(token):
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


def _login(site: Site) -> HTTPResponse:
    """`{"password"}` or `{"token"}` for a session."""
    fields = api.body_fields({"password": str, "token": str})
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
    address = request.environ.get("REMOTE_ADDR", "")
    wait = site.limit.attempt(address)
    if wait > 0:
        seconds = int(wait) + 1
        refuse(
            429,
            f"too many wrong passwords from {address}",
            "password",
            f"wait {seconds} s, or use a one-time link",
            Retry_After=str(seconds),
        )
    if not site.password.check(password):
        refuse(403, "this is not the password", "password", "try again, or use a one-time link: `stirbar leader link`")
    site.limit.succeeded(address)


def _logout(site: Site) -> HTTPResponse:
    found = session()
    result = answer({"ok": True})
    if found is not None:
        site.sessions.close(found)
        site.live.close_session(found.key)
        result.delete_cookie(cookie_name(), path="/")
    return result


def _session(site: Site) -> HTTPResponse:
    found = session()
    return answer({"csrf": found.csrf if found else "", "user": USER, "version": site.version, "t": time.time()})


def link_address(base: str, token: str) -> str:
    """The address that a one-time token makes with the leader's own."""
    return f"{base}/login?token={quote(token)}"
