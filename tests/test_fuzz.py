"""What nobody of ours would send or write: to a worker's sockets, over MQTT, in the spool's and in recordings' files.

Nothing may end by it, hang, or grow without bound; what cannot be read is refused or reported, and the rest goes on.
"""

from __future__ import annotations

import json
import pathlib
import random
import tempfile
import time
import types
import zlib

import pytest
import units
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import STOP_S, RunningWorker
from stirbar.bridge import topics
from stirbar.bridge.dialect import Dialect
from stirbar.bridge.ingest import Ingest
from stirbar.bridge.leader_time import LeaderTime
from stirbar.bridge.machine import Machine
from stirbar.bridge.remote import Remote
from stirbar.bridge.spool import Spool
from stirbar.bridge.store import open_store
from stirbar.core.commands import COMMANDS, FAILED, Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.recording import FRAME, MAGIC, Recording, RecordingError
from stirbar.core.twin import Twin
from stirbar.web.wire import to_json

from .test_recording import record_twin
from .test_spool import RUN_A, RUN_B, UNIT, Reports, everything, fill
from .test_spool import payload as spool_payload

ANSWER_S = 2.0
GROWTH_KB = 20_000
LONG = 40  # times as many cases in a soak
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

# numbers and words on which code stumbles, and words that mean something to a worker
ODD = st.sampled_from(
    [
        None,
        True,
        "",
        "\0",
        "\ud800",
        "é" * 200,
        "a/b",
        "$x",
        0,
        -1,
        2**31,
        2**63,
        10**400,
        -(10**400),
        1e308,
        -1e308,
        1e-320,
        float("nan"),
        float("inf"),
        "nan",
        "1e999",
        [],
        {},
        [[]],
        "stirring",
        "od_reading",
        "temperature_automation",
        "leds",
        "bioreactor",
        "monitor",
        "target_rpm",
        "ir_led_intensity",
        "$state",
        "A",
        "media",
        "begin",
        "end",
        "od2",
    ]
)
JSON = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["id", "expires_at", "job", "setting", "value", "seconds", "channel", "channels", "clear", "set", "name", "stream",
     "from_sequence", "limit", "pump", "ml", "media_ml", "alt_media_ml", "waste_ml", "continuously", "source", "finish",
     "source_of_event", "dose", "code", "step", "tests", "stop_jobs", "reload"]
)  # fmt: skip
REQUESTS = st.builds(
    lambda command, fields: {"command": command, **fields},
    st.sampled_from([name for name in COMMANDS if name != "restart"]) | ODD,  # whose answer is another process
    st.dictionaries(FIELDS, ODD | JSON, max_size=6),
)
FRAMES = st.lists(
    st.binary(max_size=60) | st.sampled_from([b"", b"{", b"[" * 5000, b"\xff" * 1000]), min_size=1, max_size=5
)


def encoded(value):
    return json.dumps(value).encode()


# --- a worker's sockets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker():
    worker = RunningWorker((), None, {})
    yield worker
    try:
        worker.process.terminate()
        assert worker.process.wait(STOP_S) == 0, worker.errors()
    finally:
        worker.stop(check=False)  # a flood may cost data, which are counted


@pytest.fixture
def dealer(worker):
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"{worker.address}/command")
    yield socket
    socket.close()
    context.term()


def memory_kb(worker):
    text = pathlib.Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def alive(worker, dealer, place):
    """It answers in time, and what it answered to what came before is whole."""
    assert worker.process.poll() is None, worker.errors()
    begun = time.monotonic()
    assert worker.client.command("describe", timeout_s=ANSWER_S)["unit"] == "w"
    assert time.monotonic() - begun < ANSWER_S
    while dealer.poll(0):  # the answers, which must be whole
        answer = json.loads(dealer.recv_multipart()[place])
        assert isinstance(answer["ok"], bool)
        assert answer["ok"] or not answer["error"]["message"].startswith(FAILED), answer


