# Why compiled: the state of the chain from conversions to readings, for the loop, its snapshots and its replays.
# Thread rule: belongs to the sampling thread, or to a replay. It is flat: copy it with memcpy, go on from the copy, and
#   every later reading is the same bit by bit.
# Units: volts, nanoseconds, seconds, hertz; values in AU (docs/optical-density.md).

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from stirbar.rt.culture_noise cimport CultureNoise
from stirbar.rt.mains cimport MainsLine
from stirbar.rt.mains_run cimport HARMONICS, MainsChannel
from stirbar.rt.reference cimport ReferenceFit
from stirbar.rt.robust cimport CarriedScale
from stirbar.rt.types cimport MAX_CHANNELS, Reading

cdef enum:
    OD_RING = 480            # chop periods that are kept: 5 s at 96 Hz
    OD_SLOW_ENTRIES = 192    # chop periods of the longest window of a slower rate that is not made of blocks
    OD_NULL_ROOM = OD_RING + 4 * OD_SLOW_ENTRIES
    OD_BUFFER = 64           # conversions of a half-cycle; more without a change of the light: it is not chopped
    OD_UNCHOPPED = 8         # conversions that make one entry where the light is not chopped
    OD_ITERATIONS = 8
    OD_CENTRE_ENTRIES = 16   # that the expected difference remembers
    OD_CENTRE_STRAYS = 8     # differences in a row that are not as expected: it begins anew
    OD_QUARTET = 4           # differences whose sums the test of block means is made of
    OD_COARSE_FIRST = 16     # block means that make a scale before any is tested
    OD_COARSE_STRAYS = 6     # strays in a row: the light has changed
    OD_RESTART = 256         # an index that falls back by more: the converter was started anew
    OD_FEWEST = 4            # chop periods that make the first reading of a run
    OD_SCALE_ENTRIES = 16    # chop periods that make a scale, at the least
    OD_RATES = 4             # readings_per_second, and up to three slower ones
    OD_BLOCK = OD_RATES      # the window behind them: a second, whose sums the slow windows are made of
    OD_WINDOWS = OD_RATES + 1
    OD_BLOCKS = 100          # that are kept: 100 s

cdef enum:                   # OdConfig.role
    OD_UNUSED = 0
    OD_SIGNAL = 1
    OD_REFERENCE = 2

cdef enum:                   # OdConfig.normalization
    OD_UNITY = 0             # by the reference relative to its first settled value of the run
    OD_CLASSIC = 1           # by the reference
    OD_REGRESSED = 2         # as OD_UNITY, and without what is left of the LED's temperature

cdef enum:                   # OdEntry.flags
    ENTRY_CLIPPED = 1
    ENTRY_GAP = 2
    ENTRY_STEP = 4           # a step of ambient light: not used
    ENTRY_UNCHOPPED = 8
    ENTRY_DARK = 16
    ENTRY_WEAK = 32          # within eight whose mean strays: a weak long bubble

cdef enum:                   # bits of OdState.due: what is to be done, in this order
    DUE_REFERENCE = 0        # of a rate, 5 bits each: its reference, then the reading of each channel
    DUE_READING = 1
    DUE_RATE = 1 + MAX_CHANNELS
    DUE_BLOCK = DUE_RATE * OD_RATES       # of a channel
    DUE_SCALES = DUE_BLOCK + MAX_CHANNELS  # of a channel
    DUE_MODULATION = DUE_SCALES + MAX_CHANNELS  # of a channel
    DUE_NULLS = DUE_MODULATION + MAX_CHANNELS  # of a window
    DUE_END = DUE_NULLS + OD_WINDOWS

