/* The C API of fused-adamw: one AdamW step over any number of tensors, in one pass; and the global
 * norm of their gradients.
 *
 * Nothing here validates. The caller has checked every pointer, length and scalar; no function
 * below fails, allocates, prints, or touches anything but the memory it is handed. */
#ifndef FUSED_ADAMW_H
#define FUSED_ADAMW_H

#include <stddef.h>
#include <stdint.h>

/* The dtype of a tensor's buffers. */
enum {
    FUSED_ADAMW_FLOAT32,
    FUSED_ADAMW_FLOAT64,
    FUSED_ADAMW_BFLOAT16,
    FUSED_ADAMW_FLOAT16,
    FUSED_ADAMW_8BIT /* of moments alone: kernels/low_precision.inc */
};

/* The index of a tensor's kernels in fused_adamw_isa.kernels: its dtype where that is float32 or
 * float64 for all its buffers (for the norm: for its gradient), else this one. */
enum { FUSED_ADAMW_COMPRESSED = FUSED_ADAMW_FLOAT64 + 1, FUSED_ADAMW_KERNELS };

/* Elements that share a scale in 8-bit state. */
enum { FUSED_ADAMW_BLOCK = 256 };

/* What a step multiplies and divides by, the same for every element of a tensor. The values are
 * already rounded to the tensor's dtype, so that converting them to it changes nothing.
 * Derived from lr, beta1, beta2, eps, weight_decay and t as kernels/adamw.inc says. */
typedef struct {
    double b1, b2;    /* the betas */
    double c1, c2;    /* 1 - beta */
    double step;      /* lr / (1 - b1^t) */
    double rsqrt_bc2; /* 1 / sqrt(1 - b2^t) */
    double decay;     /* lr * weight_decay */
    double eps;
    double scale; /* of the gradient: loss scaling, clipping, -1 to maximize */
    int stochastic;     /* rounding of what is kept in fewer bits; else to the nearest */
    uint32_t dither[3]; /* of this step, for v, m and params; 2^31 to the nearest */
} fused_adamw_scalars;

/* One tensor: dense buffers of `size` elements in the same order, at any alignment. None
 * overlaps a buffer that is written, neither of this tensor nor of another one in the call.
 * Tensors may share their scalars. */
typedef struct {
    void *params;      /* updated */
    const void *grads; /* read */
    void *m;           /* updated */
    void *v;           /* updated */
    void *v_max;       /* updated: AMSGrad; or NULL */
    ptrdiff_t size;
    int dtype;         /* of params and grads */
    int state_dtype;   /* of m, v and v_max */
    float *m_scale;    /* of 8-bit state: one a block */
    uint32_t *v_scale; /* the same */
    float *master;     /* updated: the exact params, in float32; or NULL */
    uint32_t key;      /* of the random numbers */
    ptrdiff_t first;   /* the index of element 0 to them: a multiple of FUSED_ADAMW_BLOCK */
    const fused_adamw_scalars *scalars;
} fused_adamw_tensor;

/* The kernels of one dtype, over the elements [begin, end) of one tensor. */
typedef struct {
    void (*adamw)(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t end);
    void (*amsgrad)(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t end);
    void (*sum_squares)(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t end,
                        double *sum); /* of the gradient as it is, before any scale */
} fused_adamw_kernels;

/* One instruction set: the kernels compiled for it, and whether this processor and this operating
 * system can run them. */
typedef struct {
    const char *name;
    int (*supported)(void);
    const fused_adamw_kernels *kernels; /* by dtype, or FUSED_ADAMW_COMPRESSED */
} fused_adamw_isa;

/* The instruction sets of this build, widest first. The last row runs on every machine that the
 * build can start on; a row without a name ends the table. */
extern const fused_adamw_isa fused_adamw_isas[];

/* Prepares for fork(). Called once, when the module is loaded. */
void fused_adamw_init(void);

/* Whether the build has OpenMP. Without it, every step runs on the calling thread. */
int fused_adamw_has_openmp(void);

/* The threads that OpenMP would use: OMP_NUM_THREADS where it is set, else the processors that
 * the affinity mask allows; 1 without OpenMP. */
int fused_adamw_max_threads(void);

/* How many of `num_threads` threads pay for a call over these tensors: 1 where they are small. */
int fused_adamw_threads_worth(const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads);

/* Updates `count` tensors with the kernels of a supported `isa`, on at most `num_threads` >= 1
 * threads. The result does not depend on either. */
void fused_adamw_step(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                      ptrdiff_t count, int num_threads);

/* The gradients are summed in chunks, each within one tensor, and the chunks in their order: this
 * is how many chunks there are. */
ptrdiff_t fused_adamw_chunks(const fused_adamw_tensor *tensors, ptrdiff_t count);

/* The sum of the squares of all gradients, in float64, with room for one number a chunk. The result
 * does not depend on `isa` or `num_threads`. */
double fused_adamw_sum_squares(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                               ptrdiff_t count, int num_threads, double *room);

#endif
