"""Tensors that lend their memory for one step, by DLPack: those of PyTorch.

Nothing is held between steps: what is stepped is the state that the optimizer has at that moment,
even if it was loaded, moved or replaced. Tensors that the kernels do not serve are told apart and
left alone; their own library can step them.

The structures are those of version 1 of https://github.com/dmlc/dlpack (its exchange API)."""

cdef enum:
    DLPACK_MAJOR = 1
    DLPACK_CPU = 1
    DLPACK_INT = 0
    DLPACK_UINT = 1
    DLPACK_FLOAT = 2
    DLPACK_BFLOAT = 4

cdef double MOST_STEPS = 2.0**53  # that a double counts


cdef struct DLTensor:
    char *data
    int device
    int device_index
    int ndim
    unsigned char code        # of the dtype, beside its bits and lanes
    unsigned char bits
    unsigned short lanes
    const long long *shape
    const long long *strides  # in elements
    unsigned long long byte_offset


cdef struct DLPackExchange:
    unsigned int major
    unsigned int minor
    void *older
    void *allocator
    void *managed_from_object
    void *managed_to_object
    int (*tensor_from_object)(PyObject *, DLTensor *) noexcept  # valid as long as the object is
    void *current_stream


cdef struct Counter:
    void *address  # of the one number
    int dtype      # of it
    long long t    # the step to be taken


@cython.no_gc
cdef class Lender:
    """The types whose objects lend memory as the first of them does: ``torch.Tensor``, for one. An
    object of another type is not served, even of one derived from these: its memory may have
    another meaning."""

    cdef const DLPackExchange *exchange
    cdef tuple types

    def __cinit__(self, *types):
        capsule = getattr(types[0], "__dlpack_c_exchange_api__", None)
        if capsule is None:
            raise TypeError(f"{types[0].__name__} has no exchange API of DLPack")
        self.exchange = <const DLPackExchange *>PyCapsule_GetPointer(
            capsule, b"dlpack_exchange_api"
        )
        if self.exchange.major != DLPACK_MAJOR or self.exchange.tensor_from_object == NULL:
            raise TypeError(
                f"{types[0].__name__} has the exchange API of DLPack {self.exchange.major}; "
                f"expected that of {DLPACK_MAJOR}"
            )
        self.types = types

    cdef bint lend(self, tensor, DLTensor *lent) except -1:
        """Whether the tensor has memory here, described in ``lent`` then."""
        if type(tensor) not in self.types:
            return False
        if self.exchange.tensor_from_object(<PyObject *>tensor, lent) != 0:
            if not PyErr_ExceptionMatches((RuntimeError, TypeError, ValueError, BufferError)):
                return -1
            PyErr_Clear()
            return False
        if lent.data == NULL:
            return dense_size(lent) == 0
        lent.data += lent.byte_offset
        return lent.device == DLPACK_CPU

    cdef bint lend_alike(
        self, tensor, const DLTensor *like, int code, int bits, void **data
    ) except -1:
        """Whether the tensor has this dtype, and shape and strides of another one; its ``data``
        then."""
        cdef DLTensor lent
        if not (self.lend(tensor, &lent) and has_dtype(&lent, code, bits) and alike(&lent, like)):
            return False
        data[0] = lent.data
        return True

    cdef bint lend_scales(
        self, tensor, int code, Py_ssize_t blocks, void **data
    ) except -1:
        """Whether the tensor has one dense number of 32 bits a block; its ``data`` then."""
        cdef DLTensor lent
        if not (
            self.lend(tensor, &lent) and has_dtype(&lent, code, 32) and dense_size(&lent) == blocks
        ):
            return False
        data[0] = lent.data
        return True

    cdef bint lend_counter(self, tensor, Counter *counter) except -1:
        """Whether the tensor is one number that counts steps."""
        cdef DLTensor lent
        if not self.lend(tensor, &lent) or dense_size(&lent) != 1:
            return False
        cdef int dtype = dtype_lent(&lent)
        if dtype != FUSED_ADAMW_FLOAT32 and dtype != FUSED_ADAMW_FLOAT64:
            return False
        cdef double steps = (
            (<float *>lent.data)[0] if dtype == FUSED_ADAMW_FLOAT32 else (<double *>lent.data)[0]
        )
        if not 0 <= steps < MOST_STEPS or steps != floor(steps):
            return False
        counter.address, counter.dtype, counter.t = lent.data, dtype, <long long>steps + 1
        return True


