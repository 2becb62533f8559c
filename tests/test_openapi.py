"""The OpenAPI document: made from what is served, equal to docs/http-api.md, and what it invites to is survived."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import pathlib
import re
import time
from urllib.parse import quote, urlencode

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from stirbar.core.leader_client import Leader, LeaderRefused
from stirbar.web import enrolment, openapi, standby_routes
from stirbar.web.app import Site, make_routes
from stirbar.web.live import Live

from .leader_process import LeaderProcess

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "http-api.md"
HANG_S = 2.0
GROWTH_KB = 40_000
PUBLIC_PATHS = (*enrolment.PATHS, *standby_routes.PATHS)
METHODS = ("get", "post", "put", "delete")


@pytest.fixture(scope="module")
def routes(tmp_path_factory):
    return make_routes(Site(tmp_path_factory.mktemp("site"), store=None, ingest=None, live=Live()))


@pytest.fixture(scope="module")
def document(routes):
    return openapi.document(routes, "1.2.3")


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_each_route_is_in_the_docs_and_each_of_the_docs_is_served(document):
    """A path's places may have other names in the text."""
    plain = lambda path: re.sub(r"[{<]\w+[}>]", "<>", path)  # noqa: E731
    served = {f"{method} {plain(path)}" for method, path, _ in operations(document)}
    rows = re.findall(r"^\| `(GET|POST|PUT|DELETE) (/api/[^`?]+)` \|", DOCS.read_text(), re.MULTILINE)
    written = {f"{method} {plain(path)}" for method, path in rows}
    assert served == written and len(served) > 20


def test_what_the_docs_say_a_route_takes_is_in_the_document(document):
    """Every query parameter and field that the document has stands in its row of the docs."""
    rows = {}
    for line in DOCS.read_text().splitlines():
        if match := re.match(r"\| `(GET|POST|PUT|DELETE) (/api/[^`?]+)` \|(.*)", line):
            rows[match[1], re.sub(r"<\w+>", "<>", match[2])] = match[3]
    for method, path, operation in operations(document):
        row = rows[method, re.sub(r"\{\w+\}", "<>", path)]
        if path.endswith("/command"):
            continue  # the worker's fields are in docs/protocol.md
        names = [one["name"] for one in operation["parameters"] if one["in"] == "query"]
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        for name in names + list(body.get("properties", {})):
            assert re.search(rf"\b{name}\b", row), f"{method} {path}: '{name}' is not in docs/http-api.md"


def test_every_operation_says_what_it_does_and_who_may(document):
    identifiers = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(identifiers) == len(set(identifiers))
    for method, path, operation in operations(document):
        assert len(operation["summary"]) > 10, f"{method} {path}"
        assert bool(operation["security"]) == (path not in ("/api/login", "/api/health", *PUBLIC_PATHS))


def test_schemathesis_finds_the_document_in_order(document):
    schemathesis.openapi.from_dict(document).validate()


@pytest.fixture(scope="module")
def leader(tmp_path_factory):
    leader = LeaderProcess(tmp_path_factory.mktemp("fuzz"))
    yield leader
    leader.stop()


def test_the_document_is_served(leader):
    with Leader(leader.address, token=leader.token) as client:
        found = client._get(openapi.PATH)
        assert found["paths"]["/api/readings"]["get"]["parameters"][0]["name"] == "unit"
    with Leader(leader.address) as stranger, pytest.raises(LeaderRefused):
        stranger._get(openapi.PATH)


class Sender:
    """Sends on one connection as long as it lasts; every answer must come in time and be an answer."""

    def __init__(self, leader):
        self.port, self.token = leader.port, leader.token
        self.connection = None
        self.statuses = {}

    def __call__(self, method, path, body=None, headers=None):
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        sent = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        begun = time.monotonic()
        try:
            self.connection.request(method, path, body, sent)
            response = self.connection.getresponse()
            if response.getheader("Content-Type", "").startswith("text/event-stream"):
                response.close()
                self.connection.close()
                self.connection = None
                return response.status, b""
            text = response.read()
        except OSError:  # nothing, or nothing in time
            self.connection.close()
            self.connection = None
            raise AssertionError(f"{method} {path} with {body!r:.500} was not answered") from None
        assert time.monotonic() - begun < HANG_S, f"{method} {path}: no answer within {HANG_S:g} s"
        if response.will_close:
            self.connection.close()
            self.connection = None
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        assert response.status < 500, (method, path, body, response.status, text[:500])
        if response.status >= 400:
            assert set(json.loads(text)) == {"error", "field", "remedy"}, (method, path, text[:200])
        return response.status, text


# a live connection has tests of its own; raw data are waited for; a session that ends is another test's
NOT_SENT = ("/api/live", "/api/units/{unit}/raw", "/api/logout")


