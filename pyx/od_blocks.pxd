# Why compiled: once a second every photodiode's chop periods become sums, of which slow readings are made.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: volts, seconds, nanoseconds; values in AU.
#
# Weights are decided once, in a window of a second (four chop periods where the light changes slowly): a slow reading
# adds up, and a second's mean also says what the culture does (culture_noise.pxd).

from libc.math cimport ceil, sqrt
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from stirbar.rt.culture_noise cimport CULTURE_BLOCKS, culture_noise_clear, culture_noise_push
from stirbar.rt.od_nulls cimport od_window_entries
from stirbar.rt.od_state cimport (
    ENTRY_GAP, OD_BLOCK, OD_BLOCKS, OdBlock, OdChannel, OdRate, OdState, OdWindow, OdWithin,
)
from stirbar.rt.od_window cimport od_entry_flags, od_window
from stirbar.rt.types cimport FLAG_BUBBLES, MAX_CHANNELS


cdef inline void od_fit_blocks(OdState* s) noexcept nogil:
    """Length of a block: a second, or as many as hold four chop periods."""
    cdef OdRate* rate = &s.rate[OD_BLOCK]
    cdef double block_s = ceil(4e-9 * s.spacing_ns - 0.02)
    cdef int i
    block_s = 1.0 if block_s < 1.0 else block_s
    if block_s == rate.window_s:
        return
    rate.window_s = block_s
    rate.interval_ns = <int64_t>(block_s * 1e9)
    for i in range(MAX_CHANNELS):
        s.channel[i].blocks = 0
        culture_noise_clear(&s.channel[i].culture, block_s, block_s)


cdef inline void od_append_block(OdChannel* ch, const OdBlock* block) noexcept nogil:
    ch.block[ch.block_cursor] = block[0]
    ch.block_cursor = ch.block_cursor + 1 if ch.block_cursor + 1 < OD_BLOCKS else 0
    if ch.blocks < OD_BLOCKS:
        ch.blocks += 1


cdef inline void od_keep_block(OdState* s, OdChannel* ch, const OdWindow* window, int64_t tick_ns) noexcept nogil:
    """Append a block's sums; seconds in which nothing came are blocks without weight."""
    cdef OdBlock block
    cdef int64_t missed = (tick_ns - ch.block_tick_ns) // s.rate[OD_BLOCK].interval_ns - 1
    memset(&block, 0, sizeof(OdBlock))
    block.flags = ENTRY_GAP
    missed = 0 if ch.blocks == 0 else missed if missed < OD_BLOCKS else OD_BLOCKS
    while missed > 0:
        od_append_block(ch, &block)
        missed -= 1
    block.mean_v = window.value_v
    block.share = <float>(window.kept if window.full else window.kept * window.window_s / s.rate[OD_BLOCK].window_s)
    block.squares = <float>window.squares
    block.variance = <float>(window.se_v * window.se_v)
    block.ambient_v = <float>window.ambient_v
    block.used = <uint16_t>window.used
    block.rejected = <uint16_t>window.rejected
    block.lit = <uint16_t>window.lit
    block.flags = <uint8_t>window.entry_flags
    od_append_block(ch, &block)
    ch.block_tick_ns = tick_ns
    ch.block_ns = window.end_ns


