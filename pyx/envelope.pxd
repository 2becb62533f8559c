# Why compiled: the limits that the loop runs by are held against a copy that nothing can write.
# Thread rule: made by the host thread before the loop's threads live; from then on the actuator thread reads it.
# Units: those of limits.pxd; duty in percent, rpm.
#
# The loop's state is one flat struct that a snapshot copies, limits included, and memory of a process can be written by
# any stray pointer. So the limits lie a second time in a page of their own, which is made read-only (IS-13); the
# actuator thread compares at each control period, and puts back what differs.

from libc.string cimport memcmp, memset

from stirbar.rt.controllers cimport Controllers
from stirbar.rt.limits cimport DoseLimits, HeatLimits

cdef extern from *:
    """
    #include <string.h>
    #include <sys/mman.h>

    /* A page with these bytes that cannot be written any more; NULL and errno when there is none. */
    static const void *stirbar_read_only(const void *bytes, size_t size) {
        void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED || size > 4096) return NULL;
        memcpy(page, bytes, size);
        return mprotect(page, 4096, PROT_READ) ? NULL : page;
    }
    static void stirbar_read_only_free(const void *page) { munmap((void *)page, 4096); }
    """
    const void* stirbar_read_only(const void* data, size_t size) nogil
    void stirbar_read_only_free(const void* page) noexcept nogil

cdef struct Envelope:
    HeatLimits heat
    DoseLimits dose
    double stir_duty_maximum_percent
    double stir_rpm_maximum


cdef inline void envelope_of(const Controllers* c, Envelope* envelope) noexcept nogil:
    """The limits that controllers run by."""
    memset(envelope, 0, sizeof(Envelope))
    envelope.heat = c.heat.protect.limits
    envelope.dose = c.dose.limits
    envelope.stir_duty_maximum_percent = c.stir.config.duty_maximum_percent
    envelope.stir_rpm_maximum = c.stir.config.rpm_maximum


cdef inline bint envelope_holds(Controllers* c, const Envelope* envelope) noexcept nogil:
    """Whether the controllers still run by these limits; where not, they do from now on."""
    if (memcmp(&c.heat.protect.limits, &envelope.heat, sizeof(HeatLimits)) == 0
            and memcmp(&c.dose.limits, &envelope.dose, sizeof(DoseLimits)) == 0
            and c.stir.config.duty_maximum_percent == envelope.stir_duty_maximum_percent
            and c.stir.config.rpm_maximum == envelope.stir_rpm_maximum):
        return True
    c.heat.protect.limits = envelope.heat
    c.dose.limits = envelope.dose
    c.stir.config.duty_maximum_percent = envelope.stir_duty_maximum_percent
    c.stir.config.rpm_maximum = envelope.stir_rpm_maximum
    return False
