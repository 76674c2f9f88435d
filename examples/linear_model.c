// cc -O3 -ffp-contract=off -fopenmp -Icsrc -o linear_model examples/linear_model.c csrc/*.c -lm
//
// builds this program from the root of the repository. It fits y = 3 x - 2 with the C library
// alone.
#include "fused_adamw.h"

#include <stdio.h>

enum { NUM_POINTS = 64, NUM_STEPS = 500 };

/* The mean squared error of w[0] x + w[1], and its gradient. */
static float loss_and_gradient(const float w[2], float gradient[2])
{
    float loss = 0;
    gradient[0] = gradient[1] = 0;
    for (int i = 0; i < NUM_POINTS; i++) {
        const float x = (float)i / NUM_POINTS, error = w[0] * x + w[1] - (3 * x - 2);
        loss += error * error / NUM_POINTS;
        gradient[0] += 2 * error * x / NUM_POINTS;
        gradient[1] += 2 * error / NUM_POINTS;
    }
    return loss;
}

int main(void)
{
    const fused_adamw_hyperparams hyperparams = {
        .lr = 0.05, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0};
    float w[2] = {0, 0}, gradient[2], m[2] = {0, 0}, v[2] = {0, 0};
    fused_adamw_scalars scalars;
    const fused_adamw_tensor tensor = {.params = w,
                                       .grads = gradient,
                                       .m = m,
                                       .v = v,
                                       .size = 2,
                                       .element_type = FUSED_ADAMW_FLOAT32,
                                       .state_format = FUSED_ADAMW_STATE_FLOAT32,
                                       .scalars = &scalars};
    const fused_adamw_isa *isa = fused_adamw_find_isa(NULL);
    fused_adamw_init();
    for (int t = 1; t <= NUM_STEPS; t++) {
        loss_and_gradient(w, gradient);
        if (fused_adamw_derive_scalars(&hyperparams, tensor.element_type, t, &scalars) != 0 ||
            fused_adamw_finish_scalars(&scalars, 1, 1, 0) != 0)
            return 1;
        fused_adamw_step(isa, &tensor, 1, 1);
    }
    printf("y = %.3f x %+.3f, loss %.2g\n", w[0], w[1], loss_and_gradient(w, gradient));
    return 0;
}
