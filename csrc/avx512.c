/* The kernels for AVX-512. */
#include "internal.h"
#include "kernels/compilers.h"

#if defined(HAS_X86_64_KERNELS)

/* Compilers prefer 256-bit vectors by default. */
#if defined(__clang__)
#define WIDEST __attribute__((min_vector_width(512)))
#define WIDEST_FEATURE
#else
#define WIDEST
#define WIDEST_FEATURE ",prefer-vector-width=512"
#endif
#if !defined(__clang__) && defined(_MSC_VER) && !defined(__AVX512F__)
#error "compile this file with /arch:AVX512"
#endif
#define ISA avx512
#define TARGET WIDEST USING("avx512f,avx512vl,avx512dq,avx512bw" WIDEST_FEATURE)
#include "kernels/instantiate.inc"

#endif
