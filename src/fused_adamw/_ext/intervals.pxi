"""Ranges of memory, and whether they overlap."""


cdef struct Interval:
    const char *begin
    const char *end


cdef inline Interval interval_at(const void *data, Py_ssize_t nbytes) noexcept:
    return Interval(<const char *>data, <const char *>data + nbytes)


cdef inline Interval interval_of(const ArrayView *view) noexcept:
    """The memory of an array without gaps."""
    return interval_at(view.data, view.nbytes)


cdef Interval extent_of(const ArrayView *view) noexcept:
    """From the first to the last byte, whatever the strides."""
    cdef const char *begin = view.data
    cdef const char *end = view.data
    cdef Py_ssize_t reach
    cdef int i
    if view.nbytes == 0:
        return Interval(begin, begin)
    for i in range(view.ndim):
        reach = (view.shape[i] - 1) * view.strides[i] * view.unit
        if reach < 0:
            begin += reach
        else:
            end += reach
    return Interval(begin, end + view.itemsize)


cdef inline bint overlaps(Interval a, Interval b) noexcept:
    """An empty interval overlaps none."""
    return a.begin < b.end and b.begin < a.end and a.begin < a.end and b.begin < b.end


cdef struct IntervalSet:
    # Ranges of memory that no two arrays may share.
    Interval *intervals  # with as much memory again, for sorting
    Py_ssize_t count
    Py_ssize_t near      # where the last search ended


cdef int reserve(IntervalSet *found, Py_ssize_t capacity) except -1:
    found.count = 0
    found.near = 0
    found.intervals = <Interval *>allocate(2 * capacity, sizeof(Interval))
    return 0


cdef inline void include_interval(IntervalSet *found, Interval interval) noexcept:
    if interval.begin < interval.end:
        found.intervals[found.count] = interval
        found.count += 1


cdef bint sort_and_find_overlap(IntervalSet *found) noexcept:
    """Order them by address, as ``overlaps_any`` needs; returns whether two of them overlap."""
    cdef Py_ssize_t k
    sort_intervals(found.intervals, found.intervals + found.count, found.count)
    for k in range(1, found.count):
        if found.intervals[k].begin < found.intervals[k - 1].end:
            return True
    return False


cdef Interval first_shared(const IntervalSet *found) noexcept:
    """What the first two of these that overlap, sorted by address, have in common."""
    cdef Py_ssize_t k
    for k in range(1, found.count):
        if found.intervals[k].begin < found.intervals[k - 1].end:
            return Interval(
                found.intervals[k].begin, min(found.intervals[k].end, found.intervals[k - 1].end)
            )
    return Interval(NULL, NULL)


cdef bint share_memory(IntervalSet *a, IntervalSet *b) noexcept:
    """Whether an interval of one overlaps one of the other; those of one may overlap. Sorts."""
    cdef Py_ssize_t i = 0, k = 0
    cdef const char *end_a = NULL
    cdef const char *end_b = NULL
    sort_intervals(a.intervals, a.intervals + a.count, a.count)
    sort_intervals(b.intervals, b.intervals + b.count, b.count)
    while i < a.count or k < b.count:
        if k == b.count or (i < a.count and a.intervals[i].begin <= b.intervals[k].begin):
            if a.intervals[i].begin < end_b:
                return True
            end_a = max(end_a, a.intervals[i].end)
            i += 1
        else:
            if b.intervals[k].begin < end_a:
                return True
            end_b = max(end_b, b.intervals[k].end)
            k += 1
    return False


cdef inline bint overlaps_any(IntervalSet *found, Interval interval) noexcept:
    """Whether an interval overlaps one of these, which are sorted and do not overlap. It is looked
    for where the last one was first: neighbors in memory often follow one another."""
    cdef const Interval *next = found.intervals + found.near  # that ends after interval.begin
    if found.near > 0 and (next - 1).end > interval.begin or (
        found.near < found.count and next[0].end <= interval.begin
    ):
        next = first_that_ends_after(found, interval.begin)
        found.near = next - found.intervals
    return next < found.intervals + found.count and overlaps(interval, next[0])


cdef const Interval *first_that_ends_after(const IntervalSet *found, const char *address) noexcept:
    cdef const Interval *first = found.intervals
    cdef size_t count = found.count, half
    while count > 0:
        half = count >> 1
        if first[half].end > address:
            count = half
        else:
            first += half + 1
            count -= half + 1
    return first


cdef void sort_intervals(Interval *intervals, Interval *scratch, Py_ssize_t count) noexcept:
    """Merge sort by begin, with as many elements in ``scratch``. libc's qsort, with a function call
    per comparison, would take a tenth of the step of a tiny model."""
    cdef Py_ssize_t width = 1, left, middle, right, end, i, k
    cdef Interval *source = intervals
    cdef Interval *target = scratch
    while width < count:
        left = 0
        while left < count:
            middle = min(left + width, count)
            end = min(left + 2 * width, count)
            i, right = left, middle
            for k in range(left, end):
                if i < middle and (right == end or source[i].begin <= source[right].begin):
                    target[k] = source[i]
                    i += 1
                else:
                    target[k] = source[right]
                    right += 1
            left = end
        source, target = target, source
        width *= 2
    if source != intervals:
        for k in range(count):
            intervals[k] = source[k]


cdef void *allocate(Py_ssize_t count, size_t size) except NULL:
    cdef void *memory = PyMem_Malloc(<size_t>count * size)  # 0 bytes are given an address, too
    if memory == NULL:
        raise MemoryError
    return memory
