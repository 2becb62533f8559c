"""TLS for a page that is reachable from other machines: the leader's own small certificate authority.

Made once in `<directory>/tls`: `ca.pem` is what a browser may be told to trust, `server.pem` the page's certificate,
made anew when it nears its end or the machine has got another name or address. Keys are readable by their owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stirbar.web.auth import write_secret

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365  # browsers take no more than 398
RENEW_DAYS = 30


class CertificateError(Exception):
    """TLS could not be set up; the text says why and what to do."""


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def certificate_files(directory: Path, host: str) -> tuple[str, str, str]:
    """Paths of the authority's certificate, the server's certificate and its key, made when they are not there or not
    for `host`.

    Raises CertificateError when the `cryptography` package is missing or the directory cannot be written.
    """
    try:
        import cryptography.x509  # noqa: F401
    except ImportError:
        raise CertificateError(
            f"binding to {host} needs TLS, and the package 'cryptography' that makes the certificate is not "
            "installed: run `pip install stirbar[tls]`, or bind to 127.0.0.1"
        ) from None
    folder = directory / "tls"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority, key = _authority(folder)
        _server_certificate(folder, authority, key, _names(host))
    except OSError as error:
        raise CertificateError(f"the certificate could not be written to {folder}: {error.strerror}") from None
    return str(folder / "ca.pem"), str(folder / "server.pem"), str(folder / "server.key")


def server_context(directory: Path, host: str) -> tuple[ssl.SSLContext, str]:
    """A TLS context for a server bound to `host`, and the SHA-256 fingerprint of its certificate authority.

    Raises CertificateError, as `certificate_files` does.
    """
    authority_file, certificate, key = certificate_files(directory, host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context, _fingerprint(Path(authority_file))


def _names(host: str) -> tuple[list[str], list[str]]:
    """Host names and addresses under which this machine may be opened."""
    names = {"localhost", socket.gethostname(), f"{socket.gethostname()}.local"}
    addresses = {"127.0.0.1", "::1"}
    try:
        addresses.add(str(ipaddress.ip_address(host)))
    except ValueError:
        names.add(host)
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        addresses.update(str(item[4][0]).split("%")[0] for item in found)
    except OSError:
        pass  # a machine that does not know its own name is opened by an address
    addresses.update(_route_addresses())
    return sorted(names), sorted(addresses - {"0.0.0.0", "::"})


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


def _authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    """The leader's certificate authority, made at the first call."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and _days_left(certificate) > RENEW_DAYS:
            return certificate, key
    except (FileNotFoundError, ValueError):
        pass  # none yet, or damaged: make one
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"stirbar leader on {socket.gethostname()}"[:64])])
    builder = (
        _builder(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    certificate = _write(folder, "ca", builder, key, key)
    return certificate, key


def _server_certificate(
    folder: Path,
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
    names: tuple[list[str], list[str]],
) -> None:
    """Make `server.pem` unless the one at hand is from this authority, covers all names and lasts long enough."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    hosts, addresses = names
    try:
        present = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
        present.verify_directly_issued_by(authority)
        covered = present.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = set(covered.get_values_for_type(x509.DNSName))
        known |= {str(address) for address in covered.get_values_for_type(x509.IPAddress)}
        if known >= {*hosts, *addresses} and _days_left(present) > RENEW_DAYS and (folder / "server.key").exists():
            return
    except Exception:  # whatever is wrong with it, the remedy is a new one
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, socket.gethostname()[:64])])
    alternatives: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    builder = (
        _builder(name, authority.subject, key, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    _write(folder, "server", builder, key, authority_key)


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a worker's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
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


def _write(
    folder: Path, name: str, builder: Any, key: EllipticCurvePrivateKey, signer: EllipticCurvePrivateKey
) -> x509.Certificate:
    """Sign, and write `<name>.key` (0600) before `<name>.pem`."""
    from cryptography.hazmat.primitives import hashes, serialization

    certificate: x509.Certificate = builder.sign(signer, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_secret(folder / f"{name}.key", private.decode())
    write_secret(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM).decode())
    os.chmod(folder / f"{name}.pem", 0o644)
    return certificate


def _days_left(certificate: x509.Certificate) -> float:
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.total_seconds() / 86400


def _fingerprint(path: Path) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256()).hex(":").upper()
