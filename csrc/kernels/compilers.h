/* What compilers do not have in common. */
#ifndef FUSED_ADAMW_COMPILERS_H
#define FUSED_ADAMW_COMPILERS_H

#include <stdint.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

/* An array may start at any byte. The attribute keeps the compiler from using aligned moves; the
 * others are as fast on processors with AVX2. */
#if defined(__GNUC__) || defined(__clang__)
#define MAY_BE_UNALIGNED __attribute__((aligned(1)))
#else
#define MAY_BE_UNALIGNED
#endif
typedef float MAY_BE_UNALIGNED float_unaligned;
typedef double MAY_BE_UNALIGNED double_unaligned;
typedef uint8_t uint8_t_unaligned;
typedef int16_t MAY_BE_UNALIGNED int16_t_unaligned;
typedef uint16_t MAY_BE_UNALIGNED uint16_t_unaligned;
typedef uint32_t MAY_BE_UNALIGNED uint32_t_unaligned;
#undef UNALIGNED /* Windows' headers have one, too */
#define UNALIGNED(type) JOIN(type, _unaligned)

/* Asks for the cache line at an address that is soon read; any address will do. */
#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

/* What is called with constants and has to be compiled for them. */
#if defined(_MSC_VER)
#define ALWAYS_INLINE __forceinline
#else
#define ALWAYS_INLINE inline __attribute__((always_inline))
#endif

/* The instructions that the functions after it may use. Visual C++ knows no attribute for it, and
 * needs its own flag for the file: VISUAL_C_FLAGS of setup.py. */
#if defined(__GNUC__) || defined(__clang__)
#define USING(features) __attribute__((target(features)))
#else
#define USING(features)
#endif

#endif
