"""Work over several units, piece by piece: what a spare is set to, who stands down, words of a command, the ZIP."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from typing import Any

import pytest
from stirbar.bridge import standdown as standdown_module
from stirbar.bridge.ingest import CommandNotSent, CommandTimeout
from stirbar.bridge.standdown import StandDown
from stirbar.bridge.store import open_store
from stirbar.web import together
from stirbar.web.experiment_command import parse_words
from stirbar.web.leader_options import chosen, table
from stirbar.web.results import CHUNK_BYTES, results
from units import block, event, gap, identity, wait_until

LOST = {"unit": "unit1", "unit_id": identity(1).hex(), "state": "lost"}


def settings(**values: Any) -> list[dict[str, Any]]:
    return [
        {"job": job, "setting": setting, "value": value}
        for name, value in values.items()
        for job, setting in [name.split("__")]
    ]


def said(steps: list[dict[str, Any]]) -> list[str]:
    return [" ".join(str(value) for value in step.values()) for step in steps]


# What a spare is set to


def test_a_spare_is_set_to_what_was_last_heard_and_starts_what_ran() -> None:
    failed = {
        **LOST,
        "settings": settings(
            stirring__target_rpm=500.0, stirring__measured_rpm=499.0, stirring__enable_dodging_od=1,
            stirring__ramp_rpm_per_s=None, od_reading__ir_led_intensity=70.0, leds__A=20.0, leds__B=0.0,
            temperature_automation__target_temperature=37.0, temperature_automation__automation_name="thermostat",
            bioreactor__current_volume_ml=14.0, bioreactor__dose={"pump": "media"},
        ),
        "jobs": {
            "od_reading": "ready", "stirring": "sleeping", "temperature_automation": "lost", "leds": "ready",
            "bioreactor": "ready", "monitor": "ready",
        },
    }  # fmt: skip
    assert said(together.steps_of(failed)) == [
        "set od_reading ir_led_intensity 70.0", "set stirring enable_dodging_od True", "set stirring target_rpm 500.0",
        "set temperature_automation target_temperature 37.0", "set leds A 20.0",
        "start od_reading", "start stirring", "start temperature_automation",
    ]  # fmt: skip


@pytest.mark.parametrize("automation", ["only_record_temperature", "open_loop", None])
def test_a_target_that_nothing_kept_is_not_heated_to(automation: str | None) -> None:
    known = settings(
        temperature_automation__target_temperature=37.0, temperature_automation__automation_name=automation
    )
    assert together.steps_of({**LOST, "settings": known, "jobs": {"temperature_automation": "disconnected"}}) == []


def test_of_a_unit_that_told_nothing_nothing_is_known() -> None:
    assert together.steps_of({**LOST, "settings": None, "jobs": None}) == []


class Site:
    """An ingest that answers, or not, as a test wants."""

    def __init__(self, answer: Any) -> None:
        self.ingest = self
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def command(self, unit_id: bytes, fields: dict[str, Any], limit_s: float = 5.0) -> dict[str, Any]:
        self.asked.append(fields)
        found = self.answer(unit_id, fields) if callable(self.answer) else self.answer
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.parametrize(
    ("state", "answer", "why"),
    [
        ("lost", {"ok": True}, "the unit is lost"),
        ("offline", {"ok": True}, "the unit is offline"),
        ("online", CommandTimeout("late"), "no answer within 0.5 s"),
        ("online", CommandNotSent("no connection"), "not sent: no connection"),
    ],
)
def test_who_cannot_be_asked_is_a_refusal_like_others(state: str, answer: Any, why: str) -> None:
    site = Site(answer)
    reply = together.reply_of(site, {**LOST, "state": state}, {"command": "status"}, 0.5)  # type: ignore[arg-type]
    assert not reply["ok"] and reply["error"]["message"] == why and reply["error"]["remedy"]
    assert bool(site.asked) == (state == "online")


def test_all_are_asked_and_each_answer_is_its_own() -> None:
    entries = [
        {"unit": f"unit{n}", "unit_id": identity(n).hex(), "state": "online" if n % 3 else "lost", "label": None}
        for n in range(1, 100)
    ]
    site = Site(lambda unit_id, _: {"id": 1, "ok": unit_id != identity(5), "result": {"n": unit_id[-1]}})
    replies = together.ask_all(site, entries, {"command": "start", "job": "stirring"}, 1.0)  # type: ignore[arg-type]
    assert [reply["unit"] for reply in replies] == [entry["unit"] for entry in entries]
    refused = {n for n, reply in enumerate(replies, 1) if not reply["ok"]}
    assert refused == {5, *range(3, 100, 3)} and len(site.asked) == 66
    assert all(reply["result"] == {"n": n} for n, reply in enumerate(replies, 1) if n not in refused)


# Who was replaced


class Leader:
    """The ingest of a leader with one unit, whose worker does what it is told, or refuses."""

    def __init__(self) -> None:
        self.state, self.silent, self.refuses = "lost", False, False
        self.jobs = {
            "stirring": "ready",
            "od_reading": "ready",
            "temperature_automation": "sleeping",
            "monitor": "ready",
        }
        self.experiment = "growth"  # as it was when it failed
        self.asked: list[tuple[str, ...]] = []

    def units(self) -> list[dict[str, Any]]:
        return [
            {"unit_id": identity(1).hex(), "state": self.state, "experiment": None},
            {"unit_id": identity(2).hex(), "state": "online", "experiment": "growth"},
        ]

    def assign(self, unit_id: bytes, experiment: str | None) -> None:
        assert (unit_id, experiment) == (identity(1), None)
        self.experiment = "$no_experiment_present"

    def command(self, unit_id: bytes, fields: dict[str, Any]) -> dict[str, Any]:
        assert unit_id == identity(1)
        if self.silent:
            raise CommandTimeout("late")
        self.asked.append(tuple(fields.values()))
        if fields["command"] == "stop" and not self.refuses:
            self.jobs[fields["job"]] = "disconnected"
        return {
            "ok": not (self.refuses and fields["command"] == "stop"),
            "result": {
                "jobs": dict(self.jobs),
                "experiment": self.experiment,
            },
        }


def test_a_replaced_unit_stops_when_it_is_heard_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(standdown_module, "LOOK_S", 0.02)
    store = open_store(tmp_path / "leader.sqlite")
    for number in (1, 2):
        store.upsert_unit(identity(number), f"unit{number}", {})
    store.create_experiment("growth")
    store.assign(identity(1), "growth")
    store.replace("growth", identity(1), identity(2))
    store.close()  # the leader is started again in the meantime
    store, leader = open_store(tmp_path / "leader.sqlite"), Leader()
    down = StandDown(store, leader)  # type: ignore[arg-type]
    down.start()
    try:
        leader.silent, leader.state = True, "online"
        wait_until(lambda: store.standing_down() == [identity(1)], "it is still to be told")
        leader.refuses, leader.silent = True, False
        wait_until(lambda: len(leader.asked) > 10, "it refuses, and is asked again")
        assert store.standing_down() == [identity(1)]
        leader.refuses = False
        wait_until(lambda: store.standing_down() == [], "it stands down")
    finally:
        down.stop()
    assert ("dose_stop",) in leader.asked and ("stop", "temperature_automation") in leader.asked
    assert set(leader.jobs.values()) == {"disconnected", "ready"} and leader.jobs["monitor"] == "ready"
    store.commit()
    assert [one["code"] for one in store.events(identity(1))] == ["unit_stood_down"]
    store.close()


# The words of a person


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("start stirring", {"command": "start", "job": "stirring"}),
        ("set stirring target_rpm 500", {"command": "set", "job": "stirring", "setting": "target_rpm", "value": 500.0}),
        ("set stirring enable_dodging_od true", {
            "command": "set", "job": "stirring", "setting": "enable_dodging_od", "value": True,
        }),
        ("blank seconds=20", {"command": "blank", "seconds": 20.0}),
        ("dose media ml=0.5", {"command": "dose", "pump": "media", "ml": 0.5}),
        ("identify", {"command": "identify"}),
    ],
)  # fmt: skip
def test_words_become_a_command(words: str, fields: dict[str, Any]) -> None:
    assert parse_words(words.split()) == fields


@pytest.mark.parametrize(
    ("words", "why"), [("", "no command"), ("jump high", "no command 'jump'"), ("start a b", "takes job")]
)
def test_words_that_are_no_command(words: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_words(words.split())


def test_units_are_chosen_by_name_tag_or_experiment() -> None:
    units = [
        {"unit": "a", "tags": ["gpu"], "experiment": "x"},
        {"unit": "b", "tags": [], "experiment": "x"},
        {"unit": "c", "tags": ["gpu", "spare"], "experiment": None},
    ]
    assert chosen(units, ["b", "b"], "") == ["b"]
    assert chosen(units, ["b"], "gpu") == ["b", "a", "c"]
    assert chosen(units, [], "", "x") == ["a", "b"]
    for names, tag, why in (([], "none", "no unit has the tag"), ([], "", "name units"), (["d"], "", "no unit 'd'")):
        with pytest.raises(ValueError, match=why):
            chosen(units, names, tag)
    assert table(("unit", "n"), [("a long name", "1")]).splitlines() == ["unit         n", "a long name  1"]


# The ZIP


def test_results_are_written_in_pieces_and_are_whole(tmp_path) -> None:
    store = open_store(tmp_path / "leader.sqlite")
    for first in range(0, 20_000, 1000):
        store.add(*block(first, 1000))
    store.add(*gap(20_000, 7))
    dose = {"code": "dose_step", "event": "add_media", "volume_change": 0.5, "source_of_event": "robot"}
    store.add(*event(0, message='a "quoted", line', object=None))
    store.add(*event(1, **dose))
    store.commit()
    pieces = list(results(store, "growth"))
    assert len(pieces) > 3 and max(map(len, pieces)) < 2 * CHUNK_BYTES
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))
    assert archive.testzip() is None
    tables = {name: list(csv.DictReader(io.StringIO(archive.read(name).decode()))) for name in archive.namelist()[1:]}
    assert json.loads(archive.read("experiment.json"))["name"] == "growth"
    assert [row["sequence"] for row in tables["readings.csv"]] == [str(n) for n in range(20_000)]
    assert [row["message"] for row in tables["events.csv"]] == ['a "quoted", line', "event 1"]
    assert [(row["event"], row["volume_change_ml"], row["source_of_event"]) for row in tables["doses.csv"]] == [
        ("add_media", "0.5", "robot")
    ]
    assert [(row["stream"], row["count"]) for row in tables["gaps.csv"]] == [("od2", "7")]
    store.close()
