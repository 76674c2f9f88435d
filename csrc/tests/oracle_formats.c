/* The formats of moments and of elements: oracle.h. */
#include "oracle.h"

#include <math.h>
#include <string.h>

static int is_named(const char *name, const char *expected)
{
    return strcmp(name, expected) == 0;
}

static const char *state_name(const problem *p)
{
    return fused_adamw_state_formats[p->state_format].name;
}

/* ---- random numbers and dither */

/* lowbias32 of key + index, in arithmetic modulo 2^32. */
uint32_t oracle_hash(uint32_t key, uint64_t index)
{
    const uint64_t modulus = 1ull << 32;
    uint64_t x = (key + index) % modulus;
    x = (x ^ x / 65536) * 0x7feb352d % modulus;
    x = (x ^ x / 32768) * 0x846ca68b % modulus;
    return (uint32_t)(x ^ x / 65536);
}

/* 32 bits of dither of one element in step t: the random number of its block of 256, rotated, plus
 * multiples of two irrational fractions: t times 1/rho of the plastic number, 1/phi of the golden
 * ratio, or 1/rho^2; and the position in the block times the fractional part of a square root. */
uint32_t oracle_dither(int role, uint32_t key, uint64_t index, int64_t t)
{
    static const double OF_T[] = {0.75487766624669276, 0.61803398874989485, 0.56984029099805327};
    static const int ROTATION[] = {0, 16, 8}, SQUARE[] = {31, 41, 43};
    const double of_position = fmod(sqrt(SQUARE[role]), 1);
    const uint64_t block = index / 256, position = index % 256;
    const uint64_t random = oracle_hash(oracle_hash(key, block >> 32), block % (1ull << 32));
    const uint64_t rotated = (random << ROTATION[role]) | (random << ROTATION[role] >> 32);
    return (uint32_t)(rotated + (uint64_t)t * (uint64_t)floor(OF_T[role] * 0x1p32) +
                      position * (uint64_t)floor(of_position * 0x1p32));
}

/* ---- 16 bits: sign, exponent, `mantissa` bits; subnormal below 2^min_exponent */

typedef struct {
    int mantissa, min_exponent;
} float16_layout;

static float16_layout layout_of(const char *type)
{
    return is_named(type, "bfloat16") ? (float16_layout){7, -126} : (float16_layout){10, -14};
}

static unsigned inf_code(float16_layout f)
{
    return (1u << 15) - (1u << f.mantissa);
}

static float load_16(uint16_t code, float16_layout f)
{
    const unsigned unit = 1u << f.mantissa, magnitude = code % 32768, exponent = magnitude / unit;
    const int scale = f.min_exponent - f.mantissa + (exponent > 0 ? (int)exponent - 1 : 0);
    const double fraction = magnitude % unit + (exponent > 0 ? unit : 0);
    const double value = magnitude > inf_code(f)    ? (double)NAN
                         : magnitude == inf_code(f) ? (double)INFINITY
                                                    : ldexp(fraction, scale);
    return (float)(code / 32768 ? -value : value);
}

/* `dither`: 16 bits, or below 0 to the nearest, ties to even. */
static uint16_t store_16(float x, float16_layout f, int32_t dither)
{
    const unsigned sign = signbit(x) ? 32768 : 0;
    unsigned code;
    if (isnan(x))
        return (uint16_t)(sign + inf_code(f) + (1u << (f.mantissa - 1)));
    if (isinf(x))
        return (uint16_t)(sign + inf_code(f));
    const double value = fabs((double)x);
    const int exponent = x == 0 || ilogb(value) < f.min_exponent ? f.min_exponent : ilogb(value);
    const double units = ldexp(value, f.mantissa - exponent), below = floor(units);
    code = (unsigned)(exponent - f.min_exponent) * (1u << f.mantissa) + (unsigned)below;
    if (dither >= 0)
        code += (units - below) * 65536 + dither >= 65536;
    else
        code += units - below > 0.5 || (units - below == 0.5 && code % 2 == 1);
    return (uint16_t)(sign + (code < inf_code(f) ? code : inf_code(f)));
}

