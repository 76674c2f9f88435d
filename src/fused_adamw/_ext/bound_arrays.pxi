"""The arrays that steps update: checked once, and kept from being freed. (``ParamSources`` refuses
those that NumPy has resized all the same.)"""


@cython.no_gc_clear  # the arrays that kernels write to are kept until it is freed
cdef class BoundArrays:
    """Parameters and their state, all of one arrangement, ``spec``.

    ``state``: for each slot a ``TensorState`` (its format and its arrays by role), or None for
    parameters alone; or, for the function, ``moments``: m and v, arranged like ``params``.
    ``slices``: the slots, as (tensor, begin, end) in the tensor's memory order; None for one slot
    per tensor. ``seed``: of stochastic rounding; None rounds to nearest. ``roles``: those that
    options need on any rank. ``readonly``: the parameters may be; who steps them checks that they
    are not. Weight decay applies to all tensors, unless ``set_decays`` says otherwise."""

    cdef TreeSpec spec
    cdef Py_ssize_t num_params
    cdef readonly Py_ssize_t num_slots
    cdef Py_ssize_t num_buffers
    cdef Param *params
    cdef Slot *slots
    cdef BoundBuffer *buffers  # of the parameters, then of their state
    cdef tuple kept            # those buffers, where the garbage collector sees them
    cdef IntervalSet written   # the memory of all of them
    cdef bint stochastic
    cdef bint plain            # only dtypes that are compute types
    cdef bint has_state
    cdef bint[FUSED_ADAMW_NUM_BUFFERS] has_rate

    def __cinit__(
        self, TreeSpec spec not None, params, list state=None, tuple moments=None,
        list slices=None, seed=None, tuple roles=(), bint readonly=False,
    ):
        cdef tuple arrays = spec.flatten("params", params)
        cdef tuple all_m = (), all_v = ()
        if moments is not None:
            m, v = moments
            all_m, all_v = spec.flatten("m", m), spec.flatten("v", v)
        cdef Py_ssize_t i, capacity = len(arrays) + len(all_m) + len(all_v)
        cdef Py_ssize_t slots = len(arrays) if slices is None else len(slices)
        cdef list kept = [] if state is None else arrays_of_state(state, slots)
        self.spec = spec
        self.plain = moments is not None
        self.has_state = moments is not None or state is not None
        for i in range(FUSED_ADAMW_NUM_BUFFERS if roles else 0):
            self.has_rate[i] = OPTIONAL_BUFFERS[i].has_decay and OPTIONAL_BUFFERS[i].name in roles
        for _, named in kept:
            capacity += len(named)
        self.reserve_memory(len(arrays), slots, capacity)
        for i in range(len(arrays)):
            self.bind_param(i, arrays[i], readonly)
        if slices is None:
            for i in range(len(arrays)):
                self.add_slot(i, 0, size_of(&self.params[i].view))
        else:
            for param, begin, end in slices:
                self.add_slot(param, begin, end)
        if moments is not None:
            for i in range(len(arrays)):
                self.slots[i].tensor.m = self.bind_moment(M, i, all_m[i])
                self.slots[i].tensor.v = self.bind_moment(V, i, all_v[i])
        elif state is not None:
            for i in range(slots):
                self.bind_state(i, kept[i])
        self.finish(seed)

    def __dealloc__(self):
        cdef Py_ssize_t k
        for k in range(self.num_buffers):
            PyBuffer_Release(&self.buffers[k].buffer)
        PyMem_Free(self.buffers)

    cdef int reserve_memory(
        self, Py_ssize_t params, Py_ssize_t slots, Py_ssize_t buffers
    ) except -1:
        """One allocation for all: a call of the function on a small array has time for few."""
        cdef size_t for_params = params * sizeof(Param), for_slots = slots * sizeof(Slot)
        cdef size_t for_buffers = buffers * sizeof(BoundBuffer)
        cdef char *memory = <char *>allocate(
            1, for_buffers + for_params + for_slots + 2 * buffers * sizeof(Interval)
        )
        self.buffers = <BoundBuffer *>memory
        self.params = <Param *>(memory + for_buffers)
        self.slots = <Slot *>(memory + for_buffers + for_params)
        self.written.intervals = <Interval *>(memory + for_buffers + for_params + for_slots)
        return 0

    cdef int finish(self, seed) except -1:
        cdef Py_ssize_t i, k
        self.set_seed(seed)
        if self.spec.grouped:
            for i, group in enumerate(self.spec.group_indices()):
                self.params[i].group = group
        for k in range(self.num_buffers):
            include_interval(&self.written, self.buffers[k].memory)
        if sort_and_find_overlap(&self.written):
            self.report_overlap()
        if not self.plain:  # a call of the function ends before it could be garbage
            buffers = []
            for k in range(self.num_buffers):
                buffers.append(keep(&self.buffers[k].buffer))
            self.kept = tuple(buffers)
        return 0

    # ---- what may change

    def set_seed(self, seed):
        """Set the seed of stochastic rounding; None rounds to the nearest."""
        cdef uint32_t number = seed_of(seed)
        cdef Py_ssize_t i
        for i in range(self.num_slots):
            self.slots[i].tensor.rng_key = fused_adamw_rng_key(number, self.slots[i].param)
        self.stochastic = seed is not None

    def set_decays(self, list decays not None):
        """For each tensor, whether weight decay applies to it."""
        cdef Py_ssize_t i
        if len(decays) != self.num_params:
            raise ValueError(f"decays must have {self.num_params} items; got {len(decays)}")
        for i in range(self.num_params):
            self.params[i].decays = bool(decays[i])

    # ---- binding

    cdef int bind_param(self, Py_ssize_t i, array, bint readonly) except -1:
        cdef Param *param = &self.params[i]
        cdef BoundBuffer *bound = &self.buffers[self.num_buffers]
        memset(param, 0, sizeof(Param))
        acquire(&bound.buffer, &param.view, self.spec, "params", i, array, self.plain)
        self.num_buffers += 1
        self.num_params += 1
        bound.role, bound.param = PARAMS, i
        bound.memory = interval_of(&param.view)
        param.decays = True
        param.order = order_of(&param.view)
        if not readonly:
            if isinstance(array, np.generic):
                refuse_scalar(self.spec, "params", i, array)
            require_writable(self.spec, "params", i, &param.view, "it is updated in place")
        require_contiguous(self.spec, "params", i, &param.view)
        return 0

    cdef int add_slot(self, Py_ssize_t i, Py_ssize_t begin, Py_ssize_t end) except -1:
        cdef Slot *slot = &self.slots[self.num_slots]
        require_slice(self.params, self.num_params, i, begin, end)
        cdef const ArrayView *view = &self.params[i].view
        memset(slot, 0, sizeof(Slot))
        slot.param = i
        slot.tensor.params = view.data + begin * view.itemsize
        slot.tensor.size = end - begin
        slot.tensor.element_type = view.element_type
        slot.tensor.state_format = max(plain_format(view.element_type), 0)
        slot.tensor.element_offset = begin
        self.num_slots += 1
        return 0

    cdef void *bind_moment(self, int role, Py_ssize_t i, array) except? NULL:
        """Bind an array that the caller of the function keeps."""
        cdef ArrayView view
        cdef BoundBuffer *bound = &self.buffers[self.num_buffers]
        cdef const Param *param = &self.params[i]
        acquire(&bound.buffer, &view, self.spec, ROLE_NAMES[role], i, array, self.plain)
        self.num_buffers += 1
        bound.role, bound.param = role, i
        bound.memory = interval_of(&view)
        require_moment(self.spec, role, i, &view, &param.view, param.order)
        return view.data

    cdef int bind_state(self, Py_ssize_t i, kept) except -1:
        """Bind the arrays of a ``TensorState``."""
        cdef Slot *slot = &self.slots[i]
        cdef int role
        format_name, named = kept
        slot.tensor.state_format = format_index(format_name)
        if not is_compatible(slot.tensor.element_type, slot.tensor.state_format):
            raise TypeError(
                f"the state of {self.spec.name('params', slot.param)} must have a format for "
                f"{ELEMENT_TYPES[slot.tensor.element_type]}; got {format_name!r}"
            )
        for name, array in named:
            role = state_role(name)
            role_pointer(&slot.tensor, role)[0] = self.bind_state_array(role, slot, array)
        if slot.tensor.size == 0:
            return 0
        require_roles(
            slot.tensor.element_type, slot.tensor.state_format, roles_of(&slot.tensor)
        )
        require_buffers(self.spec, slot, self.has_rate)
        return 0

    cdef void *bind_state_array(self, int role, Slot *slot, array) except? NULL:
        cdef BoundBuffer *bound = &self.buffers[self.num_buffers]
        cdef const fused_adamw_tensor *tensor = &slot.tensor
        PyObject_GetBuffer(array, &bound.buffer, PyBUF_FORMAT | PyBUF_STRIDES)
        self.num_buffers += 1
        bound.role, bound.param = role, slot.param
        bound.memory = interval_at(bound.buffer.buf, bound.buffer.len)
        require_state_array(
            self.spec, role, slot.param, &bound.buffer, storage_nbytes(tensor, role),
            storage_type_name(role, tensor.element_type, tensor.state_format),
            self.params[slot.param].order,
        )
        return bound.buffer.buf

    # ---- gradients of a collective step

    def check_collective(
        self, grads, list hypers, grad_scale=1.0, max_grad_norm=None, num_threads=None,
        bint overwritten=False,
    ):
        """Raise what a step by full gradients would raise, with nothing copied or changed; return
        the gradients in the order of the tensors. ``overwritten``: they are to be updated, too."""
        self.require_hypers(hypers)
        cdef tuple flat = self.spec.flatten("grads", grads)
        cdef double scale = finite("grad_scale", grad_scale)
        cdef IntervalSet extents
        cdef Derived derived
        cdef Py_ssize_t i
        check_num_threads(num_threads)
        find_isa()
        positive_or_none("max_grad_norm", max_grad_norm)
        reserve(&extents, self.num_params)
        try:
            for i in range(self.num_params):
                derive_for(&derived, &self.params[i], self.params[i].steps, hypers)
                if flat[i] is None:
                    continue
                include_interval(&extents, self.extent_of_gradient(i, flat[i], overwritten))
                if fused_adamw_finish_scalars(&derived.scalars, scale, 1, 0) != FUSED_ADAMW_OK:
                    raise_unusable_scale(derived.compute, grad_scale)
            if overwritten and sort_and_find_overlap(&extents):
                require_disjoint(self.spec, "grads", flat, UPDATES_GRADS)
        finally:
            PyMem_Free(extents.intervals)
        return flat

    cdef Interval extent_of_gradient(self, Py_ssize_t i, array, bint overwritten) except *:
        """Where the gradient of tensor i lies, once it has been checked."""
        cdef Py_buffer buffer
        cdef ArrayView view
        acquire(&buffer, &view, self.spec, "grads", i, array, self.plain)
        try:
            require_like_params(self.spec, "grads", i, &view, &self.params[i].view)
            if overwritten:
                require_updatable(self.spec, "grads", i, &view, UPDATES_GRADS)
            extent = extent_of(&view)
            self.require_apart("grads", i, extent)
        finally:
            PyBuffer_Release(&buffer)
        return extent

    # ---- checks

    @cython.final
    cdef int require_hypers(self, list hypers) except -1:
        """One of each group, with the decay rate exactly where the state has its buffer."""
        if not self.has_state:
            raise ValueError("state must be given for a step; got parameters alone")
        if len(hypers) != self.spec.groups():
            raise_number_of_groups(self.spec.groups(), len(hypers))
        for hyper in hypers:
            require_hyper(hyper)
            self.require_rates(<tuple>(<tuple>hyper)[4])
        return 0

    @cython.final
    cdef int require_rates(self, tuple rates) except -1:
        cdef Py_ssize_t k
        for k in range(FUSED_ADAMW_NUM_BUFFERS):
            if self.has_rate[k] != (rates[k] is not None):
                refuse_rate(k, self.has_rate[k], rates[k])
        return 0

    # ---- overlaps

    cdef int report_overlap(self) except -1:
        """Name the first two arrays that share the first memory that is shared."""
        cdef Interval shared = first_shared(&self.written)
        cdef Py_ssize_t k, first = -1
        for k in range(self.num_buffers):
            if overlaps(self.buffers[k].memory, shared):
                if first >= 0:
                    refuse_overlap(self.buffer_name(first), self.buffer_name(k))
                first = k
        return 0

    @cython.final
    cdef int require_apart(self, str argument, Py_ssize_t i, Interval extent) except -1:
        """A gradient shares no memory with what is updated."""
        cdef Py_ssize_t k
        if overlaps_any(&self.written, extent):
            for k in range(self.num_buffers):
                if overlaps(extent, self.buffers[k].memory):
                    refuse_gradient_overlap(self.spec.name(argument, i), self.buffer_name(k))
        return 0

    cdef str buffer_name(self, Py_ssize_t k):
        return self.spec.name(ROLE_NAMES[self.buffers[k].role], self.buffers[k].param)
