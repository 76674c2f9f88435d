#include "harness.h"
#include "pages.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

long num_passed, num_failed;

int check(int passed, const char *format, ...)
{
    va_list arguments;
    num_passed += passed != 0;
    num_failed += passed == 0;
    if (!passed && num_failed <= 20) {
        va_start(arguments, format);
        printf("FAILED: ");
        vprintf(format, arguments);
        printf("\n");
        va_end(arguments);
    }
    return passed;
}

/* ---- guarded memory */

enum { CANARY = 0xa5 };

guarded guarded_copy(const void *from, size_t num_bytes, int at_end)
{
    const size_t page = page_size();
    const size_t usable = (num_bytes + 1 + page - 1) / page * page;
    guarded memory = {NULL, NULL, num_bytes, usable + 2 * page};
    memory.pages = new_pages(memory.num_pages_bytes);
    if (memory.pages == NULL || !guard_page(memory.pages) ||
        !guard_page(memory.pages + page + usable))
        abort();
    memset(memory.pages + page, CANARY, usable);
    memory.data = memory.pages + page + (at_end ? usable - num_bytes : 1);
    if (num_bytes > 0)
        memcpy(memory.data, from, num_bytes);
    return memory;
}

int guarded_is_intact(const guarded *memory)
{
    const size_t page = page_size();
    const unsigned char *const end = memory->pages + memory->num_pages_bytes - page;
    for (const unsigned char *byte = memory->pages + page; byte < end; byte++)
        if ((byte < memory->data || byte >= memory->data + memory->num_bytes) && *byte != CANARY)
            return 0;
    return 1;
}

void guarded_free(guarded *memory)
{
    free_pages(memory->pages, memory->num_pages_bytes);
}

/* ---- problems */

uint32_t random_below(uint32_t bound)
{
    static uint64_t state = 42;
    state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
    return (uint32_t)((state >> 33) % bound);
}

/* Of either sign, over some decades. */
static double random_value(double size)
{
    const double uniform = (random_below(2000001) - 1000000.0) / 1e6;
    return size * uniform * pow(10, random_below(5) - 2.0);
}

/* One of the NaNs has all bits set: rounded up as a number is, it would become 0. */
static double special_value(void)
{
    double values[] = {0, -0.0, INFINITY, -INFINITY, NAN, NAN, 1e-42, 3e38, 1e20};
    memset(&values[5], 0xff, sizeof *values);
    return values[random_below(sizeof values / sizeof *values)];
}

static void put(const char *type, void *array, ptrdiff_t i, double x)
{
    if (strcmp(type, "float64") == 0)
        ((double *)array)[i] = x;
    else
        oracle_store(type, array, i, (float)x, -1);
}

static void fill_8bit(problem *p)
{
    for (ptrdiff_t i = 0; i < p->size; i++) {
        ((int8_t *)p->arrays[M])[i] = (int8_t)((int)random_below(255) - 127);
        ((uint8_t *)p->arrays[V])[i] = (uint8_t)random_below(255);
    }
    for (size_t block = 0; block < p->num_bytes[V_SCALE] / 4; block++) {
        const uint32_t shift = 5 + random_below(16);
        ((float *)p->arrays[M_SCALE])[block] = (float)fabs(random_value(0.1));
        ((uint32_t *)p->arrays[V_SCALE])[block] =
            (0x30000000 + random_below(0x8000000)) / (1u << shift) * (1u << shift) + shift;
    }
}

