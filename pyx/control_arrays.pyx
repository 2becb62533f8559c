# Why compiled: the loop's controllers as Python objects, for tests, notebooks and tuning; the worker never loads it.
# Thread rule: one thread per object.
# Units: time in nanoseconds, duty in percent 0..100, speed in rpm.

from libc.errno cimport EDOM
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from stirbar.rt.dodging cimport (
    DODGE_ON, Dodging, dodge_duty, dodge_give, dodge_stop, dodge_target, dodge_tick)
from stirbar.rt.feed_forward cimport FORWARD_HIGH, FORWARD_LINE, FORWARD_LOW, FORWARD_POINTS
from stirbar.rt.stir_report cimport stir_reading, stir_turns
from stirbar.rt.stirring cimport (
    STIR_DUTY_CEILING_PERCENT, STIR_FAULT, STIR_KICK, STIR_KICK_CEILING_MS, STIR_OFF, STIR_RAMP_CEILING,
    STIR_REST, STIR_RETRIES_CEILING, STIR_RPM_CEILING, STIR_RPM_FLOOR, STIR_RUN, STIR_START, StirConfig, StirState,
    stir_config_default, stir_curve, stir_edge, stir_init, stir_ramp_rate, stir_tick)
from stirbar.rt.tachometer cimport (
    TACHOMETER_RPM_LIMIT, Tachometer, TachometerFit, tachometer_bound_rpm, tachometer_edge, tachometer_fit,
    tachometer_init)
from stirbar.rt.types cimport Reading

DUTY_CEILING_PERCENT = STIR_DUTY_CEILING_PERCENT
RAMP_CEILING = STIR_RAMP_CEILING
RPM_CEILING = STIR_RPM_CEILING
RPM_FLOOR = STIR_RPM_FLOOR
KICK_CEILING_S = STIR_KICK_CEILING_MS * 1e-3
RETRIES_CEILING = STIR_RETRIES_CEILING
CURVE_POINTS = FORWARD_POINTS
CURVE_LINE = FORWARD_LINE
RPM_LIMIT = TACHOMETER_RPM_LIMIT
PHASES = {STIR_OFF: "off", STIR_START: "start", STIR_KICK: "kick", STIR_RUN: "run"}
PHASES.update({STIR_FAULT: "fault", STIR_REST: "rest"})


def fit_edges(const int64_t[::1] stamps_ns, int64_t now_ns, double window_s=1.0, int pulses_per_turn=1):
    """Pass edges through a tachometer and fit its window.

    stamps_ns: shape (n,), int64, in order. Returns a dict: rpm, standard_error_rpm, bound_rpm, window_s, turn_mean_ns,
    turn_sd_ns, turns, used, bounded, bounced, lost, restarts. ValueError: pulses_per_turn outside 1..8.
    Synchronization: pure.
    """
    cdef Tachometer tachometer
    cdef TachometerFit fit
    cdef Py_ssize_t i
    if tachometer_init(&tachometer, pulses_per_turn):
        raise ValueError(f"pulses_per_turn is {pulses_per_turn}; it must be 1..8")
    with nogil:
        for i in range(stamps_ns.shape[0]):
            tachometer_edge(&tachometer, stamps_ns[i])
        tachometer_fit(&tachometer, now_ns, <int64_t>(window_s * 1e9), &fit)
    result = dict(fit)
    for name in ("bounced", "lost", "restarts"):
        result[name] = dict(tachometer)[name]
    result["bound_rpm"] = tachometer_bound_rpm(&tachometer, now_ns)
    return result


def stirring_defaults():
    """The default StirConfig as a dict: one entry per field."""
    cdef StirConfig config
    stir_config_default(&config)
    return dict(config)