def send_frames(worker, dealer, examples):
    @settings(max_examples=examples, derandomize=examples < 1000, **QUIET)
    @given(batch=st.lists(FRAMES, min_size=5, max_size=10))
    def one(batch):
        for frames in batch:
            dealer.send_multipart(frames)
        alive(worker, dealer, -1)  # behind the frames that came before the last, which are where it goes back to

    one()


def send_requests(worker, dealer, examples):
    @settings(max_examples=examples, derandomize=examples < 1000, **QUIET)
    @given(batch=st.lists(REQUESTS, min_size=5, max_size=10))
    def one(batch):
        for request in batch:
            dealer.send_multipart([b"", encoded(request)])
        alive(worker, dealer, 1)

    one()


def test_frames_at_random_are_answered(worker, dealer):
    send_frames(worker, dealer, 40)


def test_requests_at_random_are_answered(worker, dealer):
    send_requests(worker, dealer, 120)


@pytest.mark.soak
def test_a_worker_does_not_grow_by_what_it_refuses(worker, dealer):
    send_requests(worker, dealer, 40 * LONG)
    before = memory_kb(worker)
    send_requests(worker, dealer, 40 * LONG)
    send_frames(worker, dealer, 40 * LONG)
    assert memory_kb(worker) - before < GROWTH_KB


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", '\ud83e"'])
def test_half_a_character_is_no_text(worker, dealer, text):
    """Names are written to files and sent on as UTF-8, which has no such thing."""
    for request in ({"command": "experiment", "name": text}, {"command": text}, {"id": text}, {text: 1}, text):
        dealer.send_multipart([b"", encoded(request)])
        assert dealer.poll(ANSWER_S * 1000), f"no answer to {request!r}; {worker.errors()[-500:]}"
        answer = json.loads(dealer.recv_multipart()[1])
        assert not answer["ok"] and answer["error"]["field"] == "request"


def test_a_request_larger_than_memory_should_hold_is_not_taken(worker, dealer):
    before = memory_kb(worker)
    for _ in range(5):
        dealer.send_multipart([b"", b" " * (64 << 20)])
    assert dealer.poll(500) == 0  # disconnected, not answered
    assert worker.client.command("describe", timeout_s=ANSWER_S)["unit"] == "w"
    assert memory_kb(worker) - before < GROWTH_KB


def test_a_mistake_of_ours_in_one_command_is_answered_and_told(tmp_path, monkeypatch):
    twin = Twin(load_config(overrides=parse_overrides(["unit.simulate=1"])), str(tmp_path))
    commands, answers = Commands(twin.host), []
    monkeypatch.setattr(Commands, "do_identify", lambda self, request, reply: 1 / 0)
    commands.handle({"command": "identify", "id": 7}, lambda answer, frames: answers.append(answer))
    (answer,) = answers
    assert answer["id"] == 7 and answer["error"]["message"].startswith(FAILED) and commands.refused == 1
    told = [payload for topic, _, payload in twin.run(1) if topic == b"event"]
    assert any(b"ZeroDivisionError" in payload and b'"internal"' in payload for payload in told)


# --- MQTT ------------------------------------------------------------------------------------------------------------


class Link:
    """Takes what a bridge would pass on to its worker, as text, which it must be."""

    def __init__(self):
        self.taken = 0

    def request(self, body, replied, now):
        encoded(body)
        self.taken += 1
        replied({"id": body["id"], "ok": True, "result": {}}, [])
        return True

    def ask(self, command, replied, now):
        encoded(command)
        self.taken += 1
        replied({"ok": False, "error": {"message": "no"}}, [])
        return True


@pytest.fixture
def remote(tmp_path):
    spool = Spool(str(tmp_path), UNIT, 1 << 20, Reports())
    said = []
    own = topics.UnitTopics("stirbar", UNIT.hex())
    dialect = Dialect("pioreactor", "vial1", 0.2, lambda *message: said.append(message) or True)
    assignment = topics.assignment("pioreactor", "vial1")
    log = lambda *line: None  # noqa: E731
    remote = Remote(
        Link(), Machine({}, Link(), log), dialect, spool, LeaderTime(), own, assignment, lambda *a: said.append(a), log
    )
    remote.worker_present, remote.own, remote.said = True, own, said
    yield remote
    spool.close()


