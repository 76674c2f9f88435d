"""Stored moments to float32 and back, by the kernels that read and write them in a step."""


cdef int point_to(
    fused_adamw_tensor *tensor, str state_format, arrays, Py_ssize_t size, bint written
) except -1:
    """Describe flat state arrays of ``size`` elements, whose sizes are checked."""
    memset(tensor, 0, sizeof(fused_adamw_tensor))
    tensor.size = size
    tensor.element_type = FUSED_ADAMW_FLOAT32
    tensor.state_format = format_index(state_format)
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping; got {type(arrays).__name__}")
    for name, array in arrays.items():
        role = state_role(name)
        if role == MASTER or role == EMA:
            continue
        if not isinstance(array, np_ndarray):
            raise TypeError(f"{name} must be a NumPy array; got {type(array).__name__}")
        array = np.asarray(array)  # of a subclass: its memory as NumPy knows it
        expected = storage_nbytes(tensor, role)
        if not (array.flags.c_contiguous and array.nbytes == expected):
            raise ValueError(f"{name} must have {expected} contiguous bytes; got {array.nbytes}")
        if written and not array.flags.writeable:
            raise ValueError(f"{name} must be writable; got a read-only array")
        role_pointer(tensor, role)[0] = address_of(array)
    if size > 0:
        require_roles(FUSED_ADAMW_FLOAT32, tensor.state_format, roles_of(tensor))
    return 0


cdef void *address_of(array) except? NULL:
    return <void *><size_t>array.ctypes.data


def decode_state(str state_format, arrays, Py_ssize_t size):
    """The moments that flat arrays of a state format, by role, stand for.

    Returns {"m": ..., "v": ...}, and "v_max" where there is one: new flat arrays of float32, or of
    float64 for the format of that name."""
    cdef fused_adamw_tensor tensor
    point_to(&tensor, state_format, arrays, size, False)
    moments = {name: np.empty(size, np.float32) for name in ("m", "v", "v_max") if name in arrays}
    if tensor.state_format == FUSED_ADAMW_STATE_FLOAT64:
        return {name: np.array(arrays[name]) for name in moments}
    fused_adamw_decode_state(
        find_isa(), &tensor, <float *>address_of(moments["m"]), <float *>address_of(moments["v"]),
        <float *>address_of(moments["v_max"]) if "v_max" in moments else NULL,
    )
    return moments


def encode_state(str state_format, arrays, m, v, v_max=None):
    """Write flat moments into flat arrays of a state format, by role, rounded to the nearest."""
    cdef fused_adamw_tensor tensor
    cdef Py_ssize_t size = len(m)
    dtype = np.float64 if format_index(state_format) == FUSED_ADAMW_STATE_FLOAT64 else np.float32
    moments = {
        name: np.ascontiguousarray(x, dtype) for name, x in (("m", m), ("v", v), ("v_max", v_max))
        if name != "v_max" or x is not None
    }
    for name, x in moments.items():
        if x.shape != (size,):
            raise ValueError(f"{name} must have shape {(size,)}, like m; got {x.shape}")
    point_to(&tensor, state_format, arrays, size, True)
    if (v_max is None) != ("v_max" not in arrays):
        has = "has" if v_max is None else "lacks"
        raise ValueError(f"v_max must be given exactly where arrays has it; got arrays that {has} it")
    if tensor.state_format == FUSED_ADAMW_STATE_FLOAT64:
        for name, x in moments.items():
            arrays[name][:] = x
        return
    fused_adamw_encode_state(
        find_isa(), &tensor, <float *>address_of(moments["m"]), <float *>address_of(moments["v"]),
        <float *>address_of(moments["v_max"]) if "v_max" in moments else NULL,
    )
