/* Splits the work of one call over threads. */
#include "fused_adamw.h"

#if defined(_OPENMP)
#include <omp.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif
#endif

/* What threads share out: the units [0, total), in parts that begin at multiples of `grain`. */
struct job {
    void (*work)(const struct job *job, ptrdiff_t begin, ptrdiff_t end);
    ptrdiff_t total;
    ptrdiff_t grain;
    int num_threads;
    const fused_adamw_isa *isa;
    const fused_adamw_tensor *tensors;
    double *room;
};

static ptrdiff_t total_size(const fused_adamw_tensor *tensors, ptrdiff_t count)
{
    ptrdiff_t total = 0;
    for (ptrdiff_t i = 0; i < count; i++)
        total += tensors[i].size;
    return total;
}

/* ---- the step: a unit is an element of the tensors laid end to end */

/* Whole cache lines in every dtype. */
#define GRAIN 64

static int kernels_for(int dtype)
{
    return dtype <= FUSED_ADAMW_FLOAT64 ? dtype : FUSED_ADAMW_COMPRESSED;
}

static int kernels_of(const fused_adamw_tensor *tensor)
{
    return tensor->state_dtype == tensor->dtype ? kernels_for(tensor->dtype)
                                                : FUSED_ADAMW_COMPRESSED;
}

/* What is stepped in blocks is divided between two of them: up to the first from `end` on. */
static ptrdiff_t whole_blocks(const fused_adamw_tensor *tensor, ptrdiff_t end)
{
    if (kernels_of(tensor) == FUSED_ADAMW_COMPRESSED)
        end = (end + FUSED_ADAMW_BLOCK - 1) / FUSED_ADAMW_BLOCK * FUSED_ADAMW_BLOCK;
    return end < tensor->size ? end : tensor->size;
}

static void step_elements(const struct job *job, ptrdiff_t begin, ptrdiff_t end)
{
    for (const fused_adamw_tensor *tensor = job->tensors; begin < end; tensor++) {
        const fused_adamw_kernels *kernels = &job->isa->kernels[kernels_of(tensor)];
        const ptrdiff_t start = whole_blocks(tensor, begin), stop = whole_blocks(tensor, end);
        if (start < stop)
            (tensor->v_max ? kernels->amsgrad : kernels->adamw)(tensor, start, stop);
        begin = begin > tensor->size ? begin - tensor->size : 0;
        end -= tensor->size;
    }
}

/* ---- the norm: a unit is a chunk of one tensor */

#define CHUNK 16384

static ptrdiff_t chunks_of(const fused_adamw_tensor *tensor)
{
    return tensor->size / CHUNK + (tensor->size % CHUNK != 0);
}

ptrdiff_t fused_adamw_chunks(const fused_adamw_tensor *tensors, ptrdiff_t count)
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
        const ptrdiff_t from = (chunk - first) * CHUNK, left = tensor->size - from;
        job->isa->kernels[kernels_for(tensor->dtype)].sum_squares(
            tensor, from, from + (left < CHUNK ? left : CHUNK), &job->room[chunk]);
    }
}

/* ---- threads */

#if defined(_OPENMP)

/* Fewer elements than this are not worth another thread: benches/bench_threads.py. */
#define MIN_ELEMENTS_PER_THREAD 32768

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

static int run_wherever_safe(struct job *job, ptrdiff_t elements)
{
    (void)elements;
    run_parallel(job);
    return 1;
}

void fused_adamw_init(void)
{
}

#else

/* In a forked child, libgomp counts on worker threads that only the parent has, and the next
 * parallel region waits for them for ever. The thread that forked carries that memory; a new one
 * does not. So the child opens its parallel regions from a thread made for the purpose. */
static int forked; /* the only mutable global: set before the child can have a second thread */

/* With fewer elements that thread and its team cost more than they save: benches/bench_threads.py. */
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

static int run_wherever_safe(struct job *job, ptrdiff_t elements)
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

int fused_adamw_threads_worth(const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads)
{
    const ptrdiff_t worth = total_size(tensors, count) / MIN_ELEMENTS_PER_THREAD;
    return worth >= num_threads ? num_threads : worth > 1 ? (int)worth : 1;
}

/* Whether the job was done, on several threads. */
static int run_on_threads(struct job *job, ptrdiff_t elements)
{
    return job->num_threads > 1 && run_wherever_safe(job, elements);
}

int fused_adamw_has_openmp(void)
{
    return 1;
}

int fused_adamw_max_threads(void)
{
    return omp_get_max_threads();
}

#else

int fused_adamw_threads_worth(const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads)
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

int fused_adamw_max_threads(void)
{
    return 1;
}

#endif

void fused_adamw_step(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                      ptrdiff_t count, int num_threads)
{
    const ptrdiff_t elements = total_size(tensors, count);
    struct job job = {step_elements, elements, GRAIN, num_threads, isa, tensors, NULL};
    if (!run_on_threads(&job, elements))
        step_elements(&job, 0, elements);
}

double fused_adamw_sum_squares(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                               ptrdiff_t count, int num_threads, double *room)
{
    const ptrdiff_t chunks = fused_adamw_chunks(tensors, count);
    struct job job = {sum_chunks, chunks, 1, num_threads, isa, tensors, room};
    if (!run_on_threads(&job, total_size(tensors, count)))
        sum_chunks(&job, 0, chunks);
    double sum = 0;
    for (ptrdiff_t i = 0; i < chunks; i++)
        sum += room[i];
    return sum;
}
