"""The tensors of a step, found in the state of an optimizer for PyTorch."""

cdef dict NO_STATE = {}
cdef object defaultdict_type = defaultdict  # a name of the module costs a search at each use


cdef struct StateCursor:
    # The hash of a tensor takes a call of Python. The state is mostly in the order of the
    # parameters, where it is found without; past so many others a parameter is looked up.
    Py_ssize_t position
    Py_ssize_t entries_left
    bint calls_code  # whether code of Python has run, which may change what was found before


cdef object find_state(state, p, StateCursor *cursor):
    """The state of a parameter, empty where there is none."""
    cdef PyObject *key
    cdef PyObject *entry
    cdef Py_ssize_t position = cursor.position
    if type(state) is dict or type(state) is defaultdict_type:
        while cursor.entries_left > 0 and PyDict_Next(state, &position, &key, &entry):
            cursor.entries_left -= 1
            if key == <PyObject *>p:
                cursor.position = position
                return <object>entry
    cursor.calls_code = True  # Tensor.__hash__, in which signal handlers may run
    return state.get(p, NO_STATE)


cdef bint find_tensors(
    entry, StateCursor *cursor, PyObject **names, int count, PyObject **found
) except -1:
    """Whether the state of a parameter has all these names; new references to what they are of."""
    cdef Py_ssize_t position = 0
    cdef int k
    cdef PyObject *key
    cdef PyObject *tensor
    if not isinstance(entry, dict):
        cursor.calls_code = True
        entry = dict(entry)
    for k in range(count):
        # Mostly in this order, and under the same objects.
        if not PyDict_Next(entry, &position, &key, &tensor) or key != names[k]:
            tensor = PyDict_GetItemWithError(entry, <object>names[k])
        if tensor == NULL:
            for k in range(k):
                release_object(found[k])
            if PyErr_Occurred():
                raise_pending()
            return False
        found[k] = tensor
        Py_INCREF(<object>tensor)
    return True


def gather_tensors(params, state, dict names not None):
    """Lists of the parameters that have a gradient, of their gradients and counters of steps, and a
    dict of the lists of their state; ``names``: of each role, in the dicts of ``state``. None where
    a parameter has no state yet, or less than that."""
    cdef StateCursor cursor = StateCursor(0, 4 * len(params), False)
    cdef list found = [], grads = [], steps = [], lists = empty_lists(len(names))
    cdef list keys = ["step", *names.values()]
    for p in params:
        grad = p.grad
        if grad is None:
            continue
        entry = find_state(state, p, &cursor)
        tensors = []
        for key in keys:
            tensors.append(entry.get(key))
        if None in tensors:
            return None
        found.append(p)
        grads.append(grad)
        steps.append(tensors[0])
        for kept, tensor in zip(lists, tensors[1:]):
            kept.append(tensor)
    return found, grads, steps, dict(zip(names, lists))
