# Why compiled: what is pumped is accounted where it is pumped: no crash of Python can part the account from the vial.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: millilitres; fractions 0..1.

from libc.errno cimport EDOM
from libc.math cimport isfinite

from stirbar.rt.limits cimport VOLUME_CEILING_ML

cdef enum:                   # pumps, as PUMP_* of pump.pxd and OUTPUT_MEDIA... of outputs.pxd
    DOSE_MEDIA = 0
    DOSE_ALT_MEDIA = 1
    DOSE_WASTE = 2
    DOSE_PUMPS = 3

cdef enum:                   # what COMMAND_VOLUME sets, by its channel
    VOLUME_ML = 0            # somebody has looked: also ends what came in unseen
    VOLUME_ALT_FRACTION = 1
    VOLUME_MEDIA_ML = 2      # cumulative, of each pump
    VOLUME_ALT_MEDIA_ML = 3
    VOLUME_WASTE_ML = 4
    VOLUME_UNSEEN_ML = 5     # came in since the last evidence of the level
    VOLUME_EFFLUX_ML = 6     # level of the waste tube; 0: it reaches the bottom
    VOLUME_OWED_ML = 7       # came in by an exchange that was cut, and was not taken out yet
    VOLUME_ITEMS = 8

cdef enum:
    TOTAL_CEILING_ML = 1000000000    # of what a pump has moved since somebody began to count

cdef struct Volume:
    double item[VOLUME_ITEMS]        # by VOLUME_*


cdef inline int volume_set(Volume* v, int item, double value) noexcept nogil:
    """0, or -EDOM and nothing changed: no such item, or outside what it can be."""
    cdef double ceiling = VOLUME_CEILING_ML
    if item == VOLUME_ALT_FRACTION:
        ceiling = 1.0
    elif VOLUME_MEDIA_ML <= item <= VOLUME_WASTE_ML or item == VOLUME_UNSEEN_ML:
        ceiling = TOTAL_CEILING_ML
    if not 0 <= item < VOLUME_ITEMS or not isfinite(value) or not 0.0 <= value <= ceiling:
        return -EDOM
    v.item[item] = value
    if item == VOLUME_ML:
        v.item[VOLUME_UNSEEN_ML] = v.item[VOLUME_OWED_ML] = 0.0
    return 0


cdef inline double volume_after(const Volume* v, int pump, double ml) noexcept nogil:
    """The volume once a pump has moved so much. A waste tube at a level draws air below it."""
    cdef double before = v.item[VOLUME_ML]
    cdef double floor_ml = v.item[VOLUME_EFFLUX_ML]
    if pump != DOSE_WASTE:
        return before + ml
    if before <= floor_ml:
        return before
    return before - ml if before - ml > floor_ml else floor_ml


cdef inline void volume_pumped(Volume* v, int pump, double ml) noexcept nogil:
    """A pump has moved so much."""
    cdef double after = volume_after(v, pump, ml)
    cdef double alt_ml
    v.item[VOLUME_MEDIA_ML + pump] += ml
    if pump != DOSE_WASTE:
        alt_ml = v.item[VOLUME_ALT_FRACTION] * v.item[VOLUME_ML] + (ml if pump == DOSE_ALT_MEDIA else 0.0)
        if after > 0.0:
            v.item[VOLUME_ALT_FRACTION] = alt_ml / after
        v.item[VOLUME_UNSEEN_ML] += ml
    v.item[VOLUME_ML] = after
