"""Is there another leader on this broker? Each says who it is on `<data_root>/leader/state`, and all of them listen.

Only what is said now counts: a retained message may be of a leader that died together with the broker.

Synchronization: one thread, that of the ingest.
"""

from __future__ import annotations

import json
import secrets

from stirbar.bridge.stored_path import parse_object

OFTEN = 16  # other leaders that are remembered


class Leadership:
    """Our own word, and what is to be said and done when another leader's is heard.

    One that does not lead (`refusal` says why) listens: it acknowledges nothing, commands nobody and says nothing.
    """

    def __init__(self, epoch: int, refusal: str = "") -> None:
        self.refusal = refusal
        self.leader_id = secrets.token_hex(8)
        self.epoch = epoch
        self.others: set[str] = set()

    def said(self) -> bytes:
        """The payload for our state while we are online."""
        return json.dumps({"state": "online", "leader": self.leader_id, "epoch": self.epoch}).encode()

    def hear(self, payload: bytes) -> tuple[bool, str]:
        """A state was said on our topic now: (whether to say ours again, what a person must know or nothing).

        Raises ValueError for a message that is none.
        """
        told = parse_object(payload)
        other, epoch = told.get("leader"), told.get("epoch")
        if other == self.leader_id or self.refusal:
            return False, ""
        if not isinstance(other, str):
            # the end of another one, or of a connection of ours before this one, is retained where our word should be
            return told.get("state") != "online", ""
        if other in self.others or len(self.others) >= OFTEN:
            return False, ""
        self.others.add(other)
        follows = "the units follow both" if epoch == self.epoch else f"the units follow that of epoch {epoch}"
        if isinstance(epoch, int) and epoch < self.epoch:
            follows = "the units follow this one"
        return True, (
            f"another leader ({other[:40]}, epoch {epoch}) uses the same broker, ours has epoch {self.epoch}: "
            f"{follows}; stop one of them"
        )
