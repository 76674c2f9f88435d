/* The instruction sets: one block and one row of the table each. A block names the set, says which
 * features the compiler may use, and compiles the one plain-C formula for them; no intrinsics, so
 * whatever vectorises C serves. */
#include "formats.h"
#include "fused_adamw.h"

#include <float.h>
#include <math.h>

/* Bit-exact results need each operation rounded to its own type, in the order written. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "fused-adamw promises bit-exact results: build it without -ffast-math and its parts"
#endif
/* 16 widens _Float16 alone. */
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "float arithmetic is evaluated in a wider type here: build with SSE2 (-msse2 -mfpmath=sse)"
#endif
#if defined(_MSC_VER)
#pragma fp_contract(off)
#endif

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define KERNELS(dtype)                                                                             \
    {JOIN(JOIN(ISA, dtype), _adamw), JOIN(JOIN(ISA, dtype), _amsgrad),                             \
     JOIN(JOIN(ISA, dtype), _sum_squares)}

/* An array may start at any byte; telling the compiler keeps it from using aligned moves, and costs
 * nothing on the processors that the vectorised rows are for. */
#if defined(__GNUC__)
typedef float float_unaligned __attribute__((aligned(1)));
typedef double double_unaligned __attribute__((aligned(1)));
typedef uint16_t uint16_t_unaligned __attribute__((aligned(1)));
#else
typedef float float_unaligned;
typedef double double_unaligned;
typedef uint16_t uint16_t_unaligned;
#endif
#define UNALIGNED(type) JOIN(type, _unaligned)

/* The baseline: what the compiler may use without being told. */
#define ISA baseline
#define TARGET
#include "kernels/instantiate.inc"

static int always(void)
{
    return 1;
}

#if defined(__GNUC__) && defined(__x86_64__)
#define X86_64_TARGETS

#define ISA avx2
#define TARGET __attribute__((target("avx2")))
#include "kernels/instantiate.inc"

/* __builtin_cpu_supports reports AVX and AVX-512 only where the operating system saves their
 * registers too: libgcc and compiler-rt both read XCR0 (XGETBV) beside CPUID. */
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

#if defined(__clang__)
#define WIDEST __attribute__((min_vector_width(512)))
#define WIDEST_FEATURE
#else
#define WIDEST
#define WIDEST_FEATURE ",prefer-vector-width=512"
#endif
#define ISA avx512
#define TARGET WIDEST __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw" WIDEST_FEATURE)))
#include "kernels/instantiate.inc"

static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define BASELINE "sse2"
#elif defined(__aarch64__) || defined(_M_ARM64)
#define BASELINE "neon"
#else
#define BASELINE "baseline"
#endif

const fused_adamw_isa fused_adamw_isas[] = {
#if defined(X86_64_TARGETS)
    {"avx512", has_avx512, avx512_kernels},
    {"avx2", has_avx2, avx2_kernels},
#endif
    {BASELINE, always, baseline_kernels},
    {NULL, NULL, NULL},
};
