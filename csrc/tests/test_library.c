/* Tests of all but the steps themselves: scalars, tables, instruction sets, fork. */
#define _DEFAULT_SOURCE /* of fork and alarm */
#include "../threads.h"
#include "test_kernels.h"

#include <dirent.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

enum { FLOAT32 = FUSED_ADAMW_FLOAT32, FLOAT64 = FUSED_ADAMW_FLOAT64 };
enum { NOT_REPRESENTABLE = FUSED_ADAMW_NOT_REPRESENTABLE };

static const fused_adamw_hyperparams GOOD = {1e-3, 0.9, 0.999, 1e-8, 0.01, {0}};

/* ---- scalars */

static void test_statuses(void)
{
    static const struct {
        double value;
        int in_float32, in_float64; /* whether it is bad (1), or not representable (2) */
    } NONNEGATIVE[] = {{0, 0, 0},        {1e30, 0, 0},      {-1e-11, 1, 1}, {1e300, 2, 0},
                       {INFINITY, 1, 1}, {-INFINITY, 1, 1}, {NAN, 1, 1}},
      BELOW_1[] = {{0, 0, 0},         {0.99, 0, 0},     {-1e-300, 1, 1}, {1, 1, 1},
                   {1 - 1e-12, 2, 0}, {INFINITY, 1, 1}, {NAN, 1, 1}};
    fused_adamw_hyperparams h;
    const struct {
        double *field;
        int status, below_1;
    } FIELDS[] = {{&h.lr, FUSED_ADAMW_BAD_LR, 0},
                  {&h.beta1, FUSED_ADAMW_BAD_BETA1, 1},
                  {&h.beta2, FUSED_ADAMW_BAD_BETA2, 1},
                  {&h.eps, FUSED_ADAMW_BAD_EPS, 0},
                  {&h.weight_decay, FUSED_ADAMW_BAD_WEIGHT_DECAY, 0},
                  {&h.buffer_decays[FUSED_ADAMW_V_MAX],
                   FUSED_ADAMW_BAD_BUFFER_DECAY + FUSED_ADAMW_V_MAX, 1},
                  {&h.buffer_decays[FUSED_ADAMW_EMA],
                   FUSED_ADAMW_BAD_BUFFER_DECAY + FUSED_ADAMW_EMA, 1}};
    for (size_t f = 0; f < sizeof FIELDS / sizeof *FIELDS; f++)
        for (size_t i = 0; i < sizeof BELOW_1 / sizeof *BELOW_1; i++)
            for (int type = 0; type < FUSED_ADAMW_NUM_ELEMENT_TYPES; type++) {
                fused_adamw_scalars scalars;
                h = GOOD;
                h.lr = 1; /* so that weight_decay alone makes their product overflow */
                *FIELDS[f].field = FIELDS[f].below_1 ? BELOW_1[i].value : NONNEGATIVE[i].value;
                const int double_ = type == FLOAT64;
                const int bad = FIELDS[f].below_1
                                    ? double_ ? BELOW_1[i].in_float64 : BELOW_1[i].in_float32
                                : double_ ? NONNEGATIVE[i].in_float64
                                          : NONNEGATIVE[i].in_float32;
                const int expected =
                    bad == 0 ? 0 : FIELDS[f].status | (bad == 2 ? NOT_REPRESENTABLE : 0);
                const int status = fused_adamw_derive_scalars(&h, type, 1, &scalars);
                check(status == expected, "status of hyper-parameter %d, value %d, type %d: %d",
                      FIELDS[f].status, (int)i, type, status);
            }
}

static void test_rates_near_0(void)
{
    fused_adamw_scalars scalars;
    fused_adamw_hyperparams h = GOOD;
    h.lr = FUSED_ADAMW_LEAST_LR;
    check(fused_adamw_derive_scalars(&h, FLOAT64, 1, &scalars) == FUSED_ADAMW_OK, "least lr");
    check(scalars.step == h.lr / (1 - h.beta1), "least lr is used as it is");
    h.lr *= 1 + 1e-9;
    check(fused_adamw_derive_scalars(&h, FLOAT64, 1, &scalars) == FUSED_ADAMW_BAD_LR, "less");
    h = GOOD;
    h.weight_decay = -1e-300;
    check(fused_adamw_derive_scalars(&h, FLOAT64, 1, &scalars) == FUSED_ADAMW_BAD_WEIGHT_DECAY,
          "weight_decay just below 0");
    h = GOOD;
    h.eps = -1e-300;
    check(fused_adamw_derive_scalars(&h, FLOAT64, 1, &scalars) == FUSED_ADAMW_BAD_EPS,
          "eps just below 0");
}

