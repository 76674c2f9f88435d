"""The step of a group of PyTorch's tensors: prepared again each time."""


@cython.final
@cython.no_gc
cdef class PreparedStep(CheckedTensors):
    """The tensors of one group, checked, and the scalars of one step.

    ``names``: of each role, in the dicts of the state. ``state_format``: None where moments have
    the dtype of their parameters. ``seed``: of stochastic rounding; None rounds to the nearest.
    ``fused``: whether PyTorch's fused update is to be asked for what is not supported.
    ``master_weights``: whether parameters of 16 bits have them; none is supported without."""

    cdef bint fused
    cdef public list offsets   # of the first element of each, where they are parts of larger ones
    cdef double factor          # of the gradients, in a plan
    cdef Py_ssize_t num_params  # of the groups, in a plan
    cdef readonly list unsupported   # indices of parameters that no kernel supports
    cdef readonly tuple others       # their tensors: params, grads, steps, lists of state
    cdef readonly list fusible       # of these, whether PyTorch's fused update is right

    def __cinit__(
        self, DLPackExchange exchange not None, dict names not None, *, state_format=None,
        seed=None, bint fused=False, bint master_weights=False,
    ):
        cdef unsigned int found = 0
        self.exchange, self.fused = exchange, fused
        self.state_format = -1 if state_format is None else format_index(state_format)
        self.stochastic, self.seed = seed is not None, seed_of(seed)
        for name in names:
            self.roles[self.num_roles] = state_role(name)
            found |= 1 << self.roles[self.num_roles]
            self.num_roles += 1
        self.names = ["step", *names.values()]
        for k, name in enumerate(self.names):
            self.keys[<int>k] = <PyObject *>name
        self.lacks_masters = master_weights and not found & 1 << MASTER
        # Which parameters can have master weights is checked one by one.
        require_roles(FUSED_ADAMW_FLOAT32, max(self.state_format, 0), found & ~(1 << MASTER))
        self.forget()
        self.reserve(8)

    cdef void forget(self) noexcept:
        self.unsupported, self.others, self.fusible = [], None, []

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
        cdef StateCursor cursor = StateCursor(0, 0, False)
        require_hyper(hyper)
        self.threads = check_num_threads(num_threads)
        for name, numbers in (("indices", indices), ("offsets", self.offsets)):
            if numbers is not None and len(numbers) != len(params):
                raise ValueError(f"{name} must have {len(params)} entries; got {len(numbers)}")
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
        cdef Py_ssize_t[AT_ONCE] numbers
        cdef Py_ssize_t i = 0, k, begin, count = len(params)
        if self.num_found + count > self.capacity:
            raise_changed_length(self.capacity - self.num_found, count)
        cursor.entries_left = 4 * count
        while i < count:
            begin = self.space.num_active
            i = self.gather(params, count, state, cursor, i, numbers)
            if i < 0:
                return False
            for k in range(begin, self.num_found):
                self.swap(k, self.space.num_active)
                self.add_one(numbers[k - begin], first, indices)
            self.release_from(self.space.num_active)
        if len(params) != count:
            raise_changed_length(count, len(params))
        return True

    cdef Py_ssize_t gather(
        self, list params, Py_ssize_t num_params, state, StateCursor *cursor, Py_ssize_t i,
        Py_ssize_t *numbers,
    ) except -2:
        """Find the tensors of the next few parameters, whose ``numbers`` in the group are written,
        so that their descriptions are in the cache when they are checked. Returns the number after
        them, or -1 where one has no state."""
        cdef PyObject **found
        cdef Py_ssize_t k, count = 0
        while i < num_params and count < AT_ONCE:
            if len(params) != num_params:
                raise_changed_length(num_params, len(params))
            p = params[i]
            grad = self.exchange.grad_of(p, &cursor.calls_code)
            i += 1
            if grad is None:
                continue
            found = &self.references[self.num_found * (OWN + self.num_roles)]
            if not find_tensors(
                find_state(state, p, cursor), cursor, self.keys, 1 + self.num_roles, &found[2]
            ):
                return -1
            found[0], found[1] = <PyObject *>p, <PyObject *>grad
            for k in range(2):
                Py_INCREF(<object>found[k])
            self.num_found += 1  # so that an error releases them
            numbers[count] = i - 1
            count += 1
            if num_params > FEW:
                for k in range(OWN + self.num_roles):
                    self.exchange.prefetch(found[k])
        return i

    cdef int add_one(self, Py_ssize_t i, Py_ssize_t first, list indices) except -1:
        """Add the tensors that come next, of the parameter with this number in the group."""
        cdef Py_ssize_t k = self.space.num_active
        cdef Py_ssize_t index = first + i if indices is None else <Py_ssize_t>indices[i]
        if self.check(k, index):
            if self.offsets is not None:
                self.begin_at(k, self.offsets[i])
            self.space.num_active += 1
        else:
            self.unsupported.append(index)
            self.leave_to_others(&self.references[k * (OWN + self.num_roles)])
        return 0

    cdef int leave_overlaps(self, list params, Py_ssize_t first, list indices) except -1:
        """Where memory is shared, leave all parameters to others."""
        cdef Py_ssize_t i = 0, count = len(params)
        if self.has_overlaps():
            self.unsupported = []
            for p in params:
                grad = p.grad
                if len(params) != count:
                    raise_changed_length(count, len(params))
                if grad is not None:
                    self.unsupported.append(first + i if indices is None else indices[i])
                i += 1
            self.others = None
            self.clear()
        return 0

    cdef int require_same_memory(self) except -1:
        """Raise RuntimeError where code that the step has called, such as a method of a number, has
        given a tensor other memory, or another count of steps, since it was checked."""
        cdef Py_ssize_t k
        cdef fused_adamw_tensor before
        cdef StepCounter counter
        cdef bint same
        for k in range(self.space.num_active):
            before, counter = self.space.tensors[k], self.counters[k]
            same = self.check(k, 0) and same_memory(&self.space.tensors[k], &before) and (
                self.counters[k].address == counter.address and self.counters[k].t == counter.t
            )
            self.space.tensors[k] = before
            if not same:
                raise RuntimeError(
                    "params must have the same memory, gradients and state throughout a step; got "
                    "a tensor that code called by the step has changed"
                )
        return 0

    cdef bint is_like(self, PreparedStep other) except -1:
        """Whether the tensors of the other could be stepped here."""
        return (
            self.exchange is other.exchange and self.names == other.names
            and self.state_format == other.state_format
            and self.stochastic == other.stochastic and self.seed == other.seed
            and self.lacks_masters == other.lacks_masters
        )

    cdef int leave_to_others(self, PyObject **tensors) except -1:
        """Add the tensors of a parameter that no kernel supports to the lists for PyTorch."""
        cdef Py_ssize_t k
        if self.others is None:
            self.others = ([], [], [], empty_lists(self.num_roles))
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
            for k in range(self.memory.written.count):
                include_interval(&own, self.memory.written.intervals[k])
            for k in range(self.space.num_active):
                tensor = &self.space.tensors[k]
                include_interval(&own, memory_of_grads(tensor))
            for found in tensors:
                include_interval(&others, self.exchange.memory_of(found))
            return share_memory(&own, &others)
        finally:
            PyMem_Free(own.intervals)
            PyMem_Free(others.intervals)


def step_all(list steps not None, list increment_versions not None):
    """Update in place all tensors that these ``PreparedStep``s support, and their counters of
    steps: all of them, or none where memory is refused. To be called once.
    ``increment_versions``: for each, called with its parameters once all have been updated."""
    cdef PreparedStep prepared
    cdef Py_ssize_t i
    cdef list found, params = []
    if len(increment_versions) != len(steps):
        raise ValueError(
            f"increment_versions must have length {len(steps)}, like steps; got "
            f"{len(increment_versions)}"
        )
    require_instances("steps", steps, PreparedStep)
    for prepared in steps:
        found = []
        prepared.add_objects(found, 0)
        params.append(found)
    for prepared in steps:
        prepared.require_same_memory()
    for prepared in steps:
        prepared.run()
        prepared.clear()
    for i in range(len(steps)):
        found = params[i]
        if found:
            call_with(increment_versions[i], <PyObject *>found, NULL)


cdef int raise_changed_length(Py_ssize_t before, Py_ssize_t now) except -1:
    raise RuntimeError(
        f"params must have the same length throughout a step; got {before}, then {now}"
    )
