"""Steps of all groups of an optimizer for PyTorch, as long as their options stay the same."""

cdef frozenset READ_EACH_TIME = frozenset(("params", "lr", "betas", "eps", "weight_decay"))
cdef object ANY = object()  # for the values of these


@cython.no_gc
cdef class GroupPlan:
    """How a group is stepped whose options are those of ``group`` at this moment; ``hyper`` are
    read at each step."""

    cdef list options  # names and values, which the pointers are to
    cdef PyObject **pointers
    cdef Py_ssize_t num_options
    cdef PreparedStep prepared
    cdef tuple rates
    cdef bint maximize
    cdef Py_ssize_t num_updated

    def __cinit__(
        self, dict group not None, PreparedStep prepared not None, tuple rates not None
    ):
        cdef Py_ssize_t i
        self.options = []
        for name, value in group.items():
            self.options += [name, ANY if name in READ_EACH_TIME else value]
        self.num_options = len(group)
        self.pointers = <PyObject **>allocate(2 * self.num_options, sizeof(PyObject *))
        for i in range(2 * self.num_options):
            self.pointers[i] = <PyObject *>self.options[i]
        self.prepared, self.rates = prepared, rates
        self.maximize = group["maximize"]

    def __dealloc__(self):
        PyMem_Free(self.pointers)

    cdef bint has_changed(self, dict group) except -1:
        """Whether an option has been added, removed, or set to another object."""
        cdef Py_ssize_t i = 0, position = 0
        cdef PyObject *name
        cdef PyObject *value
        while PyDict_Next(group, &position, &name, &value):
            if i == self.num_options or name != self.pointers[2 * i] or (
                value != self.pointers[2 * i + 1] and self.pointers[2 * i + 1] != <PyObject *>ANY
            ):
                return True
            i += 1
        return i != self.num_options


@cython.no_gc
cdef class StepPlan:
    """All groups of an optimizer, in one list of tensors for successive groups that are stored in
    one way: the order matters where groups share memory. ``num_threads``: called where several
    threads pay; ``increment_version``: called with the parameters that have been stepped."""

    cdef list groups
    cdef list steps  # PreparedSteps
    cdef ReentrantLock lock
    cdef object num_threads, increment_version
    cdef bint has_stepped

    def __cinit__(
        self, list groups not None, ReentrantLock lock not None, *, num_threads, increment_version
    ):
        cdef GroupPlan plan, last = None
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
            last = plan
        self.groups, self.lock = groups, lock
        self.num_threads, self.increment_version = num_threads, increment_version

    def step(self, groups not None, state not None):
        """Step all groups, without a moment at which signal handlers of Python run; or return
        False, with nothing changed, where one is no longer as planned."""
        cdef PreparedStep prepared
        cdef list params
        self.lock.acquire()
        try:
            if type(groups) is not list or not self.prepare(groups, state):
                return False
            self.has_stepped = True
            params = []  # before anything changes: memory could be refused
            for prepared in self.steps:
                prepared.add_objects(params, 0)
            for prepared in self.steps:
                prepared.run()
            if params:
                call_with(self.increment_version, <PyObject *>params, NULL)
            return True
        finally:
            for prepared in self.steps:
                prepared.clear()
            self.lock.release()

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
        for prepared in self.steps:
            prepared.num_params = 0
        for i, group in enumerate(groups):
            plan = <GroupPlan>self.groups[i]
            if type(group) is not dict or plan.has_changed(group):
                return False
            if type(group["params"]) is not list:
                return False
            plan.prepared.num_params += len(<list>group["params"])
        for prepared in self.steps:
            prepared.begin(prepared.num_params)
        if not self.add_groups(groups, state):
            return False
        for prepared in self.steps:
            if prepared.has_overlaps():
                return False
            finish_scalars(&prepared.space, 1.0, prepared.factor, prepared.stochastic)
            prepared.threads = 1
            if prepared.pays_threads():
                prepared.threads = check_num_threads(self.num_threads())
        return True

    cdef bint add_groups(self, list groups, state) except -1:
        cdef Py_ssize_t i, begin, number = 0, first = 0  # parameter of the group in the optimizer
        cdef list params
        cdef StateCursor cursor = StateCursor(0, 0)
        cdef GroupPlan plan
        cdef tuple hyper = None, before
        for i, group in enumerate(groups):
            plan = <GroupPlan>self.groups[i]
            begin = plan.prepared.space.num_active
            if not isinstance(group["lr"], (float, int)):
                return False
            params = group["params"]
            if not plan.prepared.add(params, state, &cursor, first, None):
                return False
            first += len(params)
            if plan.prepared.unsupported:
                return False
            before = hyper
            hyper = (
                group["lr"], group["betas"], group["eps"], group["weight_decay"], plan.rates
            )
            number += before is None or not same_objects(before, hyper)
            plan.prepared.derive_scalars(begin, number, hyper)
            plan.num_updated = plan.prepared.space.num_active - begin
        return True


cdef bint same_objects(tuple a, tuple b) except -1:
    """Whether two tuples of one length hold the same objects."""
    for i in range(len(a)):
        if a[i] is not b[i]:
            return False
    return True
