"""Clocks of units: what the leader makes of arrivals, and what the store makes of a wall clock that is wrong."""

from __future__ import annotations

import json
import random
import sqlite3
from types import SimpleNamespace

import pytest
import units
from stirbar.bridge import clocks, topics
from stirbar.bridge.blocks import CLOCK_CORRECTED
from stirbar.bridge.clocks import SETTLE_S, SILENCE_S, WINDOW_S, BootClock
from stirbar.bridge.leadership import Leadership
from stirbar.bridge.live import LiveUnit
from stirbar.bridge.store import open_store
from stirbar.core.records import KIND_JSON, KIND_READINGS, READING, Header
from units import BOOT_ID, identity

S = 10**9
UNIT, RUN = identity(1), identity(100)
NOW_NS = 1_760_000_000 * S  # the leader's wall clock when the unit's monotonic clock stands at zero
HOUR_NS = 3600 * S


def heard(clock: BootClock, seconds: range, late_ns, error_ns: int = 0) -> None:
    """Batches once a tenth of a second; the leader's monotonic clock is 5 s ahead of the unit's."""
    for tenth in range(seconds.start * 10, seconds.stop * 10):
        made_ns = tenth * S // 10
        clock.note(made_ns, NOW_NS + made_ns + error_ns, made_ns + 5 * S + late_ns())


def judged(clock: BootClock) -> tuple[float, float] | None:
    """(zero, error) in seconds, the zero against what is true."""
    found = clock.judge(NOW_NS - 5 * S)
    return None if found is None else ((found[0] - NOW_NS) / S, found[1] / S)


def test_the_quickest_delivery_is_believed() -> None:
    chance = random.Random(1)
    clock = BootClock(BOOT_ID)
    assert judged(clock) is None
    heard(clock, range(1), lambda: 0)
    assert judged(clock) is None, f"not before {SETTLE_S} s"
    heard(clock, range(1, 60), lambda: round(S * (0.004 + chance.expovariate(5.0))), -HOUR_NS)
    zero_s, error_s = judged(clock)
    assert 0.0 <= zero_s <= 0.02 and error_s == pytest.approx(-3600, abs=0.02)


def test_what_waited_through_a_cut_is_not_taken_for_a_clock() -> None:
    clock = BootClock(BOOT_ID)
    heard(clock, range(20), lambda: 5_000_000)
    cut_s = round(2 * WINDOW_S + SILENCE_S)
    for tenth in range(200, (20 + cut_s) * 10):  # all of it arrives at the end, the oldest first
        made_ns = tenth * S // 10
        clock.note(made_ns, NOW_NS + made_ns, (20 + cut_s + 5) * S)
        assert judged(clock) is None or abs(judged(clock)[0]) < 0.01
    heard(clock, range(20 + cut_s, 30 + cut_s), lambda: 5_000_000)
    assert judged(clock) == pytest.approx((0.005, -0.005), abs=1e-6)


def test_a_slow_crystal_is_followed() -> None:
    clock = BootClock(BOOT_ID)
    for second in range(3 * round(WINDOW_S)):
        clock.note(second * S - second * 100_000, NOW_NS, second * S + 5 * S)  # 100 ppm slow
    zero_s, _ = judged(clock)
    assert zero_s == pytest.approx(0.0001 * 2 * WINDOW_S, abs=0.0001 * WINDOW_S)


# The store


