"""How the arrays of an argument are arranged: one array, or nested sequences and mappings."""


@cython.no_gc_clear
cdef class Node:
    """A sequence or a mapping that has further ones among its items."""

    cdef object keys      # a mapping's keys in order, or the length of a sequence
    cdef list children    # the arrangement of each item


# An arrangement is None for an array, an int for a sequence of as many arrays, a list of keys for a
# mapping of arrays, and a Node for what is nested.


@cython.no_gc_clear  # it may be used until it is freed
cdef class TreeSpec:
    """How the arrays of a call are arranged, taken from ``params`` and required of the rest.

    ``grouped``: ``params`` is a list with one such arrangement a group."""

    cdef object tree   # of params; of each group in a list where grouped
    cdef bint grouped

    def __cinit__(self, params, bint grouped=False):
        self.grouped = grouped
        if not grouped:
            self.tree = tree_of("params", params)
            return
        self.tree = []
        for g, group in enumerate(params):
            (<list>self.tree).append(tree_of(f"params[{g}]", group))

    cpdef tuple flatten(self, str argument, arrays):
        """A tuple of the arrays of an argument, group after group, depth first."""
        if not self.grouped:
            return flattened(argument, arrays, self.tree)
        flat = []
        for g, group in enumerate(items_of_sequence(argument, arrays, len(self.tree))):
            flat.extend(flattened(f"{argument}[{g}]", group, self.tree[g]))
        return tuple(flat)

    def unflatten(self, flat):
        """The arrangement with the items of ``flat`` in the places of the arrays; sequences become
        lists, mappings dicts."""
        flat = list(flat)
        if len(flat) != len(self.paths()):
            raise ValueError(f"flat must have {len(self.paths())} items; got {len(flat)}")
        rest = iter(flat)
        if not self.grouped:
            return unflattened(rest, self.tree)
        return unflattened_all(rest, self.tree)

    def paths(self):
        """What leads to each array: (), (3,), ("w",), or ("layers", 0, "w"); first the group."""
        if not self.grouped:
            return paths_of(self.tree)
        found = []
        for g, tree in enumerate(self.tree):
            add_paths(found, g, tree)
        return found

    def names(self):
        """A dotted name for each array: "layers.0.w"; "params" for a single one."""
        found = []
        for path in self.paths():
            found.append(".".join(map(str, path)) or "params")
        return found

    def argument_names(self, str argument not None):
        """How messages name each array of an argument: "params[0]['w']"."""
        found = []
        for path in self.paths():
            found.append(argument + subscripts(path))
        return found

    cdef Py_ssize_t groups(self) except -1:
        return len(self.tree) if self.grouped else 1

    cdef object tree_of_group(self, Py_ssize_t g):
        return (<list>self.tree)[g] if self.grouped else self.tree

    cdef list group_indices(self):
        """The group of each array."""
        if not self.grouped:
            return [0] * len(paths_of(self.tree))
        found = []
        for g, tree in enumerate(self.tree):
            found += [g] * len(paths_of(tree))
        return found

    cdef name(self, str argument, Py_ssize_t i):
        return argument + subscripts(self.paths()[i])


def abbreviated(names, Py_ssize_t most=5):
    """How messages list names: all of a few, or the first of many."""
    listed = list(names)
    if len(listed) <= most:
        return repr(listed)
    return f"{listed[:most]!r} and {len(listed) - most:,} more"


cdef str subscripts(path):
    cdef str found = ""
    for key in path:
        found += f"[{key!r}]"
    return found


cdef list paths_of(tree):
    if tree is None:
        return [()]
    if type(tree) is not Node:
        return list(zip(tree if type(tree) is list else range(tree)))
    cdef list found = []
    keys = (<Node>tree).keys
    for key, child in zip(keys if type(keys) is list else range(keys), (<Node>tree).children):
        add_paths(found, key, child)
    return found


cdef int add_paths(list found, key, tree) except -1:
    """Add what leads to each array of the tree that ``key`` leads to."""
    for path in paths_of(tree):
        found.append((key, *path))
    return 0


cdef unflattened(rest, tree):
    if tree is None:
        return next(rest)
    if type(tree) is list:
        return {key: next(rest) for key in tree}
    if type(tree) is not Node:
        return list(islice(rest, tree))
    items = unflattened_all(rest, (<Node>tree).children)
    keys = (<Node>tree).keys
    return dict(zip(keys, items)) if type(keys) is list else items


cdef list unflattened_all(rest, list trees):
    cdef list items = []
    for tree in trees:
        items.append(unflattened(rest, tree))
    return items


cdef inline bint is_mapping(arrays) except -1:
    return isinstance(arrays, dict) or isinstance(arrays, Mapping)


