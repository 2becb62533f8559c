"""The doser on its own: what it does step by step, what it refuses, and what it does when something fails."""

import errno
import itertools

import pytest
from stirbar.core import dose_account, dosing_job, events
from stirbar.rt import dose_arrays
from stirbar.rt.dose_arrays import LATE, REFUSED, UNGUARDED, DoserBench

LIMITS = {
    "volume_maximum_ml": 18.0,
    "volume_minimum_ml": 5.0,
    "subdose_maximum_ml": 1.0,
    "unseen_maximum_ml": 100.0,
    "on_maximum_s": 30.0,
    "interval_s": 1.0,
    "lease_s": 3.0,
}
MEDIA, ALT_MEDIA, WASTE = range(3)
SECOND = 1_000_000_000
GRACE_S = 0.05


def bench(*, volume_ml=14.0, efflux_ml=14.0, pause_s=5.0, ml_per_s=0.5, **limits):
    volume = {"volume_ml": volume_ml, "efflux_ml": efflux_ml}
    return DoserBench(limits={**LIMITS, **limits}, volume=volume, pause_s=pause_s, ml_per_s=ml_per_s)


class Runner:
    """Looks at a doser whenever it wants to be looked at; `runs` are (pump, on s, off s, armed s before)."""

    def __init__(self, doser, late_ns=0):
        self.doser = doser
        self.now_ns = SECOND
        self.late_ns = late_ns
        self.said = []
        self.runs = []
        self._on = None
        self._armed_ns = 0

    def look(self, now_ns=None, **what):
        self.now_ns = self.now_ns if now_ns is None else now_ns
        had_deadline = self.doser.deadline
        self.said += self.doser.tick(self.now_ns, **what)
        if self.doser.deadline and not had_deadline:
            self._armed_ns = self.now_ns
        if self._on is None and self.doser.running is not None:
            self._on = (self.doser.running, self.now_ns)
            assert self.doser.deadline == (self.doser.running, self.doser.due_ns)
        elif self._on is not None and self.doser.running is None:
            self.runs.append((self._on[0], self._on[1] / SECOND, self.now_ns / SECOND))
            self._on = None

    def run(self, seconds=float("inf"), **what):
        end_ns = self.now_ns + seconds * SECOND
        while self.doser.due_ns is not None and self.doser.due_ns + self.late_ns <= end_ns:
            self.look(max(self.now_ns, self.doser.due_ns + self.late_ns), **what)
        if end_ns < float("inf"):
            self.now_ns = int(end_ns)
        return self

    def names(self):
        return [name for name, _, _ in self.said]


def moved(runner, pump):
    return sum(value for name, argument, value in runner.said if name == "step" and argument == pump)


# --- what is done ----------------------------------------------------------------------------------------------------


def test_a_dose_runs_for_its_volume_and_not_longer():
    doser = bench()
    assert doser.dose(MEDIA, 1.0, SECOND) == 0
    runner = Runner(doser).run()
    assert [(pump, round(off - on, 9)) for pump, on, off in runner.runs] == [(MEDIA, 2.0)]
    assert moved(runner, MEDIA) == pytest.approx(1.0)
    assert runner.names() == ["step", "done"]
    assert runner.now_ns == pytest.approx(1e9 * runner.runs[0][2])  # it is over when the pump is
    assert doser.volume["volume_ml"] == pytest.approx(15.0)
    assert doser.stage == "idle" and doser.deadline is None


def test_seconds_are_run_as_they_are_and_counted_by_the_calibration():
    doser = bench(ml_per_s=0.0)  # no calibration: the flow is the field's guess
    assert doser.dose(MEDIA, 3.0, SECOND, by_seconds=True) == 0
    runner = Runner(doser).run()
    assert runner.runs[0][2] - runner.runs[0][1] == pytest.approx(3.0)
    assert moved(runner, MEDIA) == pytest.approx(3.0 * 0.0911)


def test_a_calibration_with_an_offset():
    doser = bench()
    assert doser.pump(MEDIA, 1, -0.1) == 0  # the first 0.2 s move nothing
    doser.dose(MEDIA, 0.9, SECOND)
    runner = Runner(doser).run()
    assert runner.runs[0][2] - runner.runs[0][1] == pytest.approx(2.0)
    assert moved(runner, MEDIA) == pytest.approx(0.9)


def test_the_deadline_stands_before_the_pump_starts():
    doser = bench()
    doser.dose(MEDIA, 1.0, SECOND)
    doser.tick(SECOND)
    assert doser.stage == "armed" and doser.running is None
    assert doser.deadline == (MEDIA, SECOND + 10_000_000 + 2 * SECOND)
    assert doser.due_ns == SECOND + 10_000_000


