"""Fresh machines become units: a real sshd, a real installation, a real leader that hears of the unit."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

import pytest
from cluster_processes import CLI, LeaderMachine, command_lines
from fresh_host import FreshHost
from mosquitto import find_mosquitto, free_port
from running import stirbar_environment, wait_for
from stirbar.bridge.bootstrap_host import Host, Refusal, board_name, choose_name
from stirbar.bridge.bootstrap_system import FILES, INTERFACES, SYSUSERS, check_machine, deployed, lacking
from stirbar.bridge.host_scan import check_network, scan
from stirbar.bridge.parcel import ParcelError, Parcels, needed_by, wheel_of
from stirbar.bridge.ssh import HostKey, KnownHosts, Target, parse_target
from stirbar.core import identity
from terminal import Terminal

pytest.importorskip("cryptography", reason="the leader's certificates")

PASSWORD = f"correct horse {os.getpid()}"  # no other test has it in a command line
UNIT = "zero2w-3f2a"


@pytest.fixture(scope="module")
def place():
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def leader(place):
    find_mosquitto()
    one = LeaderMachine(place / "leader")
    one.run()
    yield one
    one.close()


@pytest.fixture(scope="module")
def fresh(place):
    made: list[FreshHost] = []

    def make(**options: str) -> FreshHost:
        made.append(FreshHost(pathlib.Path(tempfile.mkdtemp(dir=place)), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def bare(fresh):
    """A machine on which nothing is ever installed: what is refused there is refused before."""
    return fresh(password="raspberry")


def run(leader: LeaderMachine, host: FreshHost, *words: str, password: str = PASSWORD, user: str = "pi"):
    """`stirbar cluster bootstrap`: its status, and what became of the host."""
    command = [*CLI, "cluster", "bootstrap", f"{user}@127.0.0.1:{host.port}", "--json", "--password-file", "-", *words]
    done = subprocess.run(
        [*command, "--config", str(leader.config)],
        input=password + "\n", capture_output=True, text=True, env=stirbar_environment(), timeout=600,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)[0]


def wheels_of_needs(directory: pathlib.Path) -> pathlib.Path:
    """What stirbar needs, but for an empty numpy, which takes most of the time and which no unit loads."""
    directory.mkdir()
    for name in needed_by("stirbar"):
        if name != "numpy":
            wheel_of(name, directory)
    info = "numpy-2.0.dist-info"
    with zipfile.ZipFile(directory / "numpy-2.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("numpy.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: numpy\nVersion: 2.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return directory


def states(result) -> dict[str, str]:
    return {one["step"]: one["state"] for one in result["outcomes"]}


def refusal(leader: LeaderMachine, host: FreshHost, *words: str, **options: str) -> tuple[str, str]:
    """The step that failed, and its sentence with the remedy."""
    status, result = run(leader, host, *words, **options)
    last = result["outcomes"][-1]
    assert (status, last["state"], len(last["what"])) == (1, "failed", 1) and last["remedy"], result
    return last["step"], f"{last['what'][0]}: {last['remedy']}"


def forget(leader: LeaderMachine) -> None:
    """No host's key is pinned any more."""
    (leader.data / "leader" / "ssh" / "known_hosts").unlink(missing_ok=True)


# --- from a fresh machine to a unit that reports ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def unit(leader, fresh, place):
    """A machine that was bootstrapped: looked at by a dry run, interrupted while it was installed, and run again."""
    host = fresh(password=PASSWORD)
    before, own = host.tree(), sorted((leader.data / "leader").rglob("*"))
    status, result = run(leader, host, "--dry-run", "--host-key", host.fingerprint)
    assert status == 0 and result["state"] == "would change" and result["unit"] == UNIT
    would = {step for step, state in states(result).items() if state == "would change"}
    assert would >= {"host key", "login", "packages", "user", "stirbar", "files", "interfaces", "join", "start"}
    assert host.tree() == before and sorted((leader.data / "leader").rglob("*")) == own
    interrupt(leader, host)
    assert not host.exists("opt/stirbar/parcel.sha256")
    seen: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            seen.append(command_lines())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wheels = wheels_of_needs(place / "wheels")
    status, result = run(leader, host, "--wheels", str(wheels), password="")  # the key lets us in by now
    ended.set()
    watcher.join()
    assert status == 0 and result["state"] == "changed" and states(result)["login"] == "unchanged", result
    token = of_a_token(leader)
    assert len(seen) > 3 and not any(PASSWORD in one or token in one for one in seen)
    return host