float oracle_load(const char *type, const void *array, ptrdiff_t i)
{
    float x;
    uint16_t code;
    if (is_named(type, "float32")) {
        memcpy(&x, (const char *)array + 4 * i, 4);
        return x;
    }
    memcpy(&code, (const char *)array + 2 * i, 2);
    return load_16(code, layout_of(type));
}

void oracle_store(const char *type, void *array, ptrdiff_t i, float x, int32_t dither)
{
    if (is_named(type, "float32")) {
        memcpy((char *)array + 4 * i, &x, 4);
        return;
    }
    const uint16_t code = store_16(x, layout_of(type), is_named(type, "float16") ? -1 : dither);
    memcpy((char *)array + 2 * i, &code, 2);
}

/* ---- 8 bits */

static int64_t bits_as_int(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static float int_as_bits(int64_t value)
{
    const uint32_t bits = (uint32_t)value;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void decode_8bit(const problem *p, float *m, float *v)
{
    for (ptrdiff_t i = 0; i < p->size; i++) {
        const ptrdiff_t block = i / 256;
        const int code = ((const uint8_t *)p->arrays[V])[i];
        uint32_t v_scale;
        float m_scale;
        memcpy(&v_scale, (const char *)p->arrays[V_SCALE] + 4 * block, 4);
        memcpy(&m_scale, (const char *)p->arrays[M_SCALE] + 4 * block, 4);
        const int64_t unit = (int64_t)1 << v_scale % 32, base = (int64_t)v_scale / 32 * 32;
        const float root = code == 0 ? 0 : int_as_bits(base + (code - 1) * unit);
        m[i] = m_scale * (float)((const int8_t *)p->arrays[M])[i] * root;
        v[i] = root * root;
    }
}

/* base + shift for a block with roots above 0 whose bits reach from low to high. */
static int64_t scale_of(int64_t low, int64_t high)
{
    for (int shift = 5; high > 0 && shift <= 20; shift++) {
        const int64_t unit = (int64_t)1 << shift, base = low - low % unit;
        const int64_t top = (high + unit - 1) / unit * unit, lowest = top - 253 * unit;
        if (base >= lowest || shift == 20)
            return (base >= lowest ? base : lowest) + shift;
    }
    return bits_as_int(0x1p-75f) + (1 << 20) + 20;
}

static void encode_8bit_block(problem *p, ptrdiff_t begin, int n, const float *m, const float *v,
                              uint32_t (*dither)[2])
{
    int64_t root_bits[256], low = INT64_MAX, high = 0;
    float ratio[256], largest = 0;
    for (int i = 0; i < n; i++) {
        const float root = sqrtf(v[i]);
        root_bits[i] = root > 0 && isfinite(root) ? bits_as_int(root) : 0;
        if (root_bits[i] > 0 && root_bits[i] < low)
            low = root_bits[i];
        if (root_bits[i] > high)
            high = root_bits[i];
    }
    const int64_t scale = scale_of(low, high), unit = (int64_t)1 << scale % 32,
                  base = scale / 32 * 32;
    for (int i = 0; i < n; i++) {
        const int64_t above = root_bits[i] > base ? root_bits[i] - base : 0;
        const int64_t fraction = (int64_t)(dither[i][0] / (0x100000000 / unit));
        const int64_t steps = above / unit + (above % unit + fraction >= unit);
        ratio[i] = root_bits[i] == 0 ? 0 : m[i] / int_as_bits(base + above);
        if (!isfinite(ratio[i]))
            ratio[i] = 0;
        largest = fmaxf(largest, fabsf(ratio[i]));
        ((uint8_t *)p->arrays[V])[begin + i] = root_bits[i] == 0 ? 0 : (uint8_t)(steps + 1);
    }
    if (largest < 0x1p-96f)
        largest = 0;
    const float top = 127 * 0x1p24f, m_scale = largest / 127;
    float factor = largest > 0 ? top / largest : 0;
    if (factor * largest > top)
        factor = nextafterf(factor, 0);
    for (int i = 0; i < n; i++) {
        const int64_t fine = (int64_t)truncf(ratio[i] * factor) + dither[i][1] / 256;
        ((int8_t *)p->arrays[M])[begin + i] = (int8_t)floor((double)fine / 0x1p24);
    }
    const uint32_t v_scale = (uint32_t)scale;
    memcpy((char *)p->arrays[V_SCALE] + 4 * (begin / 256), &v_scale, 4);
    memcpy((char *)p->arrays[M_SCALE] + 4 * (begin / 256), &m_scale, 4);
}

/* ---- moments */

void oracle_decode(const problem *p, float *m, float *v, float *v_max)
{
    if (is_named(state_name(p), "8bit")) {
        decode_8bit(p, m, v);
        return;
    }
    for (ptrdiff_t i = 0; i < p->size; i++) {
        m[i] = oracle_load(state_name(p), p->arrays[M], i);
        v[i] = oracle_load(state_name(p), p->arrays[V], i);
        if (v_max)
            v_max[i] = oracle_load(state_name(p), p->arrays[V_MAX], i);
    }
}

/* A number above 0 is stored as one above 0. */
static void store_v(const char *type, void *array, ptrdiff_t i, float v, int32_t dither)
{
    const float least = int_as_bits(0x10000);
    oracle_store(type, array, i, is_named(type, "bfloat16") && v > 0 && v < least ? least : v,
                 dither);
}

void oracle_encode(problem *p, const float *m, const float *v, const float *v_max, uint32_t key,
                   ptrdiff_t offset, int64_t t)
{
    const char *type = state_name(p);
    for (ptrdiff_t begin = 0; begin < p->size; begin += 256) {
        const int n = p->size - begin < 256 ? (int)(p->size - begin) : 256;
        uint32_t dither[256][2];
        for (int i = 0; i < n; i++)
            for (int role = 0; role < 2; role++)
                dither[i][role] = p->stochastic
                                      ? oracle_dither(role, key, (uint64_t)(offset + begin + i), t)
                                      : 0x80000000;
        if (is_named(type, "8bit")) {
            encode_8bit_block(p, begin, n, m + begin, v + begin, dither);
            continue;
        }
        for (int k = 0; k < n; k++) {
            const ptrdiff_t i = begin + k;
            const int32_t of_v = p->stochastic ? (int32_t)(dither[k][0] / 65536) : -1;
            const int32_t of_m = p->stochastic ? (int32_t)(dither[k][1] / 65536) : -1;
            oracle_store(type, p->arrays[M], i, m[i], of_m);
            store_v(type, p->arrays[V], i, v[i], of_v);
            if (v_max)
                store_v(type, p->arrays[V_MAX], i, v_max[i], of_v);
        }
    }
}

/* ---- master weights: bfloat16, with the signed distance from it in units of float32's last place */

float oracle_load_master(const problem *p, ptrdiff_t i)
{
    const char *type = fused_adamw_element_types[p->element_type].name;
    if (!is_named(type, "bfloat16"))
        return ((float *)p->arrays[MASTER])[i];
    const float param = oracle_load(type, p->arrays[PARAMS], i);
    const int64_t bits = bits_as_int(param) + ((int16_t *)p->arrays[MASTER])[i];
    const float master = bits < 0 ? NAN : int_as_bits(bits);
    return isnan(master) ? param : master;
}

void oracle_store_master(problem *p, ptrdiff_t i, float x)
{
    const char *type = fused_adamw_element_types[p->element_type].name;
    if (!is_named(type, "bfloat16")) {
        ((float *)p->arrays[MASTER])[i] = x;
        oracle_store(type, p->arrays[PARAMS], i, x, -1);
        return;
    }
    const int64_t bits = bits_as_int(x), param = (bits + 32768) / 65536 * 65536;
    oracle_store(type, p->arrays[PARAMS], i, isnan(x) ? x : int_as_bits(param), -1);
    ((int16_t *)p->arrays[MASTER])[i] = isnan(x) ? 0 : (int16_t)(bits - param);
}
