/* Tests of the C library, without Python: every instruction set that this machine has against the
 * oracle, bit by bit. From the root of the repository:
 *
 *     cc -std=c11 -O2 -ffp-contract=off -fopenmp -fsanitize=address,undefined \
 *         $(find csrc -name "*.c") -lm -o /tmp/test_kernels && /tmp/test_kernels
 *
 * With OMP_WAIT_POLICY=passive it is faster on a busy machine. With the argument "threads" it does
 * only what is about several threads, for ThreadSanitizer.
 *
 * The last line of its output is "N passed, 0 failed"; the exit status is 1 if any failed. */
#include "test_kernels.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* On both sides of whatever a kernel divides by: vectors, blocks, cache lines, chunks, threads. */
static const ptrdiff_t SMALL_SIZES[] = {0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257};
static const ptrdiff_t WIDE_SIZES[] = {1, 257, 512};
static const ptrdiff_t LARGE_SIZES[] = {16383, 16384, 16385, 2 * 32768 + 1};

static const fused_adamw_hyperparams HYPERPARAMS = {1e-2, 0.9,   0.999,
                                                    1e-8, 0.1, {[FUSED_ADAMW_EMA] = 0.99}};
enum { RNG_KEY = 123456789, NUM_STEPS = 2 };
static const double GRAD_SCALE = -0.37; /* as of loss scaling, while maximizing */

/* How a problem is computed, which must not matter. */
typedef struct {
    const fused_adamw_isa *isa;
    int num_threads, at_end, num_parts;
} manner;

/* With step 1 the pages of the state are touched first. */
static int64_t first_step_of(const problem *p)
{
    return p->size % 2 == 1 ? 1 : 7;
}

/* Parts begin at multiples of it. */
static ptrdiff_t grain_of(const problem *p)
{
    return p->unit[M_SCALE] > 0 ? 256 : 1;
}

/* So large that the number of the block takes more than 32 bits. */
static ptrdiff_t element_offset_of(const problem *p)
{
    return PTRDIFF_MAX / 3 / grain_of(p) * grain_of(p);
}

ptrdiff_t divide_tensor(const problem *p, const fused_adamw_tensor *whole, int num_parts,
                        fused_adamw_tensor *parts)
{
    ptrdiff_t begin = 0, count = 0;
    for (int part = 1; part <= num_parts; part++) {
        const ptrdiff_t cut = p->size * part / num_parts / grain_of(p) * grain_of(p);
        const ptrdiff_t end = part == num_parts ? p->size : part == 2 ? begin : cut;
        fused_adamw_tensor *tensor = &parts[count++];
        *tensor = *whole;
        tensor->size = end - begin;
        tensor->element_offset += begin;
        void **fields[NUM_ROLES] = {[PARAMS] = &tensor->params,
                                    [M] = &tensor->m,
                                    [V] = &tensor->v,
                                    [V_MAX] = &tensor->buffers[FUSED_ADAMW_V_MAX],
                                    [M_SCALE] = &tensor->m_scale,
                                    [V_SCALE] = &tensor->v_scale,
                                    [MASTER] = &tensor->master,
                                    [EMA] = &tensor->buffers[FUSED_ADAMW_EMA]};
        for (int role = 0; role < NUM_ROLES; role++)
            if (fields[role] && *fields[role]) {
                const ptrdiff_t item = role == M_SCALE || role == V_SCALE ? begin / 256 : begin;
                *fields[role] = (char *)*fields[role] + item * (ptrdiff_t)p->unit[role];
            }
        tensor->grads = (const char *)whole->grads + begin * (ptrdiff_t)p->unit[GRADS];
        begin = end;
    }
    return count;
}

/* A copy that ends beside a page that cannot be accessed. */
static guarded guarded_tensors(const fused_adamw_tensor *tensors, ptrdiff_t count)
{
    return guarded_copy(tensors, (size_t)count * sizeof *tensors, 1);
}

static void step(manner how, const fused_adamw_tensor *tensors, ptrdiff_t count)
{
    guarded copy = guarded_tensors(tensors, count);
    fused_adamw_step(how.isa, (const void *)copy.data, count, how.num_threads);
    guarded_free(&copy);
}

