# cython: boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""The gate: every check on what the user passes, and the only caller of C.

    pytree.pxi   how the arrays of an argument are arranged
    buffer_adapter.pxi     the memory that an array lends
    bound_tensors.pxi        the arrays that steps write: checked, and held
    hyperparams.pxi     hyper-parameters, and what follows from them
    rounding.pxi    what stochastic rounding draws from
    runtime.pxi     instruction sets and threads
    autotune.pxi      whether several threads pay
    dlpack_adapter.pxi        tensors of PyTorch, borrowed for one step
    full_parameters.pxi      the check of a step that is taken in parts
    functional.pxi  the function fused_adamw

Nothing is written before everything has been checked; after an error all buffers are as they were.
A TypeError is about what an argument is (its kind, its dtype), a ValueError about its value.
"""

import os
from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

cimport cython

from fused_adamw._cgroup import cpu_quota

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    Py_buffer,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches, PyErr_Occurred
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport PyObject
from libc.math cimport fabs, floor, isfinite, pow, sqrt
from libc.stdint cimport uint32_t
from libc.string cimport memset


cdef extern from "fused_adamw.h" nogil:
    enum:
        FUSED_ADAMW_FLOAT32
        FUSED_ADAMW_FLOAT64
        FUSED_ADAMW_BFLOAT16
        FUSED_ADAMW_FLOAT16
        FUSED_ADAMW_8BIT

    enum:
        FUSED_ADAMW_BLOCK

    ctypedef struct fused_adamw_scalars:
        double b1, b2, c1, c2, step, rsqrt_bc2, decay, eps, scale
        int stochastic
        uint32_t[3] dither

    ctypedef struct fused_adamw_tensor:
        void *params
        const void *grads
        void *m
        void *v
        void *v_max
        ptrdiff_t size
        int dtype
        int state_dtype
        float *m_scale
        uint32_t *v_scale
        float *master
        uint32_t key
        ptrdiff_t first
        const fused_adamw_scalars *scalars

    ctypedef struct fused_adamw_isa:
        const char *name
        int (*supported)()

    const fused_adamw_isa *fused_adamw_isas
    void fused_adamw_init()
    int fused_adamw_has_openmp()
    int fused_adamw_max_threads()
    int fused_adamw_threads_worth(const fused_adamw_tensor *tensors, ptrdiff_t count,
                                  int num_threads)
    void fused_adamw_step(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                          ptrdiff_t count, int num_threads)
    ptrdiff_t fused_adamw_chunks(const fused_adamw_tensor *tensors, ptrdiff_t count)
    double fused_adamw_sum_squares(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                                   ptrdiff_t count, int num_threads, double *room)


BLOCK = FUSED_ADAMW_BLOCK  # elements that share a scale in 8-bit state


cdef extern from "formats.h" nogil:
    uint32_t random_bits(uint32_t key, uint32_t index)


cdef dict DTYPE_NAMES = {
    FUSED_ADAMW_FLOAT32: "float32",
    FUSED_ADAMW_FLOAT64: "float64",
    FUSED_ADAMW_BFLOAT16: "bfloat16",
    FUSED_ADAMW_FLOAT16: "float16",
    FUSED_ADAMW_8BIT: "8bit",
}

include "hyperparams.pxi"
include "rounding.pxi"
include "runtime.pxi"
include "pytree.pxi"
include "buffer_adapter.pxi"
include "bound_tensors.pxi"
include "autotune.pxi"


cdef tuple NO_STEP = (0.0, (0.0, 0.0), 0.0, 0.0)


cdef struct Derived:
    # The scalars of the tensors that agree in all of this.
    Py_ssize_t group
    bint decays
    int dtype
    long long t
    fused_adamw_scalars scalars


cdef struct Workspace:
    # What one step needs, its own so that two threads may step at once.
    Derived *derived             # first in memory, since it is what needs most alignment
    fused_adamw_tensor *tensors  # those that have a gradient
    Py_buffer *views             # of these gradients, where they are borrowed as buffers
    Py_ssize_t kinds             # how many derived scalars there are
    Py_ssize_t taken             # how many tensors there are
    Py_ssize_t borrowed          # how many views there are


@cython.no_gc
cdef class Tensors(Held):
    """What an optimizer steps: parameters and moments, held, and the steps that each has had."""

    cdef Tuner tuner
    cdef readonly int threads  # that the last step asked for
    cdef public long long t    # steps taken without a number of their own

    cpdef take_step(
        self, grads, list hypers, long long t, grad_scale, max_grad_norm, bint skip_nonfinite,
        bint maximize, num_threads, isa, double clip=1,
    ):
        """One AdamW update in place; returns the global gradient norm if it was needed, else None.

        ``clip``: a further factor of the gradients, which may be NaN.

        ``hypers``: one (lr, betas, eps, weight_decay) a group. ``t``: the number of this step; or 0
        to count for each tensor the steps it has had, where a gradient may be None and leaves its
        tensor alone."""
        self.structure.require_group_each(hypers)
        cdef tuple all_grads = self.structure.flatten("grads", grads)
        cdef int threads = resolve_threads(num_threads)
        cdef const fused_adamw_isa *chosen = find_isa(isa)
        cdef double scale = finite("grad_scale", grad_scale)
        cdef double max_norm = positive_or_none("max_grad_norm", max_grad_norm)
        cdef bint needs_norm = max_norm > 0 or skip_nonfinite
        cdef double factor = -clip if maximize else clip
        cdef double norm = 0, started = 0
        cdef bint tuned, trying = False
        cdef Workspace space
        prepare(&space, self.count)
        try:
            self.take(&space, all_grads, hypers, t)
            threads = fused_adamw_threads_worth(space.tensors, space.taken, threads)
            tuned = t == 0 and threads > 1 and num_threads is None
            if tuned:
                threads = tuner_choice(&self.tuner, threads)
                trying = tuner_is_trying(&self.tuner)
            if trying:
                started = perf_counter()
            self.threads = threads
            if needs_norm:
                norm = fabs(scale) * gradient_norm(chosen, &space, threads)
                if skip_nonfinite and not isfinite(norm):
                    return norm
                factor *= clip_factor(norm, max_norm)
            set_scale(&space, scale, factor)
            set_dither(&space, self.stochastic)
            with nogil:
                fused_adamw_step(chosen, space.tensors, space.taken, threads)
            if t == 0:
                self.count_step(all_grads)
            if trying:
                tuner_learn(&self.tuner, threads, perf_counter() - started)
            if tuned:
                self.tuner.steps += 1
        finally:
            release(&space)
        return norm if needs_norm else None

    cdef int take(self, Workspace *space, tuple grads, list hypers, long long t) except -1:
        """Check every gradient and number of this step; ``t`` is 0 to count for each tensor."""
        cdef Py_ssize_t i
        cdef fused_adamw_tensor *tensor
        cdef Py_buffer *view
        cdef Slot *slot
        for i in range(self.count):
            array = grads[i]
            if array is None and t == 0:
                continue
            tensor = &space.tensors[space.taken]
            view = &space.views[space.taken]
            acquire(view, self, "grads", i, array)
            space.borrowed += 1
            self.accept_gradient(i, view, array)
            slot = &self.slots[i]
            tensor[0] = slot.tensor
            tensor.grads = view.buf
            tensor.scalars = scalars_of(
                space, slot.group, slot.decays, computed_in(tensor.dtype),
                t if t != 0 else slot.steps + 1, hypers[slot.group],
            )
            space.taken += 1
        if self.count == 0:  # the numbers are checked all the same
            derive(&space.derived[0], 0, True, FUSED_ADAMW_FLOAT64, max(t, 1), hypers[0])
        return 0

    cpdef int count_step(self, tuple grads) except -1:
        """A step was taken, by the tensors that had a gradient: those that are not None."""
        cdef Py_ssize_t i
        self.t += 1
        for i in range(self.count):
            self.slots[i].steps += grads[i] is not None
        return 0

    def sums_of_squares(self, grads, num_threads=None):
        """Of each chunk of the gradients, in their order: added up one after the other they are
        the square of the norm that ``take_step`` clips by. A float64 array."""
        cdef tuple all_grads = self.structure.flatten("grads", grads)
        cdef int threads = resolve_threads(num_threads)
        cdef const fused_adamw_isa *chosen = find_isa(None)
        cdef Workspace space
        cdef double *room
        prepare(&space, self.count)
        try:
            self.take(&space, all_grads, [NO_STEP] * self.structure.groups(), 0)
            sums = np.empty(fused_adamw_chunks(space.tensors, space.taken))
            room = <double *>address_of(sums)
            threads = fused_adamw_threads_worth(space.tensors, space.taken, threads)
            with nogil:
                fused_adamw_sum_squares(chosen, space.tensors, space.taken, threads, room)
        finally:
            release(&space)
        return sums

    def check(self, list hypers, max_grad_norm, list steps):
        """Raise what a step with these numbers, after ``steps`` of each tensor, would raise."""
        cdef Derived derived
        cdef Py_ssize_t i
        self.structure.require_group_each(hypers)
        cdef Slot *slot
        positive_or_none("max_grad_norm", max_grad_norm)
        for i in range(self.count):
            slot = &self.slots[i]
            derive(
                &derived, slot.group, slot.decays, computed_in(slot.tensor.dtype), steps[i] + 1,
                hypers[slot.group],
            )

    def get_steps(self):
        """How many steps each tensor has had."""
        return [self.slots[i].steps for i in range(self.count)]

    def set_steps(self, list steps):
        """``steps``: one number of steps, 0 or more, for each tensor."""
        cdef Py_ssize_t i
        if len(steps) != self.count:
            raise ValueError(f"steps has {len(steps)} numbers; expected {self.count}")
        for i in range(self.count):
            self.slots[i].steps = steps[i]


cdef fused_adamw_scalars *scalars_of(
    Workspace *space, Py_ssize_t group, bint decays, int dtype, long long t, hyper
) except NULL:
    """Those of an earlier tensor with the same ones, or new ones. Only the last few are looked at:
    where all tensors differ, to derive is faster than to search."""
    cdef Py_ssize_t k
    cdef Derived *derived
    for k in range(space.kinds - 1, max(space.kinds - 16, 0) - 1, -1):
        derived = &space.derived[k]
        if (
            derived.t == t and derived.group == group
            and derived.decays == decays and derived.dtype == dtype
        ):
            return &derived.scalars
    derived = &space.derived[space.kinds]
    derive(derived, group, decays, dtype, t, hyper)
    space.kinds += 1
    return &derived.scalars


cdef int set_scale(Workspace *space, double grad_scale, double factor) except -1:
    """``factor``: of the user's ``grad_scale``, or NaN where the norm that it clips by is."""
    cdef Py_ssize_t k
    cdef Derived *derived
    for k in range(space.kinds):
        derived = &space.derived[k]
        rounded_finite(derived.dtype, grad_scale, "grad_scale", grad_scale)
        derived.scalars.scale = rounded(derived.dtype, grad_scale * factor)
    return 0


