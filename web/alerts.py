"""The alerts of docs/http-api.md: warnings and errors of the units that nobody has acknowledged yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bottle import Bottle, HTTPResponse, request
from stirbar.web.api import body_fields, find_unit, guarded, number_of
from stirbar.web.auth import USER
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from stirbar.web.app import Site

DEFAULT_ALERTS = 20
MAXIMUM_ALERTS = 200
LAST_ID = 2**53  # beyond which a browser's numbers have gaps


def add_routes(app: Bottle, site: Site) -> None:
    """Put the alerts onto an application."""
    app.route("/api/alerts", "GET", guarded(site, alerts))
    app.route("/api/alerts/acknowledge", "POST", guarded(site, acknowledge))


def alerts(site: Site) -> HTTPResponse:
    """What is not acknowledged, newest first."""
    limit = int(number_of("limit", DEFAULT_ALERTS, 1, MAXIMUM_ALERTS))
    unit: str = request.query.getunicode("unit") or ""
    unit_id = bytes.fromhex(find_unit(site, unit)["unit_id"]) if unit else None
    return answer(site.store.alerts(unit_id, limit))


def acknowledge(site: Site) -> HTTPResponse:
    """One alert, or all up to one, for all browsers and for ever; the pages that are open hear of it at once."""
    fields = body_fields({"id": int, "through": int, "unit": str})
    if ("id" in fields) == ("through" in fields):
        refuse(400, "give either 'id' or 'through'", "id", "GET /api/alerts has the ids; 'through' takes its 'newest'")
    name = "id" if "id" in fields else "through"
    last = fields[name]
    if not 1 <= last <= LAST_ID:
        refuse(400, f"'{name}' is {last}", name, f"give an id from 1 to {LAST_ID}")
    unit_id = bytes.fromhex(find_unit(site, fields["unit"])["unit_id"]) if fields.get("unit") else None
    by = f"{USER} at {request.environ.get('REMOTE_ADDR', '?')}"
    units = site.store.acknowledge(last if name == "id" else 1, last, unit_id, by)
    for unit in dict.fromkeys(units):
        site.live.publish("acknowledged", unit or "", {"by": by})
    return answer({"acknowledged": len(units)})
