"""Tensors validated for one step, through DLPack: those of PyTorch.

Nothing is kept between steps: what is stepped is the state that the optimizer has at that moment,
even if it was loaded, moved or replaced."""

cdef dict NO_STATE = {}


def gather_tensors(params, state, dict names not None):
    """Lists of the parameters that have a gradient, of their gradients and counters of steps, and a
    dict of the lists of their state; ``names``: of each role, in the dicts of ``state``.

    Returns:
        None where a parameter has no state yet, or less than that. It is no KeyError because the
        traceback of a module of the limited API is made by Python code: what a signal handler
        raises at that moment would be lost.

    Raises:
        KeyError: a parameter has a state of other names."""
    cdef list found = [], grads = [], steps = [], lists = [[] for _ in names]
    # The hash of a tensor takes a call of Python. The state is mostly in the order of the
    # parameters, where it is found without; past so many others the parameter is looked up.
    cdef Py_ssize_t k, entries_left = 4 * len(params)
    cdef list roles = list(names.values())
    entries = iter(state.items())
    owner = entry = None
    for p in params:
        grad = p.grad
        if grad is None:
            continue
        while owner is not p and entries_left > 0:
            entries_left -= 1
            owner, entry = next(entries, (None, None))
        tensors = entry if owner is p else state.get(p, NO_STATE)
        if len(tensors) <= len(lists):  # "step", and one for each list
            return None
        found.append(p)
        grads.append(grad)
        steps.append(tensors["step"])
        for k in range(len(lists)):
            (<list>lists[k]).append(tensors[roles[k]])
    return found, grads, steps, dict(zip(names, lists))


