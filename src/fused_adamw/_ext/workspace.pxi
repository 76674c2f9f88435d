"""What one step needs: the tensors that have a gradient, and the scalars of each."""

cdef tuple NO_RATES = (None,) * FUSED_ADAMW_NUM_BUFFERS
cdef tuple NO_STEP = (0.0, (0.0, 0.0), 0.0, 0.0, NO_RATES)


cdef struct Workspace:
    # Each step has its own, so that two threads may step two optimizers at once.
    Derived *derived             # first in memory, since it is what needs most alignment
    fused_adamw_tensor *tensors  # those that have a gradient
    Py_buffer *buffers           # of these gradients, where they are buffers
    Py_ssize_t num_scalars
    Py_ssize_t num_active
    Py_ssize_t num_buffers


cdef int prepare(Workspace *space, Py_ssize_t count) except -1:
    cdef size_t each = sizeof(fused_adamw_tensor) + sizeof(Py_buffer) + sizeof(Derived)
    count = max(count, 1)
    space.derived = <Derived *>allocate(count, each)
    space.tensors = <fused_adamw_tensor *>(space.derived + count)
    space.buffers = <Py_buffer *>(space.tensors + count)
    space.num_scalars = 0
    space.num_active = 0
    space.num_buffers = 0
    return 0


cdef int release(Workspace *space) except -1:
    cdef Py_ssize_t k
    for k in range(space.num_buffers):
        PyBuffer_Release(&space.buffers[k])
    PyMem_Free(space.derived)
    return 0


cdef extern from *:
    """
    #include <stddef.h>
    #define MEMORY_NBYTES offsetof(fused_adamw_tensor, rng_key)
    """
    const size_t MEMORY_NBYTES  # of the first members: the memory of a step, and its formats


cdef inline bint same_memory(const fused_adamw_tensor *a, const fused_adamw_tensor *b) noexcept:
    """Whether a step by either reads and writes the same memory, in the same formats."""
    return memcmp(a, b, MEMORY_NBYTES) == 0


cdef const fused_adamw_scalars *scalars_of(
    Workspace *space, Py_ssize_t group, bint decays, int compute, long long t, hyper
) except NULL:
    """The scalars of a recent tensor with equal inputs, or newly derived ones. Only the last few
    are looked at: where all tensors differ, deriving is faster than searching."""
    cdef Py_ssize_t k
    cdef Derived *derived
    for k in range(space.num_scalars - 1, max(space.num_scalars - 16, 0) - 1, -1):
        derived = &space.derived[k]
        if (
            derived.t == t and derived.group == group
            and derived.decays == decays and derived.compute == compute
        ):
            return &derived.scalars
    derived = &space.derived[space.num_scalars]
    derive(derived, group, decays, compute, t, hyper)
    space.num_scalars += 1
    return &derived.scalars


cdef int finish_scalars(
    Workspace *space, double grad_scale, double factor, bint stochastic
) except -1:
    """``factor`` multiplies the user's ``grad_scale``; it is NaN if the norm used for
    clipping is."""
    cdef Py_ssize_t k
    for k in range(space.num_scalars):
        if fused_adamw_finish_scalars(
            &space.derived[k].scalars, grad_scale, factor, stochastic
        ) != FUSED_ADAMW_OK:
            raise_unusable_scale(space.derived[k].compute, grad_scale)
    return 0


cdef void sum_squares(
    const fused_adamw_isa *isa, Workspace *space, int threads, bint may_use_fewer,
    double *partial_sums,
) noexcept:
    """The sums of squares of the chunks; ``may_use_fewer``: on one thread while others stall."""
    cdef double started = 0
    if may_use_fewer:
        threads = threads_without_stalls(threads)
        started = clock_of(threads)
    with nogil:
        fused_adamw_sum_squares(isa, space.tensors, space.num_active, threads, partial_sums)
    if may_use_fewer:
        watch_for_stall(space.tensors, space.num_active, threads, started)


cdef double gradient_norm(
    const fused_adamw_isa *isa, Workspace *space, double grad_scale, int threads,
    bint may_use_fewer,
) except? -1:
    """The Euclidean norm of all gradients of the step, times ``grad_scale``."""
    cdef Py_ssize_t count = fused_adamw_num_chunks(space.tensors, space.num_active)
    cdef double *partial_sums = <double *>allocate(count, sizeof(double))
    try:
        sum_squares(isa, space, threads, may_use_fewer, partial_sums)
        return fused_adamw_norm(partial_sums, count, grad_scale)
    finally:
        PyMem_Free(partial_sums)


def norm_of_chunks(sums, grad_scale):
    """The Euclidean norm of gradients, times ``grad_scale``, from the sums of squares of their
    chunks, in order: for gradients that are divided over ranks."""
    flat = np.ascontiguousarray(sums, np.float64).reshape(-1)
    return fused_adamw_norm(
        <double *><size_t>flat.ctypes.data, flat.size, finite("grad_scale", grad_scale)
    )
