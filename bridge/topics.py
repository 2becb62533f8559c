"""Every MQTT topic of bridge and leader, in one place: built here for publishers, parsed here for subscribers.

Two trees (docs/protocol.md): our own, `<data_root>/<unit_id>/…`, and the dialect, `<topic_root>/<unit>/<experiment>/…`.
In our own tree a stream is named (`live/od1`), never numbered.
"""

from __future__ import annotations

from stirbar.core.records import STREAM_IDS, STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

BROADCAST: Final = "$broadcast"
UNIVERSAL_EXPERIMENT: Final = "$experiment"
MONITOR: Final = "monitor"  # the job that belongs to no experiment
NO_EXPERIMENT: Final = "$no_experiment_present"
ASSIGNMENT: Final = "assignment"
STATE_SETTING: Final = "$state"
BLINK: Final = "flicker_led_response_okay"  # said to `monitor`, whatever the payload

# Last levels of our own tree; live and store have the stream's name behind them.
DESCRIBE: Final = "describe"
STATE: Final = "state"
LIVE: Final = "live"
STORE: Final = "store"
ASK: Final = "ask"
ACK: Final = "ack"
COMMAND: Final = "command"
REPLY: Final = "reply"
DESIRED: Final = "desired"  # what the leader wants of the unit,
APPLIED: Final = "applied"  # and what the unit has made of it
_PLAIN_LEAVES = (DESCRIBE, STATE, ASK, ACK, COMMAND, REPLY, DESIRED, APPLIED)

STATE_ONLINE: Final = b'{"state":"online"}'
STATE_OFFLINE: Final = b'{"state":"offline"}'  # the bridge was stopped on purpose
STATE_LOST: Final = b'{"state":"lost"}'  # the will


def level(name: str) -> str:
    """`name` as one topic level: what MQTT reserves (/ + # and NUL) becomes `_`; an empty name becomes `_`."""
    for character in "/+#\0":
        name = name.replace(character, "_")
    return name or "_"


class UnitTopics:
    """Our own topics of one unit; `unit_id` is its 32 hex digits. Both directions.

    Synchronization: immutable after construction.
    """

    __slots__ = ("ack", "applied", "ask", "base", "command", "describe", "desired", "live", "reply", "state", "store")

    def __init__(self, data_root: str, unit_id: str) -> None:
        self.base = f"{data_root}/{unit_id}"
        self.describe = f"{self.base}/{DESCRIBE}"
        self.state = f"{self.base}/{STATE}"
        self.ask = f"{self.base}/{ASK}"
        self.ack = f"{self.base}/{ACK}"
        self.command = f"{self.base}/{COMMAND}"
        self.reply = f"{self.base}/{REPLY}"
        self.desired = f"{self.base}/{DESIRED}"
        self.applied = f"{self.base}/{APPLIED}"
        self.live: dict[int, str] = {number: f"{self.base}/{LIVE}/{name}" for number, name in STREAMS.items()}
        self.store: dict[int, str] = {number: f"{self.base}/{STORE}/{name}" for number, name in STREAMS.items()}


class UnitTopic:
    """A parsed topic of our own tree: `leaf` is one of the constants above, `stream` its number for live and store.

    `stream` is 0 where the topic has none. Synchronization: immutable by convention.
    """

    __slots__ = ("leaf", "stream", "unit_id")

    def __init__(self, unit_id: str, leaf: str, stream: int) -> None:
        self.unit_id = unit_id
        self.leaf = leaf
        self.stream = stream


def parse_unit_topic(data_root: str, topic: str) -> UnitTopic | None:
    """Parse a topic of our own tree; None for anything else (another root, a malformed unit id, an unknown leaf)."""
    if not topic.startswith(data_root + "/"):
        return None
    levels = topic[len(data_root) + 1 :].split("/")
    if not is_unit_id(levels[0]):
        return None
    if len(levels) == 2 and levels[1] in _PLAIN_LEAVES:
        return UnitTopic(levels[0], levels[1], 0)
    if len(levels) == 3 and levels[1] in (LIVE, STORE) and levels[2] in STREAM_IDS:
        return UnitTopic(levels[0], levels[1], STREAM_IDS[levels[2]])
    return None


