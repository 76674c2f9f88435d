/* How single values of the storage types (FUSED_ADAMW_STORAGE_TYPES) are loaded and stored: for a
 * row named x, load_x and store_x; and how master weights are stored: param_x and rest_x are the two
 * parts of one, and join_x is the float32 that they are of. Integers and
 * exact float operations alone, so that every instruction set gives the same bits. */
#ifndef FUSED_ADAMW_ELEMENT_TYPES_H
#define FUSED_ADAMW_ELEMENT_TYPES_H

#include "../float_bits.h"

/* ---- bfloat16: the upper half of a float32 */

static inline float load_bfloat16(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

/* The bfloat16 in the upper half, and anything in the lower one. Rounds up iff the discarded 16 bits
 * plus the upper ones of `dither` carry out; without `stochastic` to the nearest, ties to even. x is
 * the result of an operation, where NaN is quiet: the upper half of its bits is NaN, too. */
static inline uint32_t round_bfloat16(float x, uint32_t dither, int stochastic)
{
    const uint32_t bits = bits_of(x);
    const uint32_t up = stochastic ? dither >> 16 : 0x7fff + (bits >> 16 & 1);
    return bits + select_bits(x == x, up, 0);
}

/* Of any x. */
static inline uint16_t store_bfloat16(float x, uint32_t dither, int stochastic)
{
    const uint32_t rounded = round_bfloat16(x, dither, stochastic);
    return (uint16_t)(select_bits(x == x, rounded, bits_of(x) | 0x400000) >> 16);
}

/* A v above 0 must not become 0, where m / (sqrt(v) + eps) would explode: it is raised to the
 * smallest bfloat16 above 0. */
static inline float above_0_bfloat16(float v)
{
    /* 0 for 0, else a lower bound of 0x10000, which is that bfloat16: two operations on unsigned
     * integers, by which v below 0 and NaN, too, stay what they are. */
    const uint32_t bits = bits_of(v), shifted = bits << 16;
    const uint32_t bound = shifted < 0x10000 ? shifted : 0x10000;
    return float_of(bits > bound ? bits : bound);
}

/* Master weights: the parameter is the nearest bfloat16, ties away from zero, and the rest is the
 * master minus the parameter in units of the last place of float32, from -2^15 to 2^15 - 1. Read as
 * integers, each bfloat16 has 2^16 nearest float32, and so each rest one of them. (Ties to even
 * would give 2^16 + 1 to the even ones, which 16 bits cannot tell apart.) This holds for infinity,
 * and for a finite master that rounds to it. NaN keeps the bits of its upper half. */
static inline uint32_t master_bits_bfloat16(float master)
{
    const uint32_t bits = bits_of(master);
    return select_bits(master != master, (bits & 0xffff0000) | 0x400000, bits);
}

static inline uint16_t param_bfloat16(float master)
{
    return (uint16_t)((master_bits_bfloat16(master) + 0x8000) >> 16);
}

static inline int16_t rest_bfloat16(float master)
{
    return (int16_t)master_bits_bfloat16(master);
}

/* Where a parameter was written by others, any rest gives a master that rounds to it, but for a rest
 * below 0 beside a zero and one above 0 beside infinity, whose sums have the bits of NaN. Then the
 * master is the parameter. */
static inline float master_of_bfloat16(uint32_t upper, int32_t rest)
{
    const float master = float_of(upper + (uint32_t)rest);
    return master == master ? master : float_of(upper);
}

static inline float join_bfloat16(uint16_t param, int16_t rest)
{
    return master_of_bfloat16((uint32_t)param << 16, rest);
}

/* Two neighbours as one word, and each of them as the upper half of a float32. On big-endian machines
 * the first would be the upper half of the word; they go without. */
#if (defined(__GNUC__) || defined(__clang__)) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAS_PAIRS 1
typedef uint32_t bfloat16_pair __attribute__((aligned(1), may_alias));
#else
#define HAS_PAIRS 0
typedef uint32_t bfloat16_pair;
#endif
#define FIRST(pair) ((pair) << 16)
#define SECOND(pair) ((pair)&0xffff0000)
#define PAIR(first, second) ((first) >> 16 | SECOND(second))

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

/* Master weights are kept whole: a subnormal float16 is the nearest of up to 2^30 float32, and 0
 * and infinity of more, so that 16 bits cannot tell them apart. */
static inline uint16_t param_float16(float master)
{
    return store_float16(master, 0, 0);
}

static inline float rest_float16(float master)
{
    return master;
}

static inline float join_float16(uint16_t param, float rest)
{
    (void)param;
    return rest;
}

#endif
