# Why compiled: the liquid's temperature is worked out at each reading of the heater board's sensor, in the loop.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: degrees Celsius, watts, watts per kelvin, joules per kelvin, millilitres, seconds; duty 0..1.
#
# One sensor sits on the heater board, not in the liquid. Board and liquid are two nodes, each coupled to the other and
# to the air:
#   C_b dT_b/dt = P u - k (T_b - T_l) - g_b (T_b - T_a)
#   C_l dT_l/dt = k (T_b - T_l) - g_l (T_l - T_a)
# An extended Kalman filter (Jazwinski 1970, chapter 8) holds the three temperatures and the logarithms of the six
# coefficients: what the sensor cannot tell stays in their covariance, so that the liquid's standard error is honest.

from libc.math cimport exp, isfinite, log, sqrt
from libc.stdint cimport uint32_t
from libc.string cimport memset

cdef enum:                    # LiquidState.x
    LIQUID_BOARD = 0
    LIQUID_LIQUID = 1
    LIQUID_AIR = 2
    LIQUID_COUPLING = 3       # logarithms from here on
    LIQUID_POWER = 4
    LIQUID_BOARD_CAPACITY = 5
    LIQUID_BOARD_LOSS = 6
    LIQUID_LIQUID_LOSS = 7
    LIQUID_CAPACITY = 8
    LIQUID_STATES = 9

cdef extern from *:
    """
    #ifndef STIRBAR_LIQUID
    #define STIRBAR_LIQUID
    #define STIRBAR_WATER_J_PER_ML_K 4.18
    /* What the sensor's steps of 0.0625 degC and the model's shape leave: with its own 0.018 degC the filter believes
       its model too much, and its error is twice what it says (docs/temperature.md). */
    #define STIRBAR_LIQUID_SENSOR_DEGC 0.2
    #define STIRBAR_LIQUID_BOARD_WALK 0.002       /* degC per root second: what the model does not know */
    #define STIRBAR_LIQUID_LIQUID_WALK 0.0005
    #define STIRBAR_LIQUID_AIR_WALK 0.00215       /* a room drifts by 1 degC in an hour */
    #define STIRBAR_LIQUID_COUPLING_WALK 0.00033  /* 2 % a minute: level, stirring, fit of the vial */
    #endif
    """
    const double WATER_J_PER_ML_K "STIRBAR_WATER_J_PER_ML_K"
    const double LIQUID_SENSOR_DEGC "STIRBAR_LIQUID_SENSOR_DEGC"
    const double LIQUID_BOARD_WALK "STIRBAR_LIQUID_BOARD_WALK"
    const double LIQUID_LIQUID_WALK "STIRBAR_LIQUID_LIQUID_WALK"
    const double LIQUID_AIR_WALK "STIRBAR_LIQUID_AIR_WALK"
    const double LIQUID_COUPLING_WALK "STIRBAR_LIQUID_COUPLING_WALK"

# A vial on its heater board, as its profile says; *_sd are relative (one standard deviation).
cdef struct LiquidConfig:
    double power_w                # of the heater at full duty
    double power_sd
    double board_j_per_k
    double board_sd
    double coupling_w_per_k       # board to liquid
    double coupling_sd
    double board_loss_w_per_k     # board to air
    double liquid_loss_w_per_k
    double loss_sd
    double volume_sd

cdef struct LiquidState:
    LiquidConfig config
    double x[LIQUID_STATES]
    double covariance[LIQUID_STATES][LIQUID_STATES]
    double volume_ml
    uint32_t started


cdef inline void liquid_init(LiquidState* s, const LiquidConfig* config, double volume_ml) noexcept nogil:
    """Nothing is known yet; the first reading sets all three temperatures."""
    memset(s, 0, sizeof(LiquidState))
    s.config = config[0]
    s.volume_ml = volume_ml


cdef inline void liquid_start(LiquidState* s, double board_degc) noexcept nogil:
    """The first reading: everything has the board's temperature, give or take."""
    cdef const LiquidConfig* c = &s.config
    memset(s.covariance, 0, sizeof(s.covariance))
    s.x[LIQUID_BOARD] = s.x[LIQUID_LIQUID] = s.x[LIQUID_AIR] = board_degc
    s.x[LIQUID_COUPLING] = log(c.coupling_w_per_k)
    s.x[LIQUID_POWER] = log(c.power_w)
    s.x[LIQUID_BOARD_CAPACITY] = log(c.board_j_per_k)
    s.x[LIQUID_BOARD_LOSS] = log(c.board_loss_w_per_k)
    s.x[LIQUID_LIQUID_LOSS] = log(c.liquid_loss_w_per_k)
    s.x[LIQUID_CAPACITY] = log(WATER_J_PER_ML_K * s.volume_ml)
    s.covariance[LIQUID_BOARD][LIQUID_BOARD] = 0.1
    s.covariance[LIQUID_LIQUID][LIQUID_LIQUID] = 1.0
    s.covariance[LIQUID_AIR][LIQUID_AIR] = 4.0
    s.covariance[LIQUID_COUPLING][LIQUID_COUPLING] = c.coupling_sd * c.coupling_sd
    s.covariance[LIQUID_POWER][LIQUID_POWER] = c.power_sd * c.power_sd
    s.covariance[LIQUID_BOARD_CAPACITY][LIQUID_BOARD_CAPACITY] = c.board_sd * c.board_sd
    s.covariance[LIQUID_BOARD_LOSS][LIQUID_BOARD_LOSS] = c.loss_sd * c.loss_sd
    s.covariance[LIQUID_LIQUID_LOSS][LIQUID_LIQUID_LOSS] = c.loss_sd * c.loss_sd
    s.covariance[LIQUID_CAPACITY][LIQUID_CAPACITY] = c.volume_sd * c.volume_sd
    s.started = 1


