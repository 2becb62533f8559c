"""Units that are found, ask, and are approved by a code: the protocol, a real leader, mDNS on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import xml.etree.ElementTree

import pytest
from bottle import Bottle, HTTPResponse, request
from cluster_processes import CLI, LeaderMachine, Machine, new_unit
from mosquitto import find_mosquitto
from running import stirbar_environment, wait_for
from stirbar.bridge import asking, discovery, joining
from stirbar.bridge.announce import LEADER_TYPE, UNIT_TYPE, announcement
from stirbar.bridge.enrolment import Enrolment, EnrolmentError
from stirbar.bridge.host_scan import scan
from stirbar.bridge.pairing import (
    APPROVED,
    LIFETIME_S,
    MOST_OF_AN_ADDRESS,
    MOST_WAITING,
    Pairing,
    commitment,
    pairing_code,
)
from stirbar.core.config import load_config
from stirbar.core.leader_client import Leader, LeaderRefused
from stirbar.web.certificate import server_context
from stirbar.web.server import Server
from terminal import Terminal

pytest.importorskip("cryptography", reason="the leader's certificates")

LISTEN_S = 2.0  # what was said within the last second is not said again
UNIT_ID, NONCE = bytes(range(16)), bytes(16)


@pytest.fixture(scope="module")
def place():
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sp", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def leader(place):
    find_mosquitto()
    one = LeaderMachine(place / "leader")
    one.run()
    yield one
    one.close()


def config_of(directory: pathlib.Path, name: str = "box"):
    """Of a machine in a directory, open to others."""
    directory.mkdir(exist_ok=True)
    file = directory / "config.ini"
    file.write_text(
        f"[unit]\nname = {name}\ndata_directory = {directory}\nruntime_directory = {directory}/run\n"
        "[web.config]\nbind = 0.0.0.0\n[leader.config]\nbroker_bind = 0.0.0.0\n"
    )
    return load_config(str(file))


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def enrolment(tmp_path):
    return Enrolment(config_of(tmp_path / "leader"), lambda: None, lambda line: None)


@pytest.fixture
def csr(tmp_path):
    (tmp_path / "unit").mkdir()
    return joining.make_request(joining.Files(config_of(tmp_path / "unit")))[1]


def asked(csr: str, name: str = "vial1", unit_id: bytes = UNIT_ID, nonce: bytes = NONCE) -> dict[str, str]:
    promise = commitment(nonce, csr)
    return {"name": name, "unit_id": unit_id.hex(), "request": csr, "commitment": promise, "board": "Pi\x1b[2J 4"}


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_the_code_is_of_everything_that_both_sides_see():
    parts = (bytes(32), "request", UNIT_ID, NONCE, NONCE)
    codes = {pairing_code(*parts)}
    for at in range(5):
        other = list(parts)
        other[at] = other[at] + "x" if at == 1 else bytes([1]) + other[at][1:]
        codes.add(pairing_code(*other))
    assert len(codes) == 6 and all(len(code) == 9 and code[4] == "-" for code in codes)


def test_a_unit_that_asks_is_let_in_by_its_code_alone(enrolment, csr):
    pairing = Pairing(enrolment)
    begun = pairing.ask(asked(csr), "192.0.2.7")
    again = {"secret": begun["secret"], "nonce": NONCE.hex()}
    assert pairing.waiting() == []  # the unit has not shown its number yet
    assert pairing.answer(again) == {"state": "waiting"} == pairing.answer(again)
    [one] = pairing.waiting()
    code = pairing_code(enrolment.authority.fingerprint(), csr, UNIT_ID, bytes.fromhex(begun["nonce"]), NONCE)
    assert (one["unit"], one["address"], one["code"], one["board"]) == ("vial1", "192.0.2.7", code, "Pi[2J 4")
    for unit_id, wrong in ((UNIT_ID.hex(), "0000-0000"), ("0" * 32, code), (UNIT_ID.hex(), "é")):
        with pytest.raises(EnrolmentError, match="no unit of id"):
            pairing.approve(unit_id, wrong)
    assert pairing.approve(UNIT_ID.hex(), f" {code.lower()} ") == "vial1"
    given = pairing.answer(again)
    assert given["state"] == APPROVED and given["unit"] == "vial1" and "BEGIN CERTIFICATE" in given["certificate"]
    text = (enrolment.directory / "asked.json").read_text()
    assert begun["secret"] not in text and given["password"] not in text and text == "{}\n"
    with pytest.raises(EnrolmentError, match="nobody waits"):
        pairing.answer(again)
    assert enrolment.units()[0]["state"] == "joined"
    with pytest.raises(EnrolmentError, match="does not prove to be it"):
        pairing.ask(asked(csr), "192.0.2.7")
    with pytest.raises(EnrolmentError, match="belongs to another unit"):
        pairing.ask(asked(csr, unit_id=bytes(16)), "192.0.2.7")


def test_a_number_is_promised_before_the_leader_s_is_known(enrolment, csr):
    """So nobody can look for one that makes two codes agree."""
    pairing = Pairing(enrolment)
    begun = pairing.ask(asked(csr), "192.0.2.7")
    with pytest.raises(EnrolmentError, match="not the number that was promised"):
        pairing.answer({"secret": begun["secret"], "nonce": (b"\1" * 16).hex()})
    with pytest.raises(EnrolmentError, match="nobody waits"):  # and there is no second guess
        pairing.answer({"secret": begun["secret"], "nonce": NONCE.hex()})


def test_requests_are_few_and_are_forgotten(enrolment, csr):
    clock = Clock()
    pairing = Pairing(enrolment, clock)
    for _ in range(MOST_OF_AN_ADDRESS):
        begun = pairing.ask(asked(csr), "192.0.2.7")
    with pytest.raises(EnrolmentError, match="8 of them at 192") as refused:
        pairing.ask(asked(csr), "192.0.2.7")
    assert refused.value.status == 429
    for number in range(MOST_WAITING - MOST_OF_AN_ADDRESS):
        pairing.ask(asked(csr), f"192.0.2.{100 + number}")
    with pytest.raises(EnrolmentError, match="32 units wait"):
        pairing.ask(asked(csr), "192.0.2.200")
    again = {"secret": begun["secret"], "nonce": NONCE.hex()}
    pairing.answer(again)
    assert pairing.refuse(UNIT_ID.hex(), pairing.waiting()[0]["code"]) == "vial1" and pairing.waiting() == []
    with pytest.raises(EnrolmentError, match="it was refused"):
        pairing.answer(again)
    clock.now += LIFETIME_S
    pairing.ask(asked(csr), "192.0.2.7")
    assert len(json.loads((enrolment.directory / "asked.json").read_text())) == 1
    for wrong in ({"unit_id": "00"}, {"commitment": "zz"}, {"request": ""}, {"request": "x" * 9000}, {"name": "a b"}):
        with pytest.raises(EnrolmentError):
            pairing.ask(asked(csr) | wrong, "192.0.2.7")


# --- a real leader ---------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(place):
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(new_unit(place, name))
        return made[-1]

    return make


def fingerprint(leader: LeaderMachine) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert((leader.data / "leader/tls/ca.pem").read_text())).hexdigest()


def asks(leader: LeaderMachine, unit: Machine) -> subprocess.Popen[str]:
    """`join --ask` on a unit, under way."""
    where = f"127.0.0.1:{leader.page_port}"
    command = [*CLI, "cluster", "join", "--ask", where, "--fingerprint", fingerprint(leader)]
    return subprocess.Popen(
        [*command, "--config", str(unit.config)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=stirbar_environment(),
    )  # fmt: skip


def waiting(leader: LeaderMachine, name: str) -> dict[str, str]:
    """A unit that asks, by the leader's files."""
    enrolment = Enrolment(load_config(str(leader.config)), lambda: None, lambda line: None)
    return next((one for one in Pairing(enrolment).waiting() if one["unit"] == name), {})


