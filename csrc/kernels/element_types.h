/* How values of the storage types (FUSED_ADAMW_STORAGE_TYPES) are loaded and stored: for a row
 * named x, load_x and store_x, or store_result_x for what an operation gave; and how master weights
 * are stored: param_x and rest_x give the two parts of one, and join_x restores the float32 from
 * them. The types that pairs.inc takes have the same for two neighbors, the pair i: first_x and
 * second_x load, pair_x stores what operations gave, and join_pair_x and split_pair_x are for
 * master weights. Integers and exact float operations alone, so that every instruction set gives
 * the same bits. */
#ifndef FUSED_ADAMW_ELEMENT_TYPES_H
#define FUSED_ADAMW_ELEMENT_TYPES_H

#include "../float_bits.h"
#include "compilers.h"

#include <stddef.h>

/* ---- two neighbors as one word */

/* On big-endian machines the first would be the upper half of the word; they go without. */
#if (defined(__GNUC__) || defined(__clang__)) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAS_PAIRS 1
typedef uint32_t pair_word __attribute__((aligned(1), may_alias));
#else
#define HAS_PAIRS 0
typedef uint32_t pair_word;
#endif

/* Each in the upper half of a word, as bfloat16 is in a float32, and back. */
#define FIRST(pair) ((pair) << 16)
#define SECOND(pair) ((pair)&0xffff0000)
#define PAIR(first, second) ((first) >> 16 | SECOND(second))

struct pair_of_floats {
    float first, second;
};

/* ---- bfloat16: the upper half of a float32 */

