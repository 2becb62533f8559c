"""The leader's own small certificate authority: it vouches for the page, for the broker, and for each unit.

All is in one directory, readable by its owner only: `ca.key` and `ca.pem` (what units and browsers are told to trust),
a certificate and key of each of the leader's servers, `issued.json` (what units were given, and what was taken back)
and `crl.pem`, the same for mosquitto. A unit makes its own key and sends a request; its key never travels. The package
`cryptography` is needed on the leader alone: a unit asks the openssl program that each Debian has, and so a Pi Zero
neither builds nor keeps a package for something that it does once in two years.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import socket
import uuid
from typing import TYPE_CHECKING, Any

from stirbar.bridge.credentials import locked, write_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365  # browsers take no more than 398
UNIT_DAYS = 730
RENEW_DAYS = 30  # a server's certificate is made anew when less than this is left
BACKDATED = datetime.timedelta(days=1)  # a unit's clock may be behind
SMALLEST_RSA_BITS = 2048
LARGEST_REQUEST_BYTES = 8192


class CertificateError(Exception):
    """TLS could not be set up, or a certificate not issued; the text says why and what to do."""


class Issued:
    """A unit's certificate: the PEM text, its serial number in hexadecimal, and when it ends in Unix seconds."""

    __slots__ = ("ends", "pem", "serial")

    def __init__(self, pem: str, serial: str, ends: float) -> None:
        self.pem = pem
        self.serial = serial
        self.ends = ends


