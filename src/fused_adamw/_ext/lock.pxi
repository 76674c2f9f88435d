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


cdef long long FORKS = 0  # that this process has come out of


def _after_fork():
    global FORKS
    FORKS += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cython.final
@cython.no_gc
cdef class ReentrantLock:
    """A reentrant lock, as ``threading.RLock``, that compiled code acquires without a call of
    Python. A context manager."""

    cdef PyThread_type_lock lock
    cdef unsigned long owner  # 0: none
    cdef Py_ssize_t depth
    cdef long long forks

    def __cinit__(self):
        self.renew()

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *exception):
        self.release()

    cdef int acquire(self) except -1:
        cdef unsigned long thread = PyThread_get_thread_ident()
        if self.forks != FORKS and self.owner != thread:  # other threads are not in the child
            self.renew()
        if self.owner != thread:
            if not PyThread_acquire_lock(self.lock, NO_WAIT):
                self.wait()
            self.owner = thread
        self.depth += 1
        return 0

    cdef int renew(self) except -1:
        """Leave a lock that a thread of the parent may have had for ever."""
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError
        self.owner, self.depth, self.forks = 0, 0, FORKS
        return 0

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
