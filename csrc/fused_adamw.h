/* The C API of fused-adamw: one AdamW step over any number of tensors in a single pass, and the
 * global norm of their gradients. The library is complete without Python; examples/linear_model.c
 * uses it.
 *
 * The functions that take hyper-parameters check them and return a status. Nothing else validates:
 * the caller guarantees every pointer and length. No function prints, allocates memory, or writes
 * outside the buffers that it is given. All of them compute in the default floating-point
 * environment, whatever that of the caller is: round to the nearest, keep subnormal numbers, no
 * traps. On processors other than x86-64, and x86 with SSE2 and ARM64 with GCC or Clang, only the
 * rounding mode is set. */
#ifndef FUSED_ADAMW_H
#define FUSED_ADAMW_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FUSED_ADAMW_API __attribute__((visibility("default")))
#else
#define FUSED_ADAMW_API
#endif

enum {
    /* Elements that are converted to float32 at a time. The scales of a state format apply to this
     * many elements, or to a divisor of it. */
    FUSED_ADAMW_BLOCK = 256,
    /* Elements of one partial sum of the gradient norm; a multiple of FUSED_ADAMW_BLOCK. A tensor
     * that is divided at multiples of it, say over processes, has the same norm as a whole one. */
    FUSED_ADAMW_CHUNK = 16384,
    /* The fewest elements that are worth another thread: benches/bench_threads.py. */
    FUSED_ADAMW_MIN_ELEMENTS_PER_THREAD = 32768,
    /* A larger number is more likely a mistake than a machine. */
    FUSED_ADAMW_MAX_THREADS = 1024
};

#include "formats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- element types and state formats */

/* What parameters and gradients are stored in. */
typedef struct {
    const char *name;
    int size;           /* in bytes */
    char buffer_format; /* in Python's buffer protocol; 0 where it has none */
    int dlpack_code, dlpack_bits;
    int compute; /* the compute type, in which the formula is evaluated: FUSED_ADAMW_FLOAT32 or
                    _FLOAT64 */
    const char *master_type; /* what master weights are stored in; NULL where there are none */
    int master_size;         /* in bytes */
} fused_adamw_element_type;

/* Indexed by FUSED_ADAMW_FLOAT32, _FLOAT64, _BFLOAT16, _FLOAT16; a row without a name ends it. */
FUSED_ADAMW_API extern const fused_adamw_element_type fused_adamw_element_types[];

/* What the moments m and v are stored in. */
typedef struct {
    const char *name;
    const char *m_type, *v_type; /* storage types of the arrays */
    int m_bits, v_bits;          /* per element: one unit of the storage type, or a part of it */
    int block;                   /* elements that share a scale; 1 where there are no scales */
    const char *m_scale_type, *v_scale_type; /* NULL where there are no scales */
    int amsgrad; /* whether it can store optional buffers, such as v_max, as it stores v */
    int own;     /* whether only parameters of the same type can use it */
} fused_adamw_state_format;

/* Indexed by FUSED_ADAMW_STATE_FLOAT32, _STATE_FLOAT64, _STATE_BFLOAT16, _STATE_8BIT, _STATE_FLOAT16;
 * a row without a name ends it. "float64" requires float64 parameters, and these require it;
 * "float16" requires float16 parameters; every other pair of element type and state format has a
 * kernel. */
FUSED_ADAMW_API extern const fused_adamw_state_format fused_adamw_state_formats[];

/* A buffer that a tensor may have, and the option of the step that it is for. */
typedef struct {
    const char *name, *option;
    int like_v;      /* stored as the state format stores v; else in the compute type */
    int from_params; /* starts as the parameters; else as zeros */
    int has_decay;   /* the option is a decay rate; else a flag */
} fused_adamw_optional_buffer;

/* Indexed by FUSED_ADAMW_V_MAX, ...: the identifiers of FUSED_ADAMW_OPTIONAL_BUFFERS. */
FUSED_ADAMW_API extern const fused_adamw_optional_buffer
    fused_adamw_optional_buffers[FUSED_ADAMW_NUM_BUFFERS];

/* ---- hyper-parameters */

/* The smallest accepted learning rate: below 0 by no more than a rounding error. */
#define FUSED_ADAMW_LEAST_LR (-1e-12)

typedef struct {
    double lr, beta1, beta2, eps;
    double weight_decay; /* 0 for a tensor that does not decay */
    double buffer_decays[FUSED_ADAMW_NUM_BUFFERS]; /* of optional buffers; 0 without one */
} fused_adamw_hyperparams;

