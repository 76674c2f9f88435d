# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, binding=False, freethreading_compatible=True
"""The gate: every check on what the user passes, and the only caller of C.

Nothing is written before everything has been checked; after an error all buffers are as they were.
A TypeError is about what an argument is (its kind, its dtype), a ValueError about its value.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from fused_adamw.cgroup import cpu_quota

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    Py_buffer,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
)
from cpython.exc cimport PyErr_Clear, PyErr_Occurred
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from libc.math cimport isfinite, pow, sqrt


cdef extern from "fused_adamw.h" nogil:
    enum:
        FUSED_ADAMW_FLOAT32
        FUSED_ADAMW_FLOAT64
        FUSED_ADAMW_DTYPES

    ctypedef struct fused_adamw_scalars:
        double b1, b2, c1, c2, step, rsqrt_bc2, decay, eps

    ctypedef struct fused_adamw_tensor:
        void *params
        const void *grads
        void *m
        void *v
        ptrdiff_t size
        int dtype
        const fused_adamw_scalars *scalars

    ctypedef struct fused_adamw_isa:
        const char *name
        int (*supported)()

    const fused_adamw_isa *fused_adamw_isas
    void fused_adamw_init()
    int fused_adamw_has_openmp()
    int fused_adamw_max_threads()
    void fused_adamw_step(const fused_adamw_isa *isa, const fused_adamw_tensor *tensors,
                          ptrdiff_t count, int num_threads)


cdef dict DTYPE_NAMES = {FUSED_ADAMW_FLOAT32: "float32", FUSED_ADAMW_FLOAT64: "float64"}

include "_numbers.pxi"
include "_machine.pxi"
include "_structure.pxi"
include "_buffers.pxi"


cdef enum:
    ROLES = 3  # params, m, v: what a step writes

cdef tuple ROLE_NAMES = ("params", "m", "v")


cdef class Tensors:
    """Parameters and their moments, checked once and held for any number of steps.

    ``params``, ``m`` and ``v`` are as in ``fused_adamw``."""

    cdef object keys             # as of keys_of(params)
    cdef Py_ssize_t count        # of tensors
    cdef fused_adamw_tensor *tensors
    cdef char *orders            # of each tensor's elements in memory: b"C" or b"F"
    cdef Py_buffer *views        # of the first tensor's params, m and v, then of the next one's
    cdef Py_ssize_t held         # how many of them are borrowed
    cdef Interval *written       # those that are not empty, by address
    cdef Py_ssize_t intervals    # how many of those there are

    def __cinit__(self, params, m, v):
        self.keys = keys_of(params)
        cdef tuple all_params = arrays_of("params", params, self.keys)
        cdef tuple all_m = arrays_of("m", m, self.keys)
        cdef tuple all_v = arrays_of("v", v, self.keys)
        cdef Py_ssize_t i, count = len(all_params)
        self.tensors = <fused_adamw_tensor *>allocate(count, sizeof(fused_adamw_tensor))
        self.orders = <char *>allocate(count, sizeof(char))
        self.views = <Py_buffer *>allocate(ROLES * count, sizeof(Py_buffer))
        self.written = <Interval *>allocate(2 * ROLES * count, sizeof(Interval))
        for i in range(count):
            self.count += 1
            self.hold_params(i, all_params[i])
            self.tensors[i].m = self.hold_moment(i, all_m[i])
            self.tensors[i].v = self.hold_moment(i, all_v[i])
        self.refuse_overlaps()

    def __dealloc__(self):
        cdef Py_ssize_t k
        for k in range(self.held):
            PyBuffer_Release(&self.views[k])
        PyMem_Free(self.written)
        PyMem_Free(self.views)
        PyMem_Free(self.orders)
        PyMem_Free(self.tensors)

    def step(self, grads, t, lr, betas, eps, weight_decay, num_threads, isa):
        """One AdamW update of every tensor, in place; arguments as of ``fused_adamw``."""
        cdef tuple all_grads = arrays_of("grads", grads, self.keys)
        cdef int threads = resolve_threads(num_threads)
        cdef const fused_adamw_isa *chosen = find_isa(isa)
        cdef fused_adamw_scalars[<int>FUSED_ADAMW_DTYPES] scalars
        self.derive_scalars(scalars, t, lr, betas, eps, weight_decay)

        # Of this call alone, so that two threads may step at once.
        cdef fused_adamw_tensor *tensors = NULL
        cdef Py_buffer *views = NULL
        cdef Py_ssize_t i, taken = 0
        try:
            tensors = <fused_adamw_tensor *>allocate(self.count, sizeof(fused_adamw_tensor))
            views = <Py_buffer *>allocate(self.count, sizeof(Py_buffer))
            for i in range(self.count):
                acquire(&views[i], self, "grads", i, all_grads[i])
                taken += 1
                self.accept_gradient(i, &views[i], all_grads[i])
                tensors[i] = self.tensors[i]
                tensors[i].grads = views[i].buf
                tensors[i].scalars = &scalars[tensors[i].dtype]
            with nogil:
                fused_adamw_step(chosen, tensors, self.count, threads)
        finally:
            for i in range(taken):
                PyBuffer_Release(&views[i])
            PyMem_Free(views)
            PyMem_Free(tensors)

    cdef int derive_scalars(
        self, fused_adamw_scalars *scalars, t, lr, betas, eps, weight_decay
    ) except -1:
        """For each dtype that is present; for float64 where there is no tensor at all."""
        cdef bint[<int>FUSED_ADAMW_DTYPES] present = [False, self.count == 0]
        cdef Py_ssize_t i
        cdef int dtype
        for i in range(self.count):
            present[self.tensors[i].dtype] = True
        for dtype in range(<int>FUSED_ADAMW_DTYPES):
            if present[dtype]:
                derive_scalars(&scalars[dtype], dtype, t, lr, betas, eps, weight_decay)
        return 0

    # ---- params, m and v

    cdef int hold_params(self, Py_ssize_t i, array) except -1:
        cdef Py_buffer *view = &self.views[self.held]
        self.tensors[i].dtype = acquire(view, self, "params", i, array)
        self.held += 1
        self.tensors[i].params = view.buf
        self.tensors[i].size = view.len // view.itemsize
        self.orders[i] = order_of(view)
        if view.readonly or self.orders[i] == 0:
            self.refuse_layout("params", i, view)
        return 0

    cdef void *hold_moment(self, Py_ssize_t i, array) except? NULL:
        cdef Py_buffer *view = &self.views[self.held]
        cdef Py_buffer *params = &self.views[ROLES * i]
        cdef str argument = ROLE_NAMES[self.held % ROLES]
        acquire(view, self, argument, i, array)
        self.held += 1
        if not same_layout(view, params):
            self.require_like_params(argument, i, view)
            if not PyBuffer_IsContiguous(view, self.orders[i]):
                self.refuse_layout(argument, i, view)
        if view.readonly:
            self.refuse_layout(argument, i, view)
        return view.buf

    cdef int require_like_params(self, str argument, Py_ssize_t i, const Py_buffer *view) except -1:
        cdef Py_buffer *params = &self.views[ROLES * i]
        if dtype_of(view) != self.tensors[i].dtype:
            raise TypeError(
                f"{self.name(argument, i)} has dtype {DTYPE_NAMES[dtype_of(view)]}; expected "
                f"{DTYPE_NAMES[self.tensors[i].dtype]}, the dtype of {self.name('params', i)}"
            )
        if shape_of(view) != shape_of(params):
            raise ValueError(
                f"{self.name(argument, i)} has shape {shape_of(view)}; expected "
                f"{shape_of(params)}, the shape of {self.name('params', i)}"
            )
        return 0

    cdef int refuse_layout(self, str argument, Py_ssize_t i, const Py_buffer *view) except -1:
        name = self.name(argument, i)
        if view.readonly:
            raise ValueError(f"{name} is read-only; it is updated in place and must be writable")
        if order_of(view) == 0:
            raise ValueError(
                f"{name} is not dense (shape {shape_of(view)}, strides {strides_of(view)} bytes); "
                "expected an array in C or Fortran order, without gaps"
            )
        raise ValueError(
            f"{name} is in {ORDER_NAMES[order_of(view)]} order; expected "
            f"{ORDER_NAMES[self.orders[i]]} order, that of {self.name('params', i)}"
        )

    cdef int refuse_overlaps(self) except -1:
        cdef Py_ssize_t k
        for k in range(self.held):
            if self.views[k].len > 0:
                self.written[self.intervals] = interval_of(&self.views[k])
                self.intervals += 1
        sort_intervals(self.written, self.written + self.intervals, self.intervals)
        for k in range(1, self.intervals):
            if self.written[k].begin < self.written[k - 1].end:
                self.report_overlap()
        return 0

    cdef int report_overlap(self) except -1:
        cdef Py_ssize_t a, b
        for b in range(self.held):
            for a in range(b):
                if overlap(interval_of(&self.views[a]), interval_of(&self.views[b])):
                    raise ValueError(
                        f"{self.view_name(a)} and {self.view_name(b)} share memory; every array "
                        "that is updated needs memory of its own"
                    )
        return 0

    # ---- gradients

    cdef int accept_gradient(self, Py_ssize_t i, Py_buffer *view, array) except -1:
        """Check a gradient; one in another memory order is replaced by a copy in the right one."""
        if not same_layout(view, &self.views[ROLES * i]):
            self.require_like_params("grads", i, view)
            if not PyBuffer_IsContiguous(view, self.orders[i]):
                array = np.array(array, order=chr(self.orders[i]), copy=True)
                PyBuffer_Release(view)
                acquire(view, self, "grads", i, array)
        if overlaps_any(interval_of(view), self.written, self.intervals):
            self.report_gradient_overlap(i, view)
        return 0

    cdef int report_gradient_overlap(self, Py_ssize_t i, const Py_buffer *view) except -1:
        cdef Py_ssize_t k
        for k in range(self.held):
            if overlap(interval_of(view), interval_of(&self.views[k])):
                raise ValueError(
                    f"{self.name('grads', i)} and {self.view_name(k)} share memory; a gradient "
                    "is read while the other is written"
                )
        return 0

    # ---- names for messages

    cdef name(self, str argument, Py_ssize_t i):
        if self.keys is None:
            return argument
        return f"{argument}[{self.keys[i] if type(self.keys) is list else i!r}]"

    cdef view_name(self, Py_ssize_t k):
        return self.name(ROLE_NAMES[k % ROLES], k // ROLES)
