# Why compiled: light is computed for each of 860 conversions a second and channel.
# Thread rule: sampling thread.
# Units: volts at the converter, LED intensity 0..1 (1 = 100 %), seconds since the start of the simulation, OD600.
#
# Slow quantities (culture, LED temperature, mains frequency, lamp) are held between the slow steps of vial.pxd; what is
# here gives, from them, the light at one moment, or its mean over one conversion.

from libc.math cimport exp, sqrt
from libc.stdint cimport int32_t, uint32_t
from stirbar.rt.rng cimport Rng, Ziggurat, rng_exponential, rng_normal, rng_uniform
from stirbar.rt.sim_parameters cimport (
    PARAM_AMBIENT_STEP_RATE_HZ, PARAM_ATTENUATION_180_OD, PARAM_BUBBLE_AMPLITUDE_OD, PARAM_BUBBLE_MAXIMUM_MS,
    PARAM_BUBBLE_MINIMUM_MS, PARAM_BUBBLE_RATE_HZ, PARAM_FOLD_BACK_45_OD, PARAM_FOLD_BACK_90_OD,
    PARAM_FOLD_BACK_135_OD, PARAM_LED_AGEING_PERCENT_PER_1000_H, PARAM_LED_DEAD, PARAM_LED_HEATING_TIME_S,
    PARAM_LED_SELF_HEATING_DEGC, PARAM_LED_TEMPERATURE_COEFFICIENT_PERCENT_PER_DEGC, PARAM_MAINS_HZ,
    PARAM_MAINS_WANDER_HZ, PARAM_MAINS_WANDER_TIME_S, PARAM_MULTIPLE_SCATTERING, PARAM_REFERENCE_LOST,
    PARAM_REFERENCE_V, PARAM_SCATTER_45_V_PER_OD, PARAM_SCATTER_90_V_PER_OD, PARAM_SCATTER_135_V_PER_OD,
    PARAM_STRAY_45_V, PARAM_STRAY_90_V, PARAM_STRAY_135_V, PARAM_STRAY_180_V, PARAM_TRANSMISSION_180_V,
    PARAM_LIGHT_LEAK_V, PARAM_VIAL_MISSING)

cdef enum:
    LED_EDGES = 32     # latest changes of the LED that are remembered, for the conversions not read yet
    BUBBLES = 8        # latest bubbles that are remembered, so that all channels see the same ones

cdef struct Led:
    double edge_s[LED_EDGES]
    double intensity[LED_EDGES]   # from that edge on, 0..1
    uint32_t edges         # how many there were; the latest is at (edges - 1) % LED_EDGES
    double charge_s        # integral of the intensity since the last slow step
    double charged_s       # until when
    double heating_degc    # above the board
    double drive_h
    double output          # factor from temperature and age

cdef struct Photodiode:
    double light           # LED light after the settling of the photodiode path, 0..1
    double time_s          # that light is of this moment
    uint32_t edge          # edges of the LED that are in it
    double level_v         # signal per unit of LED light
    double bubble_v_per_od  # the same for a small addition of scatter

cdef struct Mains:
    double frequency_hz
    double wander          # standard normal, Ornstein-Uhlenbeck
    double turns           # phase at the last slow step, 0..1

cdef struct Lamp:
    double before_v        # ambient light until step_s, and after
    double after_v
    double step_s
    int32_t lit            # random steps: 1 while ambient_step_v is added

cdef struct Bubbles:
    double from_s[BUBBLES]
    double until_s[BUBBLES]
    double amplitude_od[BUBBLES]
    uint32_t count         # bubbles made; the latest may lie in the future


# --- LED ---

cdef inline void led_init(Led* led, double drive_h) noexcept nogil:
    led.edge_s[0] = 0.0
    led.intensity[0] = 0.0
    led.edges = 1
    led.charge_s = 0.0
    led.charged_s = 0.0
    led.heating_degc = 0.0
    led.drive_h = drive_h
    led.output = 1.0


cdef inline double led_now(const Led* led) noexcept nogil:
    return led.intensity[(led.edges - 1) % LED_EDGES]


cdef inline void led_charge(Led* led, double time_s) noexcept nogil:
    if time_s > led.charged_s:
        led.charge_s += led_now(led) * (time_s - led.charged_s)
        led.charged_s = time_s


cdef inline void led_switch(Led* led, double intensity, double time_s) noexcept nogil:
    led_charge(led, time_s)
    led.edge_s[led.edges % LED_EDGES] = time_s
    led.intensity[led.edges % LED_EDGES] = intensity
    led.edges += 1


