/* Which library provides the threads, and when they must not be used. */
#ifndef FUSED_ADAMW_THREADS_H
#define FUSED_ADAMW_THREADS_H

/* A build uses the threads of OpenMP or of Grand Central Dispatch, or none besides the caller's. */
#if !defined(FUSED_ADAMW_DISPATCH)
#define FUSED_ADAMW_DISPATCH 0
#endif
#if defined(_OPENMP) && !FUSED_ADAMW_DISPATCH
#define HAS_OPENMP 1
#else
#define HAS_OPENMP 0
#endif
#define HAS_THREADS (HAS_OPENMP || FUSED_ADAMW_DISPATCH)

/* How many threads the next parallel region of OpenMP that this thread opens may have: at most
 * `num_threads`. */
int fused_adamw_team_size(int num_threads);

/* Where parallel regions may be opened. */
enum {
    REGIONS_HERE,          /* from the calling thread */
    REGIONS_IN_NEW_THREAD, /* from a new thread only */
    NO_REGIONS
};
int fused_adamw_regions(void);

#endif
