"""`stirbar.Leader`: a leader from a script or a notebook, over its documented HTTP API (docs/http-api.md).

>>> from stirbar import Leader
>>> leader = Leader("http://127.0.0.1:4280", token="stirbar_...")
>>> leader.set("unit1", "stirring", "target_rpm", 600)
>>> for line in leader.readings("od2", unit="unit1", points=500): print(line["angle"], line["mean"][-1])
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from urllib.parse import quote, urlencode, urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import Any

DEFAULT_ADDRESS = "http://127.0.0.1:4280"
PIECE_BYTES = 64 * 1024
MACHINE_TIMEOUT_S = 20.0  # of what a unit's computer is asked
REPLACE_TIMEOUT_S = 120.0  # one step after the other, on a unit that may not answer
API_TOKEN_PREFIX = "stirbar_"  # so that scanners for leaked secrets can find one


class LeaderUnreachable(ConnectionError):
    """No leader answered; the message says at which address and why."""


class LeaderRefused(Exception):
    """The leader, or the worker behind it, refused. `status` is the HTTP status, `error` its reason."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        text = str(error.get("message") or error.get("error") or f"refused with status {status}")
        if error.get("remedy"):
            text += f" ({error['remedy']})"
        super().__init__(text)
        self.status = status
        self.error = error


