/* The limit: what the memory allows a step that reads four arrays and writes three of them. The
 * arithmetic is next to nothing, and with zero = 0 it leaves the arrays as they were; the compiler
 * does not know that. */
#include <stddef.h>

#define LIMIT(name, real)                                                                        \
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

LIMIT(limit_float32, float)
LIMIT(limit_float64, double)
