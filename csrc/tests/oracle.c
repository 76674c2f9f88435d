#include "oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int is_named(const char *name, const char *expected)
{
    return name != NULL && strcmp(name, expected) == 0;
}

static const char *element_name(const problem *p)
{
    return fused_adamw_element_types[p->element_type].name;
}

const char *oracle_grad_type(const problem *p)
{
    return p->wide_grads ? "float32" : element_name(p);
}

static size_t storage_size(const char *type)
{
    static const struct {
        const char *name;
        size_t size;
    } SIZES[] = {{"float32", 4}, {"float64", 8}, {"bfloat16", 2}, {"float16", 2},
                 {"int8", 1},    {"uint8", 1},   {"uint32", 4},  {"int16", 2}};
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++)
        if (is_named(type, SIZES[i].name))
            return SIZES[i].size;
    abort();
}

int oracle_layout(problem *p)
{
    const fused_adamw_element_type *element = &fused_adamw_element_types[p->element_type];
    const fused_adamw_state_format *state = &fused_adamw_state_formats[p->state_format];
    const size_t size = (size_t)p->size,
                 blocks = (size_t)((p->size + state->block - 1) / state->block);
    const int is_double = is_named(element->name, "float64");
    if (is_double != is_named(state->name, "float64") ||
        (is_named(state->name, "float16") && !is_named(element->name, "float16")) || (p->amsgrad && !state->amsgrad) ||
        ((p->master || p->wide_grads) && element->compute == p->element_type))
        return 0;
    memset(p->unit, 0, sizeof p->unit);
    p->unit[PARAMS] = (size_t)element->size;
    p->unit[GRADS] = storage_size(oracle_grad_type(p));
    p->unit[M] = storage_size(state->m_type);
    p->unit[V] = storage_size(state->v_type);
    p->unit[V_MAX] = p->amsgrad ? p->unit[V] : 0;
    p->unit[M_SCALE] = state->m_scale_type ? storage_size(state->m_scale_type) : 0;
    p->unit[V_SCALE] = state->v_scale_type ? storage_size(state->v_scale_type) : 0;
    p->unit[MASTER] = p->master ? storage_size(element->master_type) : 0;
    p->unit[EMA] = p->ema ? (is_double ? sizeof(double) : sizeof(float)) : 0;
    for (int role = 0; role < NUM_ROLES; role++)
        p->num_bytes[role] = p->unit[role] * (role == M_SCALE || role == V_SCALE ? blocks : size);
    return 1;
}

/* ---- the step */

typedef struct {
    const fused_adamw_hyperparams *h;
    double step, rsqrt_bc2, scale; /* not yet rounded */
} oracle_scalars;

#define DEFINE_STEP(name, real, root)                                                              \
    static void name(ptrdiff_t i, const oracle_scalars *s, real *p, real g, real *m, real *v,      \
                     real *v_max, real *ema)                                                       \
    {                                                                                              \
        const real b1 = (real)s->h->beta1, b2 = (real)s->h->beta2, d = (real)s->h->buffer_decays[FUSED_ADAMW_EMA]; \
        const real c1 = (real)(1 - (double)b1), c2 = (real)(1 - (double)b2);                       \
        const real decay = (real)(s->h->lr * s->h->weight_decay), eps = (real)s->h->eps;           \
        const real scaled = (real)s->scale * g, square = scaled * scaled;                          \
        const real decayed_m = b1 * m[i], added_m = c1 * scaled;                                   \
        const real decayed_v = b2 * v[i], added_v = c2 * square;                                   \
        m[i] = decayed_m + added_m;                                                                \
        v[i] = decayed_v + added_v;                                                                \
        if (v_max && !isnan(v_max[i]) && !(v_max[i] > v[i]))                                       \
            v_max[i] = v[i];                                                                       \
        const real corrected = root(v_max ? v_max[i] : v[i]) * (real)s->rsqrt_bc2;                 \
        const real ratio = m[i] / (corrected + eps), change = (real)s->step * ratio;               \
        const real decayed = decay * p[i];                                                         \
        p[i] = p[i] - (decayed + change);                                                          \
        if (ema) {                                                                                 \
            const real kept = d * ema[i], added = (real)(1 - (double)d) * p[i];                    \
            ema[i] = kept + added;                                                                 \
        }                                                                                          \
    }
