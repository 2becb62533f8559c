"""A spool without room drops raw first, then thins readings by age: every loss counted, whatever cuts it short."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from stirbar.bridge import spool as spool_module
from stirbar.bridge.spool import Spool
from stirbar.bridge.spool_thin import LEVELS_S
from stirbar.core.records import KIND_GAP, KIND_JSON, KIND_RAW_CHUNK, KIND_READINGS, READING, STREAM_IDS, Header

from .test_spool import RUN_A, RUN_B, UNIT, Reports

OD, RAW, EVENT = STREAM_IDS["od2"], STREAM_IDS["raw"], STREAM_IDS["event"]
SECOND = 1_000_000_000


def readings(run: bytes, first: int, count: int = 10, stream: int = OD) -> bytes:
    """One a second: the sequence number is the second."""
    records = b"".join(
        READING.pack(n, n * SECOND, n * SECOND, 0.5, *[0.0] * 8, 0, 0, 0, 0, stream, 90, 1, 1)
        for n in range(first, first + count)
    )
    return (
        Header(KIND_READINGS, stream, READING.size, count, first, UNIT, run, bytes(16), 0, 0, 0, "e").pack() + records
    )


def other(kind: int, stream: int, run: bytes, first: int, count: int, size: int) -> bytes:
    return Header(kind, stream, 0, count, first, UNIT, run, bytes(16), 0, 0, 0, "e").pack() + bytes(size)


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stays on: how long a disk takes is no matter here."""
    for wait in ("fsync", "fdatasync"):
        monkeypatch.setattr(spool_module.os, wait, lambda descriptor: None)


def make(directory: Path, limit: int, reports: Reports | None = None, segment: int = 20_000) -> Spool:
    return Spool(str(directory), UNIT, limit, reports if reports is not None else Reports(), segment)


def held(spool: Spool) -> tuple[dict[tuple[bytes, int], list[int]], dict[tuple[bytes, int], set[int]]]:
    """Of each run and stream the sequence numbers that are there, in order, and those that gap records name."""
    data: dict[tuple[bytes, int], list[int]] = {}
    gaps: dict[tuple[bytes, int], set[int]] = {}
    position = (0, 0, 0)
    while True:
        frames, position = spool.read(position)
        if not frames:
            return data, gaps
        for frame in frames:
            if frame.kind == KIND_GAP:
                gaps.setdefault(frame.key, set()).update(range(frame.first, frame.end))
                continue
            if frame.kind == KIND_READINGS:
                body = frame.payload[frame.body_at :]
                assert [record[0] for record in READING.iter_unpack(body)] == list(range(frame.first, frame.end))
            data.setdefault(frame.key, []).extend(range(frame.first, frame.end))


def test_raw_goes_before_any_reading(tmp_path: Path) -> None:
    reports = Reports()
    spool = make(tmp_path, 200_000, reports)
    for n in range(100):
        spool.append([readings(RUN_A, 10 * n), other(KIND_RAW_CHUNK, RAW, RUN_A, 100 * n, 100, 5_000)])
    data, gaps = held(spool)
    assert spool.size <= 200_000
    assert data[RUN_A, OD] == list(range(1000)), "no reading went while there was raw to give"
    raw = data[RUN_A, RAW]
    assert raw == list(range(raw[0], 10_000)) and raw[0] > 0, "the newest raw stays"
    assert gaps == {(RUN_A, RAW): set(range(raw[0]))}
    assert spool.lost == raw[0]
    assert any("old raw conversions go" in text for text in reports)
    spool.close()
    again = make(tmp_path, 200_000)
    assert held(again) == (data, gaps)
    again.close()


def thinned_spool(directory: Path, end: int) -> Spool:
    spool = make(directory, 60_000, segment=2_000)
    for n in range(0, end, 20):
        spool.append([readings(RUN_A, n, 20)])
        if n == end - 2_000:
            spool.append([other(KIND_JSON, EVENT, RUN_A, 0, 1, 30)])
    return spool


