/* Numbers in fewer bits: how single values are read and written. Plain functions, which compilers
 * inline into the loops of every instruction set; integers and exact float operations alone. */
#ifndef FUSED_ADAMW_FORMATS_H
#define FUSED_ADAMW_FORMATS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The bits of infinity: those of what is finite, and 0 or more, are less. */
#define INFINITE 0x7f800000u

/* 32 bits that look random, for element `index` of a tensor with this key (lowbias32 of C. Wellons'
 * hash prospector). */
static inline uint32_t random_bits(uint32_t key, uint32_t index)
{
    uint32_t x = key + index;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline uint32_t rotated(uint32_t bits, int by)
{
    return bits << by | bits >> (-by & 31);
}

/* ---- bfloat16: the upper half of a float32 */

static inline float from_bfloat16(uint16_t code)
{
    return float_of((uint32_t)code << 16);
}

/* Up where the 16 bits that go, plus those of `dither`, carry. */
static inline uint16_t to_bfloat16(float x, uint32_t dither)
{
    const uint32_t bits = bits_of(x), nan = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > INFINITE ? nan : (bits + (dither >> 16)) >> 16);
}

/* The dither that rounds to the nearest, ties to even. */
static inline uint32_t dither_to_nearest(float x)
{
    return (0x7fff + (bits_of(x) >> 16 & 1)) << 16;
}

/* ---- float16 */

static inline float from_float16(uint16_t code)
{
    const uint32_t magnitude = (code & 0x7fffu) << 13, sign = (code & 0x8000u) << 16;
    const float scaled = float_of(magnitude) * 0x1p112f; /* moves the bias of the exponent; exact */
    const uint32_t bits = magnitude < 0x7c00u << 13 ? bits_of(scaled) : magnitude | INFINITE;
    return float_of(sign | bits);
}

/* To the nearest, ties to even. */
static inline uint16_t to_float16(float x)
{
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f); /* 2^-24 each */
    const uint32_t finite = magnitude < 113u << 23 ? subnormal : normal < 0x7c00 ? normal : 0x7c00;
    const uint32_t code = magnitude > INFINITE ? 0x7e00 : finite;
    return (uint16_t)((bits >> 16 & 0x8000) | code);
}

/* ---- 8 bits: kernels/low_precision.inc says how blocks are encoded */

/* The largest shift of 8-bit codes: 8 of them an octave. */
#define COARSEST 20
/* The bits of 2^-100: where all m / s of a block are less, they become 0. 127 / 2^-100 is finite. */
#define SMALLEST 0x0d800000

/* The v_scale of a block whose s above 0 have bits from `low` to `high`, which is 0 where there are
 * none. */
static inline uint32_t span_of(uint32_t low, uint32_t high)
{
    uint32_t shift = 5, top = (high + 31) >> 5; /* to which `high` may be rounded up */
    if (high == 0)
        return COARSEST;
    while (shift < COARSEST && top - (low >> shift) > 253) {
        shift++;
        top = (high + (1u << shift) - 1) >> shift;
    }
    const uint32_t lowest = top < 253 ? 0 : top - 253;
    const uint32_t base = low >> shift > lowest ? low >> shift : lowest;
    return base << shift | shift;
}

#endif
