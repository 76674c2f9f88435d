/* The kernels for AVX2. */
#include "internal.h"
#include "kernels/compilers.h"

#if defined(HAS_X86_64_KERNELS)

#if !defined(__clang__) && defined(_MSC_VER) && !defined(__AVX2__)
#error "compile this file with /arch:AVX2"
#endif
#define ISA avx2
#define TARGET USING("avx2")
#include "kernels/instantiate.inc"

#endif
