"""The outage matrix, end to end: what was published is stored once and in order, or counted and named as lost.

Real mosquitto, bridge and leader as processes, SQLite store. `python tests/outage_table.py` writes docs/outages.md.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bridge_doubles import UNIT_ID
from mqtt_mischief import Mischief
from outage_bench import (
    Account,
    Bench,
    Caller,
    Link,
    Listener,
    TimedWorker,
    feeding,
    keep_row,
    let_pass,
    made,
    small_disk,
)
from outage_table import CASES, documented
from running import stirbar_environment
from standby_bench import Cluster, lose_the_leader
from stirbar.bridge.blocks import CLOCK_CORRECTED
from stirbar.bridge.store import open_store
from stirbar.web.accounting import Stored, Tally

RUN_A, RUN_B = b"A" * 16, b"B" * 16
NOT_SENT = "worker ended before it was sent"


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sb") as name:  # short: a socket's path has at most 107 bytes
        yield Path(name)


@pytest.fixture
def outage(place: Path) -> Iterator[Bench]:
    one = Bench(place)
    yield one
    one.close()


@pytest.fixture
def link() -> Iterator[Link]:
    one = Link()
    yield one
    one.close()


def lossless(case: str, outage: Bench, seconds: float = 30) -> None:
    """Everything is stored, once, in order, and no gap is named."""
    account = outage.account(seconds)
    keep_row(case, account)
    assert account.published > 0
    assert (account.stored, account.duplicates, account.lost, account.gaps) == (account.published, 0, 0, 0)


def start(outage: Bench, **options: object) -> TimedWorker:
    """The whole chain, at work."""
    worker = outage.start_worker()
    outage.start_bridge(**options)
    outage.start_leader()
    worker.readings(1, 1)
    outage.wait_stored(1)
    return worker


def test_the_document_has_every_case_with_its_counts() -> None:
    rows = documented()
    assert set(rows) == set(CASES)
    names = {name for name in globals() if name.startswith("test_")}
    assert {f"test_{case}" for case in CASES} <= names
    for case, (published, stored, duplicates, lost, gaps) in rows.items():
        assert published > 0 and duplicates == 0, case
        assert stored + lost == published, case
        assert (gaps > 0) == (lost > 0), case


# The broker


def test_broker_restarted(place: Path) -> None:
    outage = Bench(place, persistence=True)
    try:
        worker = start(outage)
        with feeding(worker):
            made(worker, 100)
            outage.broker.stop()
            made(worker, 200)
            outage.broker.restart()
            outage.wait_stored(400)
        lossless("broker_restarted", outage)
    finally:
        outage.close()


def test_broker_killed_persistence_lost(place: Path) -> None:
    outage = Bench(place, persistence=True)
    try:
        worker = start(outage)
        with feeding(worker):
            made(worker, 100)
            outage.broker.kill()
            shutil.rmtree(place / "kept")
            (place / "kept").mkdir()
            made(worker, 200)
            outage.broker.restart()
            outage.wait_stored(400)
        lossless("broker_killed_persistence_lost", outage)
    finally:
        outage.close()


# The leader


def test_leader_killed_mid_commit(outage: Bench) -> None:
    _leader_killed(outage, "commit", "leader_killed_mid_commit")


def test_leader_killed_before_ack(outage: Bench) -> None:
    _leader_killed(outage, "acknowledge", "leader_killed_before_ack")


def _leader_killed(outage: Bench, moment: str, case: str) -> None:
    worker = outage.start_worker()
    dying = outage.start_leader(dies=moment, dies_after=6)
    outage.start_bridge()
    with feeding(worker):
        assert dying.wait(20) == -9
        made(worker, 100)
        outage.start_leader()
        outage.wait_stored(300)
    lossless(case, outage)


def test_leader_disk_full(place: Path) -> None:
    with small_disk(place / "disk", 2):
        outage = Bench(place)
        try:
            worker = outage.start_worker()
            leader = outage.start_leader("disk/leader.sqlite")
            outage.start_bridge()
            worker.readings(1, 1)
            outage.wait_stored(1, database="disk/leader.sqlite")
            filler = place / "disk" / "filler"
            with feeding(worker):
                with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
                    while True:
                        file.write(bytes(4096))
                refused = "database or disk is full"
                let_pass(lambda: refused in (place / "said").read_text(), "the leader says that it cannot write")
                made(worker, 200)
                filler.unlink()
                outage.wait_stored(300, database="disk/leader.sqlite")
            account = outage.account(database="disk/leader.sqlite")
            keep_row("leader_disk_full", account)
            assert (account.stored, account.duplicates, account.lost) == (account.published, 0, 0)
            assert outage.end_leader(leader)["store"]["commit_failures"] > 0
        finally:
            outage.close()


# The unit


def test_bridge_killed_mid_write(outage: Bench) -> None:
    worker = outage.start_worker()
    outage.start_leader()
    dying = outage.start_bridge(torn_after=12)
    with feeding(worker):
        assert dying.wait(20) == -9
        made(worker, 100)
        outage.start_bridge()
        outage.wait_stored(300)
    lossless("bridge_killed_mid_write", outage)
    assert "of a torn write cut off" in (outage.place / "said").read_text()


def test_worker_killed(outage: Bench) -> None:
    first = start(outage)
    with feeding(first):
        outage.wait_stored(300)
    outage.wait_complete()
    heard = first.next[1]
    first.failures["resend"] = 10**6  # what the bridge did not get went with the process
    first.readings(1, 7, lose=True)
    let_pass(lambda: any(request.get("from_sequence") == heard for request in first.requests), "the hole is noticed")
    first.end()
    second = outage.start_worker(RUN_B)
    with feeding(second):
        outage.wait_stored(60)
    account = outage.account()
    keep_row("worker_killed", account)
    assert account.published - account.stored == account.lost == 7
    assert (account.duplicates, account.gaps, account.reasons) == (0, 1, [NOT_SENT])


def test_simulated_worker_killed(outage: Bench, start_worker) -> None:
    """A real worker, whose account is what another listener heard of it."""
    worker = start_worker()
    about = worker.client.command("describe")
    outage.start_leader()
    outage.start_bridge(worker_address=worker.address, unit_id=about["unit_id"], unit="w")
    stored = Stored(outage.place / "leader.sqlite")
    with contextlib.closing(Tally()) as tally:
        tally.connect(worker.address)
        let_pass(lambda: tally.listen(0.05) >= 0 and sum(end for _, end in stored.readings().values()) > 60, "readings")
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait(10)
        while tally.listen(0.2):
            pass
        ends = {key: end for key, end in tally.ends.items() if key[1] == about["run_id"]}
    worker.process = subprocess.Popen(
        worker.process.args, env=stirbar_environment(), cwd=worker.directory, stdin=subprocess.DEVNULL
    )
    let_pass(lambda: all(stored.covered().get(key, 0) >= end for key, end in ends.items()), "all accounted for")
    let_pass(lambda: {key[1] for key in stored.readings()} > {about["run_id"]}, "readings of the next run")
    covered, rows = stored.covered(), stored.readings()
    lost = outage.rows("SELECT count, reason FROM gap")
    account = Account(sum(covered[key] for key in ends), sum(rows[key][0] for key in ends), 0, lost)
    keep_row("simulated_worker_killed", account)
    assert account.published >= sum(ends.values()) > 60
    assert account.stored + account.lost == account.published
    assert set(account.reasons) <= {NOT_SENT}


def test_spool_full(outage: Bench) -> None:
    worker = start(outage, spool_limit_bytes=150_000)
    outage.broker.kill()
    with feeding(worker, 40):
        made(worker, 6000)
    outage.broker.restart()
    with feeding(worker):
        outage.wait_stored(100)
    account = outage.account()
    keep_row("spool_full", account)
    assert account.lost > 300 and account.duplicates == 0 and account.gaps > 0
    assert account.stored + account.lost == account.published
    assert account.reasons and set(account.reasons) <= {"spool full", "spool full: thinned"}


def test_unit_renamed(outage: Bench) -> None:
    worker = start(outage)
    with feeding(worker):
        outage.wait_stored(100)
        outage.bridge.terminate()
        assert outage.bridge.wait(10) == 0
        made(worker, 100)
        worker.unit = "vial9"
        outage.start_bridge(unit="vial9")
        outage.wait_stored(200)
    lossless("unit_renamed", outage)
    assert outage.rows("SELECT name FROM unit") == [("vial9",)]


# Clocks

HOUR_NS = 3600 * 10**9


def events(outage: Bench, database: str = "leader.sqlite") -> list[str]:
    """Codes of what the leader itself has said."""
    found = outage.rows("SELECT code FROM event WHERE source = 'leader' ORDER BY id", database=database)
    return [code for (code,) in found]


def corrected(outage: Bench) -> int:
    return int(outage.rows("SELECT count(*) FROM reading WHERE flags & ?", (CLOCK_CORRECTED,))[0][0])


def test_clock_unknown_until_ntp(outage: Bench) -> None:
    worker = outage.start_worker()
    worker.set_wrong(1000 * 10**9 - time.time_ns())
    outage.broker.kill()
    outage.start_bridge()
    let_pass(lambda: any(request["command"] == "describe" for request in worker.requests), "the bridge at work")
    with feeding(worker):
        made(worker, 300)
        outage.broker.restart()
        outage.start_leader()
        let_pass(lambda: events(outage) == ["clock_offset"], "the clock is named")
        worker.set_wrong(0)
        let_pass(lambda: events(outage) == ["clock_offset", "clock_offset_over"], "and its end")
        outage.wait_stored(200)
    lossless("clock_unknown_until_ntp", outage)
    assert 300 <= corrected(outage) < worker.next[1]


def _jump(outage: Bench, hours: int, case: str) -> None:
    worker = start(outage)
    with feeding(worker):
        outage.wait_stored(500)
        worker.set_wrong(hours * HOUR_NS)
        let_pass(lambda: events(outage) == ["clock_offset"], "the clock is named")
        made(worker, 200)
        worker.set_wrong(0)
        let_pass(lambda: events(outage) == ["clock_offset", "clock_offset_over"], "and its end")
        outage.wait_stored(100)
    lossless(case, outage)
    assert corrected(outage) > 200


def test_clock_jumps_forward(outage: Bench) -> None:
    _jump(outage, 1, "clock_jumps_forward")


def test_clock_jumps_back(outage: Bench) -> None:
    _jump(outage, -1, "clock_jumps_back")


# Two leaders


def test_two_leaders(outage: Bench) -> None:
    worker = start(outage)
    first = outage.leader
    with feeding(worker):
        outage.wait_stored(100)
        second = outage.start_leader("second.sqlite")
        outage.wait_stored(200, database="second.sqlite")
        for database in ("leader.sqlite", "second.sqlite"):
            let_pass(lambda name=database: events(outage, name) == ["two_leaders"], f"{database} names the other")
        outage.wait_stored(200)
    outage.account(database="second.sqlite")
    lossless("two_leaders", outage)
    outage.end_leader(first)
    outage.end_leader(second)


def test_leader_replaced(outage: Bench) -> None:
    worker = start(outage)
    store = open_store(outage.place / "second.sqlite")
    store.close()
    with contextlib.closing(sqlite3.connect(outage.place / "second.sqlite")) as connection:
        connection.execute("UPDATE leadership SET epoch = 2")
        connection.commit()
    with feeding(worker):
        outage.wait_stored(300)
        outage.start_leader("second.sqlite")
        let_pass(lambda: "acknowledgement of an older leader" in (outage.place / "said").read_text(), "refused")
        outage.wait_stored(400, database="second.sqlite")
    account = outage.account(database="second.sqlite")
    keep_row("leader_replaced", account)
    assert (account.stored, account.duplicates, account.gaps) == (account.published, 0, 0)
    assert events(outage) == events(outage, "second.sqlite") == ["two_leaders"]


def test_leader_lost_standby_promoted(place: Path) -> None:
    """Leader, standby and two units with simulated workers, each in a network namespace of its own: docs/standby.md."""
    pytest.importorskip("cryptography", reason="the leader's certificates")
    cluster = Cluster(place)
    try:
        account = lose_the_leader(cluster)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{cluster.logs()}") from error
    finally:
        cluster.close()
    keep_row("leader_lost_standby_promoted", account)
    assert (account.stored, account.duplicates, account.lost) == (account.published, 0, 0)


# Commands


def test_commands_are_done_once(outage: Bench, start_worker) -> None:
    """Repeated by the network, by the caller, and by the caller after the bridge was killed."""
    worker = start_worker()
    unit_id = worker.client.command("describe")["unit_id"]
    network = Mischief(outage.broker.port)
    first = outage.start_bridge(network.port, worker_address=worker.address, unit_id=unit_id, unit="w")
    caller = Caller(outage.broker.port, unit_id)

    def reached() -> bool:
        caller.send(id="looking for the unit", command="status")
        return any(reply["ok"] for reply in caller.replies)

    def experiment() -> str:
        return str(worker.client.command("status")["experiment"])

    let_pass(reached, "the unit answers")
    names = [f"experiment {number}" for number in range(12)]
    answers = [caller.call(id=f"{name}, by its only id", command="experiment", name=name) for name in names]
    assert all(answer["ok"] for answer in answers) and network.twice > 2
    assert len({answer["result"]["number"] for answer in answers}) == len(names)
    assert caller.call(id=answers[0]["id"], command="experiment", name=names[0]) == answers[0]
    assert experiment() == names[-1], "the repeated one was not done again"
    first.kill()
    first.wait(10)
    outage.start_bridge(worker_address=worker.address, unit_id=unit_id, unit="w")
    caller.replies.clear()
    let_pass(reached, "the unit answers again")
    assert caller.call(id=answers[0]["id"], command="experiment", name=names[0]) == answers[0]
    assert experiment() == names[-1], "nor after the bridge was killed"
    late = caller.call(id="a command for long ago", command="experiment", name="late", expires_at=time.time() - 3)
    assert not late["ok"] and late["error"]["message"].startswith("the command expired 3.")
    assert experiment() == names[-1]
    caller.close()
    network.close()


def test_a_command_that_waited_in_the_network_is_refused_with_its_age(place: Path, link: Link) -> None:
    outage = _beyond(place, link)
    try:
        worker = outage.workers[0]
        caller = Caller(outage.broker.port, UNIT_ID.hex())
        with feeding(worker):
            outage.wait_stored(300)
            link.cut()
            caller.send(id="sent into the outage", command="start", job="stirring", expires_at=time.time() + 0.5)
            made(worker, 1000)
            link.mend()
            let_pass(lambda: bool(caller.replies), "the refusal")
        assert caller.replies[0]["error"]["message"].startswith("the command expired ")
        assert not [request for request in worker.requests if request["command"] == "start"]
        caller.close()
    finally:
        outage.close()


# The network


def test_network_cut_1_s(place: Path, link: Link) -> None:
    _cut(place, link, "network_cut_1_s", 1000)


@pytest.mark.soak
def test_network_cut_1_min(place: Path, link: Link) -> None:
    _cut(place, link, "network_cut_1_min", 60_000)


def _cut(place: Path, link: Link, case: str, readings: int) -> None:
    """Pull the cable for about so many readings of 1 000 a second."""
    outage = _beyond(place, link)
    try:
        worker = outage.workers[0]
        with feeding(worker):
            outage.wait_stored(100)
            link.cut()
            made(worker, readings)
            link.mend()
            outage.wait_stored(readings + 100, 90)
        lossless(case, outage, 90)
    finally:
        outage.close()


def test_flapping_link(place: Path, link: Link) -> None:
    outage = _beyond(place, link)
    try:
        worker = outage.workers[0]
        with feeding(worker):
            for _ in range(4):
                link.cut()
                made(worker, 200)
                link.mend()
                made(worker, 300)
            outage.wait_stored(300, 60)
        lossless("flapping_link", outage, 60)
    finally:
        outage.close()


def _beyond(place: Path, link: Link) -> Bench:
    """A outage whose bridge is at the other end of the cable."""
    outage = Bench(place)
    outage.broker.kill()
    with open(outage.broker.config, "a") as file:
        file.write(f"listener {outage.broker.port} {link.address}\n")
    outage.broker.restart()
    start(outage, host=link.address, inside=link.inside)
    return outage


def test_duplicated_and_reordered(outage: Bench) -> None:
    up, down = Mischief(outage.broker.port), Mischief(outage.broker.port)
    worker = outage.start_worker()
    outage.start_leader(port=down.port)
    outage.start_bridge(port=up.port)
    with feeding(worker):
        outage.wait_stored(1200, 40)
    lossless("duplicated_and_reordered", outage)
    counters = outage.end_leader()
    assert up.twice > 20 and up.swapped > 10 and down.twice > 5
    assert counters["store"]["duplicates"] > 0
    up.close()
    down.close()


def _day(outage: Bench, case: str, step_ns: int, seconds: float) -> None:
    """A day of readings, made at once, while there is neither broker nor leader."""
    day_ns = 86_400 * 10**9
    worker = outage.start_worker()
    outage.broker.kill()
    outage.start_bridge()
    let_pass(lambda: any(request["command"] == "describe" for request in worker.requests), "the bridge at work")
    count = day_ns // step_ns
    for done in range(0, count, 600):
        worker.ago_ns = day_ns - (done + 600) * step_ns
        worker.readings(1, 600, step_ns=step_ns)
    worker.ago_ns = 0
    outage.broker.restart()
    live = Listener(outage.broker.port, "rpm")
    outage.start_leader()
    with feeding(worker, 1):
        let_pass(lambda: outage.covered(worker.run_id, 1) >= count, "the back-fill", seconds)
    lossless(case, outage, seconds)
    live.close()
    assert len(live.late_s) > 20
    assert statistics.median(live.late_s) < 0.2 and max(live.late_s) < 2.0, "live readings waited for the back-fill"


def test_network_cut_24_h(outage: Bench) -> None:
    _day(outage, "network_cut_24_h", 10**9, 60)


@pytest.mark.soak
def test_network_cut_24_h_at_full_rate(outage: Bench) -> None:
    _day(outage, "network_cut_24_h_at_full_rate", 10**8, 600)
