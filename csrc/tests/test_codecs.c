/* Moments, encoded and decoded, against the oracle. */
#include "test_kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static float float_with(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* So that something is rounded: m, v and v_max. */
static void change_moments(float *const in[3], ptrdiff_t size)
{
    /* Of v: the smallest float32 and bfloat16 above 0, and around half of the latter; and 2^-148,
     * whose root is the smallest power of 2 that is one. */
    static const uint32_t tiny[] = {0x8000, 0x7fff, 2, 0xffff, 0x10000, 0x8001, 1, 0x1ffff};
    for (ptrdiff_t i = 0; i < size; i++) {
        in[0][i] *= 1.2345f;
        in[1][i] *= random_below(20) == 0 ? 1e-20f : 1.2345f;
        in[2][i] *= 1.5f;
        if (random_below(100) == 0)
            in[0][i] = INFINITY;
        if (i / 256 % 2 == 1) { /* around 2^-96: as 0 are stored smaller ratios to sqrt(v) */
            in[0][i] = ldexpf(1 + (float)random_below(1000) / 1000, -(90 + (int)(i / 256)));
            if (i / 256 == 7 || i / 256 == 9)
                in[0][i] = i / 256 == 7 ? 0x1p-96f : 0x1.fffffep-97f;
            in[1][i] = 1;
        }
        if (i / 256 % 4 == 2) /* a block without a root above 0 */
            in[1][i] = 0;
        if (i / 256 % 4 == 0 && i % 256 % 36 == 0)
            in[1][i] = in[2][i] = float_with(tiny[i % 256 / 36]);
    }
}

/* Blocks whose lowest and highest root are as far apart as 253 steps reach, or a unit of the last
 * place off that, for every size of the steps; with a root of 0 and without. The largest ratio of m
 * to the root is beside the lowest root; in every second block the other ratios are halfway between
 * two stored values, where a unit of the last place decides. In every fourth an m is not finite. */
enum { BLOCKS_OF_RANGES = 16 * 3 * 3 * 2 };

static void set_ranges(float *const in[3], ptrdiff_t size)
{
    for (ptrdiff_t i = 0; i < size; i++) {
        const uint32_t block = (uint32_t)(i / 256), shift = 5 + block / 18 % 16;
        const uint32_t low = 0x30000000 + block % 3, place = (uint32_t)(i % 256);
        const uint32_t high = 0x30000000 + (253u << shift) - 1 + block / 3 % 3;
        const float root = float_with(place == 0   ? low
                                      : place == 1 ? high
                                                   : low + random_below(high - low));
        const float largest = 2 + (float)block / 100;
        const float code = block % 2 ? (float)(place % 254) - 126.5f
                                     : (float)random_below(1000) * 0.254f - 127;
        in[0][i] = (place == 0 ? largest : code * largest / 127) * root;
        if (place == 3 && block % 4 == 3)
            in[0][i] = block % 8 == 3 ? INFINITY : NAN;
        in[1][i] = place == 2 && block / 9 % 2 ? 0 : root * root;
        in[2][i] = in[1][i];
    }
}

/* Blocks whose roots lie within 1, 2, 4, ... units of the last place, and are all larger than the
 * ratios of m to them. In every fourth an m is not finite. */
enum { BLOCKS_OF_CLOSE_ROOTS = 32 };

static void set_close_roots(float *const in[3], ptrdiff_t size)
{
    for (ptrdiff_t i = 0; i < size; i++) {
        const uint32_t block = (uint32_t)(i / 256);
        const float root = float_with(0x3f000000 + random_below(1u << block / 2));
        in[0][i] = ((float)random_below(1000) - 500) * 1e-6f * root;
        if (block % 4 == 3 && i % 256 == 100)
            in[0][i] = INFINITY;
        in[1][i] = in[2][i] = root * root;
    }
}

/* `change` makes the moments that are encoded of random ones. */
static void test_codec(const fused_adamw_isa *isa, problem *p,
                       void (*change)(float *const in[3], ptrdiff_t size))
{
    const size_t num_floats = (size_t)p->size + 1;
    float *in[3], *out[3], *expected[3];
    for (int i = 0; i < 3; i++) {
        in[i] = calloc(num_floats, sizeof(float));
        out[i] = calloc(num_floats, sizeof(float));
        expected[i] = calloc(num_floats, sizeof(float));
    }
    problem_fill(p); /* what is overwritten */
    problem copy = problem_copy(p);
    oracle_decode(p, in[0], in[1], p->amsgrad ? in[2] : NULL);
    change(in, p->size);
    const fused_adamw_tensor tensor = tensor_of(p, p->arrays);
    const fused_adamw_tensor given = {
        .m = in[0], .v = in[1], .buffers = {[FUSED_ADAMW_V_MAX] = p->amsgrad ? in[2] : NULL}};
    const fused_adamw_tensor read = {
        .m = out[0], .v = out[1], .buffers = {[FUSED_ADAMW_V_MAX] = p->amsgrad ? out[2] : NULL}};
    fused_adamw_encode_state(isa, &tensor, &given);
    oracle_encode(&copy, in[0], in[1], p->amsgrad ? in[2] : NULL, 0, 0, 0);
    fused_adamw_decode_state(isa, &tensor, &read);
    oracle_decode(&copy, expected[0], expected[1], p->amsgrad ? expected[2] : NULL);
    for (int role = 0; role < NUM_ROLES; role++)
        check(same_bits(&copy, role, p->arrays[role]),
              "encoding %d elements in format %d: array %d", (int)p->size, p->state_format, role);
    for (int i = 0; i < 3; i++) {
        check(memcmp(out[i], expected[i], num_floats * sizeof(float)) == 0,
              "decoding %d elements of format %d: array %d", (int)p->size, p->state_format, i);
        free(in[i]), free(out[i]), free(expected[i]);
    }
    problem_free(p);
    problem_free(&copy);
}

void test_codecs(void)
{
    static const ptrdiff_t SIZES[] = {0, 1, 255, 256, 257, 5000};
    const fused_adamw_isa *isa;
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++)
        for (int state = 0; state < FUSED_ADAMW_NUM_STATE_FORMATS; state++)
            for (int k = 0; k < 2 * (int)(sizeof SIZES / sizeof *SIZES); k++) {
                const int is_float16 = state == FUSED_ADAMW_STATE_FLOAT16;
                problem p = {.element_type =
                                 is_float16 ? FUSED_ADAMW_FLOAT16 : FUSED_ADAMW_FLOAT32,
                             .state_format = state,
                             .amsgrad = k % 2,
                             .size = SIZES[k / 2]};
                if (fused_adamw_isa_available(isa) && oracle_layout(&p))
                    test_codec(isa, &p, change_moments);
            }
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++) {
        problem ranges = {.element_type = FUSED_ADAMW_FLOAT32,
                          .state_format = FUSED_ADAMW_STATE_8BIT,
                          .size = (ptrdiff_t)256 * BLOCKS_OF_RANGES};
        problem close = ranges;
        close.size = (ptrdiff_t)256 * BLOCKS_OF_CLOSE_ROOTS;
        if (fused_adamw_isa_available(isa) && oracle_layout(&ranges) && oracle_layout(&close)) {
            test_codec(isa, &ranges, set_ranges);
            test_codec(isa, &close, set_close_roots);
        }
    }
}
