"""`stirbar bench overview`: the overview of many units in a headless Chromium, each measuring once a second.

A real leader, simulated bridges (`stirbar bench leader`) and a browser on one machine. Long tasks of the page's main
thread are what a user feels as a stutter; frames are counted while the page scrolls.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import tempfile
import time
from contextlib import ExitStack, suppress
from typing import Any

from stirbar.core.bench import BenchError, Result, Row, parser_for, positive
from stirbar.web.app import link_address
from stirbar.web.auth import Links
from stirbar.web.bench import open_browser
from stirbar.web.bench_leader import BenchLeader, Generators, percentile

SHOWN_LIMIT_MS, LONGEST_LIMIT_MS, BUSY_LIMIT_PERCENT, ELEMENTS_LIMIT = 3000.0, 200.0, 20.0, 5000.0
SHOWN_LIMIT_S = 60.0
SETTLE_S = 2.0

# `cards` that show a number
LIVE_CARDS = "[...document.querySelectorAll('.card .value')].filter((one) => /^-?\\d/.test(one.textContent)).length"
WATCH = """
window.seen = {tasks: [], changes: 0, frames: []};
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) window.seen.tasks.push([one.startTime, one.duration]);
}).observe({type: 'longtask', buffered: true});
new MutationObserver((list) => { window.seen.changes += list.length; })
  .observe(document.querySelector('#cards'), {subtree: true, childList: true, characterData: true});
"""
SCROLL = """
const [seconds, done] = arguments; const begin = performance.now(); let last = begin; window.seen.frames = [];
const height = document.documentElement.scrollHeight - innerHeight;
const step = (now) => {
  window.seen.frames.push(now - last); last = now;
  const share = Math.min(1, (now - begin) / (1000 * seconds));
  scrollTo({top: height * (share < 0.5 ? 2 * share : 2 - 2 * share), behavior: 'instant'});
  if (share < 1) requestAnimationFrame(step); else done();
};
requestAnimationFrame(step);
"""
FIND = """
const [word, done] = arguments; const field = document.querySelector('#pages input'); const begin = performance.now();
field.value = word; field.dispatchEvent(new Event('input'));
const look = () => document.querySelectorAll('.card').length === 1
  && /\\d/.test(document.querySelector(`[data-unit=${word}] .value`)?.textContent)
  ? done(performance.now() - begin) : requestAnimationFrame(look);
look();
"""


def _wait(browser: Any, script: str, wanted: int) -> None:
    end = time.monotonic() + SHOWN_LIMIT_S
    while browser.execute_script(f"return {script}") < wanted:
        if time.monotonic() > end:
            raise BenchError(f"the page does not show {wanted} units within {SHOWN_LIMIT_S:g} s")
        time.sleep(0.02)


def _api(leader: BenchLeader, path: str) -> dict[str, float]:
    """Time and bytes of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", leader.page_port, timeout=30.0)
    headers = {"Authorization": f"Bearer {leader.token}", "Accept-Encoding": "gzip"}
    begun = time.monotonic()
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    took_ms = 1e3 * (time.monotonic() - begun)
    connection.close()
    packed = answer.getheader("Content-Encoding") == "gzip"
    return {"ms": took_ms, "sent": len(body), "bytes": len(gzip.decompress(body)) if packed else len(body)}


def look(browser: Any, leader: BenchLeader, seconds: float, shot: str) -> dict[str, Any]:
    """Open the overview, and watch it: as it is, while it scrolls, and while somebody searches."""
    browser.get(link_address(leader.address, Links(leader.directory / "leader").issue()))
    wanted = min(len(leader.units), 48)
    _wait(browser, "document.querySelectorAll('.card').length", wanted)
    browser.get(leader.address + "/")
    _wait(browser, LIVE_CARDS, wanted)
    found: dict[str, Any] = {
        "shown_ms": browser.execute_script("return performance.now()"),
        "paint_ms": browser.execute_script(
            "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
        ),
    }
    browser.execute_script(WATCH)
    time.sleep(SETTLE_S)
    found["loading"] = [length for _, length in browser.execute_script("return window.seen.tasks")]
    browser.execute_script("window.seen.tasks = []; window.seen.changes = 0")
    time.sleep(seconds)
    found["tasks"] = [length for _, length in browser.execute_script("return window.seen.tasks")]
    found["changes_per_s"] = browser.execute_script("return window.seen.changes") / seconds
    browser.execute_async_script(SCROLL, 3.0)
    found["frames"] = sorted(browser.execute_script("return window.seen.frames"))
    found["elements"] = browser.execute_script("return document.querySelectorAll('*').length")
    found["heap_mb"] = browser.execute_script("return performance.memory.usedJSHeapSize / 1e6")
    found["live"] = browser.execute_script("return document.querySelector('#summary').textContent")
    if shot:
        browser.execute_script("scrollTo(0, 0)")
        browser.save_screenshot(shot)
    if len(leader.units) > wanted:
        found["find_ms"] = browser.execute_async_script(FIND, list(leader.units)[-1])
    if shot:
        browser.save_screenshot(shot.replace(".png", "-found.png"))
    return found


