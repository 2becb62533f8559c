"""`stirbar bench leader` at small size: simulated bridges against a real leader, and what is counted in its store."""

from __future__ import annotations

import json

from stirbar.bridge.bench_units import PUBLISH, packets, publish_packet, published
from stirbar.web.bench_leader import BenchLeader, Generators, bench_leader


def test_twenty_units_for_three_seconds_lose_nothing():
    result = bench_leader(["--units", "20", "--seconds", "3", "--rate", "2"])
    figures = {row.what: row for row in result.rows}
    assert figures["readings published"].value == 20 * 3 * 2
    assert figures["readings in the store, counted after the end"].value == 20 * 3 * 2
    for what in ("readings lost", "readings stored twice", "connections lost", "live events dropped"):
        assert (figures[what].value, figures[what].limit) == (0, 0.0), what
    assert 0.0 < figures["publish to acknowledged commit, p50"].value < 30.0
    assert "120 readings of all units" in figures["publish to live event, p50"].note
    assert result.details["health"]["ingest"]["asks_answered"] >= 20
    assert json.loads(json.dumps(result.as_json()))["details"]["rewinds"] == 0


def test_a_loss_is_seen():
    """The bench must be able to fail: what a store has not got is missing in it."""
    with BenchLeader(2) as leader:
        with Generators(leader, 1.0, 1, processes=1) as generators:
            generators.connected()
            generators.go()
            (sent,) = generators.wait()
        leader.stop()
        (unit, (run, count)), *_ = sent["runs"].items()
        assert leader.count(sent["runs"]) == (2, 0)
        assert leader.count({unit: [run, count + 3]}) == (2, 3)


def test_packets_come_out_as_they_went_in():
    payload = bytes(range(256)) * 3
    wire = bytearray(publish_packet(b"\0\3a/b", payload, 77) + publish_packet(b"\0\1c", b"x", retain=True))
    first, rest = wire[:500], wire[500:]
    assert packets(first) == [] and len(first) == 500, "half a packet waits for the rest"
    found = packets(first + rest)
    assert [kind >> 4 for kind, _ in found] == [PUBLISH, PUBLISH]
    assert published(*found[0]) == ("a/b", payload, 77)
    assert published(*found[1]) == ("c", b"x", 0)
