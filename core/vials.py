"""The vials of the field: what they hold, how hot their heater board may get, and what is known of their heat.

Capacities and temperature tiers are the field's (pioreactor's models). The heat of a 20 mL vial is the simulated vial's
(docs/simulation.md); nobody has published measured values, so they come with the spread in which the worker's observer
looks for a unit's own.
"""

from __future__ import annotations

# name: capacity_ml, fill_ml (at most), then the heater board's tiers in degC: reduce, disable, shut down
_MODELS = {
    "pioreactor_20ml_1.0": (20.0, 18.0, 63.0, 65.0, 66.0),
    "pioreactor_20ml_1.1": (20.0, 18.0, 78.0, 80.0, 85.0),
    "pioreactor_20ml_1.5": (20.0, 18.0, 78.0, 80.0, 85.0),
    "pioreactor_20ml_XR_1.5": (20.0, 18.0, 78.0, 80.0, 85.0),
    "pioreactor_40ml_1.0": (40.0, 36.0, 78.0, 80.0, 85.0),
    "pioreactor_40ml_1.5": (40.0, 36.0, 78.0, 80.0, 85.0),
    "pioreactor_40ml_XR_1.5": (40.0, 36.0, 78.0, 80.0, 85.0),
}
NAMES = tuple(_MODELS)
STRICTEST = NAMES[0]

# of a vial on its heater board, with one relative standard deviation each
_HEAT = {
    "power_w": 3.3,
    "power_sd": 0.07,
    "board_j_per_k": 8.0,
    "board_sd": 0.1,
    "coupling_w_per_k": 0.3,
    "coupling_sd": 0.3,
    "board_loss_w_per_k": 0.06,
    "liquid_loss_w_per_k": 0.06,
    "loss_sd": 0.2,
    "volume_sd": 0.05,
}
TRUST_BAND_DEGC = 1.0  # by which a healthy minute of the sensor may differ from the model's
WARMEST_ROOM_DEGC = 40.0  # for the minute without a sensor
WARM_ROOM_DEGC = 30.0  # for half an hour of energy
ENERGY_WINDOW_S = 1800.0  # HEATER_ENERGY_WINDOW_S of pyx/limits.pxd


def vial(name: str) -> dict[str, float]:
    """Everything about a vial model by name; KeyError for a name that is none of NAMES."""
    capacity_ml, fill_ml, reduce_degc, disable_degc, shutdown_degc = _MODELS[name]
    coupling, liquid_loss = _HEAT["coupling_w_per_k"], _HEAT["liquid_loss_w_per_k"]
    loss = _HEAT["board_loss_w_per_k"] + coupling * liquid_loss / (coupling + liquid_loss)
    strongest_w = _HEAT["power_w"] * (1.0 + 2.0 * _HEAT["power_sd"])
    hottest = _HEAT["power_w"] / loss  # the board's rise above the room at full duty
    return {
        **_HEAT,
        "capacity_ml": capacity_ml,
        "fill_ml": fill_ml,
        "reduce_degc": reduce_degc,
        "disable_degc": disable_degc,
        "shutdown_degc": shutdown_degc,
        "band_degc": TRUST_BAND_DEGC,
        # at these two the board stays below reduce_degc, whatever the sensor says
        "blind_duty_percent": 100.0 * min(0.5, (reduce_degc - WARMEST_ROOM_DEGC) / hottest),
        "energy_maximum_j": ENERGY_WINDOW_S * strongest_w * min(1.0, (reduce_degc - WARM_ROOM_DEGC) / hottest),
    }
