"""What the leader's half costs: ingest through a real mosquitto into SQLite, bytes per reading, charts of a long run.

    python benchmarks/leader.py ingest [--blocks N] [--readings N] [--units N]
    python benchmarks/leader.py series [--days D]

`ingest` floods: its rate is what one leader takes, its CPU is that of the ingest thread per reading, commit included.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "build" / "view")]

import units  # noqa: E402
from stirbar.bridge.broker import Broker  # noqa: E402
from stirbar.bridge.ingest import Ingest  # noqa: E402
from stirbar.bridge.store import open_store  # noqa: E402


def ingest(directory: pathlib.Path, blocks: int, readings: int, count: int) -> dict[str, object]:
    """Units publish `blocks` blocks of `readings` each to be stored, as fast as the broker takes them."""
    broker = Broker(directory)
    broker.start()
    store = open_store(directory / "leader.sqlite")
    ear = Ingest(
        store, host="127.0.0.1", port=broker.port, username=broker.username, password=broker.password,
        topic_root="pioreactor", data_root="stirbar",
    )  # fmt: skip
    ear.start()
    senders = []
    for number in range(1, count + 1):
        broker.issue(f"vial{number}", units.identity(number), directory / f"{number}.password")
        password = (directory / f"{number}.password").read_text().strip()
        senders.append(units.Unit(broker, f"vial{number}", number, password))
    for sender in senders:
        assert sender.connected.wait(10)
    messages = [
        [units.pack(units.block(first * readings, readings, unit=sender.unit_id)) for first in range(blocks)]
        for sender in senders
    ]
    cpu_before, start = ear.counters()["cpu_s"], time.monotonic()
    for number in range(blocks):
        for sender, packed in zip(senders, messages, strict=True):
            sender.client.publish(f"{sender.base}/store/od2", packed[number], 1)
    for sender in senders:
        units.wait_until(lambda one=sender: one.through() == blocks * readings, "everything acknowledged", 300)
    elapsed = time.monotonic() - start
    time.sleep(1.1)  # the ingest thread notes its CPU time at each commit
    cpu = ear.counters()["cpu_s"] - cpu_before
    total = blocks * readings * count
    result = {
        "readings": total,
        "readings_per_message": readings,
        "units": count,
        "stored": store.counters()["readings"],
        "readings_per_s_until_acknowledged": round(total / elapsed),
        "cpu_us_per_reading": round(cpu / total * 1e6, 2),
        "cpu_us_per_message": round(cpu / blocks / count * 1e6, 1),
        "readings_per_s_of_one_core": round(total / cpu),
        "dropped_by_broker": ear.counters()["broker_dropped"],
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    for sender in senders:
        sender.close()
    ear.stop()
    store.close()
    broker.stop()
    result["bytes_per_reading"] = round(os.path.getsize(directory / "leader.sqlite") / total, 1)
    return result


def series(directory: pathlib.Path, days: float) -> dict[str, object]:
    """Charts of 600 points over a unit that measured ten times a second."""
    store = open_store(directory / "leader.sqlite")
    count = round(days * 864_000)
    start = time.process_time()
    for first in range(0, count, 6000):
        store.add(*units.block(first, min(6000, count - first)))
        store.commit()
    loaded = time.process_time() - start
    end = units.wall_ns(count) / 1e9
    times: dict[str, float] = {}
    for name, span in (("1 min", 60), ("1 h", 3600), ("3 h", 10_800), ("1 day", 86_400), ("all", days * 86_400)):
        taken = []
        for _ in range(7):
            begin = time.perf_counter()
            (line,) = store.series(2, end - span, end, 600)
            taken.append(time.perf_counter() - begin)
        times[f"{name}: {len(line['t'])} points, ms"] = round(statistics.median(taken) * 1e3, 2)
    store.close()
    size = os.path.getsize(directory / "leader.sqlite")
    return {
        "readings": count,
        "bytes_per_reading": round(size / count, 1),
        "store_cpu_us_per_reading": round(loaded / count * 1e6, 2),
        **times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ingest", "series"))
    parser.add_argument("--blocks", type=int, default=2000, help="messages of each unit")
    parser.add_argument("--readings", type=int, default=10, help="readings in a message")
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--days", type=float, default=7.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        if options.what == "ingest":
            result = ingest(directory, options.blocks, options.readings, options.units)
        else:
            result = series(directory, options.days)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
