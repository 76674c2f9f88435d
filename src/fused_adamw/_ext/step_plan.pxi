"""Steps of all groups of an optimizer for PyTorch, as long as their options stay the same."""

cdef extern from "Python.h":
    int PyGC_Disable() noexcept
    int PyGC_Enable() noexcept

cdef enum:
    NUM_READ = 5  # options that are read at each step

cdef tuple READ_EACH_TIME = ("params", "lr", "betas", "eps", "weight_decay")


cdef struct Option:
    PyObject *name
    PyObject *value
    int place  # in READ_EACH_TIME; -1 for what must keep its value


@cython.no_gc
cdef class GroupPlan:
    """How a group is stepped whose options are those of ``group`` at this moment; its parameters
    and its ``hyper`` are read at each step."""

    cdef list objects  # which `options` point to
    cdef Option *options
    cdef Py_ssize_t num_options
    cdef PreparedStep prepared
    cdef tuple rates
    cdef bint maximize
    cdef list params   # of this step
    cdef tuple hyper
    cdef bint has_numbers  # whether that is all floats and ints, which have no code of their own
    cdef Py_ssize_t num_updated

    def __cinit__(
        self, dict group not None, PreparedStep prepared not None, tuple rates not None
    ):
        cdef Py_ssize_t i = 0
        for name in READ_EACH_TIME:
            if name not in group:
                raise KeyError(name)
        self.objects = []
        self.options = <Option *>allocate(len(group), sizeof(Option))
        for name, value in group.items():
            if name in READ_EACH_TIME:
                self.options[i] = Option(<PyObject *>name, NULL, READ_EACH_TIME.index(name))
            else:
                self.options[i] = Option(<PyObject *>name, <PyObject *>value, -1)
                self.objects.append(value)
            self.objects.append(name)
            i += 1
        self.num_options = i
        self.prepared, self.rates = prepared, rates
        self.maximize = group["maximize"]

    def __dealloc__(self):
        PyMem_Free(self.options)

    cdef bint read(self, group) except -1:
        """Read the options of a step; False where another one has been added, removed, or set to
        another object, or where a type differs from those that the plan is for."""
        cdef PyObject *found[NUM_READ]
        cdef Option *option
        cdef Py_ssize_t i = 0, position = 0
        cdef PyObject *name
        cdef PyObject *value
        if type(group) is not dict:
            return False
        while PyDict_Next(group, &position, &name, &value):
            if i == self.num_options:
                return False
            option = &self.options[i]
            if name != option.name or (option.place < 0 and value != option.value):
                return False
            if option.place >= 0:
                found[option.place] = value
            i += 1
        if i != self.num_options:
            return False
        params, lr = <object>found[0], <object>found[1]
        if type(params) is not list or not isinstance(lr, (float, int)):
            return False
        self.params = params
        self.hyper = (
            lr, <object>found[2], <object>found[3], <object>found[4], self.rates
        )
        self.has_numbers = has_numbers(self.hyper)
        return True

    cdef int forget(self) except -1:
        """Give up what was read."""
        self.params, self.hyper = None, None
        return 0


