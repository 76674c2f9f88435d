"""Lists, built with append here and everywhere in the module.

The code that Cython 3.3 generates for a list comprehension releases an item twice if memory runs
out while the list grows."""


cdef list items_at(arrays, keys):
    cdef list items = []
    for key in keys:
        items.append(arrays[key])
    return items


cdef int require_instances(str name, list items, type kind) except -1:
    """Raise TypeError unless all items are of a type; a typed variable would accept None, too."""
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(
                f"{name} must be a list of {kind.__name__}; got {type(item).__name__} in it"
            )
    return 0


cdef list without_item(keys, arrays):
    """The keys that a mapping does not have."""
    cdef list missing = []
    for key in keys:
        if key not in arrays:
            missing.append(key)
    return missing


cdef list empty_lists(Py_ssize_t count):
    cdef list found = []
    for _ in range(count):
        found.append([])
    return found
