"""Stored moments to float32 and back, by the kernels that read and write them in a step."""


cdef bint is_encoded(int role) noexcept:
    """Whether a state format determines how a role's array is stored."""
    return role != MASTER and (role < <int>OPTIONAL or is_like_v(role))


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
        if not is_encoded(role):
            continue
        if not isinstance(array, np_ndarray):
            raise TypeError(f"{name} must be a NumPy array; got {type(array).__name__}")
        array = np.asarray(array)  # of a subclass: its memory as NumPy knows it
        expected = storage_nbytes(tensor, role)
        if not (array.flags.c_contiguous and array.nbytes == expected):
            why = "" if array.flags.c_contiguous else " (not contiguous)"
            raise ValueError(
                f"{name} must have {expected} contiguous bytes; got {array.nbytes} bytes{why}"
            )
        if written and not array.flags.writeable:
            raise ValueError(f"{name} must be writable; got a read-only array")
        role_pointer(tensor, role)[0] = <void *><size_t>array.ctypes.data
    if size > 0:
        require_roles(FUSED_ADAMW_FLOAT32, tensor.state_format, roles_of(tensor))
    return 0


cdef list names_of_moments(arrays):
    """The arrays that the kernels encode, without their scales."""
    cdef list names = []
    for name in arrays:
        if ROLE_INDEX.get(name) == M or is_like_v(ROLE_INDEX.get(name, M)):
            names.append(name)
    return names


def decode_state(str state_format, arrays, Py_ssize_t size):
    """The moments that flat arrays of a state format, by role, stand for.

    Returns {"m": ..., "v": ...}, and what is stored like v: new flat arrays of float32, or of
    float64 for the format of that name."""
    cdef fused_adamw_tensor tensor, decoded
    point_to(&tensor, state_format, arrays, size, False)
    kept = names_of_moments(arrays)
    if tensor.state_format == FUSED_ADAMW_STATE_FLOAT64:
        return {name: np.array(arrays[name]) for name in kept}
    moments = {name: np.empty(size, np.float32) for name in kept}
    point_to(&decoded, "float32", moments, size, True)
    fused_adamw_decode_state(find_isa(), &tensor, &decoded)
    return moments


def encode_state(str state_format, arrays, **moments):
    """Write flat moments into flat arrays of a state format, by role, rounded to the nearest."""
    cdef fused_adamw_tensor tensor, given
    cdef Py_ssize_t size
    dtype = np.float64 if format_index(state_format) == FUSED_ADAMW_STATE_FLOAT64 else np.float32
    moments = {name: np.ascontiguousarray(x, dtype) for name, x in moments.items()}
    if "m" not in moments:
        raise ValueError(f"moments must be of {names_of_moments(arrays)}; got {list(moments)}")
    size = moments["m"].size
    for name, x in moments.items():
        if x.shape != (size,):
            raise ValueError(f"{name} must have shape {(size,)}, like m; got {x.shape}")
    point_to(&tensor, state_format, arrays, size, True)
    kept = names_of_moments(arrays)
    if moments.keys() != set(kept):
        raise ValueError(f"moments must be of {kept}, like arrays; got {list(moments)}")
    if tensor.state_format == FUSED_ADAMW_STATE_FLOAT64:
        for name, x in moments.items():
            arrays[name][:] = x
        return
    point_to(&given, "float32", moments, size, False)
    fused_adamw_encode_state(find_isa(), &tensor, &given)
