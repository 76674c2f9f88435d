"""Array views of DLPack: tensors of PyTorch, through its exchange API in C.

The structures are those of version 1 of https://github.com/dmlc/dlpack."""

cdef enum:
    DLPACK_MAJOR = 1
    DLPACK_CPU = 1

cdef extern from "Python.h":
    # Calls without a tuple of arguments, which Cython makes for the limited API.
    object call_with "PyObject_CallFunctionObjArgs"(object, PyObject *, void *)
    void release_object "Py_DECREF"(PyObject *)
    void *type_of_object "Py_TYPE"(PyObject *) noexcept
    ctypedef struct PyTypeObject:
        pass
    void *PyType_GetSlot(PyTypeObject *, int)
    int Py_tp_descr_get

ctypedef object (*DescriptorGet)(object, object, object)

cdef double MOST_STEPS = 2.0**53  # that a double counts


cdef struct DLTensor:
    char *data
    int device
    int device_index
    int ndim
    unsigned char code        # of the dtype, beside its bits and lanes
    unsigned char bits
    unsigned short lanes
    const Py_ssize_t *shape
    const Py_ssize_t *strides  # in elements
    unsigned long long byte_offset


cdef struct ExchangeAPI:
    unsigned int major
    unsigned int minor
    void *older
    void *allocator
    void *managed_from_object
    void *managed_to_object
    int (*tensor_from_object)(PyObject *, DLTensor *) noexcept  # valid as long as the object is
    void *current_stream


cdef inline bint is_of(int code, int bits, StorageType storage) noexcept:
    """PyTorch keeps 32 unsigned bits as signed ones."""
    return bits == storage.bits and (
        code == storage.code
        or (storage.code == DLPACK_UINT and storage.bits == 32 and code == DLPACK_INT)
    )


cdef struct StepCounter:
    void *address      # of the one number
    int element_type   # float32 or float64
    long long t        # the step to be taken


cdef int raise_pending() except -1:
    """Pass on an exception that is set."""
    return -1


