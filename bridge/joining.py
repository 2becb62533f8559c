"""The unit's side of a cluster: join by a token, renew the certificate. Runs once, in a process of its own.

The leader's authority is fetched first, without trust, and held against the fingerprint in the token; what is secret
is sent over a second connection, which that authority vouches for. Nothing is trusted because it came first.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import time
from typing import Any

from stirbar.bridge.credentials import write_private
from stirbar.bridge.invitations import Token
from stirbar.bridge.leaders import FILE, MARK, parse_leaders
from stirbar.bridge.renewal import RENEW_DAYS
from stirbar.core import desired, identity, paths
from stirbar.core.config import EXAMPLE, UNIT_NAME, USER_DIRECTORY, Config, build_config, read_file
from stirbar.core.ini import IniFile, write_atomically
from stirbar.core.version import VERSION

ANSWER_LIMIT_S = 10.0
LONGEST_ANSWER_BYTES = 65536
CLOCK_LIMIT_S = 300.0  # readings carry the unit's time, and certificates are judged by it


class JoinError(Exception):
    """The unit is not in the cluster; the text says why and what to do. `field` is what the leader refused."""

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


class Files:
    """What a unit keeps of its cluster, readable by its owner alone: below its data directory, in `cluster/`.

    Synchronization: one process at a time.
    """

    def __init__(self, config: Config) -> None:
        self.data = pathlib.Path(paths.data_directory(config))
        self.leader = pathlib.Path(paths.cluster_file(config))
        self.directory = self.leader.parent
        self.authority = self.directory / "ca.pem"
        self.certificate = self.directory / "unit.pem"  # with its key, so that both change at once
        self.password = self.directory / "password"

    def write(self, path: pathlib.Path, text: str) -> None:
        """Replace a file; by root it is given to whom the data directory belongs: the service's user reads it."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            place = self.data.stat()
            os.chown(self.directory, place.st_uid, place.st_gid)
        write_private(path, text)

    def read_password(self) -> str:
        """The account's password, or nothing."""
        try:
            return self.password.read_text().strip()
        except FileNotFoundError:
            return ""


def join(config: Config, token: Token, name: str) -> tuple[str, str]:
    """Let this machine into the leader's cluster as `name`; returns the name it got and the file that was changed.

    Raises JoinError, and then nothing was changed.
    """
    files = Files(config)
    address, authority = find_leader(token)
    key, request = make_request(files)
    asked = {
        "secret": token.secret.hex(),
        "name": name,
        "unit_id": identity.unit_id(str(files.data)).hex(),
        "request": request,
        "password": files.read_password(),
    }
    answer = ask(address, token.port, authority, "join", asked)
    return answer["unit"], accept(config, files, (address, token.port), authority, key, answer)


def accept(
    config: Config, files: Files, leader: tuple[str, int], authority: str, key: str, answer: dict[str, Any]
) -> str:
    """Keep what the leader has given, and say in the configuration where it is; returns the file that was changed.
    Raises JoinError."""
    address, port = leader
    settings = _settings(files, answer, address)
    path, text = _changed_config(config, settings)
    if files.authority.exists() and files.authority.read_text() != authority:
        files.write(files.directory / MARK, "")
    files.write(files.authority, authority)
    files.write(files.certificate, key + answer["certificate"])
    files.write(files.password, answer["password"] + "\n")
    (files.directory / FILE).unlink(missing_ok=True)  # of the leader before
    about = {"address": address, "port": port, "unit": answer["unit"], "ends": answer["ends"]}
    files.write(files.leader, json.dumps(about) + "\n")
    desired.forget(paths.desired_file(config))  # what a leader before this one wanted; this one says it again
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise JoinError(
            f"{path} cannot be written ({error.strerror}), and the token is used up: run `sudo stirbar cluster join` "
            "with a fresh one"
        ) from None
    return path


