# Why compiled: turns the checked configuration into the structs of the loop; the same for the worker and for a replay.
# Thread rule: the host thread, before the loop's threads live.
# Units: those of the config's keys.

from libc.math cimport pow
from libc.stdint cimport int32_t, int64_t, uint16_t
from libc.string cimport memset

from stirbar.rt.chop cimport HALF_CYCLE_HIGH, HALF_CYCLE_LOW
from stirbar.rt.hal cimport PACE_HOST, PACE_PILOT, PACE_READY, PACE_SMOOTHED, AdcPlan
from stirbar.rt.od_state cimport (
    OD_CLASSIC, OD_RATES, OD_REFERENCE, OD_REGRESSED, OD_SIGNAL, OD_UNITY, OD_UNUSED, OdConfig)
from stirbar.rt.sampler_state cimport SamplingConfig
from stirbar.rt.stirring cimport StirConfig, stir_config_default
from stirbar.rt.types cimport MAX_CHANNELS

cdef enum:
    # bits on the bus, start and stop included: address, pointer, address again and two bytes; where the pointer stands
    # at the register already; address, command and two bytes
    READ_BITS = 47
    READ_PRESET_BITS = 29
    LIGHT_BITS = 38
    STRETCH_NS = 1800000     # a microcontroller holds the clock at each read (IS-24)

cdef extern from *:
    """
    #define STIRBAR_RUNNING_MEAN_KEEPS 0.75  /* of its last value, with each new one (IS-24) */
    """
    const double RUNNING_MEAN_KEEPS "STIRBAR_RUNNING_MEAN_KEEPS"


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


cdef inline int configure_plan(AdcPlan* plan, profile, int channel) except -1:
    """How a board samples a channel (0..3). Without a profile: a converter of its own with a ready line, at 860/s.

    Raises ValueError for a photodiode that the board does not have.
    """
    memset(plan, 0, sizeof(AdcPlan))
    plan.pace = PACE_READY
    plan.converter = channel
    plan.rate_hz = plan.conversion_hz = 860.0
    plan.settle_ns = 700000  # of a photodiode amplifier of 0.1 ms
    if profile is None:
        return 0
    section = f"photodiode.{channel + 1}"
    chip = profile.get(section, "chip")
    if not chip:
        raise ValueError(
            f"[od_config.photodiode_channel] {channel + 1} is set, but the board {profile.name} has no "
            f"photodiode {channel + 1}: leave the key empty, or name another [unit] hardware")
    plan.pace = {"ready": PACE_READY, "pilot": PACE_PILOT, "host": PACE_HOST, "smoothed": PACE_SMOOTHED}[
        profile.get(section, "pace")]
    converter = profile.get(section, "converter")
    plan.converter = channel if converter is None else converter
    plan.rate_hz = profile.get(section, "rate_hz")
    plan.conversion_hz = profile.get(section, "conversion_hz")
    plan.settle_ns = <int64_t>(1e6 * (profile.get(section, "settle_ms") or 0.0))
    bit_ns = 1e9 / (profile.get("i2c", "clock_hz") or 100000.0)
    plan.read_ns = <int64_t>((READ_BITS if plan.pace >= PACE_HOST else READ_PRESET_BITS) * bit_ns)
    plan.read_ns += STRETCH_NS if chip == "rp2040" else 0
    plan.light_ns = <int64_t>(LIGHT_BITS * bit_ns)
    return 0


cdef inline int configure_sampling(SamplingConfig* sampling, config, profile) except -2:
    """Everything that the sampler is told; returns the first channel that measures, or -1."""
    cdef int i
    cdef int first
    memset(sampling, 0, sizeof(SamplingConfig))
    first = photodiode_angles(config, sampling.angle)
    sampling.half_cycle_low = HALF_CYCLE_LOW
    sampling.half_cycle_high = HALF_CYCLE_HIGH
    for i in range(MAX_CHANNELS):
        text = str(config.get("od_reading.config", "adc_full_scale_v"))
        sampling.full_scale_v[i] = 0.0 if text == "auto" else float(text)
        if profile is not None and profile.get(f"photodiode.{i + 1}", "chip") == "rp2040":
            sampling.full_scale_v[i] = profile.get(f"photodiode.{i + 1}", "full_scale_v")
    if profile is not None and first >= 0:
        section = f"photodiode.{first + 1}"
        sampling.half_cycle_low = profile.get(section, "half_cycle_low") or HALF_CYCLE_LOW
        sampling.half_cycle_high = profile.get(section, "half_cycle_high") or HALF_CYCLE_HIGH
    sampling.rate_hz = config.get("od_reading.config", "adc_rate_hz")
    sampling.mains_hz = mains_hz(config)
    sampling.rpm = config.get("stirring.config", "initial_target_rpm")
    sampling.half_cycle = config.get("od_reading.config", "half_cycle")
    sampling.intensity_percent = config.get("od_reading.config", "ir_led_intensity")
    sampling.led_duty_percent = config.get("od_reading.config", "led_duty")
    sampling.window_s = config.get("od_reading.config", "window_s")
    return first if first >= 0 else -1


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


cdef inline double running_mean_correlation(const AdcPlan* plan) noexcept nogil:
    """Of a running mean's noise from one look to the next; 0 where conversions are no running mean."""
    return pow(RUNNING_MEAN_KEEPS, plan.conversion_hz / plan.rate_hz) if plan.pace == PACE_SMOOTHED else 0.0


cdef inline int configure_slow_light(OdConfig* od, profile) except -1:
    """A microcontroller's running mean is chopped at 1 to 4 Hz: a reading a second at most, of 5 s at least (IS-24)."""
    cdef AdcPlan plan
    cdef bint slow = False
    cdef int i
    for i in range(MAX_CHANNELS):
        if profile is not None and profile.get(f"photodiode.{i + 1}", "pace") == "smoothed":
            configure_plan(&plan, profile, i)
            od.correlation[i] = running_mean_correlation(&plan)
            slow = True
    if not slow:
        return 0
    for i in range(od.rates):
        od.readings_per_second[i] = min(od.readings_per_second[i], 1.0)
        od.window_s[i] = max(od.window_s[i], 5.0)
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
    stir.turns_window_s = config.get("stirring.config", "turns_window_s")
    stir.ramp_rpm_per_s = config.get("stirring.config", "ramp_rpm_per_s")
    return 0