def test_a_unit_asks_and_is_approved_on_the_leader(leader, unit):
    vial = unit("vial1")
    process = asks(leader, vial)
    one = wait_for(lambda: waiting(leader, "vial1"), 20.0, "the unit that asks")
    [listed] = json.loads(leader.cluster("discover", "--json", "--seconds", "0"))
    assert (listed["unit"], listed["state"], listed["code"]) == ("vial1", "asks", one["code"])
    assert "vial1" not in leader.units()
    assert "give the code" in leader.refused("approve", "vial1")
    assert "no unit of id" in leader.refused("approve", "vial1", "--code", "0000-0000")
    leader.cluster("approve", "vial1", "--code", one["code"])
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and one["code"] in said, said
    assert leader.units()["vial1"]["state"] == "joined" and waiting(leader, "vial1") == {}
    assert json.loads((vial.data / "cluster/leader.json").read_text())["unit"] == "vial1"
    assert "use_tls = 1" in (vial.directory / "unit_config.ini").read_text()


def test_two_people_compare_the_code_at_their_terminals(leader, unit):
    vial = unit("vial6")
    where = f"127.0.0.1:{leader.page_port}"
    there = Terminal([*CLI, "cluster", "join", "--ask", where, "--config", str(vial.config)])
    there.until("does the leader show the same code? [y/N] ")
    here = Terminal([*CLI, "cluster", "approve", "vial6", "--config", str(leader.config)])
    question = here.until("? [y/N] ")
    code = waiting(leader, "vial6")["code"]
    assert f"does it show the code {code}?" in question and f"this unit's code is {code}:" in there.said
    here.answer("y")
    there.answer("y")
    assert (here.end(), there.end()) == (0, 0)
    assert leader.units()["vial6"]["state"] == "joined"


