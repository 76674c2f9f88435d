"""Borrowed memory: what an array lends through the buffer protocol, and where it lies."""

cdef char NATIVE_ORDER = b"<" if np.little_endian else b">"
cdef dict ORDER_NAMES = {<int>b"C": "C", <int>b"F": "Fortran"}


cdef extern from "Python.h":
    # The exception is set, and left to the caller: a try block would cost a tenth of this call.
    int try_get_buffer "PyObject_GetBuffer"(object, Py_buffer *, int) noexcept


cdef void *allocate(Py_ssize_t count, size_t size) except NULL:
    cdef void *memory = PyMem_Malloc(max(count, 1) * size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef inline int dtype_of(const Py_buffer *view) noexcept:
    """The dtype of a buffer's elements, or -1 for one that has no kernel."""
    cdef const char *code = view.format
    if code == NULL:
        return -1
    if code[0] == b"@" or code[0] == b"=" or code[0] == NATIVE_ORDER:
        code += 1
    if code[0] == 0 or code[1] != 0:
        return -1
    if code[0] == b"f":
        return FUSED_ADAMW_FLOAT32
    if code[0] == b"d":
        return FUSED_ADAMW_FLOAT64
    if code[0] == b"e":
        return FUSED_ADAMW_FLOAT16
    if code[0] == b"H":  # how an array of bfloat16, which has no format, is borrowed
        return FUSED_ADAMW_BFLOAT16
    return -1


cdef int acquire(
    Py_buffer *view, Held owner, str argument, Py_ssize_t i, array
) except -1:
    """Borrow the memory of one array; returns its dtype. An error leaves nothing borrowed."""
    if try_get_buffer(array, view, PyBUF_FORMAT | PyBUF_STRIDES) < 0:
        if not PyErr_ExceptionMatches((TypeError, ValueError, BufferError)):
            return -1
        PyErr_Clear()
        if not is_bfloat16(array):
            refuse_object(owner, argument, i, array)
        PyObject_GetBuffer(array.view(np.uint16), view, PyBUF_FORMAT | PyBUF_STRIDES)
        return FUSED_ADAMW_BFLOAT16
    if view.strides == NULL and view.ndim > 0:  # ctypes leaves them out; a memoryview fills them in
        PyBuffer_Release(view)
        return acquire(view, owner, argument, i, memoryview(array))
    cdef int dtype = dtype_of(view)
    if dtype < 0 or dtype == FUSED_ADAMW_BFLOAT16:
        refuse_dtype(owner, argument, i, array, view)
    return dtype


cdef bint is_bfloat16(array):
    """Whether this is an array of ml_dtypes.bfloat16, which need not be installed."""
    dtype = getattr(array, "dtype", None)
    return isinstance(array, np.ndarray) and dtype.name == "bfloat16" and dtype.itemsize == 2


cdef int refuse_object(Held owner, str argument, Py_ssize_t i, array) except -1:
    name = owner.name(argument, i)
    expected = f"expected a NumPy array of {owner.dtypes_taken()}"
    if not PyObject_CheckBuffer(array):
        raise TypeError(f"{name} is of type {type(array).__name__}; {expected}")
    try:
        memoryview(array)
    except Exception as error:
        raise TypeError(f"{name} does not lend its memory ({error}); {expected}") from None
    raise TypeError(f"{name} does not lend its memory as strided elements; {expected}")


cdef int refuse_dtype(
    Held owner, str argument, Py_ssize_t i, array, Py_buffer *view
) except -1:
    code = "B" if view.format == NULL else view.format.decode()
    PyBuffer_Release(view)
    name = owner.name(argument, i)
    dtype = getattr(array, "dtype", f"of buffer format {code!r}")
    order = "" if getattr(dtype, "isnative", True) else " in the byte order of other machines"
    raise TypeError(f"{name} has dtype {dtype}{order}; expected {owner.dtypes_taken()}")


cdef inline bint same_layout(const Py_buffer *a, const Py_buffer *b) noexcept:
    """Whether dtype, shape and strides are the same."""
    cdef int i
    if a.ndim != b.ndim or dtype_of(a) != dtype_of(b):
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i] or a.strides[i] != b.strides[i]:
            return False
    return True


cdef char order_of(const Py_buffer *view) noexcept:
    """b"C" or b"F", the order of a dense buffer (b"C" where it is both), else 0."""
    if PyBuffer_IsContiguous(view, b"C"):
        return b"C"
    if PyBuffer_IsContiguous(view, b"F"):
        return b"F"
    return 0


cdef shape_of(const Py_buffer *view):
    return tuple([view.shape[i] for i in range(view.ndim)])


cdef strides_of(const Py_buffer *view):
    return tuple([view.strides[i] for i in range(view.ndim)])


cdef struct Interval:
    const char *begin
    const char *end


cdef inline Interval interval_of(const Py_buffer *view) noexcept:
    return Interval(<const char *>view.buf, <const char *>view.buf + view.len)


cdef inline bint overlap(Interval a, Interval b) noexcept:
    """An empty interval overlaps none."""
    return a.begin < b.end and b.begin < a.end and a.begin < a.end and b.begin < b.end


cdef bint overlaps_any(Interval interval, const Interval *intervals, Py_ssize_t count) noexcept:
    """Whether an interval overlaps one of those that are sorted and apart from one another."""
    cdef Py_ssize_t low = 0, high = count, middle
    while low < high:  # for the first that ends behind the beginning of this one
        middle = (low + high) // 2
        if intervals[middle].end > interval.begin:
            high = middle
        else:
            low = middle + 1
    return low < count and overlap(interval, intervals[low])


cdef void sort_intervals(Interval *intervals, Interval *spare, Py_ssize_t count) noexcept:
    """Merge sort by begin, with room for ``count`` more in ``spare``. libc's qsort, with a call
    for each comparison, would take a tenth of the time that a tiny model's step has."""
    cdef Py_ssize_t width = 1, left, middle, right, end, i, k
    cdef Interval *source = intervals
    cdef Interval *target = spare
    while width < count:
        left = 0
        while left < count:
            middle = min(left + width, count)
            end = min(left + 2 * width, count)
            i, right = left, middle
            for k in range(left, end):
                if i < middle and (right == end or source[i].begin <= source[right].begin):
                    target[k] = source[i]
                    i += 1
                else:
                    target[k] = source[right]
                    right += 1
            left = end
        source, target = target, source
        width *= 2
    if source != intervals:
        for k in range(count):
            intervals[k] = source[k]
