/* Values of 16 bits and master weights, alone and in pairs, against the oracle. */
#include "../kernels/element_types.h"
#include "test_kernels.h"

#include <math.h>
#include <string.h>

/* What a problem of two elements holds. */
typedef struct {
    uint16_t params[2];
    float masters[2]; /* or two of a smaller type */
} stored;

static problem problem_of(int element_type, stored *arrays)
{
    return (problem){.element_type = element_type,
                     .size = 2,
                     .arrays = {[PARAMS] = arrays->params, [MASTER] = arrays->masters}};
}

/* Whether both parameters are the same or NaN, and all of the rest is the same. */
static int is_same(const char *type, const stored *a, const stored *b)
{
    for (int i = 0; i < 2; i++) {
        const float x = oracle_load(type, a->params, i), y = oracle_load(type, b->params, i);
        if (a->params[i] != b->params[i] && !(isnan(x) && isnan(y)))
            return 0;
        if (bits_of(a->masters[i]) != bits_of(b->masters[i]))
            return 0;
    }
    return 1;
}

static int is_same_float(float a, float b)
{
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

/* NaN as an operation gives it: quiet; on bfloat16 values, with a lower half of 0. */
static float as_result(float x, int has_short_nan)
{
    const uint32_t kept = has_short_nan ? 0xffff0000 : 0xffffffff;
    return isnan(x) ? float_of((bits_of(x) & kept) | 0x400000) : x;
}

#if HAS_PAIRS
#define PAIR_CHECKS(name)                                                                          \
    const struct pair_of_floats results = {as_result(x[0], HAS_SHORT_NAN_##name),                  \
                                           as_result(x[1], HAS_SHORT_NAN_##name)};                 \
    uint32_t pair = split_pair_##name(results, found.masters, 0);                                  \
    memcpy(found.params, &pair, sizeof pair);                                                      \
    check(is_same(#name, &expected, &found), #name ": pair %a, %a is stored", x[0], x[1]);         \
    memcpy(&pair, given->params, sizeof pair);                                                     \
    const struct pair_of_floats joined = join_pair_##name(pair, given->masters, 0);                \
    check(is_same_float(joined.first, masters[0]) && is_same_float(joined.second, masters[1]),     \
          #name ": pair %04x, %04x is loaded", given->params[0], given->params[1]);
#else
#define PAIR_CHECKS(name)
#endif

/* Stores two master weights, and loads those of which parameters and rests are given. */
#define ROW(id, name, type, buffer_format, dlpack_code, dlpack_bits, master_type, master_name)     \
    static void test_##name(const float x[2], stored *given)                                       \
    {                                                                                              \
        stored expected = {{0}, {0}}, found = {{0}, {0}};                                          \
        problem p = problem_of(FUSED_ADAMW_##id, &expected);                                       \
        const problem of_given = problem_of(FUSED_ADAMW_##id, given);                              \
        master_type rests[2];                                                                      \
        float masters[2];                                                                          \
        memcpy(rests, given->masters, sizeof rests);                                               \
        for (int i = 0; i < 2; i++) {                                                              \
            const float result = as_result(x[i], 0);                                               \
            oracle_store_master(&p, i, result);                                                    \
            masters[i] = oracle_load_master(&of_given, i);                                         \
            const master_type rest = rest_##name(result);                                          \
            found.params[i] = param_##name(result);                                                \
            memcpy((master_type *)found.masters + i, &rest, sizeof rest);                          \
            check(is_same_float(join_##name(given->params[i], rests[i]), masters[i]),              \
                  #name ": %04x is loaded", given->params[i]);                                     \
        }                                                                                          \
        check(is_same(#name, &expected, &found), #name ": %a, %a is stored", x[0], x[1]);          \
        PAIR_CHECKS(name)                                                                          \
    }
FUSED_ADAMW_STORAGE_TYPES(ROW)
#undef ROW

/* Every value of 16 bits, in either place of a pair; stored again, it is what it was. */
#define ROW(id, name, type, ...)                                                                   \
    static void test_values_##name(uint16_t code)                                                  \
    {                                                                                              \
        const float expected = oracle_load(#name, &code, 0), found = load_##name(code);            \
        const int same = store_##name(found, 0, 0) == code || isnan(found);                        \
        check(is_same_float(found, expected) && same, #name ": %04x", code);                       \
        check(is_same_float(first_##name(0xabcd0000 | code), expected) &&                          \
                  is_same_float(second_##name((uint32_t)code << 16 | 0xabcd), expected),           \
              #name ": %04x of a pair", code);                                                     \
    }
FUSED_ADAMW_STORAGE_TYPES(ROW)
#undef ROW

/* Only what is between 0 and the smallest bfloat16 above it is raised. */
static void test_above_0(void)
{
    static const uint32_t BITS[] = {0,          1,          0x7fff,     0x8000,     0xffff,
                                    0x10000,    0x10001,    0x1ffff,    0x3f800001, 0x7f800000,
                                    0x80000000, 0x80000001, 0xbf800000, 0xff800000};
    for (size_t i = 0; i < sizeof BITS / sizeof *BITS; i++) {
        const uint32_t expected = BITS[i] > 0 && BITS[i] < 0x10000 ? 0x10000 : BITS[i];
        check(bits_of(above_0_bfloat16(float_of(BITS[i]))) == expected, "above 0: %08x",
              (unsigned)BITS[i]);
    }
}

void test_element_types(void)
{
    test_above_0();
    for (uint32_t code = 0; code < 65536; code++) {
#define ROW(id, name, ...) test_values_##name((uint16_t)code);
        FUSED_ADAMW_STORAGE_TYPES(ROW)
#undef ROW
    }
}

/* Upper halves of a float32 from 0 to 0xffff, that of infinity among them; beside each, lower ones
 * around the middle and at both ends. */
void test_master_weights(void)
{
    static const uint32_t LOWER[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { NUM_LOWER = sizeof LOWER / sizeof *LOWER };
    for (uint32_t upper = 0; upper < 65536; upper += 15)
        for (int k = 0; k < NUM_LOWER; k++) {
            const uint32_t bits = upper << 16 | LOWER[k];
            const uint32_t others = random_below(65536) << 16 | random_below(65536);
            const float x[2] = {float_of(bits), float_of(others)};
            const uint16_t halves[] = {(uint16_t)LOWER[k], (uint16_t)others};
            stored given = {{(uint16_t)upper, (uint16_t)(others >> 16)}, {0}};
#define ROW(id, name, type, buffer_format, dlpack_code, dlpack_bits, master_type, master_name)     \
    memcpy(given.masters, sizeof(master_type) == 2 ? (const void *)halves : x,                     \
           2 * sizeof(master_type));                                                               \
    test_##name(x, &given);
            FUSED_ADAMW_STORAGE_TYPES(ROW)
#undef ROW
        }
}
