"""Array views of PyTorch's tensors through its stable C interface, which costs less than DLPack.

The functions are those of torch/csrc/inductor/aoti_torch/c/shim.h: each writes its answer, and
returns 0 where there is one. ``TensorFunctions`` has their addresses, and the dtypes.

Most calls would find what others have found. A c10::TensorImpl has the number of dimensions, the
sizes and strides of up to five, the offset, the number of elements, and two words that tell the
dtype, device, layout and sign, and whether sizes come from elsewhere: the answers to all calls but
the one for the address. ``TensorKinds`` has the answers by these words."""

cdef enum:
    SCALAR_TYPES = 128  # a number of a dtype is less
    DESCRIPTION = 192   # bytes of a c10::TensorImpl
    INLINE = 5          # dimensions whose sizes it has in itself
    KIND_AFTER = 2 * INLINE + 2  # words between the shape and those that tell the kind
    KINDS = 8

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
ctypedef unsigned char (*HasProperty)(const void *) noexcept
ctypedef void (*Change)(const void *) noexcept


cdef struct ElementCode:
    unsigned char code     # of DLPack
    unsigned char bits     # 0 for dtypes that no example has
    int element_type       # of fused_adamw_element_types; -1 for others


cdef struct TensorKind:
    uint64_t words[2]
    const ElementCode *element


cdef struct TensorKinds:
    TensorKind[KINDS] known
    int count
    int oldest  # to be replaced next


cdef struct TensorFunctions:
    NumberOf layout, device, dtype
    LengthOf dim
    LengthsOf sizes, strides
    AddressOf data
    HasProperty is_negated, is_inference
    Change bump_version
    Py_ssize_t offset      # of what they are called with, in an object of Python
    Py_ssize_t shape_at    # where the sizes are in a c10::TensorImpl; 0 where that is not known
    Py_ssize_t version_at  # the same of the address of its version
    int strided            # the layout
    int cpu                # the device
    ElementCode[SCALAR_TYPES] elements


cdef inline const void *handle_of(const TensorFunctions *functions, PyObject *tensor) noexcept:
    return <const char *>tensor + functions.offset


cdef inline const char *description_of(
    const TensorFunctions *functions, PyObject *tensor
) noexcept:
    """The c10::TensorImpl, which the handle points to."""
    return (<const char **>handle_of(functions, tensor))[0]


cdef inline void prefetch_description(
    const TensorFunctions *functions, PyObject *tensor
) noexcept:
    """Begin to fetch what the functions read into the cache."""
    cdef int line
    cdef const char *description = description_of(functions, tensor)
    for line in range(DESCRIPTION // 64):
        prefetch(description + 64 * line)


cdef inline bint has_version(const TensorFunctions *functions, PyObject *tensor) noexcept:
    """Whether ``bump_version`` has one to increment; without one it throws, which nothing here
    catches."""
    cdef const char *description = description_of(functions, tensor)
    return (<const void **>(description + functions.version_at))[0] != NULL


cdef inline bint lacks_version(const TensorFunctions *functions, PyObject *tensor) noexcept:
    """Whether to change the tensor is an error in PyTorch: it was made in inference mode, and its
    ``data`` was not."""
    return not has_version(functions, tensor) and not functions.is_inference(
        handle_of(functions, tensor)
    )


cdef inline void increment_version(const TensorFunctions *functions, PyObject *tensor) noexcept:
    """Tell autograd that a tensor was changed. Those of inference mode have no version."""
    cdef const void *handle = handle_of(functions, tensor)
    if has_version(functions, tensor) and not functions.is_inference(handle):
        functions.bump_version(handle)


cdef int find_functions(
    TensorFunctions *functions, dict addresses, Py_ssize_t offset, Py_ssize_t shape_at,
    Py_ssize_t version_at,
) except -1:
    """Set the addresses; ``add_example`` adds the dtypes."""
    cdef int number
    functions.layout = <NumberOf><size_t>addresses["layout"]
    functions.device = <NumberOf><size_t>addresses["device"]
    functions.dtype = <NumberOf><size_t>addresses["dtype"]
    functions.dim = <LengthOf><size_t>addresses["dim"]
    functions.sizes = <LengthsOf><size_t>addresses["sizes"]
    functions.strides = <LengthsOf><size_t>addresses["strides"]
    functions.data = <AddressOf><size_t>addresses["data"]
    functions.is_negated = <HasProperty><size_t>addresses["is_negated"]
    functions.is_inference = <HasProperty><size_t>addresses["is_inference"]
    functions.bump_version = <Change><size_t>addresses["bump_version"]
    functions.offset, functions.shape_at = offset, shape_at
    functions.version_at = version_at
    for number in range(SCALAR_TYPES):
        functions.elements[number] = ElementCode(0, 0, -1)
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
    const TensorFunctions *functions, PyObject *tensor, TensorKinds *kinds, ArrayView *view
) noexcept:
    """Whether the tensor is strided and in host memory, with its values as they are; then it has a
    view."""
    cdef const ElementCode *element = find_elements(functions, tensor, kinds, view)
    if element == NULL:
        return False
    view.dlpack_code, view.dlpack_bits = element.code, element.bits
    view.element_type = element.element_type
    view.unit = view.itemsize = (element.bits + 7) >> 3
    view.readonly = False
    view.nbytes = 0
    return view.data != NULL or dense_size(view) == 0


