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
    Python; a context manager."""

    cdef PyThread_type_lock lock
    cdef unsigned long owner  # 0: none
    cdef Py_ssize_t depth
    cdef Py_ssize_t forks

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
            self.owner, self.depth = 0, 0
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