cdef extern from *:
    """
    #define STIRBAR_OD_STALL_NS 500000000     /* a channel that is silent for longer is not waited for */
    #define STIRBAR_OD_CHOP_LIMIT_NS 2.5e9    /* one level of the light for longer: it is not chopped */
    #define STIRBAR_OD_STEP_SIGMAS 5.0        /* off half-cycles that differ by more: a step of ambient light */
    #define STIRBAR_OD_COARSE_SIGMAS 3.5      /* means of eight differences that stray by more: a weak long bubble */
    #define STIRBAR_OD_DECIDE_S 0.5           /* of light decides whether the level has moved */
    #define STIRBAR_OD_LEAST_NOISE 0.35       /* codes: below, neighbours' differences are 0 or 1 */
    #define STIRBAR_OD_LEAST_COUNT 0.25       /* weight of a half-cycle whose conversions disagree altogether */
    #define STIRBAR_OD_LEAST_SHARE 0.2        /* of a half-cycle that is as expected; below, its own median begins */
    #define STIRBAR_OD_FIRST_READING_S 0.2
    #define STIRBAR_OD_TURNS_S 0.5            /* windows from here on hold whole turns of the stirrer */
    #define STIRBAR_OD_DIRECT_S 5.0           /* longer windows of the first rate are made of blocks, */
    #define STIRBAR_OD_DIRECT_SLOW_S 1.5      /* and of the slower rates */
    #define STIRBAR_OD_WINDOW_MINIMUM_S 0.005
    #define STIRBAR_OD_WINDOW_MAXIMUM_S 100.0
    #define STIRBAR_OD_RATE_MINIMUM 0.01
    #define STIRBAR_OD_RATE_MAXIMUM 150.0
    #define STIRBAR_OD_CORRELATION_MAXIMUM 0.9
    #define STIRBAR_OD_REFERENCE_GAP_NS 1500000000  /* between blocks: the light was off meanwhile */
    #define STIRBAR_OD_WARM_SLOPE 1.67e-6     /* of the reference, per second: 0.01 % a minute */
    #define STIRBAR_OD_WARM_S 60.0            /* LED is taken as warm after that where there is no reference */
    """
    const int64_t OD_STALL_NS "STIRBAR_OD_STALL_NS"
    const double OD_CHOP_LIMIT_NS "STIRBAR_OD_CHOP_LIMIT_NS"
    const double OD_STEP_SIGMAS "STIRBAR_OD_STEP_SIGMAS"
    const double OD_COARSE_SIGMAS "STIRBAR_OD_COARSE_SIGMAS"
    const double OD_DECIDE_S "STIRBAR_OD_DECIDE_S"
    const double OD_LEAST_NOISE "STIRBAR_OD_LEAST_NOISE"
    const double OD_LEAST_COUNT "STIRBAR_OD_LEAST_COUNT"
    const double OD_LEAST_SHARE "STIRBAR_OD_LEAST_SHARE"
    const double OD_FIRST_READING_S "STIRBAR_OD_FIRST_READING_S"
    const double OD_TURNS_S "STIRBAR_OD_TURNS_S"
    const double OD_DIRECT_S "STIRBAR_OD_DIRECT_S"
    const double OD_DIRECT_SLOW_S "STIRBAR_OD_DIRECT_SLOW_S"
    const double OD_WINDOW_MINIMUM_S "STIRBAR_OD_WINDOW_MINIMUM_S"
    const double OD_WINDOW_MAXIMUM_S "STIRBAR_OD_WINDOW_MAXIMUM_S"
    const double OD_RATE_MINIMUM "STIRBAR_OD_RATE_MINIMUM"
    const double OD_RATE_MAXIMUM "STIRBAR_OD_RATE_MAXIMUM"
    const double OD_CORRELATION_MAXIMUM "STIRBAR_OD_CORRELATION_MAXIMUM"
    const int64_t OD_REFERENCE_GAP_NS "STIRBAR_OD_REFERENCE_GAP_NS"
    const double OD_WARM_SLOPE "STIRBAR_OD_WARM_SLOPE"
    const double OD_WARM_S "STIRBAR_OD_WARM_S"

