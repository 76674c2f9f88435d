/* The threads of OpenMP, and when not to ask for them. */
#ifndef FUSED_ADAMW_THREADS_H
#define FUSED_ADAMW_THREADS_H

/* How many threads the next parallel region that this thread opens may have: at most
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
