/* Random numbers by counting: a hash of an index, so that they depend neither on threads nor on how a
 * tensor is divided. */
#ifndef FUSED_ADAMW_RNG_H
#define FUSED_ADAMW_RNG_H

#include <stdint.h>

/* 32 random bits for `index` under this key: lowbias32, from C. Wellons' hash prospector. */
static inline uint32_t random_bits(uint32_t key, uint32_t index)
{
    uint32_t x = key + index;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline uint32_t rotate_left(uint32_t bits, int by)
{
    return bits << by | bits >> (-by & 31);
}

#endif
