"""The spool keeps whole frames through kills, torn tails, damage, a full disk and its bound; every loss is counted."""

from __future__ import annotations

import errno
import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.bridge import spool as spool_module
from stirbar.bridge.spool import Spool, SpoolFull
from stirbar.core.records import KIND_GAP, KIND_READINGS, Header, parse_batch

UNIT = bytes(range(16))
RUN_A, RUN_B = b"A" * 16, b"B" * 16


def payload(run: bytes, stream: int, first: int, count: int = 10, fill: int = 0) -> bytes:
    body = bytes([fill]) * (8 * count)
    return Header(KIND_READINGS, stream, 8, count, first, UNIT, run, bytes(16), 1, 2, 3, "exp").pack() + body


class Reports(list[str]):
    def __call__(self, message: str) -> None:
        self.append(message)


def make(directory: Path, limit: int = 1 << 20, segment: int = 4096, reports: Reports | None = None) -> Spool:
    return Spool(str(directory), UNIT, limit, reports if reports is not None else Reports(), segment)


def everything(spool: Spool) -> list[tuple[bytes, int, int, int, int]]:
    out = []
    position = (0, 0, 0)
    while True:
        frames, position = spool.read(position)
        if not frames:
            return out
        out += [(*frame.key, frame.kind, frame.first, frame.end) for frame in frames]


def fill(spool: Spool, run: bytes, stream: int, first: int, end: int) -> list[tuple[bytes, int, int, int, int]]:
    for start in range(first, end, 10):
        spool.append([payload(run, stream, start)])
    return [(run, stream, KIND_READINGS, start, start + 10) for start in range(first, end, 10)]


def test_what_was_written_is_read_in_order_over_segments_and_starts(tmp_path: Path) -> None:
    spool = make(tmp_path)
    wanted = fill(spool, RUN_A, 1, 0, 400) + fill(spool, RUN_A, 8, 0, 200) + fill(spool, RUN_B, 1, 0, 300)
    spool.sync()
    assert len(list(tmp_path.glob("*.seg"))) > 3
    assert everything(spool) == wanted
    spool.close()
    again = make(tmp_path)
    assert everything(again) == wanted
    assert again.next_sequence((RUN_A, 1)) == 400
    assert again.next_sequence((RUN_B, 1)) == 300
    assert again.next_sequence((RUN_B, 9)) == 0
    wanted += fill(again, RUN_B, 1, 300, 350)
    assert everything(again) == wanted
    again.close()


def test_find_leads_to_the_segment_that_holds_it(tmp_path: Path) -> None:
    spool = make(tmp_path)
    fill(spool, RUN_A, 1, 0, 1000)
    position = spool.find((RUN_A, 1), 605)
    frames, _ = spool.read(position)
    assert frames[0].first <= 605 < 605 + 400
    assert frames[0].first > 0
    assert spool.find((RUN_A, 1), 1000) == spool.tail
    assert spool.find((RUN_B, 1), 0) == spool.tail
    spool.close()