cdef inline void liquid_rates(const double* x, double duty, double* board, double* liquid) noexcept nogil:
    """dT/dt of both nodes, degC/s."""
    cdef double across = exp(x[LIQUID_COUPLING]) * (x[LIQUID_BOARD] - x[LIQUID_LIQUID])
    board[0] = (
        exp(x[LIQUID_POWER]) * duty - across
        - exp(x[LIQUID_BOARD_LOSS]) * (x[LIQUID_BOARD] - x[LIQUID_AIR])) / exp(x[LIQUID_BOARD_CAPACITY])
    liquid[0] = (
        across - exp(x[LIQUID_LIQUID_LOSS]) * (x[LIQUID_LIQUID] - x[LIQUID_AIR])) / exp(x[LIQUID_CAPACITY])


cdef inline void liquid_jacobian(
    const LiquidState* s, double duty, double seconds, double* board_row, double* liquid_row
) noexcept nogil:
    """The two rows of the transition matrix that are not the identity's."""
    cdef double board_rate, liquid_rate
    cdef double board = s.x[LIQUID_BOARD]
    cdef double liquid = s.x[LIQUID_LIQUID]
    cdef double air = s.x[LIQUID_AIR]
    cdef double coupling = exp(s.x[LIQUID_COUPLING])
    cdef double board_loss = exp(s.x[LIQUID_BOARD_LOSS])
    cdef double liquid_loss = exp(s.x[LIQUID_LIQUID_LOSS])
    cdef double per_board = seconds / exp(s.x[LIQUID_BOARD_CAPACITY])
    cdef double per_liquid = seconds / exp(s.x[LIQUID_CAPACITY])
    liquid_rates(s.x, duty, &board_rate, &liquid_rate)
    memset(board_row, 0, LIQUID_STATES * sizeof(double))
    memset(liquid_row, 0, LIQUID_STATES * sizeof(double))
    board_row[LIQUID_BOARD] = 1.0 - per_board * (coupling + board_loss)
    board_row[LIQUID_LIQUID] = per_board * coupling
    board_row[LIQUID_AIR] = per_board * board_loss
    board_row[LIQUID_COUPLING] = -per_board * coupling * (board - liquid)
    board_row[LIQUID_POWER] = per_board * exp(s.x[LIQUID_POWER]) * duty
    board_row[LIQUID_BOARD_CAPACITY] = -seconds * board_rate
    board_row[LIQUID_BOARD_LOSS] = -per_board * board_loss * (board - air)
    liquid_row[LIQUID_BOARD] = per_liquid * coupling
    liquid_row[LIQUID_LIQUID] = 1.0 - per_liquid * (coupling + liquid_loss)
    liquid_row[LIQUID_AIR] = per_liquid * liquid_loss
    liquid_row[LIQUID_COUPLING] = per_liquid * coupling * (board - liquid)
    liquid_row[LIQUID_LIQUID_LOSS] = -per_liquid * liquid_loss * (liquid - air)
    liquid_row[LIQUID_CAPACITY] = -seconds * liquid_rate


