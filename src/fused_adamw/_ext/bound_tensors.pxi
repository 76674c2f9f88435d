"""The arrays that steps write: checked once, and held."""

cdef tuple ROLE_NAMES = ("params", "m", "v", "v_max")
cdef dict DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}

cdef struct Slot:
    fused_adamw_tensor tensor
    long long steps   # that it has had
    Py_ssize_t group  # whose hyper-parameters it takes
    Py_ssize_t place  # among all tensors: of this optimizer, or of that which it has a part of
    bint decays       # whether weight decay applies to it
    char order        # of its elements in memory: b"C" or b"F"


@cython.no_gc
cdef class Held:
    """Parameters and their moments, all of one ``structure``; ``v_max`` is for AMSGrad.

    ``decays``: for each tensor, whether weight decay applies to it; None where it does to all.
    ``packed``: for each tensor, None or its ``Packed`` state (_optim/state_formats.py); then ``m``, ``v`` and
    ``v_max`` have None in its place. ``seed``: of stochastic rounding; None rounds to nearest."""

    cdef Structure structure
    cdef Py_ssize_t count        # of tensors
    cdef Py_ssize_t roles        # how many arrays of each a step writes: 3, or 4 with v_max
    cdef Slot *slots             # one a tensor
    cdef Py_buffer *views        # of the first tensor's params, m, v (and v_max), then the next's
    cdef Py_ssize_t held         # how many of them are borrowed
    cdef Interval *written       # the views that are not empty, by address
    cdef Py_ssize_t intervals    # how many of those there are
    cdef list packed             # the states that are packed, or None
    cdef bint stochastic

    def __cinit__(
        self, Structure structure not None, params, m, v, v_max=None, list decays=None,
        list packed=None, seed=None,
    ):
        cdef tuple all_params = structure.flatten("params", params)
        cdef tuple all_m = structure.flatten("m", m)
        cdef tuple all_v = structure.flatten("v", v)
        cdef tuple all_v_max = None if v_max is None else structure.flatten("v_max", v_max)
        cdef Py_ssize_t i, count = len(all_params)
        self.structure = structure
        self.packed = packed
        self.roles = 3 if v_max is None else 4
        self.slots = <Slot *>allocate(count, sizeof(Slot))
        self.views = <Py_buffer *>allocate(self.roles * count, sizeof(Py_buffer))
        self.written = <Interval *>allocate(2 * self.roles * count, sizeof(Interval))
        for i in range(count):
            self.count += 1
            memset(&self.slots[i], 0, sizeof(Slot))
            self.slots[i].place = i
            self.slots[i].decays = True
            self.hold_params(i, all_params[i])
            if packed is not None and packed[i] is not None:
                self.hold_packed(i, packed[i])
            else:
                self.refuse_16_bits(i)
                self.slots[i].tensor.m = self.hold_moment(i, all_m[i])
                self.slots[i].tensor.v = self.hold_moment(i, all_v[i])
                if v_max is not None:
                    self.slots[i].tensor.v_max = self.hold_moment(i, all_v_max[i])
        self.set_seed(seed)
        if structure.grouped:
            self.set_groups(structure.group_indices())
        if decays is not None:
            self.set_decays(decays)
        self.refuse_overlaps()

    cdef int set_keys(self, uint32_t seed) except -1:
        cdef Py_ssize_t i
        for i in range(self.count):
            self.slots[i].tensor.key = key_of(seed, self.slots[i].place)
        return 0

    def set_places(self, list places, list firsts, seed):
        """Where these tensors are parts of others: their places among those, and the index in those
        of their first element, a multiple of the block's size."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.slots[i].place = places[i]
            self.slots[i].tensor.first = firsts[i]
        self.set_seed(seed)

    def set_seed(self, seed):
        self.set_keys(seed_of(seed))
        self.stochastic = seed is not None

    cdef int set_groups(self, list groups) except -1:
        cdef Py_ssize_t i
        for i in range(self.count):
            self.slots[i].group = groups[i]
        return 0

    cdef int set_decays(self, list decays) except -1:
        cdef Py_ssize_t i
        if len(decays) != self.count:
            raise ValueError(f"decays has {len(decays)} items; expected {self.count}")
        for i in range(self.count):
            self.slots[i].decays = bool(decays[i])
        return 0

    def __dealloc__(self):
        cdef Py_ssize_t k
        for k in range(self.held):
            PyBuffer_Release(&self.views[k])
        PyMem_Free(self.written)
        PyMem_Free(self.views)
        PyMem_Free(self.slots)

    # ---- what is written

    cdef int hold_params(self, Py_ssize_t i, array) except -1:
        cdef Py_buffer *view = &self.views[self.held]
        self.slots[i].tensor.dtype = acquire(view, self, "params", i, array)
        self.held += 1
        self.slots[i].tensor.state_dtype = self.slots[i].tensor.dtype
        self.slots[i].tensor.params = view.buf
        self.slots[i].tensor.size = view.len // view.itemsize
        self.slots[i].order = order_of(view)
        if view.readonly or self.slots[i].order == 0:
            self.refuse_layout("params", i, view)
        return 0

    cdef void *hold_moment(self, Py_ssize_t i, array) except? NULL:
        cdef Py_buffer *view = &self.views[self.held]
        cdef Py_buffer *params = &self.views[self.roles * i]
        cdef str argument = ROLE_NAMES[self.held % self.roles]
        acquire(view, self, argument, i, array)
        self.held += 1
        if not same_layout(view, params):
            self.require_like_params(argument, i, view)
            if not PyBuffer_IsContiguous(view, self.slots[i].order):
                self.refuse_layout(argument, i, view)
        if view.readonly:
            self.refuse_layout(argument, i, view)
        return view.buf

    cdef int hold_packed(self, Py_ssize_t i, packed) except -1:
        """Point to the arrays of a packed state, which are ours: they are not checked."""
        cdef fused_adamw_tensor *tensor = &self.slots[i].tensor
        tensor.state_dtype = DTYPES_BY_NAME[packed.state_dtype]
        tensor.m = address_of(packed.m)
        tensor.v = address_of(packed.v)
        tensor.v_max = address_of(packed.v_max)
        tensor.m_scale = <float *>address_of(packed.m_scale)
        tensor.v_scale = <uint32_t *>address_of(packed.v_scale)
        tensor.master = <float *>address_of(packed.master)
        while self.held % self.roles:  # nothing to borrow in these places, nor to return
            memset(&self.views[self.held], 0, sizeof(Py_buffer))
            self.held += 1
        return 0

    cdef int refuse_16_bits(self, Py_ssize_t i) except -1:
        cdef int dtype = self.slots[i].tensor.dtype
        if dtype == FUSED_ADAMW_BFLOAT16 or dtype == FUSED_ADAMW_FLOAT16:
            raise TypeError(
                f"{self.name('params', i)} has dtype {DTYPE_NAMES[dtype]}; expected "
                f"{self.dtypes_taken()}"
            )
        return 0

    cdef str dtypes_taken(self):
        if self.packed is None:
            return "float32 or float64"
        return "float32, float64, float16 or bfloat16"

    cdef int require_like_params(self, str argument, Py_ssize_t i, const Py_buffer *view) except -1:
        cdef Py_buffer *params = &self.views[self.roles * i]
        if dtype_of(view) != self.slots[i].tensor.dtype:
            raise TypeError(
                f"{self.name(argument, i)} has dtype {DTYPE_NAMES[dtype_of(view)]}; expected "
                f"{DTYPE_NAMES[self.slots[i].tensor.dtype]}, the dtype of {self.name('params', i)}"
            )
        if shape_of(view) != shape_of(params):
            raise ValueError(
                f"{self.name(argument, i)} has shape {shape_of(view)}; expected "
                f"{shape_of(params)}, the shape of {self.name('params', i)}"
            )
        return 0

    cdef int refuse_layout(self, str argument, Py_ssize_t i, const Py_buffer *view) except -1:
        name = self.name(argument, i)
        if view.readonly:
            raise ValueError(f"{name} is read-only; it is updated in place and must be writable")
        if order_of(view) == 0:
            raise ValueError(
                f"{name} is not dense (shape {shape_of(view)}, strides {strides_of(view)} bytes); "
                "expected an array in C or Fortran order, without gaps"
            )
        raise ValueError(
            f"{name} is in {ORDER_NAMES[order_of(view)]} order; expected "
            f"{ORDER_NAMES[self.slots[i].order]} order, that of {self.name('params', i)}"
        )

    cdef int refuse_overlaps(self) except -1:
        cdef Py_ssize_t k
        for k in range(self.held):
            if self.views[k].len > 0:
                self.written[self.intervals] = interval_of(&self.views[k])
                self.intervals += 1
        sort_intervals(self.written, self.written + self.intervals, self.intervals)
        for k in range(1, self.intervals):
            if self.written[k].begin < self.written[k - 1].end:
                self.report_overlap()
        return 0

    cdef int report_overlap(self) except -1:
        cdef Py_ssize_t a, b
        for b in range(self.held):
            for a in range(b):
                if overlap(interval_of(&self.views[a]), interval_of(&self.views[b])):
                    raise ValueError(
                        f"{self.view_name(a)} and {self.view_name(b)} share memory; every array "
                        "that is updated needs memory of its own"
                    )
        return 0

    # ---- gradients

    cdef int accept_gradient(self, Py_ssize_t i, Py_buffer *view, array) except -1:
        """Check a gradient; one in another memory order is replaced by a copy in the right one."""
        if not same_layout(view, &self.views[self.roles * i]):
            self.require_like_params("grads", i, view)
            if not PyBuffer_IsContiguous(view, self.slots[i].order):
                array = np.array(array, order=chr(self.slots[i].order), copy=True)
                PyBuffer_Release(view)
                acquire(view, self, "grads", i, array)
                self.require_like_params("grads", i, view)
        if overlaps_any(interval_of(view), self.written, self.intervals):
            self.report_gradient_overlap(i, view)
        return 0

    cdef int report_gradient_overlap(self, Py_ssize_t i, const Py_buffer *view) except -1:
        cdef Py_ssize_t k
        for k in range(self.held):
            if overlap(interval_of(view), interval_of(&self.views[k])):
                raise ValueError(
                    f"{self.name('grads', i)} and {self.view_name(k)} share memory; a gradient "
                    "is read while the other is written"
                )
        return 0

    # ---- names for messages

    cdef name(self, str argument, Py_ssize_t i):
        return self.structure.name(argument, i)

    cdef view_name(self, Py_ssize_t k):
        return self.name(ROLE_NAMES[k % self.roles], k // self.roles)


cdef void *address_of(array) except? NULL:
    """Of an array's memory; NULL for None."""
    return NULL if array is None else <void *><size_t>array.ctypes.data