def renew(config: Config, days: float = RENEW_DAYS) -> float:
    """Get a new certificate for the same key if the present one ends within `days`; returns when the one in force ends,
    in Unix seconds. Raises JoinError."""
    files = Files(config)
    try:
        about = json.loads(files.leader.read_text())
        if about["ends"] - time.time() > days * 86400:
            return float(about["ends"])
        authority = files.authority.read_text()
    except (OSError, ValueError, KeyError):
        raise JoinError(
            f"this unit is in no cluster, or {files.directory} is damaged: `stirbar cluster invite` on the leader "
            "prints a token to join with"
        ) from None
    key, request = make_request(files, files.certificate)
    asked = {"name": about["unit"], "password": files.read_password(), "request": request}
    answer = _ask_whoever_leads(files, about, authority, asked)
    files.write(files.certificate, key + answer["certificate"])
    files.write(files.leader, json.dumps(about | {"ends": answer["ends"]}) + "\n")
    return float(answer["ends"])


def _ask_whoever_leads(files: Files, about: dict[str, Any], authority: str, asked: dict[str, str]) -> dict[str, Any]:
    """Have a certificate renewed by the leader that was joined, or by one that it told of since. Raises JoinError."""
    places = [(about["address"], about["port"])]
    try:
        told = json.loads((files.directory / FILE).read_text())
        parse_leaders(told)
        places += [(host, page_port) for host, _, page_port in told]
    except (OSError, ValueError):
        pass  # none was told of
    refused: list[str] = []
    for address, port in dict.fromkeys(places):
        try:
            return ask(address, port, authority, "renew", asked)
        except JoinError as error:
            refused.append(f"{address}: {error}" if len(places) > 1 else str(error))
    raise JoinError("; ".join(refused))


def fetch_authority(address: str, port: int) -> str:
    """The certificate of the authority that a leader shows; whether it is the right one is for a person to say. Raises
    JoinError."""
    try:
        status, headers, body = exchange(address, port, _trusting(), "GET", "authority")
    except OSError as error:
        raise JoinError(f"no leader at {address}:{port} ({error.strerror or error}): does it run?") from None
    text = body.decode("ascii", "replace")
    if status != 200 or not text.startswith("-----BEGIN CERTIFICATE-----"):
        raise JoinError(f"{address}:{port}: {_refusal(body)}")
    _check_clock(headers)
    return text


def _trusting() -> ssl.SSLContext:
    """Nothing secret is sent by it, and what comes is held against a fingerprint or a code."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def find_leader(token: Token) -> tuple[str, str]:
    """The address at which the leader of this token answers, and its authority's certificate. Raises JoinError."""
    context, failures = _trusting(), []
    for address in token.addresses:
        try:
            status, headers, body = exchange(address, token.port, context, "GET", "authority")
        except OSError as error:
            failures.append(f"{address}: {error.strerror or error}")
            continue
        if status != 200:
            failures.append(f"{address}: {_refusal(body)}")
            continue
        try:
            found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(body.decode("ascii"))).digest()
        except ValueError:
            found = b""
        if found != token.fingerprint:
            failures.append(f"{address}: the machine that answers is not the leader that made this token")
            continue
        _check_clock(headers)
        return address, body.decode("ascii")
    raise JoinError(
        f"no leader at port {token.port} ({'; '.join(failures)}): is it running, on this network, and was the token "
        "made since it was set up?"
    )


def make_request(files: Files, key_file: pathlib.Path | None = None) -> tuple[str, str]:
    """A private key in PEM (a new one, or that of `key_file`), and a certificate request for it."""
    if shutil.which("openssl") is None:
        raise JoinError("openssl is not installed, which makes this unit's key: `sudo apt install openssl`")
    made = files.data / f".key.{os.getpid()}"
    source = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(made)]
    if key_file is not None:
        source = ["-key", str(key_file)]
    command = ["openssl", "req", "-new", *source, "-subj", "/CN=stirbar unit"]  # the leader names it
    try:
        done = subprocess.run(command, capture_output=True, text=True, umask=0o077)
        if done.returncode:
            raise JoinError(f"openssl made no key: {done.stderr.strip()[-200:]}")
        text = (made if key_file is None else key_file).read_text()
    finally:
        made.unlink(missing_ok=True)
    end = "-----END PRIVATE KEY-----\n"
    return text.partition(end)[0] + end, done.stdout


