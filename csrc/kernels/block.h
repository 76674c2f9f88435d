/* One block of a tensor stored in low precision, and how it is rounded.
 *
 * Stochastic rounding rounds up with the probability of the discarded fraction, so that updates
 * below one quantum accumulate. The dithers of a block start at a random number. They move on by an
 * irrational fraction of the interval from element to element, and by another from step to step
 * (scalars.c), which fills it evenly: the errors of neighbours and of successive steps cancel. Each
 * role takes the random number rotated by another amount and has fractions of its own, so that the
 * dithers of v, m and params differ. */
#ifndef FUSED_ADAMW_BLOCK_H
#define FUSED_ADAMW_BLOCK_H

#include "../internal.h"
#include "../rng.h"

/* One block as float32, where it is stored in anything else. */
struct scratch {
    float params[FUSED_ADAMW_BLOCK], grads[FUSED_ADAMW_BLOCK];
    float m[FUSED_ADAMW_BLOCK], v[FUSED_ADAMW_BLOCK];
    float buffers[FUSED_ADAMW_NUM_BUFFERS][FUSED_ADAMW_BLOCK];
};

/* How the elements of one block are rounded: the dither of its element k is first + k * stride, and
 * half of the interval for all to round to the nearest. */
struct rounding {
    int stochastic;
    uint32_t first, stride;
};

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

/* That of v (and what is stored like it), m or params, from element `begin` to the end of its block. */
static inline struct rounding rounding_of(int role, const fused_adamw_tensor *tensor,
                                          ptrdiff_t begin)
{
    /* The strides are the fractional parts of the square roots of 31, 41 and 43. Their multiples by
     * powers of 2 fill the interval evenly, too: those are what lies between the elements of a
     * column, where rows are shorter than a block. */
    static const struct {
        int turn;
        uint32_t stride;
    } ROLES[] = {[DITHER_V] = {0, 0x9159015a},
                 [DITHER_M] = {16, 0x67332667},
                 [DITHER_PARAMS] = {8, 0x8eb44a87}};
    const uint64_t index = (uint64_t)(tensor->element_offset + begin);
    const uint64_t block = index / FUSED_ADAMW_BLOCK;
    const uint32_t stride = ROLES[role].stride, within = (uint32_t)(index % FUSED_ADAMW_BLOCK);
    const uint32_t key = random_bits(tensor->rng_key, (uint32_t)(block >> 32));
    const uint32_t random = rotate_left(random_bits(key, (uint32_t)block), ROLES[role].turn);
    if (!tensor->scalars->stochastic)
        return (struct rounding){0, DITHER_TO_NEAREST, 0};
    return (struct rounding){1, random + tensor->scalars->dither[role] + within * stride, stride};
}

#endif
