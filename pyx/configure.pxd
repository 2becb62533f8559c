# Why compiled: turns the checked configuration into the structs of the loop; the same for the worker and for a replay.
# Thread rule: the host thread, before the loop's threads live.
# Units: those of the config's keys.

from libc.stdint cimport int32_t, uint16_t
from libc.string cimport memset

from stirbar.rt.od_state cimport (
    OD_CLASSIC, OD_RATES, OD_REFERENCE, OD_REGRESSED, OD_SIGNAL, OD_UNITY, OD_UNUSED, OdConfig)
from stirbar.rt.stirring cimport StirConfig, stir_config_default
from stirbar.rt.types cimport MAX_CHANNELS


cdef inline int photodiode_angles(config, int32_t* angle) except -1:
    """Fill the angle of each channel: -1 not connected, 0 reference; returns the first that measures, or -2."""
    cdef int i
    cdef int first = -2
    for i in range(MAX_CHANNELS):
        text = str(config.get("od_config.photodiode_channel", str(i + 1)) or "")
        angle[i] = -1 if not text else 0 if text == "REF" else <int32_t>int(text)
        if angle[i] > 0 and first < 0:
            first = i
    return first


cdef inline double mains_hz(config) except -1:
    """50, 60, or 0 where it is to be found out."""
    text = str(config.get("od_reading.config", "local_ac_hz"))
    return 0.0 if text == "auto" else float(text)


cdef inline int configure_rates(OdConfig* od, config) except -1:
    """The rate of readings, and the slower ones; without a window of its own each uses all light, 1 / rate."""
    cdef int i
    rates = [config.get("od_reading.config", "readings_per_second")]
    rates += [float(word) for word in config.get("od_reading.config", "slower_readings_per_second").split(",") if word]
    windows = [config.get("od_reading.config", "window_s")]
    windows += [float(word) for word in config.get("od_reading.config", "slower_windows_s").split(",") if word]
    windows += [1.0 / rate for rate in rates[len(windows):]]
    if len(rates) > OD_RATES:
        raise ValueError(f"[od_reading.config] slower_readings_per_second names {len(rates) - 1} rates, at most "
                         f"{OD_RATES - 1} can be had")
    od.rates = <int>len(rates)
    for i in range(od.rates):
        od.readings_per_second[i] = rates[i]
        od.window_s[i] = windows[i]
    return 0


cdef inline int configure_od(OdConfig* od, config) except -1:
    cdef int32_t angle[MAX_CHANNELS]
    cdef int i
    memset(od, 0, sizeof(OdConfig))
    photodiode_angles(config, angle)
    for i in range(MAX_CHANNELS):
        od.role[i] = OD_UNUSED if angle[i] < 0 else OD_REFERENCE if angle[i] == 0 else OD_SIGNAL
        od.angle[i] = <uint16_t>angle[i] if angle[i] > 0 else 0
    configure_rates(od, config)
    od.mains_hz = mains_hz(config)
    normalization = config.get("od_reading.config", "ref_normalization")
    od.normalization = {"unity": OD_UNITY, "classic": OD_CLASSIC, "regressed": OD_REGRESSED}[normalization]
    return 0


cdef inline int configure_stirring(StirConfig* stir, config) except -1:
    stir_config_default(stir)
    stir.pulses_per_turn = config.get("stirring.config", "pulses_per_turn")
    stir.stall_retries = config.get("stirring.config", "stall_retries")
    stir.kp = config.get("stirring.pid", "Kp")
    stir.ki = config.get("stirring.pid", "Ki")
    stir.kd = config.get("stirring.pid", "Kd")
    stir.feed_forward_offset_percent = config.get("stirring.config", "feed_forward_offset_percent")
    stir.feed_forward_percent_per_rpm = config.get("stirring.config", "feed_forward_percent_per_rpm")
    stir.duty_maximum_percent = config.get("stirring.config", "duty_maximum_percent")
    stir.kick_duty_percent = config.get("stirring.config", "kick_duty_percent")
    stir.kick_s = config.get("stirring.config", "kick_s")
    stir.rpm_maximum = config.get("stirring.config", "maximum_rpm")
    return 0