def test_an_exchange_takes_waste_first_and_again_after_the_inflow():
    doser = bench()
    assert doser.exchange((0.5, 0.25, 0.75), 2.0, SECOND) == 0
    runner = Runner(doser).run()
    assert [pump for pump, _, _ in runner.runs] == [WASTE, MEDIA, ALT_MEDIA, WASTE]
    assert [moved(runner, pump) for pump in range(3)] == pytest.approx([0.5, 0.25, 3 * 0.75])
    pauses = [after[1] - before[2] for before, after in itertools.pairwise(runner.runs)]
    assert pauses == pytest.approx([0.01, 5.01, 5.01])  # to mix after each inflow
    assert doser.volume["volume_ml"] == 14.0 and doser.volume["owed_ml"] == 0.0
    assert doser.volume["alt_media_fraction"] == pytest.approx(0.25 / 14.75)


def test_a_large_exchange_comes_in_subdoses():
    doser = bench()
    doser.exchange((2.5, 0.0, 2.5), 2.0, SECOND)
    runner = Runner(doser)
    while doser.due_ns is not None:
        runner.run(0.5)
        assert doser.volume["volume_ml"] <= 15.0
    assert [pump for pump, _, _ in runner.runs] == [WASTE, MEDIA, WASTE] * 3
    assert moved(runner, MEDIA) == pytest.approx(2.5)


def test_a_waste_tube_at_the_bottom_takes_out_what_it_is_told():
    doser = bench(efflux_ml=0.0)
    doser.exchange((1.0, 0.0, 1.0), 0.0, SECOND)
    runner = Runner(doser).run()
    assert [pump for pump, _, _ in runner.runs] == [WASTE, MEDIA]
    assert doser.volume["volume_ml"] == pytest.approx(14.0)


def test_a_long_run_is_broken_up():
    doser = bench(on_maximum_s=2.0)
    doser.dose(WASTE, 5.0, SECOND, by_seconds=True)
    runner = Runner(doser).run()
    assert [round(off - on, 9) for _, on, off in runner.runs] == [2.0, 2.0, 1.0]


def test_a_continuous_run_ends_with_its_lease():
    doser = bench()
    assert doser.continuous(WASTE, SECOND) == 0
    runner = Runner(doser).run(2.0)
    for _ in range(5):
        assert doser.renew(runner.now_ns) == 0
        runner.run(2.0)
    assert doser.running == WASTE
    runner.run()
    assert runner.runs[0][2] - runner.runs[0][1] == pytest.approx(10.0 - 0.01 + 3.0)
    assert runner.said[-2] == ("cut", dose_arrays.CUT_NAMES.index("lease"), 0.0)
    assert doser.renew(runner.now_ns) == -errno.EINVAL


def test_a_continuous_inflow_ends_when_the_vial_is_full():
    doser = bench(volume_ml=16.0)
    doser.continuous(MEDIA, SECOND)
    runner = Runner(doser)
    while doser.stage != "idle":
        runner.run(1.0)
        doser.renew(runner.now_ns)
    assert 17.8 < doser.volume["volume_ml"] <= 18.0
    assert runner.said[-2][:2] == ("cut", dose_arrays.CUT_NAMES.index("full"))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda d: d.dose(MEDIA, 4.1, SECOND), errno.ENOSPC),
        (lambda d: d.dose(MEDIA, 3.99, SECOND), errno.ENOSPC),  # with what may come on top it does not fit
        (lambda d: d.dose(WASTE, 0.0, SECOND), errno.EDOM),
        (lambda d: d.dose(MEDIA, -1.0, SECOND), errno.EDOM),
        (lambda d: d.dose(MEDIA, float("nan"), SECOND), errno.EDOM),
        (lambda d: d.dose(MEDIA, float("inf"), SECOND), errno.EDOM),
        (lambda d: d.dose(3, 1.0, SECOND), errno.EINVAL),
        (lambda d: d.exchange((1.0, 0.5, 1.4), 2.0, SECOND), errno.EINVAL),
        (lambda d: d.exchange((1.0, 0.0, 1.0), 11.0, SECOND), errno.EDOM),
        (lambda d: d.exchange((float("nan"), 0.0, 1.0), 2.0, SECOND), errno.EDOM),
        (lambda d: d.dose(MEDIA, 1.0, SECOND, flags=UNGUARDED), errno.ENOLINK),
        (lambda d: d.dose(MEDIA, 1.0, SECOND, stirred=False), errno.EHOSTDOWN),
        (lambda d: d.exchange((1.0, 0.0, 1.0), 2.0, SECOND, stirred=False), errno.EHOSTDOWN),
        (lambda d: d.renew(SECOND), errno.EINVAL),
        (lambda d: d.pump(MEDIA, 0, 21.0), errno.EDOM),
        (lambda d: d.pump(MEDIA, 2, 0.0), errno.EDOM),
        (lambda d: d.set_volume("volume_ml", -1.0), errno.EDOM),
        (lambda d: d.set_volume("alt_media_fraction", 1.1), errno.EDOM),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(ask, why):
    doser = bench()
    before = doser.volume
    assert ask(doser) == -why
    assert doser.stage == "idle" and doser.volume == before
    assert doser.dose(WASTE, 1.0, SECOND) == 0  # and the next is done