def of_a_token(leader: LeaderMachine) -> str:
    """What every invitation of a leader has in it: its authority's fingerprint, behind four bytes that differ."""
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert((leader.data / "leader/tls/ca.pem").read_text())).digest()
    middle = base64.urlsafe_b64encode(bytes(4) + fingerprint)[8:44].decode()
    assert middle in leader.cluster("invite")
    return middle


def interrupt(leader: LeaderMachine, host: FreshHost) -> None:
    """Kill a bootstrap while pip runs on the host."""
    command = [*CLI, "cluster", "bootstrap", f"127.0.0.1:{host.port}", "--password-file", "-", "--yes"]
    process = subprocess.Popen(
        [*command, "--config", str(leader.config)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**stirbar_environment(), "TMPDIR": str(leader.directory.parent)},  # what it leaves goes with the test's
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(PASSWORD.encode() + b"\n")
    process.stdin.close()
    wait_for(lambda: host.exists("opt/stirbar/pyvenv.cfg"), 30.0, "the virtual environment")
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_fresh_machine_becomes_a_unit(leader, unit):
    listed = leader.units()[UNIT]
    assert listed["state"] == "joined" and listed["unit_id"] == unit.text("var/lib/stirbar/unit_id").strip()
    assert f"name = {UNIT}" in unit.text("etc/stirbar/unit_config.ini")
    assert "dtparam=strict_gpiod\n\n[all]\ndtparam=i2c_arm=on\ndtparam=strict_gpiod\n" in unit.text(
        "boot/firmware/config.txt"
    )
    assert f"<txt-record>unit={UNIT}</txt-record>" in unit.text("etc/avahi/services/stirbar.service")
    assert unit.text("var/log/apt-get").splitlines() == ["install -y --no-install-recommends python3-venv openssl"]
    log = unit.text("var/log/systemctl")
    assert log.count("enable -q") == log.count("restart ") == 1
    for path, mode in (("var/lib/stirbar", 0o700), ("var/lib/stirbar/cluster/password", 0o600), ("etc/stirbar", 0o755)):
        about = (unit.root / path).stat()
        assert (stat.S_IMODE(about.st_mode), about.st_uid != 0) == (mode, True), path
    for name in ("id_ed25519", "known_hosts"):
        assert stat.S_IMODE((leader.data / "leader" / "ssh" / name).stat().st_mode) == 0o600
    assert unit.text("home/pi/.ssh/authorized_keys").count("stirbar-leader") == 1


def test_a_second_run_changes_nothing(leader, unit):
    before, log = unit.tree(), unit.text("var/log/systemctl").count("restart")
    status, result = run(leader, unit, password="")
    assert status == 0 and set(states(result).values()) == {"unchanged"} and len(result["outcomes"]) == 16
    assert unit.tree() == before and unit.text("var/log/systemctl").count("restart") == log


def test_what_was_changed_by_hand_is_repaired_and_services_start_again(leader, unit):
    with (unit.root / "etc/systemd/system/stirbar-worker.service").open("a") as file:
        file.write("# by hand\n")
    status, result = run(leader, unit, password="")
    changed = {step for step, state in states(result).items() if state == "changed"}
    assert status == 0 and changed == {"files", "start"}, result
    assert "by hand" not in unit.text("etc/systemd/system/stirbar-worker.service")


def test_a_host_that_fails_does_not_hold_up_the_others(leader, unit):
    nobody = free_port()
    done = leader.command("cluster", "bootstrap", f"127.0.0.1:{nobody}", f"pi@127.0.0.1:{unit.port}")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 1 and len(rows) == 3, done.stdout
    assert [row[-1] for row in rows[2:]] == ["unchanged"]
    assert "failed" in rows[1] and f"no SSH at 127.0.0.1 port {nobody}" in done.stderr and "raspi-config" in done.stderr


@pytest.mark.soak
def test_a_host_without_a_network_gets_all_that_the_leader_runs(leader, fresh):
    """numpy and all; and a wheel of the same version with other content replaces it."""
    host = fresh(password=PASSWORD)
    forget(leader)
    status, result = run(leader, host, "--yes", "--name", "whole")
    assert status == 0, result
    assert "numpy" in " ".join(path.name for path in (host.root / "opt/stirbar/lib").glob("python*/site-packages/*"))
    digest = host.text("opt/stirbar/parcel.sha256")
    host.write("opt/stirbar/parcel.sha256", "0\n")
    with next((host.root / "opt/stirbar/lib").glob("python*/site-packages/stirbar/core/version.py")).open("a") as file:
        file.write("# by hand\n")
    status, result = run(leader, host, password="")
    changed = {step for step, state in states(result).items() if state == "changed"}
    assert status == 0 and changed == {"stirbar", "start"}, result
    assert host.text("opt/stirbar/parcel.sha256") == digest
    version = next((host.root / "opt/stirbar/lib").glob("python*/site-packages/stirbar/core/version.py"))
    assert "by hand" not in version.read_text()


@pytest.mark.soak
def test_a_host_of_another_kind_compiles_the_sources(leader, fresh, place):
    host = fresh(password=PASSWORD)
    forget(leader)
    source, wheels = place / "source", wheels_of_needs(place / "to-build")
    kept = ("*.so", "build", ".venv", ".git", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(pathlib.Path(__file__).parents[1], source, ignore=shutil.ignore_patterns(*kept))
    code = f"from setuptools import build_meta as b; print(b.build_sdist({str(place)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    for name in ("setuptools", "Cython"):
        wheel_of(name, wheels)
    package = place / done.stdout.split()[-1]
    command = ("--yes", "--name", "built", "--package", str(package), "--wheels", str(wheels))
    status, result = run(leader, host, *command)
    assert status == 0, result
    assert {"gcc", "python3-dev"} <= set(host.text("var/log/apt-get").split())
    assert list((host.root / "opt/stirbar/lib").glob("python*/site-packages/stirbar/rt/loop.*.so"))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_host_key_is_not_accepted_unseen(leader, bare):
    forget(leader)
    step, said = refusal(leader, bare)
    assert step == "host key" and bare.fingerprint in said and "--host-key" in said
    step, said = refusal(leader, bare, "--host-key", "SHA256:" + "A" * 43)
    assert step == "host key" and "was not confirmed" in said


def test_a_changed_host_key_is_refused_with_the_remedy(leader, bare):
    forget(leader)
    target = Target("pi", "127.0.0.1", bare.port)
    other = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f")
    known = KnownHosts(leader.data / "leader" / "ssh" / "known_hosts")
    known.pin(target, other)
    step, said = refusal(leader, bare, "--yes")
    assert step == "host key" and bare.fingerprint in said and other.fingerprint in said
    command = said.split("`")[1]
    subprocess.run(command, shell=True, check=True, capture_output=True)  # what it says mends it
    assert known.find(target) is None
    assert refusal(leader, bare, "--yes", password="wrong")[0] == "login"


def test_wrong_and_default_passwords_are_refused(leader, bare):
    forget(leader)
    step, said = refusal(leader, bare, "--yes", password="not this one")
    assert step == "login" and "refuses this password" in said
    step, said = refusal(leader, bare, "--yes", password="raspberry")
    assert step == "login" and "default" in said and "--replace-default-password" in said
    assert not bare.exists("home/pi/.ssh/authorized_keys")


def test_a_password_that_sudo_needs_is_not_taken_away(leader, bare):
    forget(leader)
    with bare.instead("etc/sudoers.d/pi", "pi ALL=(ALL) ALL\n", 0o440):
        step, said = refusal(leader, bare, "--yes", "--replace-default-password", password="raspberry")
    assert step == "passwords" and "sudo needs the password of pi" in said


def test_the_operator_is_asked_at_the_terminal(leader, bare):
    forget(leader)
    (bare.root / "home/pi/.ssh/authorized_keys").unlink(missing_ok=True)
    terminal = Terminal([*CLI, "cluster", "bootstrap", f"127.0.0.1:{bare.port}", "--config", str(leader.config)])
    for question, answer in (("[y/N] ", "y"), ("password of pi@", "raspberry")):
        terminal.until(question)
        terminal.answer(answer)
    said = terminal.until("failed")
    assert terminal.end() == 1
    assert bare.fingerprint in said and "is a default" in said and "raspberry\r" not in said


def test_a_password_file_is_private(leader, bare, tmp_path):
    (tmp_path / "password").write_text("x\n")
    command = ["cluster", "bootstrap", f"127.0.0.1:{bare.port}", "--password-file", str(tmp_path / "password")]
    assert "chmod 600" in leader.command(*command).stderr


def test_a_default_password_is_found_and_replaced_by_keys(leader, bare):
    """Also one that was not used to log in; afterwards no password fits, and the key does."""
    forget(leader)
    with bare.instead("usr/local/bin/dpkg", "#!/bin/sh\necho riscv64\n"):
        step, said = refusal(leader, bare, "--yes", "--replace-default-password", password="raspberry")
        assert step == "machine" and "riscv64" in said  # the steps before are done
        shadow = bare.text("etc/shadow")
        fields = dict(line.split(":")[:2] for line in shadow.splitlines())
        assert fields["pi"] == "*" and fields["root"].startswith("$")
        assert refusal(leader, bare, password="")[0] == "machine"
    command = ["openssl", "passwd", "-6", "toor"]
    toor = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with bare.instead("etc/shadow", shadow.replace(f"root:{fields['root']}", f"root:{toor}"), 0o640):
        step, said = refusal(leader, bare, password="")
    assert step == "passwords" and "password of root is a default" in said


def test_a_python_that_is_too_old_is_refused(leader, bare):
    forget(leader)
    old = '#!/bin/sh\ncase "$2" in *version_info*) echo 3.9 ;; esac\n'
    with bare.instead("usr/local/bin/python3", old):
        step, said = refusal(leader, bare, "--yes", "--replace-default-password", password="raspberry")
    assert step == "machine" and "Python is 3.9, and 3.11 is needed" in said


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"architecture": "s390x"}, "the architecture s390x is none that stirbar runs on"),
        ({"architecture": ""}, "no Debian"),
        ({"python": "3.10"}, "Python is 3.10"),
        ({"python": ""}, "Python is not there"),
        ({"memory_kb": "190000"}, "190 MB of memory"),
        ({"free_kb": "1000"}, "1 MB are free"),
        ({"time": "86400"}, "behind ours"),
    ],
)
def test_a_machine_that_cannot_be_a_unit_is_refused(fact, said, tmp_path):
    host = Host(None, Target("pi", "box", 22), tmp_path)
    good = {"architecture": "armhf", "python": "3.11", "memory_kb": "430000", "free_kb": "9000000", "distribution": "x"}
    host.facts = {**good, "time": str(int(time.time()))}
    assert check_machine(host) == []
    host.facts |= fact
    with pytest.raises(Refusal, match=said):
        check_machine(host)


