"""The API tokens over HTTP (docs/http-api.md): made, listed and revoked by who may everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bottle import Bottle, HTTPResponse
from stirbar.web.routes import Kinds, body_fields, guarded, takes
from stirbar.web.tokens import ADMIN, SCOPES, TokenError
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from stirbar.web.app import Site

FIELDS: dict[str, Kinds] = {"name": str, "scope": str, "days": (int, float)}


def add_routes(app: Bottle, site: Site) -> None:
    """Put the tokens onto an application."""
    app.route("/api/tokens", "GET", guarded(site, tokens))
    app.route("/api/tokens", "POST", guarded(site, create))
    app.route("/api/tokens/<name>", "DELETE", guarded(site, revoke))


@takes(scope=ADMIN)
def tokens(site: Site) -> HTTPResponse:
    """Every API token, without its secret."""
    return answer(site.tokens.listed())


@takes(scope=ADMIN, body=FIELDS, required=("name", "scope"), choices={"scope": SCOPES}, status=201)
def create(site: Site) -> HTTPResponse:
    """Make an API token; the answer is the only place where its secret is shown."""
    fields = body_fields(FIELDS)
    name, scope = fields.get("name", ""), fields.get("scope", "")
    try:
        secret = site.tokens.create(name, scope, fields.get("days"))
    except TokenError as error:
        refuse(409 if error.taken else 400, str(error), error.field, error.remedy)
    return answer({"name": name, "scope": scope, "token": secret}, 201)


@takes(scope=ADMIN)
def revoke(site: Site, name: str) -> HTTPResponse:
    """End an API token at once, with the live connections that it holds."""
    try:
        site.tokens.revoke(name)
    except TokenError as error:
        refuse(404, str(error), error.field, error.remedy)
    return answer({"revoked": name})