def test_taking_out_is_allowed_where_nobody_stirs():
    assert bench().dose(WASTE, 1.0, SECOND, stirred=False) == 0


def test_the_vial_keeps_its_least():
    assert bench(efflux_ml=0.0).dose(WASTE, 9.1, SECOND) == -errno.ERANGE
    assert bench(efflux_ml=0.0).dose(WASTE, 9.0, SECOND) == 0
    assert bench(efflux_ml=14.0).dose(WASTE, 20.0, SECOND) == 0  # the tube draws air


def test_without_a_calibration_no_millilitres():
    doser = bench(ml_per_s=0.0)
    assert doser.dose(MEDIA, 1.0, SECOND) == -errno.ENODATA
    assert doser.exchange((0.5, 0.0, 0.5), 2.0, SECOND) == -errno.ENODATA


def test_inflow_is_counted_until_somebody_looks():
    doser = bench(unseen_maximum_ml=2.0, interval_s=0.0)
    now_ns = SECOND
    for _ in range(2):
        assert doser.exchange((1.0, 0.0, 1.0), 2.0, now_ns) == 0
        now_ns = Runner(doser).run().now_ns + 100 * SECOND
    assert doser.exchange((1.0, 0.0, 1.0), 2.0, now_ns) == -errno.EDQUOT
    doser.set_volume("volume_ml", 14.0)
    assert doser.exchange((1.0, 0.0, 1.0), 2.0, now_ns) == 0


def test_pumps_rest_between_inflows():
    doser = bench(interval_s=60.0, pause_s=0.0)
    doser.dose(MEDIA, 0.5, SECOND)
    runner = Runner(doser).run()
    assert doser.dose(MEDIA, 0.5, runner.now_ns + 59 * SECOND) == -errno.EAGAIN
    assert doser.dose(WASTE, 0.5, runner.now_ns) == 0
    runner.run()
    assert doser.dose(MEDIA, 0.5, runner.runs[0][2] * SECOND + 61 * SECOND) == 0


def test_one_dose_at_a_time():
    doser = bench()
    doser.dose(MEDIA, 1.0, SECOND)
    assert doser.dose(WASTE, 1.0, SECOND) == -errno.EBUSY
    assert doser.pump(MEDIA, 0, 1.0) == -errno.EBUSY


@pytest.mark.parametrize(
    ("name", "value"),
    # how much may come in unseen has no ceiling of its own: the vial's fill holds
    [(n, v) for n in LIMITS for v in (float("nan"), -1.0, 1e9) if (n, v) != ("unseen_maximum_ml", 1e9)],
)
def test_limits_above_their_ceiling_are_refused(name, value):
    with pytest.raises(ValueError, match="envelope"):
        bench(**{name: value})


def test_floor_and_ceiling_out_of_order():
    with pytest.raises(ValueError, match="out of order"):
        bench(volume_minimum_ml=18.0)


# --- what fails ------------------------------------------------------------------------------------------------------


def during(doser, pump, runner):
    """Run on until a pump runs, and half a second more."""
    while doser.running != pump:
        runner.look(max(runner.now_ns, doser.due_ns))
    runner.run(0.5)


def test_a_guard_that_falls_silent_stops_the_pump_and_the_rest_is_taken_out_when_it_is_back():
    doser = bench()
    doser.exchange((1.0, 0.0, 1.0), 2.0, SECOND)
    runner = Runner(doser)
    during(doser, MEDIA, runner)
    runner.look(flags=UNGUARDED)
    assert doser.running is None and doser.stage == "held" and doser.deadline is None
    assert moved(runner, MEDIA) == pytest.approx(0.25)
    for _ in range(100):
        runner.look(runner.now_ns + SECOND, flags=UNGUARDED)
        assert doser.running is None
    runner.look(runner.now_ns + SECOND)
    runner.run()
    assert [pump for pump, _, _ in runner.runs] == [WASTE, MEDIA, WASTE]
    assert moved(runner, WASTE) == pytest.approx(1.0 + 2 * 0.25)
    assert ("cut", dose_arrays.CUT_NAMES.index("unguarded"), pytest.approx(0.75)) in runner.said
    assert doser.volume["volume_ml"] == 14.0