DEFINE_STEP(step_float, float, sqrtf)
DEFINE_STEP(step_double, double, sqrt)

static float *new_floats(ptrdiff_t n)
{
    float *floats = calloc((size_t)(n > 0 ? n : 1), sizeof *floats);
    return floats ? floats : (abort(), NULL);
}

static void step_in_float(problem *p, const oracle_scalars *s, int64_t t, uint32_t rng_key,
                          ptrdiff_t element_offset)
{
    const char *type = element_name(p);
    float *m = new_floats(p->size), *v = new_floats(p->size), *params = new_floats(p->size);
    float *v_max = p->amsgrad ? new_floats(p->size) : NULL;
    oracle_decode(p, m, v, v_max);
    for (ptrdiff_t i = 0; i < p->size; i++) {
        params[i] =
            p->master ? oracle_load_master(p, i) : oracle_load(type, p->arrays[PARAMS], i);
        step_float(i, s, params, oracle_load(oracle_grad_type(p), p->arrays[GRADS], i), m, v,
                   v_max, p->arrays[EMA]);
        if (p->master) {
            oracle_store_master(p, i, params[i]);
            continue;
        }
        const uint64_t index = (uint64_t)(element_offset + i);
        const uint32_t dither = oracle_dither(2, rng_key, index, t) / 65536;
        oracle_store(type, p->arrays[PARAMS], i, params[i],
                     p->stochastic ? (int32_t)dither : -1);
    }
    oracle_encode(p, m, v, v_max, rng_key, element_offset, t);
    free(m), free(v), free(params), free(v_max);
}

void oracle_step(problem *p, const fused_adamw_hyperparams *h, int64_t t, double scale,
                 uint32_t rng_key, ptrdiff_t element_offset)
{
    void *const *a = p->arrays;
    const int is_double = is_named(element_name(p), "float64");
    const double b1 = is_double ? h->beta1 : (float)h->beta1;
    const double b2 = is_double ? h->beta2 : (float)h->beta2;
    const double correction1 = oracle_bias_correction(b1, t);
    const double correction2 = oracle_bias_correction(b2, t);
    const oracle_scalars s = {h, h->lr / correction1, 1 / sqrt(correction2), scale};
    if (!is_double) {
        step_in_float(p, &s, t, rng_key, element_offset);
        return;
    }
    for (ptrdiff_t i = 0; i < p->size; i++)
        step_double(i, &s, a[PARAMS], ((double *)a[GRADS])[i], a[M], a[V], a[V_MAX], a[EMA]);
}

/* ---- the norm */

double oracle_grad(const problem *p, ptrdiff_t i)
{
    const char *type = oracle_grad_type(p);
    return is_named(type, "float64") ? ((double *)p->arrays[GRADS])[i]
                                     : oracle_load(type, p->arrays[GRADS], i);
}

/* 16 sums of every 16th element, added in pairs 8, 4, 2 and 1 apart. */
static double sum_of(const problem *p, ptrdiff_t begin, ptrdiff_t end)
{
    double lanes[16] = {0};
    for (ptrdiff_t i = begin; i < end; i++)
        lanes[(i - begin) % 16] += oracle_grad(p, i) * oracle_grad(p, i);
    for (int width = 8; width > 0; width /= 2)
        for (int k = 0; k < width; k++)
            lanes[k] += lanes[k + width];
    return lanes[0];
}

/* A chunk is 16384 elements: summed as a whole where its element type is the compute type, else 256
 * at a time. */
void oracle_sums(const problem *p, double *partial_sums)
{
    const int is_stored = fused_adamw_element_types[p->element_type].compute != p->element_type;
    const ptrdiff_t run = is_stored ? 256 : 16384;
    for (ptrdiff_t begin = 0; begin < p->size; begin += run) {
        const double sum = sum_of(p, begin, p->size - begin < run ? p->size : begin + run);
        double *partial_sum = &partial_sums[begin / 16384];
        *partial_sum = begin % 16384 == 0 ? sum : *partial_sum + sum;
    }
}
