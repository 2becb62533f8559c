"""The host thread's work between the compiled loop and whoever listens: jobs, commands, batches, history.

`Host.step()` is called on a grid by the worker process (real time) or by the twin (virtual time). It takes time only
from the loop's clock and touches no socket: what it makes is returned, and answers go through callbacks.

Synchronization: none; everything here belongs to the one host thread.
"""

from __future__ import annotations

import json
import os
import zlib

from stirbar.core import events, plugins, records
from stirbar.core.blanks import Blanks, BlankTaking
from stirbar.core.calibrations import FUSION_SLOT, ActiveCalibrations
from stirbar.core.history import History
from stirbar.core.ini import write_atomically
from stirbar.core.jobs import (
    ACTUATORS,
    INIT,
    READY,
    SAMPLING,
    CommandError,
    Job,
    all_of,
    make_jobs,
    refusal,
)
from stirbar.core.led_hours import LedHours
from stirbar.core.loan import Loan
from stirbar.core.records import Header
from stirbar.core.stirring_job import RPM_CEILING, RPM_FLOOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.core.config import Config
    from stirbar.core.dosing_job import Bioreactor
    from stirbar.core.front_panel import Panel
    from stirbar.core.journal import Journal
    from stirbar.core.vitals import Vitals
    from stirbar.rt.loop import Loop

    Message = tuple[bytes, bytes, bytes]
    Done = Callable[[bool, float], None]

RAW_SECONDS_FOR_EVER = 1e9
VOLUME = records.STREAM_IDS["volume"]
STARTED = ("od_reading", "stirring", "temperature_automation", "leds")  # jobs that start with the worker, in this order
NO_EXPERIMENT = "$no_experiment_present"
STATUS_PERIOD_NS = 1_000_000_000
CLOCK_JUMP_NS = 500_000_000  # NTP slews by less than this between two looks a second apart
LOOP_ANSWER_NS = 2_000_000_000  # the loop answers within a tick; longer means that it is gone


