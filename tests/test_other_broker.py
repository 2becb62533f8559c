"""A leader on a broker that it has not set up: a mosquitto as docs/scale.md has it, and another program altogether."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pytest
from stirbar.core.leader_client import Leader
from stirbar.web.tokens import Tokens

from .leader_process import free_port
from .mosquitto import find_mosquitto
from .mqtt_unit import MqttUnit
from .running import stirbar_environment, wait_for

ROOT = pathlib.Path(__file__).parents[1]
UNIT_ID = b"\1" * 16
UNMISTAKABLE_S = 20.0


def _answers(port):
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def documented(tmp_path):
    """mosquitto with the two files of docs/scale.md; (port, user of the leader, user of the unit, password of both)."""
    program = find_mosquitto()
    maker = shutil.which("mosquitto_passwd")
    assert maker, "mosquitto brings mosquitto_passwd"
    text = (ROOT / "docs" / "scale.md").read_text()
    port = free_port()
    conf, acl = (re.search(rf"```\n# {name}.*?\n(.*?)```", text, re.S)[1] for name in ("mosquitto.conf", "acl"))
    (tmp_path / "mosquitto.conf").write_text(conf.replace("listener 8883", f"listener {port} 127.0.0.1"))
    (tmp_path / "acl").write_text(acl.replace("UNIT_ID", UNIT_ID.hex()).replace("UNIT", "vial1"))
    (tmp_path / "passwords").touch()
    for user in ("stirbar-leader", "vial1"):
        subprocess.run([maker, "-b", "passwords", user, "secret"], cwd=tmp_path, check=True, capture_output=True)
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    tmp_path.chmod(0o755)
    process = subprocess.Popen([program, "-c", "mosquitto.conf"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(port), 10, "a broker")
        yield port, "stirbar-leader", "vial1", "secret"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def ejabberd():
    """ejabberd with MQTT alone, on loopback, and the name server that Erlang needs; as for `documented`."""
    program = shutil.which("ejabberdctl", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("ejabberd is not installed")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="stirbar-ejabberd-"))
    port = free_port()
    (directory / "ejabberd.yml").write_text(
        f'hosts: [localhost]\nlisten:\n  - {{port: {port}, ip: "127.0.0.1", module: mod_mqtt}}\n'
        "modules: {mod_mqtt: {max_queue: infinity}}\nauth_method: internal\n"
    )
    for part in ("spool", "logs"):
        (directory / part).mkdir()
    subprocess.run(["chown", "-R", "ejabberd", directory], check=True)
    names = str(free_port())
    prefix = ["setpriv", "--reuid=ejabberd", "--regid=ejabberd", "--clear-groups"]
    command = [*prefix, "env", f"HOME={directory}", f"ERL_EPMD_PORT={names}", program]
    command += ["--config-dir", directory, "--config", directory / "ejabberd.yml", "--spool", directory / "spool"]
    command += ["--logs", directory / "logs", "--node", f"stirbar{port}@localhost"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": directory}
    process = subprocess.Popen([*command, "foreground"], **quiet)
    try:
        wait_for(lambda: _answers(port), 60, "ejabberd")
        for user in ("stirbar-leader", "vial1"):
            subprocess.run([*command, "register", user, "localhost", "secret"], check=True, timeout=60, **quiet)
        yield port, "stirbar-leader@localhost", "vial1@localhost", "secret"
    finally:
        subprocess.run([*command, "stop"], timeout=60, check=False, **quiet)
        process.wait(60)
        server = next(pathlib.Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
        subprocess.run([*prefix, server, "-port", names, "-kill"], timeout=60, check=False, **quiet)
        shutil.rmtree(directory, ignore_errors=True)


def all_of_it_works(broker, directory):
    """Readings live and stored, events, settings, a command and its reply, a last will."""
    port, leader_user, unit_user, password = broker
    home = directory / "home"
    home.mkdir(mode=0o700)
    (directory / "password").write_text(password + "\n")
    page, token = free_port(), Tokens(home).create("test", "control")
    settings = {
        "leader.config.data_directory": home,
        "leader.config.broker": "external",
        "mqtt.broker_port": port,
        "mqtt.broker_address": "127.0.0.1",
        "mqtt.username": leader_user,
        "mqtt.password_file": directory / "password",
        "web.config.port": page,
    }
    command = [sys.executable, "-m", "stirbar.core.cli", "leader"]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with open(directory / "errors", "wb") as errors:
        process = subprocess.Popen(command, env=stirbar_environment(), cwd=directory, stderr=errors)
    try:
        wait_for(lambda: _answers(page), UNMISTAKABLE_S, "the page")
        with Leader(f"http://127.0.0.1:{page}", token=token) as leader:
            wait_for(lambda: leader.health()["ingest"]["connected"], UNMISTAKABLE_S, "a leader at its broker")
            unit = MqttUnit("vial1", port, unit_user, password, UNIT_ID)
            unit.read("od2", [0.1, 0.2, 0.3])
            unit.event("hello", code="met")
            unit.setting("stirring", "target_rpm", 400)
            unit.wait_for_ack("od2", UNMISTAKABLE_S)
            unit.wait_for_ack("event", UNMISTAKABLE_S)
            assert leader.set("vial1", "stirring", "target_rpm", 700) == 700 and unit.rpm == 700
            (known,) = leader.units()
            assert known["state"] == "online" and known["latest"]["od2"]["value"] == 0.3
            assert {"job": "stirring", "setting": "target_rpm", "value": 400}.items() <= known["settings"][0].items()
            assert [one["code"] for one in leader.events()] == ["met"]
            begun = time.monotonic()
            unit.close(suddenly=True)
            wait_for(lambda: leader.units()[0]["state"] == "lost", 4.5, "the last will, before the silence tells it")
            assert time.monotonic() - begun < 5.0
            found = leader.health()["ingest"]
            assert (found["malformed"], found["internal_errors"], found["holes"]) == (0, 0, 0)
    finally:
        process.terminate()
        status = process.wait(15)
    assert status == 0 and "Traceback" not in (directory / "errors").read_text()


def test_a_mosquitto_that_is_set_up_as_documented(documented, tmp_path):
    all_of_it_works(documented, tmp_path)


@pytest.mark.soak
def test_another_program(ejabberd, tmp_path):
    all_of_it_works(ejabberd, tmp_path)
