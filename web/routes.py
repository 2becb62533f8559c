"""A route of the API: its function, what it takes and who may call it; and the checks of what it was sent.

`takes` writes beside a function what it takes: the gate knows a route by the table that serves it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bottle import request
from stirbar.bridge.store import StoreError, StoreUnavailable
from stirbar.web.audit import SAFE_METHODS
from stirbar.web.tokens import CONTROL, READ
from stirbar.web.wire import refuse

if TYPE_CHECKING:
    from stirbar.web.app import Site
    from stirbar.web.tokens import Caller

Kinds = type | tuple[type, ...]
Function = TypeVar("Function", bound=Callable[..., Any])
PUBLIC = ""  # the scope of what nobody has to log in for
TEXT: dict[str, Any] = {"type": "string"}


class Takes(NamedTuple):
    """What a route takes: a scope (None: read of a GET, control of everything else), its query and body, and what it
    answers with."""

    scope: str | None = None
    query: dict[str, dict[str, Any]] = {}  # name: JSON schema
    required: tuple[str, ...] = ()  # of query and body
    body: dict[str, Kinds] | None = None
    choices: dict[str, tuple[str, ...]] = {}  # of fields of the body
    answer: str = "application/json"
    status: int = 200


NOTHING_SAID = Takes()


def takes(**what: Any) -> Callable[[Function], Function]:
    """Say what the route of a function takes; the fields are those of `Takes`."""

    def mark(function: Function) -> Function:
        function.__dict__["takes"] = Takes(**what)
        return function

    return mark


def number(low: float, high: float, default: float | None = None) -> dict[str, Any]:
    """The schema of a number in a query."""
    schema: dict[str, Any] = {"type": "number", "minimum": low, "maximum": high}
    return schema if default is None else {**schema, "default": default}


def said_of(function: Callable[..., Any]) -> Takes:
    """What was said of a route's function."""
    found: Takes = getattr(function, "takes", NOTHING_SAID)
    return found


def scope_of(method: str, function: Callable[..., Any]) -> str:
    """The scope that a caller of a route needs."""
    scope = said_of(function).scope
    if scope is not None:
        return scope
    return READ if method in SAFE_METHODS else CONTROL


def caller() -> Caller | None:
    """Who sent the request under way."""
    found: Caller | None = request.environ.get("stirbar.caller")
    return found


def caller_name() -> str:
    """The name of who sent the request, for records of what was done."""
    found = caller()
    return found.name if found is not None else "nobody"


def caller_at() -> str:
    """The name and the address of who sent the request."""
    return f"{caller_name()} at {request.environ.get('REMOTE_ADDR', '?')}"


def note(**what: Any) -> None:
    """Leave something for the audit log (`audit.audited`)."""
    request.environ.get("stirbar.audit", {}).update(what)


def guarded(site: Site, function: Callable[..., Any]) -> Callable[..., Any]:
    """The route's function with the site, and with the store's refusals turned into answers."""

    @functools.wraps(function)
    def call(**arguments: str) -> Any:
        note(unit=arguments.get("unit"))
        try:
            return function(site, **arguments)
        except StoreUnavailable as error:
            refuse(503, str(error), remedy="try again in a few seconds", Retry_After="3")
        except StoreError as error:
            refuse(409, str(error))

    return call


def body_fields(expected: dict[str, Kinds]) -> dict[str, Any]:
    """The JSON object in the request's body; refuses what is no object, unknown fields and wrong types."""
    kind = (request.content_type or "").split(";")[0].strip().lower()
    if kind != "application/json":
        refuse(415, f"the body is of type '{kind or 'none'}'", "Content-Type", "send JSON as application/json")
    try:
        value = json.loads((request.body.read() or b"{}").decode(), parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a character is text to JSON alone
    except (ValueError, RecursionError) as error:
        refuse(400, f"the body is not JSON: {error}", remedy="send one JSON object")
    if not isinstance(value, dict):
        refuse(400, f"the body is a JSON {type(value).__name__}", remedy="send one JSON object")
    for name, item in value.items():
        if name not in expected:
            refuse(400, f"the body has an unknown field '{name[:50]}'", name[:50], f"known are: {', '.join(expected)}")
        if not isinstance(item, expected[name]) or (isinstance(item, bool) and bool not in types_of(expected[name])):
            names = " or ".join(kind.__name__ for kind in types_of(expected[name]))
            refuse(400, f"'{name}' is of type {type(item).__name__}", name, f"send a {names}")
    note(fields=value)
    return value


def types_of(kinds: Kinds) -> tuple[type, ...]:
    """The types that a field may have."""
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def number_of(name: str, default: float | None, low: float, high: float) -> float:
    """A number of the query; refuses what is none, missing without a default, or out of bounds."""
    text = request.query.get(name)
    if text in (None, ""):
        if default is None:
            refuse(400, f"'{name}' is missing", name, f"give a number from {low:g} to {high:g}")
        return default
    try:
        value = float(text)
    except ValueError:
        refuse(400, f"'{name}' is not a number: {text[:50]}", name, f"give a number from {low:g} to {high:g}")
    if not low <= value <= high:
        refuse(400, f"'{name}' is {text[:50]}, allowed are {low:g} to {high:g}", name, "give a number within these")
    return value


def text_of(name: str) -> str:
    """A word of the query as Unicode; empty when it is not there."""
    value: str = request.query.getunicode(name) or ""
    return value
