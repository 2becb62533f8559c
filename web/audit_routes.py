"""The audit log over HTTP (docs/http-api.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bottle import Bottle, HTTPResponse
from stirbar.web.api import LAST_TIME_S
from stirbar.web.routes import guarded, number, number_of, takes
from stirbar.web.tokens import ADMIN
from stirbar.web.wire import answer

if TYPE_CHECKING:
    from stirbar.web.app import Site

DEFAULT_ENTRIES = 100
MAXIMUM_ENTRIES = 1000


def add_routes(app: Bottle, site: Site) -> None:
    """Put the audit log onto an application."""
    app.route("/api/audit", "GET", guarded(site, entries))


@takes(scope=ADMIN, query={"limit": number(1, MAXIMUM_ENTRIES, DEFAULT_ENTRIES), "before": number(0.0, LAST_TIME_S)})
def entries(site: Site) -> HTTPResponse:
    """Who did what, newest first."""
    limit = int(number_of("limit", DEFAULT_ENTRIES, 1, MAXIMUM_ENTRIES))
    return answer(site.audit.read(limit, number_of("before", math.inf, 0.0, LAST_TIME_S)))
