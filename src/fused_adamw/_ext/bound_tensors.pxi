"""Steps over parameters and state that are bound for an optimizer's life."""


@cython.final
@cython.no_gc_clear
cdef class BoundTensors(BoundArrays):
    """What the optimizer classes and the function step; see ``BoundArrays`` for the arguments.

    ``hypers``: one (lr, betas, eps, weight_decay, rates) per group; ``rates``: the
    decay rate of each optional buffer, None where the state lacks it or it has none."""

    cdef Tuner tuner
    cdef readonly int threads  # that the last step used
    cdef public long long t    # steps taken
    cdef public ParamSources sources  # of the parameters of an optimizer

    cpdef step(
        self, grads, list hypers, grad_scale=1.0, max_grad_norm=None, bint skip_nonfinite=False,
        bint maximize=False, num_threads=None,
    ):
        """One AdamW update of all tensors that have a gradient, in place; the others, and their
        counts of steps, stay as they are. Returns the global gradient norm if it was needed, else
        None."""
        self.require_hypers(hypers)
        cdef tuple flat = self.spec.flatten("grads", grads)
        cdef int threads = check_num_threads(num_threads)
        cdef const fused_adamw_isa *isa = find_isa()
        cdef bint may_use_fewer = num_threads is None
        cdef double scale = finite("grad_scale", grad_scale)
        cdef double max_norm = positive_or_none("max_grad_norm", max_grad_norm)
        cdef bint needs_norm = max_norm > 0 or skip_nonfinite
        cdef double factor = -1 if maximize else 1
        cdef double norm = 0
        cdef Workspace space
        prepare(&space, self.num_params)
        try:
            self.gather(&space, flat, hypers)
            threads = fused_adamw_useful_threads(space.tensors, space.num_active, threads)
            if needs_norm:
                norm = gradient_norm(isa, &space, scale, threads, may_use_fewer)
                if skip_nonfinite and not isfinite(norm):
                    return norm
                factor *= fused_adamw_clip_factor(norm, max_norm)
            finish_scalars(&space, scale, factor, self.stochastic)
            self.require_memory()
            result = norm if needs_norm else None  # before anything changes, as it needs memory
            self.run(isa, &space, threads, may_use_fewer)
            self.count_step(flat)
        finally:
            release(&space)
        return result

    cdef int require_memory(self) except -1:
        """The code of arguments has run since the arrays were checked."""
        if self.sources is not None:
            return self.sources.require_memory(True)
        cdef Py_ssize_t k = first_changed(self.buffers, self.num_buffers) if self.plain else -1
        return refuse_changed(self.buffer_name(k)) if k >= 0 else 0

    def step_in_turn(
        self, ReentrantLock lock not None, hypers_at, grads, grad_scale, max_grad_norm,
        bint skip_nonfinite, bint maximize, num_threads,
    ):
        """``step``, by one thread at a time. ``hypers_at``: gives the ``hypers`` of a step by its
        number."""
        lock.begin("step")
        try:
            return self.step(
                grads, hypers_at(self.t + 1), grad_scale, max_grad_norm, skip_nonfinite,
                maximize, num_threads,
            )
        finally:
            lock.end()

    cdef void run(
        self, const fused_adamw_isa *isa, Workspace *space, int threads, bint may_use_fewer
    ) noexcept:
        """Call the kernels; ``may_use_fewer``: on one thread or ``threads``, whichever has been
        faster."""
        cdef bint trial = False, tuned = may_use_fewer and threads > 1 and not self.plain
        cdef bint watched = may_use_fewer and self.plain  # the function does not live to compare
        cdef double started = 0, ended
        if tuned:
            threads = tuner_choice(&self.tuner, threads)
            trial = is_trial(&self.tuner)
        elif watched:
            threads = threads_without_stalls(threads)
            started = clock_of(threads)
        if trial:
            started = seconds_now()
        self.threads = threads
        with nogil:
            fused_adamw_step(isa, space.tensors, space.num_active, threads)
        if trial:
            ended = seconds_now()
            if started >= 0 and ended >= 0:
                record_trial(&self.tuner, threads, ended - started)
        elif watched:
            watch_for_stall(space.tensors, space.num_active, threads, started)
        if tuned:
            self.tuner.steps += 1

    cdef int gather(self, Workspace *space, tuple grads, list hypers) except -1:
        """Check every gradient, and the numbers of every group that has tensors."""
        cdef Py_ssize_t i, checked = -1  # the last group without a gradient
        cdef Param *param
        cdef Slot *slot
        cdef Py_buffer *buffer
        cdef ArrayView view
        cdef Derived derived
        for i in range(self.num_params):
            array = grads[i]
            if array is None and not self.plain:
                param = &self.params[i]
                if param.group != checked:
                    derive_for(&derived, param, param.steps, hypers)
                    checked = param.group
                continue
            param, slot = &self.params[i], &self.slots[i]
            buffer = &space.buffers[space.num_buffers]
            acquire(buffer, &view, self.spec, "grads", i, array, self.plain)
            space.num_buffers += 1
            self.accept_gradient(i, buffer, &view, array)
            self.activate(space, slot, buffer.buf, hypers)
        if self.num_params == 0:  # the numbers are checked all the same
            derive(&space.derived[0], 0, True, FUSED_ADAMW_FLOAT64, 1, hypers[0])
        return 0

    cdef inline int activate(
        self, Workspace *space, const Slot *slot, const void *gradient, list hypers
    ) except -1:
        """Add a slot to those that this step updates."""
        cdef const Param *param = &self.params[slot.param]
        cdef fused_adamw_tensor *tensor = &space.tensors[space.num_active]
        tensor[0] = slot.tensor
        tensor.grads = gradient
        tensor.scalars = scalars_of(
            space, param.group, param.decays,
            fused_adamw_element_types[tensor.element_type].compute, param.steps + 1,
            hypers[param.group],
        )
        space.num_active += 1
        return 0

    cdef inline int accept_gradient(
        self, Py_ssize_t i, Py_buffer *buffer, ArrayView *view, array
    ) except -1:
        """Check a gradient; one in another memory order is replaced by a copy in the right one."""
        cdef const Param *param = &self.params[i]
        if view.element_type != param.view.element_type or not same_layout(view, &param.view):
            require_like_params(self.spec, "grads", i, view, &param.view)
            if not is_ordered(view, param.order):
                array = np.array(array, order=chr(param.order), copy=True)
                PyBuffer_Release(buffer)
                acquire(buffer, view, self.spec, "grads", i, array, self.plain)
                require_like_params(self.spec, "grads", i, view, &param.view)
        return self.require_apart("grads", i, interval_of(view))

    # ---- numbers

    def check(self, list hypers, list steps):
        """Raise what a step with these hyper-parameters, after ``steps`` of each tensor, would
        raise."""
        cdef Derived derived
        cdef Py_ssize_t i
        self.require_hypers(hypers)
        self.require_steps(steps)
        for i in range(self.num_params):
            derive_for(&derived, &self.params[i], steps[i], hypers)

    def check_rates(self, tuple rates not None):
        """Raise ValueError unless the decay rates are given for just the buffers that the state
        has."""
        if len(rates) != FUSED_ADAMW_NUM_BUFFERS:
            raise ValueError(f"rates must be {FUSED_ADAMW_NUM_BUFFERS}; got {rates!r}")
        self.require_rates(rates)

    cpdef int count_step(self, tuple grads) except -1:
        """A step was taken, by the tensors that had a gradient: those that are not None."""
        cdef Py_ssize_t i
        if grads is None or len(grads) != self.num_params:
            raise ValueError(f"grads must be of {self.num_params} tensors; got {grads!r}")
        self.t += 1
        for i in range(self.num_params):
            self.params[i].steps += grads[i] is not None
        return 0

    cdef void start_before(self, long long t) noexcept:
        """The next step is number ``t`` of all tensors."""
        cdef Py_ssize_t i
        for i in range(self.num_params):
            self.params[i].steps = t - 1

    def get_steps(self):
        """How many steps each tensor has had."""
        cdef list steps = []
        for i in range(self.num_params):
            steps.append(self.params[i].steps)
        return steps

    def set_steps(self, list steps not None):
        """``steps``: one number of steps, 0 or more, for each tensor."""
        cdef Py_ssize_t i
        self.require_steps(steps)
        for i in range(self.num_params):
            self.params[i].steps = steps[i]

    cdef int require_steps(self, list steps) except -1:
        if steps is None or len(steps) != self.num_params:
            found = None if steps is None else len(steps)
            raise ValueError(f"steps must have {self.num_params} numbers; got {found}")
        for number in steps:
            if not 0 <= printable_integer("steps", number) < 2**63 - 1:
                raise ValueError(f"steps must be from 0 to 2**63 - 2; got {number}")
        return 0

    def shares_memory(self, array):
        """Whether any part of a NumPy array lies within the memory of parameters or state."""
        cdef Py_buffer buffer
        cdef ArrayView view
        if acquire_buffer(&buffer, &view, array) < 0:
            return False
        shared = overlaps_any(&self.written, extent_of(&view))
        PyBuffer_Release(&buffer)
        return shared

    # ---- steps of ranges, for shards

    def step_range(
        self, Py_ssize_t first, list grads not None, list hypers, grad_scale=1.0, clip=1.0,
        bint maximize=False, num_threads=None,
    ):
        """One update of the slots from ``first`` on, by flat contiguous gradients of their sizes;
        None leaves a slot as it is. ``clip``: a further factor, which may be NaN. Counts no
        step."""
        cdef int threads = check_num_threads(num_threads)
        cdef const fused_adamw_isa *isa = find_isa()
        cdef double factor = -real("clip", clip) if maximize else real("clip", clip)
        cdef Workspace space
        self.require_hypers(hypers)
        prepare(&space, len(grads))
        try:
            self.gather_range(&space, first, grads, hypers)
            finish_scalars(&space, finite("grad_scale", grad_scale), factor, self.stochastic)
            threads = fused_adamw_useful_threads(space.tensors, space.num_active, threads)
            self.run(isa, &space, threads, num_threads is None)
        finally:
            release(&space)

    def sums_of_squares(self, Py_ssize_t first, list grads not None, num_threads=None):
        """Sums of squares, one per chunk, of the gradients of the slots from ``first`` on: added up
        one after another they are the square of the norm that ``step`` clips by. A float64
        array."""
        cdef int threads = check_num_threads(num_threads)
        cdef const fused_adamw_isa *isa = find_isa()
        cdef Workspace space
        cdef double *partial_sums
        prepare(&space, len(grads))
        try:
            self.gather_range(&space, first, grads, [NO_STEP] * self.spec.groups())
            sums = np.empty(fused_adamw_num_chunks(space.tensors, space.num_active))
            partial_sums = <double *><size_t>sums.ctypes.data
            threads = fused_adamw_useful_threads(space.tensors, space.num_active, threads)
            sum_squares(isa, &space, threads, num_threads is None, partial_sums)
        finally:
            release(&space)
        return sums

    cdef int gather_range(
        self, Workspace *space, Py_ssize_t first, list grads, list hypers
    ) except -1:
        cdef Py_ssize_t k
        cdef Slot *slot
        cdef Py_buffer *buffer
        cdef ArrayView view
        if not 0 <= first <= self.num_slots or len(grads) > self.num_slots - first:
            raise ValueError(
                f"grads must be of slots {first} to {self.num_slots} at most; got {len(grads)}"
            )
        for k in range(len(grads)):
            if grads[k] is None:
                continue
            slot = &self.slots[first + k]
            buffer = &space.buffers[space.num_buffers]
            acquire(buffer, &view, self.spec, "grads", slot.param, grads[k], self.plain)
            space.num_buffers += 1
            if (
                view.element_type != slot.tensor.element_type or size_of(&view) != slot.tensor.size
                or not is_ordered(&view, b"C")
            ):
                raise ValueError(
                    f"{self.spec.name('grads', slot.param)} must have {slot.tensor.size} "
                    f"contiguous elements of {ELEMENT_TYPES[slot.tensor.element_type]}; got "
                    f"{shape_of(&view)}"
                )
            self.activate(space, slot, view.data, hypers)
        return 0