def is_unit_id(text: str) -> bool:
    """32 lower-case hex digits."""
    return len(text) == 32 and all(character in "0123456789abcdef" for character in text)


def leader_subscriptions(data_root: str) -> list[tuple[str, int]]:
    """What the leader subscribes to in our own tree: (filter, QoS)."""
    return [
        (f"{data_root}/+/{DESCRIBE}", 1),
        (f"{data_root}/+/{STATE}", 1),
        (f"{data_root}/+/{LIVE}/+", 0),
        (f"{data_root}/+/{STORE}/+", 1),
        (f"{data_root}/+/{ASK}", 1),
        (f"{data_root}/+/{REPLY}", 1),
        (f"{data_root}/+/{APPLIED}", 1),
    ]


def standby_subscriptions(topic_root: str, data_root: str) -> list[tuple[str, int]]:
    """What a standby hears of the leader's broker: what units report. What they are told is not its business."""
    reported = leader_subscriptions(data_root)
    talk = (f"{data_root}/+/{ASK}", f"{data_root}/+/{REPLY}")
    return [one for one in reported if one[0] not in talk] + [(f"{topic_root}/+/+/+/+", 0)]


def dialect(root: str, unit: str, experiment: str, job: str, setting: str) -> str:
    """A topic of the dialect; unit and experiment are labels and are made safe for MQTT."""
    return f"{root}/{level(unit)}/{level(experiment)}/{job}/{setting}"


def dosing_events(root: str, unit: str, experiment: str) -> str:
    """Topic of what a unit's pumps have moved."""
    return f"{root}/{level(unit)}/{level(experiment)}/dosing_events"


def dialect_log(root: str, unit: str, experiment: str, source: str, log_level: str) -> str:
    """Topic of a unit's log lines of one level."""
    return f"{root}/{level(unit)}/{level(experiment)}/logs/{level(source)}/{log_level}"


def dialect_led(root: str, unit: str, experiment: str) -> str:
    """Topic of a unit's changes of its LED channels."""
    return f"{root}/{level(unit)}/{level(experiment)}/led_change_events"


def assignment(root: str, unit: str) -> str:
    """Where the leader says, retained, which experiment a unit belongs to."""
    return f"{root}/{level(unit)}/{UNIVERSAL_EXPERIMENT}/{ASSIGNMENT}"


def set_filters(root: str, unit: str) -> list[str]:
    """What a unit subscribes to for the dialect's commands."""
    names = (level(unit), BROADCAST)
    return [f"{root}/{name}/+/{rest}" for name in names for rest in ("+/+/set", f"{MONITOR}/{BLINK}")]


def is_blink(root: str, unit: str, topic: str) -> bool:
    """Whether a topic asks this unit, in whatever experiment, to show itself."""
    levels = topic.removeprefix(root + "/").split("/")
    return len(levels) == 4 and levels[0] in (level(unit), BROADCAST) and levels[2:] == [MONITOR, BLINK]


class SetTopic:
    """A parsed `…/<job>/<setting>/set`. Synchronization: immutable by convention."""

    __slots__ = ("experiment", "job", "setting", "unit")

    def __init__(self, unit: str, experiment: str, job: str, setting: str) -> None:
        self.unit = unit
        self.experiment = experiment
        self.job = job
        self.setting = setting


def parse_set(root: str, topic: str) -> SetTopic | None:
    """Parse a command topic of the dialect; None for anything else."""
    if not topic.startswith(root + "/"):
        return None
    levels = topic[len(root) + 1 :].split("/")
    if len(levels) != 5 or levels[4] != "set" or not all(levels):
        return None
    return SetTopic(*levels[:4])
