"""Values of the caller, as messages show them."""

cdef enum:
    MOST_ITEMS = 50         # of a container, with all that they contain; of an array, its elements
    MOST_CHARACTERS = 1000


cpdef str shown(value):
    """A value in a message; its type where it is not written."""
    found = written(value)
    return f"a value of type {type(value).__name__}" if found is None else found


cdef str written(value):
    """The text of a value. None for a model that was passed as a number, whose text would take
    seconds and fill the screen, and where there is none: Python refuses to write integers of
    thousands of digits, with an error that would take the place of the message."""
    try:
        if count_items(value, MOST_ITEMS) > MOST_ITEMS:
            return None
        found = repr(value)
    except Exception:
        return None
    return found if len(found) <= MOST_CHARACTERS else f"{found[:MOST_CHARACTERS]}..."


cdef Py_ssize_t count_items(value, Py_ssize_t most) except -1:
    """The number of items of a value, its own among them, if it is at most ``most``; else more."""
    cdef Py_ssize_t found = 1
    if isinstance(value, np_ndarray):
        return np_ndarray.size.__get__(value)
    if isinstance(value, dict):
        value = dict.values(value)
    elif not isinstance(value, (list, tuple, set, frozenset)):
        return found
    for item in value:  # before the next one, as a list may contain itself
        if found > most:
            break
        found += count_items(item, most - found)
    return found
