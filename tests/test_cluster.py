"""Joining by a one-time token, and what a unit may do afterwards: a real leader, its mosquitto, and units by TLS."""

from __future__ import annotations

import collections
import http.client
import json
import os
import pathlib
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time

import pytest
from cluster_processes import LeaderMachine, Machine, command_lines, new_unit
from mosquitto import find_mosquitto
from running import wait_for
from stirbar.bridge import authority, joining
from stirbar.bridge.authority import is_loopback, machine_names
from stirbar.bridge.credentials import Credentials
from stirbar.bridge.enrolment import Enrolment, EnrolmentError
from stirbar.bridge.invitations import InvitationError, Invitations, Token, parse_token
from stirbar.core.config import load_config
from stirbar.web import certificate
from stirbar.web.accounting import Stored
from stirbar.web.server import Server
from units import identity

pytest.importorskip("cryptography", reason="the leader's certificates")

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def place():
    """A short path: those of sockets are limited."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sc", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def leader(place):
    find_mosquitto()
    one = LeaderMachine(place / "leader")
    one.run()
    yield one
    one.close()


@pytest.fixture
def machine(place):
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(new_unit(place, name))
        return made[-1]

    yield make
    for one in made:
        one.close()


def stored(leader: Machine) -> collections.Counter[str]:
    """How many readings of each unit the leader's store has."""
    count: collections.Counter[str] = collections.Counter()
    for (unit_id, _, _), (readings, _) in Stored(leader.data / "leader" / "stirbar.sqlite").readings().items():
        count[unit_id] += readings
    return count


# --- the token -------------------------------------------------------------------------------------------------------


def test_a_token_is_one_word_and_says_when_it_is_damaged():
    token = Token(["leader.local", "192.0.2.7"], 4280, bytes(range(32)), bytes(range(16)))
    text = token.text()
    assert text.replace("-", "").replace("_", "").isalnum() and len(text) < 160
    read = parse_token(f" {text[:50]}\n{text[50:]} ")  # broken by a chat or a terminal
    assert (read.addresses, read.port, read.fingerprint, read.secret) == (
        token.addresses, token.port, token.fingerprint, token.secret,
    )  # fmt: skip
    for at in range(9, len(text)):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(InvitationError, match="damaged"):
            parse_token(changed)
    for cut in ("", "hello", "stirbar2-" + text[9:]):
        with pytest.raises(InvitationError, match="not an invitation"):
            parse_token(cut)
    for cut in (text[:-1], text[:9], text + "AAAA", "stirbar1-é", "stirbar1-%%%%"):
        with pytest.raises(InvitationError, match="damaged"):
            parse_token(cut)


def test_an_invitation_works_once_and_not_for_ever(tmp_path):
    now = [1000.0]
    invitations = Invitations(tmp_path, lambda: now[0])
    secret, late = invitations.issue(60.0), invitations.issue(60.0)
    assert secret.hex() not in (tmp_path / "invitations.json").read_text()
    assert stat.S_IMODE((tmp_path / "invitations.json").stat().st_mode) == 0o600
    with pytest.raises(RuntimeError), invitations.use(secret):
        raise RuntimeError  # what was to be done failed: the invitation is as good as before
    with invitations.use(secret):
        pass
    with pytest.raises(InvitationError, match="was used 0 min ago"), Invitations(tmp_path, lambda: now[0]).use(secret):
        pass
    now[0] += 180.0
    with pytest.raises(InvitationError, match="expired 2 min ago"), invitations.use(late):
        pass
    with pytest.raises(InvitationError, match="knows no such"), invitations.use(bytes(16)):
        pass


# --- who is let in ---------------------------------------------------------------------------------------------------


@pytest.fixture
def open_leader(tmp_path):
    """A leader's books, without a process."""
    machine = LeaderMachine(tmp_path / "leader")
    said: list[str] = []
    changes: list[None] = []
    one = Enrolment(load_config(str(machine.config)), lambda: changes.append(None), said.append)
    one.said, one.changes, one.machine = said, changes, machine
    return one


