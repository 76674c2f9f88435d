/* Derives the scalars of a step from hyper-parameters; the keys and the dither of stochastic
 * rounding. */
#include "bias_correction.h"
#include "float_env.h"
#include "internal.h"
#include "rng.h"

#include <math.h>

/* The nearest value of the compute type. The float is volatile because GCC 12 at -O3 vectorizes a
 * select between a value and its rounding, and then always takes the value. */
static double rounded(int compute, double value)
{
    if (compute == FUSED_ADAMW_FLOAT32) {
        const volatile float narrow = (float)value;
        return narrow;
    }
    return value;
}

/* A schedule that ends at 0 may miss it by rounding: torch.optim.lr_scheduler.LinearLR from 1e-3
 * ends at up to -5e-20. PyTorch accepts such rates, and the formula is valid for them. A rate that
 * is negative by mistake has a far larger magnitude. */
static int is_usable_lr(double lr)
{
    return lr >= FUSED_ADAMW_LEAST_LR && isfinite(lr);
}

static int is_finite_and_not_negative(double value)
{
    return value >= 0 && isfinite(value);
}

static int is_below_1_and_not_negative(double value)
{
    return value >= 0 && value < 1;
}

static int find_invalid(const fused_adamw_hyperparams *h)
{
    if (!is_usable_lr(h->lr))
        return FUSED_ADAMW_BAD_LR;
    if (!is_finite_and_not_negative(h->weight_decay))
        return FUSED_ADAMW_BAD_WEIGHT_DECAY;
    if (!is_below_1_and_not_negative(h->beta1))
        return FUSED_ADAMW_BAD_BETA1;
    if (!is_below_1_and_not_negative(h->beta2))
        return FUSED_ADAMW_BAD_BETA2;
    if (!is_finite_and_not_negative(h->eps))
        return FUSED_ADAMW_BAD_EPS;
    for (int k = 0; k < FUSED_ADAMW_NUM_BUFFERS; k++)
        if (!is_below_1_and_not_negative(h->buffer_decays[k]))
            return FUSED_ADAMW_BAD_BUFFER_DECAY + k;
    return FUSED_ADAMW_OK;
}

static int find_not_representable(const fused_adamw_scalars *s)
{
    if (s->b1 == 1)
        return FUSED_ADAMW_BAD_BETA1 | FUSED_ADAMW_NOT_REPRESENTABLE;
    if (s->b2 == 1)
        return FUSED_ADAMW_BAD_BETA2 | FUSED_ADAMW_NOT_REPRESENTABLE;
    if (!isfinite(s->step))
        return FUSED_ADAMW_BAD_LR | FUSED_ADAMW_NOT_REPRESENTABLE;
    if (!isfinite(s->decay))
        return FUSED_ADAMW_BAD_WEIGHT_DECAY | FUSED_ADAMW_NOT_REPRESENTABLE;
    if (!isfinite(s->eps))
        return FUSED_ADAMW_BAD_EPS | FUSED_ADAMW_NOT_REPRESENTABLE;
    for (int k = 0; k < FUSED_ADAMW_NUM_BUFFERS; k++)
        if (s->buffer_decays[k] == 1)
            return (FUSED_ADAMW_BAD_BUFFER_DECAY + k) | FUSED_ADAMW_NOT_REPRESENTABLE;
    return FUSED_ADAMW_OK;
}

/* The betas are rounded once. Everything else follows in double from the rounded ones, each
 * expression evaluated as Python evaluates it, and is then rounded once. If a beta and its
 * complement were rounded separately, they would not add up to 1, an error that grows with t. */
