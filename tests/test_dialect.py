"""The dialect, byte by byte: what dashboards read, what is accepted from them, what is not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from bridge_doubles import UNIT_ID, reading
from dialect_goldens import cases, feed
from hypothesis import given
from hypothesis import strategies as st
from stirbar.bridge import topics
from stirbar.bridge.dialect import Dialect
from stirbar.bridge.dialect_payloads import (
    parse_assignment,
    parse_command,
    parse_number,
    scalar,
    timestamp,
)
from stirbar.core.records import KIND_READINGS, READING, Header


class Said(list[tuple[str, bytes, int, bool]]):
    def __call__(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        self.append((topic, payload, qos, retain))

    def last(self, suffix: str) -> bytes:
        return next(payload for topic, payload, _, _ in reversed(self) if topic.endswith(suffix))


def header(stream: int) -> Header:
    return Header(KIND_READINGS, stream, READING.size, 1, 0, UNIT_ID, b"r" * 16, b"b" * 16, 0, 0, 0, "exp")


def make() -> tuple[Dialect, Said]:
    said = Said()
    dialect = Dialect("pioreactor", "vial1", 0.2, said)
    dialect.follow_experiment("exp")
    return dialect, said


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["case"])
def test_golden_examples(case: dict[str, Any]) -> None:
    assert feed(case["feed"]) == [tuple(message) for message in case["says"]]


def test_what_is_not_new_is_not_said_again() -> None:
    dialect, said = make()
    dialect.setting({"job": "stirring", "setting": "measured_rpm", "value": 1.0})  # made from readings instead
    dialect.reading(header(9), reading(9, 0, 41.5))  # the heater board: not what the dialect means by temperature
    dialect.tick()
    assert said == []
    dialect.reading(header(2), reading(2, 0, 7.0) + reading(2, 1, 0.123))
    dialect.tick()
    assert json.loads(said.last("od_reading/od2"))["od"] == 0.123, "the latest of a batch"
    said.clear()
    dialect.tick()
    assert said == []


def test_log_and_statistics() -> None:
    dialect, said = make()
    dialect.event({"level": "warning", "source": "stirring", "message": "stalled", "wall_ns": 1_000_000_000})
    assert said == [
        (
            "pioreactor/vial1/exp/logs/app/warning",
            b'{"message":"stalled","level":"WARNING","task":"stirring","source":"app",'
            b'"timestamp":"1970-01-01T00:00:01.000Z"}',
            0,
            False,
        )
    ]
    dialect.machine("/", "10.0.0.7")
    fields = {"disk_usage_percent", "cpu_temperature_celcius", "timestamp"}
    assert set(json.loads(said.last("monitor/computer_statistics"))) == fields
    assert said.last("monitor/ipv4") == b"10.0.0.7"
    dialect.setting({"job": "monitor", "setting": "versions", "value": {"app": "1.2"}})
    versions = json.loads(said.last("monitor/versions"))
    assert list(versions) == ["app", "hat", "firmware", "hat_serial", "rpi_machine", "timestamp"]
    assert versions["app"] == "1.2" and versions["rpi_machine"]


def test_the_worker_knows_more_of_the_computer() -> None:
    dialect, said = make()
    dialect.setting({"job": "monitor", "setting": "computer_statistics", "value": {"cpu_usage_percent": 3}})
    dialect.machine("/", "")
    assert list(json.loads(said.last("monitor/computer_statistics"))) == ["cpu_usage_percent", "timestamp"]


def test_a_unit_is_asked_to_show_itself() -> None:
    dialect, _ = make()
    for name in ("vial1", topics.BROADCAST):
        for experiment in ("exp", "another", topics.UNIVERSAL_EXPERIMENT):
            topic = f"pioreactor/{name}/{experiment}/monitor/flicker_led_response_okay"
            assert dialect.command(topic, b"1") == {"command": "identify"}
    with pytest.raises(ValueError):
        dialect.command("pioreactor/vial2/exp/monitor/flicker_led_response_okay", b"1")


def test_a_value_that_is_no_number_is_not_said() -> None:
    dialect, said = make()
    dialect.reading(header(1), reading(1, 0, math.nan))
    dialect.tick()
    assert said == []


def test_the_reference_photodiode_is_not_said() -> None:
    dialect, said = make()
    fields = list(READING.unpack(reading(1, 0, 1.0)))
    fields[17] = 0  # angle
    dialect.reading(header(1), READING.pack(*fields))
    dialect.tick()
    assert said == []


def test_experiment_change_clears_readings_and_moves_settings() -> None:
    dialect, said = make()
    dialect.setting({"job": "stirring", "setting": "$state", "value": "ready"})
    dialect.setting({"job": "stirring", "setting": "target_rpm", "value": 500.0})
    dialect.setting({"job": "monitor", "setting": "$state", "value": "ready"})
    dialect.reading(header(1), reading(1, 0, 1.0))
    dialect.tick()
    said.clear()
    dialect.follow_experiment("next")
    assert said == [
        ("pioreactor/vial1/exp/stirring/$state", b"disconnected", 1, True),
        ("pioreactor/vial1/exp/stirring/target_rpm", b"", 0, True),
        ("pioreactor/vial1/exp/od_reading/od1", b"", 0, True),
        ("pioreactor/vial1/exp/od_reading/ods", b"", 0, True),
        ("pioreactor/vial1/exp/od_reading/first_od_obs_time", b"", 0, True),
        ("pioreactor/vial1/exp/od_reading/relative_intensity_of_ir_led", b"", 0, True),
        ("pioreactor/vial1/next/stirring/$state", b"ready", 1, True),
        ("pioreactor/vial1/next/stirring/target_rpm", b"500.0", 0, True),
    ]
    said.clear()
    dialect.say_again()
    assert [topic for topic, _, _, _ in said] == [
        "pioreactor/vial1/next/stirring/$state",
        "pioreactor/vial1/next/stirring/target_rpm",
        "pioreactor/vial1/$experiment/monitor/$state",
    ]


def test_states_of_a_lost_worker() -> None:
    dialect, said = make()
    dialect.setting({"job": "stirring", "setting": "$state", "value": "ready"})
    dialect.setting({"job": "stirring", "setting": "target_rpm", "value": 1.0})
    said.clear()
    dialect.states("lost")
    dialect.states("lost")
    assert said == [("pioreactor/vial1/exp/stirring/$state", b"lost", 1, True)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, b""),
        (500.0, b"500.0"),
        (3, b"3"),
        (True, b"True"),
        (False, b"False"),
        ("ready", b"ready"),
        ({"a": 1}, b'{"a":1}'),
    ],
)
def test_scalars(value: object, text: bytes) -> None:
    assert scalar(value) == text


def test_timestamps() -> None:
    assert timestamp(1_700_000_000_999_999_999) == "2023-11-14T22:13:20.999Z"


@pytest.mark.parametrize("payload", [b"500", b"500.5", b"-1e2", b'"500"', b" 7 "])
def test_numbers(payload: bytes) -> None:
    assert parse_number(payload) == float(payload.decode().strip('" '))


@pytest.mark.parametrize(
    "payload",
    [b"", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1_000", b"0x10", b"true", b"null", b"[1]", b"{}", b"five",
     b"5 rpm", b"\xff", b'"', b'""', b"1" * 65, b"[" * 60, b'"NaN"'],
)  # fmt: skip
def test_what_is_no_number(payload: bytes) -> None:
    with pytest.raises(ValueError):
        parse_number(payload)


@given(st.binary(max_size=80))
def test_numbers_are_finite_or_refused(payload: bytes) -> None:
    try:
        assert math.isfinite(parse_number(payload))
    except ValueError:
        pass


def test_commands() -> None:
    assert parse_command("stirring", "$state", b"ready") == {"command": "start", "job": "stirring"}
    assert parse_command("od_reading", "$state", b"sleeping") == {"command": "stop", "job": "od_reading"}
    assert parse_command("od_reading", "$state", b"disconnected") == {"command": "stop", "job": "od_reading"}
    assert parse_command("stirring", "duty_cycle", b"30") == {
        "command": "set",
        "job": "stirring",
        "setting": "duty_cycle",
        "value": 30.0,
    }
    for job, setting, payload in (
        ("stirring", "$state", b"lost"),
        ("stirring", "$state", b""),
        ("monitor", "$state", b"disconnected"),
        ("run", "$state", b"ready"),
        ("stirring", "measured_rpm", b"5"),
        ("dosing", "volume", b"1"),
        ("stirring", "target_rpm", b"ready"),
    ):
        with pytest.raises(ValueError):
            parse_command(job, setting, payload)


@given(st.text(max_size=60), st.binary(max_size=40))
def test_any_command_topic_is_parsed_or_refused(tail: str, payload: bytes) -> None:
    dialect, _ = make()
    try:
        command = dialect.command(f"pioreactor/{tail}", payload)
    except ValueError:
        return
    assert command is None or command["command"] in ("set", "start", "stop")


@pytest.mark.parametrize("payload", [b"a/b", b"a+", b"#", b" x", b"x\n", b"\xff\xfe", b"x" * 129, b"a\0b"])
def test_names_that_are_no_experiment(payload: bytes) -> None:
    with pytest.raises(ValueError):
        parse_assignment(payload)


def test_assignments() -> None:
    assert parse_assignment("Hefe ü 3".encode()) == "Hefe ü 3"
    assert parse_assignment(b"") == topics.NO_EXPERIMENT
    assert parse_assignment(topics.NO_EXPERIMENT.encode()) == topics.NO_EXPERIMENT


def test_topics_both_ways() -> None:
    own = topics.UnitTopics("lab/stirbar", UNIT_ID.hex())
    for stream, topic in {**own.store, **own.live}.items():
        parsed = topics.parse_unit_topic("lab/stirbar", topic)
        assert parsed is not None
        assert (parsed.unit_id, parsed.stream) == (UNIT_ID.hex(), stream)
    for leaf in ("describe", "state", "ask", "ack", "command", "reply"):
        parsed = topics.parse_unit_topic("lab/stirbar", getattr(own, leaf))
        assert parsed is not None
        assert parsed.leaf == leaf
    for topic in (
        "",
        "stirbar",
        f"stirbar/{UNIT_ID.hex()}/ask",
        "lab/stirbar/xyz/ask",
        own.base,
        own.base + "/live/od9",
    ):
        assert topics.parse_unit_topic("lab/stirbar", topic) is None
    made = topics.dialect("a/b", "u/1", "e#+", "stirring", "target_rpm") + "/set"
    back = topics.parse_set("a/b", made)
    assert back is not None
    assert (back.unit, back.experiment, back.job, back.setting) == ("u_1", "e__", "stirring", "target_rpm")
    assert topics.parse_set("a/b", "a/b/u/e/stirring/set") is None


def test_no_self_test_is_started_from_afar() -> None:
    with pytest.raises(ValueError, match="started or stopped"):
        parse_command("self_test", "$state", b"ready")


@pytest.mark.parametrize(
    ("word", "value"), [(b"True", True), (b"1", True), (b"on", True), (b"false", False), (b"0", False)]
)
def test_switches(word: bytes, value: bool) -> None:
    command = parse_command("stirring", "enable_dodging_od", word)
    assert command == {"command": "set", "job": "stirring", "setting": "enable_dodging_od", "value": value}
    with pytest.raises(ValueError, match="neither"):
        parse_command("stirring", "enable_dodging_od", word + b"x")
