"""The structures of arguments: one array, a sequence of arrays, or a mapping of them."""


cdef keys_of(params):
    """What names the arrays: None for one, their number for a sequence, a mapping's keys."""
    if isinstance(params, (list, tuple)):
        return len(params)
    if isinstance(params, dict):
        return list(params)
    if PyObject_CheckBuffer(params):
        return None
    if isinstance(params, Mapping):
        return list(params)
    if isinstance(params, Sequence) and not isinstance(params, str):
        return len(params)
    raise TypeError(
        f"params is of type {type(params).__name__}; expected a NumPy array, or a sequence or a "
        "mapping of arrays"
    )


cdef tuple arrays_of(str argument, arrays, keys):
    """The arrays of an argument in the order of the parameters' keys."""
    if keys is None:
        return (arrays,)
    if type(keys) is list:
        return from_mapping(argument, arrays, keys)
    return from_sequence(argument, arrays, keys)


cdef tuple from_sequence(str argument, arrays, Py_ssize_t length):
    if not isinstance(arrays, (list, tuple)) and (
        PyObject_CheckBuffer(arrays) or not isinstance(arrays, Sequence)
    ):
        raise TypeError(
            f"{argument} is of type {type(arrays).__name__}; expected a sequence of arrays, like "
            "params"
        )
    cdef tuple found = tuple(arrays)
    if len(found) != length:
        raise ValueError(f"{argument} has {len(found)} arrays; expected {length}, as in params")
    return found


cdef tuple from_mapping(str argument, arrays, list keys):
    if not isinstance(arrays, (dict, Mapping)):
        raise TypeError(
            f"{argument} is of type {type(arrays).__name__}; expected a mapping of arrays, like "
            "params"
        )
    if list(arrays) == keys:
        return tuple(arrays.values())
    missing = [key for key in keys if key not in arrays]
    extra = [key for key in arrays if key not in keys]
    if missing or extra:
        raise ValueError(
            f"{argument} has not the keys of params: missing {missing}, unexpected {extra}"
        )
    return tuple([arrays[key] for key in keys])