cdef inline int od_slow_window(OdState* s, OdChannel* ch, int which, OdWindow* window) noexcept nogil:
    """Value of the newest blocks that make a window of rate `which`. Returns 0, or -1 when there is none."""
    cdef const OdBlock* block
    cdef double block_s = s.rate[OD_BLOCK].window_s
    cdef double shares = 0.0
    cdef double variance = 0.0
    cdef uint32_t flags = 0
    cdef int wanted = <int>(s.rate[which].window_s / block_s + 0.5)
    cdef int n, slot, _i
    memset(window, 0, sizeof(OdWindow))
    wanted = 1 if wanted < 1 else wanted if wanted < OD_BLOCKS else OD_BLOCKS
    n = wanted if wanted < ch.blocks else ch.blocks
    slot = ch.block_cursor
    for _i in range(n):
        slot = slot - 1 if slot else OD_BLOCKS - 1
        block = &ch.block[slot]
        flags |= block.flags
        if block.share > 0.0:
            shares += block.share
            window.value_v += block.share * block.mean_v
            window.ambient_v += block.share * block.ambient_v
            variance += block.share * block.share * block.variance
            window.squares += block.share * block.share * block.squares
            window.used += block.used
            window.rejected += block.rejected
            window.lit += block.lit
    if not shares > 0.0:
        return -1
    window.value_v /= shares
    window.ambient_v /= shares
    window.squares /= shares * shares
    window.se_v = sqrt(variance) / shares
    window.bandwidth_hz = window.squares * 0.5e9 / s.spacing_ns
    window.window_s = n * block_s
    window.end_ns = ch.block_ns
    window.entries = n
    window.full = n == wanted
    window.flags = od_entry_flags(flags)
    if 4 * window.rejected > window.lit:
        window.flags |= FLAG_BUBBLES
    return 0


cdef inline int od_rate_window(OdState* s, OdChannel* ch, int which, OdWindow* window) noexcept nogil:
    """The newest window of a rate, of chop periods or of blocks."""
    if s.rate[which].of_blocks:
        return od_slow_window(s, ch, which, window)
    if od_window(s, ch, which, window) != 0:
        return -1
    if which == 0:
        ch.last = window[0]
        ch.moved |= window.restarted
    return 0


cdef inline int od_block_window(OdState* s, OdChannel* ch, OdWindow* window) noexcept nogil:
    """The window of a block: where the first rate has just looked at the same chop periods, its own."""
    cdef int status = 0
    if ch.last.full and ch.last.end_ns == ch.closed_ns and ch.last.entries == od_window_entries(s, OD_BLOCK):
        window[0] = ch.last
    else:
        if not s.rate[0].of_blocks and ch.leveled[0]:
            ch.level_v[OD_BLOCK] = ch.level_v[0]  # newer: one pass is enough
        status = od_window(s, ch, OD_BLOCK, window)
    window.restarted |= ch.moved
    ch.moved = 0
    ch.level_v[OD_BLOCK] = window.value_v
    ch.leveled[OD_BLOCK] = status == 0
    return status


cdef inline void od_push_within(
    OdState* s, OdChannel* ch, int which, double value, const OdWindow* window
) noexcept nogil:
    """A reading (before the blank) whose window lies within the block that is open."""
    cdef OdWithin* within = &ch.within[which]
    cdef double since_s = 1e-9 * <double>(window.end_ns - ch.block_ns)
    if window.full and window.window_s < 0.95 * s.rate[OD_BLOCK].window_s and (
            since_s > window.window_s - 0.5e-9 * s.spacing_ns):
        value -= ch.block_value
        within.total += value
        within.square += value * value
        within.count += 1


cdef inline void od_push_culture(OdState* s, OdChannel* ch, double value) noexcept nogil:
    """A block's value for the culture's noise, and how far the short windows strayed from it."""
    cdef OdWithin* within
    cdef double step = value - ch.block_value
    cdef double square
    cdef int r
    culture_noise_push(&ch.culture, value)
    ch.block_value = value
    for r in range(s.config.rates):
        within = &ch.within[r]
        if within.count and ch.culture.count > 1:
            square = (within.square - 2.0 * step * within.total) / within.count + step * step
            within.blocks += within.blocks < CULTURE_BLOCKS
            within.variance += (square - within.variance) / within.blocks
        within.total = 0.0
        within.square = 0.0
        within.count = 0


cdef inline double od_culture_se(const OdState* s, const OdChannel* ch, int which, double window_s) noexcept nogil:
    """Standard error as a measure of the culture: from the spectrum near zero; what windows shorter than a block add is
    what they strayed from the block's mean. NaN before there is one."""
    cdef const OdWithin* within = &ch.within[which]
    cdef double block_s = s.rate[OD_BLOCK].window_s
    if within.blocks:
        return sqrt(ch.culture.density / block_s + within.variance)
    return sqrt(ch.culture.density / window_s)
