"""What the stores know of nodes: labels, tags, who was where and when, vitals once, a role handed over."""

from __future__ import annotations

import itertools
import json

import pytest
from postgres import fresh, server
from stirbar.bridge import sqlite_check, sqlite_nodes
from stirbar.bridge.store import StoreError, open_store
from stirbar.core.records import KIND_JSON, STREAM_IDS
from stirbar.core.vitals import STORED
from units import BOOT_ID, START_NS, block, event, gap, header, identity

VITALS = STREAM_IDS["vitals"]
UNIT, SPARE, RUN = identity(1), identity(2), identity(100)
NUMBERS = itertools.count()
MINUTE_NS = 60 * 10**9


@pytest.fixture(scope="module")
def postgres():
    with server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    place = tmp_path / "leader.sqlite"
    if request.param == "postgres":
        place = fresh(request.getfixturevalue("postgres"), f"n{next(NUMBERS)}")
    one = open_store(place)
    for number, name in ((1, "vial1"), (2, "vial2"), (3, "vial3")):
        one.upsert_unit(identity(number), name, {})
    one.create_experiment("growth")
    one.create_experiment("other")
    yield one
    one.close()


def vitals(sequence, *, wrong_ns=0, **figures):
    """What a unit tells once a minute; `wrong_ns`: by how much its wall clock is ahead."""
    at_ns = START_NS + sequence * MINUTE_NS
    head = header(KIND_JSON, VITALS, 0, sequence, 1, UNIT, RUN, "growth")
    head.monotonic_ns, head.realtime_ns = at_ns - START_NS, at_ns + wrong_ns
    body = {"monotonic_ns": head.monotonic_ns, "wall_ns": head.realtime_ns, **figures}
    return head, json.dumps(body).encode()


def line(store, name, start=0.0, end=3600.0, points=60):
    found = store.vitals(UNIT, START_NS / 1e9 + start, START_NS / 1e9 + end, points)
    return next((one for one in found if one["name"] == name), None)


def test_every_figure_has_its_place(store):
    store.add(*vitals(0, **{name: float(place) for place, name in enumerate(STORED)}))
    store.commit()
    found = {one["name"]: one["mean"] for one in store.vitals(UNIT, START_NS / 1e9, START_NS / 1e9 + 9, 5)}
    # what a unit says of its own clock's offset is not believed: that is the leader's to judge
    assert found == {name: [place] for place, name in enumerate(STORED) if name != sqlite_nodes.CLOCK_OFFSET}


def test_vitals_come_once_in_any_order_and_are_binned(store):
    for sequence in (2, 0, 1, 1, 0, 3):
        store.add(*vitals(sequence, cpu_usage_percent=10.0 * sequence, under_voltage=sequence == 3))
    assert store.commit() == {(UNIT, RUN, VITALS): 4}
    whole = line(store, "cpu_usage_percent")
    assert (whole["unit_of_value"], whole["mean"]) == ("%", [0.0, 10.0, 20.0, 30.0])
    binned = line(store, "cpu_usage_percent", 0.0, 240.0, 2)
    assert [binned[key] for key in ("low", "mean", "high")] == [[0.0, 20.0], [5.0, 25.0], [10.0, 30.0]]
    assert [t - START_NS / 1e9 for t in binned["t"]] == [60.0, 180.0]
    assert line(store, "under_voltage")["high"] == [0.0, 0.0, 0.0, 1.0]
    assert line(store, "wifi_signal_dbm") is None


def test_what_is_no_figure_is_not_stored(store):
    for sequence, value in enumerate(("hot", None, [1], 1e300, {"a": 1}, -(2**70), float("nan"))):
        store.add(*vitals(sequence, cpu_usage_percent=value, disk_usage_percent=7))
    store.commit()
    assert line(store, "cpu_usage_percent") is None and line(store, "disk_usage_percent")["mean"] == [7.0] * 7