def block(first: int, count: int, error_ns: int, run: bytes = RUN) -> tuple[Header, bytes]:
    """Readings ten a second from 100 s after the boot, by a wall clock that is so wrong."""
    body = b""
    for sequence in range(first, first + count):
        mono = 100 * S + sequence * S // 10
        rest = READING.unpack(units.reading(sequence))[3:]
        body += READING.pack(sequence, mono, NOW_NS + mono + error_ns, *rest)
    mono = 100 * S + (first + count) * S // 10
    return (
        Header(KIND_READINGS, 2, READING.size, count, first, UNIT, run, BOOT_ID, mono, mono, NOW_NS + mono + error_ns,
               "growth"),
        body,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    one = open_store(tmp_path / "leader.sqlite")
    yield one
    one.close()


def stored(store) -> list[tuple[int, int, int, bool]]:
    """(sequence, true monotonic?, wall error in ns, corrected) in the store's order."""
    with sqlite3.connect(f"file:{store.path}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT sequence, monotonic_ns, wall_ns, flags FROM readings ORDER BY sequence")
        return [(s, m - 100 * S - s * S // 10, w - NOW_NS - m, bool(f & CLOCK_CORRECTED)) for s, m, w, f in rows]


def rollups(store, level: int) -> list[tuple]:
    with sqlite3.connect(f"file:{store.path}?mode=ro", uri=True) as connection:
        return connection.execute(
            f"SELECT bucket, count, low, high, round(sum, 9), first_sequence, last_sequence FROM rollup_{level}s"
        ).fetchall()


def test_1970_until_the_time_is_known(store, tmp_path) -> None:
    """Readings from before the unit knew the time, stored before the leader knew that of the unit."""
    store.add(*block(0, 500, -NOW_NS))
    event = {"wall_ns": 120 * S, "monotonic_ns": 120 * S, "level": "info", "code": "kick", "message": "early"}
    head = Header(KIND_JSON, 16, 0, 1, 0, UNIT, RUN, BOOT_ID, 120 * S, 120 * S, 120 * S, "growth")
    store.add(head, json.dumps(event).encode())
    store.commit()
    assert {error for _, _, error, _ in stored(store)} == {-NOW_NS}
    store.set_clock(UNIT, BOOT_ID, NOW_NS + 3_000_000, -NOW_NS)
    store.add(*block(500, 100, -NOW_NS))
    store.commit()
    store.add(*block(600, 400, 20_000_000))
    store.commit()
    found = stored(store)
    assert [row[0] for row in found] == list(range(1000))
    assert {row[1] for row in found} == {0}
    assert {row[2:] for row in found[:600]} == {(3_000_000, True)}
    assert {row[2:] for row in found[600:]} == {(20_000_000, False)}
    assert store.events()[0]["t"] == pytest.approx((NOW_NS + 120 * S) / S, abs=0.01)
    other = open_store(tmp_path / "right.sqlite")
    other.add(*block(0, 600, 3_000_000))
    other.add(*block(600, 400, 20_000_000))
    other.commit()
    for level in (10, 60, 900):
        assert rollups(store, level) == rollups(other, level)
    other.close()


@pytest.mark.parametrize("hours", [1, -1])
def test_a_jump_within_a_run_moves_no_reading(store, hours: int) -> None:
    store.set_clock(UNIT, BOOT_ID, NOW_NS, 0)
    store.commit()
    store.add(*block(0, 100, 1_000_000))
    store.add(*block(100, 100, hours * HOUR_NS))
    store.add(*block(200, 100, -1_000_000))
    store.commit()
    found = stored(store)
    assert [row[2:] for row in found[::100]] == [(1_000_000, False), (0, True), (-1_000_000, False)]
    assert all(abs(row[2]) <= 1_000_000 and row[1] == 0 for row in found)


def test_the_clock_of_a_boot_outlives_the_leader_and_is_of_that_boot_alone(store, tmp_path) -> None:
    store.set_clock(UNIT, BOOT_ID, NOW_NS, 0)
    store.add(*block(0, 10, 0))
    store.close()
    again = open_store(tmp_path / "leader.sqlite")
    again.add(*block(10, 10, -HOUR_NS))
    head, body = block(0, 10, -HOUR_NS, identity(101))
    head.boot_id = b"another boot id!"
    again.add(head, body)
    again.commit()
    errors = sorted(row[2] for row in stored(again))
    assert errors == [-HOUR_NS] * 10 + [0] * 20
    again.close()


@pytest.mark.parametrize("known", [False, True])
def test_a_units_nonsense_stops_no_commit(store, known: bool) -> None:
    """An event says what it likes of its time; the others are put right all the same."""
    if known:
        store.set_clock(UNIT, BOOT_ID, NOW_NS, 0)
    fields = ({"monotonic_ns": 10**30}, {"monotonic_ns": -5}, {"monotonic_ns": "noon"}, {"value": float("nan")},
              {"monotonic_ns": 120 * S})  # fmt: skip
    for sequence, more in enumerate(fields):
        event = {"wall_ns": 120 * S, "level": "info", "code": "kick", "message": str(sequence), **more}
        head = Header(KIND_JSON, 16, 0, 1, sequence, UNIT, RUN, BOOT_ID, 120 * S, 120 * S, 120 * S, "growth")
        store.add(head, json.dumps(event).encode())
    store.add(*block(0, 10, -HOUR_NS))
    store.commit()
    if not known:
        store.set_clock(UNIT, BOOT_ID, NOW_NS, 0)
        store.commit()
    times = {event["message"]: event["t"] for event in store.events()}
    assert times["4"] == (NOW_NS + 120 * S) / S and times["0"] == times["1"] == times["2"] == 120
    assert {row[2:] for row in stored(store)} == {(0, True)}
    with pytest.raises(ValueError, match="out of range"):
        head = Header(KIND_READINGS, 2, READING.size, 1, 0, UNIT, RUN, BOOT_ID, 0, -(2**63), 0, "")
        clocks.Clocks(store, lambda *_: None).note(LiveUnit(UNIT, "stirbar"), head)


# Clocks, between ingest and store


def test_a_wrong_clock_is_named_once_and_so_is_its_end(store, monkeypatch) -> None:
    told: list[tuple[str, str, str]] = []
    at = {"ns": 5 * S}
    fake = SimpleNamespace(monotonic_ns=lambda: at["ns"], time_ns=lambda: NOW_NS - 5 * S + at["ns"] + at.get("jump", 0))
    monkeypatch.setattr(clocks, "time", fake)
    one = clocks.Clocks(store, lambda unit, level, code, text: told.append((level, code, text)))
    unit = LiveUnit(UNIT, "stirbar")

    def listen(error_ns: int, seconds: int = 5) -> None:
        for _ in range(seconds * 10):
            at["ns"] += S // 10
            mono = at["ns"] - 5 * S
            times = (mono, mono, NOW_NS + mono + error_ns)
            head = Header(KIND_READINGS, 2, READING.size, 1, 0, UNIT, RUN, BOOT_ID, *times, "")
            one.note(unit, head)
            one.judge()

    listen(1_900_000_000)
    assert told == [] and unit.snapshot(None)["clock_offset_s"] == pytest.approx(1.9)
    listen(-HOUR_NS)
    assert [code for _, code, _ in told] == ["clock_offset"]
    assert told[0][0] == "warning" and "3600.0 s behind" in told[0][2]
    assert unit.snapshot(None)["clock_offset_s"] == pytest.approx(-3600)
    record = READING.unpack(block(0, 1, -HOUR_NS)[1])
    (right,) = one.corrected(unit, [record])
    assert right[2] == NOW_NS + record[1] and right[14] == record[14] | CLOCK_CORRECTED
    assert right[:2] + right[3:14] + right[15:-1] == record[:2] + record[3:14] + record[15:-1]
    good = READING.unpack(block(0, 1, 0)[1])
    assert one.corrected(unit, [good])[0] is good
    listen(0)
    assert [code for _, code, _ in told] == ["clock_offset", "clock_offset_over"]
    at["jump"] = HOUR_NS
    one.judge()
    assert [code for _, code, _ in told][2:] == ["leader_clock_jump"] and "+3600.0 s" in told[2][2]


# Two leaders


def test_leaders_hear_of_each_other() -> None:
    old, new = Leadership(1), Leadership(2)
    assert old.hear(old.said()) == (False, "")
    again, text = old.hear(new.said())
    assert again and "the units follow that of epoch 2" in text
    again, text = new.hear(old.said())
    assert again and "the units follow this one" in text
    assert old.hear(new.said()) == new.hear(old.said()) == (False, "")
    assert old.hear(topics.STATE_LOST) == (True, "")
    assert "the units follow both" in Leadership(2).hear(new.said())[1]
    with pytest.raises(ValueError):
        old.hear(b"[]")
