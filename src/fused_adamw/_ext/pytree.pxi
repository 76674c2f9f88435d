"""The structures of arguments: one array, a sequence or a mapping of arrays, or groups of these."""


@cython.no_gc
cdef class Structure:
    """How the arrays of a call are arranged, learnt from ``params`` and required of the rest.

    ``grouped``: ``params`` is a list with one such arrangement a group."""

    cdef object keys             # as of keys_of(params); of each group in a list where grouped
    cdef bint grouped

    def __cinit__(self, params, bint grouped=False):
        self.grouped = grouped
        self.keys = [keys_of(f"params[{g}]", group) for g, group in enumerate(params)] \
            if grouped else keys_of("params", params)

    cpdef tuple flatten(self, str argument, arrays):
        """A tuple of the arrays of an argument, group after group."""
        if not self.grouped:
            return arrays_of(argument, arrays, self.keys)
        flat = []
        for g, group in enumerate(from_sequence(argument, arrays, len(self.keys))):
            flat.extend(arrays_of(f"{argument}[{g}]", group, self.keys[g]))
        return tuple(flat)

    def unflatten(self, flat):
        """The arrangement with the items of ``flat`` in the places of the arrays."""
        rest = iter(flat)
        if self.grouped:
            return [arranged(rest, keys) for keys in self.keys]
        return arranged(rest, self.keys)

    cdef Py_ssize_t groups(self) except -1:
        return len(self.keys) if self.grouped else 1

    cdef int require_group_each(self, list hypers) except -1:
        if len(hypers) != self.groups():
            raise ValueError(
                f"param_groups has {len(hypers)} groups; expected {self.groups()}, as at "
                "construction"
            )
        return 0

    cdef list group_indices(self):
        """The group of each tensor."""
        if not self.grouped:
            return [0] * size_of(self.keys)
        return [g for g, keys in enumerate(self.keys) for _ in range(size_of(keys))]

    def paths(self):
        """What leads to each array: (), (3,), ("w",), or (0, "w") in a group."""
        if not self.grouped:
            return paths_of(self.keys)
        return [(g, *path) for g, keys in enumerate(self.keys) for path in paths_of(keys)]

    cdef name(self, str argument, Py_ssize_t i):
        return argument + "".join([f"[{key!r}]" for key in self.paths()[i]])


cdef Py_ssize_t size_of(keys) except -1:
    return 1 if keys is None else len(keys) if type(keys) is list else keys


cdef list paths_of(keys):
    if keys is None:
        return [()]
    return [(key,) for key in (keys if type(keys) is list else range(keys))]


cdef arranged(rest, keys):
    if keys is None:
        return next(rest)
    if type(keys) is list:
        return {key: next(rest) for key in keys}
    return [next(rest) for _ in range(keys)]


cdef keys_of(str argument, arrays):
    """What names the arrays: None for one, their number for a sequence, a mapping's keys."""
    if isinstance(arrays, (list, tuple)):
        return len(arrays)
    if isinstance(arrays, dict):
        return list(arrays)
    if PyObject_CheckBuffer(arrays):
        return None
    if isinstance(arrays, Mapping):
        return list(arrays)
    if isinstance(arrays, Sequence) and not isinstance(arrays, str):
        return len(arrays)
    raise TypeError(
        f"{argument} is of type {type(arrays).__name__}; expected a NumPy array, or a sequence or "
        "a mapping of arrays"
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
    cdef tuple found
    if type(arrays) is dict and list(arrays) == keys:  # the usual case, and the fastest way
        found = tuple(arrays.values())
        if len(found) == len(keys):
            return found
    if len(arrays) == len(keys) and all([key in arrays for key in keys]):
        return tuple([arrays[key] for key in keys])
    missing = [key for key in keys if key not in arrays]
    extra = sorted(set(arrays).difference(keys), key=str)
    raise ValueError(
        f"{argument} has not the keys of params: missing {missing}, unexpected {extra}"
    )
