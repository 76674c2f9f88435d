"""One thread or all: measured while stepping.

An optimizer compares both (``Tuner``). Code that does not compare (the function, norms, the steps
of PyTorch's tensors) only avoids stalls (``Stalls``).

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
    if trial >= TRIALS:  # two threads stepped at once, without a lock
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


# ---- stalls

cdef enum:
    SLOWEST = 16        # ns per element that no step on several threads takes: 28 bytes of float32
    FEWEST_SERIAL = 32  # steps on one thread after a stall
    MOST_SERIAL = 4096


cdef struct Stalls:
    # Where other processes keep the processors busy, a step waits for the time slice of a thread
    # that is not scheduled, which takes a thousand times as long as the step. After such a step the
    # next ones run on one thread: more of them the more often it happens.
    long long serial_steps  # that remain
    long long penalty       # how many there will be after the next stall


cdef Stalls STALLS = Stalls(0, FEWEST_SERIAL)  # of this process: two threads may spoil one choice


cdef int threads_without_stalls(int threads) noexcept:
    """How many threads the next step should use."""
    if threads > 1 and STALLS.serial_steps > 0:
        STALLS.serial_steps -= 1
        return 1
    return threads


cdef double seconds_now() noexcept:
    """Of a clock that never goes back; -1 where memory for the number is refused."""
    try:
        return perf_counter()
    except MemoryError:
        return -1


cdef double clock_of(int threads) noexcept:
    """The time at which a step begins or ends; -1 where it runs on one thread."""
    return seconds_now() if threads > 1 else -1


cdef void watch_for_stall(
    const fused_adamw_tensor *tensors, Py_ssize_t count, int threads, double started
) noexcept:
    """Look at the time of a step, or of a norm, that has ended. Once arrays have changed, nothing
    here may raise."""
    cdef Py_ssize_t i, elements = 0
    cdef double ended = clock_of(threads)
    if started < 0 or ended < 0:
        return
    for i in range(count):
        elements += tensors[i].size
    if (ended - started) * 1e9 > SLOWEST * <double>elements:
        STALLS.serial_steps = STALLS.penalty
        STALLS.penalty = min(2 * STALLS.penalty, MOST_SERIAL)
    elif STALLS.penalty > FEWEST_SERIAL:
        STALLS.penalty -= 1


cdef void step_without_stalls(
    const fused_adamw_isa *isa, const fused_adamw_tensor *tensors, Py_ssize_t count, int threads
) noexcept:
    """Call the kernels on as many threads as pay: ``threads`` or fewer."""
    cdef double started
    threads = threads_without_stalls(fused_adamw_useful_threads(tensors, count, threads))
    started = clock_of(threads)
    with nogil:
        fused_adamw_step(isa, tensors, count, threads)
    watch_for_stall(tensors, count, threads, started)


def _forget_stalls():
    """For tests: as if there had been none."""
    global STALLS
    STALLS = Stalls(0, FEWEST_SERIAL)