def send_case(send, method, path, case, unit):
    """One case of schemathesis; half of the time for the unit that there is."""
    address = path
    for name, value in (case.path_parameters or {}).items():
        chosen = unit if unit and name == "unit" else str(value)
        address = address.replace(f"{{{name}}}", quote(chosen, safe="", errors="surrogatepass"))
    query = urlencode(case.query or {}, doseq=True, errors="surrogatepass")
    body, headers = None, {}
    if method != "GET":
        value = case.body if isinstance(case.body, dict | list | str | int | float | None) else {}
        if isinstance(value, dict) and value.get("command") == "blank":
            value = {**value, "clear": True}  # else it averages for as long as it says
        body, headers = json.dumps(value).encode("utf-8", "surrogatepass"), {"Content-Type": "application/json"}
    send(method, f"{address}?{query}" if query else address, body, headers)


def fuzz(leader, examples):
    """Cases that schemathesis makes of the document, right ones and wrong ones."""
    with Leader(leader.address, token=leader.token) as client:
        found = client._get(openapi.PATH)
    schema, send = schemathesis.openapi.from_dict(found), Sender(leader)
    for method, path, _ in operations(found):
        if path in NOT_SENT:
            continue
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            cases = schema[path][method].as_strategy(generation_mode=mode)
            hammer(functools.partial(send_case, send, method, path), cases, examples)
    return send


def hammer(send, cases, examples):
    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)
    @given(case=cases, unit=st.sampled_from([None, "vial1"]))
    def one(case, unit):
        send(case, unit)

    with contextlib.suppress(Unsatisfiable):  # what takes nothing can be given nothing wrong
        one()


def test_what_the_document_invites_to_is_answered(leader):
    before = leader.memory_kb()
    send = fuzz(leader, 15)
    assert leader.process.poll() is None
    assert leader.memory_kb() - before < GROWTH_KB
    assert send.statuses.get(200, 0) > 30 and send.statuses.get(400, 0) > 30, send.statuses


@pytest.mark.soak
def test_what_the_document_invites_to_is_answered_for_long(leader):
    fuzz(leader, 300)  # the store and Python's own arenas have grown to their size
    before = leader.memory_kb()
    fuzz(leader, 300)
    assert leader.process.poll() is None and leader.memory_kb() - before < GROWTH_KB


def test_a_body_that_is_no_json_or_nested_or_huge_is_refused(leader):
    send = Sender(leader)
    for body in (
        b"{", b"\xff\xfe{}", b"[" * 60_000, b'{"a":' * 10_000, b'{"name": "' + b"\xed\xa0\x80" + b'"}',
        b'{"name": "\\ud800"}', b'{"name": NaN}', b"[]", b"3", b'{"name": ' + b"9" * 5000 + b"}", b"\0" * 65_536,
    ):  # fmt: skip
        for method, path in (
            ("POST", "/api/experiments"),
            ("POST", "/api/units/vial1/command"),
            ("POST", "/api/tokens"),
        ):
            status, _ = send(method, path, body, {"Content-Type": "application/json"})
            assert status in (400, 409, 413), (body[:30], status)


def test_paths_and_queries_that_are_no_text_are_answered(leader):
    send = Sender(leader)
    for piece in (
        "%00",
        "%ff",
        "%ED%A0%80",
        "%F0%9F%A7%AA",
        "..%2f..",
        "%2e%2e",
        "a" * 5000,
        "%0d%0aX:%201",
        "'",
        '"',
        "<",
    ):
        for method, path in (
            ("GET", f"/api/units/{piece}"), ("GET", f"/api/readings?stream={piece}&unit={piece}"),
            ("GET", f"/api/experiments/{piece}/readings.csv"), ("PUT", f"/api/experiments/{piece}/units/{piece}"),
            ("DELETE", f"/api/tokens/{piece}"), ("GET", f"/api/{piece}"), ("GET", f"/{piece}"),
            ("GET", f"/static/{piece}"), ("GET", f"/api/audit?limit={piece}"),
        ):  # fmt: skip
            if path.startswith(("/static/", f"/{piece}")):
                raw_status(leader, method, path)
            else:
                send(method, path)


@pytest.mark.parametrize("path", ["/api/events", "/api/audit"])
def test_a_time_beyond_what_the_store_can_count_is_refused(leader, path):
    send = Sender(leader)
    assert [send("GET", f"{path}?before={t}")[0] for t in ("9200000000", "9223372037", "1e300")] == [200, 400, 400]


def raw_status(leader, method, path):
    """The status of what is answered with a page."""
    connection = http.client.HTTPConnection("127.0.0.1", leader.port, timeout=HANG_S)
    connection.request(method, path)
    status = connection.getresponse().status
    connection.close()
    assert status < 500, (path, status)
    return status