def test_without_rights_by_sudo_nothing_is_done(leader, bare):
    with bare.instead("etc/sudoers.d/pi", None):
        step, said = refusal(leader, bare, "--yes", "--replace-default-password", password="raspberry")
    assert step == "rights" and "usermod -aG sudo pi" in said


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0", "zero2w"),
        ("Raspberry Pi Zero W Rev 1.1", "zerow"),
        ("Raspberry Pi 4 Model B Rev 1.5", "pi4"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "pi3plus"),
        ("Raspberry Pi 3 Model A Plus Rev 1.0", "pi3aplus"),
        ("Raspberry Pi 5 Model B Rev 1.0", "pi5"),
        ("Raspberry Pi 400 Rev 1.0", "pi400"),
        ("Raspberry Pi Compute Module 4 Rev 1.1", "cm4"),
        ("Radxa ROCK 3A", "radxarock3a"),
        ("", "unit"),
    ],
)
def test_a_unit_is_named_by_its_board(model, name):
    assert board_name(model) == name


def test_names_stay_and_are_not_taken_twice():
    facts = {"model": "Raspberry Pi 4 Model B", "serial": "10000000DEADBEEF", "mac": "", "machine_id": ""}
    assert choose_name(facts, {}, "") == "pi4-beef"
    assert choose_name(facts, {"pi4-beef": "ab"}, "") == "pi4-adbeef"
    assert choose_name(facts, {"vial": "cd", "pi4-beef": "ab"}, "cd") == "vial"
    with pytest.raises(Refusal, match="taken"):
        choose_name(facts, {f"pi4-{end}": "ab" for end in ("beef", "adbeef", "deadbeef")}, "")
    assert choose_name(facts | {"serial": "", "mac": "dc:a6:32:01:02:03"}, {}, "") == "pi4-0203"