cdef inline void led_set_output(Led* led, const double* p, double board_degc) noexcept nogil:
    """The factor of the output at the LED's temperature and age."""
    led.output = (
        (1.0 + 0.01 * p[PARAM_LED_TEMPERATURE_COEFFICIENT_PERCENT_PER_DEGC] * (board_degc + led.heating_degc - 25.0))
        * (1.0 - 1e-5 * p[PARAM_LED_AGEING_PERCENT_PER_1000_H] * led.drive_h))
    if led.output < 0.0 or p[PARAM_LED_DEAD] != 0.0:
        led.output = 0.0


cdef inline void led_step(Led* led, const double* p, double board_degc, double time_s, double seconds) noexcept nogil:
    """Heat by the mean intensity since the last slow step, and age."""
    cdef double mean
    led_charge(led, time_s)
    mean = led.charge_s / seconds
    led.drive_h += led.charge_s / 3600.0
    led.charge_s = 0.0
    led.heating_degc += (p[PARAM_LED_SELF_HEATING_DEGC] * mean - led.heating_degc) * (
        1.0 - exp(-seconds / p[PARAM_LED_HEATING_TIME_S]))
    led_set_output(led, p, board_degc)


# --- photodiode ---

cdef inline double scatter_v(double od, double v_per_od, double fold_od, double multiple) noexcept nogil:
    """Single scatter, attenuated on its way, plus light scattered again: folds back at (1 + multiple) fold_od."""
    cdef double left = exp(-od / fold_od)
    return v_per_od * (od * left + multiple * fold_od * (1.0 - left))


cdef inline void photodiode_level(
        Photodiode* diode, const double* p, int32_t angle, double od, double gain) noexcept nogil:
    """Signal per unit of LED light at a biomass, for a diode at an angle (0: reference, which sees the LED only)."""
    cdef int offset = 0 if angle == 45 else 1 if angle == 90 else 2
    if angle == 0:
        diode.level_v = 0.0 if p[PARAM_REFERENCE_LOST] != 0.0 else gain * p[PARAM_REFERENCE_V]
        diode.bubble_v_per_od = 0.0
        return
    if p[PARAM_VIAL_MISSING] != 0.0:
        diode.level_v = gain * (
            (p[PARAM_TRANSMISSION_180_V] if angle == 180 else 0.1 * p[PARAM_STRAY_45_V + offset])
            + p[PARAM_LIGHT_LEAK_V])
        diode.bubble_v_per_od = 0.0
        return
    if angle == 180:
        diode.level_v = p[PARAM_TRANSMISSION_180_V] * exp(-od / p[PARAM_ATTENUATION_180_OD])
        diode.bubble_v_per_od = -diode.level_v / p[PARAM_ATTENUATION_180_OD]
        diode.level_v += p[PARAM_STRAY_180_V]
    else:
        diode.level_v = p[PARAM_STRAY_45_V + offset] + scatter_v(
            od, p[PARAM_SCATTER_45_V_PER_OD + offset], p[PARAM_FOLD_BACK_45_OD + offset], p[PARAM_MULTIPLE_SCATTERING])
        diode.bubble_v_per_od = p[PARAM_SCATTER_45_V_PER_OD + offset] * exp(-od / p[PARAM_FOLD_BACK_45_OD + offset])
    diode.level_v = gain * (diode.level_v + p[PARAM_LIGHT_LEAK_V])
    diode.bubble_v_per_od *= gain


cdef inline double photodiode_mean(
        Photodiode* diode, const Led* led, double end_s, double period_s, double settling_s,
        double keep) noexcept nogil:
    """Mean of the settled LED light over the conversion that ends at `end_s`; `keep` is exp(-period/settling).

    For y' = (x - y)/tau the integral of y is that of x, less tau times the change of y: the edges give x exactly.
    """
    cdef double begin = end_s - period_s
    cdef double x, moment, first, area
    if led.edges - diode.edge >= LED_EDGES:
        diode.edge = led.edges - LED_EDGES + 1
    x = led.intensity[(diode.edge - 1) % LED_EDGES]
    if diode.edge == led.edges or led.edge_s[diode.edge % LED_EDGES] >= end_s:
        if begin - diode.time_s > 1e-9:   # conversions were skipped
            diode.light = x + (diode.light - x) * exp((diode.time_s - begin) / settling_s)
        first = diode.light
        diode.light = x + (first - x) * keep
        diode.time_s = end_s
        return x - (diode.light - first) * settling_s / period_s
    area = 0.0
    first = diode.light
    while True:
        moment = end_s
        if diode.edge != led.edges and led.edge_s[diode.edge % LED_EDGES] < end_s:
            moment = led.edge_s[diode.edge % LED_EDGES]
        if diode.time_s < begin and moment >= begin:
            diode.light = x + (diode.light - x) * exp((diode.time_s - begin) / settling_s)
            diode.time_s = begin
            first = diode.light
        if moment > diode.time_s:
            if moment > begin:
                area += x * (moment - diode.time_s)
            diode.light = x + (diode.light - x) * exp((diode.time_s - moment) / settling_s)
            diode.time_s = moment
        if moment == end_s:
            return (area - settling_s * (diode.light - first)) / period_s
        x = led.intensity[diode.edge % LED_EDGES]
        diode.edge += 1


