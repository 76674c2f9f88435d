"""Steps and norms of ranges of PyTorch's parameters: flat tensors in host memory."""


cdef int require_offsets(list offsets, Py_ssize_t count) except -1:
    if offsets is None or len(offsets) != count:
        found = None if offsets is None else len(offsets)
        raise ValueError(f"offsets must have {count} entries; got {found}")
    for offset in offsets:
        if offset < 0 or offset % FUSED_ADAMW_BLOCK != 0:
            raise ValueError(f"offsets must be multiples of {FUSED_ADAMW_BLOCK}; got {offset}")
    return 0


cdef bint is_flat(const ArrayView *view) noexcept:
    return view.ndim == 1 and (view.shape[0] <= 1 or view.strides[0] == 1)


cdef bint add_piece(
    DLPackExchange exchange, Workspace *space, pieces, Py_ssize_t i, int state_format
) except -1:
    """Whether the kernels support the tensors of a piece, which are added then."""
    cdef fused_adamw_tensor *tensor = &space.tensors[i]
    cdef ArrayView params, view
    cdef StorageType storage
    cdef int role
    memset(tensor, 0, sizeof(fused_adamw_tensor))
    if not exchange.view(pieces.params[i], &params) or not is_flat(&params):
        return False
    if params.element_type < 0 or not is_compatible(params.element_type, state_format):
        return False
    tensor.params = params.data
    tensor.size = params.shape[0]
    tensor.element_type, tensor.state_format = params.element_type, state_format
    storage = StorageType(params.dlpack_code, params.dlpack_bits)
    if not exchange.view_flat(pieces.grads[i], storage, tensor.size, &view):
        return False
    tensor.grads = view.data
    for name, tensors in (<dict?>pieces.state).items():
        role = state_role(name)
        storage = stored_type(tensor, role)
        if storage.bits == 0 or not exchange.view_flat(
            tensors[i], storage, storage_nbytes(tensor, role) // (storage.bits // 8), &view
        ):
            return False
        role_pointer(tensor, role)[0] = view.data
    return True


def step_pieces(
    DLPackExchange exchange not None, pieces, recipe, double clip=1.0, bint run=True
):
    """One update of ranges of parameters.

    Args:
        exchange: of the tensors.
        pieces: has lists of one length: ``params``, ``grads``, ``steps`` (the numbers of steps
            before), ``indices`` (of the parameters among all), ``offsets`` (where the ranges begin
            in them), ``firsts`` (where the parameters begin in those that they are parts of, or 0),
            and ``state``, a dict of lists by role.
        recipe: has ``kind.format``, ``hyper``, ``maximize``, ``seed``, ``grad_scale`` and
            ``num_threads``.
        clip: a factor of the gradients, which may be NaN.
        run: False only checks.

    Returns:
        Whether the kernels support all tensors. If not, nothing has changed."""
    cdef Py_ssize_t i, count = len(pieces.params)
    cdef int threads = check_num_threads(recipe.num_threads)
    cdef int state_format = format_index(recipe.kind.format)
    cdef const fused_adamw_isa *isa = find_isa()
    cdef uint32_t number = seed_of(recipe.seed)
    cdef Workspace space
    require_offsets(pieces.offsets, count)
    require_hyper(recipe.hyper)
    require_roles(FUSED_ADAMW_FLOAT32, state_format, roles_of_pieces(pieces.state))
    prepare(&space, count)
    try:
        for i in range(count):
            if not add_piece(exchange, &space, pieces, i, state_format):
                return False
            space.tensors[i].rng_key = fused_adamw_rng_key(number, pieces.indices[i])
            space.tensors[i].element_offset = (
                pieces.offsets[i] + rng_offset(state_format, pieces.firsts[i])
            )
            space.tensors[i].scalars = scalars_of(
                &space, 0, True,
                fused_adamw_element_types[space.tensors[i].element_type].compute,
                pieces.steps[i] + 1, recipe.hyper,
            )
        finish_scalars(
            &space, recipe.grad_scale, -clip if recipe.maximize else clip, recipe.seed is not None
        )
        if run:
            step_without_stalls(isa, space.tensors, count, threads)
    finally:
        release(&space)
    return True


cdef unsigned int roles_of_pieces(dict state) except? 0:
    """The roles of the state but master weights, which not all parameters have."""
    cdef unsigned int found = 0
    for name in state:
        found |= 1 << state_role(name)
    return found & ~(1 << MASTER)


def sums_of_squares(DLPackExchange exchange not None, list grads not None, num_threads=None):
    """Sums of squares of flat gradients in host memory, one per chunk of each, in float64."""
    cdef Py_ssize_t i, count = len(grads)
    cdef int threads = check_num_threads(num_threads)
    cdef const fused_adamw_isa *isa = find_isa()
    cdef Workspace space
    cdef ArrayView view
    prepare(&space, count)
    try:
        for i in range(count):
            if not exchange.view(grads[i], &view) or view.element_type < 0 or not is_flat(&view):
                raise TypeError(
                    f"grads[{i}] must be flat and on the CPU; got {type(grads[i]).__name__}"
                )
            memset(&space.tensors[i], 0, sizeof(fused_adamw_tensor))
            space.tensors[i].grads = view.data
            space.tensors[i].size = view.shape[0]
            space.tensors[i].element_type = view.element_type
        space.num_active = count
        sums = np.empty(fused_adamw_num_chunks(space.tensors, count))
        threads = fused_adamw_useful_threads(space.tensors, count, threads)
        sum_squares(isa, &space, threads, True, <double *><size_t>sums.ctypes.data)
    finally:
        release(&space)
    return sums
