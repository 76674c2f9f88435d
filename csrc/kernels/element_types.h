/* How single values of the storage types (FUSED_ADAMW_STORAGE_TYPES) are loaded and stored: for a
 * row named x, load_x and store_x, which the loops of kernels/convert.inc call. Integers and
 * exact float operations alone, so that every instruction set gives the same bits. */
#ifndef FUSED_ADAMW_ELEMENT_TYPES_H
#define FUSED_ADAMW_ELEMENT_TYPES_H

#include "../float_bits.h"

/* ---- bfloat16: the upper half of a float32 */

static inline float load_bfloat16(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

/* Rounds up iff the discarded 16 bits plus the upper ones of `dither` carry out; without
 * `stochastic` to the nearest, ties to even. */
static inline uint16_t store_bfloat16(float x, uint32_t dither, int stochastic)
{
    const uint32_t bits = bits_of(x);
    const uint32_t up = stochastic ? dither >> 16 : 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(select_bits(x != x, bits | 0x400000, bits + up) >> 16);
}

/* A v above 0 must not become 0, where m / (sqrt(v) + eps) would explode: it is raised to the
 * smallest bfloat16 above 0. */
static inline float above_0_bfloat16(float v)
{
    const float smallest = 0x1p-133f, raised = v > smallest ? v : smallest;
    return v > 0 ? raised : v;
}

/* ---- float16 */

static inline float load_float16(uint16_t half)
{
    const uint32_t magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    const float scaled = float_of(magnitude) * 0x1p112f; /* moves the exponent's bias; exact */
    const uint32_t bits = magnitude < 0x7c00u << 13 ? bits_of(scaled) : magnitude | INF_BITS;
    return float_of(sign | bits);
}

/* Always to the nearest, ties to even. */
static inline uint16_t store_float16(float x, uint32_t dither, int stochastic)
{
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    /* One ulp of 0.5 is 2^-24, which is the unit of the subnormal numbers of float16. */
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t large = (int32_t)normal < 0x7c00 ? normal : 0x7c00;
    const uint32_t finite = select_bits((int32_t)magnitude < 113 << 23, subnormal, large);
    (void)dither, (void)stochastic;
    return (uint16_t)((bits >> 16 & 0x8000) | select_bits(x != x, 0x7e00, finite));
}

#endif
