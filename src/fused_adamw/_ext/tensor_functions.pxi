"""Array views of PyTorch's tensors through its stable C interface, which costs less than DLPack.

The functions are those of torch/csrc/inductor/aoti_torch/c/shim.h: each writes its answer, and
returns 0 where there is one. ``TensorFunctions`` has their addresses, and the dtypes."""

cdef enum:
    SCALAR_TYPES = 128  # a number of a dtype is less
    DESCRIPTION = 192   # bytes of a c10::TensorImpl

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define prefetch(address) __builtin_prefetch(address)
    #else
    #define prefetch(address) ((void)(address))
    #endif
    """
    void prefetch(const void *) noexcept

ctypedef int (*NumberOf)(const void *, int *) noexcept
ctypedef int (*LengthOf)(const void *, Py_ssize_t *) noexcept
ctypedef int (*LengthsOf)(const void *, const Py_ssize_t **) noexcept
ctypedef int (*AddressOf)(const void *, char **) noexcept
ctypedef unsigned char (*IsNegated)(const void *) noexcept


cdef struct ElementCode:
    unsigned char code     # of DLPack
    unsigned char bits     # 0 for dtypes that no example has
    int element_type


cdef struct TensorFunctions:
    NumberOf layout, device, dtype
    LengthOf dim, numel
    LengthsOf sizes, strides
    AddressOf data
    IsNegated is_negated
    Py_ssize_t offset      # of what they are called with, in an object of Python
    int strided            # the layout
    int cpu                # the device
    ElementCode[SCALAR_TYPES] elements


cdef inline const void *handle_of(const TensorFunctions *functions, PyObject *tensor) noexcept:
    return <const char *>tensor + functions.offset


cdef inline void prefetch_description(
    const TensorFunctions *functions, PyObject *tensor
) noexcept:
    """Begin to fetch what the functions read, which the handle points to, into the cache."""
    cdef int line
    cdef const char *description = (<const char **>handle_of(functions, tensor))[0]
    for line in range(DESCRIPTION // 64):
        prefetch(description + 64 * line)


cdef int find_functions(TensorFunctions *functions, dict addresses, Py_ssize_t offset) except -1:
    """Set the addresses; ``add_example`` adds the dtypes."""
    functions.layout = <NumberOf><size_t>addresses["layout"]
    functions.device = <NumberOf><size_t>addresses["device"]
    functions.dtype = <NumberOf><size_t>addresses["dtype"]
    functions.dim = <LengthOf><size_t>addresses["dim"]
    functions.numel = <LengthOf><size_t>addresses["numel"]
    functions.sizes = <LengthsOf><size_t>addresses["sizes"]
    functions.strides = <LengthsOf><size_t>addresses["strides"]
    functions.data = <AddressOf><size_t>addresses["data"]
    functions.is_negated = <IsNegated><size_t>addresses["is_negated"]
    functions.offset = offset
    return 0


cdef int add_example(
    TensorFunctions *functions, PyObject *tensor, const ArrayView *view
) except -1:
    """Learn the number of a dtype from a strided tensor in host memory and its view."""
    cdef const void *handle = handle_of(functions, tensor)
    cdef int number = -1
    if functions.dtype(handle, &number) != 0 or not 0 <= number < SCALAR_TYPES:
        raise ValueError(f"dtype must have a number below {SCALAR_TYPES}; got {number}")
    functions.elements[number] = ElementCode(view.dlpack_code, view.dlpack_bits, view.element_type)
    functions.layout(handle, &functions.strided)
    functions.device(handle, &functions.cpu)
    return 0


cdef bint describe(
    const TensorFunctions *functions, PyObject *tensor, ArrayView *view
) noexcept:
    """Whether the tensor is strided and in host memory; then it has a view."""
    cdef const void *handle = handle_of(functions, tensor)
    cdef Py_ssize_t ndim = 0
    if (
        not describe_elements(functions, handle, view)
        or functions.dim(handle, &ndim) != 0
        or functions.sizes(handle, &view.shape) != 0
        or functions.strides(handle, &view.strides) != 0
    ):
        return False
    view.ndim = <int>ndim
    return view.data != NULL or dense_size(view) == 0


cdef inline bint describe_number(
    const TensorFunctions *functions, PyObject *tensor, ArrayView *view
) noexcept:
    """The same of a tensor of one element; as if it had no dimensions."""
    cdef const void *handle = handle_of(functions, tensor)
    cdef Py_ssize_t numel = 0
    view.ndim = 0
    return (
        describe_elements(functions, handle, view)
        and functions.numel(handle, &numel) == 0 and numel == 1 and view.data != NULL
    )


cdef inline bint describe_elements(
    const TensorFunctions *functions, const void *handle, ArrayView *view
) noexcept:
    """All but the shape. A tensor without memory of its own, as in a transform of ``torch.func``,
    has an error in place of an address."""
    cdef const ElementCode *element
    cdef int layout = -1, device = -1, number = -1
    if (
        functions.layout(handle, &layout) != 0 or layout != functions.strided
        or functions.device(handle, &device) != 0 or device != functions.cpu
        or functions.dtype(handle, &number) != 0 or not 0 <= number < SCALAR_TYPES
        or functions.data(handle, &view.data) != 0
    ):
        return False
    element = &functions.elements[number]
    view.dlpack_code, view.dlpack_bits = element.code, element.bits
    view.element_type = element.element_type if element.bits else -1
    view.unit = view.itemsize = (element.bits + 7) // 8
    view.readonly = False
    view.nbytes = 0
    return True