cdef inline bint is_container(arrays) except -1:
    """Whether this is a sequence or a mapping, rather than an array."""
    if type(arrays) is np_ndarray:
        return False
    if isinstance(arrays, (list, tuple, dict)):
        return True
    if PyObject_CheckBuffer(arrays) or isinstance(arrays, str):
        return False
    return isinstance(arrays, (Mapping, Sequence))


cdef object np_ndarray = np.ndarray

cdef enum:
    MAX_DEPTH = 100  # of nested containers; a structure that contains itself has no end


cdef tree_of(str argument, arrays):
    if PyObject_CheckBuffer(arrays):
        return None
    if not is_container(arrays):
        raise TypeError(
            f"{argument} must be an array, or nested sequences and mappings of arrays; got "
            f"{type(arrays).__name__}{torch_hint(arrays)}"
        )
    return tree_of_container(argument, arrays, 1)


cdef tree_of_container(str argument, arrays, int depth):
    if depth > MAX_DEPTH:
        raise ValueError(
            f"params must be nested at most {MAX_DEPTH} deep; got {argument[:60]}..., deeper still"
        )
    keys = list(arrays) if is_mapping(arrays) else len(arrays)
    items = list(arrays.values()) if type(arrays) is dict else items_at(
        arrays, keys if type(keys) is list else range(keys)
    )
    for item in items:
        if is_container(item):
            break
    else:
        return keys
    node = <Node>Node.__new__(Node)
    node.keys = keys
    node.children = []
    for key, item in zip(keys if type(keys) is list else range(keys), items):
        child = None
        if is_container(item):
            child = tree_of_container(f"{argument}[{key!r}]", item, depth + 1)
        (<list>node.children).append(child)
    return node


cdef str torch_hint(arrays):
    """What to add where PyTorch's parameters were passed, or what may yield them."""
    if hasattr(arrays, "requires_grad") or hasattr(arrays, "__next__"):
        return "; for PyTorch use fused_adamw.torch.AdamW"
    return ""


cdef tuple flattened(str argument, arrays, tree):
    """The arrays of an argument in the order of the parameters'."""
    if tree is None:
        return (arrays,)
    if type(tree) is list:
        return items_of_mapping(argument, arrays, tree)
    if type(tree) is not Node:
        return items_of_sequence(argument, arrays, tree)
    keys = (<Node>tree).keys
    if type(keys) is list:
        items = items_of_mapping(argument, arrays, keys)
    else:
        items = items_of_sequence(argument, arrays, keys)
        keys = range(keys)
    flat = []
    for key, item, child in zip(keys, items, (<Node>tree).children):
        flat.extend(flattened(f"{argument}[{key!r}]", item, child))
    return tuple(flat)


cdef tuple items_of_sequence(str argument, arrays, Py_ssize_t length):
    if not isinstance(arrays, (list, tuple)) and (
        PyObject_CheckBuffer(arrays) or not isinstance(arrays, Sequence)
    ):
        raise TypeError(
            f"{argument} must be a sequence of the length {length}, like params; got "
            f"{type(arrays).__name__}"
        )
    cdef tuple found = tuple(arrays)
    if len(found) != length:
        raise ValueError(f"{argument} must have length {length}, like params; got {len(found)}")
    return found


cdef inline bint equal_strings(a, b) noexcept:
    return type(a) is str and type(b) is str and <str>a == <str>b


cdef tuple items_in_order(dict arrays, list keys):
    """The items of a dict that has just these keys, in this order: the usual case, in a third of
    the time of any other way; else, or where comparing keys may run their code, None."""
    cdef Py_ssize_t position = 0, k
    cdef PyObject *key
    cdef PyObject *item
    if len(arrays) != len(keys):
        return None
    cdef tuple found = PyTuple_New(len(keys))
    for k, expected in enumerate(keys):
        if not PyDict_Next(arrays, &position, &key, &item):
            return None
        if key != <PyObject *>expected and not equal_strings(<object>key, expected):
            return None
        Py_INCREF(<object>item)
        PyTuple_SetItem(found, k, <object>item)
    return found


cdef tuple items_of_mapping(str argument, arrays, list keys):
    if not is_mapping(arrays):
        raise TypeError(
            f"{argument} must be a mapping with the same keys as params; got "
            f"{type(arrays).__name__}"
        )
    if type(arrays) is dict:
        items = items_in_order(arrays, keys)
        if items is not None:
            return items
    missing = without_item(keys, arrays)
    if len(arrays) == len(keys) and not missing:
        return tuple(items_at(arrays, keys))
    unexpected = sorted(set(arrays).difference(keys), key=str)
    found_keys = [f"missing keys {abbreviated(missing)}"] if missing else []
    found_keys += [f"unexpected keys {abbreviated(unexpected)}"] if unexpected else []
    raise ValueError(
        f"{argument} must have the same keys as params; got {' and '.join(found_keys)}"
    )
