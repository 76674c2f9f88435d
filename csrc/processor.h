/* What an x86-64 processor reports about itself, read in one way on all systems: not every compiler
 * that has __builtin_cpu_supports fills in what it reads (Zig 0.17). */
#ifndef FUSED_ADAMW_PROCESSOR_H
#define FUSED_ADAMW_PROCESSOR_H

#include <stdint.h>

enum { EAX, EBX, ECX, EDX };

/* cpuid: one register of a leaf of CPUID, of its subleaf 0. saved_registers: XCR0, that is, which
 * registers the operating system saves; to be read only where CPUID reports OSXSAVE. */
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>

static inline uint32_t cpuid(uint32_t leaf, int index)
{
    int registers[4];
    __cpuidex(registers, (int)leaf, 0);
    return (uint32_t)registers[index];
}

static inline uint32_t saved_registers(void)
{
    return (uint32_t)_xgetbv(0);
}

#else
#include <cpuid.h>

static inline uint32_t cpuid(uint32_t leaf, int index)
{
    uint32_t registers[4];
    __cpuid_count(leaf, 0, registers[EAX], registers[EBX], registers[ECX], registers[EDX]);
    return registers[index];
}

static inline uint32_t saved_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
}
#endif

#endif
