"""Commands to the doser in any order, with faults: no limit is crossed, no pump runs without a deadline.

`STIRBAR_DOSE_EXAMPLES=20000` makes a million commands of it (`make soak` does).
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stirbar.rt.dose_arrays import LATE, REFUSED, UNGUARDED
from test_dosing import GRACE_S, SECOND, WASTE, bench

FEW = 150
EXAMPLES = int(os.environ.get("STIRBAR_DOSE_EXAMPLES", FEW))


class AnyCommands(RuleBasedStateMachine):
    """Commands, faults and pauses in any order, beside pumps, a guard and a vial of our own: no limit is crossed."""

    @initialize(efflux_ml=st.sampled_from([0.0, 14.0]), ml_per_s=st.floats(0.02, 5.0), pause_s=st.floats(0.0, 10.0))
    def begin(self, efflux_ml, ml_per_s, pause_s):
        self.doser = bench(efflux_ml=efflux_ml, ml_per_s=ml_per_s, pause_s=pause_s, unseen_maximum_ml=20.0)
        self.flow = ml_per_s
        self.efflux_ml = efflux_ml
        self.now_ns = SECOND
        self.true_ml = 14.0
        self.unseen_ml = 0.0
        self.on_ns = self.deadline = None
        self.pump = None
        self.flags, self.stirred = 0, True

    def _move(self, to_ns):
        """What the pump moves until then; the guard cuts 50 ms after the deadline."""
        if self.pump is not None:
            end_ns = min(to_ns, self.deadline + int(GRACE_S * SECOND))
            ml = max(0, end_ns - self.now_ns) * self.flow / SECOND
            if self.pump == WASTE:
                self.true_ml = max(min(self.true_ml, self.efflux_ml), self.true_ml - ml)
            else:
                self.true_ml += ml
                self.unseen_ml += ml
        self.now_ns = to_ns

    def _follow(self):
        """Take over what the doser wants of its pumps."""
        wanted, deadline = self.doser.running, self.doser.deadline
        if wanted is not None:
            assert deadline is not None and deadline[0] == wanted
            if self.pump is None:
                assert self.deadline is not None, "a pump started without a deadline that stood before"
                assert not self.flags & UNGUARDED
                self.on_ns = self.now_ns
        self.pump = wanted
        self.deadline = None if deadline is None else deadline[1]

    def _look(self):
        self.doser.tick(self.now_ns, flags=self.flags, stirred=self.stirred)
        self._follow()

    @rule(pump=st.integers(0, 2), amount=st.floats(0.0, 30.0), by_seconds=st.booleans())
    def dose(self, pump, amount, by_seconds):
        self.doser.dose(pump, amount, self.now_ns, by_seconds=by_seconds, flags=self.flags, stirred=self.stirred)
        self._follow()

    @rule(media=st.floats(0.0, 5.0), alt=st.floats(0.0, 5.0), more=st.floats(-0.1, 3.0), factor=st.floats(0.0, 3.0))
    def exchange(self, media, alt, more, factor):
        self.doser.exchange(
            (media, alt, media + alt + more), factor, self.now_ns, flags=self.flags, stirred=self.stirred
        )
        self._follow()

    @rule(pump=st.integers(0, 2))
    def continuous(self, pump):
        self.doser.continuous(pump, self.now_ns, flags=self.flags, stirred=self.stirred)
        self._follow()

    @rule()
    def renew(self):
        self.doser.renew(self.now_ns)
        self._follow()

    @rule(repairs=st.booleans())
    def stop(self, repairs):
        self.doser.stop(self.now_ns, repairs=repairs)
        self._follow()
        assert self.pump is None or (repairs and self.pump == WASTE)  # already taking out what came in

    @rule()
    def look_into_the_vial(self):
        self.doser.set_volume("volume_ml", self.true_ml)
        self.unseen_ml = 0.0

    @rule(guarded=st.booleans(), stirred=st.booleans())
    def change(self, guarded, stirred):
        self.flags, self.stirred = 0 if guarded else UNGUARDED, stirred
        self._look()
        if not guarded:
            assert self.pump is None

    @precondition(lambda self: self.pump is not None)
    @rule(flag=st.sampled_from([REFUSED, LATE]))
    def fail(self, flag):
        self._move(self.now_ns + 20_000_000)
        self.doser.tick(self.now_ns, flags=flag)
        self._follow()
        assert self.pump is None

    @rule(count=st.integers(1, 12), late_ns=st.integers(0, 2_000_000))
    def go_on(self, count, late_ns):
        for _ in range(count):
            if self.doser.due_ns is None:
                return
            self._move(max(self.now_ns, self.doser.due_ns) + late_ns)
            self._look()
            self.check()

    @rule(seconds=st.floats(0.0, 120.0))
    def stand_still(self, seconds):
        self._move(self.now_ns + int(seconds * SECOND))
        self._look()

    @invariant()
    def check(self):
        if not hasattr(self, "doser"):
            return
        slack_ml = self.flow * (GRACE_S + 0.002) + 1e-6
        assert self.true_ml <= 18.0 + slack_ml
        assert self.true_ml >= min(5.0, self.efflux_ml or 5.0) - slack_ml
        assert self.unseen_ml <= 20.0 + slack_ml
        assert abs(self.doser.volume["volume_ml"] - self.true_ml) <= 40 * slack_ml
        if self.pump is not None:
            assert self.deadline - self.on_ns <= 30 * SECOND + self.now_ns - self.on_ns
        elif self.doser.stage == "idle":
            assert self.deadline is None and self.doser.due_ns is None


TestAnyCommands = AnyCommands.TestCase
TestAnyCommands.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    derandomize=EXAMPLES == FEW,
    suppress_health_check=[HealthCheck.too_slow],
)
