"""JSON as browsers take it: no NaN, no infinities, bytes as hexadecimal digits; and the errors of the API."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any, NoReturn

from bottle import HTTPResponse, request

COMPRESSED_FROM = 16 * 1024  # characters
CURVES = ("low", "high", "mean")  # of a line of `Store.series`; `t` needs all its digits


def clean(value: Any) -> Any:
    """The value with what JSON cannot say replaced: NaN and infinities become null, bytes hexadecimal digits."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value


def to_json(value: Any) -> str:
    """Serialise for a browser; tries the quick way first, since most answers hold no NaN."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):
        return json.dumps(clean(value), allow_nan=False, separators=(",", ":"))


def lines_to_json(lines: list[dict[str, Any]]) -> str:
    """Lines of a chart, whose finite numbers are most of an answer: nine digits each, formatted in one go."""
    texts = []
    times: dict[tuple[float, ...], str] = {}  # lines of one chart mostly share them
    for line in lines:
        head = to_json({name: value for name, value in line.items() if name not in CURVES and name != "t"})
        at = tuple(line["t"])
        if at not in times:
            times[at] = to_json(line["t"])
        curves = [f'"{name}":[{(",%.9g" * len(line[name]))[1:] % tuple(line[name])}]' for name in CURVES]
        texts.append(f'{head[:-1]},"t":{times[at]},{",".join(curves)}}}')
    return f"[{','.join(texts)}]"


def json_answer(text: str, status: int = 200) -> HTTPResponse:
    """An answer of JSON that is serialised already, compressed where it is long and the caller takes that."""
    headers = {"Content-Type": "application/json"}
    if len(text) < COMPRESSED_FROM or "gzip" not in request.headers.get("Accept-Encoding", ""):
        return HTTPResponse(body=text, status=status, **headers)
    body = gzip.compress(text.encode(), 1, mtime=0)
    return HTTPResponse(body=body, status=status, **headers, **{"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})


def answer(value: Any, status: int = 200) -> HTTPResponse:
    """A JSON answer."""
    return json_answer(to_json(value), status)


def refuse(status: int, error: str, field: str | None = None, remedy: str | None = None, **headers: str) -> NoReturn:
    """End the request with the API's error: what is wrong, with which field, and what to do."""
    response = answer({"error": error, "field": field, "remedy": remedy}, status)
    for name, value in headers.items():
        response.set_header(name.replace("_", "-"), value)
    raise response
