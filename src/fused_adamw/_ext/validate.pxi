"""What bound arrays and gradients must be."""

cdef str UPDATES_GRADS = "max_grad_norm and skip_nonfinite update gradients in place"


cdef str names_of_types(bint plain):
    """The dtypes that parameters may have; ``plain``: those that are compute types."""
    names = []
    for i, name in enumerate(ELEMENT_TYPES):
        if not plain or plain_format(<int>i) >= 0:
            names.append(name)
    *others, last = names
    return f"{', '.join(others)} or {last}"


cdef int acquire(
    Py_buffer *buffer, ArrayView *view, TreeSpec spec, str argument, Py_ssize_t i, array, bint plain
) except -1:
    """Acquire the buffer of an array of parameters, of plain state or of gradients. An error leaves
    nothing acquired."""
    cdef int status
    if type(array) is not np_ndarray and isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{spec.name(argument, i)} must be a plain array; got a masked array, whose memory "
            "includes what is masked: pass its .data, or .filled(0)"
        )
    status = acquire_buffer(buffer, view, array)
    if status == -2:
        refuse_object(spec, argument, i, array, plain)
    if view.element_type < 0 or (plain and plain_format(view.element_type) < 0):
        try:
            refuse_dtype(spec, argument, i, array, buffer.format, plain)
        finally:
            PyBuffer_Release(buffer)
    return 0


cdef int refuse_object(TreeSpec spec, str argument, Py_ssize_t i, array, bint plain) except -1:
    if isinstance(array, np_ndarray):  # of a dtype that the protocol has no format for
        refuse_dtype(spec, argument, i, array, NULL, plain)
    must = f"{spec.name(argument, i)} must be a NumPy array of {names_of_types(plain)}"
    if not PyObject_CheckBuffer(array):
        raise TypeError(f"{must}; got {type(array).__name__}{torch_hint(array)}")
    try:
        memoryview(array)
    except Exception as error:
        raise TypeError(f"{must}; got {type(array).__name__}: {error}") from None
    raise TypeError(f"{must}; got {type(array).__name__}, which exports no strided buffer")


cdef int refuse_scalar(TreeSpec spec, str argument, Py_ssize_t i, scalar) except -1:
    raise TypeError(
        f"{spec.name(argument, i)} must be an array; got a scalar of {type(scalar).__name__}: pass "
        "np.array(value)"
    )


cdef int refuse_dtype(
    TreeSpec spec, str argument, Py_ssize_t i, array, const char *code, bint plain
) except -1:
    exported = "B" if code == NULL else code.decode()
    dtype = getattr(array, "dtype", f"of buffer format {exported!r}")
    order = "" if getattr(dtype, "isnative", True) else " in non-native byte order"
    raise TypeError(
        f"{spec.name(argument, i)} must be a NumPy array of {names_of_types(plain)}; got dtype "
        f"{dtype}{order}"
    )


cdef int require_like_params(
    TreeSpec spec, str argument, Py_ssize_t i, const ArrayView *view, const ArrayView *params
) except -1:
    if view.element_type != params.element_type:
        raise TypeError(
            f"{spec.name(argument, i)} must have dtype {ELEMENT_TYPES[params.element_type]}, like "
            f"{spec.name('params', i)}; got {ELEMENT_TYPES[view.element_type]}"
        )
    if not same_shape(view, params):
        raise ValueError(
            f"{spec.name(argument, i)} must have shape {shape_of(params)}, like "
            f"{spec.name('params', i)}; got {shape_of(view)}"
        )
    return 0


cdef int require_writable(
    TreeSpec spec, str argument, Py_ssize_t i, const ArrayView *view, str why
) except -1:
    return refuse_readonly(spec, argument, i, why) if view.readonly else 0


cdef int refuse_readonly(TreeSpec spec, str argument, Py_ssize_t i, str why) except -1:
    raise ValueError(
        f"{spec.name(argument, i)} must be writable, since {why}; got a read-only array"
    )


