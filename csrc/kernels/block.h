/* One block of a tensor stored in low precision, and how it is rounded.
 *
 * Stochastic rounding rounds up with the probability of the discarded fraction, so that updates
 * below one quantum accumulate. The dithers of a block start at a random number. They move on by an
 * irrational fraction of the interval from element to element, and by another from step to step
 * (scalars.c), which fills it evenly: the errors of neighbors and of successive steps cancel. Each
 * role takes the random number rotated by another amount and has fractions of its own, so that the
 * dithers of v, m and params differ. */
#ifndef FUSED_ADAMW_BLOCK_H
#define FUSED_ADAMW_BLOCK_H

#include "../internal.h"
#include "../rng.h"
#include "compilers.h"

/* Arrays that loops leave for the next begin at a cache line, so that no vector crosses one. */
#define CACHE_LINE 64

/* A kernel of two loops reads the gradients of one block and then pauses, and processors do not fetch
 * beyond where it stopped. So it asks for gradients this far ahead. Asking for arrays that it also
 * writes made it slower. */
#define PREFETCH_DISTANCE ((ptrdiff_t)2 * FUSED_ADAMW_BLOCK)

/* One block as float32, where it is stored in anything else. */
struct scratch {
    _Alignas(CACHE_LINE) float params[FUSED_ADAMW_BLOCK], grads[FUSED_ADAMW_BLOCK];
    float m[FUSED_ADAMW_BLOCK], v[FUSED_ADAMW_BLOCK];
    float buffers[FUSED_ADAMW_NUM_BUFFERS][FUSED_ADAMW_BLOCK];
};

/* What the first of two loops over a block leaves for the second: the new m, and the roots of v. */
struct new_moments {
    _Alignas(CACHE_LINE) float m[FUSED_ADAMW_BLOCK];
    float roots[FUSED_ADAMW_BLOCK];
};

/* How the elements of one block are rounded: the dither of its element k is first + multiples[k], and
 * half of the interval for all to round to the nearest. */
struct rounding {
    int stochastic;
    uint32_t first;
    const uint32_t *multiples;
};

/* The first 256 multiples of a number. */
#define MULTIPLES_4(x, k) (k) * (x), ((k) + 1) * (x), ((k) + 2) * (x), ((k) + 3) * (x)
#define MULTIPLES_16(x, k)                                                                         \
    MULTIPLES_4(x, k), MULTIPLES_4(x, (k) + 4), MULTIPLES_4(x, (k) + 8), MULTIPLES_4(x, (k) + 12)
#define MULTIPLES_64(x, k)                                                                         \
    MULTIPLES_16(x, k), MULTIPLES_16(x, (k) + 16), MULTIPLES_16(x, (k) + 32),                      \
        MULTIPLES_16(x, (k) + 48)
#define MULTIPLES(x)                                                                               \
    {                                                                                              \
        MULTIPLES_64(x, 0), MULTIPLES_64(x, 64), MULTIPLES_64(x, 128), MULTIPLES_64(x, 192)        \
    }

/* The strides of the dithers are the fractional parts of the square roots of 31, 41 and 43. Their
 * multiples by powers of 2 fill the interval evenly, too: those are what lies between the elements of
 * a column, where rows are shorter than a block. Multiples in a table take one load for each vector;
 * sums that are carried from one vector to the next take registers, and have to be set up. */
#define MULTIPLES_OF_STRIDES(factor)                                                               \
    {                                                                                              \
        [DITHER_V] = MULTIPLES(factor * 0x9159015au),                                              \
        [DITHER_M] = MULTIPLES(factor * 0x67332667u),                                              \
        [DITHER_PARAMS] = MULTIPLES(factor * 0x8eb44a87u),                                         \
    }
static const uint32_t DITHER_MULTIPLES[][FUSED_ADAMW_BLOCK] = MULTIPLES_OF_STRIDES(1);
/* The same of every second element. */
static const uint32_t DITHER_PAIR_MULTIPLES[][FUSED_ADAMW_BLOCK] = MULTIPLES_OF_STRIDES(2);
static const uint32_t NO_DITHER[FUSED_ADAMW_BLOCK];

/* How many elements from `start` to `end` are in the block that `start` is in. Blocks are those of
 * the whole parameter, of which the tensor can be a part. */
static inline ptrdiff_t block_size(const fused_adamw_tensor *tensor, ptrdiff_t start, ptrdiff_t end)
{
    const int64_t within = (tensor->element_offset + start) % FUSED_ADAMW_BLOCK;
    const ptrdiff_t left = FUSED_ADAMW_BLOCK - (ptrdiff_t)within;
    return end - start < left ? end - start : left;
}

/* Whether a tensor has an optional buffer that is stored like v. */
static inline int has_like_v(const fused_adamw_tensor *tensor, int buffer)
{
    return fused_adamw_optional_buffers[buffer].like_v && tensor->buffers[buffer] != NULL;
}

static inline int has_buffers(const fused_adamw_tensor *tensor)
{
    for (int k = 0; k < FUSED_ADAMW_NUM_BUFFERS; k++)
        if (tensor->buffers[k])
            return 1;
    return 0;
}

/* That of v (and what is stored like it), m or params, from element `begin` to the end of its block. */
static inline struct rounding rounding_of(int role, const fused_adamw_tensor *tensor,
                                          ptrdiff_t begin)
{
    static const int TURNS[] = {[DITHER_V] = 0, [DITHER_M] = 16, [DITHER_PARAMS] = 8};
    const uint64_t index = (uint64_t)(tensor->element_offset + begin);
    const uint64_t block = index / FUSED_ADAMW_BLOCK;
    const uint32_t within = (uint32_t)(index % FUSED_ADAMW_BLOCK);
    const uint32_t key = random_bits(tensor->rng_key, (uint32_t)(block >> 32));
    const uint32_t random = rotate_left(random_bits(key, (uint32_t)block), TURNS[role]);
    const uint32_t *multiples = DITHER_MULTIPLES[role];
    if (!tensor->scalars->stochastic)
        return (struct rounding){0, DITHER_TO_NEAREST, NO_DITHER};
    return (struct rounding){1, random + tensor->scalars->dither[role] + multiples[within],
                             multiples};
}

/* Asks for the gradients [begin, begin + n), if `end` is not before their end. */
static inline void prefetch_grads(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t n,
                                  ptrdiff_t end)
{
    const int type = tensor->has_wide_grads ? FUSED_ADAMW_FLOAT32 : tensor->element_type;
    const ptrdiff_t size = (ptrdiff_t)fused_adamw_element_types[type].size;
    const char *grads = (const char *)tensor->grads;
    if (end - begin >= n)
        for (ptrdiff_t at = begin * size; at < (begin + n) * size; at += CACHE_LINE)
            PREFETCH(grads + at);
}

struct roundings {
    struct rounding v, m;
};

static inline struct roundings roundings_of_moments(const fused_adamw_tensor *tensor,
                                                    ptrdiff_t begin)
{
    return (struct roundings){rounding_of(DITHER_V, tensor, begin),
                              rounding_of(DITHER_M, tensor, begin)};
}

#endif
