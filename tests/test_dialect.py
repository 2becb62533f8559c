"""The dialect, byte by byte: what dashboards read, what is accepted from them, what is not."""

from __future__ import annotations

import json
import math

import pytest
from bridge_doubles import UNIT_ID, reading
from hypothesis import given
from hypothesis import strategies as st
from stirbar.bridge import topics
from stirbar.bridge.dialect import (
    Dialect,
    parse_assignment,
    parse_command,
    parse_number,
    scalar,
    timestamp,
)
from stirbar.core.records import FLAGS, KIND_READINGS, READING, Header


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


def test_golden_payloads() -> None:
    dialect, said = make()
    dialect.setting({"job": "od_reading", "setting": "ir_led_intensity", "value": 80.0})
    dialect.setting({"job": "stirring", "setting": "$state", "value": "ready"})
    dialect.setting({"job": "monitor", "setting": "$state", "value": "ready"})
    dialect.setting({"job": "stirring", "setting": "target_rpm", "value": 500.0})
    dialect.setting({"job": "stirring", "setting": "measured_rpm", "value": 1.0})  # made from readings instead
    dialect.reading(header(2), reading(2, 0, 7.0) + reading(2, 1, 0.123))
    dialect.reading(header(8), reading(8, 0, 500.1))
    dialect.reading(header(9), reading(9, 0, 41.5))  # the heater board: not what the dialect means by temperature
    dialect.reading(header(10), reading(10, 0, 37.01))
    dialect.tick()
    od = (
        b'{"calibrated":0,"timestamp":"2025-06-15T15:06:40.223Z","angle":"90","od":0.123,"channel":"2",'
        b'"ir_led_intensity":80.0}'
    )
    assert said == [
        ("pioreactor/vial1/exp/od_reading/ir_led_intensity", b"80.0", 0, True),
        ("pioreactor/vial1/exp/stirring/$state", b"ready", 1, True),
        ("pioreactor/vial1/$experiment/monitor/$state", b"ready", 1, True),
        ("pioreactor/vial1/exp/stirring/target_rpm", b"500.0", 0, True),
        ("pioreactor/vial1/exp/od_reading/od2", od, 0, True),
        (
            "pioreactor/vial1/exp/stirring/measured_rpm",
            b'{"measured_rpm":500.1,"timestamp":"2025-06-15T15:06:40.123Z"}',
            0,
            True,
        ),
        (
            "pioreactor/vial1/exp/temperature_automation/temperature",
            b'{"temperature":37.01,"timestamp":"2025-06-15T15:06:40.123Z"}',
            0,
            True,
        ),
        ("pioreactor/vial1/exp/temperature_automation/heater_duty_cycle", b"0.3", 0, True),
        (
            "pioreactor/vial1/exp/od_reading/ods",
            b'{"timestamp":"2025-06-15T15:06:40.223Z","ods":{"2":' + od + b"}}",
            0,
            True,
        ),
    ]
    said.clear()
    dialect.tick()
    assert said == [], "nothing new, nothing said"


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
    dialect.statistics("/")
    assert set(json.loads(said.last("monitor/computer_statistics"))) == {
        "disk_usage_percent",
        "cpu_temperature_celcius",
        "timestamp",
    }


def test_what_a_pump_has_moved_is_a_dosing_event() -> None:
    dialect, said = make()
    data = {"event": "add_media", "volume_change": 0.5, "source_of_event": "chemostat"}
    told = {"level": "debug", "source": "bioreactor", "code": "dose_step", "message": "media pump: 0.500 mL"}
    dialect.event({**told, "wall_ns": 1_750_000_000_123_456_789, **data})
    payload = (
        b'{"volume_change":0.5,"event":"add_media","source_of_event":"chemostat",'
        b'"timestamp":"2025-06-15T15:06:40.123Z"}'
    )
    assert said[1] == ("pioreactor/vial1/exp/dosing_events", payload, 1, False)
    assert [topic for topic, *_ in said].count("pioreactor/vial1/exp/dosing_events") == 1
    dialect.setting({"job": "bioreactor", "setting": "current_volume_ml", "value": 14.5})
    assert said[-1] == ("pioreactor/vial1/exp/bioreactor/current_volume_ml", b"14.5", 0, True)


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
        (True, b"1"),
        (False, b"0"),
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


def calibrated(stream: int, value: float, raw: float) -> bytes:
    fields = list(READING.unpack(reading(stream, 0, value)))
    fields[8] = raw  # signal_v: the uncalibrated value
    fields[14] &= ~FLAGS["uncalibrated"]
    return READING.pack(*fields)


def test_golden_payloads_of_calibrated_readings() -> None:
    dialect, said = make()
    dialect.setting({"job": "od_reading", "setting": "ir_led_intensity", "value": 80.0})
    dialect.setting({"job": "od_reading", "setting": "calibration2", "value": {"name": "first", "x": "OD600"}})
    dialect.reading(header(2), calibrated(2, 1.5, 0.375))
    dialect.reading(header(5), calibrated(5, 1.25, 0.01))
    dialect.tick()
    when = b'"2025-06-15T15:06:40.123Z"'
    raw = b'{"calibrated":0,"timestamp":' + when + b',"angle":"90","od":0.375,"channel":"2","ir_led_intensity":80.0}'
    struct = (
        b'{"calibrated":1,"timestamp":' + when + b',"angle":"90","od":1.5,"channel":"2","ir_led_intensity":80.0,'
        b'"calibration_name":"first"}'
    )
    top = "pioreactor/vial1/exp/od_reading"
    assert said[1:] == [
        (f"{top}/raw_od2", raw, 0, True),
        (f"{top}/calibrated_od2", struct, 0, True),
        (f"{top}/od2", struct, 0, True),
        (f"{top}/od_fused", b'{"od_fused":1.25,"timestamp":' + when + b"}", 0, True),
        (f"{top}/ods", b'{"timestamp":' + when + b',"ods":{"2":' + struct + b"}}", 0, True),
    ]
    said.clear()
    dialect.setting({"job": "od_reading", "setting": "calibration2", "value": None})
    assert said == [(f"{top}/raw_od2", b"", 0, True), (f"{top}/calibrated_od2", b"", 0, True)]


def test_results_of_a_self_test_belong_to_no_experiment() -> None:
    dialect, said = make()
    dialect.setting({"job": "self_test", "setting": "test_light_leak", "value": 0})
    dialect.setting({"job": "self_test", "setting": "all_tests_passed", "value": 0})
    dialect.follow_experiment("next")
    assert said == [
        ("pioreactor/vial1/$experiment/self_test/test_light_leak", b"0", 0, True),
        ("pioreactor/vial1/$experiment/self_test/all_tests_passed", b"0", 0, True),
    ]
    dialect.setting({"job": "self_test", "setting": "test_light_leak", "value": None})
    assert said[-1] == ("pioreactor/vial1/$experiment/self_test/test_light_leak", b"", 0, True)
    with pytest.raises(ValueError, match="started or stopped"):
        parse_command("self_test", "$state", b"ready")