def asked(tmp_path, token, name, number, password=""):
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-keyout", str(tmp_path / "key"), "-subj", "/CN=x"]  # fmt: skip
    request = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "secret": token.secret.hex(), "name": name, "unit_id": identity(number).hex(), "request": request,
        "password": password,
    }  # fmt: skip


def test_names_and_ids_are_not_taken_from_others(open_leader, tmp_path):
    first = open_leader.join(asked(tmp_path, open_leader.invite(5), "vial1", 1))
    assert open_leader.changes
    token = open_leader.invite(5)
    with pytest.raises(EnrolmentError, match="the name 'vial1' belongs to another unit"):
        open_leader.join(asked(tmp_path, token, "vial1", 2))
    # whoever holds an open invitation and knows a unit's id, which is no secret, does not get its place
    for name in ("vial1", "vial9"):
        with pytest.raises(EnrolmentError, match="does not prove to be it"):
            open_leader.join(asked(tmp_path, token, name, 1, "guess"))
    with pytest.raises(EnrolmentError, match="1 to 63 letters"):
        open_leader.join(asked(tmp_path, token, "a/b", 2))
    with pytest.raises(EnrolmentError, match="certificate request is damaged"):
        open_leader.join(asked(tmp_path, token, "vial2", 2) | {"request": "x"})
    open_leader.join(asked(tmp_path, token, "vial2", 2))  # after all these refusals it is as good as before
    # with its password, or invited by its name, a unit joins again; its old password and certificate end
    again = open_leader.join(asked(tmp_path, open_leader.invite(5), "vial1", 1, first["password"]))
    assert again["password"] != first["password"]
    books = Credentials(open_leader.directory / "credentials")
    assert not books.proves("vial1", first["password"]) and books.proves("vial1", again["password"])
    in_force = [one for one in open_leader.authority.issued().values() if not one["revoked"]]
    assert sorted(one["unit"] for one in in_force) == ["vial1", "vial2"]
    open_leader.join(asked(tmp_path, open_leader.invite(5, "vial1"), "anything", 1))
    named = open_leader.invite(5, "vial1")
    with pytest.raises(EnrolmentError, match="belongs to another unit"):
        open_leader.join(asked(tmp_path, named, "vial1", 3))
    assert open_leader.join(asked(tmp_path, open_leader.invite(5, "vial4"), "raspberrypi", 4))["unit"] == "vial4"
    for minutes in (0.5, 1e6):
        with pytest.raises(EnrolmentError, match="an invitation for"):
            open_leader.invite(minutes)


def test_rename_remove_and_revoke_keep_the_inventory_in_step(open_leader, tmp_path):
    def inventory():
        return load_config(str(open_leader.machine.config)).section("cluster.inventory")

    before = open_leader.machine.config.read_text()
    password = open_leader.join(asked(tmp_path, open_leader.invite(5), "vial1", 1))["password"]
    open_leader.join(asked(tmp_path, open_leader.invite(5), "vial2", 2))
    assert inventory() == {"leader": False, "vial1": True, "vial2": True}
    token = open_leader.rename("vial1", "left", 5)
    assert inventory() == {"leader": False, "vial1": True, "vial2": True}
    open_leader.join(asked(tmp_path, token, "vial1", 1, password))
    assert inventory() == {"leader": False, "left": True, "vial2": True}
    with pytest.raises(EnrolmentError, match="the name 'vial2' belongs"):
        open_leader.rename("left", "vial2", 5)
    open_leader.activate("left", False)
    open_leader.revoke("vial2")
    assert inventory() == {"leader": False, "left": False, "vial2": False}
    assert [(one["unit"], one["state"], one["active"]) for one in open_leader.units()] == [
        ("leader", "expected", False), ("left", "joined", False), ("vial2", "revoked", False),
    ]  # fmt: skip
    open_leader.remove("left")
    open_leader.remove("vial2")
    assert inventory() == {"leader": False} and open_leader.machine.config.read_text() == before
    for act in (open_leader.remove, open_leader.revoke, lambda name: open_leader.activate(name, True)):
        with pytest.raises(EnrolmentError, match="there is no unit 'vial2'"):
            act("vial2")