def test_hosts_are_named_as_for_ssh():
    assert parse_target("vial1.local", "pi", 22) == ("pi", "vial1.local", 22)
    assert parse_target("root@192.0.2.7:2222", "pi", 22) == ("root", "192.0.2.7", 2222)
    assert parse_target("[fe80::1]:23", "pi", 22) == ("pi", "fe80::1", 23)
    assert parse_target("fe80::1", "pi", 22) == ("pi", "fe80::1", 22)
    for wrong in ("", "-oProxyCommand=x", "a@-b", "a b", "host:x", "host:0", "host:70000", "@"):
        with pytest.raises(ValueError, match="names no host"):
            parse_target(wrong, "pi", 22)


def test_only_small_private_networks_are_scanned():
    assert check_network("192.168.1.7/24").num_addresses == 256
    for wrong, why in (("10.0.0.0/16", "at most 256"), ("8.8.8.0/24", "not a private"), ("house", "no network")):
        with pytest.raises(ValueError, match=why):
            check_network(wrong)


def test_a_scan_finds_who_listens_and_not_itself():
    with socket.create_server(("127.0.0.6", 0)) as there, socket.create_server(("127.0.0.1", 0)) as here:
        assert scan("127.0.0.4/30", there.getsockname()[1]) == [("127.0.0.6", "", "")]
        assert scan("127.0.0.0/30", here.getsockname()[1]) == []