@cython.final
@cython.no_gc
cdef class DLPackExchange:
    """Types whose objects the exchange API of the first of them describes, such as
    ``torch.Tensor``. An object of any other type, even a derived one, has no view: its memory may
    have a different meaning. ``is_negated``: whether a tensor's memory has the values with the
    opposite sign, which DLPack does not report. ``functions``: addresses of the ``TensorFunctions``
    that do the same at less cost, by name; none where it is empty. ``offset``: of what they take in
    an object; ``shape_at``: where sizes and strides are in what that points to, or 0;
    ``version_at``: the same of the address of the version; ``examples``: a strided tensor in host
    memory of each dtype."""

    cdef const ExchangeAPI *api
    cdef void *tensor_type  # the first two of `types`, which almost all objects are of
    cdef void *second_type
    cdef tuple types
    cdef object is_negated
    cdef object grad             # the descriptor that the first type has under this name
    cdef DescriptorGet get_grad  # of it; NULL where a type has another one, or it is in Python
    cdef TensorFunctions functions
    cdef bint has_functions
    cdef bint has_versions  # whether these functions can increment them

    def __cinit__(
        self, *types, is_negated, dict functions=None, Py_ssize_t offset=0,
        Py_ssize_t shape_at=0, Py_ssize_t version_at=0, examples=(),
    ):
        cdef ArrayView view
        for found in types or (None,):
            if not isinstance(found, type):
                raise TypeError(f"types must be one type or more; got {types}")
        capsule = getattr(types[0], "__dlpack_c_exchange_api__", None)
        if capsule is None:
            raise TypeError(f"{types[0].__name__} must have the exchange API of DLPack; got none")
        self.api = <const ExchangeAPI *>PyCapsule_GetPointer(capsule, b"dlpack_exchange_api")
        if self.api.major != DLPACK_MAJOR or self.api.tensor_from_object == NULL:
            raise TypeError(
                f"{types[0].__name__} must have the exchange API of DLPack {DLPACK_MAJOR}; got "
                f"that of {self.api.major}"
            )
        self.types, self.is_negated = types, is_negated
        self.find_grad()
        self.tensor_type = <void *>types[0]
        self.second_type = <void *>types[len(types) > 1]
        if functions:
            find_functions(&self.functions, functions, offset, shape_at, version_at)
            for tensor in examples:
                if self.view_any(tensor, &view):
                    add_example(&self.functions, <PyObject *>tensor, &view)
            self.has_functions = True
            self.has_versions = version_at > 0

    cdef int find_grad(self) except -1:
        """Find what ``grad_of`` calls."""
        self.grad = getattr(self.types[0], "grad", None)
        if type(self.grad) is not GetSetDescriptorType:
            return 0
        for found in self.types:
            if getattr(found, "grad", None) is not self.grad:
                return 0
        self.get_grad = <DescriptorGet>PyType_GetSlot(
            <PyTypeObject *>GetSetDescriptorType, Py_tp_descr_get
        )
        return 0

    cdef inline object grad_of(self, tensor, bint *calls_code):
        """``tensor.grad``, without the cost of finding the attribute in the types above.
        ``calls_code``: set where it may be in Python; under a mode of PyTorch it always is."""
        if self.get_grad != NULL and self.is_known(<PyObject *>tensor):
            return self.get_grad(self.grad, tensor, <object>type_of_object(<PyObject *>tensor))
        calls_code[0] = True
        return tensor.grad

    cdef inline bint is_known(self, PyObject *tensor) except -1:
        """Whether it is of one of the types."""
        cdef void *found = type_of_object(tensor)
        return (
            found == self.tensor_type or found == self.second_type
            or (len(self.types) > 2 and <object>found in self.types)
        )

    cdef bint view(self, tensor, ArrayView *view, TensorKinds *kinds=NULL) except -1:
        """Whether the tensor has host memory, with its values as they are, which ``view`` then
        describes. ``kinds``: of one optimizer, to find this at less cost."""
        if not self.is_known(<PyObject *>tensor):
            return False
        if self.has_functions:
            return describe(&self.functions, <PyObject *>tensor, kinds, view)
        return self.view_any(tensor, view) and not self.negates(tensor)

    cdef bint find_number(
        self, tensor, TensorKinds *kinds, char **data, ElementCode *element
    ) except -1:
        """Whether the tensor has one element, in host memory; where, and what it is."""
        cdef const ElementCode *found
        cdef ArrayView view
        cdef int i
        if not self.is_known(<PyObject *>tensor):
            return False
        if self.has_functions:
            found = describe_number(&self.functions, <PyObject *>tensor, kinds, data)
            if found != NULL:
                element[0] = found[0]
            return found != NULL
        if not self.view(tensor, &view) or view.data == NULL:
            return False
        for i in range(view.ndim):
            if view.shape[i] != 1:
                return False
        data[0], element[0] = view.data, element_of(&view)
        return True

    cdef bint view_any(self, tensor, ArrayView *view) except -1:
        """``view`` without a look at the type of the tensor or at whether its values are negated.
        ``measure`` sets ``nbytes``."""
        cdef DLTensor found
        if self.api.tensor_from_object(<PyObject *>tensor, &found) != 0:
            if not PyErr_ExceptionMatches((RuntimeError, TypeError, ValueError, BufferError)):
                return -1
            PyErr_Clear()
            return False
        view.ndim = found.ndim
        view.shape = found.shape
        view.strides = found.strides
        view.dlpack_code = found.code
        view.dlpack_bits = found.bits if found.lanes == 1 else 0
        view.unit = view.itemsize = (found.bits + 7) // 8
        view.element_type = element_type_of_dlpack(view)
        view.readonly = False
        view.nbytes = 0
        view.data = NULL
        if found.device != DLPACK_CPU:
            return False
        if found.data == NULL:
            return dense_size(view) == 0
        view.data = found.data + found.byte_offset
        return True

    cdef inline int prefetch(self, PyObject *tensor) except -1:
        if self.has_functions and self.is_known(tensor):
            prefetch_description(&self.functions, tensor)
        return 0

    cdef inline void measure(self, ArrayView *view) noexcept:
        """Set ``nbytes``: below 0 where there are gaps."""
        view.nbytes = dense_size(view) * view.itemsize

    cdef bint negates(self, tensor) except -1:
        return call_with(self.is_negated, <PyObject *>tensor, NULL) is True

    cdef bint find_like(
        self, tensor, TensorKinds *kinds, const ArrayView *like, char **data, ElementCode *element
    ) except -1:
        """Whether the tensor has host memory with the shape and order of ``like``; where, and what
        its elements are."""
        cdef const ElementCode *found
        cdef ArrayView view
        if not self.is_known(<PyObject *>tensor):
            return False
        if self.has_functions:
            found = describe_like(&self.functions, <PyObject *>tensor, kinds, like, data)
            if found != NULL:
                element[0] = found[0]
            return found != NULL
        if not self.view(tensor, &view) or not same_layout(&view, like):
            return False
        data[0], element[0] = view.data, element_of(&view)
        return True

    cdef bint view_flat(
        self, tensor, StorageType storage, Py_ssize_t size, ArrayView *view
    ) except -1:
        """Whether the tensor has this dtype, and this many elements without gaps."""
        return (
            self.view(tensor, view) and is_of(view.dlpack_code, view.dlpack_bits, storage)
            and view.ndim == 1
            and view.shape[0] == size and (size <= 1 or view.strides[0] == 1)
        )

    cdef Interval memory_of(self, tensor) except *:
        """The host memory of a tensor of any type, from its first to its last element."""
        cdef ArrayView view
        cdef int i
        if self.view_any(tensor, &view):
            view.nbytes = view.itemsize  # not 0, unless there are no elements
            for i in range(view.ndim):
                view.nbytes *= view.shape[i]
            return extent_of(&view)
        try:  # where it cannot be described, all of its storage
            storage = tensor.untyped_storage()
            return interval_at(<const void *><size_t>storage.data_ptr(), storage.nbytes())
        except (RuntimeError, AttributeError):  # it has none, or is not a tensor
            return Interval(NULL, NULL)

    cdef bint view_step(self, tensor, TensorKinds *kinds, StepCounter *counter) except -1:
        """Whether the tensor is one number that counts steps."""
        cdef char *data
        cdef ElementCode element
        cdef double steps
        if not self.find_number(tensor, kinds, &data, &element):
            return False
        if element.element_type == FUSED_ADAMW_FLOAT32:
            steps = (<float *>data)[0]
        elif element.element_type == FUSED_ADAMW_FLOAT64:
            steps = (<double *>data)[0]
        else:
            return False
        if not 0 <= steps < MOST_STEPS or steps != <double><long long>steps:
            return False
        counter.address, counter.element_type = data, element.element_type
        counter.t = <long long>steps + 1
        return True


cdef inline ElementCode element_of(const ArrayView *view) noexcept:
    return ElementCode(view.dlpack_code, view.dlpack_bits, view.element_type)


cdef int element_type_of_dlpack(const ArrayView *view) noexcept:
    cdef int index = 0
    while fused_adamw_element_types[index].name != NULL:
        if (
            fused_adamw_element_types[index].dlpack_code == view.dlpack_code
            and fused_adamw_element_types[index].dlpack_bits == view.dlpack_bits
        ):
            return index
        index += 1
    return -1