static void run(const problem *start, const problem *expected, manner how)
{
    enum { MAX_PARTS = 4 };
    guarded memory[NUM_ROLES];
    void *arrays[NUM_ROLES];
    fused_adamw_tensor parts[MAX_PARTS];
    for (int role = 0; role < NUM_ROLES; role++) {
        memory[role] = guarded_copy(start->arrays[role], start->num_bytes[role], how.at_end);
        arrays[role] = start->unit[role] > 0 ? memory[role].data : NULL;
    }
    fused_adamw_tensor whole = tensor_of(start, arrays);
    whole.rng_key = RNG_KEY;
    whole.element_offset = element_offset_of(start);
    const ptrdiff_t count = divide_tensor(start, &whole, how.num_parts, parts);
    const int64_t first = first_step_of(start);
    for (int64_t t = first; t < first + NUM_STEPS; t++) {
        fused_adamw_scalars scalars;
        check(fused_adamw_derive_scalars(&HYPERPARAMS, start->element_type, t, &scalars) == 0 &&
                  fused_adamw_finish_scalars(&scalars, -GRAD_SCALE, -1, start->stochastic) == 0,
              "scalars of step %d", (int)t);
        for (ptrdiff_t i = 0; i < count; i++)
            parts[i].scalars = &scalars;
        step(how, parts, count);
    }
    for (int role = 0; role < NUM_ROLES; role++) {
        check(same_bits(expected, role, memory[role].data) && guarded_is_intact(&memory[role]),
              "%s, %s state, %d elements, amsgrad %d, master %d, ema %d, stochastic %d, wide "
              "gradients %d; %s, %d threads, at end %d, %d parts: array %d",
              fused_adamw_element_types[start->element_type].name,
              fused_adamw_state_formats[start->state_format].name, (int)start->size, start->amsgrad,
              start->master, start->ema, start->stochastic, start->wide_grads,
              fused_adamw_isa_name(how.isa), how.num_threads, how.at_end, how.num_parts, role);
        guarded_free(&memory[role]);
    }
}

/* The sums of a tensor that is alone, and of two of it with an empty one between them. */
static void test_sums(const problem *p, const fused_adamw_isa *isa)
{
    enum { MAX_CHUNKS = 5 };
    double expected[2 * MAX_CHUNKS] = {0}, found[2 * MAX_CHUNKS + 1];
    const fused_adamw_tensor tensor = tensor_of(p, p->arrays);
    fused_adamw_tensor tensors[] = {tensor, tensor, tensor};
    tensors[1].size = 0;
    const ptrdiff_t num_chunks = (p->size + FUSED_ADAMW_CHUNK - 1) / FUSED_ADAMW_CHUNK;
    oracle_sums(p, expected);
    oracle_sums(p, expected + num_chunks);
    for (int count = 1; count <= 3; count += 2) {
        guarded copy = guarded_tensors(tensors, count);
        const void *const given = copy.data;
        const ptrdiff_t total = fused_adamw_num_chunks(given, count);
        double sum = 0;
        check(total == (count == 1 ? num_chunks : 2 * num_chunks), "number of chunks");
        for (ptrdiff_t i = 0; i < total; i++)
            sum += expected[i];
        for (int num_threads = 1; num_threads <= 3; num_threads++) {
            for (int i = 0; i <= 2 * MAX_CHUNKS; i++)
                found[i] = -1; /* no sum of squares */
            fused_adamw_sum_squares(isa, given, count, num_threads, found);
            const double norm = fused_adamw_norm(found, total, -2), square = 2 * sqrt(sum);
            int same = norm == square || (norm != norm && square != square);
            for (ptrdiff_t i = 0; i < total; i++)
                same = same && (found[i] == expected[i] ||
                                (found[i] != found[i] && expected[i] != expected[i]));
            check(same, "sums of squares of %d tensors of %d elements of type %d, %s, %d threads",
                  count, (int)p->size, p->element_type, fused_adamw_isa_name(isa), num_threads);
        }
        guarded_free(&copy);
    }
}

static void test_problem(problem *start)
{
    const fused_adamw_isa *isa;
    problem_fill(start);
    problem expected = problem_copy(start);
    const int64_t first = first_step_of(start);
    for (int64_t t = first; t < first + NUM_STEPS; t++)
        oracle_step(&expected, &HYPERPARAMS, t, GRAD_SCALE, RNG_KEY, element_offset_of(start));
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++) {
        if (!fused_adamw_isa_available(isa))
            continue;
        for (int at_end = 0; at_end <= 1; at_end++)
            run(start, &expected, (manner){isa, 1, at_end, 1});
        if (start->size >= 255)
            run(start, &expected, (manner){isa, 1 + (int)start->size % 3, 0, 4});
        if (start->size >= 16383)
            for (int num_threads = 2; num_threads <= 3; num_threads++)
                run(start, &expected, (manner){isa, num_threads, 1, 1});
    }
    if (start->size >= 16383) /* or else every sum would be NaN */
        problem_without_large_grads(start);
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++)
        if (fused_adamw_isa_available(isa))
            test_sums(start, isa);
    problem_free(start);
    problem_free(&expected);
}