def test_a_wrong_clock_is_told_and_the_times_put_right(store):
    """Before the leader knows, and after."""
    wrong_ns = 3600 * 10**9
    store.add(*vitals(0, wrong_ns=wrong_ns, cpu_usage_percent=1))
    run = block(0, 1)
    store.add(run[0], run[1])
    store.commit()
    store.set_clock(UNIT, BOOT_ID, START_NS, wrong_ns)
    store.add(*vitals(1, wrong_ns=wrong_ns, cpu_usage_percent=2))
    store.commit()
    assert line(store, "cpu_usage_percent")["t"][-1] == pytest.approx(START_NS / 1e9 + 60, abs=60)
    assert line(store, "clock_offset_s")["mean"][-1] == 3600.0


def test_old_vitals_go_and_are_counted(store, monkeypatch):
    for sequence in range(10):
        store.add(*vitals(sequence, cpu_usage_percent=sequence))
    store.commit()
    assert store.drop_vitals(START_NS / 1e9 + 300) == 0, "the leader has known the run since today only"
    end = 4e9
    monkeypatch.setattr("stirbar.bridge.sqlite_thin.BATCH_READINGS", 6)
    assert [store.drop_vitals(end) for _ in range(3)] == [6, 4, 0]
    assert store.counters()["removed_vitals"] == 10 and not store.vitals(UNIT, 0.0, 3.9e9, 10)
    if hasattr(store, "path") and store.path.name:
        store.commit()
        sqlite_check.check(store.path)


def test_a_store_that_lost_vitals_is_found_out(tmp_path):
    store = open_store(tmp_path / "leader.sqlite")
    store.add(*vitals(0, cpu_usage_percent=1))
    store.commit()
    sqlite_check.check(store.path)
    store._writer.execute("DELETE FROM vitals")
    with pytest.raises(StoreError, match="stream vitals: 1 are accounted for, 0 are here"):
        sqlite_check.check(store.path)
    store.close()


def test_labels_are_of_a_unit_in_an_experiment(store):
    store.assign(UNIT, "growth")
    assert store.set_label(UNIT, "growth", "  left fermenter ") == "left fermenter"
    store.set_label(UNIT, "other", "third")
    assert [one["label"] for one in store.units()] == ["left fermenter", None, None]
    assert store.labels("growth") == {UNIT: "left fermenter"}
    with pytest.raises(StoreError, match="the unit 'vial1' has the label 'left fermenter' in 'growth'"):
        store.set_label(SPARE, "growth", "left fermenter")
    store.set_label(SPARE, "other", "left fermenter")
    store.assign(UNIT, "other")
    assert [one["label"] for one in store.units()] == ["third", None, None]
    store.set_label(UNIT, "other", "")
    assert store.units()[0]["label"] is None
    for wrong, why in ((UNIT, "no experiment 'none'"), (identity(9), "no unit 0000")):
        with pytest.raises(StoreError, match=why):
            store.set_label(wrong, "none", "x")
    for label in ("x" * 61, "two\nlines", "half \ud800"):
        with pytest.raises(StoreError, match="at most 60 printable characters"):
            store.set_label(UNIT, "other", label)


def test_tags_are_a_set_of_words(store):
    assert store.set_tags(UNIT, ["gpu", "rack-3", "gpu"]) == ["gpu", "rack-3"]
    store.set_tags(SPARE, ["gpu"])
    assert [one["tags"] for one in store.units()] == [["gpu", "rack-3"], ["gpu"], []]
    assert store.set_tags(UNIT, []) == [] and store.units()[0]["tags"] == []
    for tags, why in (
        (["two words"], "letters, digits"),
        ([""], "letters, digits"),
        ([f"t{n}" for n in range(17)], "17 tags"),
    ):
        with pytest.raises(StoreError, match=why):
            store.set_tags(UNIT, tags)


