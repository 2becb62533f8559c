"""The worker process from outside: its lock, its sockets, bad requests, slow readers, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import numpy
import pytest
import zmq
from running import stirbar_environment, wait_for
from stirbar.core import records
from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.rt.od_arrays import chop_price


def raw_request(worker: Worker, *frames: bytes) -> dict:
    """Send frames as they are, and return the parsed answer."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    try:
        dealer.connect(f"{worker.address}/command")
        dealer.send_multipart(frames)
        assert dealer.poll(5000), "no answer"
        answer: dict = json.loads(dealer.recv_multipart()[-1])
        return answer
    finally:
        dealer.close()
        context.term()


def test_a_second_worker_on_the_same_unit_is_refused_and_named(start_worker):
    running = start_worker()
    second = subprocess.run(running.process.args, capture_output=True, text=True, timeout=20, env=stirbar_environment())
    assert second.returncode == 1
    assert f"process {running.process.pid}" in second.stderr
    assert running.client.describe()["unit"], "the first goes on"


def test_what_chopping_costs_is_published_with_k(worker):
    """IS-16: the price against B0, the efficiency against both bounds, and the freedom of the culture's error."""
    published = {}

    def all_there():
        published.update({name: value for (job, name), value in worker.settings().items() if job == "od_reading"})
        return "freedom" in published and published["light_path"] is not None

    wait_for(all_there, 30, "the light path is measured")
    price = chop_price(
        2 * published["half_cycle"] * published["chop_frequency"], published["half_cycle"], 1.0, 50.0,
        published["discarded"])  # fmt: skip
    for name in ("noise_over_b0", "b1_over_b0", "b2_over_b0", "efficiency_b1", "efficiency_b2", "freedom"):
        assert published[name] == pytest.approx(price[name], rel=1e-3), name
    assert published["noise_over_b0"] > 2.2 and 0.9 < published["efficiency_b2"] < 1.1


def test_sockets_are_for_owner_and_group_only(worker):
    path = worker.address.removeprefix("ipc://")
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o027 == 0
    for name in ("telemetry", "command"):
        assert stat.S_IMODE(os.stat(f"{path}/{name}").st_mode) == 0o660


def test_the_worker_listens_on_no_network_port(start_worker):
    running = start_worker()
    inodes = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{running.process.pid}/fd")}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        with open(f"/proc/net/{table}") as file:
            for line in file.readlines()[1:]:
                assert f"socket:[{line.split()[9]}]" not in inodes


@pytest.mark.parametrize(
    "frames", [(b"{",), (b"\xff\xfe",), (b"[]",), (b"null",), (b"",), (b"a", b"b", b"7"), (b"[" * 100_000,)]
)
def test_what_is_no_request_gets_an_answer_and_disturbs_nothing(worker, frames):
    answer = raw_request(worker, *frames)
    assert answer["ok"] is False
    assert answer["error"]["field"] == "request"
    assert worker.status()["commands_refused"] >= 1


def test_request_sockets_of_zeromq_work_too(worker):
    context = zmq.Context()
    asker = context.socket(zmq.REQ)
    asker.linger = 0
    asker.connect(f"{worker.address}/command")
    asker.send(b'{"id": 1, "command": "describe"}')
    assert asker.poll(5000)
    assert json.loads(asker.recv())["result"]["unit_id"] == worker.describe()["unit_id"]
    context.destroy(linger=0)


def test_a_reader_gets_numpy_blocks_without_holes(worker):
    blocks = []
    for block in worker.stream("od", timeout_s=5):
        blocks.append(block)
        if sum(len(one) for one in blocks) >= 20:
            break
    readings = numpy.concatenate(blocks)
    assert readings.dtype == numpy.dtype(records.READING_DTYPE)
    assert (numpy.diff(readings["sequence"].astype(int)) == 1).all()
    assert (readings["angle"] == 90).all()
    assert worker.lost == 0


def test_a_slow_subscriber_loses_its_own_data_and_delays_nobody(start_worker):
    running = start_worker("worker.config.telemetry_high_water=10", "worker.config.batch_interval_s=0.02")
    worker = running.client
    context = zmq.Context()
    slow = context.socket(zmq.SUB)
    slow.rcvhwm = 1
    slow.linger = 0
    slow.setsockopt(zmq.RCVBUF, 4096)
    slow.subscribe(b"")
    slow.connect(f"{worker.address}/telemetry")
    worker.command("raw", seconds=60)
    seen = 0
    for block in worker.stream("od", timeout_s=5):  # ours is quick
        seen += len(block)
        if seen >= 60:
            break
    assert worker.lost == 0
    assert worker.status()["counters"]["ring_drops"] == 0
    context.destroy(linger=0)


