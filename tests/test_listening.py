"""A unit listens on no network port: worker, bridge and recorder as processes, looked at from outside."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys

import pytest
from stirbar.bridge.broker import Broker

from .leader_process import free_port
from .running import RunningWorker, stirbar_environment, wait_for

LISTEN, UNCONNECTED = "0A", "07"  # of TCP, and of UDP: it takes from anybody
TABLES = {
    "tcp": LISTEN,
    "tcp6": LISTEN,
    "udp": UNCONNECTED,
    "udp6": UNCONNECTED,
    "udplite": UNCONNECTED,
    "raw": UNCONNECTED,
}


def inodes(pid):
    """The sockets of a process."""
    found = set()
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry)):
                found.add(match[1])
    return found


def listening_by_proc(pid):
    """Its listening inet sockets by the kernel's tables: (table, local address)."""
    own, found = inodes(pid), set()
    for table, state in TABLES.items():
        path = pathlib.Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == state and fields[9] in own:
                found.add((table, fields[1]))
    return found


def listening_by_ss(pid):
    """The same by ss, which everybody can run."""
    text = subprocess.run(["ss", "-Hltnup"], capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if f"pid={pid}," in line]


def listening(pid):
    found = listening_by_proc(pid)
    if shutil.which("ss"):
        by_ss = listening_by_ss(pid)
        assert bool(by_ss) == bool(found), (by_ss, found)
    return found


def connected_to(pid, port):
    """Whether the process has a TCP connection to this port."""
    own = inodes(pid)
    lines = pathlib.Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(
        fields[9] in own and fields[3] == "01" and int(fields[2].split(":")[1], 16) == port
        for fields in map(str.split, lines)
    )


@pytest.fixture
def worker():
    worker = RunningWorker((), None, {})
    yield worker
    worker.stop()


@pytest.fixture
def beside(worker, tmp_path):
    """Bridge and recorder of the worker, at work: the one connected to a broker, the other with a file."""
    broker = Broker(tmp_path)
    password = tmp_path / "w.password"
    username = broker.issue("w", bytes.fromhex(worker.client.command("describe")["unit_id"]), password)
    broker.start()
    settings = {
        "unit.name": "w", "unit.data_directory": f"{worker.directory}/data",
        "unit.runtime_directory": f"{worker.directory}/run", "mqtt.broker_address": "127.0.0.1",
        "mqtt.broker_port": broker.port, "mqtt.username": username, "mqtt.password_file": password,
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    raw = tmp_path / "raw"
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "stirbar.core.cli", *arguments], env=stirbar_environment(), stderr=subprocess.DEVNULL
        )
        for name, arguments in {
            "bridge": ["bridge", *options],
            "recorder": ["record", "--continuous", "--directory", raw, "--address", worker.address],
        }.items()
    }
    try:
        wait_for(lambda: connected_to(started["bridge"].pid, broker.port), 20, "a bridge that is connected")
        wait_for(lambda: list(raw.glob("*.rec")), 20, "a recording")
        yield started
    finally:
        for process in started.values():
            process.terminate()
            assert process.wait(15) == 0
        broker.stop()


def test_no_process_of_a_unit_listens_on_the_network(worker, beside):
    pids = {"worker": worker.process.pid, **{name: process.pid for name, process in beside.items()}}
    assert {name: listening(pid) for name, pid in pids.items()} == {name: set() for name in pids}
    assert all(inodes(pid) for pid in pids.values())  # it has looked at something


def test_what_listens_is_found():
    """The look itself, on sockets of our own."""
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)):
        with socket.socket(family, kind) as sock:
            sock.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                assert listening(os.getpid()) == set()  # bound only
                sock.listen()
            assert len(listening(os.getpid())) == 1
    assert listening(os.getpid()) == set()


def test_a_worker_listens_where_it_was_told_to_and_nowhere_else(tmp_path):
    port = free_port()
    settings = {
        "unit.name": "t", "unit.data_directory": tmp_path / "data", "unit.runtime_directory": tmp_path / "run",
        "worker.config.address": f"tcp://127.0.0.1:{port}",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "stirbar.core.cli", "worker", "--simulate"]
        + [part for name, value in settings.items() for part in ("--set", f"{name}={value}")],
        env=stirbar_environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found = wait_for(lambda: len(where := listening_by_proc(process.pid)) == 2 and where, 20, "two sockets")
        assert found == {("tcp", f"0100007F:{number:04X}") for number in (port, port + 1)}
        assert listening(process.pid) == found
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_the_workers_sockets_are_for_its_group_only(worker):
    directory = pathlib.Path(worker.address.removeprefix("ipc://"))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    sockets = sorted(directory.iterdir())
    assert [path.name for path in sockets] == ["command", "telemetry"]
    for path in sockets:
        assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o660
