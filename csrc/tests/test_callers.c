/* Several threads call the library at the same time, each for its part of the same tensors, as a
 * program does that steps one part while another still arrives. For ThreadSanitizer, and for the
 * bits. */
#include "../threads.h"
#include "test_kernels.h"

#include <math.h>
#include <pthread.h>

enum { NUM_CALLERS = 4, SIZE = 5 * 256 + 7, STEP = 3, KEY = 77 };

static const fused_adamw_hyperparams HYPERPARAMS = {1e-2, 0.9,   0.999,
                                                    1e-8, 0.1, {[FUSED_ADAMW_EMA] = 0.99}};

/* What one thread does: a step of its part, and the norm of all gradients, which others read too;
 * from its first region on, it may use two threads. */
typedef struct {
    const fused_adamw_tensor *whole;
    fused_adamw_tensor part;
    double sum;
    int status;
} caller;

static void *call(void *argument)
{
    caller *own = argument;
    fused_adamw_scalars scalars;
    const fused_adamw_isa *isa = fused_adamw_find_isa(NULL);
    own->status = fused_adamw_derive_scalars(&HYPERPARAMS, own->whole->element_type, STEP, &scalars);
    own->status |= fused_adamw_finish_scalars(&scalars, 1, 1, 1);
    own->status |= fused_adamw_team_size(2) != 2;
    own->part.scalars = &scalars;
    own->part.rng_key = fused_adamw_rng_key(KEY, 0);
    fused_adamw_step(isa, &own->part, 1, 2);
    fused_adamw_sum_squares(isa, own->whole, 1, 2, &own->sum);
    return NULL;
}

static void test_problem(problem *p)
{
    pthread_t threads[NUM_CALLERS];
    caller callers[NUM_CALLERS];
    fused_adamw_tensor parts[NUM_CALLERS];
    double sum = 0;
    problem_fill(p);
    problem expected = problem_copy(p);
    oracle_step(&expected, &HYPERPARAMS, STEP, 1, fused_adamw_rng_key(KEY, 0), 0);
    oracle_sums(p, &sum);
    const fused_adamw_tensor whole = tensor_of(p, p->arrays);
    const int num_parts = (int)divide_tensor(p, &whole, NUM_CALLERS, parts);
    for (int i = 0; i < num_parts; i++) {
        callers[i] = (caller){&whole, parts[i], 0, 0};
        if (pthread_create(&threads[i], NULL, call, &callers[i]) != 0) {
            check(0, "a thread that calls the library");
            return;
        }
    }
    for (int i = 0; i < num_parts; i++) {
        pthread_join(threads[i], NULL);
        check(callers[i].status == 0 &&
                  (callers[i].sum == sum || (isnan(callers[i].sum) && isnan(sum))),
              "caller %d of %d", i, num_parts);
    }
    for (int role = 0; role < NUM_ROLES; role++)
        check(same_bits(&expected, role, p->arrays[role]),
              "%d threads that call: element type %d, state format %d, array %d", num_parts,
              p->element_type, p->state_format, role);
    problem_free(p);
    problem_free(&expected);
}

void test_callers(void)
{
    for (int type = 0; type < FUSED_ADAMW_NUM_ELEMENT_TYPES; type++)
        for (int state = 0; state < FUSED_ADAMW_NUM_STATE_FORMATS; state++)
            for (int amsgrad = 0; amsgrad < 2; amsgrad++) {
                problem p = {.element_type = type,
                             .state_format = state,
                             .amsgrad = amsgrad,
                             .ema = 1,
                             .stochastic = 1,
                             .size = SIZE};
                if (oracle_layout(&p))
                    test_problem(&p);
            }
}