cdef inline const ElementCode *describe_like(
    const TensorFunctions *functions, PyObject *tensor, TensorKinds *kinds, const ArrayView *like,
    char **data,
) noexcept:
    """What the elements are of a tensor that has a view of the shape and strides of ``like``; else
    NULL. Without elements strides have no meaning."""
    cdef ArrayView view
    cdef const ElementCode *element = find_elements(functions, tensor, kinds, &view)
    cdef int i
    if element == NULL or view.ndim != like.ndim or (view.data == NULL and like.nbytes > 0):
        return NULL
    for i in range(like.ndim):
        if view.shape[i] != like.shape[i] or (
            view.shape[i] > 1 and view.strides[i] != like.strides[i] and like.nbytes != 0
        ):
            return NULL
    data[0] = view.data
    return element


cdef inline const ElementCode *describe_number(
    const TensorFunctions *functions, PyObject *tensor, TensorKinds *kinds, char **data
) noexcept:
    """What the element is of a tensor with only one, which ``data`` then points to; else NULL."""
    cdef ArrayView view
    cdef const ElementCode *element = find_elements(functions, tensor, kinds, &view)
    cdef int i
    if element == NULL or view.data == NULL:
        return NULL
    for i in range(view.ndim):
        if view.shape[i] != 1:
            return NULL
    data[0] = view.data
    return element


cdef inline const ElementCode *find_elements(
    const TensorFunctions *functions, PyObject *tensor, TensorKinds *kinds, ArrayView *view
) noexcept:
    """What the elements of a tensor are; NULL unless it has a view, of which address, shape and
    strides are set. ``kinds``: those that the functions need not be asked for, or NULL."""
    cdef const void *handle = handle_of(functions, tensor)
    cdef const Py_ssize_t *shape = <const Py_ssize_t *>(
        description_of(functions, tensor) + functions.shape_at
    )
    cdef const uint64_t *words = <const uint64_t *>(shape + KIND_AFTER)
    cdef const TensorKind *kind
    cdef int k
    if kinds == NULL or functions.shape_at == 0:
        return ask_for_elements(functions, handle, view)
    for k in range(kinds.count):
        kind = &kinds.known[k]
        if kind.words[0] == words[0] and kind.words[1] == words[1] and shape[-1] <= INLINE:
            view.ndim, view.shape, view.strides = <int>shape[-1], shape, shape + INLINE
            return kind.element if functions.data(handle, &view.data) == 0 else NULL
    return learn_kind(functions, handle, kinds, shape, view)


cdef const ElementCode *learn_kind(
    const TensorFunctions *functions, const void *handle, TensorKinds *kinds,
    const Py_ssize_t *shape, ArrayView *view,
) noexcept:
    """``find_elements`` for a kind of tensors that is not known yet. It becomes known where the
    sizes are those at ``shape``, with the strides after them."""
    cdef const ElementCode *element = ask_for_elements(functions, handle, view)
    cdef const uint64_t *words = <const uint64_t *>(shape + KIND_AFTER)
    cdef TensorKind *kind = &kinds.known[kinds.oldest]
    if (
        element != NULL and view.ndim == shape[-1] and view.ndim <= INLINE
        and view.shape == shape and view.strides == shape + INLINE
    ):
        kind.words[0], kind.words[1], kind.element = words[0], words[1], element
        kinds.oldest = (kinds.oldest + 1) % KINDS
        kinds.count = min(kinds.count + 1, <int>KINDS)
    return element


cdef const ElementCode *ask_for_elements(
    const TensorFunctions *functions, const void *handle, ArrayView *view
) noexcept:
    """``find_elements`` by PyTorch's functions. A tensor without memory of its own, as in a
    transform of ``torch.func``, has an error in place of an address."""
    cdef int layout = -1, device = -1, number = -1
    cdef Py_ssize_t ndim = 0
    if (
        functions.layout(handle, &layout) != 0 or layout != functions.strided
        or functions.device(handle, &device) != 0 or device != functions.cpu
        or functions.dtype(handle, &number) != 0 or not 0 <= number < SCALAR_TYPES
        or functions.is_negated(handle) or functions.data(handle, &view.data) != 0
        or functions.dim(handle, &ndim) != 0 or functions.sizes(handle, &view.shape) != 0
        or functions.strides(handle, &view.strides) != 0
    ):
        return NULL
    view.ndim = <int>ndim
    return &functions.elements[number]
