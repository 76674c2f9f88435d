# cython: boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""Validates arrays and hyper-parameters; the only caller of the C library (csrc).

One module in several files, in the order of their dependencies:

    tables.pxi            element types, state formats, the roles of state arrays
    shown_values.pxi      values of the caller in messages
    hyperparams.pxi       numbers: checked, and turned into the scalars of a step
    runtime.pxi           instruction sets and threads
    lists.pxi             lists that grow by append
    pytree.pxi            how the arrays of an argument are arranged
    array_view.pxi        the memory of one array, whatever exports it
    intervals.pxi         arrays that overlap
    buffer_adapter.pxi    array views of the buffer protocol
    tensor_functions.pxi  array views of PyTorch's C interface
    dlpack_adapter.pxi    array views of DLPack
    sources.pxi           arrays that are replaced or become read-only after they were passed
    validate.pxi          what parameters, gradients and state must be
    workspace.pxi         what one step needs: tensors with gradients, their scalars
    autotune.pxi          whether several threads pay
    slots.pxi             what is kept of each array
    lock.pxi              one thread at a time
    bound_arrays.pxi      parameters and state, bound for an optimizer's life
    bound_tensors.pxi     steps over them
    gather.pxi            the tensors of a step, in the state of an optimizer for PyTorch
    step_memory.pxi       whether two of them share memory that a step updates
    checked_tensors.pxi   these tensors, described for one step
    prepared_step.pxi     a step of a group of them
    step_plan.pxi         steps of all groups at once, while their options stay the same
    pieces.pxi            steps and norms of ranges of PyTorch's parameters
    codec.pxi             state formats to and from float32
    functional.pxi        the function fused_adamw
    signals.pxi           deferral of signal handlers

Nothing is written before everything has been checked; after an error all arrays are as they were.
A TypeError is about what an argument is (its kind, its dtype), a ValueError about its value.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter
from time import perf_counter
from types import GetSetDescriptorType
from typing import NamedTuple

import numpy as np

cimport cython

from fused_adamw._cgroup import cpu_quota

from c_api cimport *
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Next
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_ExceptionMatches, PyErr_Occurred
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_get_thread_ident,
    PyThread_release_lock,
    PyThread_type_lock,
)
from cpython.sequence cimport PySequence_Check
from cpython.ref cimport Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_New, PyTuple_SetItem
from libc.math cimport isfinite
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memset

include "tables.pxi"
include "shown_values.pxi"
include "hyperparams.pxi"
include "runtime.pxi"
include "lists.pxi"
include "pytree.pxi"
include "array_view.pxi"
include "intervals.pxi"
include "buffer_adapter.pxi"
include "tensor_functions.pxi"
include "dlpack_adapter.pxi"
include "sources.pxi"
include "validate.pxi"
include "workspace.pxi"
include "autotune.pxi"
include "slots.pxi"
include "lock.pxi"
include "bound_arrays.pxi"
include "bound_tensors.pxi"
include "gather.pxi"
include "step_memory.pxi"
include "checked_tensors.pxi"
include "prepared_step.pxi"
include "step_plan.pxi"
include "pieces.pxi"
include "codec.pxi"
include "functional.pxi"
include "signals.pxi"
