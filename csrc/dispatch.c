/* Splits one step over threads. */
#include "fused_adamw.h"

#if defined(_OPENMP)
#include <omp.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif
#endif

/* Updates the elements [begin, end) of the tensors laid end to end. */
static void step_range(const fused_adamw_isa *isa, const fused_adamw_tensor *tensor,
                       ptrdiff_t begin, ptrdiff_t end)
{
    while (begin < end) {
        const ptrdiff_t stop = end < tensor->size ? end : tensor->size;
        if (begin < stop)
            isa->kernels[tensor->dtype](tensor, begin, stop);
        begin = begin > tensor->size ? begin - tensor->size : 0;
        end -= tensor->size;
        tensor++;
    }
}

static ptrdiff_t total_size(const fused_adamw_tensor *tensors, ptrdiff_t count)
{
    ptrdiff_t total = 0;
    for (ptrdiff_t i = 0; i < count; i++)
        total += tensors[i].size;
    return total;
}

#if defined(_OPENMP)

/* Fewer elements than this are not worth another thread: benches/bench_threads.py. */
#define MIN_ELEMENTS_PER_THREAD 16384

/* Threads part at multiples of this many elements: whole cache lines in every dtype. */
#define GRAIN 64

typedef struct {
    const fused_adamw_isa *isa;
    const fused_adamw_tensor *tensors;
    ptrdiff_t total;
    int num_threads;
} parallel_step;

static ptrdiff_t part_begin(ptrdiff_t total, int part, int parts)
{
    return part == parts ? total : total / parts * part / GRAIN * GRAIN;
}

static void run(const parallel_step *s)
{
#pragma omp parallel num_threads(s->num_threads)
    {
        /* OpenMP may grant fewer threads than were asked for. */
        const int part = omp_get_thread_num(), parts = omp_get_num_threads();
        step_range(s->isa, s->tensors, part_begin(s->total, part, parts),
                   part_begin(s->total, part + 1, parts));
    }
}

#if defined(_WIN32)

static int run_wherever_safe(parallel_step *s)
{
    run(s);
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
#define MIN_ELEMENTS_AFTER_FORK 1048576

static void after_fork_in_child(void)
{
    forked = 1;
}

static void *run_in_thread(void *step)
{
    run(step);
    return NULL;
}

static int run_wherever_safe(parallel_step *s)
{
    pthread_t thread;
    if (!forked) {
        run(s);
        return 1;
    }
    return s->total >= MIN_ELEMENTS_AFTER_FORK &&
           pthread_create(&thread, NULL, run_in_thread, s) == 0 && pthread_join(thread, NULL) == 0;
}

void fused_adamw_init(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

#endif

/* Whether the step was worth several threads, and is done. */
static int step_parallel(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                         ptrdiff_t total, int num_threads)
{
    const ptrdiff_t worth = total / MIN_ELEMENTS_PER_THREAD;
    parallel_step s = {isa, tensors, total, worth < num_threads ? (int)worth : num_threads};
    return s.num_threads > 1 && run_wherever_safe(&s);
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

static int step_parallel(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                         ptrdiff_t total, int num_threads)
{
    (void)isa, (void)tensors, (void)total, (void)num_threads;
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
    const ptrdiff_t total = total_size(tensors, count);
    if (!step_parallel(isa, tensors, total, num_threads))
        step_range(isa, tensors, 0, total);
}
