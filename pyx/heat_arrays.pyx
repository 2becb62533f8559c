# Why compiled: the heater's observer, controller and envelope as a Python object, for tests, notebooks and benchmarks.
# Thread rule: one thread per object.
# Units: time in nanoseconds, degrees Celsius, duty in percent 0..100.
"""The heater's part of the loop on its own; the worker never loads this module."""

from libc.math cimport exp
from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.heat_protect cimport HEAT_REASONS
from stirbar.rt.heating cimport (
    HeatConfig, HeatState, heat_fill, heat_init, heat_reading, heat_renew, heat_stop, heat_target, heat_tick,
    heat_unlock, heat_word, heat_word_degc)
from stirbar.rt.limits cimport (
    HEATER_DUTY_CEILING_PERCENT, TEMPERATURE_DISABLE_CEILING_DEGC, TEMPERATURE_REDUCE_CEILING_DEGC,
    TEMPERATURE_SHUTDOWN_CEILING_DEGC, TEMPERATURE_TARGET_CEILING_DEGC)
from stirbar.rt.liquid cimport liquid_exchange, liquid_hold_duty, liquid_se_degc
from stirbar.rt.types cimport Reading

DUTY_CEILING_PERCENT = HEATER_DUTY_CEILING_PERCENT
TARGET_CEILING_DEGC = TEMPERATURE_TARGET_CEILING_DEGC
TIER_CEILINGS_DEGC = (
    TEMPERATURE_REDUCE_CEILING_DEGC, TEMPERATURE_DISABLE_CEILING_DEGC, TEMPERATURE_SHUTDOWN_CEILING_DEGC)
REASONS = ("no_lease", "reduced", "disabled", "locked", "blind", "untrusted", "energy", "unstirred", "no_guard")
DISTRUST = ("", "new", "stale", "stuck", "slope", "jump")
COEFFICIENTS = ("coupling", "power", "board_capacity", "board_loss", "liquid_loss", "capacity")


def word_round_trip(double celsius, uint32_t before=0):
    """What the actuator thread makes of a temperature that the sampling thread hands over: (count, degC)."""
    cdef uint32_t word = heat_word(before, celsius)
    return word >> 16, heat_word_degc(word)


cdef class Heater:
    """The heater's part of an actuator tick: readings of the board's sensor in, duty out.

    `vial`, `limits` and `control` are the fields of LiquidConfig, HeatLimits and ThermostatConfig (liquid.pxd,
    limits.pxd, thermostat.pxd). ValueError where one is missing, outside its range, or limits are out of order.
    Synchronization: not thread-safe; no clock, no I/O.
    """

    cdef HeatState state

    def __init__(self, *, vial, limits, control, double band_degc=1.0, double volume_ml=14.0):
        cdef HeatConfig config
        config.vial = vial
        config.limits = limits
        config.control = control
        config.band_degc = band_degc
        config.volume_ml = volume_ml
        assert len(REASONS) == HEAT_REASONS
        if heat_init(&self.state, &config):
            raise ValueError(f"outside the heater's envelope, or limits out of order: {limits}, {control}")

    def target(self, double target_degc, int64_t now_ns):
        """Hold a temperature. ValueError above the limit, and nothing changes."""
        if heat_target(&self.state, target_degc, now_ns):
            raise ValueError(
                f"target {target_degc} degC: must be above 0 and at most"
                f" {self.state.protect.limits.target_maximum_degc} degC")

    def stop(self):
        """Duty 0 from the next tick on."""
        heat_stop(&self.state)

    def renew(self, int64_t now_ns):
        """The host thread's lease: False while nothing is to be held."""
        return heat_renew(&self.state, now_ns) == 0

    def unlock(self):
        """Acknowledge a shutdown: False while the board is too hot."""
        return heat_unlock(&self.state) == 0

    def reading(self, double board_degc, int64_t now_ns):
        """A reading of the heater board's sensor."""
        heat_reading(&self.state, board_degc, now_ns)

    def tick(self, int64_t now_ns, bint is_stirred=True, bint has_guard=True):
        """The duty to write, percent."""
        return heat_tick(&self.state, is_stirred, has_guard, now_ns)

    def exchange(self, double in_ml, double out_ml):
        """Liquid came in and went out."""
        liquid_exchange(&self.state.liquid, in_ml, out_ml)

    def published(self, int64_t now_ns):
        """The liquid's reading as the bytes of one record (stirbar.core.records.READING)."""
        cdef Reading reading
        heat_fill(&self.state, now_ns, &reading)
        return (<char*>&reading)[:sizeof(Reading)]

    def hold_duty_percent(self, double target_degc):
        """The duty that holds a temperature, by the model as it is known now; may be beyond 0..100."""
        return 100.0 * liquid_hold_duty(&self.state.liquid, target_degc)

    @property
    def reasons(self):
        """Why the duty is less than asked for: names of REASONS."""
        return [name for bit, name in enumerate(REASONS) if self.state.protect.reasons >> bit & 1]

    @property
    def distrust(self):
        """Why the sensor is not believed: one of DISTRUST, empty while it is."""
        return DISTRUST[self.state.trust.distrust]

    @property
    def liquid_degc(self):
        return self.state.liquid.x[1]

    @property
    def liquid_se_degc(self):
        return liquid_se_degc(&self.state.liquid)

    @property
    def air_degc(self):
        return self.state.liquid.x[2]

    @property
    def coefficients(self):
        """The observer's coefficients by name, W, W/K and J/K."""
        return {name: exp(self.state.liquid.x[3 + i]) for i, name in enumerate(COEFFICIENTS)}

    @property
    def energy_j(self):
        """Spent in the last half hour, at most."""
        return self.state.protect.window_j