@given(cut=st.integers(1, 3 * 190), junk=st.binary(max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_torn_tail_is_cut_and_reported(cut: int, junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        spool = make(directory, segment=1 << 20)
        wanted = fill(spool, RUN_A, 1, 0, 100)
        spool.close()
        path = directory / "00000001.seg"
        size = path.stat().st_size
        frame = size // 10
        data = path.read_bytes()[: size - cut] + junk
        path.write_bytes(data)
        reports = Reports()
        again = make(directory, segment=1 << 20, reports=reports)
        kept = (size - cut) // frame
        assert everything(again) == wanted[:kept]
        assert again.cut_bytes == len(data) - kept * frame
        assert bool(reports) == bool(again.cut_bytes)
        assert path.stat().st_size == kept * frame
        assert again.next_sequence((RUN_A, 1)) == kept * 10
        fill(again, RUN_A, 1, kept * 10, kept * 10 + 10)
        assert everything(again)[-1][3:] == (kept * 10, kept * 10 + 10)
        again.close()


def test_damage_in_the_middle_costs_only_the_damaged_frames(tmp_path: Path) -> None:
    spool = make(tmp_path, segment=1 << 20)
    wanted = fill(spool, RUN_A, 1, 0, 3000)
    spool.close()
    path = tmp_path / "00000001.seg"
    data = bytearray(path.read_bytes())
    frame = len(data) // 300
    rng = random.Random(3)
    hit = sorted(rng.sample(range(299), 12))
    for number in hit:
        data[number * frame + rng.randrange(frame)] ^= 0xFF
    path.write_bytes(data)
    again = make(tmp_path, segment=1 << 20)
    assert everything(again) == [row for number, row in enumerate(wanted) if number not in hit]
    assert again.damaged > 0
    again.close()


def test_large_frames_beyond_the_read_size(tmp_path: Path) -> None:
    spool = make(tmp_path, limit=64 << 20, segment=8 << 20)
    body = random.Random(1).randbytes(300_000)
    header = Header(5, 18, 0, 1000, 0, UNIT, RUN_A, bytes(16), 0, 0, 0, "e")
    spool.append([payload(RUN_A, 1, 0), header.pack() + body, payload(RUN_A, 1, 10)])
    assert [row[3:] for row in everything(spool)] == [(0, 10), (0, 1000), (10, 20)]
    spool.close()


def test_acknowledged_segments_go_first_and_only_when_space_is_needed(tmp_path: Path) -> None:
    spool = make(tmp_path, limit=20_000, segment=4_000)
    fill(spool, RUN_A, 1, 0, 700)
    spool.acknowledge((RUN_A, 1), 700)
    assert everything(spool)[0][3] == 0
    fill(spool, RUN_A, 1, 700, 1400)
    assert spool.size <= 20_000
    assert spool.lost == 0
    rows = everything(spool)
    assert rows[0][3] > 0
    assert rows[0][3] <= 700
    assert [row[3] for row in rows] == list(range(rows[0][3], 1400, 10))
    spool.close()


def test_unacknowledged_data_that_must_go_become_gap_records_with_exact_counts(tmp_path: Path) -> None:
    reports = Reports()
    spool = make(tmp_path, limit=20_000, segment=4_000, reports=reports)
    fill(spool, RUN_A, 1, 0, 200)
    spool.acknowledge((RUN_A, 1), 50)
    fill(spool, RUN_B, 1, 0, 1500)
    rows = everything(spool)
    gaps = [row for row in rows if row[2] == KIND_GAP]
    seen: dict[bytes, set[int]] = {RUN_A: set(range(50)), RUN_B: set()}
    for run, _, kind, first, end in rows:
        numbers = set(range(first, end))
        assert not numbers & seen[run], "announced or stored twice"
        seen[run] |= numbers
        assert kind in (KIND_READINGS, KIND_GAP)
    assert seen[RUN_A] == set(range(200))
    assert seen[RUN_B] == set(range(1500))
    assert spool.lost == sum(end - first for _, _, _, first, end in gaps)
    assert spool.size <= 20_000 + 4_000
    assert any("given up" in message for message in reports)
    frames, _ = spool.read(spool.find((RUN_A, 1), 50))
    gap = next(frame for frame in frames if frame.kind == KIND_GAP)
    assert json.loads(parse_batch(gap.payload)[1]) == {"reason": "spool full"}
    spool.close()


def test_positions_survive_and_may_be_lost(tmp_path: Path) -> None:
    spool = make(tmp_path)
    fill(spool, RUN_A, 1, 0, 100)
    spool.acknowledge((RUN_A, 1), 60)
    assert spool.follow_epoch(4)
    assert not spool.follow_epoch(3)
    spool.close()
    again = make(tmp_path)
    assert again.acknowledged == {(RUN_A, 1): 60}
    assert again.epoch == 4
    assert again.pending_keys() == [(RUN_A, 1)]
    again.close()
    (tmp_path / "positions.json").write_text("{not json")
    reports = Reports()
    third = make(tmp_path, reports=reports)
    assert third.acknowledged == {}
    assert len(reports) == 1
    third.close()


def test_full_disk_writes_nothing_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = make(tmp_path)
    wanted = fill(spool, RUN_A, 1, 0, 100)
    real_write = os.write

    def short_write(descriptor: int, data: bytes) -> int:
        real_write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool_module.os, "write", short_write)
        with pytest.raises(SpoolFull):
            spool.append([payload(RUN_A, 1, 100)])
    assert spool.full == 1
    assert spool.next_sequence((RUN_A, 1)) == 100
    assert everything(spool) == wanted
    wanted += fill(spool, RUN_A, 1, 100, 120)
    assert everything(spool) == wanted
    spool.close()
    assert everything(make(tmp_path)) == wanted


def test_full_disk_gives_up_acknowledged_segments_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = make(tmp_path)
    fill(spool, RUN_A, 1, 0, 1000)
    spool.acknowledge((RUN_A, 1), 1000)
    real_write = os.write
    segments = len(list(tmp_path.glob("*.seg")))

    def full_until_two_are_gone(descriptor: int, data: bytes) -> int:
        if len(list(tmp_path.glob("*.seg"))) > segments - 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    monkeypatch.setattr(spool_module.os, "write", full_until_two_are_gone)
    spool.append([payload(RUN_A, 1, 1000)])
    assert everything(spool)[-1][3] == 1000
    assert spool.full == 0
    spool.close()


def test_one_spool_one_bridge(tmp_path: Path) -> None:
    spool = make(tmp_path)
    with pytest.raises(OSError, match="another bridge"):
        make(tmp_path)
    spool.close()
    make(tmp_path).close()


def test_a_lost_index_is_no_loss(tmp_path: Path) -> None:
    spool = make(tmp_path)
    wanted = fill(spool, RUN_A, 1, 0, 500)
    spool.close()
    indices = sorted(tmp_path.glob("*.idx"))
    indices[0].unlink()
    indices[1].write_text("[]")
    again = make(tmp_path)
    assert everything(again) == wanted
    assert again.next_sequence((RUN_A, 1)) == 500
    again.close()
