/* How the elements of a block are rounded, against the oracle. */
#include "../kernels/block.h"
#include "test_kernels.h"

enum { KEY = 987654321, STEP = 12345 };

static void test_dithers_from(fused_adamw_tensor *tensor, ptrdiff_t begin)
{
    static const int ROLES[] = {DITHER_V, DITHER_M, DITHER_PARAMS}; /* as the oracle counts them */
    const ptrdiff_t left = FUSED_ADAMW_BLOCK - begin % FUSED_ADAMW_BLOCK;
    for (int role = 0; role < NUM_DITHERS; role++) {
        const struct rounding found = rounding_of(ROLES[role], tensor, begin);
        for (ptrdiff_t k = 0; k < left; k++) {
            const uint64_t index = (uint64_t)(tensor->element_offset + begin + k);
            const uint32_t expected = oracle_dither(role, KEY, index, STEP);
            const uint32_t of_pair = DITHER_PAIR_MULTIPLES[ROLES[role]][k / 2];
            check(found.first + found.multiples[k] == expected, "dither of role %d, element %d",
                  role, (int)(begin + k));
            check(found.first + of_pair + (k % 2 ? found.multiples[1] : 0) == expected,
                  "dither of role %d, element %d of a pair", role, (int)(begin + k));
        }
    }
}

void test_dithers(void)
{
    fused_adamw_scalars scalars = {.t = STEP};
    fused_adamw_finish_scalars(&scalars, 1, 1, 1);
    fused_adamw_tensor tensor = {.rng_key = KEY, .scalars = &scalars};
    test_dithers_from(&tensor, 0);
    test_dithers_from(&tensor, 5 * FUSED_ADAMW_BLOCK + 3);
    tensor.element_offset = PTRDIFF_MAX / 2 / FUSED_ADAMW_BLOCK * FUSED_ADAMW_BLOCK;
    test_dithers_from(&tensor, 0);
}
