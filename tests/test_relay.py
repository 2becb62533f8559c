"""The bridge against a real mosquitto: exact counts through every kind of outage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from bridge_doubles import EVENT, UNIT_ID, WALL_NS, LeaderDouble, WorkerDouble, reading, value_of, wait_for
from mosquitto import Mosquitto, start_mosquitto
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from stirbar.bridge import offline, topics
from stirbar.bridge.log import Log
from stirbar.bridge.relay import Relay
from stirbar.bridge.relay_settings import Settings
from stirbar.bridge.session import Broker
from stirbar.core.records import KIND_READINGS, STREAM_IDS, parse_batch

RUN_A, RUN_B = b"A" * 16, b"B" * 16
OWN = topics.UnitTopics("stirbar", UNIT_ID.hex())
SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[2])
from stirbar.bridge.log import Log
from stirbar.bridge.relay import serve
from stirbar.bridge.relay_settings import Settings
from stirbar.bridge.session import Broker
options = json.loads(sys.argv[1])
options["broker"] = Broker("127.0.0.1", options.pop("port"), "stirbar-test")
options["unit_id"] = bytes.fromhex(options["unit_id"])
serve(Settings(**options), Log("bridge"))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sb") as name:  # short: a socket's path has at most 107 bytes
        (Path(name) / "w").mkdir()
        yield Path(name)


@pytest.fixture
def broker(place: Path) -> Iterator[Mosquitto]:
    mosquitto = start_mosquitto(place)
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def leader(broker: Mosquitto) -> Iterator[LeaderDouble]:
    double = LeaderDouble(broker.port)
    yield double
    double.stop()


class Bridge:
    """A relay on a thread, or as a process of its own (to be killed)."""

    def __init__(self, place: Path, port: int, as_process: bool = False, **options: object) -> None:
        self.options = {
            "unit": "vial1",
            "unit_id": UNIT_ID.hex(),
            "worker_address": f"ipc://{place}/w",
            "spool_directory": str(place / "spool"),
            "dialect_readings_per_second": 5.0,
            "block_interval_s": 0.1,
            "reconnect_maximum_s": 0.5,
            **options,
        }
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        if as_process:
            arguments = [json.dumps({**self.options, "port": port}), json.dumps(sys.path)]
            self.process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments])
            return
        options = {**self.options, "unit_id": UNIT_ID, "broker": Broker("127.0.0.1", port, "stirbar-test")}
        self.relay = Relay(Settings(**options), Log("bridge"))  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.relay.run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(5) == 0
        else:
            self.relay.stop()
            self.thread.join(5)
            assert not self.thread.is_alive()


def met(leader: LeaderDouble, worker: WorkerDouble) -> None:
    """The whole chain stands: the bridge has described this run, and the leader has heard it."""
    run = worker.run_id.hex().encode()
    wait_for(lambda: any(run in said for said in list(leader.describes)), 10, "the worker's description at the leader")


def exact(leader: LeaderDouble, worker: WorkerDouble, seconds: float = 15) -> None:
    """Everything the worker made is stored, once, and nothing else."""
    wait_for(lambda: leader.has(worker), seconds, "everything stored")
    assert leader.missing(worker) == []
    rows = {key: len(found) for key, found in leader.rows.items() if key[0] == worker.run_id}
    assert rows == {(worker.run_id, stream): end for stream, end in worker.next.items()}
    assert [gap for gap in leader.gaps if gap[0] == worker.run_id] == []


def run_for(worker: WorkerDouble, batches: int, events: bool = True) -> None:
    for number in range(batches):
        worker.readings(1, 3)
        worker.readings(8, 1)
        if events and number % 5 == 0:
            worker.event(f"event {number}")


def test_normal_run_live_and_stored_once_in_order(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    run_for(worker, 60)
    exact(leader, worker)
    assert (leader.duplicates, leader.out_of_order) == (0, 0)
    live = [parse_batch(payload) for payload in leader.live["od1"]]
    assert sum(header.count for header, _ in live) == 180
    assert all(header.kind == KIND_READINGS for header, _ in live)
    wait_for(lambda: bool(leader.live.get("status")), 5, "status")
    counters = json.loads(leader.live["status"][-1])["bridge"]
    assert counters["gaps"] == counters["malformed"] == counters["holes"] == 0
    assert leader.states[-1] == b'{"state":"online"}'
    wait_for(lambda: not bridge.relay._spool.pending_keys(), 5, "everything acknowledged")
    bridge.stop()
    wait_for(lambda: leader.states[-1] == b'{"state":"offline"}', 5, "goodbye")
    assert leader.topic("stirring/$state")[-1] == b"disconnected"
    worker.end()


def test_broker_killed_and_restarted(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    run_for(worker, 20)
    broker.kill()
    run_for(worker, 40)
    wait_for(lambda: bridge.relay.session.connects == 1 and not bridge.relay.session.online, 5, "loss noticed")
    run_for(worker, 40)
    broker.restart()
    run_for(worker, 20)
    exact(leader, worker)
    assert bridge.relay.session.connects == 2
    assert bridge.relay.counters()["gaps"] == 0
    bridge.stop()
    worker.end()


def test_the_worker_hears_that_there_is_no_broker(
    place: Path, broker: Mosquitto, leader: LeaderDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "OFFLINE_S", 0.2)
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)

    def reported() -> list[float]:
        return [request["seconds"] for request in worker.requests if request["command"] == "fault"]

    broker.kill()
    wait_for(lambda: reported() == [offline.LEASE_S], 5, "the fault")
    broker.restart()
    wait_for(lambda: reported() == [offline.LEASE_S, 0.0], 5, "its end")
    bridge.stop()
    worker.end()


def test_bridge_killed_and_restarted_loses_nothing(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port, as_process=True)
    met(leader, worker)
    run_for(worker, 30)
    assert bridge.process is not None
    wait_for(lambda: leader.next.get((RUN_A, 1), 0) > 0, 5, "first data stored")
    os.kill(bridge.process.pid, signal.SIGKILL)
    bridge.process.wait(5)
    run_for(worker, 30)
    again = Bridge(place, broker.port, as_process=True)
    wait_for(lambda: len(leader.asks) >= 2, 10, "second question")
    run_for(worker, 30)
    exact(leader, worker)
    again.stop()
    worker.end()


def test_worker_restarted(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    first = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, first)
    run_for(first, 20)
    first.end()
    second = WorkerDouble(f"ipc://{place}/w", RUN_B)
    met(leader, second)
    run_for(second, 20)
    exact(leader, first)
    exact(leader, second)
    bridge.stop()
    second.end()


def test_bridge_started_long_before_the_worker(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    bridge = Bridge(place, broker.port)
    wait_for(lambda: bool(leader.states), 5, "online without a worker")
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    run_for(worker, 5)
    met(leader, worker)
    run_for(worker, 5)
    exact(leader, worker)
    bridge.stop()
    worker.end()


def test_holes_in_the_telemetry_are_filled(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    for number in range(60):
        worker.readings(1, 3, lose=number in (10, 11, 30))
        worker.readings(8, 1, lose=number == 59)  # the last one: only the heartbeat shows it
        if number % 10 == 0:
            worker.event(f"event {number}", lose=number == 20)
    exact(leader, worker)
    assert bridge.relay.intake.holes == 4
    assert bridge.relay.intake.refilled >= 3 * 3 + 1 + 1
    bridge.stop()
    worker.end()


def test_what_nobody_has_any_more_becomes_a_gap(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    worker.failures["resend"] = 2  # and is asked again when it refuses
    for number in range(20):
        worker.readings(1, 3, lose=5 <= number < 8, forget=5 <= number < 8)
    wait_for(lambda: leader.has(worker), 15, "stored or announced")
    assert [gap[:4] for gap in leader.gaps] == [(RUN_A, 1, 15, 24)]
    assert leader.gaps[0][4] == "not in the worker's history"
    assert leader.missing(worker) == [(1, sequence) for sequence in range(15, 24)]
    assert bridge.relay.counters()["gaps"] == 9
    bridge.stop()
    worker.end()


def test_tail_of_a_dead_run_becomes_a_gap(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    first = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, first)
    first.failures["resend"] = 10**6
    first.readings(1, 4)
    first.readings(1, 6, lose=True)
    wait_for(lambda: bridge.relay.intake._known_ends.get(1) == 10, 5, "heartbeat")
    first.end()
    second = WorkerDouble(f"ipc://{place}/w", RUN_B)
    met(leader, second)
    wait_for(lambda: leader.next.get((RUN_A, 1)) == 10, 10, "gap")
    assert [gap[:4] for gap in leader.gaps] == [(RUN_A, 1, 4, 10)]
    bridge.stop()
    second.end()


def test_spool_bound_during_an_outage_announces_exactly_what_it_gave_up(place: Path, broker: Mosquitto) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    leader = LeaderDouble(broker.port)
    bridge = Bridge(place, broker.port, spool_limit_bytes=100_000)
    met(leader, worker)
    broker.kill()
    for _ in range(60):
        worker.readings(1, 40)
        wait_for(lambda: bridge.relay.intake._cursors[1] == worker.next[1], 5, "taken")
    wait_for(lambda: bridge.relay._spool.next_sequence((RUN_A, 1)) == 2400, 5, "spooled")
    lost = bridge.relay._spool.lost
    assert lost > 0
    broker.restart()
    wait_for(lambda: leader.has(worker), 20, "stored or announced")
    gone = {sequence for _, _, first, end, _ in leader.gaps for sequence in range(first, end)}
    assert gone == {sequence for _, sequence in leader.missing(worker)}
    assert len(gone) == lost
    assert {reason for *_, reason in leader.gaps} <= {"spool full", "spool full: thinned"}
    assert leader.duplicates == 0
    bridge.stop()
    worker.end()
    leader.stop()


def test_leader_away_while_the_broker_stays(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    run_for(worker, 10)
    exact(leader, worker)
    leader.stop()
    run_for(worker, 20)
    wait_for(lambda: bridge.relay.sender._on_way_bytes > 0, 5, "sent to nobody")
    leader.start()
    run_for(worker, 10)
    exact(leader, worker)
    assert leader.out_of_order > 0
    assert bridge.relay.sender.rewinds > 0
    bridge.stop()
    worker.end()


def test_window_bounds_what_is_sent_to_a_leader_that_never_commits(place: Path, broker: Mosquitto) -> None:
    from stirbar.bridge import sender

    leader = LeaderDouble(broker.port, acknowledges=False)
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    for _ in range(40):
        worker.readings(1, 400)
    wait_for(lambda: bridge.relay._spool.next_sequence((RUN_A, 1)) == 16000, 10, "spooled")
    wait_for(lambda: bridge.relay.sender._on_way_bytes >= sender.WINDOW_BYTES, 5, "window full")
    assert bridge.relay.sender._on_way_bytes < sender.WINDOW_BYTES + 3 * sender.MESSAGE_BYTES
    leader.acknowledges = True
    leader._ack({RUN_A.hex(): {"1": leader.next[(RUN_A, 1)]}}, None)
    exact(leader, worker)
    assert leader.duplicates == 0
    bridge.stop()
    worker.end()
    leader.stop()


def test_older_leader_is_refused_and_a_lost_store_is_filled_again(
    place: Path, broker: Mosquitto, leader: LeaderDouble
) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    leader.epoch = 7
    run_for(worker, 20)
    exact(leader, worker)
    wait_for(lambda: bridge.relay._spool.epoch == 7, 5, "epoch")
    leader.epoch = 6
    leader._ack({}, {RUN_A.hex(): {"1": 0}})
    wait_for(lambda: bridge.relay.sender.stale_epochs == 1, 5, "refusal")
    leader.epoch = 8
    with leader.lock:
        leader.rows.clear()
        leader.next.clear()
    leader._ack({}, {RUN_A.hex(): {"1": 0, "8": 0, str(EVENT): 0}})
    exact(leader, worker)
    bridge.stop()
    worker.end()


def test_acknowledge_by_the_broker(place: Path, broker: Mosquitto) -> None:
    leader = LeaderDouble(broker.port, acknowledges=False)
    leader.answers = False
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port, end_to_end=False)
    met(leader, worker)
    run_for(worker, 30)
    exact(leader, worker)
    wait_for(lambda: not bridge.relay._spool.pending_keys(), 5, "PUBACK counted")
    assert leader.asks == []
    bridge.stop()
    worker.end()
    leader.stop()


def test_full_disk_is_told_and_survived(
    place: Path, broker: Mosquitto, leader: LeaderDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from stirbar.bridge import intake, spool

    monkeypatch.setattr(intake, "FULL_RETRY_S", 0.2)
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    run_for(worker, 5)
    exact(leader, worker)
    real_write, full = os.write, threading.Event()
    full.set()

    def write(descriptor: int, data: bytes) -> int:
        if full.is_set() and descriptor == bridge.relay._spool._write_fd:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    monkeypatch.setattr(spool.os, "write", write)
    run_for(worker, 30)
    wait_for(lambda: leader.states[-1] == b'{"state":"online","spool":"full"}', 5, "leader told")
    full.clear()
    run_for(worker, 5)
    exact(leader, worker)
    wait_for(lambda: leader.states[-1] == b'{"state":"online"}', 5, "leader told again")
    bridge.stop()
    worker.end()


def test_frozen_broker_stops_nothing(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    broker.freeze()
    for _ in range(200):
        worker.readings(1, 40)
    wait_for(lambda: bridge.relay._spool.next_sequence((RUN_A, 1)) == 8000, 10, "spooled meanwhile")
    broker.thaw()
    exact(leader, worker)
    bridge.stop()
    worker.end()


def test_sigterm_ends_within_two_seconds_even_without_a_broker(place: Path) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, 1, as_process=True)
    wait_for(lambda: any(request["command"] == "resend" for request in worker.requests), 10, "bridge at work")
    started = time.monotonic()
    bridge.stop()
    assert time.monotonic() - started < 2
    worker.end()


def test_killed_bridge_is_lost(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port, as_process=True)
    met(leader, worker)
    assert bridge.process is not None
    bridge.process.kill()
    bridge.process.wait(5)
    wait_for(lambda: leader.states[-1] == b'{"state":"lost"}', 10, "the will")
    worker.end()


def test_raw_trace_is_stored_as_chunks(
    place: Path, broker: Mosquitto, leader: LeaderDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stirbar.bridge import intake

    monkeypatch.setattr(intake, "RAW_CHUNK_S", 0.3)
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port, with_raw=True)
    met(leader, worker)
    for _ in range(30):
        worker.trace(90)
    exact(leader, worker)
    assert leader.store_messages < 30
    assert sum(parse_batch(payload)[0].count for payload in leader.live["raw"]) == 2700
    bridge.stop()
    worker.end()


# Commands


def publish(leader: LeaderDouble, topic: str, payload: str, retain: bool = False, **properties: object) -> None:
    held = Properties(PacketTypes.PUBLISH)
    for name, value in properties.items():
        setattr(held, name, value)
    leader.client.publish(topic, payload, 1, retain, held).wait_for_publish(5)


def done(worker: WorkerDouble, command: str) -> list[dict[str, object]]:
    return [request for request in worker.requests if request["command"] == command]


def test_dialect_commands_reach_the_worker(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    publish(leader, "pioreactor/vial1/$experiment/stirring/target_rpm/set", "111", retain=True)
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    publish(leader, "pioreactor/vial1/exp one/stirring/target_rpm/set", "500.5")
    publish(leader, "pioreactor/vial1/$experiment/od_reading/ir_led_intensity/set", "70")
    publish(leader, "pioreactor/vial1/another/stirring/target_rpm/set", "1")
    publish(leader, "pioreactor/vial1/exp one/stirring/target_rpm/set", "fast")
    publish(leader, "pioreactor/vial1/exp one/stirring/target_rpm/set", "NaN")
    publish(leader, "pioreactor/vial1/exp one/pumps/volume/set", "3")
    publish(leader, "pioreactor/$broadcast/$experiment/od_reading/$state/set", "sleeping")
    publish(leader, "pioreactor/$broadcast/exp one/od_reading/$state/set", "ready")
    wait_for(lambda: bool(done(worker, "start")), 5, "last command")
    sets = [(request["job"], request["setting"], request["value"]) for request in done(worker, "set")]
    assert sets == [("stirring", "target_rpm", 500.5), ("od_reading", "ir_led_intensity", 70.0)]
    assert [request["job"] for request in done(worker, "stop")] == ["od_reading"]
    assert bridge.relay.counters()["malformed"] == 3
    assert bridge.relay.counters()["ignored"] == 1
    bridge.stop()
    worker.end()


def test_assignment_moves_the_dialect_to_the_new_experiment(
    place: Path, broker: Mosquitto, leader: LeaderDouble
) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    worker.readings(1, 1)
    wait_for(lambda: len(leader.topic("vial1/exp one/od_reading/od1")) > 0, 5, "reading in the dialect")
    publish(leader, "pioreactor/vial1/$experiment/assignment", "exp two", retain=True)
    wait_for(lambda: worker.experiment == "exp two", 5, "worker told")
    wait_for(lambda: leader.topic("vial1/exp two/od_reading/$state")[-1:] == [b"ready"], 5, "new experiment")
    wait_for(lambda: leader.topic("vial1/exp one/od_reading/od1")[-1] == b"", 5, "old reading cleared")
    assert leader.topic("vial1/exp one/od_reading/$state")[-1] == b"disconnected"
    worker.readings(1, 1)
    wait_for(lambda: len(leader.topic("vial1/exp two/od_reading/od1")) > 0, 5, "reading in the new experiment")
    bridge.stop()
    worker.end()


def test_mqtt_request_and_reply(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    body = {"id": "x" * 16, "command": "start", "job": "stirring", "epoch": 3, "expires_at": time.time() + 30}
    publish(leader, OWN.command, json.dumps(body), ResponseTopic="answers/here", CorrelationData=b"\x01\x02")
    wait_for(lambda: len(leader.replies) == 1, 5, "reply")
    assert leader.replies[0] == ("answers/here", {"id": "x" * 16, "ok": True, "result": {}}, b"\x01\x02")
    assert "epoch" not in done(worker, "start")[0]
    old = {**body, "id": "old", "expires_at": time.time() - 12}
    publish(leader, OWN.command, json.dumps(old))
    wait_for(lambda: len(leader.replies) == 2, 5, "refusal of an old one")
    assert leader.replies[1][0] == OWN.reply
    assert leader.replies[1][1]["error"]["message"].startswith("the command expired 12.")
    publish(leader, OWN.command, json.dumps({**body, "id": 5, "epoch": 2}))
    publish(leader, OWN.command, json.dumps({**body, "id": 6, "command": "resend", "stream": "od1"}))
    publish(leader, OWN.command, "[1, 2]")
    publish(leader, OWN.command, "{")
    wait_for(lambda: bridge.relay.remote.malformed == 2 and len(leader.replies) == 4, 5, "malformed")
    assert [reply[1]["ok"] for reply in leader.replies[2:]] == [False, False]
    assert "newer leader" in leader.replies[2][1]["error"]["message"]
    assert len(done(worker, "start")) == 1
    worker.end()
    wait_for(lambda: leader.topic("stirring/$state")[-1] == b"lost", 10, "lost worker noticed")
    publish(leader, OWN.command, json.dumps({**body, "id": 7}))
    wait_for(lambda: leader.replies[-1][1]["id"] == 7, 5, "refusal without a worker")
    assert leader.replies[-1][1]["ok"] is False
    bridge.stop()


def test_lateness_is_by_the_leaders_clock(
    place: Path, broker: Mosquitto, leader: LeaderDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    told = {"epoch": 1, "through": {}, "t": time.time() + 3600}  # the unit's clock is an hour behind
    publish(leader, OWN.ack, json.dumps(told))
    wait_for(lambda: bridge.relay.sender.leader_time.at(time.monotonic()) is not None, 5, "the leader's time")
    late = {"id": "l" * 16, "command": "start", "job": "stirring", "expires_at": time.time() + 3590}
    publish(leader, OWN.command, json.dumps(late))
    wait_for(lambda: len(leader.replies) == 1, 5, "a refusal")
    assert leader.replies[0][1]["error"]["message"].startswith("the command expired 10.")
    in_time = {"id": "i" * 16, "command": "start", "job": "stirring", "expires_at": time.time() + 3605}
    publish(leader, OWN.command, json.dumps(in_time))
    wait_for(lambda: len(leader.replies) == 2, 5, "a reply")
    assert leader.replies[1][1]["ok"] and len(done(worker, "start")) == 1
    # the worker looks at the time too, by the clock of this machine
    assert 0 < done(worker, "start")[0]["expires_at"] - time.time() <= 5.1
    publish(leader, OWN.ack, json.dumps({**told, "t": "noon"}))
    wait_for(lambda: bridge.relay.sender.malformed == 1, 5, "counted")
    bridge.stop()
    worker.end()


def test_a_repeated_command_is_done_once_though_the_worker_was_restarted(
    place: Path, broker: Mosquitto, leader: LeaderDouble
) -> None:
    first = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, first)
    body = {"id": "x" * 16, "command": "start", "job": "stirring"}
    publish(leader, OWN.command, json.dumps(body))
    wait_for(lambda: len(leader.replies) == 1, 5, "reply")
    first.end()
    second = WorkerDouble(f"ipc://{place}/w", RUN_B)
    met(leader, second)
    publish(leader, OWN.command, json.dumps(body), CorrelationData=b"again")
    wait_for(lambda: len(leader.replies) == 2, 5, "the same reply")
    assert leader.replies[1][1] == leader.replies[0][1] and leader.replies[1][2] == b"again"
    assert (len(done(first, "start")), len(done(second, "start"))) == (1, 0)
    publish(leader, OWN.command, json.dumps({**body, "id": "x"}))  # too short to be unique
    wait_for(lambda: len(leader.replies) == 3 and len(done(second, "start")) == 1, 5, "done")
    bridge.stop()
    second.end()


def test_the_disk_is_waited_for_at_most_once_a_second(
    place: Path, broker: Mosquitto, leader: LeaderDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stirbar.bridge import spool

    at: list[float] = []
    real = os.fdatasync
    monkeypatch.setattr(spool.os, "fdatasync", lambda descriptor: (at.append(time.monotonic()), real(descriptor))[1])
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)  # a block every tenth of a second
    met(leader, worker)

    def three() -> bool:
        worker.readings(1, 1)
        return len(at) >= 3

    wait_for(three, 10, "the third sync")
    assert at[1] - at[0] >= 0.99 and at[2] - at[1] >= 0.99
    assert at[2] - at[0] < 3.0
    exact(leader, worker)
    bridge.stop()
    worker.end()


def test_nothing_is_dosed_right_after_a_connect(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    for number, command in enumerate(("dose", "exchange", "dose_stop")):
        publish(leader, OWN.command, json.dumps({"id": number, "command": command, "pump": "media", "ml": 1}))
    wait_for(lambda: len(leader.replies) == 3, 5, "replies")
    assert [reply[1]["ok"] for reply in leader.replies] == [False, False, True]
    assert "nothing is dosed within 10 s of a connect" in leader.replies[0][1]["error"]["message"]
    bridge.relay.remote.connected_at -= 10.0
    publish(leader, OWN.command, json.dumps({"id": 4, "command": "dose", "pump": "media", "ml": 1}))
    wait_for(lambda: len(leader.replies) == 4, 5, "a reply after it")
    assert leader.replies[3][1]["ok"] and len(done(worker, "dose")) == 1
    bridge.stop()
    worker.end()


def test_malformed_and_foreign_telemetry_is_counted(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    good = worker.header(KIND_READINGS, 1, 88, 2, 0)
    worker.raw_message([b"reading/od1", good.pack(), b"too short"])
    worker.raw_message([b"reading/od1", b"no header", b""])
    worker.raw_message([b"one frame"])
    worker.raw_message([b"status", worker.header(4, 17, 0, 1, 0).pack(), b"[" * 100_000])
    good.unit_id = b"?" * 16
    worker.raw_message([b"reading/od1", good.pack(), reading(1, 0) + reading(1, 1)])
    run_for(worker, 5)
    exact(leader, worker)
    assert bridge.relay.malformed == 4
    assert bridge.relay.foreign == 1
    bridge.stop()
    worker.end()


def test_dialect_says_what_the_worker_does(place: Path, broker: Mosquitto, leader: LeaderDouble) -> None:
    worker = WorkerDouble(f"ipc://{place}/w", RUN_A)
    bridge = Bridge(place, broker.port)
    met(leader, worker)
    worker.setting("stirring", "target_rpm", 500.0)
    worker.event("stirrer started")
    worker.readings(1, 2)
    worker.readings(8, 1)
    wait_for(lambda: len(leader.topic("vial1/exp one/stirring/measured_rpm")) > 0, 5, "rpm")
    wait_for(lambda: len(leader.topic("vial1/exp one/od_reading/od1")) > 0, 5, "od")
    assert json.loads(leader.topic("vial1/exp one/od_reading/od1")[-1])["od"] == 1.0
    assert leader.topic("vial1/exp one/stirring/target_rpm") == [b"500.0"]
    assert json.loads(leader.topic("/logs/app/notice")[0])["message"] == "stirrer started"
    assert leader.topic("vial1/$experiment/monitor/$state")[0] == b"ready"
    late: list[tuple[str, bytes]] = []
    ready = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _, __, message: (late.append((message.topic, message.payload)), ready.set())[0]
    client.connect("127.0.0.1", broker.port)
    client.subscribe("pioreactor/vial1/exp one/stirring/$state")
    client.loop_start()
    assert ready.wait(5), "states are retained"
    assert late[0][1] == b"ready"
    client.loop_stop()
    bridge.stop()
    worker.end()


def test_value_and_wall_time_of_the_double_are_what_the_tests_assume() -> None:
    assert value_of(reading(1, 7)) == 7.0
    assert WALL_NS % 1_000_000 == 0
    assert STREAM_IDS["event"] == EVENT