@cython.no_gc
cdef class PreparedStep:
    """The tensors of one group, checked, and the scalars of one step.

    ``tensors`` has the lists ``params``, ``grads`` and ``steps`` (tensors of one number, the steps
    so far), and ``state``, a dict from roles to lists; all of one length. ``hyper``: one of those
    of ``BoundTensors``. ``state_format``: None where moments have the dtype of their parameters.
    ``param_indices``: of the parameters among all of the optimizer, for stochastic rounding by
    ``seed``. ``grad_scale``: a factor of the gradients.

    ``unsupported`` has the indices of those that no kernel supports, which stay as they are."""

    cdef object tensors
    cdef list params, grads, steps
    cdef list state            # a list of tensors for each of `roles`
    cdef int[ROLES] roles
    cdef int num_roles
    cdef int state_format      # -1 for that of the parameters
    cdef readonly list unsupported
    cdef int threads
    cdef const fused_adamw_isa *isa
    cdef Workspace space
    cdef StepCounter *counters  # of the tensors that are supported
    cdef IntervalSet written

    def __cinit__(
        self, DLPackExchange exchange not None, tensors, *, hyper, bint maximize, num_threads,
        state_format=None, double grad_scale=1.0, list param_indices=None, seed=None,
    ):
        cdef Py_ssize_t i, count = len(tensors.params)
        cdef uint32_t number = seed_of(seed)
        self.tensors = tensors  # keeps them alive
        self.state_format = -1 if state_format is None else format_index(state_format)
        self.read_lists(tensors, count)
        self.isa = find_isa()
        self.unsupported = []
        self.threads = check_num_threads(num_threads)
        if param_indices is not None and len(param_indices) != count:
            raise ValueError(
                f"param_indices must have {count} entries; got {len(param_indices)}"
            )
        require_hyper(hyper)
        prepare(&self.space, count)
        self.counters = <StepCounter *>allocate(count, sizeof(StepCounter))
        reserve(&self.written, count * (self.num_roles + 2))
        for i in range(count):
            if not self.gather(exchange, i):
                self.unsupported.append(i)
            elif param_indices is not None:
                self.space.tensors[self.space.num_active - 1].rng_key = fused_adamw_rng_key(
                    number, param_indices[i]
                )
        if self.has_overlaps():
            self.unsupported = list(range(count))
            self.space.num_active = 0
        for i in range(self.space.num_active):
            self.space.tensors[i].scalars = scalars_of(
                &self.space, 0, True,
                fused_adamw_element_types[self.space.tensors[i].element_type].compute,
                self.counters[i].t, hyper,
            )
        finish_scalars(&self.space, grad_scale, -1 if maximize else 1, seed is not None)

    def __dealloc__(self):
        release(&self.space)
        PyMem_Free(self.counters)
        PyMem_Free(self.written.intervals)

    cdef int read_lists(self, tensors, Py_ssize_t count) except -1:
        self.params, self.grads, self.steps = tensors.params, tensors.grads, tensors.steps
        self.state = []
        cdef unsigned int found_roles = 0
        for name, found in dict(tensors.state).items():
            self.roles[self.num_roles] = state_role(name)
            found_roles |= 1 << self.roles[self.num_roles]
            self.num_roles += 1
            self.state.append(found)
        # Which parameters can have master weights is checked one by one.
        require_roles(FUSED_ADAMW_FLOAT32, max(self.state_format, 0), found_roles & ~(1 << MASTER))
        for found in (self.params, self.grads, self.steps, *self.state):
            if type(found) is not list:
                raise TypeError(f"tensors must have lists; got {type(found).__name__}")
            if len(<list>found) != count:
                raise ValueError(f"tensors must have lists of {count} entries; got {len(found)}")
        return 0

    cdef bint gather(self, DLPackExchange exchange, Py_ssize_t i) except -1:
        """Add the tensors of one parameter, where the kernels serve them."""
        cdef fused_adamw_tensor *tensor = &self.space.tensors[self.space.num_active]
        cdef ArrayView params, grads
        if not exchange.view(self.params[i], &params) or params.element_type < 0:
            return False
        memset(tensor, 0, sizeof(fused_adamw_tensor))
        tensor.params = params.data
        tensor.size = size_of(&params)
        tensor.element_type = params.element_type
        tensor.state_format = (
            plain_format(params.element_type) if self.state_format < 0 else self.state_format
        )
        if not (
            params.nbytes >= 0 and tensor.state_format >= 0
            and is_compatible(tensor.element_type, tensor.state_format)
            and exchange.view_like(
                self.grads[i], StorageType(params.dlpack_code, params.dlpack_bits), &params, &grads
            )
            and not exchange.negates(self.params[i]) and not exchange.negates(self.grads[i])
            and self.gather_state(exchange, i, tensor, &params)
            and exchange.view_step(self.steps[i], &self.counters[self.space.num_active])
        ):
            return False
        tensor.grads = grads.data
        self.space.num_active += 1
        return True

    cdef bint gather_state(
        self, DLPackExchange exchange, Py_ssize_t i, fused_adamw_tensor *tensor,
        const ArrayView *params
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
            tensors = <list>self.state[k]
            if role != M_SCALE and role != V_SCALE and nbytes * 8 == tensor.size * storage.bits:
                found = exchange.view_like(tensors[i], storage, params, &view)
            else:
                found = exchange.view_flat(tensors[i], storage, nbytes * 8 // storage.bits, &view)
            if not found:
                return False
            role_pointer(tensor, role)[0] = view.data
        return True

    cdef bint has_overlaps(self) except -1:
        """Whether memory that is updated is also another tensor's."""
        cdef Py_ssize_t k
        cdef int r
        cdef fused_adamw_tensor *tensor
        for k in range(self.space.num_active):
            tensor = &self.space.tensors[k]
            include_interval(
                &self.written, interval_at(tensor.params, storage_nbytes(tensor, PARAMS))
            )
            for r in range(self.num_roles):
                include_interval(&self.written, interval_at(
                    role_pointer(tensor, self.roles[r])[0], storage_nbytes(tensor, self.roles[r])
                ))
            include_interval(&self.written, interval_at(
                self.counters[k].address,
                fused_adamw_element_types[self.counters[k].element_type].size,
            ))
        if sort_and_find_overlap(&self.written):
            return True
        for k in range(self.space.num_active):
            tensor = &self.space.tensors[k]
            if overlaps(
                &self.written, interval_at(tensor.grads, storage_nbytes(tensor, PARAMS))
            ):
                return True
        return False

    def step(self):
        """Update in place all that is supported, and its counters of steps. To be called once."""
        cdef Py_ssize_t k, count = self.space.num_active
        cdef fused_adamw_tensor *tensors = self.space.tensors
        cdef const StepCounter *counter
        cdef int threads = threads_without_stalls(
            fused_adamw_useful_threads(tensors, count, self.threads)
        )
        cdef double started = clock_of(threads)
        with nogil:
            fused_adamw_step(self.isa, tensors, count, threads)
        watch_for_stall(tensors, count, threads, started)
        for k in range(count):
            counter = &self.counters[k]
            if counter.element_type == FUSED_ADAMW_FLOAT32:
                (<float *>counter.address)[0] = counter.t
            else:
                (<double *>counter.address)[0] = counter.t
        self.space.num_active = 0
