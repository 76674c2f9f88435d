/* 1 - beta^t against digits to spare. */
#include "../bias_correction.h"
#include "test_kernels.h"

#include <math.h>

static void check_correction(double beta, int64_t t)
{
    const double found = bias_correction(beta, t), expected = oracle_bias_correction(beta, t);
    check(found == expected, "1 - %a^%lld: %a instead of %a", beta, (long long)t, found, expected);
}

static double random_fraction(void)
{
    return ldexp(random_below(UINT32_MAX), -32) + ldexp(random_below(1 << 21), -53);
}

static int64_t random_step(void)
{
    const int64_t bits = (int64_t)random_below(UINT32_MAX) << 21 | random_below(1 << 21);
    return 1 + (bits >> random_below(53));
}

/* Products of halves, which compilers without 128-bit integers get. */
static void test_products(void)
{
    static const uint64_t FACTORS[] = {0, 1, UINT32_MAX, (uint64_t)1 << 32, UINT64_MAX,
                                       0x9e3779b97f4a7c15u};
    for (size_t i = 0; i < sizeof FACTORS / sizeof *FACTORS; i++)
        for (size_t j = 0; j < sizeof FACTORS / sizeof *FACTORS; j++) {
            const uint64_t a = FACTORS[i], b = FACTORS[j];
            const fixed128 whole = product(a, b), halves = product_by_halves(a, b);
            check(whole.high == halves.high && whole.low == halves.low && halves.low == a * b,
                  "product of halves %d and %d", (int)i, (int)j);
        }
}

void test_bias_corrections(void)
{
    /* Powers of 2 give ties, as do those that have a digit of 2^-54 as well, one for each way in which
     * digits are placed; and the last ones before 1 differ in their last digit alone. */
    static const double BETAS[] = {
        0, 5e-324, 0x1p-1022, 0x1p-76, 0x1p-55, 0x1p-54, 0x1.0000000000001p-54, 0x1p-53, 0x1.8p-53,
        0x1p-27, 0x1p-18, 0x1.00000000008p-13, 0x1.00000000004p-12, 0x1.00000000002p-11,
        0x1.0000000000001p-2, 0.5, 0.75, 0.9, 0.99, 0.999, 0.999999, 1 - 1e-12,
        0x1.fffffffffffffp-1};
    static const int64_t STEPS[] = {1, 2, 3, 4, 5, 17, 100, 1000, 65536, 123457, INT64_C(1) << 52,
                                    INT64_MAX};
    test_products();
    for (size_t i = 0; i < sizeof BETAS / sizeof *BETAS; i++)
        for (size_t j = 0; j < sizeof STEPS / sizeof *STEPS; j++)
            check_correction(BETAS[i], STEPS[j]);
    for (int i = 0; i < 200; i++) /* odd multiples of 2^-54 below 1/4: ties */
        check_correction(ldexp(2 * floor(ldexp(random_fraction(), 51)) + 1, -54), 1);
    for (int i = 0; i < 2000; i++) {
        check_correction(random_fraction(), random_step());
        check_correction(1 - ldexp(random_fraction(), -(int)random_below(30)), random_step());
    }
}
