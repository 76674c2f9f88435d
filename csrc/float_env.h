/* The floating-point environment of a thread: its rounding mode, whether it flushes subnormal
 * numbers to zero, whether exceptions trap. Programs and libraries change it (-ffast-math does,
 * when a library is loaded), and threads inherit it, so results would depend on which thread
 * created which. Everything that computes runs in the default environment and then returns to that
 * of its caller.
 *
 * The exceptions that are raised meanwhile stay in the status flags, as those of any arithmetic do,
 * but for those of the x87 unit.
 *
 * Writing a control register takes longer than reading it: it is written only where it differs. */
#ifndef FUSED_ADAMW_FLOAT_ENV_H
#define FUSED_ADAMW_FLOAT_ENV_H

#include <stdint.h>

typedef uint64_t float_control;

#if defined(__x86_64__) || defined(_M_X64)

#if !defined(__GNUC__)
#include <xmmintrin.h>
#endif

/* MXCSR: subnormals as they are, to the nearest, no traps. */
#define CONTROL_BITS 0xffc0u
#define CONTROL_DEFAULT 0x1f80u

static inline float_control get_float_control(void)
{
#if defined(__GNUC__)
    uint32_t control = 0; /* MemorySanitizer does not see what assembly writes */
    __asm__ volatile("stmxcsr %0" : "+m"(control) : : "memory");
    return control;
#else
    return _mm_getcsr();
#endif
}

static inline void set_float_control(float_control bits)
{
    const uint32_t control = (uint32_t)((get_float_control() & ~CONTROL_BITS) | bits);
#if defined(__GNUC__)
    __asm__ volatile("ldmxcsr %0" : : "m"(control) : "memory");
#else
    _mm_setcsr(control);
#endif
}

#elif defined(__aarch64__) && defined(__GNUC__)

/* FPCR; the status flags are in a register of their own. */
#define CONTROL_BITS UINT64_MAX
#define CONTROL_DEFAULT 0u

static inline float_control get_float_control(void)
{
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control) : : "memory");
    return control;
}

static inline void set_float_control(float_control bits)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(bits) : "memory");
}

#elif defined(__i386__) && defined(__SSE2__) && defined(__GNUC__)

/* MXCSR, and above it the control word of the x87 unit, in which C libraries compute here: its
 * rounding mode and its traps. Its precision is left as the system sets it. Its status flags are
 * cleared: one that is set when its trap is switched on again ends the process. */
#define CONTROL_BITS UINT64_C(0x0c3f0000ffc0)
#define CONTROL_DEFAULT UINT64_C(0x003f00001f80)

static inline float_control get_float_control(void)
{
    uint32_t control = 0;
    uint16_t x87 = 0;
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "+m"(control), "+m"(x87) : : "memory");
    return control | (float_control)x87 << 32;
}

static inline void set_float_control(float_control bits)
{
    const float_control both = (get_float_control() & ~CONTROL_BITS) | bits;
    const uint32_t control = (uint32_t)both;
    const uint16_t x87 = (uint16_t)(both >> 32);
    __asm__ volatile("ldmxcsr %0\n\tfnclex\n\tfldcw %1" : : "m"(control), "m"(x87) : "memory");
}

#else

/* What C itself knows of: the rounding mode. */
#include <fenv.h>
#define CONTROL_BITS UINT64_MAX
#define CONTROL_DEFAULT ((float_control)FE_TONEAREST)

static inline float_control get_float_control(void)
{
    return (float_control)fegetround();
}

static inline void set_float_control(float_control bits)
{
    fesetround((int)bits);
}

#endif

/* Enters the default environment; returns what restore_float_control needs. */
static inline float_control use_default_float_control(void)
{
    const float_control before = get_float_control() & CONTROL_BITS;
    if (before != CONTROL_DEFAULT)
        set_float_control(CONTROL_DEFAULT);
    return before;
}

static inline void restore_float_control(float_control before)
{
    if (before != CONTROL_DEFAULT)
        set_float_control(before);
}

/* Compilers do not know that arithmetic depends on the environment, and may move it across the
 * functions above. They do not move accesses to memory or uses of this function: operands and
 * results that pass through either keep an operation in its place. */
static inline double pinned(double value)
{
    const volatile double memory = value;
    return memory;
}

#endif