def measure(units: int, seconds: float, shot: str = "") -> dict[str, Any]:
    """What a browser shows and how it feels, with so many units that measure."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        leader = stack.enter_context(BenchLeader(units))
        generators = stack.enter_context(Generators(leader, seconds + SHOWN_LIMIT_S, 1))
        generators.connected()
        generators.go()
        time.sleep(SETTLE_S)
        browser = open_browser(directory)
        try:
            browser.set_script_timeout(SHOWN_LIMIT_S)
            found = look(browser, leader, seconds, shot)
        finally:
            with suppress(Exception):
                browser.quit()
        found["all"], found["brief"] = _api(leader, "/api/units"), _api(leader, "/api/units?brief=1")
        found["dropped"] = leader.health()["live"]["events_dropped"]
    return found


def rows_of(found: dict[str, Any], seconds: float) -> list[Row]:
    """Against what a person takes for a page that works."""
    brief, every = found["brief"], found["all"]
    rows = [
        Row("first contentful paint", found["paint_ms"], "ms"),
        Row("until every card of the first page shows its value", found["shown_ms"], "ms", SHOWN_LIMIT_MS),
        Row("longest task while it loads", max(found["loading"], default=0.0), "ms"),
        Row("longest task while it is looked at", max(found["tasks"], default=0.0), "ms", LONGEST_LIMIT_MS),
        Row(
            "main thread in long tasks (over 50 ms)", sum(found["tasks"]) / seconds / 10.0, "%", BUSY_LIMIT_PERCENT,
            note=f"{found['changes_per_s']:.0f} changes of the cards a second; {found['live']}",
        ),
        Row("frame while it scrolls, p50", percentile(found["frames"], 0.5), "ms"),
        Row("frame while it scrolls, p99", percentile(found["frames"], 0.99), "ms"),
        Row("elements of the page", found["elements"], "", ELEMENTS_LIMIT),
        Row("heap of its scripts", found["heap_mb"], "MB"),
        Row("list of all units for the page", brief["ms"], "ms", note=f"{brief['sent'] / 1e3:.0f} of "
            f"{brief['bytes'] / 1e3:.0f} kB by gzip; with what they measure {every['ms']:.0f} ms, "
            f"{every['sent'] / 1e3:.0f} of {every['bytes'] / 1e3:.0f} kB"),
        Row("live events dropped", found["dropped"], "", 0.0),
    ]  # fmt: skip
    if "find_ms" in found:
        rows.insert(
            5, Row("from the last letter of a search to the value of what it finds", found["find_ms"], "ms", 1000.0)
        )
    return rows


def bench_overview(argv: list[str]) -> Result:
    """See the module."""
    parser = parser_for("overview", "The overview of many units in a browser, while all of them measure.")
    parser.add_argument("--units", type=int, default=1000, help="simulated bridges (1000)")
    parser.add_argument("--seconds", type=positive, default=20.0, help="how long the page is looked at (20)")
    parser.add_argument("--shot", default="", metavar="FILE.png", help="keep pictures of the page")
    arguments = parser.parse_args(argv)
    if arguments.units < 1:
        raise BenchError("--units is at least 1")
    found = measure(arguments.units, arguments.seconds, os.path.abspath(arguments.shot) if arguments.shot else "")
    conditions = f"{arguments.units} units at 1 reading/s, leader and headless Chromium on one machine; load "
    conditions += f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} CPUs"
    return Result("overview", rows_of(found, arguments.seconds), conditions, json.loads(json.dumps(found)))