@cython.no_gc
cdef class Loan:
    """What the tensors of one group lend for one step, checked, and the numbers of that step.

    Lists of one length; ``v_max`` is empty without AMSGrad; ``steps`` are tensors of one number,
    the steps so far. ``hyper``: lr, betas, eps, weight_decay. ``refused``: the indices of what is
    not served, which stays as it is. Of state in fewer bits also: ``state_dtype``; ``m_scale`` and
    ``v_scale``, of 8-bit state; ``places`` of the tensors among all of the optimizer; ``seed`` of
    stochastic rounding; ``scale`` of the gradients."""

    cdef list params, grads, m, v, v_max, steps
    cdef int state_dtype      # -1 for that of the parameters
    cdef list m_scale, v_scale, places
    cdef object seed
    cdef readonly list refused
    cdef int threads
    cdef const fused_adamw_isa *isa
    cdef Workspace space
    cdef Counter *counters    # of the tensors that are served
    cdef Interval *intervals  # of all that is written
    cdef Py_ssize_t held      # how many of those there are

    def __cinit__(
        self, Lender lender not None, list params not None, list grads not None, list m not None,
        list v not None, list v_max not None, list steps not None, hyper, bint maximize,
        num_threads, str state_dtype=None, list m_scale=None, list v_scale=None,
        list places=None, seed=None, double scale=1,
    ):
        cdef Py_ssize_t i, count = len(params)
        for tensors in (
            grads, m, v, steps,
            *[x for x in (v_max, m_scale, v_scale, places) if x],
        ):
            if len(tensors) != count:
                raise ValueError(f"a list has {len(tensors)} tensors; expected {count}")
        self.params, self.grads, self.m, self.v = params, grads, m, v
        self.v_max, self.steps = v_max, steps
        self.m_scale, self.v_scale, self.places, self.seed = m_scale, v_scale, places, seed
        self.state_dtype = -1 if state_dtype is None else DTYPES_BY_NAME[state_dtype]
        self.isa = find_isa(None)
        self.refused = []
        self.threads = resolve_threads(num_threads)
        prepare(&self.space, count)
        self.counters = <Counter *>allocate(count, sizeof(Counter))
        self.intervals = <Interval *>allocate(2 * 6 * count, sizeof(Interval))
        for i in range(count):
            if not self.take(lender, i):
                self.refused.append(i)
        if self.overlaps():
            self.refused = list(range(count))
            self.space.taken = 0
        self.set_numbers(hyper, scale, maximize)

    def __dealloc__(self):
        release(&self.space)
        PyMem_Free(self.counters)
        PyMem_Free(self.intervals)

    cdef bint take(self, Lender lender, Py_ssize_t i) except -1:
        """Borrow the tensors of one parameter, where the kernels serve them."""
        cdef fused_adamw_tensor *tensor = &self.space.tensors[self.space.taken]
        cdef DLTensor params
        if not lender.lend(self.params[i], &params):
            return False
        memset(tensor, 0, sizeof(fused_adamw_tensor))
        tensor.params = params.data
        tensor.size = dense_size(&params)
        tensor.dtype = dtype_lent(&params)
        tensor.state_dtype = tensor.dtype if self.state_dtype < 0 else self.state_dtype
        if not (
            tensor.size >= 0 and self.serves(tensor.dtype)
            and lender.lend_alike(
                self.grads[i], &params, params.code, params.bits, <void **>&tensor.grads
            )
            and self.take_moments(lender, i, tensor, &params)
            and lender.lend_counter(self.steps[i], &self.counters[self.space.taken])
        ):
            return False
        self.space.taken += 1
        return True

    cdef bint serves(self, int dtype):
        """Whether there is a kernel: beside plain state for the dtypes of kernels/low_precision.inc."""
        if self.state_dtype < 0:
            return dtype == FUSED_ADAMW_FLOAT32 or dtype == FUSED_ADAMW_FLOAT64
        return dtype >= 0 and dtype != FUSED_ADAMW_FLOAT64

    cdef bint take_moments(
        self, Lender lender, Py_ssize_t i, fused_adamw_tensor *tensor, const DLTensor *params
    ) except -1:
        cdef int code = params.code, bits = params.bits
        cdef Py_ssize_t blocks = blocks_of(tensor.size)
        if self.state_dtype == FUSED_ADAMW_8BIT:
            tensor.key = key_of(seed_of(self.seed), self.places[i])
            return (
                lender.lend_alike(self.m[i], params, DLPACK_INT, 8, &tensor.m)
                and lender.lend_alike(self.v[i], params, DLPACK_UINT, 8, &tensor.v)
                and lender.lend_scales(
                    self.m_scale[i], DLPACK_FLOAT, blocks, <void **>&tensor.m_scale
                )
                and lender.lend_scales(
                    self.v_scale[i], DLPACK_INT, blocks, <void **>&tensor.v_scale
                )
            )
        if self.state_dtype == FUSED_ADAMW_BFLOAT16:
            tensor.key = key_of(seed_of(self.seed), self.places[i])
            code, bits = DLPACK_BFLOAT, 16
        return (
            lender.lend_alike(self.m[i], params, code, bits, &tensor.m)
            and lender.lend_alike(self.v[i], params, code, bits, &tensor.v)
            and (
                not self.v_max
                or lender.lend_alike(self.v_max[i], params, code, bits, &tensor.v_max)
            )
        )

    cdef bint overlaps(self):
        """Whether memory that is written is also another tensor's."""
        cdef Py_ssize_t k
        cdef fused_adamw_tensor *tensor
        for k in range(self.space.taken):
            self.note_written(&self.space.tensors[k])
            self.note(self.counters[k].address, size_of_dtype(self.counters[k].dtype))
        sort_intervals(self.intervals, self.intervals + self.held, self.held)
        for k in range(1, self.held):
            if self.intervals[k].begin < self.intervals[k - 1].end:
                return True
        for k in range(self.space.taken):
            tensor = &self.space.tensors[k]
            if overlaps_any(
                memory_of(tensor.grads, tensor.size * size_of_dtype(tensor.dtype)),
                self.intervals, self.held,
            ):
                return True
        return False

    cdef int note_written(self, const fused_adamw_tensor *tensor) except -1:
        cdef Py_ssize_t of_state = tensor.size * size_of_dtype(tensor.state_dtype)
        self.note(tensor.params, tensor.size * size_of_dtype(tensor.dtype))
        self.note(tensor.m, of_state)
        self.note(tensor.v, of_state)
        if self.state_dtype == FUSED_ADAMW_8BIT:
            self.note(tensor.m_scale, 4 * blocks_of(tensor.size))
            self.note(tensor.v_scale, 4 * blocks_of(tensor.size))
        elif tensor.v_max != NULL:
            self.note(tensor.v_max, of_state)
        return 0

    cdef int note(self, const void *data, Py_ssize_t nbytes) except -1:
        if nbytes > 0:
            self.intervals[self.held] = memory_of(data, nbytes)
            self.held += 1
        return 0

    cdef int set_numbers(self, hyper, double scale, bint maximize) except -1:
        cdef Py_ssize_t k
        cdef fused_adamw_tensor *tensor
        for k in range(self.space.taken):
            tensor = &self.space.tensors[k]
            tensor.scalars = scalars_of(
                &self.space, 0, True, computed_in(tensor.dtype), self.counters[k].t, hyper
            )
        set_dither(&self.space, self.seed is not None)
        return set_scale(&self.space, scale, -1 if maximize else 1)

    def step(self):
        """Update in place all that is served, and its counters. To be called once."""
        cdef Py_ssize_t k, count = self.space.taken
        cdef fused_adamw_tensor *tensors = self.space.tensors
        cdef int threads = fused_adamw_threads_worth(tensors, count, self.threads)
        with nogil:
            fused_adamw_step(self.isa, tensors, count, threads)
        for k in range(count):
            write_counter(&self.counters[k])
        self.space.taken = 0


