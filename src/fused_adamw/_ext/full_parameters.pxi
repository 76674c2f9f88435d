"""What is checked of a step that several processes take, each on a part of the tensors."""


@cython.no_gc
cdef class WholeTensors(Tensors):
    """Parameters as a whole, without moments: those are kept in parts elsewhere."""

    cdef str dtypes_taken(self):
        return "float32 or float64"

    def check_step(
        self, grads, list hypers, grad_scale, max_grad_norm, num_threads, bint overwritten
    ):
        """Raise what a step would raise, with nothing copied or changed; return the gradients in
        the order of the tensors. ``overwritten``: they are to be written, too."""
        self.structure.require_group_each(hypers)
        cdef tuple all_grads = self.structure.flatten("grads", grads)
        cdef double scale = finite("grad_scale", grad_scale)
        cdef Interval *extents = <Interval *>allocate(2 * self.count, sizeof(Interval))
        cdef Py_ssize_t i, found = 0
        resolve_threads(num_threads)
        positive_or_none("max_grad_norm", max_grad_norm)
        try:
            for i in range(self.count):
                if all_grads[i] is None:
                    continue
                extents[found] = self.extent_of_gradient(i, all_grads[i], overwritten)
                found += extents[found].begin < extents[found].end
                self.check_numbers(i, hypers, scale)
            if overwritten:
                sort_intervals(extents, extents + self.count, found)
                for i in range(1, found):
                    if extents[i].begin < extents[i - 1].end:
                        raise ValueError(
                            "two of grads lie within one another; with max_grad_norm or "
                            "skip_nonfinite they are written, and each needs memory of its own"
                        )
        finally:
            PyMem_Free(extents)
        return all_grads

    cdef int check_numbers(self, Py_ssize_t i, list hypers, double scale) except -1:
        cdef Derived derived
        cdef Slot *slot = &self.slots[i]
        cdef int dtype = computed_in(slot.tensor.dtype)
        derive(&derived, slot.group, slot.decays, dtype, slot.steps + 1, hypers[slot.group])
        rounded_finite(dtype, scale, "grad_scale", scale)
        return 0

    cdef Interval extent_of_gradient(self, Py_ssize_t i, array, bint overwritten) except *:
        """Where the gradient of tensor i lies, once it has been found to fit."""
        cdef Py_buffer view
        acquire(&view, self, "grads", i, array)
        try:
            self.require_like_params("grads", i, &view)
            if overwritten and view.readonly:
                raise ValueError(
                    f"{self.name('grads', i)} is read-only; with max_grad_norm or skip_nonfinite "
                    "it is written, too"
                )
            extent = extent_of(&view)
            if overlaps_any(extent, self.written, self.intervals):
                raise ValueError(
                    f"{self.name('grads', i)} and one of params share memory; a gradient is read "
                    "while parameters are written"
                )
        finally:
            PyBuffer_Release(&view)
        return extent


cdef Interval extent_of(const Py_buffer *view) noexcept:
    """From the first to the last byte, whatever the strides."""
    cdef const char *begin = <const char *>view.buf
    cdef const char *end = begin
    cdef int i
    if view.len == 0:
        return Interval(begin, begin)
    for i in range(view.ndim):
        if view.strides[i] < 0:
            begin += (view.shape[i] - 1) * view.strides[i]
        else:
            end += (view.shape[i] - 1) * view.strides[i]
    return Interval(begin, end + view.itemsize)
