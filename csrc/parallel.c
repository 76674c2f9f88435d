/* Splits the work of one call over threads. */
#include "first_touch.h"
#include "float_env.h"
#include "internal.h"
#include "threads.h"

#if HAS_OPENMP
#include <omp.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif
#elif FUSED_ADAMW_DISPATCH
#include <dispatch/dispatch.h>
#endif

/* What threads divide among themselves: the units [0, total), in parts that begin at multiples of
 * `grain`. */
struct job {
    void (*work)(const struct job *job, ptrdiff_t begin, ptrdiff_t end);
    ptrdiff_t total;
    ptrdiff_t grain;
    int num_threads;
    const fused_adamw_isa *isa;
    const fused_adamw_tensor *tensors;
    double *partial_sums;
};

static ptrdiff_t total_size(const fused_adamw_tensor *tensors, ptrdiff_t count)
{
    ptrdiff_t total = 0;
    for (ptrdiff_t i = 0; i < count; i++)
        total += tensors[i].size;
    return total;
}

/* ---- the step: a unit is an element of the tensors laid end to end */

/* Whole cache lines in every element type, so that threads do not write to the same one. */
#define GRAIN 64

/* The kernel that reads a gradient of this element type. */
static int grad_kernel(int element_type)
{
    return element_type < LOW_PRECISION ? element_type : LOW_PRECISION;
}

static int step_kernel(const fused_adamw_tensor *tensor)
{
    return tensor->state_format == tensor->element_type ? grad_kernel(tensor->element_type)
                                                        : LOW_PRECISION;
}

/* Where [0, end) of a tensor ends if the low-precision kernel steps it: rounded up to a block
 * boundary, so that no block is shared by two threads. */
static ptrdiff_t end_of_block(const fused_adamw_tensor *tensor, ptrdiff_t end)
{
    if (step_kernel(tensor) == LOW_PRECISION)
        end = (end + FUSED_ADAMW_BLOCK - 1) / FUSED_ADAMW_BLOCK * FUSED_ADAMW_BLOCK;
    return end < tensor->size ? end : tensor->size;
}

/* The first step proceeds chunk by chunk: a chunk is still in the cache after its pages were
 * zeroed. */
static void step_part(const struct job *job, const fused_adamw_tensor *tensor, ptrdiff_t begin,
                      ptrdiff_t end)
{
    const fused_adamw_kernel *kernel = &job->isa->kernels->kernels[step_kernel(tensor)];
    if (tensor->scalars->t > 1) {
        kernel->step(tensor, begin, end);
        return;
    }
    for (ptrdiff_t stop; begin < end; begin = stop) {
        stop = end - begin > FUSED_ADAMW_CHUNK ? begin + FUSED_ADAMW_CHUNK : end;
        touch_state(tensor, begin, stop);
        kernel->step(tensor, begin, stop);
    }
}

static void step_elements(const struct job *job, ptrdiff_t begin, ptrdiff_t end)
{
    for (const fused_adamw_tensor *tensor = job->tensors; begin < end; tensor++) {
        const ptrdiff_t start = end_of_block(tensor, begin), stop = end_of_block(tensor, end);
        if (start < stop)
            step_part(job, tensor, start, stop);
        begin = begin > tensor->size ? begin - tensor->size : 0;
        end -= tensor->size;
    }
}

/* ---- the norm: a unit is a chunk of one tensor */

static ptrdiff_t chunks_of(const fused_adamw_tensor *tensor)
{
    return tensor->size / FUSED_ADAMW_CHUNK + (tensor->size % FUSED_ADAMW_CHUNK != 0);
}

ptrdiff_t fused_adamw_num_chunks(const fused_adamw_tensor *tensors, ptrdiff_t count)
{
    ptrdiff_t chunks = 0;
    for (ptrdiff_t i = 0; i < count; i++)
        chunks += chunks_of(&tensors[i]);
    return chunks;
}

static void sum_chunks(const struct job *job, ptrdiff_t begin, ptrdiff_t end)
{
    const fused_adamw_tensor *tensor = job->tensors;
    ptrdiff_t first = 0; /* chunk of this tensor */
    for (ptrdiff_t chunk = begin; chunk < end; chunk++) {
        while (chunk - first >= chunks_of(tensor))
            first += chunks_of(tensor++);
        const ptrdiff_t from = (chunk - first) * FUSED_ADAMW_CHUNK, left = tensor->size - from;
        job->isa->kernels->kernels[grad_kernel(tensor->element_type)].sum_squares(
            tensor, from, from + (left < FUSED_ADAMW_CHUNK ? left : FUSED_ADAMW_CHUNK),
            &job->partial_sums[chunk]);
    }
}