def test_what_a_scan_finds_is_not_taken_unasked(leader):
    with socket.create_server(("127.0.0.6", 0)) as there:
        port = str(there.getsockname()[1])
        for more in ([], ["--yes"]):  # by its card it is no Raspberry Pi
            done = leader.command("cluster", "bootstrap", "--scan", "127.0.0.4/30", "--port", port, *more)
            assert (done.returncode, done.stdout) == (1, "")
            assert "found: 127.0.0.6\n" in done.stderr and "no host: name one" in done.stderr
    assert "at most 256" in leader.command("cluster", "bootstrap", "--scan", "10.0.0.0/8").stderr


def test_the_leader_s_own_machine_is_left_alone(leader, bare):
    forget(leader)
    (bare.root / "var/lib/stirbar").mkdir()
    (bare.root / "var/lib/stirbar/unit_id").write_text(identity.unit_id(str(leader.data)).hex())
    step, said = refusal(leader, bare, "--yes", "--replace-default-password", password="raspberry")
    shutil.rmtree(bare.root / "var/lib/stirbar")
    assert step == "name" and "own machine" in said


def test_files_go_where_they_say():
    for name, path in {**FILES, "stirbar-sysusers.conf": SYSUSERS}.items():
        assert deployed(name).decode().startswith(f"# {path}: "), name


def test_what_config_txt_lacks():
    assert lacking("") == list(INTERFACES)
    assert lacking("[pi4]\ndtparam=i2c_arm=on\n[all]\ndtparam = strict_gpiod\n") == ["dtparam=i2c_arm=on"]
    assert lacking("dtoverlay=i2c-gpio,bus=1\ndtparam=strict_gpiod\n") == []


def test_a_package_is_chosen_by_the_host_s_kind(tmp_path):
    names = ("stirbar-1-cp311-cp311-linux_aarch64.whl", "stirbar-1-cp313-cp313-linux_aarch64.whl", "stirbar-1.tar.gz")
    wheel, newer, sources = (tmp_path / name for name in names)
    for path in (wheel, newer, sources):
        path.write_bytes(path.name.encode())
    every = Parcels(tmp_path, [sources, newer, wheel], None)
    assert every.choose("3.11", ["aarch64"]).package == wheel
    assert every.choose("3.13", ["aarch64"]).package == newer
    compiled = every.choose("3.12", ["armv6l"])
    assert compiled.package == sources and compiled.is_source and every.beside(compiled) == ()
    with pytest.raises(ParcelError, match="no package for cp312 on armv6l"):
        Parcels(tmp_path, [wheel], None).choose("3.12", ["armv6l"])