cdef int prepare(Workspace *space, Py_ssize_t count) except -1:
    cdef size_t each = sizeof(fused_adamw_tensor) + sizeof(Py_buffer) + sizeof(Derived)
    space.derived = <Derived *>allocate(count, each)
    space.tensors = <fused_adamw_tensor *>(space.derived + max(count, 1))
    space.views = <Py_buffer *>(space.tensors + max(count, 1))
    space.taken = 0
    space.borrowed = 0
    space.kinds = 0
    return 0


cdef int release(Workspace *space) except -1:
    cdef Py_ssize_t k
    for k in range(space.borrowed):
        PyBuffer_Release(&space.views[k])
    PyMem_Free(space.derived)
    return 0


cdef double gradient_norm(const fused_adamw_isa *isa, Workspace *space, int threads) except? -1:
    """The Euclidean norm of all gradients of the step."""
    cdef double square
    cdef double *room = <double *>allocate(
        fused_adamw_chunks(space.tensors, space.taken), sizeof(double)
    )
    with nogil:
        square = fused_adamw_sum_squares(isa, space.tensors, space.taken, threads, room)
    PyMem_Free(room)
    return sqrt(square)


cdef double clip_factor(double norm, double max_norm) noexcept:
    """As torch.nn.utils.clip_grad_norm_ scales gradients; a norm of NaN gives NaN."""
    cdef double factor = max_norm / (norm + 1e-6)
    return 1 if max_norm == 0 or factor > 1 else factor


include "full_parameters.pxi"
include "functional.pxi"
include "dlpack_adapter.pxi"