LEVELS = st.sampled_from(
    [
        "pioreactor",
        "vial1",
        "$broadcast",
        "$no_experiment_present",
        "growth",
        "stirring",
        "od_reading",
        "leds",
        "monitor",
        "temperature_automation",
        "target_rpm",
        "ir_led_intensity",
        "$state",
        "set",
        "assignment",
        "",
        "+",
        "#",
        "é",
        "\0",
    ]
) | st.text(max_size=10)
TOPICS = st.lists(LEVELS, min_size=1, max_size=7).map("/".join)
SET_TOPICS = st.builds(
    lambda unit, experiment, job, setting: f"pioreactor/{unit}/{experiment}/{job}/{setting}/set",
    *(st.sampled_from(["vial1", "$broadcast"]), LEVELS), *(LEVELS, LEVELS),
)  # fmt: skip
PAYLOADS = (
    st.binary(max_size=100)
    | st.builds(encoded, REQUESTS)
    | st.builds(
        lambda fields, epoch, until: encoded({"id": "x", **fields, "epoch": epoch, "expires_at": until}),
        REQUESTS,
        ODD,
        ODD,
    )
    | st.sampled_from(
        [b"[" * 60_000, b"9" * 5000, b"1" + b"0" * 400, b"x" * 70_000, b'"\\ud800"', b"ready", b"1e400", b"-0"]
    )
)


def hear(remote, examples):
    @settings(max_examples=examples, derandomize=examples < 1000, **QUIET)
    @given(
        topic=TOPICS | SET_TOPICS | st.sampled_from(["command", "assignment"]), payload=PAYLOADS, retain=st.booleans()
    )
    def one(topic, payload, retain):
        topic = {"command": remote.own.command, "assignment": remote._assignment_topic}.get(topic, topic)
        message = types.SimpleNamespace(topic=topic, payload=payload, retain=retain, properties=None)
        remote.handle(message, time.monotonic())
        counted = remote.commands + remote.malformed + remote.refused + remote.ignored
        assert counted or remote.assigned is not None

    one()
    assert remote._link.taken > examples / 100 and remote.malformed > examples / 100 and remote.ignored


def test_topics_and_payloads_at_random_do_not_end_the_bridge(remote):
    hear(remote, 600)


@pytest.mark.soak
def test_topics_and_payloads_at_random_do_not_end_the_bridge_for_long(remote):
    hear(remote, 600 * LONG)


# --- the leader's ear ------------------------------------------------------------------------------------------------


