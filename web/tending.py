"""What a leader and its standby do every few seconds: ask each other who leads, and copy the leader's book."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stirbar.bridge.authority import CertificateError
from stirbar.bridge.books import PASSWORD_FILE, digest, step_down, take_entries, take_files
from stirbar.bridge.config_history import history_of
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.peer import PeerError, read_book, who_leads
from stirbar.bridge.standing import LEADER, STANDBY, Standing, change_standing
from stirbar.bridge.store import Store, StoreError
from stirbar.core.config import Config

TEND_S = 2.0


class Tending:
    """`step` asks the other one, once; `start` does it again and again, in a thread of its own, because one that is
    away takes its time. `store` is None where the database follows the leader's by itself.

    Synchronization: `step` of one thread at a time; `start` and `stop` of any.
    """

    def __init__(self, config: Config, directory: Path, say: Callable[[str], None]) -> None:
        self._config = config
        self._directory = directory
        self._say = say
        self._ended = threading.Event()
        self._said = ""  # what was wrong last: each trouble is told once
        self._have = ""

    def start(
        self,
        standing: Callable[[], Standing],
        store: Store | None,
        changed: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when this machine's standing has changed; what then follows is for the main thread."""

        def tend() -> None:
            while not self._ended.wait(TEND_S):
                before = standing()
                if self.step(before, store, changed) is not before and not self._ended.is_set():
                    wake()

        threading.Thread(target=tend, name="tending", daemon=True).start()

    def stop(self) -> None:
        """Ask no more; a question under way comes to nothing."""
        self._ended.set()

    def step(self, standing: Standing, store: Store | None, changed: Callable[[], None]) -> Standing:
        """What this machine is afterwards. `changed` is called when accounts have changed."""
        if standing.peer is None:
            return standing
        try:
            if standing.role == STANDBY:
                return self._copy(standing, store, changed)
            if standing.role == LEADER:
                return self._watch(standing, store)
        except PeerError as error:
            if standing.role == STANDBY:  # a standby that is away troubles no leader
                self._tell(f"the leader's book is not copied: {error}")
        except (StoreError, CredentialError, CertificateError, OSError) as error:
            self._tell(f"the leader's book is not taken: {error}")
        return standing

    def _watch(self, standing: Standing, store: Store | None) -> Standing:
        """Does the other one lead as well? By a higher epoch: units follow it, and not us."""
        assert standing.peer is not None
        role, epoch = who_leads(self._directory, standing.peer)
        if self._ended.is_set():
            return standing
        ours = max(standing.epoch, store.epoch() if store is not None else 0)
        if role != LEADER:
            return standing
        if epoch > ours:
            text = f"the leader is at {standing.peer} now, of epoch {epoch}; ours was {ours}"
            self._tell(f"{text}: this machine commands and acknowledges no more")
            if store is not None:
                store.add_event(None, "error", "leader", "deposed", text)
            return step_down(self._directory, epoch)
        text = f"the machine at {standing.peer} leads too, by epoch {epoch}, ours is {ours}: units follow this one"
        if self._tell(text) and store is not None:
            store.add_event(None, "error", "leader", "two_leaders", text)
        return standing

    def _copy(self, standing: Standing, store: Store | None, changed: Callable[[], None]) -> Standing:
        assert standing.peer is not None
        password = (self._directory / PASSWORD_FILE).read_text().strip()
        book = read_book(self._directory, standing.peer, password, self._have)
        if book is not None and not self._ended.is_set():
            by_hand = take_files(self._config, self._directory, book)
            if by_hand:
                self._say(by_hand)
            whole = store is None or take_entries(store, book)
            if store is not None:
                history_of(self._config).adopt(book["config"])
            self._have = digest(book) if whole else ""
            changed()
            if book["epoch"] > standing.epoch:
                epoch: Any = book["epoch"]
                standing = change_standing(self._directory, lambda old: old.but(epoch=max(old.epoch, epoch)))
        if self._said:
            self._tell("")
            self._say("the leader's book is copied again")
        return standing

    def _tell(self, text: str) -> bool:
        """Say what is wrong, if it is not what was wrong before; whether it was said."""
        new, self._said = text != self._said, text
        if new and text:
            self._say(text)
        return new
