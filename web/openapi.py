"""The OpenAPI document of the leader's HTTP API, made from the table of the routes that are served.

A route is in it because the application answers it; what it takes is what was said beside its function
(`routes.takes`), and what it does is the first paragraph of that function's text.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse
from stirbar.web.routes import PUBLIC, Kinds, guarded, said_of, scope_of, types_of
from stirbar.web.server import MAXIMUM_BODY_BYTES
from stirbar.web.wire import answer

if TYPE_CHECKING:
    from stirbar.web.app import Site

PATH = "/api/openapi.json"
TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}
PLACE = re.compile(r"<(\w+)>")
ERROR = {"$ref": "#/components/schemas/Error"}
PURPOSE = (
    "JSON in and out, NaN is null, times are Unix seconds; docs/http-api.md has the rest. "
    f"A body is one JSON object of at most {MAXIMUM_BODY_BYTES // 1024} kB; unknown fields are refused."
)


def add_routes(app: Bottle, site: Site) -> None:
    """Put the document onto an application; it has all routes that are there when somebody asks for it."""

    def openapi(site: Site) -> HTTPResponse:
        """This document: every route of the API and what it takes."""
        return answer(document(app, site.version))

    app.route(PATH, "GET", guarded(site, openapi))


def document(app: Bottle, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an application."""
    paths: dict[str, dict[str, Any]] = {}
    for route in app.routes:
        if route.rule.startswith("/api/"):
            path = PLACE.sub(r"{\1}", route.rule)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route.method, route.rule, route.callback)
    return {
        "openapi": "3.1.0",
        "info": {"title": "stirbar leader", "version": version or "0", "description": PURPOSE},
        "paths": paths,
        "components": {
            "schemas": {"Error": _error_schema()},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`stirbar leader token create`"},
                "session": {"type": "http", "scheme": "cookie", "description": "POST /api/login"},
            },
        },
    }


def _operation(method: str, rule: str, function: Callable[..., Any]) -> dict[str, Any]:
    said, scope = said_of(function), scope_of(method, function)
    places = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PLACE.findall(rule)
    ]
    query = [
        {"name": name, "in": "query", "required": name in said.required, "schema": schema}
        for name, schema in said.query.items()
    ]
    purpose = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
    content: dict[str, Any] = {} if said.answer == "application/json" else {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "operationId": function.__name__,
        "summary": purpose,
        "parameters": places + query,
        "responses": {
            str(said.status): {"description": "done", "content": {said.answer: content}},
            "4XX": {"description": "refused", "content": {"application/json": {"schema": ERROR}}},
            "5XX": {"description": "not possible now", "content": {"application/json": {"schema": ERROR}}},
        },
        "security": [] if scope == PUBLIC else [{"token": [scope]}, {"session": []}],
    }
    if method not in ("GET", "DELETE"):
        schema = _body_schema(said.body or {}, said.required, said.choices)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _body_schema(
    fields: dict[str, Kinds], required: tuple[str, ...], choices: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, kinds in fields.items():
        names = list(dict.fromkeys(TYPES[kind] for kind in types_of(kinds)))
        properties[name] = {"type": names[0] if len(names) == 1 else names}
        if name in choices:
            properties[name]["enum"] = list(choices[name])
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    wanted = [name for name in required if name in fields]
    return {**schema, "required": wanted} if wanted else schema


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    return {
        "type": "object",
        "properties": {"error": {"type": "string"}, "field": text, "remedy": text},
        "required": ["error", "field", "remedy"],
        "additionalProperties": False,
    }
