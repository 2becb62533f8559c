"""Record and replay: the readings again, bit by bit; files that are cut; tables of other instruments."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import struct

import pytest
from stirbar.core import cli, records
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.recorder import Recorder
from stirbar.core.recording import FRAME, MAGIC, Recording, RecordingError, Segment, replay
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
    recorder = Recorder(str(path), twin.host.describe())
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


@pytest.mark.parametrize("end", [0, 3, 8, 20, 200, 4096])
def test_zeros_at_the_end_are_no_frames(tmp_path, end):
    """A file system that was cut off from power may have grown the file without its data."""
    path, _, _ = record_twin(tmp_path, before_s=1, seconds=6)
    whole = path.read_bytes()
    with Segment(str(path)) as segment:
        frames = len(list(segment.batches()))
    path.write_bytes(whole + bytes(end))
    with Segment(str(path)) as segment:
        assert len(list(segment.batches())) == frames
        assert segment.missing_bytes == end


def frame_places(path):
    """Where the frames of a file begin, its header's first, and where the last one ends."""
    data = path.read_bytes()
    places = [len(MAGIC)]
    while places[-1] < len(data):
        places.append(places[-1] + FRAME.size + FRAME.unpack_from(data, places[-1])[0])
    return places


@pytest.mark.parametrize("where", ["length", "checksum", "body"])
def test_one_damaged_frame_costs_that_frame(tmp_path, capsys, where):
    """Reading goes on at the next frame; the replay at the next snapshot, because the estimators' state is lost."""
    path, live, config = record_twin(tmp_path, before_s=1, seconds=40)
    with Recording(str(path)) as recording:
        items = recording.information()["streams"]["raw"]["items"]
        rows = sum(map(len, recording.conversions()))
    replayed = len(list(replay(str(path), config)))
    places = frame_places(path)
    raw = records.STREAM_IDS["raw"]
    data = bytearray(path.read_bytes())
    number = next(  # the third chunk of photodiodes
        itertools.islice(
            (
                number
                for number, place in enumerate(places[1:-1], 1)
                if (header := Header.unpack(bytes(data), place + FRAME.size)[0]).stream == raw
                and header.kind == records.KIND_RAW_CHUNK
            ),
            2,
            None,
        )
    )
    count = Header.unpack(bytes(data), places[number] + FRAME.size)[0].count
    data[places[number] + {"length": 0, "checksum": 5, "body": 300}[where]] ^= 0x41
    path.write_bytes(data)
    with Recording(str(path)) as recording:
        assert recording.missing_bytes == places[number + 1] - places[number]
        stream = recording.information()["streams"]["raw"]
        assert stream["items"] == items - count
        assert (stream["holes"], stream["items_missing"]) == (1, count)
        blocks = list(recording.conversions())
    assert rows - count <= sum(map(len, blocks)) < rows
    assert all(not math.isnan(volts) for block in blocks for volts in block["volts"]), "the range is fixed here"
    capsys.readouterr()
    after = list(replay(str(path), config))
    assert 0 < len(after) < replayed
    assert all(same_bits(reading, live[reading["stream"], reading["monotonic_ns"]]) for reading in after)
    errors = capsys.readouterr().err
    assert "no whole frame" in errors and "before the next snapshot" in errors


def test_opening_reads_the_header_only(tmp_path):
    """Page faults say how much of the mapped file was touched."""
    path, _, _ = record_twin(tmp_path, before_s=1, seconds=2)
    os.truncate(path, 64 << 20)

    def faults():
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_minflt + used.ru_majflt

    before = faults()
    with Recording(str(path)) as recording:
        assert recording.header["build_id"]
        assert next(iter(recording))[0].kind == records.KIND_SNAPSHOT
        opened = faults()
        assert recording.missing_bytes > 60 << 20
    assert opened - before < (faults() - opened) / 4


def test_what_was_closed_is_closed(tmp_path):
    path, _, _ = record_twin(tmp_path, before_s=1, seconds=6)
    with Recording(str(path)) as recording:
        batches = iter(recording)
        next(batches)
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("place", ["last", "middle"])
@pytest.mark.parametrize("size", [0, 4, 8, 20])
def test_a_segment_cut_as_it_was_opened_is_left_out(tmp_path, capsys, place, size):
    """A power cut at that moment must not cost the other segments."""
    whole, live, config = record_twin(tmp_path, before_s=1, seconds=6)
    raw = tmp_path / "raw"
    raw.mkdir()
    data = whole.read_bytes()
    (raw / "00000001.rec").write_bytes(data)
    cut = raw / ("00000003.rec" if place == "last" else "00000002.rec")
    cut.write_bytes(data[:size])
    if place == "middle":
        (raw / "00000003.rec").write_bytes(data)
    capsys.readouterr()
    assert cli.main(["recording", "info", str(raw), "--json"]) == 1
    information = json.loads(capsys.readouterr().out)
    assert information["unreadable"] == [str(cut)]
    assert information["missing_bytes"] == size
    assert information["segments"] == (1 if place == "last" else 2)
    assert cli.main(["recording", "export", str(raw), "--out", str(tmp_path / "x.npy")]) == 0
    readings = list(replay(str(raw), config))
    assert readings and all(same_bits(r, live[r["stream"], r["monotonic_ns"]]) for r in readings)
    assert str(cut) in capsys.readouterr().err
    Recorder(str(raw), {"build_id": "x"}, 20_000_000).close()
    assert (raw / "00000004.rec").exists(), "a recorder goes on behind it"


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