def test_a_dose_that_waits_for_its_guard_is_given_up():
    doser = bench()
    doser.exchange((1.0, 0.0, 1.0), 2.0, SECOND)
    runner = Runner(doser)
    during(doser, MEDIA, runner)
    runner.look(flags=UNGUARDED)
    runner.look(runner.now_ns + 601 * SECOND, flags=UNGUARDED)
    assert doser.stage == "idle"
    assert [entry for entry in runner.said if entry[0] == "owed"] == [("owed", 2, pytest.approx(0.25))]
    # and the next exchange takes it out first
    doser.exchange((0.5, 0.0, 0.5), 2.0, runner.now_ns)
    after = Runner(doser)
    after.now_ns = runner.now_ns
    after.run()
    assert after.said[0] == ("step", WASTE, pytest.approx(0.75))
    assert doser.volume["owed_ml"] == 0.0


@pytest.mark.parametrize("pump", [MEDIA, ALT_MEDIA])
def test_a_stirrer_that_stalls_ends_the_inflow(pump):
    doser = bench()
    doser.exchange((1.0, 1.0, 2.0), 2.0, SECOND)
    runner = Runner(doser)
    during(doser, pump, runner)
    runner.look(stirred=False)
    runner.run(stirred=False)
    assert [ran for ran, _, _ in runner.runs][-1] == WASTE
    assert doser.volume["volume_ml"] == 14.0 and doser.volume["owed_ml"] == 0.0
    assert runner.names()[-1] == "done"


def test_a_pump_that_takes_no_orders_moved_nothing():
    doser = bench()
    doser.exchange((1.0, 0.0, 1.0), 2.0, SECOND)
    runner = Runner(doser)
    while doser.running != MEDIA:
        runner.look(max(runner.now_ns, doser.due_ns))
    runner.look(flags=REFUSED)
    assert moved(runner, MEDIA) == 0.0
    assert doser.stage == "idle" and ("cut", 4, pytest.approx(1.0)) in runner.said


def test_a_waste_pump_that_fails_leaves_a_debt():
    doser = bench()
    doser.exchange((1.0, 0.0, 1.0), 2.0, SECOND)
    runner = Runner(doser)
    during(doser, MEDIA, runner)
    while doser.running != WASTE:
        runner.look(max(runner.now_ns, doser.due_ns))
    runner.look(flags=REFUSED)
    assert doser.stage == "idle"
    assert doser.volume["owed_ml"] == pytest.approx(1.0) and doser.volume["volume_ml"] == pytest.approx(15.0)


def test_a_loop_that_stood_still_counts_what_the_guard_let_through():
    doser = bench()
    doser.dose(MEDIA, 1.0, SECOND)
    runner = Runner(doser)
    during(doser, MEDIA, runner)
    runner.look(runner.now_ns + 100 * SECOND, flags=LATE)
    assert moved(runner, MEDIA) == pytest.approx(1.0 + GRACE_S * 0.5)
    assert doser.stage == "idle"


def test_a_late_wake_up_is_counted_to_the_microsecond():
    doser = bench()
    doser.dose(MEDIA, 1.0, SECOND)
    runner = Runner(doser, late_ns=3_000_000).run()
    assert moved(runner, MEDIA) == pytest.approx(1.0 + 0.003 * 0.5)


@pytest.mark.parametrize("repairs", [False, True])
def test_a_stop_is_at_once(repairs):
    doser = bench()
    doser.exchange((1.0, 0.0, 1.0), 2.0, SECOND)
    runner = Runner(doser)
    during(doser, MEDIA, runner)
    assert doser.stop(runner.now_ns, repairs=repairs) == 0
    runner.said += doser.events()
    assert doser.running is None and doser.deadline is None
    runner.look(runner.now_ns)
    runner.run()
    assert doser.volume["volume_ml"] == pytest.approx(14.0 if repairs else 14.25)
    assert doser.volume["owed_ml"] == pytest.approx(0.0 if repairs else 0.25)


# --- names -----------------------------------------------------------------------------------------------------------


def test_numbers_have_the_same_names_everywhere():
    assert tuple(name for name, _, _ in events.CUTS) == dose_arrays.CUT_NAMES
    assert events.PUMPS == dose_arrays.PUMPS
    assert len(dose_account.ITEMS) == len(dose_arrays.ITEMS)
    assert set(dosing_job.REFUSALS) == {
        getattr(errno, name)
        for name in [
            "ENOSPC",
            "EDQUOT",
            "ERANGE",
            "ENODATA",
            "EBUSY",
            "ENOLINK",
            "EHOSTDOWN",
            "EINVAL",
            "EDOM",
        ]
    }