class Leader:
    """A connection to a leader.

    `token` is an API token (`stirbar leader token create NAME --scope read|control|admin`), shown with every request;
    `password`, or as `token` the one of a one-time link, logs in at the first request. For an https address `ca_file`
    names the leader's own authority (`tls/ca.pem` in its data directory) when the system does not know it. `timeout_s`
    bounds every request.

    Synchronization: not thread-safe; use one instance per thread.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        password: str | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{address}' is not the address of a leader; write it like {DEFAULT_ADDRESS}")
        self.address = f"{parts.scheme}://{parts.netloc}"
        self.timeout_s = timeout_s
        self._host = parts.hostname
        self._port = parts.port
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._token = token if token and token.startswith(API_TOKEN_PREFIX) else ""
        once = token if not self._token else None
        self._login = {"token": once} if once else {"password": password} if password and not self._token else None
        self._cookie = ""
        self._csrf = ""
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def log_out(self) -> None:
        """End the session that a password or a one-time token has opened."""
        if self._cookie:
            self._json("POST", "/api/logout", {})
            self._cookie = self._csrf = ""

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- units -------------------------------------------------------------------------------------------------------

    def units(self) -> list[dict[str, Any]]:
        """All units: name, state, experiment, channels, jobs, settings, latest readings."""
        found: list[dict[str, Any]] = self._get("/api/units")
        return found

    def unit(self, unit: str) -> dict[str, Any]:
        """One unit, with its counters and its loop's lateness."""
        found: dict[str, Any] = self._get(f"/api/units/{quote(unit, safe='')}")
        return found

    def command(self, unit: str, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a worker's command (docs/protocol.md) and return its result; raises LeaderRefused with the reason."""
        path = f"/api/units/{quote(unit, safe='')}/command"
        extra_s = float(arguments.get("seconds") or 10.0) if command == "blank" else 0.0
        reply = self._json("POST", path, {"command": command, **arguments}, self.timeout_s + extra_s)
        return _checked(reply)

    def start(self, unit: str, job: str) -> str:
        """Start a job; returns its state."""
        return str(self.command(unit, "start", job=job)["state"])

    def stop(self, unit: str, job: str) -> str:
        """Stop a job; returns its state."""
        return str(self.command(unit, "stop", job=job)["state"])

    def set(self, unit: str, job: str, setting: str, value: float | str | bool) -> Any:
        """Change a setting; returns the value in force."""
        return self.command(unit, "set", job=job, setting=setting, value=value)["value"]

    def led(self, unit: str, source_of_event: str = "user", **percent: float) -> dict[str, Any]:
        """Set LED channels of a unit, as in `led("unit1", B=20)`; returns as `stirbar.Worker.led` does."""
        arguments: dict[str, Any] = {"channels": percent, "source_of_event": source_of_event} if percent else {}
        channels: dict[str, Any] = self.command(unit, "led", **arguments)["channels"]
        return channels

    def simulation(self, unit: str) -> list[dict[str, Any]]:
        """The parameters of a simulated unit, with their limits and values."""
        found: list[dict[str, Any]] = self._get(f"/api/units/{quote(unit, safe='')}/simulation")
        return found

    def raw(self, unit: str, seconds: float = 2.0) -> dict[str, Any]:
        """The last raw conversions of a unit and their spectrum."""
        found: dict[str, Any] = self._get(f"/api/units/{quote(unit, safe='')}/raw", seconds=seconds)
        return found

    def tag(self, unit: str, tags: list[str]) -> list[str]:
        """The words by which a unit is chosen, all of them; returns them as they are kept."""
        kept: list[str] = self._json("PUT", f"{_unit(unit)}/tags", {"tags": tags})["tags"]
        return kept

    def label(self, unit: str, experiment: str, label: str) -> None:
        """What people call a unit within an experiment; "" takes it away."""
        self._json("PUT", f"{_experiment(experiment)}/units/{quote(unit, safe='')}/label", {"label": label})

    def vitals(
        self, unit: str, *, start: float | None = None, end: float | None = None, points: int = 600
    ) -> list[dict[str, Any]]:
        """How a unit's computer was between two Unix times (default: the last day), one line a figure."""
        end = time.time() if end is None else end
        query = {"from": end - 86400.0 if start is None else start, "to": end, "points": points}
        found: list[dict[str, Any]] = self._get(f"{_unit(unit)}/vitals", **query)["vitals"]
        return found

    def power(self, unit: str, action: str, *, force: bool = False) -> None:
        """`reboot` or `shutdown` of a unit's computer; raises LeaderRefused with the reason."""
        reply = self._json("POST", f"{_unit(unit)}/power", {"action": action, "force": force}, MACHINE_TIMEOUT_S)
        _checked(reply)

    def journal(self, unit: str, lines: int = 100) -> list[str]:
        """The last lines of a unit's own journal."""
        path = f"{_unit(unit)}/journal?lines={lines}"
        found: list[str] = _checked(self._json("GET", path, None, MACHINE_TIMEOUT_S))["lines"]
        return found

    # --- readings and experiments ------------------------------------------------------------------------------------

    def readings(
        self,
        stream: str,
        *,
        unit: str | None = None,
        experiment: str | None = None,
        start: float | None = None,
        end: float | None = None,
        points: int = 600,
    ) -> list[dict[str, Any]]:
        """Readings of a stream between two Unix times (default: the last hour), at most `points` bins a line; each
        keeps the lowest, highest and mean value of its bin."""
        end = time.time() if end is None else end
        query = {"stream": stream, "from": end - 3600.0 if start is None else start, "to": end, "points": points}
        query |= {"unit": unit} if unit is not None else {"experiment": experiment or ""}
        found: list[dict[str, Any]] = self._get("/api/readings", **query)["series"]
        return found

    def experiments(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("/api/experiments")
        return found

    def create_experiment(self, name: str, description: str = "") -> dict[str, Any]:
        made: dict[str, Any] = self._json("POST", "/api/experiments", {"name": name, "description": description})
        return made

    def assign(self, unit: str, experiment: str) -> None:
        """From now on the unit's readings belong to this experiment."""
        self._json("PUT", f"/api/experiments/{quote(experiment, safe='')}/units/{quote(unit, safe='')}", {})

    def unassign(self, unit: str, experiment: str) -> None:
        self._json("DELETE", f"/api/experiments/{quote(experiment, safe='')}/units/{quote(unit, safe='')}", {})

    def assignments(
        self, *, unit: str | None = None, experiment: str | None = None, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Which unit was in which experiment and when, newest first."""
        query: dict[str, Any] = {"limit": limit}
        query |= {"unit": unit} if unit else {}
        query |= {"experiment": experiment} if experiment else {}
        found: list[dict[str, Any]] = self._get("/api/assignments", **query)
        return found

    def command_all(self, experiment: str, command: str, **arguments: Any) -> dict[str, Any]:
        """A worker's command to every unit of an experiment: how many did it and did not (`done`, `failed`), and in
        `units` what each says."""
        extra_s = float(arguments.get("seconds") or 10.0) if command == "blank" else 0.0
        body = {"command": command, **arguments}
        said: dict[str, Any] = self._json(
            "POST", f"{_experiment(experiment)}/command", body, self.timeout_s * 3 + extra_s
        )
        return said

    def replace(self, experiment: str, failed: str, spare: str) -> dict[str, Any]:
        """Let a spare take over a failed unit's role; `steps` says what it was set to and what it refused."""
        body = {"failed": failed, "spare": spare}
        said: dict[str, Any] = self._json("POST", f"{_experiment(experiment)}/replace", body, REPLACE_TIMEOUT_S)
        return said

    def results(self, experiment: str, path: str | os.PathLike[str]) -> int:
        """Write all of an experiment to a ZIP file; returns its length in bytes."""
        return self._save(f"{_experiment(experiment)}/results.zip", path)

    def download(self, experiment: str, path: str | os.PathLike[str], stream: str | None = None) -> int:
        """Write the readings of an experiment to a CSV file; returns its length in bytes."""
        query = f"?stream={quote(stream)}" if stream else ""
        return self._save(f"{_experiment(experiment)}/readings.csv{query}", path)

    def _save(self, address: str, path: str | os.PathLike[str]) -> int:
        response = self._request("GET", address, None, self.timeout_s)
        length = 0
        with open(path, "wb") as file:
            while piece := response.read(PIECE_BYTES):
                length += file.write(piece)
        return length

    def events(self, unit: str | None = None, limit: int = 100, before: float | None = None) -> list[dict[str, Any]]:
        """The log, newest first."""
        query: dict[str, Any] = {"limit": limit}
        query |= {"unit": unit} if unit else {}
        query |= {"before": before} if before is not None else {}
        found: list[dict[str, Any]] = self._get("/api/events", **query)
        return found

    def alerts(self, unit: str | None = None, limit: int = 20) -> dict[str, Any]:
        """The warnings and errors that nobody has acknowledged: `count` of all, their `newest` id, and the `alerts`."""
        query: dict[str, Any] = {"limit": limit} | ({"unit": unit} if unit else {})
        found: dict[str, Any] = self._get("/api/alerts", **query)
        return found

    def acknowledge(self, alert: int | None = None, *, through: int | None = None, unit: str | None = None) -> int:
        """Acknowledge one alert by its id, or all up to the id `through` (of one unit, when it is named); returns how
        many it were, 0 when somebody else was first."""
        body: dict[str, Any] = {"id": alert} if alert is not None else {}
        body |= {"through": through} if through is not None else {}
        body |= {"unit": unit} if unit is not None else {}
        return int(self._json("POST", "/api/alerts/acknowledge", body)["acknowledged"])

    def found(self) -> list[dict[str, Any]]:
        """Units that ask to be let into the cluster, or announce themselves, and are not in it."""
        units: list[dict[str, Any]] = self._get("/api/cluster/found")["units"]
        return units

    def approve(self, unit_id: str, code: str) -> str:
        """Let a unit in that asks, and that shows this code; returns its name."""
        return str(self._json("POST", f"/api/cluster/found/{quote(unit_id, safe='')}/approve", {"code": code})["unit"])

    def refuse(self, unit_id: str, code: str) -> str:
        """Forget a unit that asks; returns its name."""
        return str(self._json("POST", f"/api/cluster/found/{quote(unit_id, safe='')}/refuse", {"code": code})["unit"])

    def health(self) -> dict[str, Any]:
        """Counters of ingest, store, broker and page."""
        found: dict[str, Any] = self._get("/api/health")
        return found

    def config(self, unit: str = "", version: int | None = None) -> dict[str, Any]:
        """What the leader distributes to all units, or to one: `text`, its `version`, when and by whom it was saved."""
        query: dict[str, Any] = {"unit": unit} | ({} if version is None else {"version": version})
        found: dict[str, Any] = self._get("/api/config", **query)
        return found

    def save_config(self, text: str, version: int, unit: str = "") -> int:
        """Save a text that was made from `version`, and distribute it; returns its version. LeaderRefused: 422 for one
        that is not valid, 409 when another is the newest by now."""
        saved = self._json("PUT", "/api/config", {"unit": unit, "text": text, "version": version})
        return int(saved["version"])

    def state(self, unit: str = "") -> list[dict[str, Any]]:
        """Each unit as it should be and as it is, with what differs (`drift`)."""
        found: list[dict[str, Any]] = self._get("/api/cluster/state", unit=unit)
        return found

    def repair(self, unit: str = "", restart: bool = False) -> dict[str, Any]:
        """Tell a unit, or all, once more what they should be; `restart` lets workers that need it begin anew."""
        done: dict[str, Any] = self._json("POST", "/api/cluster/repair", {"unit": unit, "restart": restart})
        return done

    def live(self, *units: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Live events as (kind, event) until the leader ends or is silent for a minute; on a connection of its own."""
        self._ensure_login()
        connection = self._open(60.0)
        query = f"?units={quote(','.join(units))}" if units else ""
        try:
            connection.request("GET", f"/api/live{query}", headers=self._credentials())
            response = connection.getresponse()
            if response.status != 200:
                raise LeaderRefused(response.status, _object(response.read()))
            kind = ""
            while line := response.readline():
                if line.startswith(b"event:"):
                    kind = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    yield kind, json.loads(line[5:])
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    # --- the way there -----------------------------------------------------------------------------------------------

    def _get(self, path: str, **query: Any) -> Any:
        return self._json("GET", f"{path}?{urlencode(query)}" if query else path, None)

    def _json(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float | None = None) -> Any:
        return json.loads(self._request(method, path, body, timeout_s or self.timeout_s).read() or b"null")

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> http.client.HTTPResponse:
        self._ensure_login()
        response = self._send(method, path, body, timeout_s)
        if response.status >= 400:
            raise LeaderRefused(response.status, _object(response.read()))
        return response

    def _ensure_login(self) -> None:
        if self._cookie or self._login is None:
            return
        response = self._send("POST", "/api/login", self._login, self.timeout_s)
        text = response.read()
        if response.status != 200:
            raise LeaderRefused(response.status, _object(text))
        self._cookie = (response.getheader("Set-Cookie") or "").split(";")[0]
        self._login = self._login if "password" in self._login else None  # a token is used up
        self._csrf = self._json("GET", "/api/session", None)["csrf"]

    def _credentials(self) -> dict[str, str]:
        if self._token:
            return {"Authorization": f"Bearer {self._token}"}
        return {"Cookie": self._cookie} if self._cookie else {}

    def _send(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> http.client.HTTPResponse:
        """Send on the kept connection; once more on a new one when the leader had closed it in the meantime."""
        headers = {"Accept": "application/json", **self._credentials()}
        if method != "GET":
            headers |= {"X-CSRF-Token": self._csrf} if self._csrf else {}
            headers["Content-Type"] = "application/json"
        text = None if body is None else json.dumps(body).encode()
        fresh = self._connection is None
        try:
            if self._connection is None:
                self._connection = self._open(timeout_s)
            elif self._connection.sock is not None:
                self._connection.sock.settimeout(timeout_s)
            self._connection.request(method, path, text, headers)
            return self._connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            if fresh or (method != "GET" and not isinstance(error, http.client.RemoteDisconnected)):
                raise self._unreachable(error) from None
            return self._send(method, path, body, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None

    def _open(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)

    def _unreachable(self, error: Exception) -> LeaderUnreachable:
        return LeaderUnreachable(f"no answer from a leader at {self.address}: {error or type(error).__name__}")


def _unit(unit: str) -> str:
    return f"/api/units/{quote(unit, safe='')}"


def _experiment(experiment: str) -> str:
    return f"/api/experiments/{quote(experiment, safe='')}"


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    """A unit's result; raises LeaderRefused with its reason."""
    if not reply.get("ok"):
        raise LeaderRefused(200, reply.get("error") or {})
    result: dict[str, Any] = reply.get("result") or {}
    return result


def _object(text: bytes) -> dict[str, Any]:
    """The error in an answer, whatever else was in the way sent it."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
