"""More units than a page shows: the API's short answers, live events of some units, and the overview in a browser."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import shutil

import pytest
from stirbar.web.app import link_address
from stirbar.web.auth import Links
from stirbar.web.bench import open_browser
from stirbar.web.bench_leader import BenchLeader, Generators, Listener

from .running import wait_for
from .test_page import CHROMIUM_NAMES, _missing

UNITS, PAGE = 60, 48
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def many():
    """A leader with sixty units, thirty in each of two processes that a test may end."""
    with BenchLeader(UNITS) as leader, Generators(leader, 300.0, 1, processes=2) as generators:
        generators.connected()
        generators.go()
        wait_for(lambda: len(_get(leader, "/api/units?brief=1")[0]) == UNITS, 10, "sixty units")
        yield leader, generators


def _get(leader, path, encoding="gzip"):
    """The answer's JSON, status, headers and bytes on the wire."""
    connection = http.client.HTTPConnection("127.0.0.1", leader.page_port, timeout=10)
    headers = {"Authorization": f"Bearer {leader.token}", "Accept-Encoding": encoding}
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    packed = answer.getheader("Content-Encoding") == "gzip"
    return json.loads(gzip.decompress(body) if packed else body), answer.status, packed, len(body)


def test_units_in_brief_and_by_name(many):
    leader, _ = many
    wait_for(lambda: all(one["latest"] for one in _get(leader, "/api/units")[0]), 10, "a reading of each")
    every, _, packed, sent = _get(leader, "/api/units")
    plain, _, unpacked, size = _get(leader, "/api/units", "identity")
    assert (packed, unpacked) == (True, False) and 3 * sent < size
    brief, *_ = _get(leader, "/api/units?brief=1")
    assert [one["unit"] for one in brief] == [one["unit"] for one in every] == sorted(leader.units)
    left_out = {"jobs", "settings", "latest"}
    assert all(set(full) - set(short) == left_out for full, short in zip(plain, brief, strict=True))
    some, *_ = _get(leader, f"/api/units?units=unit0007,{leader.units['unit0003'].hex()}")
    assert [one["unit"] for one in some] == ["unit0007", "unit0003"] and some[0]["latest"]["od2"]["value"] > 0.4
    assert _get(leader, "/api/units?units=unit0007,nobody")[1] == 404
    assert _get(leader, "/api/units?units=" + ",".join(["unit0007"] * 201))[1] == 400


def test_readings_of_several_units_in_one_answer(many):
    leader, _ = many
    path = "/api/readings?stream=od2&points=100&units=unit0001,unit0002"
    wait_for(lambda: len(_get(leader, path)[0].get("series", [])) == 2, 10, "stored readings")
    found, *_ = _get(leader, path + "&experiment=bench")
    assert [line["unit"] for line in found["series"]] == ["unit0001", "unit0002"]
    assert _get(leader, "/api/readings?stream=od2&unit=unit0001&units=unit0002")[1] == 400
    assert _get(leader, "/api/readings?stream=od2")[1] == 400
    assert _get(leader, "/api/live?states=some")[1] == 400


@pytest.fixture(scope="module")
def browser(many, tmp_path_factory):
    if not (any(map(shutil.which, CHROMIUM_NAMES)) and shutil.which("chromedriver")):
        _missing("chromium and chromedriver are not installed")
    pytest.importorskip("selenium.webdriver")
    opened = open_browser(str(tmp_path_factory.mktemp("chromium")))
    leader, _ = many
    opened.get(link_address(leader.address, Links(leader.directory / "leader").issue()))
    yield opened
    opened.quit()


def _cards(browser):
    """{unit: (value, state)} of the cards on the page."""
    script = """return Object.fromEntries([...document.querySelectorAll('.card')].map((card) => [card.dataset.unit,
        [card.querySelector('.value').textContent, card.dataset.state]]))"""
    return browser.execute_script(script)


def _find(browser, words):
    script = """const field = document.querySelector('#pages input'); field.value = arguments[0];
        field.dispatchEvent(new Event('input'))"""
    browser.execute_script(script, words)


def _live(cards, names):
    return list(cards) == names and all(NUMBER.fullmatch(value) and state == "live" for value, state in cards.values())


def test_the_overview_shows_a_page_of_units_and_finds_the_others(many, browser):
    leader, generators = many
    names = list(leader.units)
    wait_for(lambda: _live(_cards(browser), names[:PAGE]), 20, "the first page, live")
    assert "60 of 60 live" in browser.find_element("id", "summary").text
    first = _cards(browser)
    wait_for(lambda: _cards(browser)["unit0048"] != first["unit0048"], 5, "a value that changes")
    browser.find_element("css selector", "#pages button:last-child").click()
    wait_for(lambda: _live(_cards(browser), names[PAGE:]), 10, "the second page, live")
    assert browser.find_element("css selector", "#pages output").text == "49 to 60 of 60"
    _find(browser, "UNIT0030")
    wait_for(lambda: _live(_cards(browser), ["unit0030"]), 10, "the one that was searched for")
    charts = "return document.querySelectorAll('#charts .legend button').length"
    wait_for(lambda: browser.execute_script(charts) == 1, 10, "the chart of what is shown")
    # units that are not on the page and have no live readings here: how they are is told
    generators.processes[1].kill()
    wait_for(lambda: "30 of 60 live" in browser.find_element("id", "summary").text, 15, "thirty lost")
    _find(browser, "lost")
    wait_for(lambda: list(_cards(browser)) == names[1::2], 10, "those that are lost")
    bad = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert bad == []


def test_who_hears_some_units_hears_how_all_are(many):
    """Runs after thirty were lost: the listener of one unit is told nothing of the others unless it asks."""
    leader, generators = many
    generators.processes[1].wait(10)
    some = Listener(leader, ["unit0001", "unit0003"])
    wait_for(lambda: len(some.ages_ms) >= 4, 10, "readings of the two")
    assert _get(leader, "/api/health")[0]["live"]["events_dropped"] == 0
    leader.process.terminate()
    some.close()
    assert len(some.ages_ms) < 40, "only those that were asked for"