def test_who_was_where_and_when(store):
    store.assign(UNIT, "growth")
    store.assign(UNIT, "growth")
    store.assign(UNIT, "other")
    store.assign(SPARE, "growth")
    store.assign(UNIT, None)
    history = store.assignment_history()
    assert [(one["unit"], one["experiment"], one["until"] is None) for one in history] == [
        ("vial2", "growth", True), ("vial1", "other", False), ("vial1", "growth", False),
    ]  # fmt: skip
    assert history[2]["until"] == history[1]["from"]
    assert [one["unit"] for one in store.assignment_history(experiment="growth")] == ["vial2", "vial1"]
    assert [one["experiment"] for one in store.assignment_history(UNIT)] == ["other", "growth"]
    assert len(store.assignment_history(limit=1)) == 1


def test_a_spare_takes_the_role_in_one_step(store):
    store.assign(UNIT, "growth")
    store.set_label(UNIT, "growth", "left")
    store.set_label(SPARE, "growth", "was here before")
    store.set_tags(UNIT, ["gpu", "rack-3"])
    store.set_tags(SPARE, ["gpu", "spare"])
    assert store.replace("growth", UNIT, SPARE) == {"label": "left", "tags": ["gpu", "rack-3"]}
    failed, spare, _ = store.units()
    assert (failed["experiment"], failed["label"], failed["tags"]) == (None, None, [])
    assert (spare["experiment"], spare["label"], spare["tags"]) == ("growth", "left", ["gpu", "rack-3", "spare"])
    assert store.standing_down() == [UNIT]
    newest, older = store.assignment_history(experiment="growth")
    assert (newest["unit"], older["unit"], older["until"]) == ("vial2", "vial1", newest["from"])
    store.stood_down(UNIT)
    assert store.standing_down() == []
    # who was replaced and gets work again need not stand down
    store.assign(SPARE, None)
    store.assign(UNIT, "growth")
    store.replace("growth", UNIT, SPARE)
    store.assign(UNIT, "other")
    assert store.standing_down() == []


def test_a_role_is_not_taken_by_who_has_one(store):
    store.assign(UNIT, "growth")
    store.assign(SPARE, "other")
    for failed, spare, why in (
        (UNIT, SPARE, "the spare is in an experiment already"),
        (UNIT, UNIT, "the spare is in an experiment already"),
        (SPARE, identity(3), "the failed unit is not in the experiment 'growth'"),
        (UNIT, identity(9), "no unit 0000"),
    ):
        with pytest.raises(StoreError, match=why):
            store.replace("growth", failed, spare)
    assert store.assignments() == {UNIT: "growth", SPARE: "other"} and store.standing_down() == []


def test_what_belongs_to_an_experiment(store):
    store.add(*event(0, message="of the unit"))
    store.add(*gap(0, 5))
    store.add(*block(5, 5))
    store.add(*block(0, 5, unit=SPARE, run=identity(200), experiment="other"))
    store.add(*gap(5, 1, unit=SPARE, run=identity(200)))
    store.add_event(UNIT, "info", "leader", "before", "not yet")
    store.commit()
    store.assign(UNIT, "growth")
    store.add_event(UNIT, "info", "leader", "while", "while it was in it")
    store.add_event(None, "info", "leader", "nobody", "of no unit")
    store.commit()
    assert [one["message"] for one in store.experiment_events("growth")] == ["of the unit", "while it was in it"]
    assert list(store.experiment_events("other")) == []
    (lost,) = store.experiment_gaps("growth")
    assert (lost["unit"], lost["stream"], lost["count"], lost["reason"]) == ("vial1", 2, 5, "spool full")


def test_many_events_come_in_pages(tmp_path, monkeypatch):
    store = open_store(tmp_path / "leader.sqlite")
    monkeypatch.setattr(sqlite_nodes, "EVENTS_PAGE", 3)
    for sequence in range(7):
        store.add(*event(sequence))
    store.commit()
    assert [one["message"] for one in store.experiment_events("growth")] == [f"event {n}" for n in range(7)]
    store.close()
