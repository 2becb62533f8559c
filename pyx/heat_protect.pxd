# Why compiled: what stands between every controller of the heater and its write; nothing can be configured past it.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: degrees Celsius, nanoseconds of the loop's clock, joules; duty 0..1.
#
# Each tick: the duty that is asked for goes in, what may be written of it comes out, and a bit for each reason why it
# is less. A reason that comes or goes is an event.

from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.heat_trust cimport DISTRUST_NONE, HeatTrust
from stirbar.rt.limits cimport HEATER_ENERGY_WINDOW_S, HeatLimits

cdef enum:                       # reasons, one bit each
    HEAT_NO_LEASE = 1            # the host thread has not renewed it
    HEAT_REDUCED = 2             # the board is above reduce_degc
    HEAT_DISABLED = 4            # above disable_degc
    HEAT_LOCKED = 8              # it was above shutdown_degc, and nobody has acknowledged that
    HEAT_BLIND = 16              # the sensor is not believed: at most blind_duty, for blind_s
    HEAT_UNTRUSTED = 32          # not believed for longer: off
    HEAT_ENERGY = 64             # the energy of the last half hour is used up
    HEAT_UNSTIRRED = 128         # half the duty: nobody knows that the liquid is stirred
    HEAT_NO_GUARD = 256          # the guard is silent
    HEAT_REASONS = 9
    HEAT_SPOKEN_WHILE_OFF = HEAT_DISABLED | HEAT_LOCKED

cdef enum:
    ENERGY_BUCKETS = 30          # of the window, a minute each
    HEAT_RAMP_S = 60             # after anything switched it off the duty comes back in a straight line

cdef struct HeatProtect:
    HeatLimits limits
    double power_w               # at full duty, at its largest
    double energy_j[ENERGY_BUCKETS]
    double window_j
    int64_t bucket_ns            # when the bucket under way began
    int64_t tick_ns
    int64_t lease_ns             # until when the host's word holds; 0: it has said nothing
    int64_t distrust_ns          # since when the sensor is not believed; 0: it is
    int64_t off_ns               # last tick at which a reason kept it off
    int32_t bucket
    uint32_t reasons
    uint32_t locked
    double duty                  # what may be written


cdef inline void heat_protect_init(HeatProtect* p, const HeatLimits* limits, double power_w) noexcept nogil:
    memset(p, 0, sizeof(HeatProtect))
    p.limits = limits[0]
    p.power_w = power_w


cdef inline void heat_account(HeatProtect* p, int64_t now_ns) noexcept nogil:
    """Add what the duty of the last tick has cost since then to the window of the last half hour."""
    cdef double seconds = 1e-9 * <double>(now_ns - p.tick_ns) if p.tick_ns else 0.0
    if p.tick_ns == 0:
        p.bucket_ns = now_ns
    p.tick_ns = now_ns
    p.energy_j[p.bucket] += p.duty * p.power_w * seconds
    p.window_j += p.duty * p.power_w * seconds
    while now_ns - p.bucket_ns >= <int64_t>(HEATER_ENERGY_WINDOW_S // ENERGY_BUCKETS) * 1000000000:
        p.bucket_ns += <int64_t>(HEATER_ENERGY_WINDOW_S // ENERGY_BUCKETS) * 1000000000
        p.bucket = (p.bucket + 1) % ENERGY_BUCKETS
        p.window_j -= p.energy_j[p.bucket]
        p.energy_j[p.bucket] = 0.0


cdef inline double heat_limit_board(HeatProtect* p, double board_degc, uint32_t* reasons) noexcept nogil:
    """The tiers of the board's temperature, as measured: 1 below reduce_degc, 0 from disable_degc on."""
    cdef const HeatLimits* limits = &p.limits
    if board_degc >= limits.shutdown_degc:
        p.locked = 1
    if board_degc >= limits.disable_degc:
        reasons[0] |= HEAT_DISABLED
        return 0.0
    if board_degc > limits.reduce_degc:
        reasons[0] |= HEAT_REDUCED
        return (limits.disable_degc - board_degc) / (limits.disable_degc - limits.reduce_degc)
    return 1.0


cdef inline double heat_limit_trust(
    HeatProtect* p, const HeatTrust* trust, int64_t now_ns, uint32_t* reasons
) noexcept nogil:
    if trust.distrust == DISTRUST_NONE:
        p.distrust_ns = 0
        return 1.0
    if p.distrust_ns == 0:
        p.distrust_ns = now_ns
    if now_ns - p.distrust_ns >= <int64_t>(1e9 * p.limits.blind_s):
        reasons[0] |= HEAT_UNTRUSTED
        return 0.0
    reasons[0] |= HEAT_BLIND
    return 0.01 * p.limits.blind_duty_percent


cdef inline double heat_protect(
    HeatProtect* p, const HeatTrust* trust, double wanted, bint is_stirred, bint has_guard, int64_t now_ns
) noexcept nogil:
    """What may be written of the duty that is wanted; p.reasons says why it is less. Once a tick."""
    cdef uint32_t reasons = 0
    cdef double limit = 0.01 * p.limits.duty_maximum_percent
    cdef double tier, blind, ramp
    heat_account(p, now_ns)
    if not is_stirred:
        reasons |= HEAT_UNSTIRRED
        limit *= 0.5
    tier = heat_limit_board(p, trust.last_degc, &reasons) if trust.last_ns else 1.0
    limit *= tier
    blind = heat_limit_trust(p, trust, now_ns, &reasons)
    if blind < limit:
        limit = blind
    if now_ns >= p.lease_ns:
        reasons |= HEAT_NO_LEASE
    if p.locked:
        reasons |= HEAT_LOCKED
    if not has_guard:
        reasons |= HEAT_NO_GUARD
    if p.window_j >= p.limits.energy_maximum_j:
        reasons |= HEAT_ENERGY
    if reasons & (HEAT_NO_LEASE | HEAT_LOCKED | HEAT_NO_GUARD | HEAT_ENERGY):
        limit = 0.0
    if limit <= 0.0:
        p.off_ns = now_ns
    elif p.off_ns:
        ramp = 1e-9 * <double>(now_ns - p.off_ns) / HEAT_RAMP_S
        if ramp >= 1.0:
            p.off_ns = 0
        elif ramp < limit:
            limit = ramp
    p.reasons = reasons
    p.duty = limit if not wanted < limit else (wanted if wanted > 0.0 else 0.0)
    return p.duty


cdef inline void heat_lease(HeatProtect* p, int64_t now_ns) noexcept nogil:
    """The host thread is alive and wants heat."""
    p.lease_ns = now_ns + <int64_t>(1e9 * p.limits.lease_s)


cdef inline bint heat_acknowledge(HeatProtect* p, double board_degc) noexcept nogil:
    """A person has seen that the board was too hot; False while it still is."""
    if board_degc >= p.limits.disable_degc:
        return False
    p.locked = 0
    return True