class Authority:
    """The authority in a directory, made at first use. Raises CertificateError where it cannot be made or used.

    Synchronization: any thread and any process: what changes files holds a lock on `authority.lock`.
    """

    def __init__(self, directory: Path, purpose: str = "a cluster of several machines") -> None:
        try:
            import cryptography.x509  # noqa: F401
        except ImportError:
            raise CertificateError(
                f"{purpose} needs TLS, and the package 'cryptography' that makes the certificates is not installed: "
                "run `pip install stirbar[tls]`, or bind to 127.0.0.1"
            ) from None
        self.directory = directory
        self.certificate_path = directory / "ca.pem"
        self.revoked_path = directory / "crl.pem"
        self._issued_path = directory / "issued.json"
        with self._changing():
            self._certificate, self._key = self._own()

    @property
    def pem(self) -> str:
        """The authority's own certificate, which is public."""
        return self.certificate_path.read_text()

    def fingerprint(self) -> bytes:
        """SHA-256 of the authority's certificate: what an invitation pins."""
        from cryptography.hazmat.primitives import hashes

        return self._certificate.fingerprint(hashes.SHA256())

    def server(self, name: str, hosts: Iterable[str], addresses: Iterable[str]) -> tuple[str, str, bool]:
        """Certificate and key file of one of the leader's servers, and whether they were made now: because there were
        none, they do not cover all these names, or they end soon."""
        from cryptography.x509.oid import ExtendedKeyUsageOID

        with self._changing():
            made = not self._covers(name, {*hosts, *addresses})
            if made:
                self._make(name, sorted(hosts), sorted(addresses), ExtendedKeyUsageOID.SERVER_AUTH)
        return str(self.directory / f"{name}.pem"), str(self.directory / f"{name}.key"), made

    def client(self, name: str) -> tuple[str, str, bool]:
        """The same of a program that calls another machine of this authority."""
        from cryptography.x509.oid import ExtendedKeyUsageOID

        with self._changing():
            made = not self._covers(name, {name})
            if made:
                self._make(name, [name], [], ExtendedKeyUsageOID.CLIENT_AUTH)
        return str(self.directory / f"{name}.pem"), str(self.directory / f"{name}.key"), made

    def adopt(self, issued: dict[str, dict[str, Any]]) -> None:
        """Know of the certificates that another machine of this authority has issued, in place of our own list."""
        with self._changing():
            if issued != self.issued():
                self._keep(issued)

    def sign(self, request_pem: str, unit: str, unit_id: bytes, replace: bool = True) -> Issued:
        """A certificate for the key of a request; name and id are those given here, whatever the request says.

        `replace` revokes the earlier certificates of this unit_id.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = _requested_key(request_pem)
        name = _name(unit)
        identifier = uuid.UUID(bytes=unit_id).urn
        builder = (
            _builder(name, self._certificate.subject, key, UNIT_DAYS)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identifier)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(self._issuer_identifier(), critical=False)
        )
        with self._changing():
            certificate: x509.Certificate = builder.sign(self._key, hashes.SHA256())
            issued = Issued(
                certificate.public_bytes(serialization.Encoding.PEM).decode(),
                f"{certificate.serial_number:x}",
                certificate.not_valid_after_utc.timestamp(),
            )
            known = self.issued()
            if replace:
                _mark_revoked(known, unit_id)
            known[issued.serial] = {"unit": unit, "unit_id": unit_id.hex(), "ends": issued.ends, "revoked": 0.0}
            self._keep(known)
        return issued

    def revoke(self, unit_id: bytes) -> int:
        """Take back all certificates of a unit; returns how many were in force."""
        with self._changing():
            known = self.issued()
            count = _mark_revoked(known, unit_id)
            if count:
                self._keep(known)
        return count

    def issued(self) -> dict[str, dict[str, Any]]:
        """{serial number: unit, unit_id, ends and revoked, both in Unix seconds; revoked 0 while in force}."""
        try:
            known = json.loads(self._issued_path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise CertificateError(
                f"{self._issued_path} is damaged, and with it which certificates are revoked: restore it from a "
                f"backup, or remove {self.directory} and let every unit join again"
            ) from None
        return dict(known)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.directory / "authority.lock"):
                yield
        except OSError as error:
            raise CertificateError(
                f"the certificate could not be written to {self.directory}: {error.strerror}"
            ) from None

    def _own(self) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
        """Certificate and key of the authority, made at the first call."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
            key = serialization.load_pem_private_key((self.directory / "ca.key").read_bytes(), None)
            if isinstance(key, ec.EllipticCurvePrivateKey) and _days_left(certificate) > RENEW_DAYS:
                self._certificate, self._key = certificate, key
                if not self.revoked_path.exists():
                    self._write_revoked(self.issued())
                return certificate, key
        except (FileNotFoundError, ValueError):
            pass  # none yet, or damaged: make one
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"stirbar leader on {socket.gethostname()}")
        builder = (
            _builder(name, name, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
        )
        self._key = key
        self._certificate = self._write("ca", builder, key)
        self._keep({})
        return self._certificate, key

    def _covers(self, name: str, names: set[str]) -> bool:
        """Whether the certificate at hand is from this authority, covers all names and lasts long enough."""
        from cryptography import x509

        try:
            present = x509.load_pem_x509_certificate((self.directory / f"{name}.pem").read_bytes())
            present.verify_directly_issued_by(self._certificate)
            covered = present.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            known = set(covered.get_values_for_type(x509.DNSName))
            known |= {str(address) for address in covered.get_values_for_type(x509.IPAddress)}
            there = (self.directory / f"{name}.key").exists()
            return there and known >= names and _days_left(present) > RENEW_DAYS
        except Exception:  # whatever is wrong with it, the remedy is a new one
            return False

    def _make(self, name: str, hosts: list[str], addresses: list[str], usage: x509.ObjectIdentifier) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = (
            _builder(_name(socket.gethostname()), self._certificate.subject, key.public_key(), SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(self._issuer_identifier(), critical=False)
        )
        self._write(name, builder, key)

    def _write(self, name: str, builder: Any, key: EllipticCurvePrivateKey) -> x509.Certificate:
        """Sign, and write `<name>.key` (0600) before `<name>.pem`."""
        from cryptography.hazmat.primitives import hashes, serialization

        certificate: x509.Certificate = builder.sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(self.directory / f"{name}.key", private.decode())
        path = self.directory / f"{name}.pem"
        write_private(path, certificate.public_bytes(serialization.Encoding.PEM).decode())
        os.chmod(path, 0o644)
        return certificate

    def _keep(self, known: dict[str, dict[str, Any]]) -> None:
        """Write what was issued, without what has expired, and the list of what was revoked."""
        now = datetime.datetime.now(datetime.UTC).timestamp()
        known = {serial: item for serial, item in known.items() if item["ends"] > now}
        write_private(self._issued_path, json.dumps(known, indent=1) + "\n")
        self._write_revoked(known)

    def _write_revoked(self, known: dict[str, dict[str, Any]]) -> None:
        """`crl.pem`. Only the leader's broker reads it, so it holds until the next one; each is dated later than the
        one before, because OpenSSL, which keeps those it has read, follows the newest."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        dated = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - BACKDATED
        try:
            before = x509.load_pem_x509_crl(self.revoked_path.read_bytes()).last_update_utc
            dated = max(dated, before + datetime.timedelta(seconds=1))
        except (FileNotFoundError, ValueError):
            pass  # the first, or damaged
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(dated)
            .next_update(dated + datetime.timedelta(days=AUTHORITY_DAYS))
            .add_extension(self._issuer_identifier(), critical=False)
        )
        for serial, item in known.items():
            if item["revoked"]:
                when = datetime.datetime.fromtimestamp(item["revoked"], datetime.UTC)
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(when).build()
                )
        text = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        write_private(self.revoked_path, text)

    def _issuer_identifier(self) -> x509.AuthorityKeyIdentifier:
        from cryptography import x509

        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def machine_names(host: str, more: Iterable[str] = ()) -> tuple[set[str], set[str]]:
    """Host names and addresses under which this machine may be reached when a server is bound to `host`; `more` are
    those that the config knows."""
    names = {"localhost", socket.gethostname(), f"{socket.gethostname()}.local"}
    addresses = {"127.0.0.1", "::1"}
    for one in (host, *more):
        try:
            addresses.add(str(ipaddress.ip_address(one)))
        except ValueError:
            names.add(one)
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        addresses.update(str(item[4][0]).split("%")[0] for item in found)
    except OSError:
        pass  # a machine that does not know its own name is reached by an address
    addresses.update(_route_addresses())
    return names - {""}, addresses - {"0.0.0.0", "::"}


def _route_addresses() -> set[str]:
    """The address that this machine has towards the network; a UDP connect sends nothing."""
    found = set()
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                found.add(str(probe.getsockname()[0]))
        except OSError:
            pass  # no network of this family
    return found


def _requested_key(request_pem: str) -> Any:
    """The public key of a certificate request that is well-formed and signed by it."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        if len(request_pem) > LARGEST_REQUEST_BYTES:
            raise ValueError
        request = x509.load_pem_x509_csr(request_pem.encode())
        key = request.public_key()
        if not request.is_signature_valid:
            raise ValueError
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(
            f"the certificate request is damaged, or not signed by its own key, or above {LARGEST_REQUEST_BYTES} bytes:"
            " run `stirbar cluster join` again"
        ) from None
    strong = isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
    if not strong and not (isinstance(key, rsa.RSAPublicKey) and key.key_size >= SMALLEST_RSA_BITS):
        raise CertificateError(
            f"the key of the certificate request is too weak: RSA of {SMALLEST_RSA_BITS} bits or more, EC or Ed25519"
        )
    return key


def _mark_revoked(known: dict[str, dict[str, Any]], unit_id: bytes) -> int:
    now = datetime.datetime.now(datetime.UTC).timestamp()
    mine = [item for item in known.values() if item["unit_id"] == unit_id.hex() and not item["revoked"]]
    for item in mine:
        item["revoked"] = now
    return len(mine)


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _days_left(certificate: x509.Certificate) -> float:
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.total_seconds() / 86400
