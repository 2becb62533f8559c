# Why compiled: what moves in the simulated vial, behind the loop's C interface: stirrer, heater, pumps, tachometer.
# Thread rule: the actuator thread.
# Units: nanoseconds of the loop's clock, percent 0..100, mL/s.

from libc.errno cimport EINVAL
from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.fan cimport fan_advance, fan_edges, fan_write
from stirbar.rt.pump cimport PUMPS, pumps_advance, pumps_set
from stirbar.rt.sim_log cimport LOG_HEATER, LOG_PUMP, LOG_STIRRER, log_order
from stirbar.rt.sim_parameters cimport PARAM_PUMP_ML_PER_S, PARAM_STIR_BAR_MISSING
from stirbar.rt.vial cimport Sim, sim_put_f32, sim_put_u32, sim_time_s

cdef enum:
    STIRRER_HZ = 200         # PWM of the stirrer until the loop chooses another


cdef inline void sim_actuators_advance(Sim* sim, double time_s) noexcept nogil:
    cdef int i
    fan_advance(&sim.fan, sim.parameter, &sim.ziggurat, time_s)
    pumps_advance(&sim.pumps, sim.parameter, time_s)
    sim_put_f32(&sim.exchange.fan_turns_per_s, <float>(sim.fan.speed_rpm / 60.0))
    sim_put_f32(&sim.exchange.fan_phase, <float>sim.fan.angle_turn)
    sim_put_u32(&sim.exchange.fan_stamp_us, <uint32_t><int64_t>(1e6 * sim.fan.time_s))
    sim_put_u32(&sim.exchange.stir_bar, sim.parameter[PARAM_STIR_BAR_MISSING] == 0.0)
    for i in range(PUMPS):
        sim_put_u32(&sim.exchange.pumped_nl[i], sim.pumps.delivered_nl[i])


cdef inline int sim_edges_read(void* context, int64_t now_ns, int64_t* stamps_ns, int room) noexcept nogil:
    """Take the tachometer edges until now, in order; returns how many, at most room."""
    cdef Sim* sim = <Sim*>context
    sim_actuators_advance(sim, sim_time_s(sim, now_ns))
    return fan_edges(&sim.fan, now_ns, stamps_ns, room)


cdef inline int sim_stirrer_write(void* context, double duty_percent, int64_t now_ns) noexcept nogil:
    """Set the fan's duty; 0, or -EINVAL outside 0..100."""
    cdef Sim* sim = <Sim*>context
    cdef double time_s = sim_time_s(sim, now_ns)
    sim_actuators_advance(sim, time_s)
    log_order(&sim.log, LOG_STIRRER, duty_percent, now_ns)
    return fan_write(&sim.fan, sim.parameter, &sim.ziggurat, duty_percent, time_s)


cdef inline int sim_stirrer_period(void* context, int64_t period_ns, int64_t now_ns) noexcept nogil:
    cdef Sim* sim = <Sim*>context
    sim_put_f32(&sim.exchange.stirrer_hz, <float>(1e9 / period_ns) if period_ns > 0 else STIRRER_HZ)
    return 0


cdef inline int sim_pump(Sim* sim, int pump, double ml_per_s, int64_t now_ns) noexcept nogil:
    """Run a pump at a calibrated flow from now on, 0 stops it; 0 or -EINVAL. Actuator thread."""
    cdef double time_s = sim_time_s(sim, now_ns)
    sim_actuators_advance(sim, time_s)
    return pumps_set(&sim.pumps, sim.parameter, pump, ml_per_s, time_s)


cdef inline int sim_pump_write(void* context, int pump, double duty_percent, int64_t now_ns) noexcept nogil:
    cdef Sim* sim = <Sim*>context
    log_order(&sim.log, LOG_PUMP + pump, duty_percent, now_ns)
    return sim_pump(sim, pump, 0.01 * duty_percent * sim.parameter[PARAM_PUMP_ML_PER_S], now_ns)


cdef inline int sim_heater_write(void* context, double duty_percent, int64_t now_ns) noexcept nogil:
    """Set the heater's duty; 0, or -EINVAL outside 0..100."""
    cdef Sim* sim = <Sim*>context
    if not 0.0 <= duty_percent <= 100.0:
        return -EINVAL
    log_order(&sim.log, LOG_HEATER, duty_percent, now_ns)
    sim_put_f32(&sim.exchange.heater_duty, <float>(0.01 * duty_percent))
    return 0
