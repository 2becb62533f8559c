# Why compiled: the simulated ADC of a microcontroller makes a new running mean for every few milliseconds.
# Thread rule: sampling thread.
# Units: volts, seconds since the start of the simulation; codes are 16 bits, left-justified, for 3.3 V.
#
# As the RP2040 of HAT 1.1 and 1.2 does it (IS-24): the mean of 1024 samples of 12 bits, then a running mean with a
# quarter for the new value. Each sample has noise of about a code, so that the mean has bits below a code of 12; four
# codes of the RP2040 are some eight times as wide as the others (its erratum E11), which no averaging mends.

from libc.math cimport sqrt
from libc.stdint cimport int32_t, uint8_t
from stirbar.rt.rng cimport Rng, Ziggurat, rng_normal

cdef enum:
    MCU_CODES = 4096
    MCU_SAMPLES = 1024
    MCU_WIDE = 8             # additional width of each wide code

cdef extern from *:
    """
    #define STIRBAR_MCU_FULL_SCALE_V 3.3
    #define STIRBAR_MCU_NEW 0.25
    #define STIRBAR_MCU_SAMPLE_CODES 1.0   /* noise of one sample */
    #define STIRBAR_MCU_APERTURE_S 2.048e-3
    """
    const double MCU_FULL_SCALE_V "STIRBAR_MCU_FULL_SCALE_V"
    const double MCU_NEW "STIRBAR_MCU_NEW"
    const double MCU_SAMPLE_CODES "STIRBAR_MCU_SAMPLE_CODES"
    const double MCU_APERTURE_S "STIRBAR_MCU_APERTURE_S"


cdef inline double mcu_adc_transfer(double code) noexcept nogil:
    """Where an ideal code of 12 bits comes out: flat over the wide codes, steeper in between."""
    cdef double result = code
    cdef int i
    for i in range(4):
        if code > 512 + 1024 * i:
            result -= MCU_WIDE if code > 512 + 1024 * i + MCU_WIDE else code - (512 + 1024 * i)
    return result * MCU_CODES / (MCU_CODES - 4.0 * MCU_WIDE)


cdef inline double mcu_adc_mean_v(double v, Rng* rng, const Ziggurat* table) noexcept nogil:
    """Mean of the samples of one update, volts."""
    cdef double code = mcu_adc_transfer(v * MCU_CODES / MCU_FULL_SCALE_V)
    code += MCU_SAMPLE_CODES / sqrt(<double>MCU_SAMPLES) * rng_normal(rng, table)
    return code * MCU_FULL_SCALE_V / MCU_CODES


cdef inline int32_t mcu_adc_code(double v, uint8_t* clipped) noexcept nogil:
    """The register: 16 bits for 3.3 V, of which the interface keeps 15 and the sign."""
    cdef double code = v * 32768.0 / MCU_FULL_SCALE_V + 0.5
    clipped[0] = code < 0.0 or code >= 32760.0
    if clipped[0]:
        return 0 if code < 0.0 else 32767
    return <int32_t>code
