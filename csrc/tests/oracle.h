/* The step, the norm and the formats of moments once more, written from their descriptions: one
 * element after the other, with division and ldexp in place of shifts and masks. The library
 * has to give the same bits. */
#ifndef ORACLE_H
#define ORACLE_H

#include "../fused_adamw.h"

enum { PARAMS, GRADS, M, V, V_MAX, M_SCALE, V_SCALE, MASTER, EMA, NUM_ROLES };

/* The arrays of one tensor, and what is done with them. */
typedef struct {
    int element_type, state_format;
    int amsgrad, master, ema, stochastic, wide_grads;
    ptrdiff_t size;
    void *arrays[NUM_ROLES];     /* NULL where there is none */
    size_t num_bytes[NUM_ROLES]; /* 0 where there is none */
    size_t unit[NUM_ROLES];      /* bytes of an item of the array */
} problem;

/* Items of each role, by the rows of the library's tables. Returns 0 if there is no such problem.
 */
int oracle_layout(problem *p);

/* One step in place. `scale` is that of the gradient. */
void oracle_step(problem *p, const fused_adamw_hyperparams *h, int64_t t, double scale,
                 uint32_t rng_key, ptrdiff_t element_offset);

double oracle_bias_correction(double beta, int64_t t);

void oracle_sums(const problem *p, double *partial_sums);

/* The moments of a problem as float32, and back: stochastically, or to the nearest, as the problem
 * says. */
void oracle_decode(const problem *p, float *m, float *v, float *v_max);
void oracle_encode(problem *p, const float *m, const float *v, const float *v_max, uint32_t key,
                   ptrdiff_t offset, int64_t t);

/* A master weight from its two parts, and back. */
float oracle_load_master(const problem *p, ptrdiff_t i);
void oracle_store_master(problem *p, ptrdiff_t i, float x);

/* What the gradients are stored in, and one of them. */
const char *oracle_grad_type(const problem *p);
double oracle_grad(const problem *p, ptrdiff_t i);

/* One value of a storage type. `dither`: 16 bits, or below 0 to round to the nearest. */
float oracle_load(const char *type, const void *array, ptrdiff_t i);
void oracle_store(const char *type, void *array, ptrdiff_t i, float x, int32_t dither);

/* 32 bits of dither for v (0), m (1) or params (2). */
uint32_t oracle_dither(int role, uint32_t key, uint64_t index, int64_t t);
uint32_t oracle_hash(uint32_t key, uint64_t index);

#endif
