/* One block of a tensor stored in low precision, and how it is rounded.
 *
 * Stochastic rounding rounds up with the probability of the discarded fraction, so that updates
 * below one quantum accumulate. An element's dither comes from its index and moves on from step to
 * step by an irrational fraction of the interval (scalars.c), which fills it evenly: the errors of
 * successive steps cancel. The element has one random number; each role takes it rotated by another
 * amount, so that the dithers of v, m and params differ. */
#ifndef FUSED_ADAMW_BLOCK_H
#define FUSED_ADAMW_BLOCK_H

#include "../internal.h"
#include "../rng.h"

/* One block as float32, where it is stored in anything else; and its random numbers, all 0 to round
 * to the nearest. */
struct scratch {
    float params[FUSED_ADAMW_BLOCK], grads[FUSED_ADAMW_BLOCK];
    float m[FUSED_ADAMW_BLOCK], v[FUSED_ADAMW_BLOCK];
    float buffers[FUSED_ADAMW_NUM_BUFFERS][FUSED_ADAMW_BLOCK];
    uint32_t random[FUSED_ADAMW_BLOCK];
};

/* How the elements of one block are rounded. */
struct rounding {
    const uint32_t *random; /* one per element; NULL: to the nearest */
    int rotation;
    uint32_t dither; /* of this step */
};

static inline uint32_t dither_at(struct rounding rounding, ptrdiff_t i)
{
    return rotate_left(rounding.random[i], rounding.rotation) + rounding.dither;
}

static inline int rotation_of(int role)
{
    return role == DITHER_V ? 0 : role == DITHER_M ? 16 : 8;
}

/* Whether a tensor has an optional buffer that is stored like v. */
static inline int has_like_v(const fused_adamw_tensor *tensor, int buffer)
{
    return fused_adamw_optional_buffers[buffer].like_v && tensor->buffers[buffer] != NULL;
}

/* That of v (and what is stored like it), m or params. */
static inline struct rounding rounding_of(int role, const fused_adamw_scalars *scalars,
                                          const uint32_t *random)
{
    return (struct rounding){scalars->stochastic ? random : NULL, rotation_of(role),
                             scalars->dither[role]};
}

#endif