def test_nobody_joins_a_leader_that_nobody_has_looked_at(leader, unit):
    vial = unit("vial2")
    where = f"127.0.0.1:{leader.page_port}"
    assert "same code" in vial.refused("join", "--ask", where)
    assert "has the fingerprint" in vial.refused("join", "--ask", where, "--fingerprint", "00" * 32)
    assert not (vial.data / "cluster").exists()


def test_who_is_in_the_middle_is_seen_by_the_codes(leader, unit, tmp_path):
    """One that relays everything with an authority of its own: the unit shows another code than the leader."""
    own, _ = server_context(tmp_path, "127.0.0.1")
    relay = Bottle()
    upstream = (leader.data / "leader/tls/ca.pem").read_text()

    @relay.get("/api/cluster/authority")
    def authority():
        return HTTPResponse((tmp_path / "tls/ca.pem").read_text(), **{"Content-Type": "application/x-pem-file"})

    @relay.post("/api/cluster/<what>")
    def pass_on(what):
        return joining.ask("127.0.0.1", leader.page_port, upstream, what, request.json)

    server = Server(relay, "127.0.0.1", 0, own)
    server.start()
    vial, said = unit("vial3"), []
    try:
        with pytest.raises(joining.JoinError, match="somebody is between"):
            asking.join(
                load_config(str(vial.config)), ("127.0.0.1", server.port), "vial3", "", said.append, lambda: False
            )
    finally:
        server.stop()
    code = waiting(leader, "vial3")["code"]
    assert code and code not in " ".join(said) and "this unit's code is" in said[1]
    assert not (vial.data / "cluster").exists()


def test_the_api_approves_and_refuses_for_an_admin(leader, unit):
    token = leader.command("leader", "token", "create", "robot", "--scope", "admin").stdout.strip()
    reader = leader.command("leader", "token", "create", "reader", "--scope", "control").stdout.strip()
    address, authority = f"https://127.0.0.1:{leader.page_port}", str(leader.data / "leader/tls/ca.pem")
    robot = Leader(address, token=token, ca_file=authority)
    with pytest.raises(LeaderRefused, match="needs admin"):
        Leader(address, token=reader, ca_file=authority).found()
    process = asks(leader, unit("vial4"))

    def asking_one() -> dict[str, str]:
        return next((one for one in robot.found() if one["unit"] == "vial4"), {})

    one = wait_for(asking_one, 20.0, "the unit that asks")
    with pytest.raises(LeaderRefused, match="no unit of id"):
        robot.approve(one["unit_id"], "0000-0000")
    assert robot.refuse(one["unit_id"], one["code"]) == "vial4"
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "it was refused" in said
    audit = leader.command("leader", "audit", "--limit", "1000").stdout
    assert f"found/{one['unit_id']}/refuse" in audit and audit.count("cluster/answer") < 9  # not every look
    assert "vial4" not in leader.units()


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium, which takes the leader's certificate unseen."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    words = "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-first-run disable-background-networking"
    for word in [*words.split(), "ignore-certificate-errors", "window-size=1280,700", f"user-data-dir={tmp_path}"]:
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_the_page_shows_who_asks_and_lets_it_in(leader, unit, browser):
    process = asks(leader, unit("vial5"))
    one = wait_for(lambda: waiting(leader, "vial5"), 20.0, "the unit that asks")
    browser.get(leader.command("leader", "link").stdout.strip())
    shown = "return document.querySelector('#found [data-unit=vial5]')?.innerText ?? ''"
    wait_for(lambda: one["code"] in browser.execute_script(shown), 20.0, "the code on the page")
    if where := os.environ.get("STIRBAR_SCREENSHOTS"):
        browser.save_screenshot(f"{where}/found.png")
    browser.find_element("css selector", "#found [data-unit=vial5] button").click()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert leader.units()["vial5"]["state"] == "joined"
    gone = "return document.querySelector('#found [data-unit=vial5]') === null"
    wait_for(lambda: browser.execute_script(gone), 20.0, "the unit gone from the list")
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


