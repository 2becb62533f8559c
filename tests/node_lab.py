"""Several bridges at one broker, each with a worker double of its own."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from bridge_doubles import UNIT_ID, LeaderDouble, WorkerDouble, wait_for
from mosquitto import Mosquitto
from stirbar.bridge.log import Log
from stirbar.bridge.relay import Relay
from stirbar.bridge.relay_settings import Settings
from stirbar.bridge.session import Broker


class Node:
    """A worker double and a real relay, under a name of its own."""

    def __init__(self, place: Path, port: int, name: str, experiment: str, **more: Any) -> None:
        directory = place / name
        (directory / "w").mkdir(parents=True)
        self.worker = WorkerDouble(f"ipc://{directory}/w", os.urandom(16), experiment)
        self.relay = Relay(
            Settings(
                unit=name, unit_id=UNIT_ID, worker_address=f"ipc://{directory}/w", spool_directory=f"{directory}/spool",
                broker=Broker("127.0.0.1", port, f"node-{name}"), reconnect_maximum_s=0.5, **more,
            ),
            Log(name),
        )  # fmt: skip
        self.thread = threading.Thread(target=self.relay.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.relay.session.online and self.relay._dialect.experiment == experiment, 10, name)

    def done(self) -> list[tuple[object, ...]]:
        words = ("command", "job", "value")
        asked = [request for request in self.worker.requests if request["command"] in ("set", "start", "stop")]
        return [tuple(request[word] for word in words if word in request) for request in asked]

    def close(self) -> None:
        self.relay.stop()
        self.thread.join(5)
        self.worker.end()
        assert not self.thread.is_alive()


class Lab:
    """A broker, and the nodes of a test."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.broker = Mosquitto(place)
        self.leader = LeaderDouble(self.broker.port)
        self.nodes: list[Node] = []

    def node(self, name: str, experiment: str, **more: Any) -> Node:
        self.nodes.append(Node(self.place, self.broker.port, name, experiment, **more))
        return self.nodes[-1]

    def say(self, topic: str, payload: str, retain: bool = False) -> None:
        self.leader.client.publish(f"pioreactor/{topic}", payload, 1, retain).wait_for_publish(5)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.leader.stop()
        self.broker.kill()
