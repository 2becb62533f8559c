"""The alerts of docs/http-api.md: warnings and errors of the units that nobody has acknowledged yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bottle import Bottle, HTTPResponse
from stirbar.web.api import find_unit
from stirbar.web.routes import TEXT, Kinds, body_fields, caller_at, guarded, number, number_of, takes, text_of
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from stirbar.web.app import Site

DEFAULT_ALERTS = 20
MAXIMUM_ALERTS = 200
LAST_ID = 2**53  # beyond which a browser's numbers have gaps
FIELDS: dict[str, Kinds] = {"id": int, "through": int, "unit": str}


def add_routes(app: Bottle, site: Site) -> None:
    """Put the alerts onto an application."""
    app.route("/api/alerts", "GET", guarded(site, alerts))
    app.route("/api/alerts/acknowledge", "POST", guarded(site, acknowledge))


@takes(query={"unit": TEXT, "limit": number(1, MAXIMUM_ALERTS, DEFAULT_ALERTS)})
def alerts(site: Site) -> HTTPResponse:
    """What is not acknowledged, newest first."""
    limit = int(number_of("limit", DEFAULT_ALERTS, 1, MAXIMUM_ALERTS))
    unit = text_of("unit")
    unit_id = bytes.fromhex(find_unit(site, unit)["unit_id"]) if unit else None
    return answer(site.store.alerts(unit_id, limit))


@takes(body=FIELDS)
def acknowledge(site: Site) -> HTTPResponse:
    """One alert, or all up to one, for all browsers and for ever; the pages that are open hear of it at once."""
    fields = body_fields(FIELDS)
    if ("id" in fields) == ("through" in fields):
        refuse(400, "give either 'id' or 'through'", "id", "GET /api/alerts has the ids; 'through' takes its 'newest'")
    name = "id" if "id" in fields else "through"
    last = fields[name]
    if not 1 <= last <= LAST_ID:
        refuse(400, f"'{name}' is {last}", name, f"give an id from 1 to {LAST_ID}")
    unit_id = bytes.fromhex(find_unit(site, fields["unit"])["unit_id"]) if fields.get("unit") else None
    by = caller_at()
    units = site.store.acknowledge(last if name == "id" else 1, last, unit_id, by)
    for unit in dict.fromkeys(units):
        site.live.publish("acknowledged", unit or "", {"by": by})
    return answer({"acknowledged": len(units)})
