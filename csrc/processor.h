/* What a processor with x86-64 tells about itself, read in one way on all systems: not every
 * compiler that has __builtin_cpu_supports fills in what it reads (Zig 0.17). */
#ifndef FUSED_ADAMW_PROCESSOR_H
#define FUSED_ADAMW_PROCESSOR_H

#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

enum { EAX, EBX, ECX, EDX };

/* A register after CPUID, with 0 for the leaves that have parts. */
static inline uint32_t cpuid(uint32_t leaf, int index)
{
#if defined(_MSC_VER) && !defined(__clang__)
    int registers[4];
    __cpuidex(registers, (int)leaf, 0);
    return (uint32_t)registers[index];
#else
    uint32_t registers[4];
    __cpuid_count(leaf, 0, registers[EAX], registers[EBX], registers[ECX], registers[EDX]);
    return registers[index];
#endif
}

/* XCR0: which registers the operating system saves. Only where CPUID reports OSXSAVE. */
static inline uint32_t saved_registers(void)
{
#if defined(_MSC_VER) && !defined(__clang__)
    return (uint32_t)_xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
#endif
}

#endif