/* Every pair of element type and state format that there is, with every combination of options, or
 * with every `stride`th; with gradients of the element type, or wide ones. */
static void test_steps(const ptrdiff_t *sizes, int num_sizes, int stride, int wide_grads)
{
    for (int type = 0; type < FUSED_ADAMW_NUM_ELEMENT_TYPES; type++)
        for (int state = 0; state < FUSED_ADAMW_NUM_STATE_FORMATS; state++)
            for (int options = 0; options < 16; options += stride)
                for (int i = 0; i < num_sizes; i++) {
                    problem p = {.element_type = type,
                                 .state_format = state,
                                 .amsgrad = options & 1,
                                 .ema = options >> 1 & 1,
                                 .master = options >> 2 & 1,
                                 .stochastic = options >> 3,
                                 .wide_grads = wide_grads,
                                 .size = sizes[i]};
                    if (oracle_layout(&p))
                        test_problem(&p);
                }
}

enum { DECAYING_STEP = 7 };

/* A step of elements from `offset` on, whose v are the smallest bfloat16 above 0, and decay. */
static void test_smallest_v(problem *p, ptrdiff_t offset)
{
    const fused_adamw_isa *isa;
    fused_adamw_scalars scalars;
    fused_adamw_derive_scalars(&HYPERPARAMS, p->element_type, DECAYING_STEP, &scalars);
    fused_adamw_finish_scalars(&scalars, 1, 1, 1);
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++) {
        problem_fill(p);
        memset(p->arrays[GRADS], 0, p->num_bytes[GRADS]);
        uint16_t *const v = p->arrays[V];
        for (ptrdiff_t k = 0; k < p->size; k++)
            v[k] = 1;
        fused_adamw_tensor tensor = tensor_of(p, p->arrays);
        tensor.rng_key = RNG_KEY;
        tensor.element_offset = offset;
        tensor.scalars = &scalars;
        if (fused_adamw_isa_available(isa))
            fused_adamw_step(isa, &tensor, 1, 1);
        for (ptrdiff_t k = 0; k < p->size; k++)
            check(v[k] == 1, "v above 0 becomes 0: type %d, amsgrad %d, %s, element %d",
                  p->element_type, p->amsgrad, fused_adamw_isa_name(isa), (int)k);
        problem_free(p);
    }
}

/* With a dither whose upper 16 bits are 0, by which nothing is rounded up. */
static void test_dither_of_0(void)
{
    ptrdiff_t offset = 2;
    while (oracle_dither(0, RNG_KEY, (uint64_t)offset, DECAYING_STEP) >= 65536)
        offset++;
    for (int type = 0; type < FUSED_ADAMW_NUM_ELEMENT_TYPES; type++)
        for (int options = 0; options < 4; options++) {
            problem p = {.element_type = type,
                         .state_format = FUSED_ADAMW_STATE_BFLOAT16,
                         .stochastic = 1,
                         .amsgrad = options & 1,
                         .size = 4};
            if (oracle_layout(&p))
                test_smallest_v(&p, offset - (options >> 1));
        }
}

static int print_result(void)
{
    const fused_adamw_isa *isa;
    printf("with");
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++)
        if (fused_adamw_isa_available(isa))
            printf(" %s", fused_adamw_isa_name(isa));
    printf(": %ld passed, %ld failed\n", num_passed, num_failed);
    return num_failed > 0;
}

int main(int argc, char **argv)
{
    fused_adamw_init();
    test_threads_of_a_step();
    test_fork();
    test_callers();
    if (argc == 2 && strcmp(argv[1], "threads") == 0)
        return print_result();
    test_scalars();
    test_dispatch();
    test_codecs();
    test_element_types();
    test_master_weights();
    test_dithers();
    test_bias_corrections();
    test_offsets();
    test_dither_of_0();
    test_steps(SMALL_SIZES, sizeof SMALL_SIZES / sizeof *SMALL_SIZES, 1, 0);
    test_steps(LARGE_SIZES, sizeof LARGE_SIZES / sizeof *LARGE_SIZES, 5, 0);
    test_steps(WIDE_SIZES, sizeof WIDE_SIZES / sizeof *WIDE_SIZES, 1, 1);
    return print_result();
}
