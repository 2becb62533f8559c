"""Record and replay: the readings again, bit by bit; files that are cut; tables of other instruments."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
from stirbar.core import records
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.recorder import Recorder
from stirbar.core.recording import RecordingError, Segment, replay
from stirbar.core.records import Header
from stirbar.core.twin import Twin

UNKNOWN_TO_ESTIMATORS = ("sequence", "wall_ns", "experiment")


def record_twin(tmp_path, *, before_s, seconds, disturb=(), drop=()):
    """Run a twin for `before_s`, then record `seconds` of it; returns (file, live readings of that time).

    `disturb` are requests sent in the middle; `drop` are numbers of trace messages that the recorder never gets.
    """
    config = load_config(overrides=parse_overrides(["unit.simulate=1", "simulation.bubble_rate_hz=0.5"]))
    twin = Twin(config, str(tmp_path))
    commands = Commands(twin.host)
    list(twin.run(before_s))
    commands.handle({"command": "raw", "seconds": seconds}, lambda answer, frames: None)
    path = tmp_path / "recording"
    live = {}
    seen = 0
    recorder = Recorder(str(path), {"build_id": twin.loop.build_id()})
    for second in range(seconds + 2):
        if second == seconds // 2:
            for request in disturb:
                commands.handle(request, lambda answer, frames: None)
        for topic, packed, payload in twin.run(1):
            header = Header.unpack(packed)[0]
            seen += header.kind == records.KIND_TRACE
            if header.kind == records.KIND_SNAPSHOT or (header.kind == records.KIND_TRACE and seen not in drop):
                recorder.message(header, payload)
            elif topic.startswith(b"reading/"):
                for fields in records.READING.iter_unpack(payload):
                    reading = dict(zip(records.READING_FIELDS, fields, strict=True))
                    live[reading["stream"], reading["monotonic_ns"]] = reading
    recorder.close()
    return path, live, config


def same_bits(replayed, live):
    """Whether a replayed reading is the live one in every field that the estimators know."""
    return (
        all(
            struct.pack("<d", replayed[field]) == struct.pack("<d", live[field])
            for field in records.READING_FIELDS
            if field not in (*UNKNOWN_TO_ESTIMATORS, "flags")
        )
        and replayed["flags"] | records.FLAGS["simulated"] == live["flags"]
    )


@pytest.mark.parametrize("before_s", [0, 70])
def test_replay_is_bit_identical_also_when_it_begins_mid_run(tmp_path, before_s):
    disturb = [
        {"command": "blank", "value": 0.003},
        {"command": "set", "job": "stirring", "setting": "target_rpm", "value": 620},
        {"command": "set", "job": "od_reading", "setting": "ir_led_intensity", "value": 60},
        {"command": "simulate", "set": {"hum_amplitude_v": 0.005}},
    ]
    path, live, config = record_twin(tmp_path, before_s=before_s, seconds=16, disturb=disturb)
    replayed = list(replay(str(path), config))
    assert len([reading for reading in replayed if reading["stream"] == 2]) > 100
    assert len([reading for reading in replayed if reading["stream"] == 8]) >= 15
    for reading in replayed:
        assert same_bits(reading, live[reading["stream"], reading["monotonic_ns"]])


def test_after_a_hole_the_replay_goes_on_from_the_next_snapshot(tmp_path):
    path, live, config = record_twin(tmp_path, before_s=3, seconds=20, drop=(8, 9))
    replayed = list(replay(str(path), config))
    for reading in replayed:
        assert same_bits(reading, live[reading["stream"], reading["monotonic_ns"]])
    times = [reading["monotonic_ns"] for reading in replayed if reading["stream"] == 2]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) > 1e9, "the hole is there"
    assert max(gaps) < 6e9, "and is no longer than to the next snapshot"


def test_a_recording_cut_mid_write_is_read_up_to_the_last_whole_frame(tmp_path, capsys):
    path, live, config = record_twin(tmp_path, before_s=1, seconds=16)
    whole = len(list(replay(str(path), config)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - len(data) // 8])
    cut = list(replay(str(path), config))
    assert 0 < len(cut) < whole
    assert "no whole frame" in capsys.readouterr().err
    for reading in cut:
        assert same_bits(reading, live[reading["stream"], reading["monotonic_ns"]])


def test_a_flipped_bit_is_found(tmp_path):
    path, _, _ = record_twin(tmp_path, before_s=1, seconds=16)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert Segment(str(path)).missing_bytes > 0


@pytest.mark.parametrize("content", [b"", b"hello", b"STBREC01", b"STBREC01\xff\xff\xff\xff1234"])
def test_what_is_no_recording_is_refused_with_a_sentence(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises((RecordingError, ValueError), match="x"):
        list(replay(str(path), load_config()))


def write_csv(path, *, light, seconds=6.0, rate_hz=850.0, level_v=0.2, dark_v=0.05):
    """A clean chopped signal; `light` is 'chopped', 'on' or 'off'."""
    lines = ["time_s,channel,volts,led_on"]
    for number in range(int(seconds * rate_hz)):
        on = {"chopped": number // 5 % 2, "on": 1, "off": 0}[light]
        straddles = light == "chopped" and number % 5 == 0 and number > 0
        volts = dark_v + level_v * (0.5 if straddles else on) + 1e-5 * math.sin(number * 12.9898)
        lines.append(f"{(number + 1) / rate_hz:.9f},2,{volts:.9f},{on}")
    path.write_text("\n".join(lines) + "\n")


def test_a_table_of_another_instrument_is_replayed(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, light="chopped")
    readings = list(replay(str(path), load_config()))
    assert len(readings) > 40
    for reading in readings[10:]:
        assert reading["signal_v"] == pytest.approx(0.2, abs=2e-5)
        assert reading["ambient_v"] == pytest.approx(0.05, abs=2e-5)
        assert not reading["flags"] & (records.FLAGS["dark"] | records.FLAGS["unchopped"])
        assert reading["flags"] & records.FLAGS["stale_reference"]


@pytest.mark.parametrize(("light", "flag"), [("on", "unchopped"), ("off", "dark")])
def test_light_that_never_changes_is_accepted_and_flagged(tmp_path, light, flag):
    path = tmp_path / "x.csv"
    write_csv(path, light=light)
    readings = list(replay(str(path), load_config()))
    assert readings
    assert all(reading["flags"] & records.FLAGS[flag] for reading in readings)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("time,volts\n1,2\n", "first line"),
        ("time_s,channel,volts,led_on\n", "no rows"),
        ("time_s,channel,volts,led_on\n0.1,2,x,1\n", ":2"),
        ("time_s,channel,volts,led_on\n0.1,9,1,1\n", ":2"),
        ("time_s,channel,volts,led_on\n0.1,2,1,1\n0.1,2,1,1\n", "increase"),
        ("time_s,channel,volts,led_on\n0.1,2,1,1\n", "one row"),
        ("time_s,channel,volts,led_on\nnan,2,1,1\n0.2,2,1,1\n", ":2"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path, text, complaint):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        list(replay(str(path), load_config()))
