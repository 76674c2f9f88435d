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

/* The bits of infinity. Finite values that are 0 or more have smaller ones, in the same order. */
#define INF_BITS 0x7f800000u

#endif
