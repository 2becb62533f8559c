"""The worker process: takes the lock, starts the compiled loop, and serves the two ZeroMQ sockets.

Synchronization: one Python thread; the loop's two threads are compiled and share nothing with it but rings.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sys

import zmq
from stirbar.core import desired, identity, paths, profiles, sockets
from stirbar.core.commands import Commands
from stirbar.core.config import ConfigError, PlainOptions, add_config_options, config_from_arguments, read_options
from stirbar.core.host import Host
from stirbar.core.journal import Journal
from stirbar.core.version import VERSION
from stirbar.core.vitals import Vitals
from stirbar.rt.loop import HardwareError, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from stirbar.core.config import Config
    from stirbar.core.guard import Guard

# The host steps this long after each grid point, when the readings of that point are in the ring.
STEP_OFFSET_NS = 12_000_000
# While the loop owes an answer to a command, the host looks again this soon.
REQUEST_BYTES = 1 << 20
WAITING_STEP_NS = 3_000_000
REQUESTS_PER_STEP = 64
OUT_OF_USE_LOOK_S = 1.0
DETERMINISM_PAGE = "docs/determinism.md"


class WorkerError(Exception):
    """One sentence: why the worker cannot start, and what to do."""


def take_lock(address: str, runtime_directory: str, unit: str) -> int:
    """Take the unit's lock and return its descriptor; raises WorkerError when another worker has it.

    libzmq silently takes over an ipc path that is in use, so the lock comes before the sockets and the hardware.
    """
    path = f"{address[6:]}.lock" if address.startswith("ipc://") else f"{runtime_directory}/{unit}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise WorkerError(
                f"another worker (process {holder or 'unknown'}) already drives unit '{unit}' at {address}; "
                "stop it, or give this one another [unit] name"
            ) from None
        raise
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def bind(
    context: zmq.Context[zmq.Socket[bytes]], address: str, high_water: int, gate: sockets.Gate | None
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """The telemetry and the command socket, bound below a base address; raises WorkerError."""
    telemetry = context.socket(zmq.PUB)
    telemetry.sndhwm = high_water
    command = context.socket(zmq.ROUTER)
    command.maxmsgsize = REQUEST_BYTES  # who sends more is disconnected before it is in memory
    if address.startswith("ipc://"):
        os.makedirs(address[6:], mode=0o750, exist_ok=True)
    umask = os.umask(0o117)
    try:
        for socket, name in ((telemetry, "telemetry"), (command, "command")):
            socket.linger = 500
            if gate is not None:
                gate.secure(socket)
            socket.bind(sockets.endpoint(address, name))
    except zmq.ZMQError as error:
        raise WorkerError(f"cannot open the sockets at {address}: {error.strerror}") from None
    finally:
        os.umask(umask)
    return telemetry, command


def take_outputs(config: Config) -> tuple[Guard | None, str]:
    """The outputs of a real board from its guard, or why there are none; a simulated vial needs no guard."""
    if config.get("unit", "simulate"):
        return None, ""
    from stirbar.core import guard

    try:
        return guard.connect(guard.socket_path(config)), ""
    except guard.GuardError as error:
        return None, str(error)


def open_loop(config: Config) -> tuple[Loop, Guard | None, str]:
    """The loop on the board that the config names, or the simulated vial; who holds its outputs, or why nobody does.

    Raises ProfileError or HardwareError where there is no board. Without a guard the worker measures and moves nothing.
    """
    profile = profiles.choose(config)
    guard, without = take_outputs(config)
    try:
        loop = Loop(config, profile=profile, guard=guard)
    except BaseException:
        if guard is not None:
            guard.close()
        raise
    for sentence in ([f"no stirring: {without}"] if without else []) + loop.missing:
        print(f"stirbar worker: {sentence}", file=sys.stderr)
    return loop, guard, without


class WorkerProcess:
    """Owns loop, outputs, host and sockets; `run()` returns when `stop()` was called (a signal handler may), or when a
    client asked for a restart."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.unit = paths.unit_name(config)
        self.address = paths.worker_address(config)
        self.running = True
        self.replies_dropped = 0
        self._lock = take_lock(self.address, paths.runtime_directory(config), self.unit)
        directory = paths.data_directory(config)
        self.loop, self.guard, without = open_loop(config)
        self.host = Host(
            self.loop,
            config,
            unit=self.unit,
            unit_id=identity.unit_id(directory),
            run_id=identity.run_id(),
            boot_id=identity.boot_id(),
            directory=directory,
            version=VERSION,
            without_outputs=without,
            journal=Journal(directory, identity.boot_id(), lambda: self.loop.clock_triple()[1:]),
        )
        self.host.vitals = Vitals(directory)
        self._open_panel(config, directory)
        self.commands = Commands(self.host)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        remote = not self.address.startswith("ipc://")
        self.gate = sockets.Gate(self.context, sockets.key_directory(directory)) if remote else None
        self.telemetry, self.command = bind(
            self.context, self.address, int(config.get("worker.config", "telemetry_high_water")), self.gate
        )

    def _open_panel(self, config: Config, directory: str) -> None:
        """What a board has beside the loop: button and LED, and what protects the vial."""
        if self.loop.simulated():
            self.host.board = profiles.SIMULATED
            return
        from stirbar.core.front_panel import open_panel
        from stirbar.core.protection import protection_of

        profile = profiles.choose(config, remembered=True)
        self.host.board = profile.name
        self.host.panel, without = open_panel(profile)
        protection, wrong = protection_of(profile, directory)
        self.host.protection = protection.as_dict()
        for sentence in filter(None, (without, wrong, *protection.sentences())):
            print(f"stirbar worker: {sentence}", file=sys.stderr)

    def stop(self, *_: object) -> None:
        self.running = False

    def run(self) -> None:
        """Serve until stopped; on the way out everything is switched off and what was measured is published."""
        for what, code in self.loop.start():
            print(
                f"stirbar worker: {what} refused ({errno.errorcode.get(code, code)}: {os.strerror(code)}); "
                f"timing will be less certain, see {DETERMINISM_PAGE}",
                file=sys.stderr,
            )
        self.host.start_jobs()
        interval_ns = int(float(self.config.get("worker.config", "batch_interval_s")) * 1e9)
        poller = zmq.Poller()
        poller.register(self.command, zmq.POLLIN)
        if self.gate is not None:
            poller.register(self.gate.socket, zmq.POLLIN)
        next_ns = self.loop.now_ns()
        try:
            while self.running and not self.host.restart_asked:
                now_ns = self.loop.now_ns()
                if now_ns < next_ns and poller.poll(-(-(next_ns - now_ns) // 1_000_000)):
                    self._answer_requests()
                    next_ns = min(next_ns, self.loop.now_ns() + WAITING_STEP_NS) if self.host.waiting else next_ns
                now_ns = self.loop.now_ns()
                if now_ns >= next_ns:
                    self._publish()
                    next_ns = (now_ns - STEP_OFFSET_NS) // interval_ns * interval_ns + interval_ns + STEP_OFFSET_NS
                    if self.host.waiting:
                        next_ns = min(next_ns, now_ns + WAITING_STEP_NS)
        finally:
            self.close()

    def _publish(self) -> None:
        for message in self.host.step():
            self.telemetry.send_multipart(message, copy=True)

    def _answer_requests(self) -> None:
        if self.gate is not None:
            self.gate.answer()
        for _ in range(REQUESTS_PER_STEP):
            try:
                frames = self.command.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            envelope, body = frames[:-1], frames[-1]

            def reply(answer: dict[str, object], attached: list[bytes], envelope: list[bytes] = envelope) -> None:
                try:
                    self.command.send_multipart([*envelope, json.dumps(answer).encode(), *attached], zmq.NOBLOCK)
                except zmq.ZMQError:
                    self.replies_dropped += 1

            try:
                request = json.loads(body)
                json.dumps(request, ensure_ascii=False).encode()  # half a character cannot be stored or sent on
            except (ValueError, RecursionError):
                request = None
            self.commands.handle(request, reply)

    def close(self) -> None:
        """Stop the loop (LED and stirrer off), publish what is left, release outputs, sockets and lock."""
        self.loop.stop()
        if self.guard is not None:
            self.guard.close()
        self._publish()
        if self.host.journal is not None:
            self.host.journal.close()
        if self.host.panel is not None:
            self.host.panel.close()
        self.telemetry.close()
        self.command.close()
        if self.gate is not None:
            self.gate.socket.close()
        self.context.term()
        os.close(self._lock)


def parse_options(argv: list[str]) -> tuple[Namespace | PlainOptions, str]:
    """The options of `stirbar worker`, and the client to admit; argparse is loaded only where they are unusual."""
    client = ""
    options: Namespace | PlainOptions | None = read_options(argv, ("--simulate",))
    if isinstance(options, PlainOptions):
        simulate = "--simulate" in options.flags
    else:
        import argparse

        parser = argparse.ArgumentParser(prog="stirbar worker", description="Run the controller of one vial.")
        parser.add_argument("--simulate", action="store_true", help="drive a simulated vial instead of hardware")
        parser.add_argument("--admit", metavar="NAME", help="print a new key for a client over tcp, let it in, and end")
        add_config_options(parser)
        options = parser.parse_args(argv)
        simulate, client = options.simulate, options.admit or ""
    if simulate:
        options.set.append("unit.simulate=1")
    return options, client


def wait_for_use(config: Config) -> bool:
    """Run nothing until the leader wants the unit in use; False when the process is asked to end before."""
    name, path = paths.unit_name(config), paths.desired_file(config)
    print(
        f"stirbar worker: unit '{name}' is out of use by its leader's inventory, so nothing runs; "
        f"`stirbar cluster activate {name}` on the leader, and it goes on by itself",
        file=sys.stderr,
        flush=True,
    )
    ends = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        while not desired.read(path).active:
            if signal.sigtimedwait(ends, OUT_OF_USE_LOOK_S) is not None:
                return False
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


def begin_anew() -> None:
    """Become a new process by the same command line; for systemd it is the same one. Open files close by themselves."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(argv: list[str]) -> int:
    """`stirbar worker`"""
    options, client = parse_options(argv)
    try:
        config = config_from_arguments(options)
        if client:
            directory = sockets.key_directory(paths.data_directory(config))
            print(sockets.make_client_key(directory, client), end="")
            return 0
        for warning in config.warnings:
            print(f"stirbar worker: {warning}", file=sys.stderr)
        unused = paths.out_of_use(config)
        if unused:
            print(f"stirbar worker: {unused}", file=sys.stderr)
            return paths.OUT_OF_USE_STATUS
        if not config.desired.active:
            return main(argv) if wait_for_use(config) else 0
        process = WorkerProcess(config)
    except (ConfigError, WorkerError, HardwareError, ValueError, OSError) as error:
        print(f"stirbar worker: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, process.stop)
    signal.signal(signal.SIGINT, process.stop)
    print(f"stirbar worker: unit '{process.unit}' at {process.address}", file=sys.stderr)
    process.run()
    if process.running:
        begin_anew()
    return 0