def test_what_a_reader_missed_is_asked_for_again(worker):
    blocks = worker.stream("od", timeout_s=10)
    first = next(blocks)
    end = worker.command("describe") and int(first["sequence"][-1]) + 1
    header = next(worker.messages("reading/od2", timeout_s=5))[1]
    header.first_sequence = end + 5
    resent = [batch.end_sequence for batch, _ in worker._missed(header, end)]
    assert resent == sorted(resent)
    blocks.close()


def test_a_worker_that_is_not_there_is_named_within_the_time_limit(tmp_path):
    with Worker(f"ipc://{tmp_path}/nobody", timeout_s=0.3) as worker:
        started = time.monotonic()
        with pytest.raises(WorkerUnreachable, match="nobody"):
            worker.describe()
        assert time.monotonic() - started < 3


def test_refusals_say_field_limit_and_remedy(worker):
    with pytest.raises(CommandRefused) as refused:
        worker.set("stirring", "target_rpm", 5000)
    assert refused.value.error["field"] == "target_rpm"
    assert "1500" in str(refused.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_end_is_clean_and_publishes_the_last_readings(start_worker, number):
    running = start_worker()
    last = None
    for batch in running.client.messages("reading/od2", timeout_s=2):
        if last is None:
            running.process.send_signal(number)
        last = batch[1].end_sequence
    assert running.process.wait(5) == 0
    assert last is not None
    assert not os.path.exists(f"/proc/{running.process.pid}")


def test_without_a_board_one_sentence_says_how_to_simulate(tmp_path):
    command = [sys.executable, "-m", "stirbar.core.cli", "worker", "--set", f"unit.data_directory={tmp_path}"]
    command += ["--set", f"unit.runtime_directory={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=stirbar_environment())
    assert done.returncode == 1
    assert "--simulate" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def free_port_pair() -> int:
    """A port of two free neighbours on loopback."""
    for port in range(47_000, 48_000, 2):
        with contextlib.ExitStack() as stack:
            try:
                for number in (port, port + 1):
                    stack.enter_context(socket.create_server(("127.0.0.1", number)))
            except OSError:
                continue
        return port
    raise AssertionError("no free ports")


def test_over_tcp_only_admitted_clients_come_in(tmp_path):
    from stirbar.core import sockets

    port = free_port_pair()
    address = f"tcp://127.0.0.1:{port}"
    settings = ["--set", f"unit.data_directory={tmp_path}", "--set", f"unit.runtime_directory={tmp_path}"]
    settings += ["--set", f"worker.config.address={address}"]
    command = [sys.executable, "-m", "stirbar.core.cli", "worker", "--simulate", *settings]
    with subprocess.Popen(command, env=stirbar_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            local = sockets.local_key_file(str(tmp_path))
            wait_for(lambda: os.path.exists(local), 10, "the worker's keys")
            with Worker(address, key_file=local, timeout_s=10) as worker:
                assert worker.describe()["simulated"]
                assert next(worker.stream("od", timeout_s=10))["angle"][0] == 90
            admitted = subprocess.run(
                [*command, "--admit", "notebook"], env=stirbar_environment(), capture_output=True, text=True, timeout=20
            )
            (tmp_path / "notebook.client").write_text(admitted.stdout)
            with Worker(address, key_file=str(tmp_path / "notebook.client"), timeout_s=10) as worker:
                assert worker.describe()["simulated"]
            lines = dict(line.split() for line in admitted.stdout.splitlines())
            public, secret = (key.decode() for key in zmq.curve_keypair())
            (tmp_path / "stranger").write_text(f"server {lines['server']}\npublic {public}\nsecret {secret}\n")
            for key_file in ("stranger", "nothing"):
                with (
                    pytest.raises((WorkerUnreachable, ValueError)),
                    Worker(address, key_file=str(tmp_path / key_file), timeout_s=1) as worker,
                ):
                    worker.describe()
            (tmp_path / "curve" / "clients" / "notebook.pub").unlink()
            with (
                Worker(address, key_file=str(tmp_path / "notebook.client"), timeout_s=1) as worker,
                pytest.raises(WorkerUnreachable),
            ):
                worker.describe()
        finally:
            process.terminate()
    for entry in (tmp_path / "curve").rglob("*"):
        assert entry.is_dir() or stat.S_IMODE(entry.stat().st_mode) == 0o600