static inline float load_bfloat16(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

/* Whether NaN that operations on values of a type give has a lower half of 0, as bfloat16 has it:
 * operations pass on the bits of a NaN, or make one that has only its upper bits set. */
enum { HAS_SHORT_NAN_bfloat16 = 1, HAS_SHORT_NAN_float16 = 0 };

/* The bfloat16 in the upper half, and anything in the lower one. Rounds up iff the discarded 16 bits
 * plus the upper ones of `dither` carry out; without `stochastic` to the nearest, ties to even. x is
 * the result of an operation, where NaN is quiet: the upper half of its bits is NaN, too, and stays
 * so where the lower one is 0. */
static inline uint32_t round_bfloat16(float x, uint32_t dither, int stochastic, int has_short_nan)
{
    const uint32_t bits = bits_of(x);
    const uint32_t up = stochastic ? dither >> 16 : 0x7fff + (bits >> 16 & 1);
    return bits + (has_short_nan ? up : select_bits(x == x, up, 0));
}

static inline uint16_t store_result_bfloat16(float x, uint32_t dither, int stochastic)
{
    return (uint16_t)(round_bfloat16(x, dither, stochastic, 0) >> 16);
}

/* Of any x, NaN that is not quiet among them. */
static inline uint16_t store_bfloat16(float x, uint32_t dither, int stochastic)
{
    const uint32_t rounded = round_bfloat16(x, dither, stochastic, 0);
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
 * and for a finite master that rounds to it. The master is the result of an operation, where NaN is
 * quiet: it keeps the bits of its upper half. */
static inline uint32_t master_bits_bfloat16(float master)
{
    const uint32_t bits = bits_of(master);
    return bits & select_bits(master == master, 0xffffffff, 0xffff0000);
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

static inline float first_bfloat16(uint32_t pair)
{
    return float_of(FIRST(pair));
}

static inline float second_bfloat16(uint32_t pair)
{
    return float_of(SECOND(pair));
}

static inline uint32_t pair_bfloat16(struct pair_of_floats x, uint32_t first_dither,
                                     uint32_t second_dither, int stochastic, int has_short_nan)
{
    return PAIR(round_bfloat16(x.first, first_dither, stochastic, has_short_nan),
                round_bfloat16(x.second, second_dither, stochastic, has_short_nan));
}

static inline struct pair_of_floats join_pair_bfloat16(uint32_t params, const void *rests,
                                                       ptrdiff_t i)
{
    const uint32_t rest = ((const pair_word *)rests)[i];
    return (struct pair_of_floats){
        master_of_bfloat16(FIRST(params), (int32_t)FIRST(rest) >> 16),
        master_of_bfloat16(SECOND(params), (int32_t)SECOND(rest) >> 16),
    };
}

/* Returns the parameters. The masters are results of operations on bfloat16 and on what
 * join_pair_bfloat16 gave: NaN is quiet and has a lower half of 0. */
static inline uint32_t split_pair_bfloat16(struct pair_of_floats masters, void *rests, ptrdiff_t i)
{
    const uint32_t first = bits_of(masters.first);
    const uint32_t second = bits_of(masters.second);
    ((pair_word *)rests)[i] = PAIR(first << 16, second << 16);
    return PAIR(first + 0x8000, second + 0x8000);
}

/* ---- float16 */

/* From bits that have the sign and the 10-bit significand where a float32 has them, and the
 * exponent between them; other bits are ignored. */
static inline float widen_float16(uint32_t bits)
{
    const uint32_t exponent = 0x1fu << 23, used = bits & 0x8fffe000;
    const float scaled = float_of(used) * 0x1p112f; /* moves the exponent's bias; exact */
    return float_of(bits_of(scaled) | ((used & exponent) == exponent ? INF_BITS : 0));
}

static inline float load_float16(uint16_t half)
{
    return widen_float16((uint32_t)(int16_t)half << 13);
}

/* Without its sign. */
static inline uint32_t magnitude_float16(float x)
{
    const uint32_t magnitude = bits_of(x) & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    /* One ulp of 0.5 is 2^-24, which is the unit of the subnormal numbers of float16. */
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t large = (int32_t)normal < 0x7c00 ? normal : 0x7c00;
    const uint32_t finite = select_bits((int32_t)magnitude < 113 << 23, subnormal, large);
    return select_bits(x != x, 0x7e00, finite);
}

/* Always to the nearest, ties to even. */
static inline uint16_t store_float16(float x, uint32_t dither, int stochastic)
{
    (void)dither, (void)stochastic;
    return (uint16_t)((bits_of(x) >> 16 & 0x8000) | magnitude_float16(x));
}

static inline uint16_t store_result_float16(float x, uint32_t dither, int stochastic)
{
    return store_float16(x, dither, stochastic);
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

static inline float first_float16(uint32_t pair)
{
    return widen_float16((uint32_t)((int32_t)FIRST(pair) >> 3));
}

static inline float second_float16(uint32_t pair)
{
    return widen_float16((uint32_t)((int32_t)pair >> 3));
}

static inline uint32_t pair_float16(struct pair_of_floats x, uint32_t first_dither,
                                    uint32_t second_dither, int stochastic, int has_short_nan)
{
    const uint32_t signs = (bits_of(x.first) >> 16 & 0x8000) | (bits_of(x.second) & 0x80000000);
    (void)first_dither, (void)second_dither, (void)stochastic, (void)has_short_nan;
    return signs | magnitude_float16(x.first) | magnitude_float16(x.second) << 16;
}

static inline struct pair_of_floats join_pair_float16(uint32_t params, const void *rests,
                                                      ptrdiff_t i)
{
    const UNALIGNED(float) *masters = (const UNALIGNED(float) *)rests + 2 * i;
    (void)params;
    return (struct pair_of_floats){masters[0], masters[1]};
}

static inline uint32_t split_pair_float16(struct pair_of_floats masters, void *rests, ptrdiff_t i)
{
    ((UNALIGNED(float) *)rests)[2 * i] = masters.first;
    ((UNALIGNED(float) *)rests)[2 * i + 1] = masters.second;
    return pair_float16(masters, 0, 0, 0, 0);
}

#endif
