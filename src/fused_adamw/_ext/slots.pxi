"""What ``BoundArrays`` keeps of each array."""


cdef struct Param:
    # One tensor of the parameters.
    ArrayView view
    long long steps   # that it has had
    Py_ssize_t group  # whose hyper-parameters it takes
    bint decays       # whether weight decay applies to it
    char order        # of its elements in memory: b"C" or b"F"


cdef struct Slot:
    # What is stepped: a tensor, or a range of its elements.
    fused_adamw_tensor tensor
    Py_ssize_t param  # the tensor's index


cdef struct BoundBuffer:
    Py_buffer buffer
    Interval memory
    int role
    Py_ssize_t param


cdef int derive_for(
    Derived *derived, const Param *param, long long steps, list hypers
) except -1:
    """The scalars of a parameter's step after ``steps``."""
    return derive(
        derived, param.group, param.decays,
        fused_adamw_element_types[param.view.element_type].compute, steps + 1,
        hypers[param.group],
    )


cdef list arrays_of_state(list state, Py_ssize_t slots):
    """The format of each ``TensorState``, and its arrays with their names."""
    if len(state) != slots:
        raise ValueError(f"state must have {slots} items; got {len(state)}")
    found = []
    for kept in state:
        if not (hasattr(kept, "format") and isinstance(getattr(kept, "arrays", None), dict)):
            raise TypeError(f"state must be of TensorStates; got {type(kept).__name__}")
        found.append((kept.format, list((<dict>kept.arrays).items())))
    return found


cdef int require_slice(
    const Param *params, Py_ssize_t count, Py_ssize_t i, Py_ssize_t begin, Py_ssize_t end
) except -1:
    """Check a slot that is to be a range of tensor i."""
    if not 0 <= i < count:
        raise ValueError(f"slices must be of {count} tensors; got number {i}")
    if not 0 <= begin <= end <= size_of(&params[i].view) or begin % FUSED_ADAMW_BLOCK != 0:
        raise ValueError(
            f"slices must be of {size_of(&params[i].view)} elements and begin at multiples of "
            f"{FUSED_ADAMW_BLOCK}; got {begin} to {end}"
        )
    return 0


cdef int require_buffers(TreeSpec spec, const Slot *slot, const bint *has_rate) except -1:
    """A slot has the optional buffers that decay rates are given for, and no others."""
    cdef const fused_adamw_optional_buffer *row
    cdef int k
    for k in range(FUSED_ADAMW_NUM_BUFFERS):
        row = &fused_adamw_optional_buffers[k]
        if row.has_decay and (slot.tensor.buffers[k] != NULL) != has_rate[k]:
            raise ValueError(
                f"the state of {spec.name('params', slot.param)} must have an array "
                f"{text(row.name)!r} exactly where roles names it"
            )
    return 0


cdef Py_ssize_t first_changed(const BoundBuffer *buffers, Py_ssize_t count) except -2:
    """The first of some buffers whose array of NumPy has other memory by now, or is read-only; -1
    for none."""
    cdef const Py_buffer *buffer
    cdef ArrayMemory now
    cdef Py_ssize_t k
    for k in range(count):
        buffer = &buffers[k].buffer
        if not isinstance(<object>buffer.obj, np_ndarray):
            continue
        read_memory(&now, <PyObject *>buffer.obj)
        if now.data != buffer.buf or now.size * buffer.itemsize != buffer.len:
            return k
        if not is_writable(<PyObject *>buffer.obj):
            return k
    return -1


cdef int refuse_changed(str name) except -1:
    raise ValueError(
        f"{name} must be writable and keep its memory during the call; got an array that the code "
        "of an argument has changed"
    )
