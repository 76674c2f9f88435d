/* What the files of csrc share with one another. */
#ifndef FUSED_ADAMW_INTERNAL_H
#define FUSED_ADAMW_INTERNAL_H

#include "fused_adamw.h"

#include <float.h>

/* Bit-exact results need each operation rounded to its own type, in the order written. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) ||      \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0)
#error "fused-adamw promises bit-exact results: build it without -ffast-math and its parts"
#endif
/* 16 widens _Float16 alone. */
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "float arithmetic is evaluated in a wider type here: build with SSE2 (-msse2 -mfpmath=sse)"
#endif
#if defined(__clang__)
/* Clang defines no macro for some parts of -ffast-math, such as -freciprocal-math: here they are
 * taken back, on the processors for which it can (Clang 14 on ARM64: -fassociative-math alone).
 * The last line comes after the others, which would undo it. */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wignored-pragmas"
#pragma float_control(precise, on)
#pragma clang diagnostic pop
#if __clang_major__ >= 13
#pragma clang fp reassociate(off)
#endif
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

/* The kernels of one instruction set, each over the elements [begin, end) of one tensor. */
typedef struct {
    void (*step)(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t end);
    void (*sum_squares)(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t end,
                        double *sum); /* of the gradient as it is, before any scale */
} fused_adamw_kernel;

/* A kernel is indexed by the element type where that is the compute type and everything is stored
 * in it (for sum_squares: the gradient), else by LOW_PRECISION. */
enum {
#define ROW(id, name, type, buffer_format, dlpack_code, dlpack_bits) COMPUTE_TYPE_##id,
    FUSED_ADAMW_COMPUTE_TYPES(ROW)
#undef ROW
        LOW_PRECISION,
    NUM_KERNELS
};

/* So that state stored as the parameters are is recognized by equal indices: parallel.c. */
#define ROW(id, name, type, buffer_format, dlpack_code, dlpack_bits)                               \
    _Static_assert((int)COMPUTE_TYPE_##id == (int)FUSED_ADAMW_##id &&                              \
                       (int)FUSED_ADAMW_STATE_##id == (int)FUSED_ADAMW_##id,                       \
                   #name " needs the same index everywhere");
FUSED_ADAMW_COMPUTE_TYPES(ROW)
#undef ROW

typedef struct {
    fused_adamw_kernel kernels[NUM_KERNELS];
    void (*decode_state)(const fused_adamw_tensor *tensor, const fused_adamw_tensor *moments);
    void (*encode_state)(const fused_adamw_tensor *tensor, const fused_adamw_tensor *moments);
} fused_adamw_kernels;

/* GCC keeps the stack of Windows at multiples of 16 bytes, and its code for AVX expects 32. */
#if (defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && !defined(_WIN32)))) ||    \
    (defined(_M_X64) && !defined(_M_ARM64EC))
#define HAS_X86_64_KERNELS
extern const fused_adamw_kernels fused_adamw_avx2_kernels, fused_adamw_avx512_kernels;
#endif
extern const fused_adamw_kernels fused_adamw_baseline_kernels;

/* One instruction set: the kernels compiled for it, and whether this processor and this operating
 * system can run them. */
struct fused_adamw_isa {
    const char *name;
    int (*available)(void);
    const fused_adamw_kernels *kernels;
};

/* The dithers of fused_adamw_scalars. Buffers that are stored like v are rounded as v is. */
enum { DITHER_V, DITHER_M, DITHER_PARAMS, NUM_DITHERS };

/* The dither that rounds to the nearest: half of the interval. */
#define DITHER_TO_NEAREST 0x80000000u

#endif