cdef class Stirrer:
    """The stirring controller on its own: edges and ticks in, duty and events out.

    Keyword arguments are fields of StirConfig (see stirring_defaults()); ValueError when one is outside its range.
    Synchronization: not thread-safe; no clock, no I/O.
    """

    cdef StirState state
    cdef Dodging dodging

    def __init__(self, **settings):
        cdef StirConfig config
        cdef int status
        values = stirring_defaults()
        unknown = set(settings) - set(values)
        if unknown:
            raise TypeError(f"unknown settings {sorted(unknown)}; known: {sorted(values)}")
        values.update(settings)
        config = values
        status = stir_init(&self.state, &config)
        if status:
            raise ValueError(f"stirring settings outside their range (errno {-status}): {settings}")

    def target_rpm(self, double rpm, int64_t now_ns):
        """Closed loop at rpm; 0 stops. ValueError outside the envelope, and nothing changes."""
        if dodge_target(&self.dodging, &self.state, rpm, now_ns) == -EDOM:
            raise ValueError(f"target {rpm} rpm: must be 0 or {STIR_RPM_FLOOR}..{self.state.config.rpm_maximum} rpm")

    def duty(self, double duty_percent, int64_t now_ns):
        """Open loop at a duty; 0 stops. ValueError outside 0..duty_maximum_percent, and nothing changes."""
        if dodge_duty(&self.dodging, &self.state, duty_percent, now_ns) == -EDOM:
            raise ValueError(f"duty {duty_percent} %: must be 0..{self.state.config.duty_maximum_percent} %")

    def ramp(self, double rpm_per_s):
        """How fast the speed may change, 0: at once. ValueError outside 0..10000 rpm/s."""
        if stir_ramp_rate(&self.state, rpm_per_s) == -EDOM:
            raise ValueError(f"ramp {rpm_per_s} rpm/s: must be 0..{STIR_RAMP_CEILING} rpm/s")

    def curve(self, duty_percent, double low_rpm, double high_rpm):
        """Feed-forward from CURVE_POINTS duties at equal steps of speed; ValueError when they do not rise in 0..100."""
        cdef int part
        cdef int status = 0
        parts = [*duty_percent, low_rpm, high_rpm]
        if len(parts) != FORWARD_HIGH + 1:
            raise ValueError(f"{len(parts) - 2} duties, expected {FORWARD_LOW}")
        for part in range(FORWARD_HIGH + 1):
            status = stir_curve(&self.state, part, parts[part])
        if status:
            raise ValueError(f"duties that do not rise within 0..100 %, or speeds that do not: {parts}")

    def line(self):
        """Feed-forward by the line of the settings again."""
        stir_curve(&self.state, FORWARD_LINE, 0.0)

    def dodge(self, double period_s, double quiet_s, double quiet_rpm, int64_t now_ns, on=True):
        """Slow down for quiet_s of each period_s; ValueError where that cannot be."""
        cdef int part
        cdef int status = 0
        parts = [period_s, quiet_s, quiet_rpm, 1.0 if on else 0.0]
        for part in range(DODGE_ON + 1):
            status = dodge_give(&self.dodging, &self.state, part, parts[part], now_ns)
        if status:
            raise ValueError(f"a schedule of {period_s} s with {quiet_s} s at {quiet_rpm} rpm is outside the envelope")

    def stop(self, int64_t now_ns):
        """Duty 0 from the next tick; ends a fault."""
        dodge_stop(&self.dodging, &self.state, now_ns)

    def edge(self, int64_t stamp_ns):
        """One tachometer edge; True when accepted."""
        return stir_edge(&self.state, stamp_ns) == 1

    def tick(self, int64_t now_ns):
        """One control tick; returns (duty_percent, event code or 0, event value or NaN)."""
        cdef double duty_percent, event_value
        cdef int event
        dodge_tick(&self.dodging, &self.state, now_ns)
        stir_tick(&self.state, now_ns, &duty_percent, &event, &event_value)
        return duty_percent, event, event_value

    def ticks(self, int64_t start_ns, int64_t step_ns, int count):
        """Run count ticks without edges, for measuring their cost; returns the last duty."""
        cdef double duty_percent = 0.0
        cdef double event_value
        cdef int event
        cdef int i
        with nogil:
            for i in range(count):
                dodge_tick(&self.dodging, &self.state, start_ns + i * step_ns)
                stir_tick(&self.state, start_ns + i * step_ns, &duty_percent, &event, &event_value)
        return duty_percent

    def reading(self, int64_t now_ns):
        """The reading due now as the bytes of one record (stirbar.core.records.READING), or None."""
        cdef Reading reading
        if not stir_reading(&self.state, now_ns, &reading):
            return None
        return (<char*>&reading)[:sizeof(Reading)]

    def turns(self, int64_t now_ns):
        """The statistics of turns due now, as `reading`; or None."""
        cdef Reading reading
        if not stir_turns(&self.state, now_ns, &reading):
            return None
        return (<char*>&reading)[:sizeof(Reading)]

    def snapshot(self):
        """The whole state as bytes."""
        return (<char*>&self.state)[:sizeof(StirState)]

    def restore(self, bytes snapshot):
        """Continue from a snapshot of the same build. ValueError when its size differs."""
        if len(snapshot) != sizeof(StirState):
            raise ValueError(f"snapshot of {len(snapshot)} bytes; this build's are {sizeof(StirState)}")
        memcpy(&self.state, <const char*>snapshot, sizeof(StirState))

    @property
    def phase(self):
        """off, start, kick, run, fault or rest."""
        return PHASES[self.state.phase]

    @property
    def counters(self):
        """Edges bounced, lost, restarts of the tachometer; updates and saturated updates of PI; stalls in a row."""
        return {
            "bounced": self.state.tachometer.bounced, "lost": self.state.tachometer.lost,
            "restarts": self.state.tachometer.restarts, "updates": self.state.updates,
            "saturated": self.state.saturated, "stalls": self.state.stalls}