def vouched(authority: str) -> ssl.SSLContext:
    """A TLS context that trusts one authority alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority)
    return context


def ask(address: str, port: int, authority: str, what: str, asked: dict[str, Any]) -> dict[str, Any]:
    """One question to the leader, over TLS that its authority vouches for. Raises JoinError."""
    context = vouched(authority)
    try:
        status, _, body = exchange(address, port, context, "POST", what, asked)
    except ssl.SSLCertVerificationError as error:
        raise JoinError(
            f"the leader's certificate is not good for {address} ({error.verify_message}): set this machine's clock if "
            "it is wrong; else name the address in the leader's [cluster.topology] leader_address, start the leader "
            "again, and invite again"
        ) from None
    except OSError as error:
        raise JoinError(f"the leader at {address}:{port} went away ({error.strerror or error}): try again") from None
    if status != 200:
        raise JoinError(_refusal(body), _field(body))
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise JoinError(f"the leader's answer is not understood: has it another version than {VERSION}?")
    return answer


def exchange(
    address: str,
    port: int,
    context: ssl.SSLContext,
    method: str,
    what: str,
    asked: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    timeout_s: float = ANSWER_LIMIT_S,
    longest: int = LONGEST_ANSWER_BYTES,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body; OSError for whatever goes wrong on the way."""
    connection = http.client.HTTPSConnection(address, port, timeout=timeout_s, context=context)
    try:
        headers = {"Content-Type": "application/json"} if asked is not None else headers or {}
        body = json.dumps(asked) if asked is not None else None
        connection.request(method, f"/api/cluster/{what}", body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read(longest)
    except http.client.HTTPException as error:
        raise OSError(f"what answers is no leader ({type(error).__name__})") from None
    finally:
        connection.close()


def _refusal(body: bytes) -> str:
    """The leader's sentence, with its remedy."""
    try:
        said = json.loads(body)
        return f"{said['error']}: {said['remedy']}" if said["remedy"] else str(said["error"])
    except (ValueError, TypeError, KeyError):
        return "it answers, but not as a leader does"


def _field(body: bytes) -> str:
    try:
        return str(json.loads(body)["field"])
    except (ValueError, TypeError, KeyError):
        return ""


def _check_clock(headers: http.client.HTTPMessage) -> None:
    """Raises JoinError when this machine's clock and the leader's are too far apart."""
    try:
        ahead = time.time() - email.utils.parsedate_to_datetime(headers["Date"]).timestamp()
    except (TypeError, ValueError):
        return  # it does not say
    if abs(ahead) > CLOCK_LIMIT_S:
        raise JoinError(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the leader's, and "
            f"{CLOCK_LIMIT_S:.0f} s are allowed: set it (`sudo timedatectl set-ntp true`, or `sudo date -s`), and join "
            "again"
        )


def _settings(files: Files, answer: dict[str, Any], address: str) -> list[tuple[str, str, str]]:
    """What unit_config.ini says of the cluster. Raises JoinError."""
    try:
        return [
            ("unit", "name", str(answer["unit"])),
            ("cluster.topology", "leader_hostname", str(answer["leader_hostname"])),
            ("cluster.topology", "leader_address", address),
            ("mqtt", "broker_address", address),
            ("mqtt", "broker_port", str(answer["broker_port"])),
            ("mqtt", "username", str(answer["unit"])),
            ("mqtt", "password_file", str(files.password)),
            ("mqtt", "use_tls", "1"),
            ("mqtt", "ca_file", str(files.authority)),
            ("mqtt", "certificate_file", str(files.certificate)),
            ("mqtt", "topic_root", str(answer["topic_root"])),
            ("mqtt", "data_root", str(answer["data_root"])),
        ]
    except KeyError as error:
        raise JoinError(f"the leader's answer lacks {error}: has it another version than {VERSION}?") from None


def _changed_config(config: Config, settings: list[tuple[str, str, str]]) -> tuple[str, str]:
    """unit_config.ini's path, and its text with the settings in it; raises JoinError where it would not be valid."""
    home = os.path.expanduser(USER_DIRECTORY) if config.path == EXAMPLE else os.path.dirname(config.path)
    path = config.unit_path or os.path.join(home, UNIT_NAME)
    ini = read_file(path) if os.path.exists(path) else IniFile("", path)
    try:
        for section, key, value in settings:
            ini.set(section, key, value)
        build_config([read_file(config.path), ini])
    except ValueError as error:
        raise JoinError(f"{path}: {error}") from None
    return path, ini.text()
