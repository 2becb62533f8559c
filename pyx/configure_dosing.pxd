# Why compiled: turns the checked configuration and the vial's model into the struct of the loop's doser.
# Thread rule: the host thread, before the loop's threads live; a replay's caller.
# Units: those of the keys.

from stirbar.rt.doser cimport Doser, doser_init
from stirbar.rt.limits cimport DoseLimits
from stirbar.rt.volume cimport VOLUME_ALT_FRACTION, VOLUME_EFFLUX_ML, VOLUME_ML, volume_set

cdef enum:
    PUMP_LEASE_S = 3             # the host renews it once a second


cdef inline int configure_dosing(Doser* dose, config) except -1:
    """Limits of vial and config, and what is in the vial; ValueError where they make no sense."""
    cdef DoseLimits limits
    section = "dosing_automation.config"
    limits.volume_maximum_ml = config.vial()["fill_ml"]
    limits.volume_minimum_ml = config.get("bioreactor", "minimum_volume_ml")
    limits.subdose_maximum_ml = config.get(section, "max_subdose")
    limits.unseen_maximum_ml = 0.0 if config.get("bioreactor", "passive_overflow") else config.get(
        section, "inflow_without_evidence_ml")
    limits.on_maximum_s = config.get(section, "maximum_on_time_s")
    limits.interval_s = config.get(section, "minimum_interval_s")
    limits.lease_s = PUMP_LEASE_S
    if doser_init(dose, &limits, config.get(section, "pause_between_subdoses_seconds")) or volume_set(
            &dose.volume, VOLUME_ML, config.get("bioreactor", "initial_volume_ml")) or volume_set(
            &dose.volume, VOLUME_ALT_FRACTION, config.get("bioreactor", "initial_alt_media_fraction")) or volume_set(
            &dose.volume, VOLUME_EFFLUX_ML, config.get("bioreactor", "efflux_tube_volume_ml")):
        raise ValueError("[dosing_automation.config] or [bioreactor] is outside the pumps' envelope")
    return 0