cdef struct OdConfig:
    double window_s[OD_RATES]        # 0.005..100
    double readings_per_second[OD_RATES]  # 0.01..150
    int32_t rates                    # how many of them: 1..4
    double mains_hz                  # 50, 60, or 0: find out
    int32_t normalization            # OD_UNITY, OD_CLASSIC, OD_REGRESSED
    double correlation[MAX_CHANNELS]  # of the noise of neighbouring conversions: 0..0.9; of a running mean above 0
    uint8_t role[MAX_CHANNELS]
    uint16_t angle[MAX_CHANNELS]

# One chop period: an on half-cycle against its two off neighbours.
cdef struct OdEntry:
    double difference_v
    uint32_t tick                    # middle of the on half-cycle, in 128 ns
    float on_inverse                 # 1 / conversions in it, by weight
    float ambient_v
    uint8_t off_count                # conversions in the off half-cycle after it
    uint8_t used
    uint8_t rejected
    uint8_t flags

# The light of one half-cycle.
cdef struct OdHalf:
    double mean_v
    double count                     # by weight
    int64_t middle_ns
    int32_t used
    int32_t rejected
    uint32_t first_index
    uint8_t flags
    uint8_t valid

# A second's sums: the sufficient statistics of slow windows. Its weights are decided once, about its own level.
cdef struct OdBlock:
    double mean_v
    float share                      # of the weight that was kept; 0: nothing came
    float squares                    # of the final weights, whose sum is 1
    float variance                   # of mean_v, by the noise of conversions
    float ambient_v
    uint16_t used
    uint16_t rejected
    uint16_t lit
    uint8_t flags                    # ENTRY_*

# Weights that take mains out of a window's mean: what they are for. They are in OdState.null_weight, from `begin` on.
cdef struct OdNulls:
    double hz
    double spacing_ns
    double prior[HARMONICS]
    int32_t count
    int32_t begin
    int32_t room

# One rate of readings; OD_BLOCK: the blocks.
cdef struct OdRate:
    OdNulls nulls
    double window_s
    double reference_v
    double reference_se
    int64_t interval_ns
    int64_t next_ns                  # grid time of the next reading
    int32_t of_blocks                # windows are made of blocks
    int32_t referred                 # the reference is fresh

# The readings of one rate against the blocks, for what windows shorter than a block add to the culture's error.
cdef struct OdWithin:
    double total                     # since the last block, about its value
    double square
    double variance                  # about the block's mean, of the last minute
    int32_t count
    int32_t blocks                   # that made it

# What a window of one channel says.
cdef struct OdWindow:
    double value_v
    double se_v
    double ambient_v
    double bandwidth_hz
    double window_s
    int64_t end_ns
    uint32_t used
    uint32_t rejected
    uint32_t lit                     # conversions with the light on
    uint32_t flags
    int32_t entries
    int32_t full                     # as long as was asked for
    int32_t restarted                # the level moved by more than the window could reject
    double kept                      # share of the weight
    double squares                   # of the final weights, whose sum is 1
    uint32_t entry_flags

# Means of eight differences about a slow level: bubbles that no single one shows.
cdef struct OdCoarse:
    double level_v
    double square                    # mean square of block means about it
    double total[2]                  # of the differences of the newest four, and of the four before
    int32_t count[2]
    int32_t entries                  # in the newest four
    int32_t blocks                   # that made `square`
    int32_t strays                   # in a row