class Host:
    """See the module. `unit_id`, `run_id` and `boot_id` are 16 bytes each. `without_outputs` is why nothing can be
    switched on; empty: it can. `journal` keeps what runs for the run after this one.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        *,
        unit: str,
        unit_id: bytes,
        run_id: bytes,
        boot_id: bytes,
        directory: str,
        version: str,
        without_outputs: str = "",
        journal: Journal | None = None,
    ) -> None:
        self.loop = loop
        self.config = config
        self.unit = unit
        self.unit_id = unit_id
        self.run_id = run_id
        self.boot_id = boot_id
        self.directory = directory
        self.version = version
        self.without_outputs = without_outputs
        self.journal = journal
        self.panel: Panel | None = None  # button and LED, where the board has them
        self.protection: dict[str, object] | None = None  # core/protection.py; a simulated vial needs none
        self.board = ""  # the hardware profile's name
        self.restart_asked = False
        self.vitals: Vitals | None = None  # of the computer; a twin looks at none
        # error code: until when, ns; what others know and the board's LED shows
        self.reported_faults: dict[int, int] = {}
        self.history = History(int(config.get("worker.config", "history_mb")) * 1_000_000)
        self.blanks = Blanks(directory)
        self.led_hours = LedHours(directory, loop.now_ns())
        self.blank_taking: list[tuple[BlankTaking, Callable[[dict[int, float]], None]]] = []
        self.settings: dict[tuple[str, str], dict[str, object]] = {}
        self.latest: dict[int, dict[str, object]] = {}
        self.raw_until_ns = 0
        self.started_ns = loop.now_ns()
        self._outbox: list[Message] = []
        self._pending: dict[int, tuple[int, Done]] = {}  # loop command id: (deadline, what to do with the answer)
        self._command_id = 0
        self._event_sequence = 0
        self._vitals_sequence = 0
        self._status_at_ns = self.started_ns
        self._wall_offset_ns = self._read_wall_offset_ns()
        self._experiments: list[str] = []
        self.jobs: dict[str, Job] = make_jobs(self, config)
        for job in self.jobs.values():
            self.publish_setting(job.name, "$state", job.state, settable=True)
            publish = getattr(job, "publish", None)
            if publish is not None:
                publish()
        self.loan = Loan(self)
        self.set_experiment(self._stored_experiment(), _ignore)
        self.bioreactor.begin()
        self.calibrations = ActiveCalibrations(self)
        self.calibrations.start()
        if config.get("od_reading.config", "raw"):
            self.request_raw(RAW_SECONDS_FOR_EVER)

    # --- what the worker process calls -------------------------------------------------------------------------------

    def start_jobs(self) -> None:
        """Start what ran before, with its set-points; at a first start, or without them, what the config asks for."""
        takes_up = self.journal is not None and self.config.get("worker.config", "resume") != "never"
        is_first = self.journal is None or self.journal.before is None
        for name in STARTED:
            job = self.jobs[name]
            kept = self.journal.job(name) if takes_up and self.journal is not None else None
            if kept is not None:
                job.recall(kept)
            if not (job.autostarts() if kept is None else kept.get("running")):
                continue
            begin = job.start if is_first else job.resume
            try:
                begin(self._started(name))
            except CommandError as error:
                self.say_not_started(name, error)

    def kept(self, name: str) -> dict[str, object]:
        """What a job does now; of one that is lent to a self-test, what it did before."""
        lent, job = self.loan.kept(name), self.jobs[name]
        return lent if lent is not None else {"running": job.state in (INIT, READY), **job.remember()}

    def _started(self, name: str) -> Done:
        """A callback that says why a job was not started, where the loop refuses it."""

        def answered(ok: bool, limit: float) -> None:
            if not ok:
                self.say_not_started(name, refusal(limit))

        return answered

    def say_not_started(self, name: str, error: CommandError) -> None:
        """An event for a job that should run and does not."""
        text = f"{name} was not started: {error.message}"
        self.event("error", name, f"{text}; {error.remedy}" if error.remedy else text, code="not_started")

    @property
    def bioreactor(self) -> Bioreactor:
        return self.jobs["bioreactor"]  # type: ignore[return-value]

    @property
    def waiting(self) -> bool:
        """Whether the loop still owes an answer: step again soon."""
        return bool(self._pending)

    def step(self) -> list[Message]:
        """Drain the loop, and return the messages to publish: (topic, header, payload)."""
        now_ns = self.loop.now_ns()
        self._step_panel(now_ns)
        self._drain_events(now_ns)
        self._drain_readings()
        self._drain_trace()
        self._finish_blanks(now_ns)
        if now_ns >= self._status_at_ns:
            self._status_at_ns = now_ns - (now_ns - self._status_at_ns) % STATUS_PERIOD_NS + STATUS_PERIOD_NS
            self._watch_wall_clock()
            for job in self.jobs.values():
                job.tend()
            self.loan.tend()
            if self.journal is not None:
                self.journal.note({name: self.kept(name) for name in STARTED})
            self.led_hours.update(self.loop.led_seconds(), now_ns)
            self.publish_setting("od_reading", "led_hours", round(self.led_hours.hours, 2), "h")
            rail_v = self.loop.rail_v()
            if rail_v is not None:
                self.publish_setting("monitor", "voltage_on_pwm_rail", round(rail_v, 2), "V")
            self._publish_json(b"status", records.STREAM_IDS["status"], self.status())
        messages, self._outbox = self._outbox, []
        return messages

    def _step_panel(self, now_ns: int) -> None:
        if self.panel is None:
            return
        for pressed in self.panel.step(now_ns):
            self.publish_setting("monitor", "button_down", pressed)

    def identify(self) -> float:
        """Let the board's LED blink; returns for how many seconds. Raises CommandError where there is none."""
        if self.panel is None or not self.panel.has_led:
            raise CommandError("this unit has no LED to blink", "command", remedy="its hardware profile names none")
        return self.panel.identify(self.loop.now_ns())

    def _read_wall_offset_ns(self) -> int:
        _, monotonic_ns, realtime_ns = self.loop.clock_triple()
        return realtime_ns - monotonic_ns

    def _watch_wall_clock(self) -> None:
        """Tell of a wall clock that was set: readings before and after carry different times for the same moment."""
        offset_ns = self._read_wall_offset_ns()
        jump_ns = offset_ns - self._wall_offset_ns
        self._wall_offset_ns = offset_ns
        if abs(jump_ns) > CLOCK_JUMP_NS:
            message = f"the wall clock jumped by {jump_ns / 1e9:.3f} s"
            self.event("warning", "monitor", message, code="clock_jump", value=jump_ns / 1e9)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def send(self, thread: int, code: int, channel: int, index: int, value: float, done: Done) -> None:
        """Give the loop a command; `done(ok, limit)` is called in a later step with its answer."""
        self._command_id = self._command_id % 0x7FFFFFFF + 1
        if not self.loop.push(thread, self._command_id, code, channel, index, value):
            raise CommandError(
                "the loop's command queue is full", remedy="try again; if it persists, restart the worker"
            )
        self._pending[self._command_id] = (self.loop.now_ns() + LOOP_ANSWER_NS, done)

    def _drain_events(self, now_ns: int) -> None:
        for monotonic_ns, value, argument, code, source in self.loop.drain_events():
            if code in (events.EVENT_COMMAND_DONE, events.EVENT_COMMAND_REFUSED):
                pending = self._pending.pop(argument, None)
                if pending is not None:
                    pending[1](code == events.EVENT_COMMAND_DONE, value)
                continue
            if code in (events.EVENT_REFERENCE_ERROR, events.EVENT_REFERENCE):
                self.calibrations.on_reference(code, argument, value)
            stream = records.STREAMS.get(source, "")
            name, level, job, message = events.describe(code, argument, value, stream)
            fields = self.jobs[job].event_fields(code, argument, value) if job in self.jobs else {}
            self.event(level, job, message, code=name, value=value, monotonic_ns=monotonic_ns, fields=fields)
            if job in self.jobs:
                self.jobs[job].on_event(code, value)
        for identifier in [i for i, (deadline, _) in self._pending.items() if now_ns > deadline]:
            self._pending.pop(identifier)[1](False, float("nan"))

    def _drain_readings(self) -> None:
        for stream, experiment, count, first, batch in self.loop.drain_readings():
            header = self._header(records.KIND_READINGS, stream, records.READING.size, count, first, experiment)
            self._emit(b"reading/" + records.STREAMS[stream].encode(), header, batch)
            size = records.READING.size
            reading = dict(
                zip(records.READING_FIELDS, records.READING.unpack_from(batch, len(batch) - size), strict=True)
            )
            self.latest[stream] = reading
            if stream == VOLUME:
                self.bioreactor.on_volume(reading)
            if self.blank_taking and stream <= 4:
                self._average_for_blank(stream, batch)

    def _drain_trace(self) -> None:
        for thread, stream in ((SAMPLING, "raw"), (ACTUATORS, "edges")):
            drained = self.loop.drain_trace(thread)
            if drained is None:
                continue
            first, items, snapshots = drained
            number = records.STREAM_IDS[stream]
            for snapshot, sequence, state in snapshots:
                header = self._header(records.KIND_SNAPSHOT, number, 0, snapshot, sequence)
                # not in the history: a resent trace is only of use from a snapshot that was received
                self._outbox.append((b"snapshot/" + stream.encode(), header.pack(), zlib.compress(state, 1)))
            count = len(items) // records.TRACE.size
            header = self._header(records.KIND_TRACE, number, records.TRACE.size, count, first)
            self._emit(b"trace/" + stream.encode(), header, items)

    # --- publishing --------------------------------------------------------------------------------------------------

    def _header(
        self, kind: int, stream: int, size: int, count: int, first: int, experiment: int | None = None
    ) -> Header:
        raw_ns, monotonic_ns, realtime_ns = self.loop.clock_triple()
        name = self._experiments[-1 if experiment is None else experiment]
        return Header(
            kind,
            stream,
            size,
            count,
            first,
            self.unit_id,
            self.run_id,
            self.boot_id,
            raw_ns,
            monotonic_ns,
            realtime_ns,
            name,
        )

    def _emit(self, topic: bytes, header: Header, payload: bytes) -> None:
        packed = header.pack()
        self._outbox.append((topic, packed, payload))
        self.history.add(header.stream, header.first_sequence, header.count, packed, payload)

    def _publish_json(self, topic: bytes, stream: int, body: dict[str, object]) -> None:
        header = self._header(records.KIND_JSON, stream, 0, 1, 0)
        self._outbox.append((topic, header.pack(), json.dumps(body).encode()))

    def event(
        self,
        level: str,
        source: str,
        message: str,
        *,
        code: str,
        value: float = 0.0,
        monotonic_ns: int | None = None,
        fields: dict[str, object] | None = None,
    ) -> None:
        """Publish and remember one event; `fields` are for programs."""
        _, now_ns, realtime_ns = self.loop.clock_triple()
        at_ns = now_ns if monotonic_ns is None else monotonic_ns
        body = {
            "monotonic_ns": at_ns,
            "wall_ns": realtime_ns - now_ns + at_ns,
            "level": level,
            "source": source,
            "code": code,
            "message": message,
            "value": value if value == value else None,
            **(fields or {}),
        }
        header = self._header(records.KIND_JSON, records.STREAM_IDS["event"], 0, 1, self._event_sequence)
        self._event_sequence += 1
        self._emit(b"event", header, json.dumps(body).encode())

    def report_vitals(self, figures: dict[str, float | bool]) -> None:
        """Publish and remember how the computer is now, for the leader to store."""
        header = self._header(records.KIND_JSON, records.STREAM_IDS["vitals"], 0, 1, self._vitals_sequence)
        self._vitals_sequence += 1
        body = {"monotonic_ns": header.monotonic_ns, "wall_ns": header.realtime_ns, **figures}
        self._emit(b"vitals", header, json.dumps(body).encode())

    def publish_setting(self, job: str, setting: str, value: object, unit: str = "", *, settable: bool = False) -> None:
        """Publish a setting, when it differs from what is in force."""
        body = {"job": job, "setting": setting, "value": value, "unit": unit, "settable": settable}
        if self.settings.get((job, setting)) == body:
            return
        self.settings[(job, setting)] = body
        if self._experiments:
            self._publish_json(f"setting/{job}/{setting}".encode(), 0, body)

    def status(self) -> dict[str, object]:
        """What the `status` topic says."""
        _, monotonic_ns, realtime_ns = self.loop.clock_triple()
        return {
            "unit": self.unit,
            "run_id": self.run_id.hex(),
            "monotonic_ns": monotonic_ns,
            "wall_ns": realtime_ns,
            "uptime_s": (monotonic_ns - self.started_ns) / 1e9,
            "experiment": self.experiment,
            "jobs": {name: job.state for name, job in self.jobs.items()},
            "counters": self.loop.counters(),
            "lateness": {"sampling": self.loop.lateness(SAMPLING), "actuators": self.loop.lateness(ACTUATORS)},
            "sequences": {
                **{records.STREAMS[stream]: end for stream, end in self.loop.sequences().items()},
                "event": self._event_sequence,
                "vitals": self._vitals_sequence,
            },
            "raw_until_ns": self.raw_until_ns,
        }

    # --- experiment, raw data, blanks --------------------------------------------------------------------------------

    @property
    def experiment(self) -> str:
        return self._experiments[-1]

    def _stored_experiment(self) -> str:
        try:
            with open(os.path.join(self.directory, "experiment")) as file:
                return file.read().strip() or NO_EXPERIMENT
        except FileNotFoundError:
            return NO_EXPERIMENT

    def set_experiment(self, name: str, done: Done) -> int:
        """Stamp what is measured with this experiment, all of it once `done` is called; returns its number."""
        if self._experiments and name == self.experiment:
            done(True, 0.0)
            return len(self._experiments) - 1
        if self._experiments:
            write_atomically(os.path.join(self.directory, "experiment"), name + "\n")
        self._experiments.append(name)
        number = len(self._experiments) - 1
        answers = all_of(2, done)
        for thread in (SAMPLING, ACTUATORS):
            self.send(thread, events.COMMAND_EXPERIMENT, 0, number, 0.0, answers)
        blanks = self.blanks.of(name)
        for channel in range(1, 5):
            self.apply_blank(channel, blanks.get(channel), _ignore)
        self.publish_setting("monitor", "experiment", name)
        return number

    def request_raw(self, seconds: float) -> int:
        """Let the loop write its trace for at least so long; returns until when on the loop's clock, ns."""
        seconds = min(seconds, RAW_SECONDS_FOR_EVER)
        for thread in (SAMPLING, ACTUATORS):
            self.send(thread, events.COMMAND_TRACE, 0, 0, seconds, _ignore)
        self.raw_until_ns = max(self.raw_until_ns, self.loop.now_ns() + int(seconds * 1e9))
        return self.raw_until_ns

    def apply_blank(self, channel: int, value: float | None, done: Done) -> None:
        """Let the loop subtract a blank from a channel (1..4); None ends it."""
        self.send(SAMPLING, events.COMMAND_BLANK, channel - 1, 0, float("nan") if value is None else value, done)
        self.publish_setting("od_reading", f"blank{channel}", value, "AU")

    def take_blank(self, channels: tuple[int, ...], seconds: float, done: Callable[[dict[int, float]], None]) -> None:
        """Average the readings of the next seconds; `done` gets the means of the channels that delivered."""
        deadline_ns = self.loop.now_ns() + int(seconds * 1e9)
        self.blank_taking.append((BlankTaking(channels, deadline_ns), done))

    def _average_for_blank(self, channel: int, batch: bytes) -> None:
        for offset in range(0, len(batch), records.READING.size):
            fields = dict(zip(records.READING_FIELDS, records.READING.unpack_from(batch, offset), strict=True))
            unblanked = fields["value"] + (fields["blank"] if fields["flags"] & records.FLAGS["blanked"] else 0.0)
            for taking, _ in self.blank_taking:
                taking.add(channel, unblanked)

    def _finish_blanks(self, now_ns: int) -> None:
        for taking, done in [entry for entry in self.blank_taking if now_ns >= entry[0].deadline_ns]:
            self.blank_taking.remove((taking, done))
            done(taking.means())

    def describe(self) -> dict[str, object]:
        """Who this unit is and what it can do."""
        volts_per_code = self.loop.volts_per_code()
        units = {channel: str(curve["x"]) for channel, curve in self.calibrations.channels().items()}
        return {
            "unit": self.unit,
            "unit_id": self.unit_id.hex(),
            "run_id": self.run_id.hex(),
            "boot_id": self.boot_id.hex(),
            "version": self.version,
            "build_id": self.loop.build_id(),
            "config_digest": self.config.digest(),
            "desired_digest": self.config.desired.digest(),
            "plugins": plugins.installed(),
            "board": self.board,
            "simulated": self.loop.simulated(),
            "experiment": self.experiment,
            "channels": [
                {
                    "stream": f"od{channel}",
                    "channel": channel,
                    "angle": angle,
                    "name": "REF" if angle == 0 else f"{angle}°",
                    "unit": units.get(channel, "AU"),
                    "reference": angle == 0,
                    "volts_per_code": volts_per_code[channel],
                }
                for channel, angle in self.loop.channels()
            ],
            "fused": FUSION_SLOT in self.calibrations.in_force,
            "normalisation": self.config.get("od_reading.config", "ref_normalization"),
            "jobs": {name: {"state": job.state, "settable": list(job.settable)} for name, job in self.jobs.items()},
            "envelope": self.loop.limits(),
            "limits": {
                "target_rpm": [RPM_FLOOR, getattr(self.jobs["stirring"], "rpm_maximum", RPM_CEILING)],
                "target_temperature": [0.1, self.config.get("temperature_automation.config", "target_maximum_degc")],
                "leds": getattr(self.jobs["leds"], "maximum", {}),
            },
            "protection": self.protection,
            "simulation": self.loop.simulation_values() if self.loop.simulated() else {},
        }


def _ignore(ok: bool, limit: float) -> None:
    """For commands whose answer changes nothing here."""
