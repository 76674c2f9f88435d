"""The lock that lets one thread at a time use an optimizer."""

cdef extern from "pythread.h":
    ctypedef enum PyLockStatus:
        PY_LOCK_ACQUIRED

    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock, long long microseconds, int
    ) noexcept nogil


cdef enum:
    NO_WAIT = 0
    SIGNALS_AFTER = 100_000  # microseconds that a waiting thread leaves signals unhandled


cdef list SURVIVORS = []  # of each fork that led to this process, the only thread that is left
cdef Py_ssize_t FORKS = 0  # their number


def _after_fork():
    global FORKS
    SURVIVORS.append(PyThread_get_thread_ident())
    FORKS += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cython.final
@cython.no_gc
cdef class ReentrantLock:
    """A reentrant lock, like ``threading.RLock``, that compiled code can acquire without calling
    Python; a context manager.

    It also knows which operation of an optimizer the thread is in. An operation may run code of the
    user: a schedule, a method of an argument, a finalizer. That code must not change the optimizer
    that the operation has read."""

    cdef PyThread_type_lock lock
    cdef unsigned long owner  # 0: none
    cdef Py_ssize_t depth
    cdef Py_ssize_t forks
    cdef str operation  # None: none

    def __cinit__(self):
        self.renew()

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *exception):
        if self.depth < 1 or self.owner != PyThread_get_thread_ident():
            raise RuntimeError(
                "exclusive() must be left by the thread that entered it; got another thread"
            )
        self.release()

    def during(self, str operation not None, *, bint changes=True):
        """A block in which the thread is in an operation, of this name. ``changes``: it changes the
        optimizer; to enter the block within another operation is a RuntimeError."""
        cdef OperationBlock block = OperationBlock.__new__(OperationBlock)
        block.lock, block.operation, block.changes = self, operation, changes
        return block

    def require_between(self, str operation not None):
        """Raise RuntimeError in an operation, during which this one must not be called."""
        self.begin(operation)
        self.end()

    cdef int begin(self, str operation) except -1:
        """Acquire, and begin an operation that changes the optimizer."""
        self.acquire()
        running = self.operation
        if running is not None:
            self.release()
            raise RuntimeError(
                f"{operation} must be called between other operations of the optimizer; got a "
                f"call during {running}"
            )
        self.operation = operation
        return 0

    cdef void end(self) noexcept:
        self.operation = None
        self.release()

    cdef int acquire(self) except -1:
        cdef unsigned long thread = PyThread_get_thread_ident()
        if self.forks != FORKS:
            self.renew()
        if self.owner != thread:
            if not PyThread_acquire_lock(self.lock, NO_WAIT):
                self.wait()
            self.owner = thread
        self.depth += 1
        return 0

    cdef int renew(self) except -1:
        """Replace the lock, which a thread that is not in this process may have acquired. The old
        one is not freed: the system may count waiting threads that are not there either."""
        cdef PyThread_type_lock lock = PyThread_allocate_lock()
        if lock == NULL:
            raise MemoryError
        if self.owner and self.has_survived():
            PyThread_acquire_lock(lock, NO_WAIT)
        else:
            self.owner, self.depth, self.operation = 0, 0, None
        self.lock, self.forks = lock, FORKS
        return 0

    cdef bint has_survived(self) except -1:
        """Whether the owner is in this process. Of a thread that is not, a new one may have the
        number."""
        for k in range(self.forks, FORKS):
            if SURVIVORS[k] != self.owner:
                return False
        return True

    cdef int wait(self) except -1:
        cdef bint acquired = False
        while not acquired:
            PyErr_CheckSignals()
            with nogil:
                acquired = (
                    PyThread_acquire_lock_timed(self.lock, SIGNALS_AFTER, 1) == PY_LOCK_ACQUIRED
                )
        return 0

    cdef void release(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            self.owner = 0
            PyThread_release_lock(self.lock)


@cython.final
@cython.no_gc
cdef class OperationBlock:
    """What ``ReentrantLock.during`` returns, to be entered once."""

    cdef ReentrantLock lock
    cdef str operation
    cdef str around  # the operation that this one is within
    cdef bint changes

    def __enter__(self):
        if self.changes:
            self.lock.begin(self.operation)
            return self
        self.lock.acquire()
        self.around, self.lock.operation = self.lock.operation, self.operation
        return self

    def __exit__(self, *exception):
        self.lock.operation = self.around
        self.lock.release()
