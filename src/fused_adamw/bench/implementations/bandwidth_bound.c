/* The memory-bandwidth bound of a step: the same loads (four arrays) and stores (three of them) and
 * almost no arithmetic. With zero = 0 the arrays keep their values, which the compiler cannot know. */
#include <stddef.h>

#define BANDWIDTH_BOUND(name, real)                                                              \
    void name(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,      \
              ptrdiff_t size, int num_threads, real zero)                                        \
    {                                                                                            \
        _Pragma("omp parallel for simd num_threads(num_threads) schedule(static)")               \
        for (ptrdiff_t i = 0; i < size; i++) {                                                   \
            const real change = zero * g[i];                                                     \
            p[i] += change;                                                                      \
            m[i] += change;                                                                      \
            v[i] += change;                                                                      \
        }                                                                                        \
    }

BANDWIDTH_BOUND(bandwidth_bound_float32, float)
BANDWIDTH_BOUND(bandwidth_bound_float64, double)
