"""What a bridge needs to know of its configuration."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.bridge.follower import Load
    from stirbar.bridge.session import Broker


class Settings:
    """What a bridge needs to know; `command.py` makes it from the config. Synchronization: immutable by convention."""

    __slots__ = (
        "block_interval_s",
        "broker",
        "cluster_file",
        "data_root",
        "desired_file",
        "dialect_readings_per_second",
        "end_to_end",
        "load",
        "machine_commands",
        "reconnect_maximum_s",
        "renewal_command",
        "spool_directory",
        "spool_limit_bytes",
        "topic_root",
        "unit",
        "unit_id",
        "with_raw",
        "worker_address",
        "worker_key_file",
    )

    def __init__(
        self,
        *,
        unit: str,
        unit_id: bytes,
        worker_address: str,
        worker_key_file: str = "",
        spool_directory: str,
        broker: Broker,
        spool_limit_bytes: int = 512_000_000,
        topic_root: str = "pioreactor",
        data_root: str = "stirbar",
        dialect_readings_per_second: float = 0.2,
        end_to_end: bool = True,
        block_interval_s: float = 1.0,
        reconnect_maximum_s: float = 30.0,
        with_raw: bool = False,
        cluster_file: str = "",
        renewal_command: list[str] | None = None,
        machine_commands: dict[str, list[str]] | None = None,
        desired_file: str = "",
        load: Load | None = None,
    ) -> None:
        self.unit = unit
        self.unit_id = unit_id
        self.worker_address = worker_address
        self.worker_key_file = worker_key_file
        self.spool_directory = spool_directory
        self.broker = broker
        self.spool_limit_bytes = spool_limit_bytes
        self.topic_root = topic_root
        self.data_root = data_root
        self.dialect_readings_per_second = dialect_readings_per_second
        self.end_to_end = end_to_end
        self.block_interval_s = block_interval_s
        self.reconnect_maximum_s = reconnect_maximum_s
        self.with_raw = with_raw
        self.cluster_file = cluster_file
        self.renewal_command = renewal_command or []
        self.machine_commands = machine_commands or {}
        self.desired_file = desired_file
        self.load = load
