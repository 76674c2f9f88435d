"""Deferral of Python's signal handlers.

Python runs them in the main thread, between any two of its instructions; one that raises, as that
of Ctrl-C does, leaves what it interrupts half done."""

import threading

from _signal import NSIG, getsignal, raise_signal, signal

cdef tuple SIGNALS = tuple(range(1, NSIG))


@cython.final
cdef class DeferredSignals:
    """A block in which no signal handler of Python runs; at its end those run whose signals have
    arrived, once each, and what they raise is raised.

    Nested blocks defer to the end of the outermost. In threads other than the main thread, where no
    handler runs, nothing changes; nor do signals that are ignored, or handled outside of Python.

    This is compiled because Python code could be interrupted between replacing one handler and the
    next."""

    cdef list replaced  # (signal, handler)
    cdef dict arrived   # by signal, the frame that it interrupted

    def __cinit__(self):
        self.replaced, self.arrived = [], {}

    def __call__(self, number, frame):  # as a signal handler
        self.arrived.setdefault(number, frame)

    def __enter__(self):
        try:
            for number, handler in zip(SIGNALS, map(getsignal, SIGNALS)):
                if callable(handler) and not isinstance(handler, DeferredSignals):
                    signal(number, self)
                    self.replaced.append((number, handler))
        except BaseException:
            if threading.current_thread() is threading.main_thread():
                self.end()
                raise  # what a handler has raised that was still in its place
            # else a ValueError: handlers are replaced, and run, in the main thread only
        return self

    def __exit__(self, *exception):
        self.end()

    cdef int end(self) except -1:
        """Put the handlers back, then call those whose signals have arrived."""
        error = None
        while self.replaced:
            number, handler = self.replaced[len(self.replaced) - 1]
            try:
                if getsignal(number) is self:  # and not what the block has installed
                    signal(number, handler)
                self.replaced.pop()
            except BaseException as raised:  # by a handler that is back in its place already
                error = with_context(raised, error)
        arrived, self.arrived = self.arrived, {}
        for number, frame in arrived.items():
            try:
                handler = getsignal(number)
                if callable(handler):
                    handler(number, frame)
                else:
                    raise_signal(number)
            except BaseException as raised:
                error = with_context(raised, error)
        if error is not None:
            raise error
        return 0


cdef object with_context(raised, error):
    """An exception that was raised after another one."""
    if error is not None and error is not raised:
        raised.__context__ = error
    return raised
