"""TLS for a page that is reachable from other machines: a certificate of the leader's own authority.

In `<directory>/tls`, `ca.pem` is what a browser may be told to trust; the page's own certificate beside it is made anew
when it nears its end or the machine has got another name or address.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from stirbar.bridge.authority import Authority, CertificateError, is_loopback, machine_names

__all__ = ["CertificateError", "is_loopback", "open_authority", "renew", "server_context"]

PAGE = "server"


def open_authority(directory: Path, host: str) -> Authority:
    """The authority of the leader in `directory`. Raises CertificateError when the `cryptography` package is missing
    or the directory cannot be written."""
    return Authority(directory / "tls", f"binding to {host}")


def server_context(directory: Path, host: str, names: Iterable[str] = ()) -> tuple[ssl.SSLContext, str]:
    """A TLS context for a server bound to `host`, and the SHA-256 fingerprint of its certificate authority. `names` are
    what else the machine is called.

    Raises CertificateError, as `open_authority` does.
    """
    authority = open_authority(directory, host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate, key, _ = authority.server(PAGE, *machine_names(host, names))
    context.load_cert_chain(certificate, key)
    return context, authority.fingerprint().hex(":").upper()


def renew(directory: Path, host: str, context: ssl.SSLContext, names: Iterable[str] = ()) -> bool:
    """Make the page's certificate anew if it is time, for connections from now on; returns whether it was."""
    certificate, key, made = open_authority(directory, host).server(PAGE, *machine_names(host, names))
    if made:
        context.load_cert_chain(certificate, key)
    return made