cdef inline void liquid_predict(LiquidState* s, double duty, double seconds) noexcept nogil:
    """Move on by at most a few seconds at a constant duty (explicit steps; the board's time constant is 20 s)."""
    cdef double board_row[LIQUID_STATES]
    cdef double liquid_row[LIQUID_STATES]
    cdef double board_new[LIQUID_STATES]
    cdef double liquid_new[LIQUID_STATES]
    cdef double board_rate, liquid_rate, bb, bl, ll
    cdef int i, j
    if not s.started:
        return
    liquid_jacobian(s, duty, seconds, board_row, liquid_row)
    liquid_rates(s.x, duty, &board_rate, &liquid_rate)
    for i in range(LIQUID_STATES):
        board_new[i] = 0.0
        liquid_new[i] = 0.0
        for j in range(LIQUID_STATES):
            board_new[i] += board_row[j] * s.covariance[j][i]
            liquid_new[i] += liquid_row[j] * s.covariance[j][i]
    bb = bl = ll = 0.0
    for j in range(LIQUID_STATES):
        bb += board_new[j] * board_row[j]
        bl += board_new[j] * liquid_row[j]
        ll += liquid_new[j] * liquid_row[j]
    for i in range(LIQUID_AIR, LIQUID_STATES):
        s.covariance[LIQUID_BOARD][i] = s.covariance[i][LIQUID_BOARD] = board_new[i]
        s.covariance[LIQUID_LIQUID][i] = s.covariance[i][LIQUID_LIQUID] = liquid_new[i]
    s.covariance[LIQUID_BOARD][LIQUID_BOARD] = bb + LIQUID_BOARD_WALK * LIQUID_BOARD_WALK * seconds
    s.covariance[LIQUID_BOARD][LIQUID_LIQUID] = s.covariance[LIQUID_LIQUID][LIQUID_BOARD] = bl
    s.covariance[LIQUID_LIQUID][LIQUID_LIQUID] = ll + LIQUID_LIQUID_WALK * LIQUID_LIQUID_WALK * seconds
    s.covariance[LIQUID_AIR][LIQUID_AIR] += LIQUID_AIR_WALK * LIQUID_AIR_WALK * seconds
    s.covariance[LIQUID_COUPLING][LIQUID_COUPLING] += LIQUID_COUPLING_WALK * LIQUID_COUPLING_WALK * seconds
    s.x[LIQUID_BOARD] += board_rate * seconds
    s.x[LIQUID_LIQUID] += liquid_rate * seconds


cdef inline double liquid_measure(LiquidState* s, double board_degc) noexcept nogil:
    """Take a reading of the board's sensor, after liquid_start; returns by how much it differs from what was
    expected."""
    cdef double gain[LIQUID_STATES]
    cdef double row[LIQUID_STATES]
    cdef double surprise, total
    cdef int i, j
    surprise = board_degc - s.x[LIQUID_BOARD]
    total = s.covariance[LIQUID_BOARD][LIQUID_BOARD] + LIQUID_SENSOR_DEGC * LIQUID_SENSOR_DEGC
    for i in range(LIQUID_STATES):
        row[i] = s.covariance[LIQUID_BOARD][i]
        gain[i] = row[i] / total
    for i in range(LIQUID_STATES):
        s.x[i] += gain[i] * surprise
        for j in range(i, LIQUID_STATES):
            s.covariance[i][j] -= gain[i] * row[j]
            s.covariance[j][i] = s.covariance[i][j]
    if not isfinite(s.x[LIQUID_LIQUID]) or not s.covariance[LIQUID_LIQUID][LIQUID_LIQUID] >= 0.0:
        liquid_start(s, board_degc)  # begin again rather than go on with nonsense
    return surprise


cdef inline void liquid_exchange(LiquidState* s, double in_ml, double out_ml) noexcept nogil:
    """Liquid came in, at the air's temperature, and went out; the volume is that of the accounting."""
    cdef double volume_ml = s.volume_ml + in_ml - out_ml
    if not volume_ml > 0.0 or not s.volume_ml > 0.0:
        return
    if s.started:
        s.x[LIQUID_LIQUID] += (s.x[LIQUID_AIR] - s.x[LIQUID_LIQUID]) * in_ml / (s.volume_ml + in_ml)
        s.x[LIQUID_CAPACITY] += log(volume_ml / s.volume_ml)
    s.volume_ml = volume_ml


cdef inline void liquid_resize(LiquidState* s, double volume_ml) noexcept nogil:
    """Somebody has looked: so much is in the vial, and nothing has come or gone."""
    if volume_ml > 0.0 and s.volume_ml > 0.0:
        if s.started:
            s.x[LIQUID_CAPACITY] += log(volume_ml / s.volume_ml)
        s.volume_ml = volume_ml


cdef inline double liquid_degc(const LiquidState* s) noexcept nogil:
    return s.x[LIQUID_LIQUID]


cdef inline double liquid_se_degc(const LiquidState* s) noexcept nogil:
    """Standard error of the liquid's temperature."""
    return sqrt(s.covariance[LIQUID_LIQUID][LIQUID_LIQUID])


cdef inline double liquid_hold_duty(const LiquidState* s, double target_degc) noexcept nogil:
    """The duty (0..1 and beyond) at which the liquid stays at a temperature, by the model as it is known now."""
    cdef double loss_w = exp(s.x[LIQUID_LIQUID_LOSS]) * (target_degc - s.x[LIQUID_AIR])
    cdef double board = target_degc + loss_w / exp(s.x[LIQUID_COUPLING])
    return (loss_w + exp(s.x[LIQUID_BOARD_LOSS]) * (board - s.x[LIQUID_AIR])) / exp(s.x[LIQUID_POWER])
