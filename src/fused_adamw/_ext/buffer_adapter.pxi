"""Array views of Python's buffer protocol: NumPy arrays, memoryviews, ctypes arrays."""

cdef char NATIVE_ORDER = b"<" if np.little_endian else b">"


cdef extern from "Python.h":
    # The exception is set, and left to the caller: a try block would cost a tenth of this call.
    int try_get_buffer "PyObject_GetBuffer"(object, Py_buffer *, int) noexcept


cdef inline int element_type_of(const char *code) noexcept:
    """The element type of a buffer's format, or -1."""
    cdef int index = 0
    if code == NULL:
        return -1
    if code[0] == b"@" or code[0] == b"=" or code[0] == NATIVE_ORDER:
        code += 1
    if code[0] == 0 or code[1] != 0:
        return -1
    while fused_adamw_element_types[index].name != NULL:
        if fused_adamw_element_types[index].buffer_format == code[0]:
            return index
        index += 1
    return -1


cdef inline void view_buffer(ArrayView *view, const Py_buffer *buffer) noexcept:
    """Describe an acquired buffer."""
    view.data = <char *>buffer.buf
    view.itemsize = buffer.itemsize
    view.nbytes = buffer.len
    view.element_type = element_type_of(buffer.format)
    view.ndim = buffer.ndim
    view.shape = buffer.shape
    view.strides = buffer.strides
    view.unit = 1
    view.readonly = buffer.readonly


cdef inline int acquire_buffer(Py_buffer *buffer, ArrayView *view, array) except -1:
    """Acquire and describe the buffer of an array, which the caller has to release; -2 where it has
    none, with nothing acquired. An array of bfloat16, for which the protocol has no format, is read
    as one of unsigned integers."""
    if try_get_buffer(array, buffer, PyBUF_FORMAT | PyBUF_STRIDES) < 0:
        if not PyErr_ExceptionMatches((TypeError, ValueError, BufferError)):
            return -1
        PyErr_Clear()
        if not isinstance(array, np_ndarray):
            return -2
        # Not array.dtype and array.view, which a subclass may have replaced.
        dtype = np_ndarray.dtype.__get__(array)
        index = NO_BUFFER_FORMAT.get(dtype.name)
        if index is None or not dtype.isnative:
            return -2
        PyObject_GetBuffer(
            np_ndarray.view(array, f"u{dtype.itemsize}", np_ndarray), buffer,
            PyBUF_FORMAT | PyBUF_STRIDES,
        )
        view_buffer(view, buffer)
        view.element_type = index
        return 0
    if buffer.strides == NULL and buffer.ndim > 0:  # ctypes leaves them out; memoryview adds them
        PyBuffer_Release(buffer)
        return acquire_buffer(buffer, view, memoryview(array))
    view_buffer(view, buffer)
    return 0


@cython.final
@cython.no_gc_clear  # another object of the cycle is cleared, and this one released by its owner
cdef class KeptBuffer:
    """An acquired buffer whose array the garbage collector can see, as it sees any attribute."""

    cdef Py_buffer buffer
    cdef object unused  # Cython visits a buffer only in a class that also has such an attribute

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)


cdef struct BufferHead:
    # How a Py_buffer begins; Cython would count the reference that is moved.
    void *buf
    PyObject *obj


cdef KeptBuffer keep(Py_buffer *buffer):
    """Take ownership of a buffer. Its shape is still read from the original struct, which no longer
    releases it."""
    cdef KeptBuffer kept = KeptBuffer.__new__(KeptBuffer)
    kept.buffer = buffer[0]
    (<BufferHead *>buffer).obj = NULL
    return kept


# Element types without a format: NumPy's arrays of them come from ml_dtypes.
cdef dict NO_BUFFER_FORMAT = {
    name: i for i, name in enumerate(ELEMENT_TYPES)
    if fused_adamw_element_types[<int>i].buffer_format == 0
}


# ---- what can be changed in an array of NumPy

cdef struct NumpyArray:
    # How an ndarray begins: PyArrayObject_fields of numpy/ndarraytypes.h, a part of its ABI.
    PyObject base
    void *data
    int ndim
    const Py_ssize_t *shape
    const Py_ssize_t *strides
    PyObject *owner
    PyObject *dtype
    int flags

cdef enum:
    WRITEABLE = 0x0400  # NPY_ARRAY_WRITEABLE


cdef bint knows_layout() except -1:
    """Whether arrays begin so in this interpreter and this version of NumPy."""
    array = np.zeros((2, 3))
    cdef const NumpyArray *found = <const NumpyArray *><PyObject *>array
    if np_ndarray.__basicsize__ < <Py_ssize_t>sizeof(NumpyArray):
        return False
    if found.data != <void *><size_t>array.ctypes.data or found.ndim != 2:
        return False
    if found.flags & WRITEABLE == 0:
        return False
    array.flags.writeable = False
    return found.flags & WRITEABLE == 0


cdef bint LAYOUT_IS_KNOWN = knows_layout()


cdef inline bint is_writable(PyObject *array) except -1:
    """Of an array of NumPy. (To acquire a buffer of each would take a tenth of a small model's
    step.)"""
    if LAYOUT_IS_KNOWN:
        return (<const NumpyArray *>array).flags & WRITEABLE != 0
    return np_ndarray.flags.__get__(<object>array).writeable


cdef struct ArrayMemory:
    const void *data
    Py_ssize_t size  # elements


cdef inline int read_memory(ArrayMemory *found, PyObject *array) except -1:
    """The memory of an array of NumPy: ``array.resize(..., refcheck=False)`` gives it another, even
    where its buffer has been acquired."""
    cdef const NumpyArray *known = <const NumpyArray *>array
    cdef int i
    if not LAYOUT_IS_KNOWN:
        found.data = <const void *><size_t>np_ndarray.__array_interface__.__get__(
            <object>array
        )["data"][0]
        found.size = np_ndarray.size.__get__(<object>array)
        return 0
    found.data, found.size = known.data, 1
    for i in range(known.ndim):
        found.size *= known.shape[i]
    return 0
