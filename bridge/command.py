"""`stirbar bridge`: carry a worker's readings to the leader."""

from __future__ import annotations

import os
import sys

from stirbar.bridge.log import Log
from stirbar.bridge.machine import ANSWERED_HERE
from stirbar.bridge.relay import serve
from stirbar.bridge.relay_settings import Settings
from stirbar.bridge.session import Broker
from stirbar.core import desired, identity, paths, sockets
from stirbar.core.config import ConfigError, PlainOptions, add_config_options, config_from_arguments, read_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from stirbar.bridge.follower import Load
    from stirbar.core.config import Config


def settings_from_config(
    config: Config, renewal_command: list[str] | None = None, load: Load | None = None
) -> Settings:
    """`renewal_command` has the unit's certificate renewed if it is time; `load` checks what the leader distributes.
    Raises OSError and ValueError, saying what cannot be read or made."""
    unit = paths.unit_name(config)
    directory = paths.data_directory(config)
    unit_id = identity.unit_id(directory)
    username, password = account(config, unit)
    broker = Broker(
        str(config.get("mqtt", "broker_address")).split(";")[0].strip(),
        int(config.get("mqtt", "broker_port")),
        f"stirbar-{unit_id.hex()}",
        username,
        password,
        bool(config.get("mqtt", "use_tls")),
        *(
            os.path.expanduser(str(config.get("mqtt", key) or ""))
            for key in ("ca_file", "certificate_file", "key_file")
        ),
    )
    spool = os.path.expanduser(str(config.get("bridge.config", "spool_directory") or ""))
    return Settings(
        unit=unit,
        unit_id=unit_id,
        worker_address=paths.worker_address(config),
        worker_key_file=sockets.local_key_file(directory),
        spool_directory=spool or os.path.join(directory, "spool"),
        broker=broker,
        spool_limit_bytes=int(config.get("bridge.config", "spool_limit_mb")) * 1_000_000,
        topic_root=str(config.get("mqtt", "topic_root")),
        data_root=str(config.get("mqtt", "data_root")),
        dialect_readings_per_second=float(config.get("mqtt", "dialect_readings_per_second")),
        end_to_end=config.get("bridge.config", "acknowledge") == "end_to_end",
        block_interval_s=float(config.get("bridge.config", "block_interval_s")),
        reconnect_maximum_s=float(config.get("bridge.config", "reconnect_maximum_s")),
        with_raw=bool(config.get("od_reading.config", "raw")),
        cluster_file=paths.cluster_file(config),
        renewal_command=renewal_command,
        machine_commands=machine_commands(config),
        desired_file=paths.desired_file(config),
        load=load,
    )


def machine_commands(config: Config) -> dict[str, list[str]]:
    """The programs behind what the leader may ask of this computer, as words."""
    found = {name: str(config.get("bridge.config", f"{name}_command")).split() for name in ANSWERED_HERE}
    return {name: words for name, words in found.items() if words != ["none"]}


def account(config: Config, unit: str) -> tuple[str, str]:
    """User name and password for the broker: the config's, else what a leader on this machine issued, else none."""
    username = str(config.get("mqtt", "username") or "")
    password_file = os.path.expanduser(str(config.get("mqtt", "password_file") or ""))
    if not password_file and not username and os.path.exists(paths.local_password_file(config)):
        username, password_file = unit, paths.local_password_file(config)
    if not password_file:
        return username, ""
    with open(password_file) as file:
        return username, file.readline().rstrip("\n")


def load(options: Namespace | PlainOptions) -> Config:
    """The configuration. What the leader has distributed may not fit this machine any more: then the bridge alone does
    without, so that it can be told something better. Raises ConfigError where the machine's own files are wrong."""
    try:
        return config_from_arguments(options)
    except ConfigError:
        return config_from_arguments(options, wanted=desired.NOTHING)


def main(argv: list[str]) -> int:
    """`stirbar bridge`: runs until SIGTERM or SIGINT; 1 when it cannot start, 78 when the unit is out of use."""
    options: Namespace | PlainOptions | None = read_options(argv)
    if options is None:
        import argparse  # only to explain: it costs half a megabyte

        parser = argparse.ArgumentParser(prog="stirbar bridge", description="Carry a worker's readings to the leader.")
        add_config_options(parser)
        options = parser.parse_args(argv)
    try:
        config = load(options)
        unused = paths.out_of_use(config)
        if unused:
            print(f"stirbar bridge: {unused}", file=sys.stderr)
            return paths.OUT_OF_USE_STATUS
        renewal = [sys.executable, "-m", "stirbar.core.cli", "cluster", "renew", *argv]
        settings = settings_from_config(config, renewal, lambda wanted: config_from_arguments(options, wanted=wanted))
        log = Log(f"bridge[{settings.unit}]")
        log("info", f"worker at {settings.worker_address}, broker at {settings.broker.host}:{settings.broker.port}")
        if serve(settings, log):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except (ConfigError, ValueError, OSError) as error:
        print(f"stirbar bridge: {error}", file=sys.stderr)
        return 1
    return 0
