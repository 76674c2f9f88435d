/* The bits of a float32. Plain functions, which compilers inline into the loops of every
 * instruction set. */
#ifndef FUSED_ADAMW_FLOAT_BITS_H
#define FUSED_ADAMW_FLOAT_BITS_H

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

/* Selects in 32 bits: of a plain ?: that is then converted to 16, GCC converts both sides. */
static inline uint32_t select_bits(int condition, uint32_t yes, uint32_t no)
{
    return bits_of(condition ? float_of(yes) : float_of(no));
}

/* The bits of infinity. Finite values that are 0 or more have smaller ones, in the same order. */
#define INF_BITS 0x7f800000u

#endif
