"""Spool and sender under random trouble: whatever happens, the leader ends with everything once, or a gap for it."""

from __future__ import annotations

import json
import random
import tempfile

import pytest
from bridge_doubles import UNIT_ID
from stirbar.bridge import topics
from stirbar.bridge.log import Log
from stirbar.bridge.sender import Sender
from stirbar.bridge.spool import Spool
from stirbar.core.records import KIND_GAP, KIND_READINGS, Header, parse_batch

OWN = topics.UnitTopics("stirbar", UNIT_ID.hex())
RUNS = (b"A" * 16, b"B" * 16, b"C" * 16)


class World:
    """A unit's spool and sender, a network that loses what is on the way, and a leader that may forget."""

    def __init__(self, directory: str, seed: int, limit: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.limit = limit
        self.now = 100.0
        self.made: dict[tuple[bytes, int], int] = {}
        self.to_leader: list[tuple[str, bytes]] = []
        self.to_unit: list[bytes] = []
        self.got: dict[tuple[bytes, int], dict[int, str]] = {}
        self.next: dict[tuple[bytes, int], int] = {}
        self.lost_by_spool = 0
        self.connected = False
        self.open()

    def open(self) -> None:
        self.spool = Spool(self.directory, UNIT_ID, self.limit, lambda _: None, 2_000)
        self.spool.current_run = RUNS[-1]
        self.sender = Sender(self.spool, OWN, "u", True, self.publish, Log("test"))

    def publish(self, topic: str, payload: bytes, qos: int) -> int:
        if not self.connected:
            return 0
        self.to_leader.append((topic, payload))
        return 1

    def make(self) -> None:
        payloads = []
        for _ in range(self.random.randrange(1, 4)):
            key = (self.random.choice(RUNS), self.random.choice((1, 8)))
            first, count = self.made.get(key, 0), self.random.randrange(1, 9)
            header = Header(KIND_READINGS, key[1], 8, count, first, UNIT_ID, key[0], bytes(16), 0, 0, 0, "e")
            payloads.append(header.pack() + b"".join((first + n).to_bytes(8, "little") for n in range(count)))
            self.made[key] = first + count
        self.spool.append(payloads)

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            self.sender.online(self.now)

    def disconnect(self) -> None:
        self.connected = False
        self.to_leader.clear()
        self.to_unit.clear()
        self.sender.offline()

    def restart_unit(self) -> None:
        self.disconnect()
        self.lost_by_spool += self.spool.lost
        self.spool.close()
        self.open()

    def leader_forgets(self) -> None:
        """A backup was restored: the leader's positions go back."""
        for key in self.next:
            self.next[key] = self.random.randrange(self.next[key] + 1)
            self.got[key] = {n: what for n, what in self.got[key].items() if n < self.next[key]}
        self.to_leader.clear()

    def leader_reads(self, how_many: int) -> None:
        for topic, payload in self.to_leader[:how_many]:
            if topic == OWN.ask:
                runs = json.loads(payload)["runs"]
                origin = {
                    run: {str(s): self.next.get((bytes.fromhex(run), s), 0) for s in ss} for run, ss in runs.items()
                }
                self.to_unit.append(json.dumps({"epoch": 1, "through": {}, "from": origin}).encode())
                continue
            header, body = parse_batch(payload)
            key = (header.run_id, header.stream)
            expected = self.next.get(key, 0)
            answer: dict[str, object] = {"epoch": 1}
            if header.first_sequence > expected:
                answer["from"] = {key[0].hex(): {str(key[1]): expected}}
            else:
                kept = self.got.setdefault(key, {})
                for n in range(header.count):
                    sequence = header.first_sequence + n
                    if header.kind == KIND_GAP:
                        kept.setdefault(sequence, "gap")
                    else:
                        assert int.from_bytes(body[8 * n : 8 * n + 8], "little") == sequence
                        kept[sequence] = "data"
                self.next[key] = max(expected, header.end_sequence)
                answer["through"] = {key[0].hex(): {str(key[1]): self.next[key]}}
            self.to_unit.append(json.dumps(answer).encode())
        del self.to_leader[:how_many]

    def unit_reads(self) -> None:
        while self.to_unit:
            self.sender.on_ack(self.to_unit.pop(0), self.now)

    def turn(self) -> None:
        self.now += 0.3
        self.sender.step(self.now)

    def settle(self) -> None:
        self.connect()
        for _ in range(400):
            self.turn()
            self.leader_reads(len(self.to_leader))
            self.unit_reads()
            if self.next == self.made and not self.spool.pending_keys():
                return
        raise AssertionError(f"not settled: {self.next} of {self.made}")


def trouble(world: World, steps: int, forgets: bool) -> None:
    actions = [world.make] * 8 + [world.turn] * 8 + [world.unit_reads] * 5 + [world.connect] * 3
    actions += [lambda: world.leader_reads(world.random.randrange(4))] * 5
    actions += [world.disconnect, world.restart_unit, world.to_leader.clear]
    actions += [world.leader_forgets] if forgets else []
    for _ in range(steps):
        world.random.choice(actions)()


@pytest.mark.parametrize("seed", range(12))
def test_everything_arrives_whatever_happens(seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(directory, seed, limit=10_000_000)
        trouble(world, 300, forgets=True)
        world.make()
        world.settle()
        assert world.got == {key: dict.fromkeys(range(end), "data") for key, end in world.made.items()}
        world.spool.close()


@pytest.mark.parametrize("seed", range(12))
def test_a_spool_too_small_gives_gaps_for_no_more_than_it_gave_up(seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(directory, seed, limit=12_000)
        trouble(world, 300, forgets=False)
        world.make()
        world.settle()
        assert {key: sorted(kept) for key, kept in world.got.items()} == {
            key: list(range(end)) for key, end in world.made.items()
        }
        gaps = sum(what == "gap" for kept in world.got.values() for what in kept.values())
        assert gaps <= world.lost_by_spool + world.spool.lost
        assert world.spool.size < 12_000 + 2_000
        world.spool.close()


def test_what_the_leader_has_of_a_frame_is_not_sent_again() -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(directory, 1, limit=10_000_000)
        key = (RUNS[0], 1)
        header = Header(KIND_READINGS, 1, 8, 10, 0, UNIT_ID, RUNS[0], bytes(16), 0, 0, 0, "e")
        world.spool.append([header.pack() + b"".join(n.to_bytes(8, "little") for n in range(10))])
        for has, expected in ((0, [(0, 10)]), (4, [(4, 6)]), (10, [])):
            world.next = {key: has}
            world.spool.acknowledge(key, 0)
            world.connect()
            world.turn()
            world.leader_reads(1)
            world.unit_reads()
            world.turn()
            batches = [parse_batch(payload) for _, payload in world.to_leader]
            assert [(head.first_sequence, head.count) for head, _ in batches] == expected
            assert b"".join(body for _, body in batches) == b"".join(n.to_bytes(8, "little") for n in range(has, 10))
            world.disconnect()
        world.spool.close()
