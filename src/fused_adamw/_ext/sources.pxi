"""Where arrays came from: whether they are still in their containers, and still have the same
memory, which is still writable."""


cdef bint same_arrays(arrays, tree, PyObject *const *expected, Py_ssize_t *k) except -1:
    """Whether an argument of an arrangement, ``tree``, has the ``expected`` arrays from the k-th on
    in their places, and maybe more; ``k`` is moved on, up to the first that differs."""
    cdef Py_ssize_t i, position = 0
    cdef PyObject *key
    cdef PyObject *item
    if tree is None:
        if <PyObject *>arrays != expected[k[0]]:
            return False
        k[0] += 1
        return True
    if type(tree) is list and type(arrays) is dict and len(<list>tree) == len(<dict>arrays):
        i = k[0]
        while PyDict_Next(arrays, &position, &key, &item) and item == expected[i]:
            i += 1
        if i == k[0] + len(<list>tree):
            k[0] = i
            return True
    if type(tree) is not Node:
        return same_items(arrays, tree, None, expected, k)
    return same_items(arrays, (<Node>tree).keys, (<Node>tree).children, expected, k)


cdef bint same_items(
    arrays, keys, list children, PyObject *const *expected, Py_ssize_t *k
) except -1:
    """As ``same_arrays``, by a look-up of each key."""
    cdef Py_ssize_t i, count = len(<list>keys) if type(keys) is list else keys
    for i in range(count):
        try:
            if type(keys) is list:
                item = arrays[(<list>keys)[i]]
            elif type(arrays) is tuple and i < len(<tuple>arrays):
                item = (<tuple>arrays)[i]
            elif type(arrays) is list and i < len(<list>arrays):
                item = (<list>arrays)[i]
            else:
                item = arrays[i]
        except (LookupError, TypeError):  # no such item, or no container any more
            return False
        if not same_arrays(item, None if children is None else children[i], expected, k):
            return False
    return True


cdef int require_kept(TreeSpec spec, str argument, arrays) except -1:
    """Raise ValueError for a container that makes its arrays at each access: what is written to
    them would be lost."""
    cdef Py_ssize_t k = 0, g
    cdef tuple first
    cdef PyObject **expected
    if spec.tree is None or (type(arrays) in (dict, list, tuple) and type(spec.tree) is not Node):
        if not spec.grouped:
            return 0
    first = spec.flatten(argument, arrays)
    expected = pointers_to(first)
    try:
        for g in range(spec.groups()):
            if not same_arrays(
                arrays[g] if spec.grouped else arrays, spec.tree_of_group(g), expected, &k
            ):
                raise ValueError(
                    f"{spec.name(argument, k)} must return the same array on every access; got a "
                    "new one: pass the arrays in a dict or list"
                )
    finally:
        PyMem_Free(expected)
    return 0


cdef PyObject **pointers_to(tuple arrays) except NULL:
    """Their addresses, to be freed with PyMem_Free; no references are counted."""
    cdef Py_ssize_t k
    cdef PyObject **found = <PyObject **>allocate(len(arrays), sizeof(PyObject *))
    for k in range(len(arrays)):
        found[k] = <PyObject *>arrays[k]
    return found


cdef tuple layout_of_array(array):
    """Not array.dtype and array.shape, which a subclass may have replaced."""
    return (
        np_ndarray.dtype.__get__(array), np_ndarray.shape.__get__(array),
        np_ndarray.strides.__get__(array),
    )