cdef int require_updatable(
    TreeSpec spec, str argument, Py_ssize_t i, const ArrayView *view, str why
) except -1:
    """What is written to in place, but need not be contiguous."""
    require_writable(spec, argument, i, view, why)
    if may_share_elements(view):
        raise ValueError(
            f"{spec.name(argument, i)} must have memory of its own for each element, since {why}; "
            f"got shape {shape_of(view)}, strides {strides_of(view)}: pass a copy"
        )
    return 0


cdef int require_disjoint(TreeSpec spec, str argument, tuple arrays, str why) except -1:
    """Raise for arrays of which two have an element in common. Their extents may overlap, as those
    of columns of one array do."""
    cdef list bounds = [], before = [], reaching
    for i, array in enumerate(arrays):
        if array is not None and (array := np.asarray(array)).size:
            bounds.append((*np.lib.array_utils.byte_bounds(array), i, array))
    for begin, end, i, array in sorted(bounds):
        reaching = [(end, i, array)]
        for found in before:
            if found[0] <= begin:  # it ends before this and all that follow
                continue
            if may_overlap(array, found[2]):
                raise ValueError(
                    f"{spec.name(argument, i)} must not share memory with "
                    f"{spec.name(argument, found[1])}, since {why}"
                )
            reaching.append(found)
        before = reaching
    return 0


cdef bint may_overlap(array, other) except -1:
    """Whether two arrays may have an element in common: exact for slices of one array, True where
    it would take long to find out."""
    try:
        return np.shares_memory(array, other, max_work=100)
    except np.exceptions.TooHardError:
        return True


cdef int require_contiguous(
    TreeSpec spec, str argument, Py_ssize_t i, const ArrayView *view
) except -1:
    if order_of(view) == 0:
        raise ValueError(
            f"{spec.name(argument, i)} must be contiguous (C or Fortran order); got shape "
            f"{shape_of(view)}, strides {strides_of(view)}"
        )
    return 0


cdef int require_order(
    TreeSpec spec, str argument, Py_ssize_t i, const ArrayView *view, char order
) except -1:
    if not is_ordered(view, order):
        require_contiguous(spec, argument, i, view)
        raise ValueError(
            f"{spec.name(argument, i)} must be in {ORDER_NAMES[order]} order, like "
            f"{spec.name('params', i)}; got {ORDER_NAMES[order_of(view)]} order"
        )
    return 0


cdef int require_moment(
    TreeSpec spec, int role, Py_ssize_t i, const ArrayView *view, const ArrayView *params,
    char order
) except -1:
    """Check an array that the caller keeps beside the parameters."""
    cdef str argument
    if (
        view.element_type == params.element_type and same_layout(view, params)
        and not view.readonly
    ):
        return 0
    argument = ROLE_NAMES[role]
    require_like_params(spec, argument, i, view, params)
    require_writable(spec, argument, i, view, "it is updated in place")
    return require_order(spec, argument, i, view, order)


cdef int require_state_array(
    TreeSpec spec, int role, Py_ssize_t i, const Py_buffer *buffer, Py_ssize_t nbytes,
    const char *dtype, char order
) except -1:
    """Check an array of an optimizer's own state: flat, or ordered like the parameters."""
    cdef bint ordered = PyBuffer_IsContiguous(buffer, order if buffer.ndim > 1 else <char>b"C")
    if buffer.len == nbytes and ordered and not buffer.readonly:
        return 0
    why = ""
    if buffer.readonly:
        why = " (read-only)"
    elif not ordered:
        why = " (not contiguous)"
    raise ValueError(
        f"{spec.name(ROLE_NAMES[role], i)} must be a writable array of {nbytes} contiguous bytes "
        f"({text(dtype)}); got {buffer.len} bytes{why}"
    )


cdef int refuse_overlap(str first, str second) except -1:
    raise ValueError(f"{first} must not share memory with {second}: both are updated in place")


cdef int refuse_gradient_overlap(str gradient, str written) except -1:
    raise ValueError(
        f"{gradient} must not share memory with {written}: one is read while the other is updated"
    )