def flipped(data, seed, flips):
    """The same bytes with some bits turned over, or cut, or with others behind."""
    chance = random.Random(seed)
    changed = bytearray(data)
    for _ in range(flips if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.2:
        del changed[chance.randrange(len(changed) + 1) :]
    return bytes(changed) + (chance.randbytes(50) if chance.random() < 0.1 else b"")


MINE = units.identity(1).hex()
WHOLE = [
    units.pack(units.block(0, 10)),
    units.pack(units.event(0)),
    units.pack(units.gap(5, 3)),
    units.pack(units.chunk(0, 8)),
]
DESCRIBED = st.builds(
    lambda fields, name: encoded({"unit": name, "unit_id": MINE, **fields}),
    st.dictionaries(
        st.sampled_from(["unit", "unit_id", "run_id", "experiment", "jobs", "channels", "version", "simulated"]),
        ODD | JSON,
        max_size=3,
    ),
    st.sampled_from(["vial1", "\ud800", "", "é"]),
)
LEAVES = st.sampled_from(
    [
        "describe",
        "state",
        "ask",
        "reply",
        "ack",
        "command",
        "live/status",
        "live/event",
        "live/od2",
        "live/raw",
        "store/od2",
        "store/event",
        "store/raw",
        "store/od9",
        "nothing",
        "",
    ]
)
EVENTS = st.builds(
    lambda fields: units.pack(units.event(1, **fields)),
    st.dictionaries(
        st.sampled_from(["level", "source", "code", "message", "wall_ns", "value"]), ODD | JSON, max_size=4
    ),
)
SAID = (
    st.builds(flipped, st.sampled_from(WHOLE), st.integers(0, 10**6), st.integers(0, 6))
    | st.builds(
        encoded, st.dictionaries(st.sampled_from(["state", "runs", "epoch", "unit", "jobs", "counters"]), ODD | JSON)
    )
    | DESCRIBED
    | EVENTS
    | st.binary(max_size=80)
    | st.sampled_from([b"[" * 60_000, b'{"state": "online"}', b"9" * 5000])
)


@pytest.fixture
def ear(tmp_path):
    """An ingest with its store, without a broker: what comes is put into its hand."""
    store = open_store(tmp_path / "leader.sqlite")
    logged = []
    ear = Ingest(
        store,
        host="127.0.0.1",
        port=1,
        username="",
        password="",
        topic_root="pioreactor",
        data_root="stirbar",
        log=lambda level, text, key="": logged.append((level, text)),
    )
    ear.listen(lambda kind, unit, value: to_json({"unit": unit, **value}).encode())
    ear.logged = logged
    yield ear
    store.close()


def hear_units(ear, examples):
    @settings(max_examples=examples, derandomize=examples < 1000, **QUIET)
    @given(leaf=LEAVES, said=SAID, foreign=TOPICS, chosen=st.integers(0, 9), retain=st.booleans())
    def one(leaf, said, foreign, chosen, retain):
        topic = foreign if chosen == 0 else f"stirbar/{MINE}/{leaf}"
        ear._message(types.SimpleNamespace(topic=topic, payload=said, retain=retain, properties=None))
        if chosen == 1:
            ear._commit(time.monotonic())
        to_json(ear.units()).encode()
        assert ear.counters()["internal_errors"] == 0, ear.logged[-1]

    one()
    ear._commit(time.monotonic())
    assert ear.counters()["malformed"] > examples / 20
    expected = ("call themselves", "follows a leader of epoch")  # what a unit may rightly make the leader say
    assert [text for level, text in ear.logged if level == "error" and not any(part in text for part in expected)] == []


def test_whatever_units_say_the_ear_goes_on(ear):
    hear_units(ear, 800)
    ear._message(
        types.SimpleNamespace(topic=f"stirbar/{MINE}/store/od2", payload=WHOLE[0], retain=False, properties=None)
    )
    ear._commit(time.monotonic())
    assert ear.counters()["internal_errors"] == 0


@pytest.mark.soak
def test_whatever_units_say_the_ear_goes_on_for_long(ear):
    hear_units(ear, 800 * LONG)


@pytest.mark.parametrize("said", ["unit", "jobs", "message", "code", "setting"])
def test_half_a_character_from_a_unit_is_dropped(ear, said):
    """The store takes UTF-8 only; one unit's bad name must not keep the others' data from being committed."""
    bad = "x\ud800"
    leaf, payload = {
        "unit": ("describe", encoded({"unit": bad, "unit_id": MINE})),
        "jobs": ("describe", encoded({"unit": "vial1", "unit_id": MINE, "jobs": {bad: bad}})),
        "message": ("store/event", units.pack(units.event(0, message=bad))),
        "code": ("store/event", units.pack(units.event(0, code=bad, source=bad))),
        "setting": ("live/status", encoded({bad: bad})),
    }[said]
    for topic, body in ((leaf, payload), ("store/od2", WHOLE[0])):
        ear._message(
            types.SimpleNamespace(topic=f"stirbar/{MINE}/{topic}", payload=body, retain=False, properties=None)
        )
    ear._commit(time.monotonic())
    to_json(ear.units()).encode()
    json.dumps(ear._store.units()[0]["unit"], ensure_ascii=False).encode()
    assert ear.counters()["internal_errors"] == 0
    assert ear._store.counters()["readings"] == 10 and ear._store.counters()["commits"] == 1


# --- files -----------------------------------------------------------------------------------------------------------

DAMAGE = st.tuples(st.integers(0, 10**6), st.integers(0, 12))


def spoil(path, seed, flips):
    """Bits turned over, the end cut off or junk put behind; or another file altogether."""
    chance = random.Random(seed)
    data = path.read_bytes()
    path.write_bytes(chance.randbytes(chance.randrange(2000)) if chance.random() < 0.1 else flipped(data, seed, flips))


def open_spoiled_spools(examples):
    @settings(max_examples=examples, derandomize=examples < 1000, **QUIET)
    @given(damage=st.lists(st.tuples(st.integers(0, 30), DAMAGE), min_size=1, max_size=4))
    def one(damage):
        with tempfile.TemporaryDirectory() as name:
            directory, reports = pathlib.Path(name), Reports()
            spool = Spool(name, UNIT, 1 << 20, reports, 2000)
            wanted = fill(spool, RUN_A, 1, 0, 200) + fill(spool, RUN_B, 8, 0, 100)
            spool.acknowledge((RUN_A, 1), 50)
            spool.save_positions()
            spool.close()
            files = sorted(path for path in directory.iterdir() if path.suffix in (".seg", ".idx", ".json"))
            for number, (seed, flips) in damage:
                spoil(files[number % len(files)], seed, flips)
            again = Spool(name, UNIT, 1 << 20, reports, 2000)
            assert set(everything(again)) <= set(wanted)  # nothing that was never written
            again.append([spool_payload(RUN_A, 1, 200)])
            again.acknowledge((RUN_A, 1), 210)
            for key in again.pending_keys():
                again.find(key, again.next_sequence(key))
            again.save_positions()
            again.close()

    one()


def test_a_spoiled_spool_gives_what_is_whole_and_goes_on():
    open_spoiled_spools(60)


@pytest.mark.soak
def test_a_spoiled_spool_gives_what_is_whole_and_goes_on_for_long():
    open_spoiled_spools(150 * LONG)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path, _, _ = record_twin(tmp_path_factory.mktemp("recorded"), before_s=1, seconds=4)
    return path.read_bytes()


def resealed(data, seed, flips):
    """The file with bits turned over inside one of its first frames, whose checksum agrees with them."""
    frame, offset = random.Random(seed).randrange(4), len(MAGIC)
    for _ in range(frame):
        offset += FRAME.size + FRAME.unpack_from(data, offset)[0]
    length = FRAME.unpack_from(data, offset)[0]
    start = offset + FRAME.size
    body = flipped(data[start : start + length], seed, flips)
    return data[:offset] + FRAME.pack(len(body), zlib.crc32(body)) + body + data[start + length :]


def read_spoiled_recordings(recorded, path, examples):
    read = refused = 0

    @settings(max_examples=examples, derandomize=examples < 1000, **QUIET)
    @given(damage=DAMAGE, place=st.sampled_from(["start", "anywhere", "inside"]))
    def one(damage, place):
        nonlocal read, refused
        seed, flips = damage
        cut = 4000 if place == "start" else len(recorded)
        path.write_bytes(
            resealed(recorded, seed, flips) if place == "inside"
            else flipped(recorded[:cut], seed, flips) + recorded[cut:]
        )  # fmt: skip
        try:
            with Recording(str(path)) as recording:
                for header, body in recording:
                    assert len(body) <= len(recorded) * 20 and header.count >= 0
                recording.information()
                assert 0 <= recording.missing_bytes <= path.stat().st_size
            read += 1
        except RecordingError as error:
            refused += 1
            assert str(error)

    one()
    assert read > examples / 10, (read, refused)


def test_a_spoiled_recording_is_read_as_far_as_it_goes(recorded, tmp_path):
    read_spoiled_recordings(recorded, tmp_path / "spoiled", 60)


@pytest.mark.soak
def test_a_spoiled_recording_is_read_as_far_as_it_goes_for_long(recorded, tmp_path):
    read_spoiled_recordings(recorded, tmp_path / "spoiled", 60 * LONG)
