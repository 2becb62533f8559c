# Why compiled: the state of the OD chain as a run begins with it.
# Thread rule: pure; the host thread before the loop's threads live, or a replay.
# Units: seconds, hertz.

from libc.errno cimport EINVAL
from libc.math cimport NAN
from libc.stdint cimport int64_t
from libc.string cimport memset

from stirbar.rt.culture_noise cimport culture_noise_clear
from stirbar.rt.mains cimport mains_channel_init, mains_line_init
from stirbar.rt.od_state cimport (
    OD_BLOCK, OD_CORRELATION_MAXIMUM, OD_DIRECT_S, OD_DIRECT_SLOW_S, OD_RATES, OD_RATE_MAXIMUM, OD_RATE_MINIMUM,
    OD_REFERENCE, OD_RING, OD_SIGNAL, OD_SLOW_ENTRIES, OD_WINDOWS, OD_WINDOW_MAXIMUM_S, OD_WINDOW_MINIMUM_S, OdConfig,
    OdRate, OdState,
)
from stirbar.rt.reference cimport reference_init
from stirbar.rt.types cimport MAX_CHANNELS, PHASE_EDGE


cdef inline int od_init_rates(OdState* s) noexcept nogil:
    """Set the rates up. Returns 0, or -EINVAL when one is out of its bounds."""
    cdef OdRate* rate
    cdef double window_s, per_second
    cdef int r
    if not 1 <= s.config.rates <= OD_RATES:
        return -EINVAL
    for r in range(s.config.rates):
        rate = &s.rate[r]
        window_s = s.config.window_s[r]
        per_second = s.config.readings_per_second[r]
        if not OD_WINDOW_MINIMUM_S <= window_s <= OD_WINDOW_MAXIMUM_S:
            return -EINVAL
        if not OD_RATE_MINIMUM <= per_second <= OD_RATE_MAXIMUM:
            return -EINVAL
        rate.window_s = window_s
        rate.interval_ns = <int64_t>(1e9 / per_second + 0.5)
        rate.of_blocks = window_s > (OD_DIRECT_SLOW_S if r else OD_DIRECT_S)
    s.rate[0].nulls.room = OD_RING
    for r in range(1, OD_WINDOWS):
        s.rate[r].nulls.begin = OD_RING + (r - 1) * OD_SLOW_ENTRIES
        s.rate[r].nulls.room = OD_SLOW_ENTRIES
    s.rate[OD_BLOCK].window_s = 1.0
    s.rate[OD_BLOCK].interval_ns = 1000000000
    return 0


cdef inline int od_init(OdState* s, const OdConfig* config) noexcept nogil:
    """Start a run. Returns 0, or -EINVAL when a value is out of its bounds or no channel is a signal."""
    cdef int i
    cdef int signals = 0
    memset(s, 0, sizeof(OdState))
    s.config = config[0]
    if od_init_rates(s) != 0:
        return -EINVAL
    if config.mains_hz != 0.0 and not 45.0 <= config.mains_hz <= 65.0:
        return -EINVAL
    for i in range(MAX_CHANNELS):
        if not 0.0 <= config.correlation[i] <= OD_CORRELATION_MAXIMUM:
            return -EINVAL
        s.channel[i].correlation = config.correlation[i]
    s.reference = -1
    mains_line_init(&s.line, config.mains_hz)
    for i in range(MAX_CHANNELS):
        s.channel[i].blank = NAN
        s.channel[i].phase = PHASE_EDGE
        mains_channel_init(&s.channel[i].mains, &s.line)
        culture_noise_clear(&s.channel[i].culture, 1.0, 1.0)
        reference_init(&s.reference_fit[i])
        if config.role[i] == OD_SIGNAL:
            signals += 1
        elif config.role[i] == OD_REFERENCE and s.reference < 0:
            s.reference = i
    s.led_percent = NAN
    s.warming = 1
    return 0 if signals else -EINVAL
