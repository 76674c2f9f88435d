"""Lists, built with append here and everywhere in the module.

Of a list comprehension, the code that Cython 3.3 generates releases an item twice where there is no
memory for the list to grow."""


cdef list items_at(arrays, keys):
    cdef list items = []
    for key in keys:
        items.append(arrays[key])
    return items


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
