"""The job `leds`: the LED channels A to D, each at an intensity that a person or a programme asked for.

The loop decides what each may give (pyx/leds.pxd); this asks it, and renews the leases. When this stops asking, they go
dark within a minute. The job is `ready` while any channel is asked for light.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

from stirbar.core import events
from stirbar.core.jobs import DISCONNECTED, READY, SAMPLING, CommandError, Job, allowed, number
from stirbar.rt.loop import led_intensity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.config import Config
    from stirbar.core.host import Host
    from stirbar.core.jobs import Done

SECTION = "leds.config"
USER, LEASE, OD = "user", "lease", "od_reading"  # sources of a change
SOURCE_LENGTH = 64


def _ignore(ok: bool, limit: float) -> None:
    """For the lease: the loop says in an event when a channel goes dark."""


class Leds(Job):
    """Settings: each channel's letter, the intensity that it is set to; `intensity`, what each gives; `held`, those
    that are dark for od_reading."""

    name = "leds"

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        self.given: dict[str, float] = host.loop.leds()
        self.od_led = host.loop.od_led()
        self.settable = tuple(self.given)
        self.asked: dict[str, float] = dict.fromkeys(self.given, 0.0)
        self.maximum = {letter: float(config.get(SECTION, f"maximum_percent_{letter}")) for letter in self.given}
        locked = str(config.get(SECTION, "lock_during_od"))
        self.locked = [letter for letter in self.given if letter in locked and letter != self.od_led]
        self._sources = dict.fromkeys(self.given, USER)
        self._before: dict[str, float] = {}  # what a stop switched off
        self._lost: set[str] = set()  # channels whose last change the driver refused

    @property
    def measuring(self) -> bool:
        """Whether od_reading has the OD LED."""
        return self.host.jobs[OD].state != DISCONNECTED

    @property
    def held(self) -> list[str]:
        return [letter for letter in self.locked if self.asked[letter] and self.measuring]

    def autostarts(self) -> bool:
        return False

    def publish(self) -> None:
        publish = self.host.publish_setting
        for letter, percent in self.asked.items():
            publish(self.name, letter, percent, "%", settable=True)
        given: dict[str, float] = {letter: round(percent, 2) for letter, percent in self.given.items()}
        if self.od_led and self.measuring:
            given[self.od_led] = getattr(self.host.jobs[OD], "intensity", 0.0)
        publish(self.name, "intensity", given, "%")
        publish(self.name, "held", self.held)

    def about(self) -> dict[str, object]:
        """Each channel: what it is set to, what it gives, and why that differs."""
        return {
            letter: {"set": percent, "intensity": round(self.given[letter], 2), "held": self._why(letter)}
            for letter, percent in self.asked.items()
        }

    def _why(self, letter: str) -> str:
        if letter in self._lost:
            return "the LEDs' driver refused the change; it is tried again every second"
        return f"dark while od_reading runs ([{SECTION}] lock_during_od)" if letter in self.held else ""

    # --- asking ------------------------------------------------------------------------------------------------------

    def _checked(self, letter: str, value: object) -> float:
        if letter not in self.asked:
            has = f"it has {', '.join(self.asked)}" if self.asked else "it has none"
            raise CommandError(
                f"this board has no LED channel {letter!r}: {has}",
                letter,
                list(self.asked),
                "name its output in [led] of the hardware profile",
            )
        if letter == self.od_led and self.measuring:
            raise CommandError(
                f"LED {letter} is the OD LED, and od_reading runs: the light is the measurement's",
                letter,
                remedy="set od_reading's ir_led_intensity, or stop od_reading first",
            )
        try:
            return number(value, letter, 0.0, self.maximum[letter], "%")
        except CommandError as error:
            if self.maximum[letter] < 100.0:
                error.remedy = f"[{SECTION}] maximum_percent_{letter} is the limit"
            raise

    def ask(self, wanted: dict[str, object], source: str, done: Done) -> None:
        """Set channels; all of them or, where one cannot be, none."""
        from stirbar.core.jobs import all_of

        checked = {letter: self._checked(letter, value) for letter, value in wanted.items()}
        if not checked:
            raise CommandError("no LED channel was named", "channels", list(self.asked))

        def answered(ok: bool, limit: float) -> None:
            self.given = self.host.loop.leds()
            self._look()
            done(ok, limit)

        answers = all_of(len(checked), answered)
        for letter, percent in checked.items():
            channel = events.LED_CHANNELS.index(letter)
            taken = self._taken(letter, percent, answers)
            self.host.send(SAMPLING, events.COMMAND_LED_SET, channel, 0, percent, taken)
            self._sources[letter] = source

    def _taken(self, letter: str, percent: float, done: Done) -> Done:
        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.asked[letter] = round(led_intensity(percent), 2)
            done(ok, limit)

        return answered

    def set(self, setting: str, value: object, done: Done) -> None:
        self.ask({setting: value}, USER, done)

    def start(self, done: Done) -> None:
        """Light again what the last stop switched off."""
        if any(self.asked.values()):
            done(True, 0.0)
            return
        wanted: dict[str, object] = {
            letter: percent
            for letter, percent in self._before.items()
            if not (letter == self.od_led and self.measuring)
        }
        if not wanted:
            raise CommandError(
                "no LED is set to any light", "job", remedy="set a channel, as in `stirbar led --B 20`; that starts it"
            )
        self.ask(wanted, USER, done)

    def stop(self, done: Done) -> None:
        lit = {letter: percent for letter, percent in self.asked.items() if percent}
        if not lit:
            done(True, 0.0)
            return

        def dark(ok: bool, limit: float) -> None:
            self._before = lit
            done(ok, limit)

        self.ask(dict.fromkeys(lit, 0.0), USER, dark)

    # --- kept --------------------------------------------------------------------------------------------------------

    def remember(self) -> dict[str, object]:
        lit = {letter: percent for letter, percent in self.asked.items() if percent}
        return {"percent": lit or self._before}

    def recall(self, kept: dict[str, object]) -> None:
        percent = kept.get("percent")
        found: dict[str, Any] = percent if isinstance(percent, dict) else {}
        levels = {letter: allowed(found.get(letter), 0.0, self.maximum[letter], 0.0) for letter in self.asked}
        self._before = {letter: level for letter, level in levels.items() if level}

    # --- as it goes on -----------------------------------------------------------------------------------------------

    def event_fields(self, code: int, argument: int, value: float) -> dict[str, object]:
        """What the field's led_change_events say of a change."""
        letter = events.LED_CHANNELS[argument]
        if code in (events.EVENT_LED_LAPSED, events.EVENT_LED_LAPSED_OVER):
            self._sources[letter] = LEASE
        elif code == events.EVENT_LED_LOCKED:
            self._sources[letter] = OD
        elif code == events.EVENT_LED_LOST:
            self._lost.add(letter)
        elif code == events.EVENT_LED_LOST_OVER:
            self._lost.discard(letter)
        if code != events.EVENT_LED_CHANGED:
            return {}
        return {"channel": letter, "intensity": round(value, 2), "source_of_event": self._sources[letter]}

    def on_event(self, code: int, value: float) -> None:
        self.given = self.host.loop.leds()
        self._look()

    def _look(self) -> None:
        """Follow the loop, and od_reading, which takes the OD LED when it starts."""
        if self.od_led and self.measuring:
            self.asked[self.od_led] = 0.0
        self.become(READY if any(self.asked.values()) else DISCONNECTED)
        self.publish()

    def tend(self) -> None:
        self.given = self.host.loop.leds()
        self._look()
        lit = sum(1 << events.LED_CHANNELS.index(letter) for letter, percent in self.asked.items() if percent)
        if not lit:
            return
        try:
            self.host.send(SAMPLING, events.COMMAND_LED_RENEW, 0, lit, 0.0, _ignore)
        except CommandError:
            pass  # the loop takes no commands: the lease lapses, and says so
