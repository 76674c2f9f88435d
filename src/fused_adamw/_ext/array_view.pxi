"""``ArrayView``: the memory of one array, whatever exports it; its dtype and its layout."""

cdef dict ORDER_NAMES = {<int>b"C": "C", <int>b"F": "Fortran"}


cdef struct ArrayView:
    # Valid as long as the adapter that made it keeps the array.
    char *data
    Py_ssize_t nbytes           # of the elements, without gaps
    Py_ssize_t itemsize
    int element_type            # an index of fused_adamw_element_types, or -1 for another dtype
    int ndim
    const Py_ssize_t *shape
    const Py_ssize_t *strides   # in units of `unit` bytes; NULL only where ndim is 0
    Py_ssize_t unit
    bint readonly
    int dlpack_code             # of views of DLPack, where the dtype may be one of a state format
    int dlpack_bits


cdef inline Py_ssize_t size_of(const ArrayView *view) noexcept:
    """The number of elements."""
    return view.nbytes // view.itemsize if view.itemsize else 0


cdef inline bint same_shape(const ArrayView *a, const ArrayView *b) noexcept:
    cdef int i
    if a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i]:
            return False
    return True


cdef inline bint same_layout(const ArrayView *a, const ArrayView *b) noexcept:
    """Whether shape and strides are the same; the stride over one element has no meaning, nor has
    any without elements. The dtypes may differ."""
    cdef int i
    cdef Py_ssize_t per_a = a.unit * b.itemsize, per_b = b.unit * a.itemsize
    cdef bint is_empty = False, differs = False
    if a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i]:
            return False
        if a.shape[i] == 0:
            is_empty = True
        elif a.shape[i] > 1 and a.strides[i] * per_a != b.strides[i] * per_b:
            differs = True
    return is_empty or not differs


cdef Py_ssize_t dense_size(const ArrayView *view) noexcept:
    """The number of elements, or -1 where they leave gaps or share memory. Their order in memory
    may be any permutation of the dimensions: channels_last, for one."""
    cdef Py_ssize_t size = 1, within = 1
    cdef int i, k
    for i in range(view.ndim):
        size *= view.shape[i]
    if size <= 1:
        return size
    while within < size:  # the next dimension is the one whose step is all that lies within it
        for k in range(view.ndim):
            if view.shape[k] > 1 and view.strides[k] * view.unit == within * view.itemsize:
                within *= view.shape[k]
                break
        else:
            return -1
    return size


cdef bint may_share_elements(const ArrayView *view) noexcept:
    """Whether two elements may lie in the same memory: False where each dimension steps over all
    that lies within it, as in every array that slicing and transposing make."""
    cdef Py_ssize_t last = -1, within = view.itemsize, step = 0
    cdef int k, found
    while view.nbytes > 0:
        found = -1  # the dimension with the next larger step
        for k in range(view.ndim):
            if view.shape[k] > 1 and abs(view.strides[k]) > last:
                if found < 0 or abs(view.strides[k]) < step:
                    found, step = k, abs(view.strides[k])
                elif abs(view.strides[k]) == step:
                    return True
        if found < 0:
            return False
        if step * view.unit < within:
            return True
        within += (view.shape[found] - 1) * step * view.unit
        last = step
    return False


cdef bint is_ordered(const ArrayView *view, char order) noexcept:
    """Whether the elements lie without gaps in b"C" or b"F" order."""
    cdef Py_ssize_t step = view.itemsize
    cdef int k, i
    if view.nbytes == 0:
        return True
    for k in range(view.ndim):
        i = view.ndim - 1 - k if order == b"C" else k
        if view.shape[i] > 1 and view.strides[i] * view.unit != step:
            return False
        step *= view.shape[i]
    return True


cdef char order_of(const ArrayView *view) noexcept:
    """b"C" or b"F", the order of an array without gaps (b"C" where it is both), else 0."""
    if is_ordered(view, b"C"):
        return b"C"
    return b"F" if is_ordered(view, b"F") else 0


cdef shape_of(const ArrayView *view):
    cdef list lengths = []
    for i in range(view.ndim):
        lengths.append(view.shape[i])
    return tuple(lengths)


cdef strides_of(const ArrayView *view):
    """In bytes."""
    cdef list steps = []
    for i in range(view.ndim):
        steps.append(view.strides[i] * view.unit)
    return tuple(steps)
