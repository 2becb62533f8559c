"""`stirbar bench page`: from the last conversion of a reading to its point in the browser, on one machine.

A real demo and a headless Chromium. The page itself is watched: each time the OD that it shows changes, the newest
reading that had come by then says how old the shown point is. Both clocks are this machine's.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from stirbar.core.bench import BenchError, Result, Row, child_environment, parser_for, positive

LINK = re.compile(r"http://\S+/login\?token=\S+")
LIMIT_MS = 100.0

# In the page: `ages` collects, at each change of the value that unit1's card shows, the age of the newest reading.
WATCH = """
window.ages = []; let newest = null;
const source = new EventSource('/api/live?units=unit1');
source.addEventListener('reading', (event) => {
  const reading = JSON.parse(event.data);
  if (reading.stream.startsWith('od')) newest = reading.t;
});
const card = document.querySelector(arguments[0]);
new MutationObserver(() => {
  if (newest !== null) requestAnimationFrame(() => {
    window.ages.push(Date.now() - 1000 * newest); newest = null; });
}).observe(card, {subtree: true, childList: true, characterData: true});
"""
CHROMIUM = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,900",
)  # fmt: skip


def open_browser(directory: str) -> Any:
    """A headless Chromium with a profile of its own; raises BenchError where there is none."""
    try:
        from selenium import webdriver
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        raise BenchError("selenium is not installed: pip install 'stirbar[test]'") from None
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (*CHROMIUM, f"--user-data-dir={directory}"):
        options.add_argument(argument)
    try:
        return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    except WebDriverException as error:
        raise BenchError(f"no Chromium here (apt install chromium chromium-driver): {error.msg}") from None


def _demo(units: int, seconds: float) -> subprocess.Popen[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "stirbar.web.demo", "--no-browser", "--port", str(port)]
    command += ["--workers", str(units), "--seconds", str(round(seconds))]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment([sys.executable])
    )


def _link(demo: subprocess.Popen[str]) -> str:
    assert demo.stderr is not None
    for line in demo.stderr:
        if found := LINK.search(line):
            return found[0]
    raise BenchError("the demo did not start")


def measure(units: int, seconds: float) -> tuple[list[float], dict[str, Any]]:
    """Ages in ms of the points that the overview drew in so many seconds, and the demo's account."""
    demo = _demo(units, seconds + 60.0)
    try:
        link = _link(demo)
        with tempfile.TemporaryDirectory(prefix="stirbar-bench-", ignore_cleanup_errors=True) as directory:
            browser = open_browser(directory)
            try:
                browser.get(link)
                end = time.monotonic() + 20.0
                selector = "[data-unit=unit1] .od"
                while not browser.execute_script("return !!document.querySelector(arguments[0])", selector):
                    if time.monotonic() > end:
                        raise BenchError("the page shows no unit")
                    time.sleep(0.1)
                browser.execute_script(WATCH, selector)
                time.sleep(seconds)
                ages: list[float] = browser.execute_script("return window.ages")
            finally:
                browser.quit()
        demo.terminate()
        out, _ = demo.communicate(timeout=60)
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.communicate()
    return ages, json.loads(out.splitlines()[-1])


def bench_page(argv: list[str]) -> Result:
    """See the module."""
    parser = parser_for("page", "From the last conversion of a reading to its point in the browser.")
    parser.add_argument("--seconds", type=positive, default=30.0, help="how long to watch (default 30)")
    parser.add_argument("--units", type=int, default=1, help="simulated units (default 1)")
    arguments = parser.parse_args(argv)
    ages, account = measure(arguments.units, arguments.seconds)
    if len(ages) < 20:
        raise BenchError(f"only {len(ages)} points were drawn: watch for longer")
    ages.sort()
    median, late = ages[len(ages) // 2], ages[int(0.99 * (len(ages) - 1))]
    return Result(
        "page",
        [
            Row("last conversion to point in the browser, p50", median, "ms"),
            Row("last conversion to point in the browser, p99", late, "ms", LIMIT_MS, note=f"{len(ages)} points"),
            Row("readings lost meanwhile", account["readings_lost"], "", 0.0),
        ],
        f"{arguments.units} unit(s), headless Chromium on the same machine",
        {"ages_ms": ages, "account": account},
    )