cdef int write_counter(const Counter *counter) except -1:
    if counter.dtype == FUSED_ADAMW_FLOAT32:
        (<float *>counter.address)[0] = counter.t
    else:
        (<double *>counter.address)[0] = counter.t
    return 0


cdef Interval memory_of(const void *data, Py_ssize_t nbytes) noexcept:
    return Interval(<const char *>data, <const char *>data + nbytes)


cdef Py_ssize_t size_of_dtype(int dtype) noexcept:
    """In bytes."""
    if dtype == FUSED_ADAMW_8BIT:
        return 1
    if dtype == FUSED_ADAMW_BFLOAT16 or dtype == FUSED_ADAMW_FLOAT16:
        return 2
    return 8 if dtype == FUSED_ADAMW_FLOAT64 else 4


cdef Py_ssize_t blocks_of(Py_ssize_t size) noexcept:
    return (size + FUSED_ADAMW_BLOCK - 1) // FUSED_ADAMW_BLOCK


cdef bint has_dtype(const DLTensor *lent, int code, int bits) noexcept:
    return lent.code == code and lent.bits == bits and lent.lanes == 1


cdef int dtype_lent(const DLTensor *lent) noexcept:
    """The dtype of its elements, or -1 for one that has no kernel."""
    if has_dtype(lent, DLPACK_FLOAT, 32):
        return FUSED_ADAMW_FLOAT32
    if has_dtype(lent, DLPACK_FLOAT, 64):
        return FUSED_ADAMW_FLOAT64
    if has_dtype(lent, DLPACK_BFLOAT, 16):
        return FUSED_ADAMW_BFLOAT16
    if has_dtype(lent, DLPACK_FLOAT, 16):
        return FUSED_ADAMW_FLOAT16
    return -1


cdef bint alike(const DLTensor *a, const DLTensor *b) noexcept:
    """Whether shape and strides are the same; a stride from one element has no meaning."""
    cdef int i
    if a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i] or (a.shape[i] > 1 and a.strides[i] != b.strides[i]):
            return False
    return True


cdef Py_ssize_t dense_size(const DLTensor *lent) noexcept:
    """The number of elements, or -1 where they leave gaps or share memory. Their order in memory
    may be any permutation of the dimensions: channels_last, for one."""
    cdef Py_ssize_t size = 1, within = 1
    cdef int i
    for i in range(lent.ndim):
        size *= lent.shape[i]
    while within < size:  # look for the dimension whose steps are as long as what lies within
        for i in range(lent.ndim):
            if lent.shape[i] > 1 and lent.strides[i] == within:
                within *= lent.shape[i]
                break
        else:
            return -1
    return size
