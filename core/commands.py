"""The worker's commands (docs/protocol.md, ROUTER): one function each, from a request to an answer.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import time

from stirbar.core import events, records
from stirbar.core.dosing_job import parse_dose, parse_exchange
from stirbar.core.host import NO_EXPERIMENT, STARTED
from stirbar.core.jobs import CommandError, all_of, number, refusal
from stirbar.core.leds_job import SOURCE_LENGTH, USER, Leds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.core.dosing_job import Dose
    from stirbar.core.host import Host

    Request = dict[str, object]
    Reply = Callable[[dict[str, object], list[bytes]], None]
    Answer = Callable[[dict[str, object]], None]

# An id this long is taken as unique in the world: done once, answered again.
UNIQUE_ID_LENGTH = 16
REMEMBERED_IDS = 256
FAILED = "the worker failed at this command:"
# These change nothing: they may be done twice, and their answers are not worth the memory.
ASKING = ("describe", "status", "settings", "config", "resend", "dose_result")
RAW_SECONDS_MAXIMUM = 3600.0
BLANK_SECONDS_MAXIMUM = 600.0
REPORTED_CODES = (1, 2)  # no network, no broker: the field's error codes that only others can know
FAULT_SECONDS_MAXIMUM = 300.0
RESEND_BYTES_MAXIMUM = 4_000_000
EXPERIMENT_NAME_BYTES = 128
# These characters would make an experiment's name unusable as an MQTT level or in a path.
EXPERIMENT_FORBIDDEN = "#+/$%\\\0"


class Commands:
    """Answers requests on behalf of a host.

    `handle(request, reply)` calls `reply(answer, frames)` once: at once, or in a later `Host.step()` where the loop
    must answer first. It never raises for a bad request: the answer says what is wrong.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.refused = 0
        self._answered: dict[str, tuple[dict[str, object], list[bytes]] | None] = {}
        self._waiting: dict[str, list[Reply]] = {}

    def handle(self, request: object, reply: Reply) -> None:
        if not isinstance(request, dict):
            self.refused += 1
            reply(_refusal(None, CommandError("a request is one JSON object", "request")), [])
            return
        identifier = request.get("id")
        unique = identifier if isinstance(identifier, str) and len(identifier) >= UNIQUE_ID_LENGTH else None
        if request.get("command") in ASKING:
            unique = None
        if unique is not None:
            if unique in self._waiting:
                self._waiting[unique].append(reply)
                return
            answered = self._answered.get(unique)
            if answered is not None:
                reply(*answered)
                return
            self._waiting[unique] = [reply]
            reply = self._remember(unique)
        try:
            self._check_age(request)
            name = request.get("command")
            method = getattr(self, f"do_{name}", None) if isinstance(name, str) else None
            if method is None:
                raise CommandError(f"no command {name!r}", "command", COMMANDS)
            method(request, reply)
        except CommandError as error:
            self.refused += 1
            reply(_refusal(identifier, error), [])
        except OSError as error:
            self.refused += 1
            reason = CommandError(f"the unit could not write: {error}", remedy="free space on its disk, then try again")
            self.host.event("error", "monitor", reason.message, code="write_failed")
            reply(_refusal(identifier, reason), [])
        except Exception as error:  # a mistake of ours in one command must not end the host thread
            self.refused += 1
            reason = CommandError(f"{FAILED} {type(error).__name__}: {error}", remedy="report it with the request")
            self.host.event("error", "monitor", reason.message, code="internal")
            reply(_refusal(identifier, reason), [])

    def _remember(self, unique: str) -> Reply:
        def reply(answer: dict[str, object], frames: list[bytes]) -> None:
            self._answered[unique] = (answer, frames)
            while len(self._answered) > REMEMBERED_IDS:
                del self._answered[next(iter(self._answered))]
            for waiting in self._waiting.pop(unique, []):
                waiting(answer, frames)

        return reply

    def _check_age(self, request: Request) -> None:
        expires_at = request.get("expires_at")
        if expires_at is None:
            return
        deadline = number(expires_at, "expires_at", 0.0, 1e12, "s")
        age = time.time() - deadline
        if age > 0:
            raise CommandError(f"the command expired {age:.1f} s ago and was not done", "expires_at", deadline)

    # --- asking ------------------------------------------------------------------------------------------------------

    def do_describe(self, request: Request, reply: Reply) -> None:
        reply(_success(request, self.host.describe()), [])

    def do_status(self, request: Request, reply: Reply) -> None:
        latest = {
            records.STREAMS[stream]: {key: _plain(value) for key, value in reading.items()}
            for stream, reading in self.host.latest.items()
        }
        reply(_success(request, {**self.host.status(), "latest": latest, "commands_refused": self.refused}), [])

    def do_settings(self, request: Request, reply: Reply) -> None:
        job = request.get("job")
        if job is not None:
            self._job(request)
        found = [body for (name, _), body in self.host.settings.items() if job in (None, name)]
        reply(_success(request, {"settings": found}), [])

    def do_config(self, request: Request, reply: Reply) -> None:
        reply(_success(request, {"config": self.host.config.values(), "digest": self.host.config.digest()}), [])

    def do_resend(self, request: Request, reply: Reply) -> None:
        stream = records.STREAM_IDS.get(str(request.get("stream")), 0)
        if not stream:
            raise CommandError(f"no stream {request.get('stream')!r}", "stream", list(records.STREAM_IDS))
        start = int(number(request.get("from_sequence"), "from_sequence", 0, 2**63, ""))
        room = number(request.get("limit", RESEND_BYTES_MAXIMUM), "limit", 0, RESEND_BYTES_MAXIMUM, "bytes")
        available_from, available_end = self.host.history.available(stream)
        frames: list[bytes] = []
        first = end = None
        for batch_first, batch_end, header, payload in self.host.history.since(stream, start):
            if frames and room < len(payload):
                break
            room -= len(payload)
            frames += [header, payload]
            first = batch_first if first is None else first
            end = batch_end
        result: dict[str, object] = {
            "first": first,
            "end": end,
            "available_from": available_from,
            "available_end": available_end,
        }
        reply(_success(request, result), frames)

    # --- jobs --------------------------------------------------------------------------------------------------------

    def do_start(self, request: Request, reply: Reply) -> None:
        job = self._job(request)
        job.start(self._by_loop(request, reply, lambda: {"job": job.name, "state": job.state}))

    def do_stop(self, request: Request, reply: Reply) -> None:
        job = self._job(request)
        job.stop(self._by_loop(request, reply, lambda: {"job": job.name, "state": job.state}))

    def do_set(self, request: Request, reply: Reply) -> None:
        job = self._job(request)
        setting = str(request.get("setting"))
        if "value" not in request:
            raise CommandError("set needs a value", "value")

        def result() -> dict[str, object]:
            in_force = self.host.settings.get((job.name, setting), {}).get("value")
            return {"job": job.name, "setting": setting, "value": in_force, "state": job.state}

        job.set(setting, request["value"], self._by_loop(request, reply, result))

    def _job(self, request: Request):  # type: ignore[no-untyped-def]
        name = request.get("job")
        if not isinstance(name, str) or name not in self.host.jobs:
            raise CommandError(f"no job {name!r}", "job", list(self.host.jobs))
        return self.host.jobs[name]

    def _by_loop(self, request: Request, reply: Reply, result: Callable[[], dict[str, object]]):  # type: ignore[no-untyped-def]
        def done(ok: bool, limit: float) -> None:
            if ok:
                reply(_success(request, result()), [])
            else:
                reply(_refusal(request.get("id"), refusal(limit)), [])

        return done

    # --- pumps -------------------------------------------------------------------------------------------------------

    def do_dose(self, request: Request, reply: Reply) -> None:
        self._dose(parse_dose(request), request, reply)

    def do_exchange(self, request: Request, reply: Reply) -> None:
        factor = float(self.host.config.get("dosing_automation.config", "waste_removal_multiplier"))
        self._dose(parse_exchange(request, factor), request, reply)

    def _dose(self, dose: Dose, request: Request, reply: Reply) -> None:
        self.host.bioreactor.request(
            dose,
            lambda result: reply(_success(request, result), []),
            lambda error: reply(_refusal(request.get("id"), error), []),
        )

    def do_dose_stop(self, request: Request, reply: Reply) -> None:
        finish = request.get("finish", False)
        if not isinstance(finish, bool):
            raise CommandError("finish must be true or false", "finish")
        self.host.bioreactor.stop_doses(finish, self._by_loop(request, reply, lambda: {"finish": finish}))

    def do_dose_renew(self, request: Request, reply: Reply) -> None:
        self.host.bioreactor.renew(self._by_loop(request, reply, dict))

    def do_dose_result(self, request: Request, reply: Reply) -> None:
        wanted = int(number(request.get("dose"), "dose", 1, 2**31, ""))
        dose = self.host.bioreactor.find(wanted)
        if dose is None:
            raise CommandError(f"no dose {wanted} since the worker's start, or too long ago", "dose")
        reply(_success(request, dose.describe()), [])

    def do_led(self, request: Request, reply: Reply) -> None:
        leds = self.host.jobs["leds"]
        assert isinstance(leds, Leds)
        wanted, source = request.get("channels"), request.get("source_of_event", USER)
        if wanted is None:
            reply(_success(request, {"channels": leds.about()}), [])
            return
        if not isinstance(wanted, dict):
            raise CommandError('led needs "channels": {letter: percent}', "channels", list(leds.asked))
        if not isinstance(source, str) or not 0 < len(source) <= SOURCE_LENGTH:
            text = f"source_of_event must be a text of at most {SOURCE_LENGTH} characters"
            raise CommandError(text, "source_of_event", SOURCE_LENGTH)
        leds.ask(wanted, source, self._by_loop(request, reply, lambda: {"channels": leds.about()}))

    # --- experiment, blank, raw data, simulation ---------------------------------------------------------------------

    def do_experiment(self, request: Request, reply: Reply) -> None:
        name = request.get("name")
        if not isinstance(name, str) or not name.strip():
            raise CommandError("an experiment needs a name", "name")
        if len(name.encode()) > EXPERIMENT_NAME_BYTES:
            raise CommandError("the experiment's name is too long", "name", f"{EXPERIMENT_NAME_BYTES} bytes")
        if name != NO_EXPERIMENT and any(character in EXPERIMENT_FORBIDDEN for character in name):
            raise CommandError(f"an experiment's name may not contain any of {EXPERIMENT_FORBIDDEN[:-1]}", "name")
        number_of: dict[str, object] = {"name": name}
        done = self._by_loop(request, reply, lambda: number_of)
        number_of["number"] = self.host.set_experiment(name, done)

    def do_raw(self, request: Request, reply: Reply) -> None:
        seconds = number(request.get("seconds"), "seconds", 0.0, RAW_SECONDS_MAXIMUM, "s")
        until_ns = self.host.request_raw(seconds)
        reply(_success(request, {"until_monotonic_ns": until_ns}), [])

    def do_blank(self, request: Request, reply: Reply) -> None:
        measured = tuple(channel for channel, angle in self.host.loop.channels() if angle != 0)
        channels = measured
        if request.get("channel") is not None:
            channel = int(number(request["channel"], "channel", 1, 4, ""))
            if channel not in measured:
                raise CommandError(f"photodiode {channel} does not measure the culture", "channel", list(measured))
            channels = (channel,)
        calibrated = sorted(set(channels) & set(self.host.calibrations.channels()))
        if calibrated and not request.get("clear"):
            raise CommandError(
                f"photodiode {calibrated[0]} has a calibration, whose curve holds its own blank",
                "channel",
                remedy="take the calibration out of force, or measure a new one",
            )
        if request.get("clear"):
            self._put_blanks(request, reply, dict.fromkeys(channels))
        elif request.get("value") is not None:
            value = number(request["value"], "value", -1e6, 1e6, "AU")
            self._put_blanks(request, reply, dict.fromkeys(channels, value))
        else:
            if self.host.jobs["od_reading"].state != "ready":
                raise CommandError(
                    "od_reading is not running: there is nothing to take a blank of", "job", remedy="start it"
                )
            seconds = number(request.get("seconds", 10.0), "seconds", 0.1, BLANK_SECONDS_MAXIMUM, "s")

            def averaged(means: dict[int, float]) -> None:
                if means:
                    self._put_blanks(request, reply, dict(means))
                else:
                    error = CommandError(
                        "no readings came while the blank was taken", remedy="look at od_reading's state"
                    )
                    reply(_refusal(request.get("id"), error), [])

            self.host.take_blank(channels, seconds, averaged)

    def _put_blanks(self, request: Request, reply: Reply, values: dict[int, float | None]) -> None:
        result: dict[str, object] = {"blank": {str(channel): value for channel, value in values.items()}}
        done = all_of(len(values), self._by_loop(request, reply, lambda: result))
        for channel, value in values.items():
            self.host.blanks.put(self.host.experiment, channel, value)
            self.host.apply_blank(channel, value, done)
        text = ", ".join(f"photodiode {c}: {'none' if v is None else f'{v:.6g} AU'}" for c, v in values.items())
        self.host.event("notice", "od_reading", f"blank set ({text})", code="blank")

    def do_calibrations(self, request: Request, reply: Reply) -> None:
        calibrations = self.host.calibrations

        def in_force() -> dict[str, object]:
            return {"calibrations": calibrations.describe()}

        if request.get("reload"):
            calibrations.reload(self._by_loop(request, reply, in_force))
            self.host.bioreactor.calibrate()
        else:
            reply(_success(request, in_force()), [])

    def do_identify(self, request: Request, reply: Reply) -> None:
        reply(_success(request, {"seconds": self.host.identify()}), [])

    def do_fault(self, request: Request, reply: Reply) -> None:
        code = int(number(request.get("code"), "code", min(REPORTED_CODES), max(REPORTED_CODES), ""))
        seconds = number(request.get("seconds"), "seconds", 0.0, FAULT_SECONDS_MAXIMUM, "s")
        self.host.reported_faults[code] = self.host.loop.now_ns() + int(seconds * 1e9)
        reply(_success(request, {"code": code, "seconds": seconds}), [])

    def do_self_test(self, request: Request, reply: Reply) -> None:
        loan, step = self.host.loan, request.get("step")
        done = self._by_loop(request, reply, lambda: {"lent": bool(loan.before)})
        if step == "begin":
            tests = request.get("tests")
            names = [str(name) for name in tests] if isinstance(tests, list) else []
            disturbed = (
                ""
                if request.get("stop_jobs") is True or self.host.experiment == NO_EXPERIMENT
                else (self.host.experiment)
            )
            loan.begin(STARTED, names, disturbed, done)
        elif step == "end":
            loan.end(done)
        elif step in ("renew", "result"):
            if step == "renew":
                loan.renew()
            else:
                loan.result(request)
            done(True, 0.0)
        else:
            raise CommandError(f"no step {step!r} of a self-test", "step", ["begin", "renew", "result", "end"])

    def do_restart(self, request: Request, reply: Reply) -> None:
        """The process ends in good order and begins anew, with the configuration as its files are then."""
        host = self.host
        if host.bioreactor.current is not None or host.bioreactor.queue:
            raise CommandError("a pump runs or is about to", "command", remedy="ask again when the dose is over")
        if host.loan.before:
            raise CommandError("a self-test has the jobs now", "command", remedy="ask again when it is over")
        host.event("notice", "monitor", "the worker begins anew, as it was asked to", code="restart")
        host.restart_asked = True
        reply(_success(request, {}), [])

    def do_simulate(self, request: Request, reply: Reply) -> None:
        if not self.host.loop.simulated():
            raise CommandError("this unit is not simulated", "command")
        from stirbar.core.simulation import PARAMETERS, owner

        known = {parameter.name: parameter for parameter in PARAMETERS}
        wanted = request.get("set")
        if not isinstance(wanted, dict):
            raise CommandError('simulate needs "set": {parameter: value}', "set")
        checked = []
        for name, value in wanted.items():
            if name not in known:
                import difflib

                near = difflib.get_close_matches(str(name), known, 1)
                raise CommandError(
                    f"no simulation parameter {name!r}", "set", remedy=f"did you mean {near[0]}?" if near else ""
                )
            parameter = known[name]
            checked.append((parameter, number(value, name, parameter.low, parameter.high, parameter.unit)))
        if not checked:
            reply(_success(request, {"simulation": self.host.loop.simulation_values()}), [])
            return
        done = self._by_loop(request, reply, lambda: {"simulation": self.host.loop.simulation_values()})
        done = all_of(len(checked), done)
        for parameter, value in checked:
            self.host.send(owner(parameter.index), events.COMMAND_SIMULATION, 0, parameter.index, value, done)


COMMANDS = sorted(name[3:] for name in dir(Commands) if name.startswith("do_"))


def _success(request: Request, result: dict[str, object]) -> dict[str, object]:
    return {"id": request.get("id"), "ok": True, "result": result}


def _refusal(identifier: object, error: CommandError) -> dict[str, object]:
    return {"id": identifier, "ok": False, "error": error.as_reply()}


def _plain(value: object) -> object:
    """NaN is not JSON."""
    return None if isinstance(value, float) and value != value else value