void test_scalars(void)
{
    fused_adamw_scalars scalars;
    fused_adamw_hyperparams several = {NAN, 2, 2, -1, -1, {0, 2}};
    test_statuses();
    test_rates_near_0();
    check(fused_adamw_derive_scalars(&several, FLOAT32, 1, &scalars) == FUSED_ADAMW_BAD_LR,
          "lr is checked first");
    check(fused_adamw_derive_scalars(&GOOD, FLOAT32, 3, &scalars) == FUSED_ADAMW_OK, "good");
    check(fused_adamw_finish_scalars(&scalars, 1e39, 1, 0) ==
              (FUSED_ADAMW_BAD_GRAD_SCALE | NOT_REPRESENTABLE),
          "grad_scale too large for float32");
    check(fused_adamw_finish_scalars(&scalars, NAN, 1, 0) == FUSED_ADAMW_BAD_GRAD_SCALE &&
              fused_adamw_finish_scalars(&scalars, INFINITY, 1, 0) == FUSED_ADAMW_BAD_GRAD_SCALE,
          "grad_scale is not finite");
    check(fused_adamw_finish_scalars(&scalars, 2, NAN, 1) == 0 && isnan(scalars.scale),
          "a factor of NaN");
    check(fused_adamw_finish_scalars(&scalars, 3, 0.1, 1) == 0 && scalars.scale == (float)(3 * 0.1),
          "the scale is the product, rounded once");
    for (int role = 0; role < 3; role++)
        check(scalars.dither[role] == oracle_dither(role, 0, 0, 3) - oracle_dither(role, 0, 0, 0),
              "dither of role %d", role);
    check(fused_adamw_rng_key(5, 7) == oracle_hash(oracle_hash(5, 0), 7), "random key");
    check(fused_adamw_clip_factor(2, 0) == 1 && fused_adamw_clip_factor(0.5, 1) == 1 &&
              fused_adamw_clip_factor(2, 1) == 1 / (2 + 1e-6) &&
              isnan(fused_adamw_clip_factor(NAN, 1)),
          "clip factor");
}

/* ---- tables, instruction sets, threads */

/* The name of a storage type ends with its bits. */
static int bits_of_name(const char *type)
{
    return type ? (int)strtol(type + strcspn(type, "0123456789"), NULL, 10) : 0;
}

static void test_element_type(int row)
{
    const fused_adamw_element_type *type = &fused_adamw_element_types[row];
    const int bits = bits_of_name(type->name);
    check(type->size * 8 == bits && type->dlpack_bits == bits &&
              type->master_size * 8 == bits_of_name(type->master_type),
          "sizes of element type %d", row);
}

static void test_state_format(int row)
{
    const fused_adamw_state_format *format = &fused_adamw_state_formats[row];
    check(format->m_bits == bits_of_name(format->m_type) &&
              format->v_bits == bits_of_name(format->v_type),
          "bits of state format %d", row);
    check(FUSED_ADAMW_BLOCK % format->block == 0 &&
              (format->block > 1) == (format->m_scale_type != NULL) &&
              (format->block > 1) == (format->v_scale_type != NULL),
          "block of state format %d", row);
}

static void test_tables(void)
{
    int num_rows = 0;
    for (; fused_adamw_element_types[num_rows].name; num_rows++)
        test_element_type(num_rows);
    check(num_rows == FUSED_ADAMW_NUM_ELEMENT_TYPES, "number of element types");
    for (num_rows = 0; fused_adamw_state_formats[num_rows].name; num_rows++)
        test_state_format(num_rows);
    check(num_rows == FUSED_ADAMW_NUM_STATE_FORMATS, "number of state formats");
    check(FUSED_ADAMW_CHUNK % FUSED_ADAMW_BLOCK == 0, "chunks are whole blocks");
}

