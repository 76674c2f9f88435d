/* 1 - beta^t, rounded once, of integers alone: the same bits on every machine. The C library's pow,
 * log and expm1 differ in the last bit between C libraries, and between processors. */
#ifndef FUSED_ADAMW_BIAS_CORRECTION_H
#define FUSED_ADAMW_BIAS_CORRECTION_H

#include <stdint.h>
#include <string.h>

/* A number from 0 to below 1 in units of 2^-128. */
typedef struct {
    uint64_t high, low;
} fixed128;

/* The 128 bits of a product, from those of its halves. */
static inline fixed128 product_by_halves(uint64_t a, uint64_t b)
{
    const uint64_t a_low = (uint32_t)a, a_high = a >> 32, b_low = (uint32_t)b, b_high = b >> 32;
    const uint64_t low = a_low * b_low, across = a_high * b_low + (low >> 32);
    const uint64_t middle = a_low * b_high + (uint32_t)across;
    return (fixed128){a_high * b_high + (across >> 32) + (middle >> 32),
                      middle << 32 | (uint32_t)low};
}

static inline fixed128 product(uint64_t a, uint64_t b)
{
#if defined(__SIZEOF_INT128__)
    __extension__ const unsigned __int128 bits = (unsigned __int128)a * b;
    return (fixed128){(uint64_t)(bits >> 64), (uint64_t)bits};
#else
    return product_by_halves(a, b);
#endif
}

/* a b, less at most 3 units. */
static inline fixed128 multiply(fixed128 a, fixed128 b)
{
    const uint64_t across1 = product(a.high, b.low).high, across2 = product(a.low, b.high).high;
    fixed128 result = product(a.high, b.high);
    result.low += across1;
    result.high += result.low < across1;
    result.low += across2;
    result.high += result.low < across2;
    return result;
}

static inline fixed128 squared(fixed128 a)
{
    const uint64_t across = product(a.high, a.low).high;
    fixed128 result = product(a.high, a.high);
    result.high += across >> 63;
    result.low += across << 1;
    result.high += result.low < across << 1;
    return result;
}

/* For beta from 2^-54 to below 1: each of its bits has its place. */
static inline fixed128 fixed_of(double beta)
{
    uint64_t bits;
    memcpy(&bits, &beta, sizeof bits);
    const int shift = (int)(bits >> 52) - 947; /* of an integer of 53 bits: 22 to 75 */
    const uint64_t digits = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1 << 52;
    if (shift >= 64)
        return (fixed128){digits << (shift - 64), 0};
    return (fixed128){digits >> (64 - shift), digits << shift};
}

/* To the nearest, ties to even; `x` is not 0. */
static inline double double_of(fixed128 x)
{
    int exponent = 0;
    for (int by = 32; by > 0; by /= 2) {
        if (x.high >> (64 - by))
            continue;
        x.high = x.high << by | x.low >> (64 - by);
        x.low <<= by;
        exponent -= by;
    }
    const uint64_t digits = x.high >> 11, rest = x.high << 53 | (x.low != 0);
    const uint64_t half = (uint64_t)1 << 63;
    const int up = rest > half || (rest == half && digits % 2 == 1);
    /* The first digit is 1 and adds 1 to the exponent; so does a carry out of all of them. */
    const uint64_t bits = ((uint64_t)(exponent + 1021) << 52) + digits + (uint64_t)up;
    double result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* Whether 1 - x is 1 in double: x is less than 2^-54. */
static inline int is_negligible(fixed128 x)
{
    return x.high < 1u << 10;
}

/* For beta from 0 to below 1, and t from 1. beta^t is formed by repeated squaring; what is cut off
 * adds up to less than t 2^-125, so that the result is the nearest double unless 1 - beta^t lies
 * that close to the middle between two. */
static inline double bias_correction(double beta, int64_t t)
{
    if (beta < 0x1p-54)
        return 1;
    uint64_t left = (uint64_t)t;
    fixed128 square = fixed_of(beta);
    for (; left % 2 == 0 && left > 0; left /= 2)
        square = squared(square);
    fixed128 power = square;
    while (left /= 2) {
        square = squared(square);
        if (is_negligible(square))
            return 1;
        if (left % 2 == 1)
            power = multiply(power, square);
    }
    if (is_negligible(power))
        return 1;
    const fixed128 difference = {~power.high + (power.low == 0), 0 - power.low};
    return double_of(difference);
}

#endif