# --- mDNS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def avahi():
    """Says what announcement files say, on loopback, as avahi does."""
    zeroconf = pytest.importorskip("zeroconf", reason="mDNS: pip install stirbar[discovery]")
    with zeroconf.Zeroconf(interfaces=["127.0.0.1"]) as responder:

        def say(text: str, address: str = "127.0.0.1") -> None:
            group = xml.etree.ElementTree.fromstring(text)
            kind, port = group.findtext("service/type"), group.findtext("service/port")
            records = dict(one.text.split("=", 1) for one in group.findall("service/txt-record"))
            name = f"{group.findtext('name')}.{kind}.local."
            addresses = [socket.inet_aton(address)]
            info = zeroconf.ServiceInfo(
                f"{kind}.local.", name, port=int(port), properties=records, addresses=addresses, server="box.local."
            )
            responder.register_service(info, cooperating_responders=True)

        yield say


def test_what_is_announced_is_found_and_not_what_is_in_the_cluster(avahi, enrolment, tmp_path, monkeypatch):
    monkeypatch.setattr("stirbar.bridge.announce.read_tree", lambda name: "A <board> & more")
    fresh, member = (config_of(tmp_path / name, name) for name in ("fresh", "member"))
    for config in (fresh, member):
        text = announcement(config)
        assert xml.etree.ElementTree.fromstring(text).findtext("service/type") == UNIT_TYPE
        avahi(text)
    said = announcement(config_of(tmp_path / "leader"))
    assert f"<type>{LEADER_TYPE}</type>" in said and enrolment.authority.fingerprint().hex() in said
    avahi(said)
    heard = discovery.units(LISTEN_S, ["127.0.0.1"])
    assert {one["unit"]: one["state"] for one in heard} == {"fresh": "new", "member": "new"}
    assert heard[0]["board"] == "A <board> & more"
    member_id = next(one["unit_id"] for one in heard if one["unit"] == "member")
    _, csr = joining.make_request(joining.Files(member))
    enrolment.admit("member", bytes.fromhex(member_id), csr)
    assert [one["unit"] for one in Pairing(enrolment).found(heard)] == ["fresh"]
    [one] = discovery.leaders(LISTEN_S, ["127.0.0.1"])
    assert (one.port, one.records["fingerprint"]) == (4280, enrolment.authority.fingerprint().hex())


def test_one_leader_is_found_and_of_two_none_is_taken(avahi, enrolment, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "leaders", lambda: discovery.leaders(LISTEN_S))
    said = announcement(config_of(tmp_path / "leader"))
    avahi(said)
    assert asking.find_leader("", 1) == ("127.0.0.1", 4280)
    avahi(said.replace("stirbar leader", "another leader"))
    with pytest.raises(joining.JoinError, match="there are 2"):
        asking.find_leader("", 1)
    assert asking.find_leader("box:4281", 1) == ("box", 4281) and asking.find_leader("fe80::1", 2) == ("fe80::1", 2)


def test_hosts_are_found_by_mdns_and_known_by_their_card(avahi, tmp_path, monkeypatch):
    avahi("<g><name>box</name><service><type>_workstation._tcp</type><port>9</port></service></g>", "127.0.0.9")
    cards = "IP address HW type Flags HW address Mask Device\n127.0.0.9 0x1 0x2 D8:3A:DD:01:02:03 * eth0\n"
    (tmp_path / "arp").write_text(cards)
    monkeypatch.setattr("stirbar.bridge.host_scan.ARP", str(tmp_path / "arp"))
    assert [one for one in scan("mdns", 22) if one.name == "box.local"] == [("127.0.0.9", "box.local", "Raspberry Pi")]


def test_what_strangers_say_is_bounded_and_printable(avahi):
    say = f"<g><name>x</name><service><type>{UNIT_TYPE}</type><port>9</port>{{}}</service></g>"
    records = {"unit": "u\u202e\u0085" + "x" * 200, "unit_id": "ab" * 16, "board": "\u200b<b>"}
    avahi(say.format("".join(f"<txt-record>{k}={v.replace('<', '&lt;')}</txt-record>" for k, v in records.items())))
    [one] = discovery.units(LISTEN_S, ["127.0.0.1"])
    assert one["unit"].isprintable() and len(one["unit"]) == discovery.LONGEST_TEXT and one["board"] == "<b>"


def test_the_announcement_is_a_file_of_avahi(leader, tmp_path):
    from stirbar.bridge.announce import AnnounceError, announce

    config = load_config(str(leader.config))
    path = tmp_path / "stirbar.service"
    assert announce(config, str(path)) == str(path) and path.stat().st_mode & 0o777 == 0o644
    assert leader.cluster("announce", "--print") == path.read_text().strip()
    with pytest.raises(AnnounceError, match="there is no"):
        announce(config, str(tmp_path / "none" / "stirbar.service"))