@cython.final
@cython.no_gc_clear  # it may be called until it is freed
cdef class ParamSources:
    """The parameters of an optimizer, which have to stay in the containers of its groups.

    ``params``: of the arrangement ``spec``. ``group_keys``: those of a parameter group."""

    cdef TreeSpec spec
    cdef tuple group_keys
    cdef Py_ssize_t num_keys
    cdef readonly tuple arrays
    cdef PyObject **expected  # the arrays
    cdef PyObject **resettable  # those of NumPy, which can change, and their number
    cdef Py_ssize_t num_resettable
    cdef ArrayMemory *memories  # of these
    cdef list layouts           # of these

    def __cinit__(self, TreeSpec spec not None, params, tuple group_keys not None):
        require_kept(spec, "params", params)
        self.spec, self.group_keys, self.num_keys = spec, group_keys, len(group_keys)
        self.arrays = spec.flatten("params", params)
        self.expected = pointers_to(self.arrays)
        self.resettable = pointers_to(self.arrays)
        self.memories = <ArrayMemory *>allocate(len(self.arrays), sizeof(ArrayMemory))
        self.layouts = []
        for array in self.arrays:
            if isinstance(array, np_ndarray):
                self.layouts.append(layout_of_array(array))
                self.resettable[self.num_resettable] = <PyObject *>array
                read_memory(&self.memories[self.num_resettable], <PyObject *>array)
                self.num_resettable += 1

    def __dealloc__(self):
        PyMem_Free(self.expected)
        PyMem_Free(self.resettable)
        PyMem_Free(self.memories)

    cpdef int check(self, groups, bint written) except -1:
        """Raise ValueError where ``groups`` have other arrays in the places of these, or other
        keys; where an array has other memory; ``written``: or where one has become read-only."""
        self.check_groups(groups)
        return self.require_memory(written)

    cdef int check_groups(self, groups) except -1:
        cdef Py_ssize_t g = 0, k = 0
        cdef Py_ssize_t count = self.spec.groups()
        if not isinstance(groups, (list, tuple)) and not isinstance(groups, Sequence):
            raise TypeError(f"param_groups must be a list of dicts; got {shown(groups)}")
        cdef tuple found = tuple(groups)  # the code of containers below may add groups
        if len(found) != count:
            raise_number_of_groups(count, len(found))
        for group in found:
            if not isinstance(group, dict) or len(<dict>group) != self.num_keys:
                self.refuse_group(g, group)
            for key in self.group_keys:
                if key not in <dict>group:
                    self.refuse_group(g, group)
            params = (<dict>group)["params"]
            if not same_arrays(params, self.spec.tree_of_group(g), self.expected, &k):
                self.refuse_replaced(g, k)
            g += 1
        return 0

    cdef int require_memory(self, bint written) except -1:
        """The memory is that of the construction, and ``written``: writable."""
        cdef ArrayMemory now
        cdef const ArrayMemory *before
        cdef Py_ssize_t k
        for k in range(self.num_resettable):
            before = &self.memories[k]
            read_memory(&now, self.resettable[k])
            if now.size != before.size or now.data != before.data:
                self.refuse_memory(k, before, &now)
            if written and not is_writable(self.resettable[k]):
                refuse_readonly(
                    self.spec, "params", self.index_of(self.resettable[k]), "it is updated in place"
                )
        return 0

    cdef int refuse_memory(
        self, Py_ssize_t k, const ArrayMemory *before, const ArrayMemory *now
    ) except -1:
        name = self.spec.name("params", self.index_of(self.resettable[k]))
        found = f"an array of {now.size}" if now.size != before.size else "other memory"
        raise ValueError(
            f"{name} must keep the memory of {before.size} elements that it had at construction; "
            f"got {found}: construct a new optimizer"
        )

    def check_unchanged(self, groups, bint written):
        """``check``, and of NumPy's arrays that dtype, shape and strides are those of the
        construction: assignment to ``array.shape`` or ``array.dtype`` changes them in place."""
        cdef Py_ssize_t k
        self.check(groups, written)
        for k in range(self.num_resettable):
            array = <object>self.resettable[k]
            before, now = self.layouts[k], layout_of_array(array)
            if before != now:
                name = self.spec.name("params", self.index_of(self.resettable[k]))
                for what, old, new in zip(("dtype", "shape", "strides"), before, now):
                    if old != new:
                        raise ValueError(
                            f"{name} must have the {what} {old}, as at construction; got {new}"
                        )
        return 0

    def hyperparams(self, groups, long long t, tuple rates not None):
        """``hyperparams_at``, with a check of the groups; that of the memory comes after all code
        of the caller."""
        self.check_groups(groups)
        return hyperparams_at(groups, t, rates)

    cdef Py_ssize_t index_of(self, PyObject *array) noexcept:
        cdef Py_ssize_t k = 0
        while self.expected[k] != array:
            k += 1
        return k

    cdef int refuse_group(self, Py_ssize_t g, group) except -1:
        if not isinstance(group, dict):
            raise TypeError(f"param_groups[{g}] must be a dict; got {type(group).__name__}")
        require_known_keys(f"param_groups[{g}]", group, self.group_keys)
        allowed = ", ".join(self.group_keys)
        missing = without_item(self.group_keys, group)
        raise ValueError(f"param_groups[{g}] must have the keys {allowed}; missing {missing}")

    cdef int refuse_replaced(self, Py_ssize_t g, Py_ssize_t k) except -1:
        path = self.spec.paths()[k]
        where = subscripts(path[1:] if self.spec.grouped else path)
        raise ValueError(
            f"param_groups[{g}]['params']{where} must be the array that the optimizer was "
            "constructed with; got a different object: assign to its elements, array[...] = "
            "values, or construct a new optimizer"
        )


def require_known_keys(str where not None, group, tuple keys not None):
    """Raise ValueError for a parameter group, called ``where``, with a key that is not among
    ``keys``."""
    for key in group:
        if key not in keys:
            raise ValueError(f"{where} must have only the keys {', '.join(keys)}; got {shown(key)}")


cdef int raise_number_of_groups(Py_ssize_t expected, Py_ssize_t found) except -1:
    raise ValueError(
        f"param_groups must have length {expected}, as at construction; got {found}"
    )