/* What a step multiplies and divides by, the same for every element of a tensor. Opaque: made by
 * the two functions below, and defined here only so that callers can allocate it. */
typedef struct {
    /* Rounded to the compute type, so that converting them to it changes nothing. */
    double b1, b2;    /* the betas */
    double c1, c2;    /* 1 - beta */
    double step;      /* lr / (1 - b1^t) */
    double rsqrt_bc2; /* 1 / sqrt(1 - b2^t) */
    double decay;     /* lr * weight_decay */
    double eps;
    double buffer_decays[FUSED_ADAMW_NUM_BUFFERS];      /* d of an optional buffer */
    double buffer_complements[FUSED_ADAMW_NUM_BUFFERS]; /* 1 - d */
    double scale;       /* of the gradient: loss scaling, clipping, -1 to maximize */
    int64_t t;          /* the number of the step: 1, 2, 3, ... */
    int compute;        /* the compute type */
    int stochastic;     /* rounding to low precision; else to the nearest */
    uint32_t dither[3]; /* of this step, for v, m and params */
} fused_adamw_scalars;

/* A status is 0, or the hyper-parameter that cannot be used; with FUSED_ADAMW_NOT_REPRESENTABLE
 * added where it, or what is derived from it, overflows in the compute type, or where a beta or a
 * decay rate rounds to 1 there. */
enum {
    FUSED_ADAMW_OK,
    FUSED_ADAMW_BAD_LR,           /* not finite, or below FUSED_ADAMW_LEAST_LR */
    FUSED_ADAMW_BAD_BETA1,        /* not 0 <= beta < 1 */
    FUSED_ADAMW_BAD_BETA2,        /* the same */
    FUSED_ADAMW_BAD_EPS,          /* not finite, or negative */
    FUSED_ADAMW_BAD_WEIGHT_DECAY, /* the same */
    FUSED_ADAMW_BAD_GRAD_SCALE,   /* not finite */
    FUSED_ADAMW_BAD_BUFFER_DECAY, /* not 0 <= d < 1: this, plus the index of the buffer */
    FUSED_ADAMW_NOT_REPRESENTABLE = 64
};

/* Derives the scalars of step `t` >= 1 for tensors of an element type. Returns a status; if that is
 * FUSED_ADAMW_OK, fused_adamw_finish_scalars has to complete the scalars before a step. */
FUSED_ADAMW_API int fused_adamw_derive_scalars(const fused_adamw_hyperparams *hyperparams,
                                               int element_type, int64_t t,
                                               fused_adamw_scalars *scalars);

/* Completes the scalars: gradients are multiplied by grad_scale * factor. `factor`, which is for
 * clipping and for the sign, may be NaN. `stochastic`: whether values are rounded to low precision
 * stochastically, else to the nearest. Returns a status; may be called again. */
FUSED_ADAMW_API int fused_adamw_finish_scalars(fused_adamw_scalars *scalars, double grad_scale,
                                               double factor, int stochastic);

/* The key of the random numbers of one parameter, from the user's seed and the parameter's index
 * among all. */
FUSED_ADAMW_API uint32_t fused_adamw_rng_key(uint32_t seed, ptrdiff_t param_index);

/* The factor that clips gradients of a global norm to max_norm, as
 * torch.nn.utils.clip_grad_norm_ does; 1 where max_norm is 0, NaN where the norm is. */
FUSED_ADAMW_API double fused_adamw_clip_factor(double norm, double max_norm);

/* ---- tensors */

/* One tensor: dense buffers of `size` elements in the same order, at any alignment. No buffer that
 * is written overlaps any other buffer of the call. Tensors may share their scalars. */
typedef struct {
    void *params;            /* updated */
    const void *grads;       /* read */
    void *m, *v;             /* updated: the moments, as the state format stores them */
    void *m_scale, *v_scale; /* updated: one per block of the state format; or NULL */
    void *master; /* updated: what gives, with params, the float32 that params is rounded from
                     (kernels/element_types.h); or NULL. Not for element types that are
                     compute types */
    void *buffers[FUSED_ADAMW_NUM_BUFFERS]; /* updated: the optional buffers; or NULL */
    ptrdiff_t size;
    int element_type;   /* of params, and of grads unless has_wide_grads */
    int state_format;   /* of m and v */
    int has_wide_grads; /* grads are in the compute type */
    uint32_t rng_key;
    ptrdiff_t element_offset; /* RNG index of element 0; a multiple of FUSED_ADAMW_BLOCK where the
                                 state format has scales */
    const fused_adamw_scalars *scalars;
} fused_adamw_tensor;

