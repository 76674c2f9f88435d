/* CPU dispatch: the table of instruction sets, and the choice. */
#include "float_env.h"
#include "internal.h"

#include <string.h>

static int always(void)
{
    return 1;
}

#if defined(HAS_X86_64_KERNELS)
#include "processor.h"

/* Bits that the manuals of the processors give names to. AVX2 takes with it what Visual C++ uses
 * there: FMA, BMI1, BMI2, LZCNT; and AVX-512 its CD. */
#define CPUID_1_ECX (1u << 12 | 1u << 28)
#define CPUID_7_EBX_AVX2 (1u << 3 | 1u << 5 | 1u << 8)
#define CPUID_7_EBX_AVX512 (CPUID_7_EBX_AVX2 | 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31)
#define CPUID_80000001_ECX (1u << 5)
#define OSXSAVE (1u << 27)
#define XCR0_AVX 0x06u
#if defined(__APPLE__)
#define XCR0_AVX512 XCR0_AVX /* macOS saves those of AVX-512 only once they have been used */
#else
#define XCR0_AVX512 0xe6u
#endif

/* Whether the processor has these features, and the operating system saves their registers. */
static int has(uint32_t features, uint32_t registers)
{
    return cpuid(0, EAX) >= 7 && (cpuid(1, ECX) & OSXSAVE) != 0 &&
           (saved_registers() & registers) == registers &&
           (cpuid(1, ECX) & CPUID_1_ECX) == CPUID_1_ECX &&
           (cpuid(7, EBX) & features) == features &&
           (cpuid(0x80000001u, ECX) & CPUID_80000001_ECX) != 0;
}

static int has_avx2(void)
{
    return has(CPUID_7_EBX_AVX2, XCR0_AVX);
}

static int has_avx512(void)
{
    return has(CPUID_7_EBX_AVX512, XCR0_AVX512);
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
#if defined(HAS_X86_64_KERNELS)
    {"avx512", has_avx512, &fused_adamw_avx512_kernels},
    {"avx2", has_avx2, &fused_adamw_avx2_kernels},
#endif
    {BASELINE, always, &fused_adamw_baseline_kernels},
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
