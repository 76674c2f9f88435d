/* Splits the work of one call over threads; fork. */
#include "internal.h"

#if defined(_OPENMP)
#include <omp.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif
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

static void step_elements(const struct job *job, ptrdiff_t begin, ptrdiff_t end)
{
    for (const fused_adamw_tensor *tensor = job->tensors; begin < end; tensor++) {
        const ptrdiff_t start = end_of_block(tensor, begin), stop = end_of_block(tensor, end);
        if (start < stop)
            job->isa->kernels->kernels[step_kernel(tensor)].step(tensor, start, stop);
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

#if defined(_OPENMP)

static ptrdiff_t part_begin(const struct job *job, int part, int parts)
{
    return part == parts ? job->total : job->total / parts * part / job->grain * job->grain;
}

static void run_parallel(const struct job *job)
{
#pragma omp parallel num_threads(job->num_threads)
    {
        /* OpenMP may grant fewer threads than were asked for. */
        const int part = omp_get_thread_num(), parts = omp_get_num_threads();
        job->work(job, part_begin(job, part, parts), part_begin(job, part + 1, parts));
    }
}

#if defined(_WIN32)

static int run_safely(struct job *job, ptrdiff_t elements)
{
    (void)elements;
    run_parallel(job);
    return 1;
}

void fused_adamw_init(void)
{
}

#else

/* In a forked child, libgomp still counts on worker threads that only the parent has, and the next
 * parallel region waits for them forever. It remembers them per calling thread, so the child opens
 * its parallel regions from a new thread. */
static int forked; /* the only mutable global: set before the child can have a second thread */

/* With fewer elements that thread and its team cost more than they save:
 * benches/bench_threads.py. */
#define MIN_ELEMENTS_AFTER_FORK 4194304

static void after_fork_in_child(void)
{
    forked = 1;
}

static void *run_in_thread(void *job)
{
    run_parallel(job);
    return NULL;
}

static int run_safely(struct job *job, ptrdiff_t elements)
{
    pthread_t thread;
    if (!forked) {
        run_parallel(job);
        return 1;
    }
    return elements >= MIN_ELEMENTS_AFTER_FORK &&
           pthread_create(&thread, NULL, run_in_thread, job) == 0 &&
           pthread_join(thread, NULL) == 0;
}

void fused_adamw_init(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

#endif

int fused_adamw_useful_threads(const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads)
{
    const ptrdiff_t worth = total_size(tensors, count) / FUSED_ADAMW_MIN_ELEMENTS_PER_THREAD;
    return worth >= num_threads ? num_threads : worth > 1 ? (int)worth : 1;
}

/* Whether the job was done, on several threads. */
static int run_on_threads(struct job *job, ptrdiff_t elements)
{
    return job->num_threads > 1 && run_safely(job, elements);
}

int fused_adamw_has_openmp(void)
{
    return 1;
}

static int max_threads(void)
{
    return omp_get_max_threads();
}

#else

int fused_adamw_useful_threads(const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads)
{
    (void)tensors, (void)count, (void)num_threads;
    return 1;
}

static int run_on_threads(struct job *job, ptrdiff_t elements)
{
    (void)job, (void)elements;
    return 0;
}

void fused_adamw_init(void)
{
}

int fused_adamw_has_openmp(void)
{
    return 0;
}

static int max_threads(void)
{
    return 1;
}

#endif

int fused_adamw_default_threads(int quota)
{
    const int threads = max_threads();
    return quota > 0 && quota < threads ? quota : threads;
}

void fused_adamw_step(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                      ptrdiff_t count, int num_threads)
{
    const ptrdiff_t elements = total_size(tensors, count);
    struct job job = {step_elements, elements, GRAIN, num_threads, isa, tensors, NULL};
    if (!run_on_threads(&job, elements))
        step_elements(&job, 0, elements);
}

double fused_adamw_sum_squares(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                               ptrdiff_t count, int num_threads, double *partial_sums)
{
    const ptrdiff_t chunks = fused_adamw_num_chunks(tensors, count);
    struct job job = {sum_chunks, chunks, 1, num_threads, isa, tensors, partial_sums};
    if (!run_on_threads(&job, total_size(tensors, count)))
        sum_chunks(&job, 0, chunks);
    double sum = 0;
    for (ptrdiff_t i = 0; i < chunks; i++)
        sum += partial_sums[i];
    return sum;
}
