"""A worker in virtual time that answers commands, and keeps what it published."""

from __future__ import annotations

import json

from stirbar.core import records
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin

STEP_S = 0.1
STEPS = 100  # in which the loop must have answered


class WatchedTwin:
    """`events` as they were published, `readings` by stream, for the streams named."""

    def __init__(self, directory, *settings: str, streams: tuple[str, ...] = ()) -> None:
        config = load_config(overrides=parse_overrides(["unit.simulate=1", *settings]))
        self.twin = Twin(config, str(directory))
        self.commands = Commands(self.twin.host)
        self.events: list[dict] = []
        self.readings: dict[str, list[dict]] = {stream: [] for stream in streams}

    def run(self, seconds: float) -> None:
        for topic, _, payload in self.twin.run(seconds):
            stream = topic.removeprefix(b"reading/").decode()
            if topic == b"event":
                self.events.append(json.loads(payload))
            elif stream in self.readings:
                for fields in records.READING.iter_unpack(payload):
                    self.readings[stream].append(dict(zip(records.READING_FIELDS, fields, strict=True)))

    def ask(self, **request: object) -> dict:
        answers: list[dict] = []
        self.commands.handle(request, lambda answer, _: answers.append(answer))
        for _ in range(STEPS):
            if answers:
                break
            self.run(STEP_S)
        json.dumps(answers[0], allow_nan=False)  # what goes over a socket
        return answers[0]

    def simulate(self, **parameters: float) -> None:
        assert self.ask(command="simulate", set=parameters)["ok"]

    def codes(self) -> list[str]:
        return [event["code"] for event in self.events]
