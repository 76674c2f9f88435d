/* CPU dispatch: the instruction sets, one block and one row of the table each. A block names the
 * set, says which features the compiler may use, and compiles the one plain-C formula for them; no
 * intrinsics, so any C compiler that vectorizes will do. */
#include "float_env.h"
#include "internal.h"
#include "kernels/block.h"
#include "kernels/element_types.h"

#include <math.h>
#include <string.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

/* An array may start at any byte. Saying so keeps the compiler from using aligned moves, and costs
 * nothing on the processors that the vectorized rows are for. */
#if defined(__GNUC__)
#define MAY_BE_UNALIGNED __attribute__((aligned(1)))
#else
#define MAY_BE_UNALIGNED
#endif
typedef float MAY_BE_UNALIGNED float_unaligned;
typedef double MAY_BE_UNALIGNED double_unaligned;
typedef uint8_t uint8_t_unaligned;
typedef int16_t MAY_BE_UNALIGNED int16_t_unaligned;
typedef uint16_t MAY_BE_UNALIGNED uint16_t_unaligned;
typedef uint32_t MAY_BE_UNALIGNED uint32_t_unaligned;
#define UNALIGNED(type) JOIN(type, _unaligned)

/* What is called with constants and has to be compiled for them. */
#if defined(_MSC_VER)
#define ALWAYS_INLINE __forceinline
#else
#define ALWAYS_INLINE inline __attribute__((always_inline))
#endif

/* The baseline: what the compiler may use anyway. */
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
 * registers too: libgcc and compiler-rt both read XCR0 (XGETBV) as well as CPUID. */
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

/* Compilers prefer 256-bit vectors by default. */
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

/* Widest first. The last row runs everywhere. */
static const fused_adamw_isa ISAS[] = {
#if defined(X86_64_TARGETS)
    {"avx512", has_avx512, &avx512_kernels},
    {"avx2", has_avx2, &avx2_kernels},
#endif
    {BASELINE, always, &baseline_kernels},
};

const fused_adamw_isa *fused_adamw_isa_at(int index)
{
    return index < (int)(sizeof ISAS / sizeof *ISAS) ? &ISAS[index] : NULL;
}

const char *fused_adamw_isa_name(const fused_adamw_isa *isa)
{
    return isa->name;
}

int fused_adamw_isa_available(const fused_adamw_isa *isa)
{
    return isa->available();
}

const fused_adamw_isa *fused_adamw_find_isa(const char *name)
{
    const fused_adamw_isa *isa;
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++)
        if (isa->available() && (name == NULL || strcmp(name, isa->name) == 0))
            return isa;
    return NULL;
}

void fused_adamw_decode_state(const fused_adamw_isa *isa, const fused_adamw_tensor *tensor,
                              const fused_adamw_tensor *moments)
{
    const float_control before = use_default_float_control();
    isa->kernels->decode_state(tensor, moments);
    restore_float_control(before);
}

void fused_adamw_encode_state(const fused_adamw_isa *isa, const fused_adamw_tensor *tensor,
                              const fused_adamw_tensor *moments)
{
    const float_control before = use_default_float_control();
    isa->kernels->encode_state(tensor, moments);
    restore_float_control(before);
}
