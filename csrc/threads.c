/* Which library provides the threads, and when they must not be used: OpenMP runtimes end the
 * process if a thread cannot be created, and a forked child has only one of its parent's threads. */
#include "threads.h"
#include "internal.h"

#if HAS_OPENMP
#include <omp.h>
#endif
#if HAS_THREADS && !defined(_WIN32)
#include <pthread.h>
#include <unistd.h>
#endif

#if HAS_OPENMP && !defined(_WIN32)

#include <stdlib.h>

/* A function of LLVM's OpenMP runtime, and of Intel's; NULL in a process with GCC's alone. */
extern size_t kmp_get_stacksize_s(void) __attribute__((weak));

/* ---- threads that can be created */

/* The bytes that a variable of OpenMP asks for; 0 where it is not set, or no size. */
static size_t stack_size_in(const char *variable)
{
    const char *value = getenv(variable);
    char *unit;
    if (value == NULL)
        return 0;
    const unsigned long long number = strtoull(value, &unit, 10);
    while (*unit == ' ' || *unit == '\t')
        unit++;
    const unsigned long long shift = *unit == 'B' || *unit == 'b'   ? 0
                                     : *unit == 'M' || *unit == 'm' ? 20
                                     : *unit == 'G' || *unit == 'g' ? 30
                                                                    : 10;
    return number > SIZE_MAX >> shift ? 0 : (size_t)number << shift;
}

/* The stack of the threads that the OpenMP runtime creates; 0 for the default of the system. */
static size_t stack_size(void)
{
    if (kmp_get_stacksize_s != NULL)
        return kmp_get_stacksize_s();
    const size_t size = stack_size_in("OMP_STACKSIZE");
    return size > 0 ? size : stack_size_in("GOMP_STACKSIZE");
}

static void *wait_at_gate(void *gate)
{
    pthread_mutex_lock((pthread_mutex_t *)gate);
    pthread_mutex_unlock((pthread_mutex_t *)gate);
    return NULL;
}

/* How many threads of up to `wanted` can be created at the same time. They end before this returns;
 * the runtime then creates as many, unless other code creates threads in between. */
static int count_creatable(int wanted)
{
    pthread_t threads[FUSED_ADAMW_MAX_THREADS];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    const size_t size = stack_size();
    int created = 0;
    if (pthread_attr_init(&attributes) != 0)
        return 0;
    if (size > 0) /* the runtimes, too, ignore a size that is refused */
        pthread_attr_setstacksize(&attributes, size);
    pthread_mutex_lock(&gate);
    while (created < wanted &&
           pthread_create(&threads[created], &attributes, wait_at_gate, &gate) == 0)
        created++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < created; i++)
        pthread_join(threads[i], NULL);
    pthread_attr_destroy(&attributes);
    return created;
}

/* Where threads could not be created, so many calls pass before it is tried again: trying takes
 * longer than a small step. */
#define CALLS_BEFORE_RETRY 1024

/* A runtime keeps the threads of the last region for the next one that the same thread opens, so
 * that they have to be created only where a region is larger than the one before. */
int fused_adamw_team_size(int num_threads)
{
    static _Thread_local int asked = 1, granted = 1, refused = 0;
    const int wanted =
        num_threads < FUSED_ADAMW_MAX_THREADS ? num_threads : FUSED_ADAMW_MAX_THREADS;
    if (wanted <= granted) {
        asked = granted = wanted;
    } else if (wanted > asked || ++refused == CALLS_BEFORE_RETRY) {
        granted += count_creatable(wanted - granted);
        asked = wanted;
        refused = 0;
    }
    return granted;
}

#else

int fused_adamw_team_size(int num_threads)
{
    return num_threads;
}

#endif

/* ---- fork */

#if HAS_THREADS && !defined(_WIN32)

/* Set before the child can have a second thread. */
static int forked;

static void after_fork_in_child(void)
{
    forked = 1;
}

void fused_adamw_init(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

/* In a forked child, libgomp still counts on worker threads that only the parent has, and the next
 * parallel region waits for them forever. It remembers them per calling thread, so the child opens
 * its parallel regions from a new thread. LLVM's runtime starts again in the child, but may find
 * locks that other threads of the parent had taken at that moment. Grand Central Dispatch serves
 * no forked child. */
int fused_adamw_regions(void)
{
    if (!forked)
        return REGIONS_HERE;
#if HAS_OPENMP
    if (kmp_get_stacksize_s == NULL)
        return REGIONS_IN_NEW_THREAD;
#endif
    return NO_REGIONS;
}

#else

void fused_adamw_init(void)
{
}

int fused_adamw_regions(void)
{
    return REGIONS_HERE;
}

#endif

/* ---- how many */

#if HAS_THREADS

#if HAS_OPENMP

/* As many as OMP_NUM_THREADS says, at most OMP_THREAD_LIMIT: OpenMP has read both itself. */
static int available_threads(int asked)
{
    int threads = omp_get_max_threads();
    (void)asked;
    if (threads < 1 || threads > FUSED_ADAMW_MAX_THREADS)
        threads = omp_get_num_procs();
#if _OPENMP >= 200805 /* 3.0, which Visual C++ does not have */
    if (omp_get_thread_limit() < threads)
        threads = omp_get_thread_limit();
#endif
    return threads;
}

#else

/* Counted once: it takes longer than a small step. */
static pthread_once_t counted = PTHREAD_ONCE_INIT;
static long num_processors;

static void count_processors(void)
{
    num_processors = sysconf(_SC_NPROCESSORS_ONLN);
}

static int available_threads(int asked)
{
    if (asked > 0)
        return asked;
    pthread_once(&counted, count_processors);
    return (int)num_processors;
}

#endif

int fused_adamw_default_threads(int asked, int quota)
{
    if (fused_adamw_regions() == NO_REGIONS)
        return 1;
    int threads = available_threads(asked);
    if (threads < 1)
        threads = 1;
    if (threads > FUSED_ADAMW_MAX_THREADS)
        threads = FUSED_ADAMW_MAX_THREADS;
    return quota > 0 && quota < threads ? quota : threads;
}

#else

int fused_adamw_default_threads(int asked, int quota)
{
    (void)asked, (void)quota;
    return 1;
}

#endif

const char *fused_adamw_threading(void)
{
#if HAS_OPENMP
    return "OpenMP";
#elif FUSED_ADAMW_DISPATCH
    return "Grand Central Dispatch";
#else
    return NULL;
#endif
}