void problem_fill(problem *p)
{
    const char *element = fused_adamw_element_types[p->element_type].name;
    const char *state = fused_adamw_state_formats[p->state_format].name;
    for (int role = 0; role < NUM_ROLES; role++)
        p->arrays[role] = p->unit[role] == 0 ? NULL : calloc(p->num_bytes[role] + 1, 1);
    for (ptrdiff_t i = 0; i < p->size; i++) {
        const double gradient = random_below(100) == 0 ? special_value() : random_value(1);
        put(oracle_grad_type(p), p->arrays[GRADS], i, gradient);
        put(element, p->arrays[PARAMS], i, random_value(1));
        if (p->unit[MASTER] == sizeof(float))
            put("float32", p->arrays[MASTER], i, random_value(1));
        if (p->unit[MASTER] == sizeof(int16_t)) { /* any beside any, as others write parameters */
            ((int16_t *)p->arrays[MASTER])[i] = (int16_t)((int)random_below(65536) - 32768);
            if (random_below(50) == 0)
                put(element, p->arrays[PARAMS], i, special_value());
        }
        if (p->ema)
            put(p->unit[EMA] == 8 ? "float64" : "float32", p->arrays[EMA], i, random_value(1));
        if (p->unit[V_SCALE] == 0) {
            put(state, p->arrays[M], i, random_value(0.1));
            put(state, p->arrays[V], i, fabs(random_value(0.01)));
        }
        if (p->amsgrad)
            put(state, p->arrays[V_MAX], i, fabs(random_value(0.01)));
    }
    if (p->unit[V_SCALE] > 0)
        fill_8bit(p);
}

void problem_without_large_grads(problem *p)
{
    const char *type = oracle_grad_type(p);
    for (ptrdiff_t i = 0; i < p->size; i++)
        if (!(fabs(oracle_grad(p, i)) < 1e6))
            put(type, p->arrays[GRADS], i, 1);
}

problem problem_copy(const problem *p)
{
    problem copy = *p;
    for (int role = 0; role < NUM_ROLES; role++)
        if (p->arrays[role]) {
            copy.arrays[role] = malloc(p->num_bytes[role] + 1);
            memcpy(copy.arrays[role], p->arrays[role], p->num_bytes[role]);
        }
    return copy;
}

void problem_free(problem *p)
{
    for (int role = 0; role < NUM_ROLES; role++)
        free(p->arrays[role]);
}

static int is_nan(const problem *p, int role, const void *array, size_t i)
{
    const int is_element = role == PARAMS || role == GRADS;
    const char *type = is_element ? fused_adamw_element_types[p->element_type].name
                                  : fused_adamw_state_formats[p->state_format].m_type;
    double x;
    if (role == M_SCALE || role == V_SCALE || p->unit[role] == 1 ||
        (role == MASTER && p->unit[role] == sizeof(int16_t)))
        return 0;
    if (p->unit[role] == 2)
        return isnan(oracle_load(type, array, (ptrdiff_t)i));
    if (p->unit[role] == 4)
        return isnan(oracle_load("float32", array, (ptrdiff_t)i));
    memcpy(&x, (const char *)array + 8 * i, 8);
    return isnan(x);
}

int same_bits(const problem *expected, int role, const void *found)
{
    const char *a = expected->arrays[role], *b = found;
    const size_t unit = expected->unit[role];
    if (unit == 0 || memcmp(a, b, expected->num_bytes[role]) == 0)
        return 1;
    for (size_t i = 0; i < expected->num_bytes[role] / unit; i++)
        if (memcmp(a + i * unit, b + i * unit, unit) != 0 &&
            !(is_nan(expected, role, a, i) && is_nan(expected, role, b, i)))
            return 0;
    return 1;
}

fused_adamw_tensor tensor_of(const problem *p, void *const *arrays)
{
    return (fused_adamw_tensor){
        .params = arrays[PARAMS],
        .grads = arrays[GRADS],
        .m = arrays[M],
        .v = arrays[V],
        .m_scale = arrays[M_SCALE],
        .v_scale = arrays[V_SCALE],
        .master = arrays[MASTER],
        .buffers = {[FUSED_ADAMW_V_MAX] = arrays[V_MAX], [FUSED_ADAMW_EMA] = arrays[EMA]},
        .size = p->size,
        .element_type = p->element_type,
        .state_format = p->state_format,
        .has_wide_grads = p->wide_grads,
    };
}
