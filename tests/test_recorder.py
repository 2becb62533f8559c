"""The recorder: whole chunks survive a kill, the size stays bounded, and other programs can read what it wrote."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys

import numpy
import pytest
from running import RunningWorker, stirbar_environment, wait_for
from stirbar.core import cli, records
from stirbar.core.client import Worker, WorkerUnreachable
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.record_command import record
from stirbar.core.recorder import Recorder, RecorderError, SegmentWriter
from stirbar.core.recording import CONVERSION_DTYPE, Recording, RecordingError, replay
from stirbar.core.records import Header
from stirbar.core.twin import Twin
from test_recording import same_bits

CONFIG = ["unit.simulate=1", "simulation.bubble_rate_hz=0.5", "simulation.seed=7"]
MEGABYTE = 1_000_000


def recorded(path, *, seconds, keep_bytes=0, before_s=0):
    """Record a twin; returns (twin, recorder's summary)."""
    twin = Twin(load_config(overrides=parse_overrides(CONFIG)), str(path.parent))
    for _ in twin.run(before_s):
        pass
    recorder = twin.record(str(path), keep_bytes)
    for _ in twin.run(seconds):
        pass
    recorder.close()
    return twin, recorder.summary()


HOUR = """
import sys
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin

path, directory, seconds, *overrides = sys.argv[1:]
twin = Twin(load_config(overrides=parse_overrides(overrides)), directory)
recorder = twin.record(path)
for topic, header, payload in twin.run(float(seconds)):
    if topic.startswith(b"status"):
        print(twin.elapsed_s, flush=True)
"""


@pytest.mark.parametrize(("board", "whole_s"), [("hat1.1", 3600.0), ("auto", 150.0)])
def test_an_hour_killed_at_a_random_moment_replays_up_to_the_last_whole_chunk(tmp_path, board, whole_s):
    """The readings are those of the same run without a recorder: virtual time repeats itself.

    An hour of a board of the field, whose chunks are closed by age; less at full rate, whose chunks are full.
    """
    overrides = [*CONFIG, f"unit.hardware={board}"]
    moment_s = random.Random(os.getpid()).uniform(0.2, 0.9) * whole_s
    path = tmp_path / "hour.rec"
    child = subprocess.Popen(
        [sys.executable, "-c", HOUR, path, tmp_path, str(whole_s), *overrides], stdout=subprocess.PIPE, text=True
    )
    with child:
        for line in child.stdout:
            if float(line) >= moment_s:
                break
        child.send_signal(signal.SIGKILL)
        child.wait()
    killed_s = float(line)
    config = load_config(overrides=parse_overrides(overrides))
    reference = Twin(config, str(tmp_path))
    live = {
        (reading["stream"], reading["monotonic_ns"]): reading
        for reading in reference.readings(min(killed_s + 120, whole_s))
        if reading["stream"] != records.STREAM_IDS["temperature"]
    }
    count, last_ns = 0, 0
    for reading in replay(str(path), config):
        assert same_bits(reading, live[reading["stream"], reading["monotonic_ns"]]), (moment_s, reading)
        count += 1
        if reading["stream"] == records.STREAM_IDS["od2"]:
            last_ns = reading["monotonic_ns"]
    recorded_s = (last_ns - reference.start_ns) / 1e9
    assert count > 0.95 * sum(monotonic_ns <= last_ns for _, monotonic_ns in live), "every reading until then"
    assert killed_s - 12 < recorded_s, f"killed at {killed_s} s: at most the chunk that was open may be missing"


def test_a_continuous_recording_keeps_its_size_and_says_what_it_dropped(tmp_path, capsys):
    keep = MEGABYTE
    twin, summary = recorded(tmp_path / "raw", seconds=900, keep_bytes=keep)
    assert summary["dropped_bytes"] > 0
    assert "oldest segment" in capsys.readouterr().err
    sizes = sum(entry.stat().st_size for entry in os.scandir(tmp_path / "raw"))
    assert 0.8 * keep < sizes <= keep
    recording = Recording(str(tmp_path / "raw"))
    assert recording.dropped_bytes > 0
    assert not recording.missing_bytes
    information = recording.information()
    assert all(stream["holes"] == 0 for stream in information["streams"].values())
    blocks = list(recording.conversions())
    newest_s = (max(block["monotonic_ns"].max() for block in blocks) - twin.start_ns) / 1e9
    assert newest_s == pytest.approx(900, abs=0.2)


def test_what_was_dropped_is_on_disk_at_once_and_after_a_restart(tmp_path):
    """Whoever opens the recording at any moment reads of every drop, also of those before a restart."""
    path = str(tmp_path / "raw")
    twin = Twin(load_config(overrides=parse_overrides(CONFIG)), str(tmp_path))
    dropped = []
    for _ in range(2):
        recorder = twin.record(path, MEGABYTE)
        before = recorder.dropped_bytes
        for topic, _, _ in twin.run(600):
            if topic == b"status" and recorder.dropped_bytes != (dropped or [0])[-1]:
                with Recording(path) as recording:
                    assert recording.dropped_bytes == recorder.dropped_bytes
                dropped.append(recorder.dropped_bytes)
            if recorder.dropped_bytes > before + MEGABYTE // 5:
                break
        recorder.close()
        with Recording(path) as recording:
            assert recording.dropped_bytes == recorder.dropped_bytes
    assert len(dropped) > 4
    assert dropped == sorted(dropped)
    numbers = sorted(int(name[:8]) for name in os.listdir(path) if name.endswith(".rec"))
    assert numbers[-1] < 60, "segments are not opened for nothing"


@pytest.mark.parametrize("board", ["hat1.0", "hat1.1"])
def test_no_chunk_is_older_than_ten_seconds(tmp_path, board):
    """On boards that convert slowly a chunk by number would take minutes, and the stirrer's edges more than one."""
    overrides = [*CONFIG, f"unit.hardware={board}"]
    twin = Twin(load_config(overrides=parse_overrides(overrides)), str(tmp_path))
    recorder = twin.record(str(tmp_path / "x.rec"))
    oldest_s = dict.fromkeys(recorder.assemblers, 0.0)
    for topic, _, _ in twin.run(60):
        if topic == b"status":
            for stream, assembler in recorder.assemblers.items():
                if assembler.items:
                    age_s = (twin.loop.now_ns() - assembler.header.monotonic_ns) / 1e9
                    oldest_s[stream] = max(oldest_s[stream], age_s)
    recorder.close()
    assert all(5 <= age_s <= 10 for age_s in oldest_s.values()), oldest_s
    with Recording(str(tmp_path / "x.rec")) as recording:
        chunks = [header.stream for header, _ in recording if header.kind == records.KIND_TRACE]
    assert all(chunks.count(stream) >= 6 for stream in oldest_s), "items of a minute"


def test_a_silent_worker_leaves_nothing_in_memory(tmp_path):
    twin = Twin(load_config(overrides=parse_overrides(CONFIG)), str(tmp_path))
    recorder = Recorder(str(tmp_path / "x.rec"), twin.host.describe(), chunk_s=60.0)
    twin.host.request_raw(10)
    for topic, header, payload in twin.run(2):
        if topic.startswith((b"trace/", b"snapshot/")):
            recorder.message(Header.unpack(header)[0], payload)
    assert all(assembler.items for assembler in recorder.assemblers.values())
    recorder.idle()
    assert all(assembler.items for assembler in recorder.assemblers.values()), "too young"
    recorder.chunk_s = 0.0
    recorder.idle()
    assert not any(assembler.items for assembler in recorder.assemblers.values())
    recorder.close()


def test_each_segment_can_be_replayed_alone(tmp_path):
    config = load_config(overrides=parse_overrides(CONFIG))
    recorded(tmp_path / "raw", seconds=300, keep_bytes=20 * MEGABYTE // 10)
    whole = {(r["stream"], r["monotonic_ns"]): r for r in replay(str(tmp_path / "raw"), config)}
    names = sorted(name for name in os.listdir(tmp_path / "raw") if name.endswith(".rec"))
    assert len(names) >= 3
    alone = list(replay(str(tmp_path / "raw" / names[1]), config))
    assert len(alone) > 100
    for reading in alone:
        other = whole[reading["stream"], reading["monotonic_ns"]]
        assert {k: struct.pack("<d", v) for k, v in reading.items()} == {
            k: struct.pack("<d", v) for k, v in other.items()
        }


def test_a_second_recorder_is_refused_and_a_later_one_goes_on(tmp_path):
    description = {"build_id": "x"}
    first = Recorder(str(tmp_path / "raw"), description, 20 * MEGABYTE)
    with pytest.raises(RecorderError, match="another recorder"):
        Recorder(str(tmp_path / "raw"), description, 20 * MEGABYTE)
    first.close()
    Recorder(str(tmp_path / "raw"), description, 20 * MEGABYTE).close()
    assert sorted(os.listdir(tmp_path / "raw")) == ["00000001.rec", "00000002.rec", "lock"]


def test_a_full_disk_costs_the_oldest_segment_and_no_frame_is_written_in_half(tmp_path):
    """The disk is full where the process may not write larger files (RLIMIT_FSIZE gives EFBIG, told as ENOSPC)."""
    recorded(tmp_path / "raw", seconds=60, keep_bytes=20 * MEGABYTE // 10)
    before = Recording(str(tmp_path / "raw")).information()

    class FullDisk(SegmentWriter):
        def _append(self, data):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes + 100, hard))
                super()._append(data)
            except OSError as error:
                assert error.errno == errno.EFBIG
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                signal.signal(signal.SIGXFSZ, old)

    recorder = Recorder(str(tmp_path / "raw"), {"build_id": "x"}, 20 * MEGABYTE // 10)
    recorder.newest.__class__ = FullDisk
    whole = recorder.newest.bytes
    assert not recorder.write(recorder.newest, b"frame" * 1000)
    assert recorder.lost_frames == 1
    assert "No space left" in recorder.failure
    assert recorder.dropped_bytes > 0, "the oldest segment made room, though not enough"
    recorder.newest.__class__ = SegmentWriter
    assert recorder.newest.bytes == whole
    nobody = bytes(16)
    recorder.write(
        recorder.newest,
        Header(records.KIND_SNAPSHOT, records.STREAM_IDS["raw"], 0, 0, 0, nobody, nobody, nobody, 0, 0, 0, "").pack(),
    )
    assert not recorder.failure
    recorder.close()
    assert before["missing_bytes"] == 0
    assert Recording(str(tmp_path / "raw")).missing_bytes == 0


def test_conversions_have_time_volts_phase_and_no_gap(tmp_path):
    twin, _ = recorded(tmp_path / "x.rec", seconds=12, before_s=5)
    blocks = list(Recording(str(tmp_path / "x.rec")).conversions(channel=2))
    table = numpy.concatenate(blocks)
    assert table.dtype == numpy.dtype(CONVERSION_DTYPE)
    assert set(table["channel"]) == {2}
    steps = numpy.diff(table["monotonic_ns"])
    assert 1e9 / steps.mean() == pytest.approx(860, rel=0.1)
    assert abs(steps - steps.mean()).max() < 0.05 * steps.mean()
    assert (numpy.diff(table["index"]) == 1).all()
    # light: the lit conversions are brighter, and half of those used
    lit, dark = table["volts"][table["phase"] == 1], table["volts"][table["phase"] == 0]
    assert numpy.median(lit) - numpy.median(dark) == pytest.approx(twin.host.latest[2]["signal_v"], rel=0.02)
    assert 0.4 < len(lit) / (len(lit) + len(dark)) < 0.6
    assert (table["wall_ns"] - table["monotonic_ns"] == table["wall_ns"][0] - table["monotonic_ns"][0]).all()


def test_export_to_numpy_parquet_and_csv_agrees(tmp_path, capsys):
    path = str(tmp_path / "x.rec")
    recorded(tmp_path / "x.rec", seconds=12)
    for ending in ("npy", "csv", "parquet"):
        if ending == "parquet":
            pytest.importorskip("pyarrow")
        out = str(tmp_path / f"x.{ending}")
        assert cli.main(["recording", "export", path, "--out", out, "--channel", "2", "--from", "2", "--to", "9"]) == 0
    table = numpy.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(table, numpy.memmap)
    span_s = (table["monotonic_ns"][-1] - table["monotonic_ns"][0]) / 1e9
    assert span_s == pytest.approx(7, abs=0.01)
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert len(lines) == len(table) + 1
    for line, row in itertools.islice(zip(lines[1:], table, strict=True), 0, None, 97):
        fields = dict(zip(lines[0].split(","), line.split(","), strict=True))
        assert int(fields["monotonic_ns"]) == row["monotonic_ns"]
        assert float(fields["volts"]) == pytest.approx(row["volts"], rel=1e-8)
    from pyarrow import parquet

    frame = parquet.read_table(tmp_path / "x.parquet")
    for name in table.dtype.names:
        assert (frame[name].to_numpy() == table[name]).all()
    assert cli.main(["recording", "export", path, "--out", str(tmp_path / "x.npy")]) == 1
    assert "not overwritten" in capsys.readouterr().err


def test_info_says_what_is_missing(tmp_path, capsys):
    path = tmp_path / "x.rec"
    recorded(path, seconds=12)
    assert cli.main(["recording", "info", str(path), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    assert cli.main(["recording", "info", str(path), "--json"]) == 1
    cut = json.loads(capsys.readouterr().out)
    assert cut["missing_bytes"] > 0
    assert sum(s["items"] for s in cut["streams"].values()) < sum(s["items"] for s in whole["streams"].values())
    assert cli.main(["recording", "info", str(path)]) == 1
    assert "no whole frame" in capsys.readouterr().out
    assert cli.main(["recording", "info", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err


def raw_runs(path):
    """The runs whose raw stream has begun on disk."""
    try:
        with Recording(str(path)) as recording:
            return {header.run_id for header, _ in recording if header.stream == records.STREAM_IDS["raw"]}
    except (FileNotFoundError, RecordingError):
        return set()


RECORD = """
import signal, sys
from stirbar.core.client import Worker
from stirbar.core.record_command import record

signal.signal(signal.SIGTERM, signal.default_int_handler)
with Worker(sys.argv[1], timeout_s=0.3) as worker:
    print(record(worker, sys.argv[2], keep_bytes=20_000_000, retry_s=0.1))
"""


def test_a_recorder_started_before_its_worker_waits_and_says_so(tmp_path):
    raw = tmp_path / "raw"
    worker = RunningWorker((), None, {})
    worker.process.send_signal(signal.SIGSTOP)
    recorder = subprocess.Popen(
        [sys.executable, "-c", RECORD, worker.address, raw],
        env=stirbar_environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert worker.address in (waiting := recorder.stderr.readline()) and "Waiting for it." in waiting
        assert not raw.exists()
        worker.process.send_signal(signal.SIGCONT)
        assert "answers" in recorder.stderr.readline()
        wait_for(lambda: list(raw.glob("*.rec")), 20, "the first segment")
        recorder.send_signal(signal.SIGTERM)
        _, errors = recorder.communicate(timeout=20)
        assert recorder.returncode == 0, errors
    finally:
        if recorder.poll() is None:
            recorder.kill()
            recorder.wait()
        worker.stop(check=False)


def test_one_file_needs_a_worker_that_answers(tmp_path):
    with Worker(f"ipc://{tmp_path}/w", timeout_s=0.1) as worker, pytest.raises(WorkerUnreachable, match="running"):
        record(worker, str(tmp_path / "x.rec"))
    assert not os.path.exists(tmp_path / "x.rec")


def test_the_recorder_waits_for_a_worker_that_went_away(tmp_path):
    """A real worker, killed and started anew: one recording of two runs, without a hole in either."""
    raw = tmp_path / "raw"
    worker = RunningWorker((), None, {})
    again = recorder = None
    try:
        recorder = subprocess.Popen(
            [sys.executable, "-m", "stirbar.core.cli", "record", "--continuous", "--directory", raw,
             "--address", worker.address],
            env=stirbar_environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(lambda: len(raw_runs(raw)) == 1, 40, "the first snapshot on disk")
        worker.process.kill()
        worker.process.wait()
        again = subprocess.Popen(worker.process.args, env=stirbar_environment(), stderr=subprocess.DEVNULL)
        wait_for(lambda: len(raw_runs(raw)) == 2, 40, "the first snapshot of the second run")
        recorder.send_signal(signal.SIGTERM)
        _, errors = recorder.communicate(timeout=20)
        assert recorder.returncode == 0, errors
    finally:
        for process in (recorder, again):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        worker.stop(check=False)
    with Recording(str(raw)) as recording:
        information = recording.information()
        chunks = {header.run_id.hex() for header, _ in recording if header.kind == records.KIND_TRACE}
    assert len(information["runs"]) == 2
    assert chunks == set(information["runs"]), "what was gathered of both is on disk"
    assert all(stream["holes"] == 0 for stream in information["streams"].values()), information
