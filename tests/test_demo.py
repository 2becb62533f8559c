"""`stirbar demo` as a whole: real worker, bridge, mosquitto, leader; and its parts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from demo_process import BROKER, LINK, ROOT, Demo, processes_in, wait_for
from stirbar.core.leader_client import Leader, LeaderRefused, LeaderUnreachable
from stirbar.web.accounting import Tally, percentile_us
from stirbar.web.children import Child, python, stop_all


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*arguments):
        started.append(Demo(tmp_path, *arguments))
        return started[-1]

    yield run
    for demo in started:
        demo.close()


def test_every_reading_is_accounted_for(start, tmp_path):
    demo = start("--workers", 2, "--seconds", 5)
    status, account, said = demo.finish()
    assert status == 0, said
    assert set(account) == {
        "units", "seconds", "readings_published", "readings_stored", "readings_lost", "gaps", "lateness_p99_9_us",
        "overruns", "restarts",
    }  # fmt: skip
    assert account["units"] == 2 and 5.0 <= account["seconds"] < 9.0
    assert account["readings_published"] == account["readings_stored"] > 2 * 5 * 8
    assert account["readings_lost"] == account["gaps"] == 0 and account["restarts"] == {}
    assert 0 < account["lateness_p99_9_us"] < 1e6 and account["overruns"] >= 0
    assert processes_in(tmp_path) == {}


def test_killed_parts_come_back_and_nothing_is_lost(start, tmp_path):
    demo = start("--workers", 1).wait_for_link()
    with Leader(demo.address, token=demo.token, timeout_s=2) as client:
        assert client.unit("unit1")["state"] == "online"
        client.set("unit1", "stirring", "target_rpm", 450)

        def reads_on(after):
            """Whether a reading was measured and stored later than a time."""
            try:
                (line,) = client.readings("od2", unit="unit1", start=after, points=2000) or [{"t": [0]}]
                return line["t"][-1] > after and client.unit("unit1")["state"] == "online"
            except (LeaderRefused, LeaderUnreachable):
                return False

        for name in ("bridge of unit1", BROKER, "leader"):
            pid = demo.pids()[name]
            os.kill(pid, signal.SIGKILL)
            killed = time.time()
            wait_for(lambda name=name, pid=pid: demo.pids()[name] not in (None, pid))
            wait_for(lambda killed=killed: reads_on(killed + 0.5))  # same login: it survives the leader
        rpm = {one["setting"]: one["value"] for one in client.unit("unit1")["settings"]}
        assert rpm["target_rpm"] == 450
    demo.process.send_signal(signal.SIGTERM)
    status, account, said = demo.finish()
    assert status == 0, said
    assert account["readings_lost"] == account["gaps"] == 0
    assert account["restarts"] == {"leader": 1, "bridge of unit1": 1}  # the broker is the leader's to restart
    assert "bridge of unit1 was ended by SIGKILL: starting it again" in said
    assert processes_in(tmp_path) == {}


def test_killed_worker_starts_a_new_run(start, tmp_path):
    demo = start("--workers", 1).wait_for_link()
    with Leader(demo.address, token=demo.token, timeout_s=2) as client:
        first = wait_for(lambda: client.unit("unit1")["status"].get("run_id"))
        os.kill(demo.pids()["worker of unit1"], signal.SIGKILL)
        wait_for(lambda: client.unit("unit1")["status"]["run_id"] != first)
    demo.process.send_signal(signal.SIGINT)
    status, account, said = demo.finish()
    assert account["restarts"] == {"worker of unit1": 1}
    assert account["readings_published"] == account["readings_stored"] + account["readings_lost"]
    assert status == (1 if account["readings_lost"] else 0), said
    assert processes_in(tmp_path) == {}


def test_nothing_outlives_a_killed_demo(start, tmp_path):
    demo = start("--workers", 1).wait_for_link()
    assert len(processes_in(tmp_path)) == 5  # demo, leader, mosquitto, worker, bridge
    demo.process.kill()
    wait_for(lambda: not processes_in(tmp_path), 10)


def test_stop_while_starting(start, tmp_path):
    demo = start("--workers", 1)
    wait_for(lambda: (tmp_path / "processes.json").exists())
    demo.process.send_signal(signal.SIGTERM)
    _, account, said = demo.finish(30)
    assert account is not None and account["readings_lost"] == 0, said
    assert processes_in(tmp_path) == {}


def test_port_taken_is_one_sentence(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, account, said = start("--port", port, "--workers", 1).finish()
    assert status == 1 and account is None
    assert f"port {port} is taken by another program" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "0"), "allowed are 1 to 64"),
        (("--seconds", "-1"), "positive"),
        (("--set", "stirring.config.pwm=1"), "pwm"),
        (("--config", "/nowhere.ini"), "no such file"),
    ],
)
def test_bad_options(start, arguments, words):
    status, account, said = start(*arguments).finish()
    assert status != 0 and account is None and words in said and "Traceback" not in said


def leader_command(directory, *arguments, text=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build" / "view")}
    return subprocess.run(
        [*python("stirbar.web.command"), *arguments, "--set", f"leader.config.data_directory={directory}"],
        capture_output=True,
        text=True,
        input=text,
        timeout=30,
        env=environment,
    )


def test_leader_password_and_link(tmp_path):
    assert "allowed are 8 to" in leader_command(tmp_path, "password", text="short\n").stderr
    done = leader_command(tmp_path, "password", text="long enough\n")
    assert done.returncode == 0 and "long enough" not in done.stdout + done.stderr
    link = leader_command(tmp_path, "link").stdout.strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:4280/login\?token=\S{40,}", link)


def test_leader_starts_stops_and_refuses_a_second(tmp_path):
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    options = ["--set", f"web.config.port={ports[0]}", "--set", f"mqtt.broker_port={ports[1]}"]
    options += ["--set", f"leader.config.data_directory={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build" / "view")}
    leader = subprocess.Popen(
        [*python("stirbar.web.command"), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    try:
        said = []
        for line in leader.stderr:
            said.append(line)
            if "log in" in line:
                break
        text = "".join(said)
        assert f"broker: mosquitto at 127.0.0.1:{ports[1]}" in text and f"page: http://127.0.0.1:{ports[0]}" in text
        assert "token" not in text  # standard output is no terminal here, it may be a log
        second = leader_command(tmp_path)
        assert second.returncode == 1 and "another leader (process" in second.stderr
        other = leader_command(
            tmp_path / "other", "--set", f"web.config.port={ports[0]}", "--set", "mqtt.broker_port=1"
        )
        assert other.returncode == 1 and "Traceback" not in other.stderr
        link = leader_command(tmp_path, "link").stdout.strip()
        address, token = LINK.match(link).groups()
        with Leader(address, token=token) as client:
            assert client.units() == [] and client.health()["status"] == "ok"
        begun = time.monotonic()
        leader.send_signal(signal.SIGTERM)
        out, _ = leader.communicate(timeout=10)
        assert leader.returncode == 0 and out == "" and time.monotonic() - begun < 3.0
    finally:
        if leader.poll() is None:
            leader.kill()
            leader.communicate()
    assert processes_in(tmp_path) == {}


def test_child_backs_off_and_says_why(tmp_path):
    said = []
    command = [sys.executable, "-c", "import sys; print('no such thing', flush=True); sys.exit(3)"]
    child = Child("thing", command, tmp_path / "log", said.append)
    child.start()
    wait_for(lambda: child.watch() or child.restarts)
    wait_for(lambda: child.watch() or child.restarts == 2)
    assert said[0] == "thing ended with status 3 (no such thing): starting it again in 0.25 s"
    assert said[1].endswith("in 0.5 s")
    stop_all([child], 2.0)


def test_stubborn_child_is_killed(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child("deaf", [sys.executable, "-c", code], tmp_path / "log", print)
    child.start()
    wait_for(lambda: child.last_words() == "up")
    assert stop_all([child], 0.2) == ["deaf"]
    assert child.pid is None


def test_percentile():
    assert percentile_us({}, 99.9) is None
    assert percentile_us({1000: 999, 5000: 1}, 99.9) == 1.0
    assert percentile_us({1000: 998, 5000: 2}, 99.9) == 5.0
    assert percentile_us({1000: 1}, 50) == 1.0


def test_tally_takes_the_furthest_word():
    tally = Tally()
    status = {
        "run_id": "aa",
        "sequences": {"od2": 50, "event": 9, "temperature": 0},
        "counters": {"overruns": 2},
        "lateness": {"sampling": {"counts": [[0, 1000, 10]]}, "actuators": {"counts": [[0, 1000, 5], [1000, 2000, 1]]}},
    }
    tally.add_status("u1", status)
    tally.add_status("u1", {**status, "sequences": {"od2": 40}})
    tally.add_status("u1", {**status, "run_id": "bb", "sequences": {"od2": 5}})
    assert tally.published() == 55 and tally.overruns() == 4
    assert tally.lateness_us(50) == 1.0 and tally.lateness_us(100) == 2.0
    tally.close()
