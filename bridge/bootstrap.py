"""Make units of fresh machines, over SSH: steps that look first, and change what is not as it should be.

A dry run looks only; a second run finds nothing to change; one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stirbar.bridge import bootstrap_access as access
from stirbar.bridge import bootstrap_cluster as cluster
from stirbar.bridge import bootstrap_system as system
from stirbar.bridge.authority import CertificateError
from stirbar.bridge.bootstrap_host import Host, Plan, Refusal
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.enrolment import EnrolmentError
from stirbar.bridge.parcel import ParcelError
from stirbar.bridge.ssh import SshError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.bridge.ssh import Target

AT_ONCE = 8
UNCHANGED, CHANGED, WOULD_CHANGE, FAILED = "unchanged", "changed", "would change", "failed"


class Step(NamedTuple):
    """`check` says what is not as it should be, in one phrase each; `apply` makes it so. Both may raise Refusal."""

    name: str
    check: Callable[[Host], list[str]]
    apply: Callable[[Host], None]


STEPS = (
    Step("host key", access.check_host_key, access.pin_host_key),
    Step("login", access.check_login, access.install_key),
    Step("rights", access.check_rights, access.nothing),
    Step("passwords", access.check_passwords, access.remove_passwords),
    Step("machine", system.check_machine, access.nothing),
    Step("name", system.check_name, access.nothing),
    Step("packages", system.check_packages, system.install_packages),
    Step("user", system.check_user, system.make_user),
    Step("stirbar", system.check_stirbar, system.install_stirbar),
    Step("configuration", system.check_config, system.write_config),
    Step("files", system.check_files, system.write_files),
    Step("interfaces", system.check_interfaces, system.write_interfaces),
    Step("join", cluster.check_join, cluster.join),
    Step("announcement", cluster.check_announcement, cluster.write_announcement),
    Step("start", cluster.check_start, cluster.start),
    Step("report", cluster.check_report, access.nothing),
)


class Outcome(NamedTuple):
    """What one step found: `what` it changed or would change, or what failed with its `remedy`."""

    step: str
    state: str
    what: list[str]
    remedy: str = ""


class Result(NamedTuple):
    """What became of one host."""

    host: str
    unit: str
    board: str
    outcomes: list[Outcome]
    notes: list[str]

    @property
    def state(self) -> str:
        """The state of the whole: that of a failed step, else of any change."""
        states = {one.state for one in self.outcomes}
        return next((one for one in (FAILED, CHANGED, WOULD_CHANGE) if one in states), UNCHANGED)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        steps = [one._asdict() for one in self.outcomes]
        return {**self._asdict(), "state": self.state, "outcomes": steps}


def bootstrap(plan: Plan, targets: list[Target], tell: Callable[[Target, Outcome], None]) -> list[Result]:
    """All hosts, several at once; what fails at one does not hold up the others. `tell` is called from any thread."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(AT_ONCE, len(targets))) as pool:
        return list(pool.map(lambda target: bootstrap_host(plan, target, lambda one: tell(target, one)), targets))


def bootstrap_host(plan: Plan, target: Target, tell: Callable[[Outcome], None]) -> Result:
    """One host, step by step, to the end or to the first that fails."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="sb-") as directory:
        host = Host(plan, target, Path(directory))
        try:
            for step in STEPS:
                outcomes.append(_do(step, host))
                tell(outcomes[-1])
                if outcomes[-1].state == FAILED:
                    break
        finally:
            if host.session is not None:
                host.session.close()
    return Result(str(target), host.unit, host.facts.get("model", ""), outcomes, host.notes)


def _do(step: Step, host: Host) -> Outcome:
    try:
        wanted = step.check(host)
        if not wanted or host.plan.dry_run:
            return Outcome(step.name, WOULD_CHANGE if wanted else UNCHANGED, wanted)
        step.apply(host)
        left = step.check(host)
        if left:
            raise Refusal(
                f"done, and yet there is still to do: {', '.join(left)}", "run it again; then look at the host"
            )
        return Outcome(step.name, CHANGED, wanted)
    except (Refusal, SshError, ParcelError, EnrolmentError) as error:
        return Outcome(step.name, FAILED, [str(error)], error.remedy)
    except (CertificateError, CredentialError, OSError, ValueError) as error:
        return Outcome(step.name, FAILED, [str(error)], "mend it on the leader")