# --- mains ---

cdef inline void mains_step(
        Mains* mains, const double* p, Rng* rng, const Ziggurat* table, double seconds) noexcept nogil:
    """Carry the phase over a slow step and let the frequency wander."""
    cdef double keep = exp(-seconds / p[PARAM_MAINS_WANDER_TIME_S])
    mains.turns += mains.frequency_hz * seconds
    mains.turns -= <double><int>mains.turns
    mains.wander = keep * mains.wander + sqrt(1.0 - keep * keep) * rng_normal(rng, table)
    mains.frequency_hz = p[PARAM_MAINS_HZ] + p[PARAM_MAINS_WANDER_HZ] * mains.wander


# --- ambient light ---

cdef inline void lamp_set(Lamp* lamp, double level_v, double time_s) noexcept nogil:
    """Step to a level at a moment."""
    lamp.before_v = lamp.after_v
    lamp.after_v = level_v
    lamp.step_s = time_s


cdef inline int lamp_switches(Lamp* lamp, const double* p, Rng* rng, double seconds) noexcept nogil:
    """Whether the lamp is switched within the next step."""
    return p[PARAM_AMBIENT_STEP_RATE_HZ] > 0.0 and rng_uniform(rng) > exp(-p[PARAM_AMBIENT_STEP_RATE_HZ] * seconds)


cdef inline double lamp_mean(const Lamp* lamp, double end_s, double period_s) noexcept nogil:
    """Mean over the conversion that ends at `end_s`."""
    if end_s - period_s >= lamp.step_s:
        return lamp.after_v
    if end_s <= lamp.step_s:
        return lamp.before_v
    return lamp.after_v + (lamp.before_v - lamp.after_v) * (lamp.step_s - end_s + period_s) / period_s


# --- bubbles ---

cdef inline void bubbles_make(Bubbles* bubbles, const double* p, Rng* rng, double after_s) noexcept nogil:
    """Draw the next bubble: Poisson arrivals, one at a time; far away when the rate is 0."""
    cdef int i = bubbles.count % BUBBLES
    cdef double shortest = 1e-3 * p[PARAM_BUBBLE_MINIMUM_MS]
    cdef double longest = 1e-3 * p[PARAM_BUBBLE_MAXIMUM_MS]
    bubbles.from_s[i] = 1e18
    if p[PARAM_BUBBLE_RATE_HZ] > 0.0:
        bubbles.from_s[i] = after_s + rng_exponential(rng) / p[PARAM_BUBBLE_RATE_HZ]
    if longest < shortest:
        longest = shortest
    bubbles.until_s[i] = bubbles.from_s[i] + shortest + (longest - shortest) * rng_uniform(rng)
    bubbles.amplitude_od[i] = p[PARAM_BUBBLE_AMPLITUDE_OD] * rng_exponential(rng)
    bubbles.count += 1


cdef inline double bubbles_mean_od(
        Bubbles* bubbles, const double* p, Rng* rng, uint32_t* cursor, double end_s, double period_s) noexcept nogil:
    """Mean scatter of bubbles over the conversion that ends at `end_s`; `cursor` is the channel's own place."""
    cdef double total = 0.0
    cdef double begin = end_s - period_s
    cdef double first, last
    cdef int i
    if bubbles.count - cursor[0] > BUBBLES:
        cursor[0] = bubbles.count - 1
    while True:
        i = cursor[0] % BUBBLES
        if bubbles.from_s[i] >= end_s:
            return total
        first = begin if bubbles.from_s[i] < begin else bubbles.from_s[i]
        last = end_s if bubbles.until_s[i] > end_s else bubbles.until_s[i]
        if last > first:
            total += bubbles.amplitude_od[i] * (last - first) / period_s
        if bubbles.until_s[i] > end_s:
            return total
        cursor[0] += 1
        if cursor[0] == bubbles.count:
            # after a long absence the process begins anew: arrivals have no memory
            bubbles_make(bubbles, p, rng, bubbles.until_s[i] if begin - bubbles.until_s[i] < 10.0 else begin)
