"""PyTorch's tensors, described for one step: parameters, gradients, counters and state."""

cdef enum:
    OWN = 3  # references to a parameter, its gradient, its counter; those to its state come next
    AT_ONCE = 8  # parameters whose tensors are fetched from memory while others are checked
    FEW = 64     # parameters whose tensors are mostly in the cache without


cdef Py_ssize_t rng_offset(int state_format, Py_ssize_t first) noexcept:
    """The index, for random numbers, of the first element of a part of a tensor: its index in the
    whole, rounded down to a block in formats with scales."""
    if fused_adamw_state_formats[state_format].block > 1:
        return first - first % FUSED_ADAMW_BLOCK
    return first


cdef bint has_masters(int element_type) noexcept:
    """Whether there can be master weights of such parameters."""
    return fused_adamw_element_types[element_type].master_type != NULL


@cython.no_gc
cdef class CheckedTensors:
    """Tensors that the kernels support. Between steps it keeps its memory and the order of the
    addresses, but nothing about the tensors: each step uses what the optimizer has at that moment,
    even if it was loaded, moved or replaced."""

    cdef DLPackExchange exchange
    cdef TensorKinds kinds     # met so far
    cdef list names            # of the counter and of the state, in the dicts of an optimizer
    cdef PyObject *keys[ROLES + 1]  # the same
    cdef int[ROLES] roles
    cdef int num_roles
    cdef int state_format      # -1 for that of the parameters
    cdef bint lacks_masters    # that a parameter of 16 bits would have
    cdef bint stochastic
    cdef uint32_t seed
    cdef Py_ssize_t capacity
    cdef Workspace space
    cdef StepCounter *counters
    cdef PyObject **references
    cdef Py_ssize_t num_found  # parameters that there are references of: those checked come first
    cdef StepMemory memory
    cdef int threads
    cdef const fused_adamw_isa *isa

    def __dealloc__(self):
        self.clear()
        self.free()

    cdef int free(self) except -1:
        release(&self.space)
        PyMem_Free(self.counters)
        PyMem_Free(self.references)
        PyMem_Free(self.memory.written.intervals)
        self.space.derived = NULL
        self.counters, self.references, self.memory.written.intervals = NULL, NULL, NULL
        return 0

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Memory for this many tensors."""
        if count <= self.capacity:
            return 0
        self.free()
        self.capacity = 0
        prepare(&self.space, count)
        memset(self.space.tensors, 0, count * sizeof(fused_adamw_tensor))
        self.counters = <StepCounter *>allocate(count, sizeof(StepCounter))
        memset(self.counters, 0, count * sizeof(StepCounter))
        self.references = <PyObject **>allocate(
            count * (OWN + self.num_roles), sizeof(PyObject *)
        )
        reserve_memory(&self.memory, count * (self.num_roles + 2))
        self.capacity = count
        return 0

    cpdef int clear(self) except -1:
        """Give up what is prepared, with its references."""
        self.space.num_active = 0
        return self.release_from(0)

    cdef int release_from(self, Py_ssize_t k) except -1:
        """Release the references of the parameters from ``k`` on."""
        cdef Py_ssize_t i, end = self.num_found * (OWN + self.num_roles)
        self.num_found = k
        for i in range(k * (OWN + self.num_roles), end):
            release_object(self.references[i])
        return 0

    cdef inline void swap(self, Py_ssize_t a, Py_ssize_t b) noexcept:
        cdef Py_ssize_t i, width = OWN + self.num_roles
        cdef PyObject *kept
        if a != b:
            for i in range(width):
                kept = self.references[a * width + i]
                self.references[a * width + i] = self.references[b * width + i]
                self.references[b * width + i] = kept

    cdef bint check(self, Py_ssize_t k, Py_ssize_t index) except -1:
        """Whether the kernels serve the tensors of a parameter, which are then described."""
        cdef fused_adamw_tensor found
        cdef StepCounter counter
        if not self.describe(&self.references[k * (OWN + self.num_roles)], &found, &counter):
            return False
        if self.stochastic:
            found.rng_key = fused_adamw_rng_key(self.seed, index)
        note_changes(
            &self.memory, &found, &counter, &self.space.tensors[k], &self.counters[k]
        )
        self.space.tensors[k], self.counters[k] = found, counter
        return True

    cdef bint describe(
        self, PyObject **found, fused_adamw_tensor *tensor, StepCounter *counter
    ) except -1:
        """Describe the tensors of a parameter in ``tensor`` and ``counter``; whether the kernels
        serve them."""
        cdef DLPackExchange exchange = self.exchange
        cdef ArrayView params
        if not exchange.view(<object>found[0], &params, &self.kinds) or params.element_type < 0:
            return False
        exchange.measure(&params)
        memset(tensor, 0, sizeof(fused_adamw_tensor))
        tensor.params = params.data
        tensor.size = size_of(&params)
        tensor.element_type = params.element_type
        tensor.state_format = (
            OWN_FORMAT[params.element_type] if self.state_format < 0 else self.state_format
        )
        return (
            params.nbytes >= 0
            and is_compatible(tensor.element_type, tensor.state_format)
            and not (self.lacks_masters and has_masters(tensor.element_type))
            and self.find_gradient(<object>found[1], tensor, &params)
            and self.check_state(found + OWN, tensor, &params)
            and exchange.view_step(<object>found[2], &self.kinds, counter)
        )

    cdef bint find_gradient(
        self, grad, fused_adamw_tensor *tensor, const ArrayView *params
    ) except -1:
        """Of the type of the parameter, or, exact, of the compute type."""
        cdef char *data
        cdef ElementCode element
        cdef int compute = fused_adamw_element_types[tensor.element_type].compute
        if not self.exchange.find_like(grad, &self.kinds, params, &data, &element):
            return False
        if element.element_type != tensor.element_type and element.element_type != compute:
            return False
        tensor.has_wide_grads = element.element_type != tensor.element_type
        tensor.grads = data
        return True

    cdef int begin_at(self, Py_ssize_t k, Py_ssize_t offset) except -1:
        """The first element has this index in the whole parameter, which its random numbers depend
        on. Those of blocks begin at a multiple of the size of a block."""
        cdef fused_adamw_tensor *tensor = &self.space.tensors[k]
        if offset < 0:
            raise ValueError(f"offsets must be at least 0; got {offset}")
        tensor.element_offset = rng_offset(tensor.state_format, offset)
        return 0

    cdef bint check_state(
        self, PyObject **tensors, fused_adamw_tensor *tensor, const ArrayView *params
    ) except -1:
        """Scales are flat; other state is like the parameters, unless elements share a byte."""
        cdef int k, role
        cdef char *data
        cdef ElementCode element
        cdef StorageType storage
        cdef ArrayView view
        for k in range(self.num_roles):
            role = self.roles[k]
            storage = stored_type(tensor, role)
            if storage.bits == 0:
                return False
            if bits_per_element(tensor, role) != storage.bits:
                if not self.exchange.view_flat(
                    <object>tensors[k], storage,
                    storage_nbytes(tensor, role) // (storage.bits // 8), &view,
                ):
                    return False
                data = view.data
            elif not self.exchange.find_like(
                <object>tensors[k], &self.kinds, params, &data, &element
            ):
                return False
            elif not is_of(element.code, element.bits, storage):
                return False
            role_pointer(tensor, role)[0] = data
        return True

    cdef int derive_scalars(self, Py_ssize_t begin, Py_ssize_t group, hyper) except -1:
        """Of the tensors from ``begin`` on, whose ``hyper`` have the number ``group``."""
        cdef Py_ssize_t k
        cdef fused_adamw_tensor *tensor
        for k in range(begin, self.space.num_active):
            tensor = &self.space.tensors[k]
            tensor.scalars = scalars_of(
                &self.space, group, True, fused_adamw_element_types[tensor.element_type].compute,
                self.counters[k].t, hyper,
            )
        return 0

    cdef bint has_overlaps(self) noexcept:
        """Whether memory that is updated is also another tensor's."""
        return has_overlaps(
            &self.memory, self.space.tensors, self.counters, self.space.num_active
        )

    # ---- the step

    cdef int add_objects(self, list found, int which) except -1:
        """Add the parameters (0) or gradients (1) that are stepped here to a list."""
        cdef Py_ssize_t k
        for k in range(self.space.num_active):
            found.append(<object>self.references[k * (OWN + self.num_roles) + which])
        return 0

    cdef bint pays_threads(self) noexcept:
        return fused_adamw_useful_threads(self.space.tensors, self.space.num_active, 2) > 1

    @property
    def num_supported(self):
        """How many tensors will be stepped."""
        return self.space.num_active

    def grads(self):
        """The gradients that are read."""
        cdef list found = []
        self.add_objects(found, 1)
        return found

    cdef void run(self) noexcept:
        """Call the kernels and count the steps. Nothing here may raise: arrays have changed."""
        cdef Py_ssize_t k, count = self.space.num_active
        cdef const StepCounter *counter
        if count == 0:
            return
        step_without_stalls(self.isa, self.space.tensors, count, self.threads)
        for k in range(count):
            counter = &self.counters[k]
            if counter.element_type == FUSED_ADAMW_FLOAT32:
                (<float *>counter.address)[0] = counter.t
            else:
                (<double *>counter.address)[0] = counter.t

    cdef bint lacks_versions(self) noexcept:
        """Whether ``increment_versions`` would pass over a parameter that PyTorch raises for."""
        cdef Py_ssize_t k
        if self.exchange.has_versions:
            for k in range(self.space.num_active):
                if lacks_version(
                    &self.exchange.functions, self.references[k * (OWN + self.num_roles)]
                ):
                    return True
        return False

    cdef void increment_versions(self) noexcept:
        """Count a change of each parameter, as autograd needs it, where the exchange can."""
        cdef Py_ssize_t k
        if self.exchange.has_versions:
            for k in range(self.space.num_active):
                increment_version(
                    &self.exchange.functions, self.references[k * (OWN + self.num_roles)]
                )