/* ---- instruction sets */

typedef struct fused_adamw_isa fused_adamw_isa;

/* The instruction sets of this build, widest first; NULL past the last, which runs on every machine
 * that the build can start on. */
FUSED_ADAMW_API const fused_adamw_isa *fused_adamw_isa_at(int index);

FUSED_ADAMW_API const char *fused_adamw_isa_name(const fused_adamw_isa *isa);

/* Whether this processor and this operating system can run it. */
FUSED_ADAMW_API int fused_adamw_isa_available(const fused_adamw_isa *isa);

/* The available instruction set of this name, or NULL if there is none. For a `name` of NULL, the
 * widest. */
FUSED_ADAMW_API const fused_adamw_isa *fused_adamw_find_isa(const char *name);

/* ---- threads */

/* Prepares for fork(): without it, a step on several threads can hang in a forked child. Called
 * once, before the first step. */
FUSED_ADAMW_API void fused_adamw_init(void);

/* Which library provides the threads: "OpenMP", "Grand Central Dispatch", or NULL if every call
 * runs on the calling thread. */
FUSED_ADAMW_API const char *fused_adamw_threading(void);

/* The default number of threads: OMP_NUM_THREADS if that is from 1 to FUSED_ADAMW_MAX_THREADS, else
 * the number of processors (with OpenMP, of those in the affinity mask when its runtime was
 * loaded); at most `quota` if that is above 0. `asked` is the value of OMP_NUM_THREADS, or 0;
 * builds with OpenMP ignore it, since OpenMP has read the variable itself. */
FUSED_ADAMW_API int fused_adamw_default_threads(int asked, int quota);

/* How many of `num_threads` threads are worth using on these tensors: at least 1. */
FUSED_ADAMW_API int fused_adamw_useful_threads(const fused_adamw_tensor *tensors, ptrdiff_t count,
                                               int num_threads);

/* ---- the step */

/* Updates `count` tensors with an available instruction set, on at most `num_threads` >= 1 threads;
 * on fewer, or on the calling one alone, where they cannot be created. The result does not depend
 * on either: all bits are the same, but for the sign and the payload of NaN. */
FUSED_ADAMW_API void fused_adamw_step(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                                      ptrdiff_t count, int num_threads);

/* The number of partial sums of the gradient norm: one per FUSED_ADAMW_CHUNK elements of each
 * tensor. */
FUSED_ADAMW_API ptrdiff_t fused_adamw_num_chunks(const fused_adamw_tensor *tensors,
                                                 ptrdiff_t count);

/* The sums of the squares of all gradients as they are, before any scale, in float64: one per
 * chunk, fused_adamw_num_chunks of them. Only grads, size, element_type, has_wide_grads and
 * element_offset of the tensors are read. The result does not depend on `isa` or `num_threads`. */
FUSED_ADAMW_API void fused_adamw_sum_squares(const fused_adamw_isa *isa,
                                             const fused_adamw_tensor *tensors, ptrdiff_t count,
                                             int num_threads, double *partial_sums);

/* The global norm of gradients that are multiplied by `grad_scale`: from `count` partial sums,
 * which are added in their order. */
FUSED_ADAMW_API double fused_adamw_norm(const double *partial_sums, ptrdiff_t count,
                                        double grad_scale);

/* ---- state, read and written from outside
 *
 * On the calling thread, for every state format but float64. Only m, v, their scales, the optional
 * buffers that are stored like v, size, state_format and element_offset of the tensor are used. The
 * m, v and buffers of `moments` are arrays of float32, and the buffers NULL where those of the
 * tensor are. */

/* Reads the moments as float32. */
FUSED_ADAMW_API void fused_adamw_decode_state(const fused_adamw_isa *isa,
                                              const fused_adamw_tensor *tensor,
                                              const fused_adamw_tensor *moments);

/* Writes moments given as float32, each rounded to the nearest. */
FUSED_ADAMW_API void fused_adamw_encode_state(const fused_adamw_isa *isa,
                                              const fused_adamw_tensor *tensor,
                                              const fused_adamw_tensor *moments);

#ifdef __cplusplus
}
#endif

#endif
