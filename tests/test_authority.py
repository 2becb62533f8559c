"""The leader's certificate authority, and the broker's door for other machines: who comes in by it, and who not."""

from __future__ import annotations

import datetime
import pathlib
import socket
import ssl
import stat
import subprocess
import threading

import paho.mqtt.client as mqtt
import pytest
from mosquitto import free_port
from stirbar.bridge.broker import Broker, BrokerError, Network
from units import Unit, identity, wait_until

pytest.importorskip("cryptography", reason="makes the certificates of these tests")

from cryptography import x509
from stirbar.bridge import authority as module
from stirbar.bridge.authority import Authority, CertificateError, machine_names

NAMES = machine_names("0.0.0.0")


def request(directory: pathlib.Path, name: str, *algorithm: str) -> tuple[pathlib.Path, str]:
    """A key and a certificate request as a unit makes them."""
    key = directory / f"{name}.key"
    kind = algorithm or ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    command = ["openssl", "req", "-new", "-newkey", *kind, "-nodes", "-keyout", str(key), "-subj", f"/CN={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return key, done.stdout


class Door:
    """A broker with a door for other machines, and units that knock at it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.authority = Authority(directory / "tls")
        certificate, key, _ = self.authority.server("broker", *NAMES)
        self.port = free_port()
        files = (str(self.authority.certificate_path), certificate, key, str(self.authority.revoked_path))
        self.broker = Broker(directory, network=Network("0.0.0.0", self.port, files), log=lambda line: None)
        self.broker.start()

    def admit(self, name: str, number: int) -> tuple[str, str, str]:
        """Password, certificate file and key file of a unit."""
        key, asked = request(self.directory, name)
        certificate = self.directory / f"{name}.pem"
        certificate.write_text(self.authority.sign(asked, name, identity(number)).pem)
        password = self.broker._credentials.admit(name, identity(number))
        self.broker.reload()
        return password, str(certificate), str(key)

    def knock(self, name: str, password: str, certificate: str | None, key: str | None, ca: str | None = None) -> str:
        """`Success`, or why the broker does not let somebody in."""
        heard: list[str] = []
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
        client.username_pw_set(name, password)
        client.on_connect = lambda client, userdata, flags, reason, properties: heard.append(str(reason))
        client.on_disconnect = lambda *arguments: heard.append("closed")
        client.tls_set(ca or str(self.authority.certificate_path), certificate, key)
        try:
            client.connect("127.0.0.1", self.port, 5)
            client.loop_start()
            wait_until(lambda: heard, "an answer")
            client.disconnect()
        except (ssl.SSLError, ConnectionError) as error:
            heard.append(type(error).__name__)
        finally:
            client.loop_stop()
        return heard[0]


@pytest.fixture
def door(tmp_path):
    one = Door(tmp_path)
    yield one
    one.broker.stop()


def test_certificates_say_who_and_are_private(tmp_path):
    authority = Authority(tmp_path / "tls")
    _, asked = request(tmp_path, "whatever")
    issued = authority.sign(asked, "vial1", identity(1))
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem.encode()))
    assert certificate.subject.rfc4514_string() == "CN=vial1"  # not what the request said
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "urn:uuid:00000000-0000-0000-0000-000000000001"
    ]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]  # a unit cannot pass for the leader
    authority.server("broker", *NAMES)
    for name in ("ca.key", "broker.key", "issued.json", "crl.pem"):
        assert stat.S_IMODE((tmp_path / "tls" / name).stat().st_mode) == 0o600
    again = Authority(tmp_path / "tls")
    assert again.fingerprint() == authority.fingerprint() and list(again.issued()) == [issued.serial]


def test_a_server_certificate_is_made_anew_before_it_ends(tmp_path, monkeypatch):
    authority = Authority(tmp_path / "tls")
    assert authority.server("broker", *NAMES)[2] and not authority.server("broker", *NAMES)[2]
    assert authority.server("broker", NAMES[0] | {"leader.lab"}, NAMES[1])[2]  # another name
    monkeypatch.setattr(module, "RENEW_DAYS", module.SERVER_DAYS + 1)
    assert authority.server("broker", *NAMES)[2]


def test_revoked_certificates_are_listed_and_forgotten_when_they_have_ended(tmp_path, monkeypatch):
    authority = Authority(tmp_path / "tls")
    first = authority.sign(request(tmp_path, "a")[1], "vial1", identity(1))
    second = authority.sign(request(tmp_path, "b")[1], "vial1", identity(1))  # the first is revoked by that
    other = authority.sign(request(tmp_path, "c")[1], "vial2", identity(2))

    def revoked() -> set[str]:
        read = x509.load_pem_x509_crl(authority.revoked_path.read_bytes())
        assert read.is_signature_valid(x509.load_pem_x509_certificate(authority.pem.encode()).public_key())
        return {f"{item.serial_number:x}" for item in read}

    def dated() -> datetime.datetime:
        return x509.load_pem_x509_crl(authority.revoked_path.read_bytes()).last_update_utc

    assert revoked() == {first.serial}
    before = dated()
    assert authority.revoke(identity(1)) == 1 and authority.revoke(identity(1)) == 0
    assert revoked() == {first.serial, second.serial} and other.serial in authority.issued()
    assert dated() > before  # also within one second: OpenSSL follows the newest
    known = authority.issued()
    known[first.serial]["ends"] = 1.0
    authority._keep(known)
    assert revoked() == {second.serial}


@pytest.mark.parametrize("bad", ["", "x" * 9000, "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_a_bad_request_is_refused(tmp_path, bad):
    with pytest.raises(CertificateError, match="certificate request is damaged"):
        Authority(tmp_path / "tls").sign(bad, "vial1", identity(1))


def test_a_weak_key_is_refused(tmp_path):
    with pytest.raises(CertificateError, match="too weak: RSA of 2048 bits"):
        Authority(tmp_path / "tls").sign(request(tmp_path, "weak", "rsa:1024")[1], "vial1", identity(1))


def test_damaged_records_of_what_is_revoked_stop_the_leader(tmp_path):
    Authority(tmp_path / "tls")
    (tmp_path / "tls" / "issued.json").write_text("{")
    (tmp_path / "tls" / "crl.pem").unlink()
    with pytest.raises(CertificateError, match=r"issued\.json is damaged"):
        Authority(tmp_path / "tls")


def test_who_comes_in_from_the_network(door, tmp_path):
    password, certificate, key = door.admit("vial1", 1)
    assert door.knock("vial1", password, certificate, key) == "Success"
    assert door.knock("vial1", "wrong", certificate, key) == "Not authorized"  # a certificate is not enough
    assert door.knock("vial1", password, None, None) in ("closed", "SSLError", "ConnectionResetError")
    stranger = Authority(tmp_path / "other")
    forged = tmp_path / "forged.pem"
    forged.write_text(stranger.sign(request(tmp_path, "forged")[1], "vial1", identity(1)).pem)
    refused = ("closed", "SSLError", "ConnectionResetError")
    assert door.knock("vial1", password, str(forged), str(tmp_path / "forged.key")) in refused
    assert door.knock("vial1", password, certificate, key, str(stranger.certificate_path)) == "SSLCertVerificationError"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_old_tls_is_refused(door):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(door.authority.certificate_path)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", door.port)) as wire, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(wire, server_hostname="127.0.0.1")


def test_a_revoked_certificate_is_refused_after_a_reload(door):
    password, certificate, key = door.admit("vial1", 1)
    other = door.admit("vial2", 2)
    assert door.knock("vial1", password, certificate, key) == "Success"
    door.authority.revoke(identity(1))  # the account is still there: it is the certificate that is refused
    door.broker.reload()
    wait_until(lambda: door.knock("vial1", password, certificate, key) != "Success", "refused")
    assert door.knock("vial2", *other) == "Success"
    password, certificate, key = door.admit("vial1", 1)  # a new one for the same unit
    wait_until(lambda: door.knock("vial1", password, certificate, key) == "Success", "let in again")


def test_a_renewed_server_certificate_is_in_force_without_a_restart(door, monkeypatch):
    def served() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(door.authority.certificate_path)
        with socket.create_connection(("127.0.0.1", door.port)) as wire:
            return context.wrap_socket(wire, server_hostname="127.0.0.1").getpeercert(binary_form=True)

    before, pid = served(), door.broker.pid
    monkeypatch.setattr(module, "RENEW_DAYS", module.SERVER_DAYS + 1)
    assert door.authority.server("broker", *NAMES)[2]
    door.broker.reload()
    wait_until(lambda: served() != before, "the new certificate")
    assert door.broker.pid == pid


class SecureUnit(Unit):
    """A unit on another machine."""

    def __init__(self, door: Door, name: str, number: int, filters: list[str] | None = None) -> None:
        password, certificate, key = door.admit(name, number)
        self.files = (str(door.authority.certificate_path), certificate, key)
        self.password = password
        real = mqtt.Client.connect

        def connect(client: mqtt.Client, host: str, port: int, keepalive: int) -> object:
            client.tls_set(*self.files)
            return real(client, host, door.port, keepalive)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mqtt.Client, "connect", connect)
            super().__init__(door.broker, name, number, password, filters)
        assert self.connected.wait(10)


def forge(door: Door, unit: SecureUnit, topic: str) -> None:
    """Publish what is not allowed, until the broker has answered: mosquitto ends the connection."""
    done = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
    client.username_pw_set(unit.name, unit.password)
    client.tls_set(*unit.files)
    client.on_connect = lambda client, userdata, flags, reason, properties: client.publish(topic, b"forged", 1)
    client.on_disconnect = lambda *arguments: done.set()
    client.connect("127.0.0.1", door.port, 60)
    client.loop_start()
    assert done.wait(10), "the broker took a forged message"
    client.loop_stop()


def test_a_unit_cannot_step_out_of_its_topics(door):
    spy = SecureUnit(door, "spy", 2, ["#", "stirbar/#", "pioreactor/#", "$SYS/#", f"stirbar/{identity(1).hex()}/ack"])
    unit = SecureUnit(door, "vial1", 1)
    unit.client.publish(f"{unit.base}/store/od2", b"private", 1, True).wait_for_publish(5)
    unit.client.publish("pioreactor/vial1/growth/stirring/target_rpm", b"500", 1, True).wait_for_publish(5)
    forge(door, spy, f"{unit.base}/ack")
    forge(door, spy, f"{unit.base}/store/od2")
    forge(door, spy, "pioreactor/vial1/growth/stirring/target_rpm/set")
    forge(door, spy, "pioreactor/$broadcast/growth/stirring/target_rpm/set")
    forge(door, spy, "stirbar/leader/state")
    leader = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    leader.username_pw_set(door.broker.username, door.broker.password)
    leader.connect("127.0.0.1", door.broker.port, 5)
    leader.loop_start()
    wait_until(leader.is_connected, "the leader connected")
    everyone = ("pioreactor/$broadcast/growth/stirring/target_rpm/set", b"300")  # after all that went before
    leader.publish(*everyone, 1).wait_for_publish(5)
    wait_until(lambda: everyone in unit.heard and everyone in spy.heard, "the broadcast")
    assert set(spy.heard) == {everyone}
    assert {payload for _, payload in unit.heard} == {b"500", b"300"}
    leader.disconnect()
    leader.loop_stop()
    spy.close()
    unit.close()


def test_without_a_certificate_nothing_is_open_beyond_loopback(tmp_path):
    with pytest.raises(BrokerError, match="by TLS and to those with a certificate alone"):
        Broker(tmp_path, bind="0.0.0.0", tls=("a", "b", "c"))