static int derive(const fused_adamw_hyperparams *h, int element_type, int64_t t,
                  fused_adamw_scalars *scalars)
{
    const int compute = fused_adamw_element_types[element_type].compute;
    const int status = find_invalid(h);
    if (status != FUSED_ADAMW_OK)
        return status; /* before a number is converted that float cannot represent */
    const double b1 = rounded(compute, h->beta1), b2 = rounded(compute, h->beta2);
    *scalars = (fused_adamw_scalars){
        .b1 = b1,
        .b2 = b2,
        .c1 = rounded(compute, 1 - b1),
        .c2 = rounded(compute, 1 - b2),
        .step = rounded(compute, h->lr / bias_correction(b1, t)),
        .rsqrt_bc2 = rounded(compute, 1 / sqrt(bias_correction(b2, t))),
        .decay = rounded(compute, h->lr * h->weight_decay),
        .eps = rounded(compute, h->eps),
        .scale = 1,
        .t = t,
        .compute = compute,
    };
    for (int k = 0; k < FUSED_ADAMW_NUM_BUFFERS; k++) {
        const double d = scalars->buffer_decays[k] = rounded(compute, h->buffer_decays[k]);
        scalars->buffer_complements[k] = rounded(compute, 1 - d);
    }
    return find_not_representable(scalars);
}

int fused_adamw_derive_scalars(const fused_adamw_hyperparams *hyperparams, int element_type,
                               int64_t t, fused_adamw_scalars *scalars)
{
    const float_control before = use_default_float_control();
    const int status = derive(hyperparams, element_type, t, scalars);
    restore_float_control(before);
    return status;
}

/* Irrational fractions of 2^32, by which the dithers move on in each step. Their multiples fill the
 * interval evenly (Weyl 1916), so that the rounding errors of successive steps cancel. They are
 * powers of the golden ratio (for m: 1/phi) and of the plastic number (for v and params: 1/rho and
 * 1/rho^2 of Roberts 2018), so that the three are independent of one another. */
static const uint32_t WEYL[NUM_DITHERS] = {
    [DITHER_V] = 0xc13fa9a9, [DITHER_M] = 0x9e3779b9, [DITHER_PARAMS] = 0x91e10da5};

int fused_adamw_finish_scalars(fused_adamw_scalars *scalars, double grad_scale, double factor,
                               int stochastic)
{
    const float_control before = use_default_float_control();
    const int is_finite = isfinite(grad_scale);
    const int usable = isfinite(rounded(scalars->compute, pinned(grad_scale)));
    const double scale = rounded(scalars->compute, pinned(grad_scale) * pinned(factor));
    /* Without the bits that NaN has from the gradients of a norm: 16 bits may not hold them. */
    scalars->scale = isnan(scale) ? (double)NAN : scale;
    restore_float_control(before);
    if (!is_finite)
        return FUSED_ADAMW_BAD_GRAD_SCALE;
    if (!usable)
        return FUSED_ADAMW_BAD_GRAD_SCALE | FUSED_ADAMW_NOT_REPRESENTABLE;
    scalars->stochastic = stochastic;
    for (int role = 0; role < NUM_DITHERS; role++)
        scalars->dither[role] = (uint32_t)scalars->t * WEYL[role]; /* not read unless stochastic */
    return FUSED_ADAMW_OK;
}

uint32_t fused_adamw_rng_key(uint32_t seed, ptrdiff_t param_index)
{
    return random_bits(random_bits(seed, 0), (uint32_t)param_index);
}

double fused_adamw_norm(const double *partial_sums, ptrdiff_t count, double grad_scale)
{
    const float_control before = use_default_float_control();
    double sum = 0;
    for (ptrdiff_t i = 0; i < count; i++)
        sum += partial_sums[i];
    const double norm = pinned(pinned(fabs(grad_scale)) * sqrt(sum));
    restore_float_control(before);
    return norm;
}

double fused_adamw_clip_factor(double norm, double max_norm)
{
    const float_control before = use_default_float_control();
    const double factor = pinned(pinned(max_norm) / (pinned(norm) + 1e-6));
    const int clips = pinned(max_norm) != 0 && !(factor > 1);
    restore_float_control(before);
    return clips ? factor : 1;
}