def test_readings_are_thinned_by_age_and_every_one_is_counted(tmp_path: Path) -> None:
    end = 11_000
    spool = thinned_spool(tmp_path, end)
    assert spool.size <= 60_000
    data, gaps = held(spool)
    there = data[RUN_A, OD]
    assert there == sorted(set(there)) and there[-1] == end - 1
    assert spool.lost == end - len(there), "what is not there was counted, and nothing else"
    steps = [b - a for a, b in pairwise(there)]
    first = [steps.index(step) for step in (LEVELS_S[2], LEVELS_S[1], LEVELS_S[0], 1)]
    assert first == sorted(first), "the older, the sparser"
    assert steps[-100:] == [1] * 100
    assert data[RUN_A, EVENT] == [0], "an event is small, and stays"
    begin = there[0]
    assert gaps.get((RUN_A, OD), set()) <= set(range(begin)), "a thinned stretch is a hole, not a gap record"
    assert spool.why_missing((RUN_A, OD), there[0] + 1, there[1]) == "spool full: thinned"
    spool.close()
    again = make(tmp_path, 60_000)
    assert held(again) == (data, gaps)
    assert again.why_missing((RUN_A, OD), there[0] + 1, there[1]) == "spool full: thinned"
    again.close()


def test_a_reader_in_a_segment_that_is_thinned_goes_on_at_its_beginning(tmp_path: Path) -> None:
    spool = make(tmp_path, 60_000)
    for n in range(0, 500, 10):
        spool.append([readings(RUN_A, n)])
    _, position = spool.read((0, 0, 0))
    damaged = spool.damaged
    for n in range(500, 4000, 10):
        spool.append([readings(RUN_A, n)])
    rest = []
    while True:
        frames, position = spool.read(position)
        if not frames:
            break
        rest += [frame.first for frame in frames]
    assert rest == sorted(rest) and rest[-1] == 3990
    assert spool.damaged == damaged, "no frame was taken for damage"
    spool.close()


def test_acknowledged_readings_are_no_loss(tmp_path: Path) -> None:
    spool = make(tmp_path, 60_000)
    for n in range(0, 500, 10):
        spool.append([readings(RUN_A, n), readings(RUN_B, n)])
        spool.acknowledge((RUN_A, OD), n + 10)
    for n in range(500, 3000, 10):
        spool.append([readings(RUN_B, n)])
    there = held(spool)[0][RUN_B, OD]
    assert spool.lost == 3000 - len(there)
    spool.close()


class PowerCut(BaseException):
    """The end of everything, between two system calls."""


# call, and which ones of its calls are the last thing that happens
STEPS = {"fsync": range(5, 60, 9), "replace": range(1, 12, 3), "unlink": range(2, 12, 4), "write": range(30, 90, 13)}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_a_power_cut_while_room_is_made_loses_nothing_uncounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    """Cut at the n-th call, for many n: what the directory then holds accounts for all that was synced before."""
    real = getattr(os, step)
    cuts = 0
    for number in STEPS[step]:
        directory = tmp_path / f"{step}{number}"
        spool = make(directory, 60_000)
        calls = 0

        def cut(*arguments: object, wanted: int = number) -> object:
            nonlocal calls
            calls += 1
            if calls == wanted and not after:
                raise PowerCut
            result = real(*arguments)
            if calls == wanted:
                raise PowerCut
            return result

        synced = 0
        with monkeypatch.context() as patch:
            patch.setattr(spool_module.os, step, cut)
            try:
                for n in range(0, 6000, 50):
                    spool.append([readings(RUN_A, n, 50)])
                    spool.sync()
                    synced = n + 50
            except PowerCut:
                cuts += 1
        after_cut = tmp_path / "copy"
        shutil.copytree(directory, after_cut)
        os.unlink(after_cut / "lock")
        again = make(after_cut, 60_000)
        data, _ = held(again)
        there = data[RUN_A, OD]
        assert max(there) >= synced - 1, "the newest is there, so that a hole before it shows"
        assert again.next_sequence((RUN_A, OD)) >= synced
        assert spool.lost <= synced + 50 - len(set(there)), "counted before it was gone"
        assert not list(after_cut.glob("*.new"))
        again.close()
        shutil.rmtree(after_cut)
        spool.close()
    assert cuts == len(STEPS[step])