cdef struct OdChannel:
    OdEntry entry[OD_RING]
    OdBlock block[OD_BLOCKS]
    MainsChannel mains
    CarriedScale scale               # of the differences, about the window's value
    CarriedScale on_scale            # of single conversions, from neighbours
    CarriedScale off_scale
    CultureNoise culture
    OdCoarse coarse
    OdWindow last                    # of the first rate; a block of the same chop periods is made of it
    OdWithin within[OD_RATES]
    double sample[OD_BUFFER]         # of the half-cycle that is open
    double lit[OD_BUFFER]            # of the on half-cycle that waits for the dark one after it
    double centre_v                  # what a difference is expected to be, where it is `centred`: about 16 entries
    double lit_scale                 # of single conversions about it and the dark level; 0: not known
    OdHalf off                       # the last off half-cycle
    OdHalf on                        # the on half-cycle after it
    double correlation               # of neighbouring conversions' noise
    double volts_per_code
    double period_ns
    double on_square, off_square     # of neighbours' differences, this second
    double step_square               # mean square of the change from one off half-cycle to the next
    double enough_inverse            # 1 / conversions by weight that give an on half-cycle its full weight
    double level_v[OD_WINDOWS]       # the last window's value, where it is `leveled`
    double block_value               # of the last block, by its reference
    double blank
    int64_t t0_ns
    int64_t closed_ns                # end of the newest entry
    int64_t block_ns                 # end of the newest block
    int64_t block_tick_ns            # the grid's time of the newest block
    uint32_t index0
    uint32_t next_index
    uint32_t first_index
    uint32_t due_index               # at the earliest, the conversion that ends behind the grid's time
    uint32_t missing                 # conversions that never came
    uint32_t repeated                # conversions that came twice, or late: ignored
    int32_t entries
    int32_t cursor
    int32_t count                    # of sample
    int32_t most_count
    int32_t phase
    int32_t on_pairs, off_pairs
    int32_t cycle                    # conversions in the last whole chop period
    int32_t half_cycle               # k, once two chop periods agree
    int32_t blocks
    int32_t block_cursor
    uint8_t trusted                  # the last block rejected a tenth at most
    uint8_t leveled[OD_WINDOWS]
    uint8_t centred
    uint8_t moved                    # the level has moved since the last block
    uint8_t strays                   # entries in a row that are not as expected
    uint8_t started
    uint8_t clocked
    uint8_t unchopped
    uint8_t open_flags

cdef struct OdState:
    OdConfig config
    MainsLine line
    OdChannel channel[MAX_CHANNELS]
    OdRate rate[OD_WINDOWS]
    float null_weight[OD_NULL_ROOM]  # of each window's entries, sum 1
    ReferenceFit reference_fit[MAX_CHANNELS]
    Reading out[MAX_CHANNELS]
    double spacing_ns                # from one chop period to the next
    double turn_ns                   # of the stirrer; 0: it does not turn, or nobody knows
    double led_percent
    double reference_first_v         # R0; 0: not yet
    int64_t grid_ns                  # when something is due: the earliest next_ns
    int64_t block_tick_ns            # grid time of the newest blocks
    int64_t warm_from_ns
    uint64_t due                     # bits DUE_*
    uint32_t grid_misses             # readings that were due while nothing came
    uint32_t untaken                 # readings that were overwritten before od_take
    int32_t spaced
    int32_t pending
    int32_t taken
    int32_t warming
    int32_t reference                # channel, -1: none

# Sums over a window's entries, with weights.
cdef struct OdSums:
    double weights
    double whole                     # without Tukey's part
    double moment                    # of residuals
    double slope                     # of the moment, by the level
    double squares                   # of weights
    double on_variance               # of the level: times the variance of a single conversion, over weights^2
    double off_variance
    double ambient_v                 # total
    uint32_t lit                     # conversions
    uint32_t used
    uint32_t rejected
    uint32_t flags                   # of the entries


cdef inline int64_t od_end_ns(const OdChannel* ch, uint32_t index) noexcept nogil:
    return ch.t0_ns + <int64_t>(<int32_t>(index - ch.index0) * ch.period_ns)


cdef inline int64_t od_newest_ns(const OdChannel* ch) noexcept nogil:
    """End of the newest conversion."""
    return od_end_ns(ch, ch.next_index - 1)


cdef inline int64_t od_next_middle_ns(const OdChannel* ch) noexcept nogil:
    return od_end_ns(ch, ch.next_index) - <int64_t>(0.5 * ch.period_ns)
