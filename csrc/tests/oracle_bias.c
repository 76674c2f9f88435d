/* 1 - beta^t with digits to spare, multiplied as by hand. */
#include "oracle.h"

#include <math.h>

/* A number from 0 to below 1: its digits to the base of 2^16, the first one first. */
enum { NUM_DIGITS = 16, NUM_BITS = 16 * NUM_DIGITS };
typedef struct {
    uint32_t digits[NUM_DIGITS];
} fraction;

static fraction times(const fraction *a, const fraction *b)
{
    uint64_t columns[2 * NUM_DIGITS] = {0};
    for (int i = 0; i < NUM_DIGITS; i++)
        for (int j = 0; j < NUM_DIGITS; j++)
            columns[i + j + 1] += (uint64_t)a->digits[i] * b->digits[j];
    for (int k = 2 * NUM_DIGITS - 1; k > 0; k--)
        columns[k - 1] += columns[k] / 65536;
    fraction result;
    for (int k = 0; k < NUM_DIGITS; k++)
        result.digits[k] = (uint32_t)(columns[k] % 65536);
    return result;
}

static fraction power(double beta, int64_t t)
{
    fraction base;
    for (int k = 0; k < NUM_DIGITS; k++) {
        beta *= 65536;
        base.digits[k] = (uint32_t)beta;
        beta -= base.digits[k];
    }
    int64_t bit = 1;
    while (bit <= t / 2)
        bit *= 2;
    fraction result = base;
    while (bit /= 2) {
        result = times(&result, &result);
        if (t / bit % 2 == 1)
            result = times(&result, &base);
    }
    return result;
}

/* To the nearest of 53 bits, ties to even. */
static double nearest(const fraction *x)
{
    uint64_t mantissa = 0;
    uint32_t next = 0, more = 0;
    int num_bits = 0, end = 0;
    for (int i = 0; i < NUM_BITS; i++) {
        const uint32_t bit = x->digits[i / 16] >> (15 - i % 16) & 1;
        if (num_bits < 53) {
            mantissa = 2 * mantissa + bit;
            num_bits += mantissa > 0;
            end = i + 1;
        } else if (i == end) {
            next = bit;
        } else {
            more |= bit;
        }
    }
    mantissa += next && (more || mantissa % 2 == 1);
    return ldexp((double)mantissa, -end);
}

double oracle_bias_correction(double beta, int64_t t)
{
    fraction difference = power(beta, t);
    uint32_t carry = 0;
    for (int k = NUM_DIGITS - 1; k >= 0; k--) {
        const uint32_t digit = difference.digits[k] + carry;
        carry = digit > 0;
        difference.digits[k] = (65536 - digit) % 65536;
    }
    return carry ? nearest(&difference) : 1;
}
