"""The memory that a step of PyTorch's tensors updates: whether any of it is also another tensor's.
What the last step has found is used where no memory has moved since."""


cdef struct StepMemory:
    IntervalSet written      # sorted
    Py_ssize_t num_tensors   # that these are of; -1 for none
    bint overlapping         # whether any is there twice
    bint moved               # whether tensors have other memory than these, or may have
    bint grads_moved         # whether gradients have other memory than those known to be apart
    bint has_moved           # whether the last step had other memory than the one before it


cdef int reserve_memory(StepMemory *memory, Py_ssize_t capacity) except -1:
    """For so many intervals."""
    memory.num_tensors = -1
    return reserve(&memory.written, capacity)


cdef inline void note_changes(
    StepMemory *memory, const fused_adamw_tensor *tensor, const StepCounter *counter,
    fused_adamw_tensor *tensor_before, const StepCounter *counter_before,
) noexcept:
    """A tensor takes the place of the one before, which is given its gradient."""
    if (
        tensor.grads != tensor_before.grads
        or tensor.has_wide_grads != tensor_before.has_wide_grads
    ):
        memory.grads_moved = True
    tensor_before.grads, tensor_before.has_wide_grads = tensor.grads, tensor.has_wide_grads
    if (
        not same_memory(tensor, tensor_before) or counter.address != counter_before.address
        or counter.element_type != counter_before.element_type
    ):
        memory.moved = True


cdef bint has_overlaps(
    StepMemory *memory, fused_adamw_tensor *tensors, const StepCounter *counters, Py_ssize_t count
) noexcept:
    """Whether memory that is updated is also another tensor's."""
    cdef Py_ssize_t k
    memory.has_moved = memory.moved or memory.num_tensors != count
    if memory.has_moved:
        find_written(memory, tensors, counters, count)
    if memory.overlapping:
        return True
    if not (memory.has_moved or memory.grads_moved):
        return False
    memory.grads_moved = True
    for k in range(count):
        if overlaps_any(&memory.written, memory_of_grads(&tensors[k])):
            return True
    memory.grads_moved = False
    return False


cdef void find_written(
    StepMemory *memory, fused_adamw_tensor *tensors, const StepCounter *counters, Py_ssize_t count
) noexcept:
    cdef IntervalSet *written = &memory.written
    cdef Py_ssize_t k
    cdef int role
    written.count = written.near = 0
    for k in range(count):
        for role in range(<int>ROLES):
            data = role_pointer(&tensors[k], role)[0]
            if data != NULL:
                include_interval(written, interval_at(data, storage_nbytes(&tensors[k], role)))
        include_interval(written, interval_at(
            counters[k].address, fused_adamw_element_types[counters[k].element_type].size
        ))
    memory.overlapping = sort_and_find_overlap(written)
    memory.num_tensors, memory.moved = count, False


cdef Interval memory_of_grads(const fused_adamw_tensor *tensor) noexcept:
    cdef int element_type = tensor.element_type
    if tensor.has_wide_grads:
        element_type = fused_adamw_element_types[element_type].compute
    return interval_at(tensor.grads, tensor.size * fused_adamw_element_types[element_type].size)
