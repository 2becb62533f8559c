# Why compiled: turns the checked configuration and the vial's model into the struct of the heater's loop.
# Thread rule: the host thread, before the loop's threads live; a replay's caller.
# Units: those of the keys.

from libc.string cimport memset

from stirbar.rt.heating cimport HeatConfig

cdef enum:
    HEAT_LEASE_S = 5             # the host renews it once a second
    HEAT_BLIND_S = 60


cdef inline int configure_heat(HeatConfig* heat, config) except -1:
    """The vial's limits and heat (Config.vial), lowered by the config; heat_init says whether they make sense."""
    section = "temperature_automation.config"
    vial = config.vial()
    memset(heat, 0, sizeof(HeatConfig))
    heat.vial.power_w = vial["power_w"]
    heat.vial.power_sd = vial["power_sd"]
    heat.vial.board_j_per_k = vial["board_j_per_k"]
    heat.vial.board_sd = vial["board_sd"]
    heat.vial.coupling_w_per_k = vial["coupling_w_per_k"]
    heat.vial.coupling_sd = vial["coupling_sd"]
    heat.vial.board_loss_w_per_k = vial["board_loss_w_per_k"]
    heat.vial.liquid_loss_w_per_k = vial["liquid_loss_w_per_k"]
    heat.vial.loss_sd = vial["loss_sd"]
    heat.vial.volume_sd = vial["volume_sd"]
    heat.limits.reduce_degc = vial["reduce_degc"]
    heat.limits.disable_degc = vial["disable_degc"]
    heat.limits.shutdown_degc = vial["shutdown_degc"]
    heat.limits.energy_maximum_j = vial["energy_maximum_j"]
    heat.limits.duty_maximum_percent = config.get(section, "heater_duty_maximum_percent")
    heat.limits.target_maximum_degc = config.get(section, "target_maximum_degc")
    heat.limits.blind_duty_percent = min(vial["blind_duty_percent"], heat.limits.duty_maximum_percent)
    heat.limits.blind_s = HEAT_BLIND_S
    heat.limits.lease_s = HEAT_LEASE_S
    heat.control.kp = 0.01 * config.get(section, "gain_percent_per_degc")
    heat.control.ki = 0.01 * config.get(section, "integral_percent_per_degc_s")
    heat.control.ramp_degc_per_min = config.get(section, "ramp_degc_per_min")
    heat.control.dither = 0.01 * config.get(section, "dither_percent")
    heat.control.dither_period_s = config.get(section, "dither_period_s")
    heat.band_degc = vial["band_degc"]
    heat.volume_ml = config.get("bioreactor", "initial_volume_ml")
    return 0