@cython.no_gc
cdef class StepPlan:
    """All groups of an optimizer, in one list of tensors for successive groups that are stored in
    one way: the order matters where groups share memory. ``num_threads``: called where several
    threads pay; ``increment_version``: called with the parameters that have been stepped;
    ``num_modes``: called for the number of modes of PyTorch, whose code runs for each gradient."""

    cdef list groups
    cdef list steps  # PreparedSteps
    cdef ReentrantLock lock
    cdef object num_threads, increment_version, num_modes
    cdef bint has_stepped
    cdef bint has_own_counts  # whether no two PreparedSteps share a count of steps
    cdef bint calls_code  # whether this step may call code of the user, or signal handlers

    def __cinit__(
        self, list groups not None, ReentrantLock lock not None, *, num_threads, increment_version,
        num_modes,
    ):
        cdef GroupPlan plan, last = None
        require_instances("groups", groups, GroupPlan)
        self.steps = []
        for plan in groups:
            if (
                last is not None and plan.maximize == last.maximize
                and plan.prepared.is_like(last.prepared)
            ):
                plan.prepared = last.prepared
            else:
                plan.prepared.factor = -1 if plan.maximize else 1
                self.steps.append(plan.prepared)
            if last is not None and plan.rates == last.rates:
                plan.rates = last.rates  # the same object: the same scalars
            last = plan
        self.groups, self.lock = groups, lock
        self.num_threads, self.increment_version = num_threads, increment_version
        self.num_modes = num_modes

    def step(self, groups not None, state not None):
        """Step all groups, without a moment at which signal handlers of Python run; or return
        False, with nothing changed, where one is no longer as planned."""
        cdef PreparedStep prepared
        cdef GroupPlan plan
        cdef list params
        cdef bint collects
        self.lock.begin("step")
        # Objects that are made here, such as those of gradients, would let Python collect garbage,
        # whose finalizers may free the memory of a tensor that has been described.
        collects = PyGC_Disable()
        try:
            if type(groups) is not list or not self.prepare(groups, state):
                return False
            self.has_stepped = True
            params = []  # before anything changes: memory could be refused
            for prepared in self.steps:
                if not prepared.exchange.has_versions:
                    prepared.add_objects(params, 0)
            if self.calls_code:
                for prepared in self.steps:
                    prepared.require_same_memory()
            if collects:
                PyGC_Enable()
                collects = False
            for prepared in self.steps:
                prepared.run()
                prepared.increment_versions()
            if params:
                call_with(self.increment_version, <PyObject *>params, NULL)
            return True
        finally:
            if collects:
                PyGC_Enable()
            for prepared in self.steps:
                prepared.clear()
            for plan in self.groups:
                plan.forget()
            self.lock.end()

    def updated(self):
        """For each group, whether the last step updated any of it; None before the first one."""
        cdef GroupPlan plan
        cdef list found = []
        for plan in self.groups:
            found.append(plan.num_updated > 0)
        return found if self.has_stepped else None

    cdef bint prepare(self, list groups, state) except -1:
        """Whether all can be stepped like this; nothing is changed yet."""
        cdef Py_ssize_t i
        cdef GroupPlan plan
        cdef PreparedStep prepared
        if len(groups) != len(self.groups):
            return False
        self.calls_code = type(state) is not dict and type(state) is not defaultdict_type
        self.calls_code |= <bint>call_with(self.num_modes, NULL, NULL)
        for prepared in self.steps:
            prepared.num_params = 0
        for i, group in enumerate(groups):
            plan = <GroupPlan>self.groups[i]
            if not plan.read(group):
                return False
            self.calls_code |= not plan.has_numbers
            plan.prepared.num_params += len(plan.params)
        for prepared in self.steps:
            prepared.begin(prepared.num_params)
        if not self.add_groups(state):
            return False
        for prepared in self.steps:
            if prepared.has_overlaps() or prepared.lacks_versions():
                return False
            if prepared.memory.has_moved:
                self.has_own_counts = False  # and stays so where an error ends this step
            finish_scalars(&prepared.space, 1.0, prepared.factor, prepared.stochastic)
            prepared.threads = 1
            if prepared.pays_threads():
                self.calls_code = True  # where signal handlers may run
                prepared.threads = check_num_threads(self.num_threads())
        if not self.has_own_counts:
            self.has_own_counts = len(self.steps) == 1 or not share_counts(self.steps, [])
        return self.has_own_counts

    cdef bint add_groups(self, state) except -1:
        cdef Py_ssize_t begin, number = 0, first = 0  # parameter of the group in the optimizer
        cdef StateCursor cursor = StateCursor(0, 0, False)
        cdef GroupPlan plan
        cdef list params
        cdef tuple hyper, before = None
        for plan in self.groups:
            params, hyper = plan.params, plan.hyper
            begin = plan.prepared.space.num_active
            if not plan.prepared.add(params, state, &cursor, first, None):
                return False
            first += len(params)
            if plan.prepared.unsupported:
                return False
            number += before is None or not same_objects(before, hyper)
            plan.prepared.derive_scalars(begin, number, hyper)
            plan.num_updated = plan.prepared.space.num_active - begin
            before = hyper
        self.calls_code |= cursor.calls_code
        return True


def share_counts(list steps not None, list others not None):
    """Whether two of these ``PreparedStep``s update one parameter, or count their steps in the same
    memory; or one of them updates or counts in one of the tensors ``others``."""
    cdef PreparedStep prepared
    cdef IntervalSet marks
    cdef Py_ssize_t k, total = len(others)
    cdef const StepCounter *counter
    cdef PyObject **found
    require_instances("steps", steps, PreparedStep)
    for prepared in steps:
        total += 3 * prepared.space.num_active
    reserve(&marks, total)
    try:
        for prepared in steps:
            for k in range(prepared.space.num_active):
                counter = &prepared.counters[k]
                include_interval(&marks, interval_at(
                    counter.address, fused_adamw_element_types[counter.element_type].size
                ))
                # The objects, too: each step may have made a count for a new parameter.
                found = &prepared.references[k * (OWN + prepared.num_roles)]
                include_interval(&marks, interval_at(found[0], 1))
                include_interval(&marks, interval_at(found[2], 1))
        for tensor in others:
            include_interval(&marks, interval_at(<PyObject *>tensor, 1))
        return sort_and_find_overlap(&marks)
    finally:
        PyMem_Free(marks.intervals)


cdef bint same_objects(tuple a, tuple b) except -1:
    """Whether two tuples of one length hold the same objects."""
    for i in range(len(a)):
        if a[i] is not b[i]:
            return False
    return True


cdef bint has_numbers(tuple hyper) except -1:
    """Whether all that is not from the plan are floats and ints of Python."""
    betas = hyper[1]
    if type(betas) is not tuple or len(<tuple>betas) != 2:
        return False
    return (
        is_number(hyper[0]) and is_number((<tuple>betas)[0]) and is_number((<tuple>betas)[1])
        and is_number(hyper[2]) and is_number(hyper[3])
    )


cdef inline bint is_number(x) noexcept:
    return type(x) is float or type(x) is int
