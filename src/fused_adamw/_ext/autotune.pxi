"""One thread or all: measured while stepping.

The bits of a step do not depend on its threads, so an optimizer is free to try. What is faster
depends on what else runs: NumPy's own threads spin for a while after each matrix product, and then
a step on two threads can wait for its second one for milliseconds."""

cdef enum:
    TRIALS = 6     # per setting, alternating; the first is discarded (cold cache)
    PERIOD = 1000  # steps until the next trials


cdef struct Tuner:
    long long steps
    double[TRIALS] serial  # seconds of the trials
    double[TRIALS] parallel


cdef bint is_trial(const Tuner *tuner) noexcept:
    return tuner.steps % PERIOD < 2 * TRIALS


cdef int tuner_choice(Tuner *tuner, int threads) noexcept:
    """How many threads the next step should use."""
    if is_trial(tuner):
        return threads if tuner.steps % 2 == 0 else 1
    return threads if median_trial(tuner.parallel) <= median_trial(tuner.serial) else 1


cdef void record_trial(Tuner *tuner, int threads, double seconds) noexcept:
    """Record the time of the last step, which was a trial."""
    cdef long long trial = tuner.steps % PERIOD // 2
    if trial >= TRIALS:  # where two threads step at once, the other one took the last trial
        return
    if threads > 1:
        tuner.parallel[trial] = seconds
    else:
        tuner.serial[trial] = seconds


cdef double median_trial(const double *seconds) noexcept:
    """The median of the trials but the first, an odd number of them."""
    cdef Py_ssize_t i, k, below
    for i in range(1, TRIALS):
        below = 0
        for k in range(1, TRIALS):
            below += seconds[k] < seconds[i] or (seconds[k] == seconds[i] and k < i)
        if below == (TRIALS - 1) // 2:
            return seconds[i]
    return 0