void test_dispatch(void)
{
    const fused_adamw_isa *isa, *last = NULL, *widest = NULL;
    test_tables();
    for (int i = 0; (isa = fused_adamw_isa_at(i)) != NULL; i++) {
        last = isa;
        if (widest == NULL && fused_adamw_isa_available(isa))
            widest = isa;
        check(fused_adamw_find_isa(fused_adamw_isa_name(isa)) ==
                  (fused_adamw_isa_available(isa) ? isa : NULL),
              "finding instruction set %d", i);
    }
    check(last && fused_adamw_isa_available(last), "the last instruction set runs everywhere");
    check(fused_adamw_find_isa(NULL) == widest, "the widest instruction set is the default");
    check(fused_adamw_find_isa("mmx") == NULL, "an unknown instruction set");
    const fused_adamw_tensor tensors[] = {{.size = 32768}, {.size = 32768}};
    const int several = fused_adamw_threading() != NULL ? 2 : 1;
    check(fused_adamw_useful_threads(tensors, 2, 8) == several &&
              fused_adamw_useful_threads(tensors, 2, 1) == 1 &&
              fused_adamw_useful_threads(tensors, 1, 8) == 1 &&
              fused_adamw_useful_threads(tensors, 0, 8) == 1,
          "useful threads");
    for (int num_threads = 1; num_threads <= 3; num_threads++)
        check(fused_adamw_team_size(num_threads) == num_threads, "a team of %d", num_threads);
    check(fused_adamw_team_size(2) == 2, "a smaller team than before");
    check(fused_adamw_default_threads(0, 1) == 1 &&
              fused_adamw_default_threads(0, 0) >= 1,
          "default threads");
}

/* ---- threads */

/* 0 where that is not known. */
static int count_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int found = -2; /* . and .. */
    if (tasks == NULL)
        return 0;
    while (readdir(tasks))
        found++;
    closedir(tasks);
    return found;
}

/* OpenMP keeps threads for the next region. To be called before any other step. */
void test_threads_of_a_step(void)
{
    float memory[4][3 * 64] = {{0}};
    fused_adamw_scalars scalars;
    fused_adamw_derive_scalars(&GOOD, FLOAT32, 1, &scalars);
    fused_adamw_finish_scalars(&scalars, 1, 1, 0);
    const fused_adamw_tensor tensor = {.params = memory[0],
                                       .grads = memory[1],
                                       .m = memory[2],
                                       .v = memory[3],
                                       .size = sizeof *memory / sizeof **memory,
                                       .scalars = &scalars};
    const int before = count_threads();
    const int is_known = before > 0 && fused_adamw_threading() != NULL;
    for (int num_threads = 1; num_threads <= 3; num_threads++) {
        fused_adamw_step(fused_adamw_find_isa(NULL), &tensor, 1, num_threads);
        const int more = count_threads() - before;
        check(!is_known || (num_threads == 1 ? more == 0 : more >= num_threads - 1),
              "a step on %d threads starts %d", num_threads, more);
    }
}

/* ---- fork */

#if defined(_WIN32)
void test_fork(void)
{
}
#else

/* One step on two threads of as many elements as a forked child uses threads for. */
static double step_on_two_threads(void)
{
    const ptrdiff_t size = 4194304 + 5;
    float *memory = calloc((size_t)size * 4, sizeof *memory);
    fused_adamw_scalars scalars;
    double sum = 0;
    for (ptrdiff_t i = 0; i < size; i++)
        memory[size + i] = (float)(i % 1000);
    fused_adamw_derive_scalars(&GOOD, FLOAT32, 1, &scalars);
    fused_adamw_finish_scalars(&scalars, 1, 1, 0);
    const fused_adamw_tensor tensor = {.params = memory,
                                       .grads = memory + size,
                                       .m = memory + 2 * size,
                                       .v = memory + 3 * size,
                                       .size = size,
                                       .scalars = &scalars};
    fused_adamw_step(fused_adamw_find_isa(NULL), &tensor, 1, 2);
    for (ptrdiff_t i = 0; i < size; i++)
        sum += memory[i];
    free(memory);
    return sum;
}

void test_fork(void)
{
    const double expected = step_on_two_threads();
    int status = 0;
    const pid_t child = fork();
    if (child == 0) {
        alarm(60); /* instead of waiting for threads that only the parent has */
        _exit(step_on_two_threads() == expected ? 0 : 1);
    }
    check(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
              WEXITSTATUS(status) == 0,
          "a step in a forked child");
}
#endif