def test_an_inventory_that_cannot_be_written_is_a_sentence(open_leader, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("stirbar.bridge.inventory.write_atomically", full)
    open_leader.join(asked(tmp_path, open_leader.invite(5), "vial1", 1))
    assert open_leader.said == [
        f"unit 'vial1' (id {identity(1).hex()}) has joined",
        f"{open_leader.machine.config} cannot be written (Read-only file system): in its [cluster.inventory], write "
        "vial1 = 1 by hand",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_does_leaves_nothing_that_the_service_cannot_read(place, machine):
    one, unit = LeaderMachine(place / "leader"), machine("vial1")
    service = 65534
    for here in (one, unit):
        (here.data / "leader").mkdir(parents=True)
        for path in (here.data, here.data / "leader"):
            os.chown(path, service, service)
    for folder in ("tls", "credentials"):
        (one.data / "leader" / folder).mkdir(mode=0o700)
        os.chown(one.data / "leader" / folder, service, service)
    done = one.command("cluster", "invite")
    assert done.returncode == 0 and "no leader runs in" in done.stderr
    files = joining.Files(load_config(str(unit.config)))
    files.write(files.password, "x\n")
    made = [path for here in (one, unit) for path in here.data.rglob("*") if path.name != "unit_id"]
    assert len(made) > 12
    assert {(path.name, path.stat().st_uid) for path in made} == {(path.name, service) for path in made}


def test_a_leader_that_nobody_reaches_invites_nobody(tmp_path):
    machine = LeaderMachine(tmp_path / "leader", **{"web.config": {"bind": "127.0.0.1"}})
    with pytest.raises(EnrolmentError, match=r"no other machine reaches this leader: \[web\.config\] bind"):
        Enrolment(load_config(str(machine.config)), lambda: None, print).invite(5)


# --- over the wire ---------------------------------------------------------------------------------------------------


def test_two_units_join_and_their_readings_arrive(leader, machine):
    first, second = machine("vial1"), machine("vial2")
    tokens = [leader.cluster("invite"), leader.cluster("invite", "--name", "right", "--minutes", "5")]
    first.cluster("join", tokens[0])
    joining_now = threading.Thread(target=second.cluster, args=("join",), kwargs={"text": tokens[1] + "\n"})
    joining_now.start()
    seen = ""
    while joining_now.is_alive():
        seen += command_lines()
    joining_now.join()
    assert str(second.config) in seen  # openssl lives for milliseconds, a look may miss it
    units = leader.units()
    assert {name: (one["state"], one["active"]) for name, one in units.items()} == {
        "leader": ("expected", False), "vial1": ("joined", True), "right": ("joined", True),
    }  # fmt: skip
    for unit in (first, second):
        unit.start("worker")
        unit.start("bridge")
    ids = {units[name]["unit_id"] for name in ("vial1", "right")}
    wait_for(lambda: ids <= set(stored(leader)), 40.0, "readings of both units in the store")
    # nothing secret is where others can read it
    secrets = [parse_token(token).secret.hex() for token in tokens]
    secrets += [(unit.data / "cluster" / "password").read_text().strip() for unit in (first, second)]
    secrets += [(leader.data / "leader" / "credentials" / "leader.password").read_text().strip()]
    keys = [(unit.data / "cluster" / "unit.pem").read_text().split("\n")[1] for unit in (first, second)]
    seen += command_lines()
    logs = "".join(
        path.read_text(errors="replace")
        for one in (leader, first, second)
        for path in [*one.directory.rglob("*.log"), *one.directory.glob("*.ini"), *one.data.rglob("*.sqlite*")]
    )
    assert str(first.config) in seen and "page: https://" in logs
    for secret in [*secrets, *keys, *tokens]:
        assert secret not in seen and secret not in logs  # the first token was on a command line that has ended
    for one in (leader, first, second):
        loose = [path for path in one.data.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
        assert stat.S_IMODE(one.data.stat().st_mode) == 0o700
        texts = {path: path.read_text(errors="replace") for path in loose}
        assert not [path for path, text in texts.items() if any(one in text for one in ["PRIVATE", *secrets, *tokens])]
    for name in ("ca.pem", "unit.pem", "password", "leader.json"):
        assert stat.S_IMODE((first.data / "cluster" / name).stat().st_mode) == 0o600


def test_a_token_that_is_no_good_is_refused_in_one_sentence(leader, machine, monkeypatch):
    unit, other = machine("vial1"), machine("vial2")
    token = leader.cluster("invite")
    unit.cluster("join", token)
    assert "was used" in other.refused("join", token) and "stirbar cluster invite" in other.refused("join", token)
    assert "damaged" in other.refused("join", token[:-3])
    fresh = parse_token(leader.cluster("invite"))
    forged = Token(fresh.addresses, fresh.port, bytes(32), fresh.secret).text()
    assert "not the leader that made this token" in other.refused("join", forged)
    nowhere = Token(["127.0.0.1"], 1, fresh.fingerprint, fresh.secret).text()
    assert "no leader at port 1" in other.refused("join", nowhere)
    assert "the name 'vial1' belongs to another unit" in other.refused("join", fresh.text(), "--name", "vial1")
    file = leader.data / "leader" / "invitations.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({key: item | {"ends": time.time() - 90} for key, item in known.items()}))
    assert "expired 2 min ago" in other.refused("join", fresh.text())
    assert not (other.data / "cluster").exists() and not (other.directory / "unit_config.ini").exists()
    unit.cluster("join", leader.cluster("invite"))  # again: the same unit, by its password
    assert leader.units()["vial1"]["state"] == "joined"
    for words in (["list"], ["invite"], ["revoke", "vial2"]):
        assert unit.refused(*words) == "this machine is a unit of the leader at 127.0.0.1: run the command there"


def test_guessing_is_slowed(leader):
    context = ssl.create_default_context(cafile=leader.data / "leader" / "tls" / "ca.pem")
    answers = []
    for _ in range(7):
        connection = http.client.HTTPSConnection("127.0.0.1", leader.page_port, context=context, timeout=10)
        asked = json.dumps({"secret": os.urandom(16).hex(), "name": "x", "unit_id": bytes(16).hex(), "request": "x"})
        connection.request("POST", "/api/cluster/join", asked, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answers.append((response.status, json.loads(response.read())["field"]))
        connection.close()
    assert answers == [(403, "secret")] * 5 + [(429, "secret")] * 2


def test_the_secret_is_not_sent_to_a_leader_that_only_looks_right(leader, place):
    """A machine in between may repeat the leader's public certificate; it cannot be the server that it vouches for."""
    token = parse_token(leader.cluster("invite"))
    address, pem = joining.find_leader(token)
    impostor = LeaderMachine(place / "impostor")
    impostor.run()
    try:
        with pytest.raises(joining.JoinError, match=r"certificate is not good for 127\.0\.0\.1"):
            joining.ask(address, impostor.page_port, pem, "join", {"secret": token.secret.hex()})
    finally:
        impostor.close()


def test_a_clock_that_is_far_off_is_named(leader, monkeypatch):
    token = parse_token(leader.cluster("invite"))
    real = time.time
    monkeypatch.setattr(joining.time, "time", lambda: real() - 86400 * 365)
    with pytest.raises(joining.JoinError, match=r"clock is 3153\d{4} s behind the leader's, and 300 s are allowed"):
        joining.find_leader(token)


def test_revoked_and_removed_units_are_out_at_once(leader, machine):
    unit = machine("vial1")
    unit.cluster("join", leader.cluster("invite"))
    unit.start("worker")
    unit.start("bridge")
    unit_id = leader.units()["vial1"]["unit_id"]
    wait_for(lambda: stored(leader).get(unit_id), 40.0, "readings in the store")
    leader.cluster("revoke", "vial1")
    wait_for(lambda: "no broker at" in unit.log("bridge").read_text(), 20.0, "the bridge is thrown out")
    assert leader.units()["vial1"]["state"] == "revoked"
    assert "is no unit of this leader" in unit.refused("renew", "--now")
    unit.stop("bridge")
    unit.cluster("join", leader.cluster("invite"))  # the spool kept what was measured meanwhile
    count = stored(leader)[unit_id]
    unit.start("bridge")
    wait_for(lambda: stored(leader)[unit_id] > count, 40.0, "readings in the store again")
    unit.stop("bridge")
    leader.cluster("remove", "vial1")
    assert set(leader.units()) == {"leader"}


def test_a_certificate_is_renewed_by_the_password(leader, machine):
    unit = machine("vial1")
    unit.cluster("join", leader.cluster("invite"))
    pem = unit.data / "cluster" / "unit.pem"
    before = pem.read_text()
    unit.cluster("renew")
    assert pem.read_text() == before  # it is not time yet
    unit.cluster("renew", "--now")
    after = pem.read_text()
    key = "-----END PRIVATE KEY-----"
    assert after != before and after.partition(key)[0] == before.partition(key)[0]
    unit.start("worker")
    unit.start("bridge")
    unit_id = leader.units()["vial1"]["unit_id"]
    wait_for(lambda: stored(leader).get(unit_id), 40.0, "readings by the new certificate")
    (unit.data / "cluster" / "password").write_text("guess\n")
    assert "its password is another" in unit.refused("renew", "--now")


def test_the_bridge_has_a_certificate_renewed_that_ends_soon(leader, machine):
    unit = machine("vial1")
    unit.cluster("join", leader.cluster("invite"))
    about, pem = unit.data / "cluster" / "leader.json", unit.data / "cluster" / "unit.pem"
    before = pem.read_text()
    known = json.loads(about.read_text())
    about.write_text(json.dumps(known | {"ends": time.time() + 59 * 86400}))
    unit.start("bridge")
    wait_for(lambda: json.loads(about.read_text())["ends"] > time.time() + 700 * 86400, 20.0, "a new certificate")
    assert pem.read_text() != before
    wait_for(lambda: "is good until" in unit.log("bridge").read_text(), 10.0, "the end of the renewal")


def test_what_stands_in_unit_config_stays(leader, machine):
    unit = machine("vial1")
    own = unit.directory / "unit_config.ini"
    own.write_text("# mine\n[stirring.config]\ninitial_target_rpm = 300  # slow\n")
    unit.cluster("join", leader.cluster("invite"))
    assert own.read_text().startswith("# mine\n[stirring.config]\ninitial_target_rpm = 300  # slow\n")
    config = load_config(str(unit.config))
    assert config.get("mqtt", "broker_port") == leader.tls_port and config.get("mqtt", "use_tls")
    assert (config.get("cluster.topology", "leader_hostname"), config.get("unit", "name")) == ("leader", "vial1")


def test_the_page_without_a_cluster_has_no_door(place):
    find_mosquitto()
    one = LeaderMachine(place / "alone", **{"leader.config": {"broker_bind": "127.0.0.1"}})
    one.run()
    try:
        context = ssl.create_default_context(cafile=one.data / "leader" / "tls" / "ca.pem")
        connection = http.client.HTTPSConnection("127.0.0.1", one.page_port, context=context, timeout=10)
        connection.request("GET", "/api/cluster/authority")
        assert connection.getresponse().status == 409
        assert "no other machine reaches this leader" in one.refused("invite")
        connection.close()
    finally:
        one.close()


# --- out of use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["worker", "bridge"])
def test_a_unit_out_of_use_runs_nothing_and_says_why(machine, command):
    unit = machine("vial1")
    unit.cluster("deactivate", "vial1")
    line = unit.config.read_text().split("\n").index("vial1 = 0") + 1
    done = unit.command(command)
    assert done.returncode == 78 and not done.stdout
    assert done.stderr == (
        f"stirbar {command}: unit 'vial1' is out of use ({unit.config}:{line}: [cluster.inventory] vial1 = 0), so "
        "nothing runs; `stirbar cluster activate vial1`, and start it again\n"
    )
    assert not (unit.directory / "r").exists() and not (unit.data / "spool").exists()
    text = (ROOT / "core" / "deploy" / f"stirbar-{command}.service").read_text()
    assert "\nSuccessExitStatus=78\nRestartPreventExitStatus=78\n" in text
    unit.cluster("activate", "vial1")
    unit.start(command)
    wait_for(lambda: "unit 'vial1' at" in unit.log(command).read_text() or "no broker" in unit.log(command).read_text(),
             20.0, "it runs")  # fmt: skip


def test_a_leader_that_is_no_worker_lets_no_unit_of_its_own_in(place):
    find_mosquitto()
    for worker in (False, True):
        one = LeaderMachine(place / f"leader{worker:d}", worker)
        one.run()
        try:
            assert (one.data / "mqtt_password").exists() == worker
            assert one.units()["leader"]["state"] == ("this machine" if worker else "expected")
            assert one.units()["leader"]["active"] == worker
            if worker:
                assert "'leader' is this machine's own unit" in one.refused("revoke", "leader")
        finally:
            one.close()


def test_a_leader_that_is_a_worker_takes_its_readings_and_those_of_others(place, machine):
    find_mosquitto()
    one = LeaderMachine(place / "both", True)
    one.run()
    try:
        other = machine("vial2")
        other.cluster("join", one.cluster("invite"))
        one.start("worker", "--simulate")
        for here in (one, other):
            if here is other:
                here.start("worker")
            here.start("bridge")
        ids = {unit["unit_id"] for unit in one.units().values()}
        wait_for(lambda: ids <= set(stored(one)), 40.0, "readings of both")
    finally:
        one.close()


# --- names and addresses ---------------------------------------------------------------------------------------------


def test_certificates_carry_the_names_of_the_config(leader):
    context = ssl.create_default_context(cafile=leader.data / "leader" / "tls" / "ca.pem")
    for port in (leader.page_port, leader.tls_port):
        with socket.create_connection(("127.0.0.1", port)) as wire:
            context.wrap_socket(wire, server_hostname="leader").close()
        with socket.create_connection(("127.0.0.1", port)) as wire, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(wire, server_hostname="another")


def test_a_unit_finds_a_leader_whose_address_nobody_wrote_down(place, machine):
    addresses = {one for one in machine_names("0.0.0.0")[1] if not is_loopback(one) and ":" not in one}
    if not addresses:
        pytest.skip("this machine has no address beyond loopback")
    find_mosquitto()
    one = LeaderMachine(place / "leader", **{"cluster.topology": {}})
    one.run()
    try:
        word = one.cluster("invite")
        offered = parse_token(word).addresses
        assert not any(is_loopback(address) for address in offered) and addresses & set(offered)
        unit = machine("vial1")
        unit.cluster("join", word)
        address = load_config(str(unit.config)).get("mqtt", "broker_address")
        assert address in offered
        unit.start("worker")
        unit.start("bridge")
        unit_id = one.units()["vial1"]["unit_id"]
        wait_for(lambda: stored(one)[unit_id], 40.0, f"readings by {address}")
    finally:
        one.close()


def test_the_page_gets_a_new_certificate_without_a_restart(tmp_path, monkeypatch):
    context, fingerprint = certificate.server_context(tmp_path, "0.0.0.0")
    server = Server(lambda environ, start: [start("204 No Content", []) and b""], "0.0.0.0", 0, context)
    server.start()
    trusting = ssl.create_default_context(cafile=tmp_path / "tls" / "ca.pem")

    def served() -> bytes:
        wire = socket.create_connection(("127.0.0.1", server.port))
        with trusting.wrap_socket(wire, server_hostname="localhost") as secure:
            return secure.getpeercert(binary_form=True)

    try:
        before = served()
        assert not certificate.renew(tmp_path, "0.0.0.0", context) and served() == before
        monkeypatch.setattr(authority, "RENEW_DAYS", authority.SERVER_DAYS + 1)
        assert certificate.renew(tmp_path, "0.0.0.0", context) and served() != before
        assert certificate.server_context(tmp_path, "0.0.0.0")[1] == fingerprint
    finally:
        server.stop()