/* ---- threads */

static void run_part(const struct job *job, ptrdiff_t begin, ptrdiff_t end)
{
    const float_control before = use_default_float_control();
    job->work(job, begin, end);
    restore_float_control(before);
}

#if HAS_THREADS

/* The remainder is spread over the parts, too: there may be as few as two chunks per thread. */
static ptrdiff_t part_begin(const struct job *job, int part, int parts)
{
    const ptrdiff_t begin = job->total / parts * part + job->total % parts * part / parts;
    return part == parts ? job->total : begin / job->grain * job->grain;
}

static void run_one_of(const struct job *job, int part, int parts)
{
    run_part(job, part_begin(job, part, parts), part_begin(job, part + 1, parts));
}

#if HAS_OPENMP

static void run_parallel(const struct job *job)
{
    const int team_size = fused_adamw_team_size(job->num_threads);
    if (team_size == 1) {
        run_part(job, 0, job->total);
        return;
    }
#pragma omp parallel num_threads(team_size)
    {
        /* OpenMP may grant fewer threads than were asked for. */
        run_one_of(job, omp_get_thread_num(), omp_get_num_threads());
    }
}

#else

static void run_dispatched(void *job, size_t part)
{
    run_one_of(job, (int)part, ((const struct job *)job)->num_threads);
}

static void run_parallel(struct job *job)
{
    dispatch_queue_t any = NULL; /* DISPATCH_APPLY_AUTO, which is not in C11 */
    dispatch_apply_f((size_t)job->num_threads, any, job, run_dispatched);
}

#endif

#if FUSED_ADAMW_DISPATCH || defined(_WIN32)

static int run_in_thread(struct job *job, ptrdiff_t elements)
{
    (void)job, (void)elements;
    return 0;
}

#else

/* With fewer elements a new thread and its team cost more than they save:
 * benches/bench_threads.py. */
#define MIN_ELEMENTS_IN_NEW_THREAD 4194304

static void *start(void *job)
{
    run_parallel(job);
    return NULL;
}

static int run_in_thread(struct job *job, ptrdiff_t elements)
{
    pthread_t thread;
    return elements >= MIN_ELEMENTS_IN_NEW_THREAD &&
           pthread_create(&thread, NULL, start, job) == 0 && pthread_join(thread, NULL) == 0;
}

#endif

/* Whether the job was done, on several threads where they can be created. */
static int run_on_threads(struct job *job, ptrdiff_t elements)
{
    if (job->num_threads == 1)
        return 0;
    switch (fused_adamw_regions()) {
    case REGIONS_HERE:
        run_parallel(job);
        return 1;
    case REGIONS_IN_NEW_THREAD:
        return run_in_thread(job, elements);
    default:
        return 0;
    }
}

int fused_adamw_useful_threads(const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads)
{
    const ptrdiff_t worth = total_size(tensors, count) / FUSED_ADAMW_MIN_ELEMENTS_PER_THREAD;
    return worth >= num_threads ? num_threads : worth > 1 ? (int)worth : 1;
}

#else

static int run_on_threads(struct job *job, ptrdiff_t elements)
{
    (void)job, (void)elements;
    return 0;
}

int fused_adamw_useful_threads(const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads)
{
    (void)tensors, (void)count, (void)num_threads;
    return 1;
}

#endif

static void run(struct job *job, ptrdiff_t elements)
{
    if (!run_on_threads(job, elements))
        run_part(job, 0, job->total);
}

void fused_adamw_step(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                      ptrdiff_t count, int num_threads)
{
    const ptrdiff_t elements = total_size(tensors, count);
    struct job job = {step_elements, elements, GRAIN, num_threads, isa, tensors, NULL};
    run(&job, elements);
}

void fused_adamw_sum_squares(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                             ptrdiff_t count, int num_threads, double *partial_sums)
{
    const ptrdiff_t chunks = fused_adamw_num_chunks(tensors, count);
    struct job job = {sum_chunks, chunks, 1, num_threads, isa, tensors, partial_sums};
    run(&job, total_size(tensors, count));
}
