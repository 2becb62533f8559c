"""What the leader may ask of the computer under a unit: to start anew, to switch off, the last lines of its journal.

Each is a program of the configuration in a process of its own, which nothing here waits for. A unit whose pumps run, or
that tests itself, is not switched off unless that is forced; its pumps are stopped first then, and worker and guard
make the other outputs safe as they end. A unit whose worker is not there can be started anew: that is what it needs.

Synchronization: one thread.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.bridge.log import Log
    from stirbar.bridge.worker_link import WorkerLink

    Body = dict[str, object]
    Replied = Callable[[Body, list[bytes]], None]

POWER = ("reboot", "shutdown")
JOURNAL = "journal"
ANSWERED_HERE = (*POWER, JOURNAL)
JOURNAL_LINES, JOURNAL_LINES_MAXIMUM = 100, 500
OUTPUT_BYTES = 32 << 10  # of what a program says, its end
READS, READ_BYTES = 8, 16 << 10  # at once
RUN_LIMIT_S = 10.0
LOOK_S = 0.05
POWER_REMEDY = "install core/deploy/50-stirbar-power.rules on the unit (docs/nodes.md, Rights)"
JOURNAL_REMEDY = "let the bridge's user into the group systemd-journal on the unit (docs/nodes.md, Rights)"


class Machine:
    """`commands` are the programs by name, each a list of words; an empty one is not done."""

    def __init__(self, commands: dict[str, list[str]], link: WorkerLink, log: Log) -> None:
        self.due = float("inf")  # when `step` wants to be called
        self._commands = commands
        self._link = link
        self._log = log
        self._body: Body = {}  # the request under way; without one nothing runs
        self._replied: Replied = _to_nobody
        self._child = 0
        self._output = b""
        self._pipe = -1
        self._until = 0.0

    def request(self, body: Body, worker_present: bool, replied: Replied, now: float) -> None:
        """Do one of ANSWERED_HERE; `replied` is called once, later or at once."""
        if self._body:
            if self._body.get("id") != body.get("id"):  # the same once more is answered when it is done
                _refuse(body, replied, "this unit is about to do another such thing", "ask again in a moment")
            return
        name = str(body["command"])
        wrong = self._wrong(name, body)
        if wrong:
            _refuse(body, replied, *wrong)
            return
        self._body, self._replied = body, replied
        if name == JOURNAL:
            self._run([*self._commands[name], f"--lines={body.get('lines', JOURNAL_LINES)}"], now)
        elif not worker_present:
            self._power(now)
        elif not self._link.ask({"command": "settings"}, lambda reply, _: self._looked(reply, now), now):
            self._looked({}, now)

    def _wrong(self, name: str, body: Body) -> tuple[str, str] | None:
        """Why a request is refused before anything is done: the sentence and the remedy."""
        if not self._commands.get(name):
            return f"this unit does no {name} from afar", f"name a program in its [bridge.config] {name}_command"
        lines = body.get("lines", JOURNAL_LINES)
        if isinstance(lines, bool) or not isinstance(lines, int) or not 1 <= lines <= JOURNAL_LINES_MAXIMUM:
            return "lines must be a whole number", f"1 to {JOURNAL_LINES_MAXIMUM}"
        if not isinstance(body.get("force", False), bool):
            return "force must be true or false", "true only when somebody stands beside the vial"
        return None

    def _looked(self, reply: Body, now: float) -> None:
        """The worker's settings say whether it may be ended."""
        busy = what_runs(reply)
        if busy and not self._body.get("force"):
            name = self._body["command"]
            self._end({"message": f"no {name}: {busy}", "remedy": "wait for its end, or stop it; or force it"})
            return
        self._link.ask({"command": "dose_stop"}, _to_nobody, now)
        self._power(now)

    def _power(self, now: float) -> None:
        name = str(self._body["command"])
        self._log("notice", f"{name} asked for by the leader: {' '.join(self._commands[name])}")
        self._run(self._commands[name], now)

    # The program

    def _run(self, command: list[str], now: float) -> None:
        self._pipe, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_DUP2, writing, 2),
        ]
        os.set_blocking(writing, True)
        try:
            self._child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        except OSError as error:
            self._end({"message": f"{command[0]} cannot be run: {error.strerror}", "remedy": "is it installed?"})
            return
        finally:
            os.close(writing)
        self._until, self.due = now + RUN_LIMIT_S, now

    def step(self, now: float) -> None:
        """Hear what the program says, and answer when it has ended."""
        if not self._child or now < self.due:
            return
        self.due = now + LOOK_S
        self._read()
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if pid:
            self._child = 0
            self._ended(os.waitstatus_to_exitcode(status))
        elif now > self._until:
            os.kill(self._child, 9)

    def _read(self) -> None:
        """Take what there is, not more than the pipe holds: a program that says more and more must not keep us."""
        try:
            for _ in range(READS):
                self._output = (self._output + os.read(self._pipe, READ_BYTES))[-OUTPUT_BYTES:]
        except BlockingIOError:
            pass

    def _ended(self, code: int) -> None:
        self._read()
        lines = self._output.decode(errors="replace").splitlines()
        name = str(self._body["command"])
        if code:
            said = lines[-1] if lines else f"it ended with {code}"
            self._log("warning", f"{name} failed: {said}")
            self._end(
                {
                    "message": f"no {name}: {self._commands[name][0]}: {said}",
                    "remedy": JOURNAL_REMEDY if name == JOURNAL else POWER_REMEDY,
                }
            )
            return
        result: Body = {"lines": lines} if name == JOURNAL else {"action": name}
        self._end(None, result)

    def _end(self, error: Body | None, result: Body | None = None) -> None:
        body, replied = self._body, self._replied
        if self._pipe >= 0:
            os.close(self._pipe)
        self._body, self._replied, self._pipe, self._output = {}, _to_nobody, -1, b""
        self.due = float("inf")
        if error is not None:
            replied({"id": body.get("id"), "ok": False, "error": {"field": "command", **error}}, [])
        else:
            replied({"id": body.get("id"), "ok": True, "result": result or {}}, [])


def what_runs(reply: Body) -> str:
    """Why a unit should not be ended now, from its worker's answer to `settings`; empty when nothing speaks against."""
    result = reply.get("result")
    settings = result.get("settings") if isinstance(result, dict) else None
    if not reply.get("ok") or not isinstance(settings, list):
        return "its worker does not say whether its pumps run"
    found = [one for one in settings if isinstance(one, dict)]
    values = {(str(one.get("job")), str(one.get("setting"))): one.get("value") for one in found}
    if values.get(("bioreactor", "dose")) or values.get(("bioreactor", "queued")):
        return "its pumps run, or are about to"
    if values.get(("self_test", "$state")) not in (None, "disconnected"):
        return "it tests itself"
    return ""


def _refuse(body: Body, replied: Replied, message: str, remedy: str) -> None:
    replied(
        {"id": body.get("id"), "ok": False, "error": {"message": message, "field": "command", "remedy": remedy}}, []
    )


def _to_nobody(reply: Body, frames: list[bytes]) -> None:
    """For what changes nothing here."""
