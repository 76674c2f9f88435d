"""The step of a group of PyTorch's tensors, validated through DLPack.

A ``PreparedStep`` is prepared again for each step. It keeps its memory, and the order of the
addresses, but nothing that is true of the tensors: what is stepped is what the optimizer has at
that moment, even if it was loaded, moved or replaced."""

cdef enum:
    OWN = 3  # references to a parameter, its gradient, its counter; those to its state come next


@cython.no_gc
cdef class PreparedStep:
    """The tensors of one group, checked, and the scalars of one step.

    ``names``: of each role, in the dicts of the state. ``state_format``: None where moments have
    the dtype of their parameters. ``seed``: of stochastic rounding; None rounds to the nearest.
    ``fused``: whether PyTorch's fused update is to be asked for what is not supported."""

    cdef DLPackExchange exchange
    cdef list names
    cdef int[ROLES] roles
    cdef int num_roles
    cdef int state_format      # -1 for that of the parameters
    cdef bint stochastic, fused
    cdef uint32_t seed
    cdef Py_ssize_t capacity
    cdef Workspace space       # of the tensors that are supported, as all of the following
    cdef StepCounter *counters
    cdef PyObject **references
    cdef IntervalSet written   # sorted
    cdef Interval *unsorted    # the same as they were added
    cdef Py_ssize_t num_unsorted
    cdef bint overlapping
    cdef int threads
    cdef double factor         # of the gradients, in a plan
    cdef const fused_adamw_isa *isa
    cdef readonly list unsupported   # indices of parameters that no kernel supports
    cdef readonly tuple others       # their tensors: params, grads, steps, lists of state
    cdef readonly list fusible       # of these, whether PyTorch's fused update is right

    def __cinit__(
        self, DLPackExchange exchange not None, dict names not None, *, state_format=None,
        seed=None, bint fused=False,
    ):
        cdef unsigned int found = 0
        self.exchange, self.fused = exchange, fused
        self.state_format = -1 if state_format is None else format_index(state_format)
        self.stochastic, self.seed = seed is not None, seed_of(seed)
        self.names = ["step", *names.values()]
        for name in names:
            self.roles[self.num_roles] = state_role(name)
            found |= 1 << self.roles[self.num_roles]
            self.num_roles += 1
        # Which parameters can have master weights is checked one by one.
        require_roles(FUSED_ADAMW_FLOAT32, max(self.state_format, 0), found & ~(1 << MASTER))
        self.forget()
        self.reserve(8)

    def __dealloc__(self):
        self.clear()
        self.free()

    cdef int free(self) except -1:
        release(&self.space)
        PyMem_Free(self.counters)
        PyMem_Free(self.references)
        PyMem_Free(self.written.intervals)
        PyMem_Free(self.unsorted)
        self.space.derived = NULL
        self.counters, self.references, self.written.intervals = NULL, NULL, NULL
        self.unsorted = NULL
        return 0

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Memory for this many tensors."""
        if count <= self.capacity:
            return 0
        self.free()
        self.capacity = 0
        prepare(&self.space, count)
        self.counters = <StepCounter *>allocate(count, sizeof(StepCounter))
        self.references = <PyObject **>allocate(
            count * (OWN + self.num_roles), sizeof(PyObject *)
        )
        reserve(&self.written, count * (self.num_roles + 2))
        self.unsorted = <Interval *>allocate(count * (self.num_roles + 2), sizeof(Interval))
        self.num_unsorted = -1  # none is known
        self.capacity = count
        return 0

    cdef void forget(self) noexcept:
        self.unsupported, self.others, self.fusible = [], None, []

    cpdef int clear(self) except -1:
        """Give up what is prepared, with its references."""
        cdef Py_ssize_t i
        for i in range(self.space.num_active * (OWN + self.num_roles)):
            release_object(self.references[i])
        self.space.num_active = 0
        return 0

    # ---- what is stepped

    def prepare(
        self, list params not None, state not None, hyper, *, bint maximize, num_threads,
        double grad_scale=1.0, Py_ssize_t first=0, list indices=None,
    ):
        """Collect and check the tensors of a step. ``state``: a dict of tensors by name, for each
        parameter; ``hyper``: one of those of ``BoundTensors``; ``first``: the number of the first
        parameter, or ``indices``, of all, in the optimizer; ``grad_scale``: of the gradients.

        Returns:
            False where a parameter has no state yet, or less than that; nothing is prepared. It is
            no KeyError because the traceback of a module of the limited API is made by Python code:
            what a signal handler raises at that moment would be lost."""
        cdef StateCursor cursor = StateCursor(0, 0)
        require_hyper(hyper)
        self.threads = check_num_threads(num_threads)
        if indices is not None and len(indices) != len(params):
            raise ValueError(f"indices must have {len(params)} entries; got {len(indices)}")
        try:
            self.begin(len(params))
            if self.add(params, state, &cursor, first, indices):
                self.leave_overlaps(params, first, indices)
                self.derive_scalars(0, 0, hyper)
                finish_scalars(&self.space, grad_scale, -1 if maximize else 1, self.stochastic)
                return True
        except BaseException:
            self.clear()
            raise
        self.clear()
        return False

    cdef int begin(self, Py_ssize_t count) except -1:
        """Begin a step of at most so many tensors."""
        self.clear()
        self.forget()
        self.reserve(count)
        self.space.num_scalars = 0
        self.isa = find_isa()
        return 0

    cdef bint add(
        self, list params, state, StateCursor *cursor, Py_ssize_t first, list indices
    ) except -1:
        """Whether all that have a gradient have state; add those that the kernels support."""
        cdef Py_ssize_t i, k, count = len(params)
        cdef PyObject **found
        cursor.entries_left = 4 * count
        for i in range(count):
            p = params[i]
            grad = p.grad
            if grad is None:
                continue
            found = &self.references[self.space.num_active * (OWN + self.num_roles)]
            if not find_tensors(find_state(state, p, cursor), self.names, &found[2]):
                return False
            found[0], found[1] = <PyObject *>p, <PyObject *>grad
            for k in range(2):
                Py_INCREF(<object>found[k])
            self.space.num_active += 1  # so that an error releases them
            index = first + i if indices is None else indices[i]
            if self.check(self.space.num_active - 1, index):
                continue
            self.unsupported.append(index)
            self.leave_to_others(found)
            self.space.num_active -= 1
            for k in range(OWN + self.num_roles):
                release_object(found[k])
        return True

    cdef int leave_overlaps(self, list params, Py_ssize_t first, list indices) except -1:
        """Where memory is shared, leave all parameters to others."""
        if self.has_overlaps():
            self.unsupported = [
                first + i if indices is None else indices[i]
                for i in range(len(params)) if params[i].grad is not None
            ]
            self.others = None
            self.clear()
        return 0

    cdef bint check(self, Py_ssize_t k, Py_ssize_t index) except -1:
        """Whether the kernels serve the tensors of a parameter, which are then described."""
        cdef fused_adamw_tensor *tensor = &self.space.tensors[k]
        cdef PyObject **found = &self.references[k * (OWN + self.num_roles)]
        cdef DLPackExchange exchange = self.exchange
        cdef ArrayView params, grads
        if not exchange.view(<object>found[0], &params) or params.element_type < 0:
            return False
        exchange.measure(&params)
        memset(tensor, 0, sizeof(fused_adamw_tensor))
        tensor.params = params.data
        tensor.size = size_of(&params)
        tensor.element_type = params.element_type
        tensor.state_format = (
            OWN_FORMAT[params.element_type] if self.state_format < 0 else self.state_format
        )
        if not (
            params.nbytes >= 0
            and is_compatible(tensor.element_type, tensor.state_format)
            and exchange.view_like(
                <object>found[1], StorageType(params.dlpack_code, params.dlpack_bits), &params,
                &grads,
            )
            and not exchange.negates(<object>found[0]) and not exchange.negates(<object>found[1])
            and self.check_state(found + OWN, tensor, &params)
            and exchange.view_step(<object>found[2], &self.counters[k])
        ):
            return False
        tensor.grads = grads.data
        if self.stochastic:
            tensor.rng_key = fused_adamw_rng_key(self.seed, index)
        return True

    cdef bint check_state(
        self, PyObject **tensors, fused_adamw_tensor *tensor, const ArrayView *params
    ) except -1:
        """Scales are flat; other state is like the parameters, unless elements share a byte."""
        cdef int k, role
        cdef bint found
        cdef StorageType storage
        cdef Py_ssize_t nbytes
        cdef ArrayView view
        for k in range(self.num_roles):
            role = self.roles[k]
            storage = stored_type(tensor, role)
            if storage.bits == 0:
                return False
            nbytes = storage_nbytes(tensor, role)
            if role != M_SCALE and role != V_SCALE and nbytes * 8 == tensor.size * storage.bits:
                found = self.exchange.view_like(<object>tensors[k], storage, params, &view)
            else:
                found = self.exchange.view_flat(
                    <object>tensors[k], storage, nbytes * 8 // storage.bits, &view
                )
            if not found:
                return False
            role_pointer(tensor, role)[0] = view.data
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

    cdef bint is_like(self, PreparedStep other) except -1:
        """Whether the tensors of the other could be stepped here."""
        return (
            self.exchange is other.exchange and self.names == other.names
            and self.state_format == other.state_format
            and self.stochastic == other.stochastic and self.seed == other.seed
        )

    # ---- memory that is shared

    cdef bint has_overlaps(self) except -1:
        """Whether memory that is updated is also another tensor's."""
        cdef Py_ssize_t k, count = 0
        cdef int r
        cdef bint same = True
        cdef fused_adamw_tensor *tensor
        for k in range(self.space.num_active):
            tensor = &self.space.tensors[k]
            same &= self.write(
                &count, interval_at(tensor.params, storage_nbytes(tensor, PARAMS))
            )
            for r in range(self.num_roles):
                same &= self.write(&count, interval_at(
                    role_pointer(tensor, self.roles[r])[0], storage_nbytes(tensor, self.roles[r])
                ))
            same &= self.write(&count, interval_at(
                self.counters[k].address,
                fused_adamw_element_types[self.counters[k].element_type].size,
            ))
        if not same or count != self.num_unsorted:
            self.num_unsorted = count
            self.written.count = self.written.near = 0
            for k in range(count):
                include_interval(&self.written, self.unsorted[k])
            self.overlapping = sort_and_find_overlap(&self.written)
        if self.overlapping:
            return True
        for k in range(self.space.num_active):
            tensor = &self.space.tensors[k]
            if overlaps(
                &self.written, interval_at(tensor.grads, storage_nbytes(tensor, PARAMS))
            ):
                return True
        return False

    cdef inline bint write(self, Py_ssize_t *count, Interval interval) noexcept:
        """Add memory that is updated; returns whether it was the same before the last step."""
        cdef Interval *before = &self.unsorted[count[0]]
        cdef bint same = (
            count[0] < self.num_unsorted and before.begin == interval.begin
            and before.end == interval.end
        )
        before[0] = interval
        count[0] += 1
        return same

    cdef int leave_to_others(self, PyObject **tensors) except -1:
        """Add the tensors of a parameter that no kernel supports to the lists for PyTorch."""
        cdef Py_ssize_t k
        if self.others is None:
            self.others = ([], [], [], [[] for _ in range(self.num_roles)])
        for k in range(OWN):
            (<list>self.others[k]).append(<object>tensors[k])
        lists = <list>self.others[OWN]
        for k in range(self.num_roles):
            (<list>lists[k]).append(<object>tensors[OWN + k])
        if self.fused:
            self.fusible.append(self.is_fusible(tensors))
        return 0

    cdef bint is_fusible(self, PyObject **tensors) except -1:
        """Whether PyTorch's fused update is right: on the CPU it disregards strides."""
        cdef ArrayView params, view
        cdef int k
        # A tensor on another device has no view either.
        if not self.exchange.view_any(<object>tensors[0], &params):
            return (<object>tensors[0]).device.type != "cpu"
        self.exchange.measure(&params)
        if params.nbytes < 0:
            return False
        for k in range(1, OWN + self.num_roles):
            if k != OWN - 1 and not (
                self.exchange.view_any(<object>tensors[k], &view) and same_layout(&view, &params)
            ):
                return False
        return True

    def is_entangled(self):
        """Whether others share memory with what is stepped here, so that the order matters."""
        cdef Py_ssize_t k, count = self.space.num_active * (self.num_roles + OWN)
        cdef list tensors = [*self.others[0], *self.others[1], *self.others[2]]
        cdef IntervalSet own, others
        cdef fused_adamw_tensor *tensor
        for found in self.others[OWN]:
            tensors.extend(found)
        reserve(&own, count)
        try:
            reserve(&others, len(tensors))
        except BaseException:
            PyMem_Free(own.intervals)
            raise
        try:
            for k in range(self.written.count):
                include_interval(&own, self.written.intervals[k])
            for k in range(self.space.num_active):
                tensor = &self.space.tensors[k]
                include_interval(&own, interval_at(tensor.grads, storage_nbytes(tensor, PARAMS)))
            for found in tensors:
                include_interval(&others, self.exchange.memory_of(found))
            return share_memory(&own, &others)
        finally:
            PyMem_Free(own.intervals)
            PyMem_Free(others.intervals)

    # ---- the step

    cdef list objects(self, int which):
        """The parameters (0) or gradients (1) that are stepped here."""
        cdef Py_ssize_t k
        return [
            <object>self.references[k * (OWN + self.num_roles) + which]
            for k in range(self.space.num_active)
        ]

    cdef bint pays_threads(self) noexcept:
        return fused_adamw_useful_threads(self.space.tensors, self.space.num_active, 2) > 1

    @property
    def num_supported(self):
        """How many tensors will be stepped."""
        return self.space.num_active

    def grads(self):
        """The gradients that are read."""
        return self.objects(1)

    cdef int run(self, increment_version) except -1:
        cdef Py_ssize_t k, count = self.space.num_active
        cdef fused_adamw_tensor *tensors = self.space.tensors
        cdef const StepCounter *counter
        cdef double started
        cdef int threads = threads_without_stalls(
            fused_adamw_useful_threads(tensors, count, self.threads)
        )
        if count == 0:
            return 0
        started = clock_of(threads)
        with nogil:
            fused_adamw_step(self.isa, tensors, count, threads)
        watch_for_stall(tensors, count, threads, started)
        for k in range(count):
            counter = &self.counters[k]
            if counter.element_type == FUSED_ADAMW_FLOAT32:
                (<float *>counter.address)[0] = counter.t
            else:
                (<double *>counter.address)[0] = counter.t
        params = self.objects(0)
        self.clear()
        call_with(increment_version, <PyObject *>params, NULL)
        return 0

    def step(self, increment_version):
        """Update in place all that is supported, and its counters of steps. To be called once.
        ``increment_version``: called with the parameters."""
        self.run(increment_version)
