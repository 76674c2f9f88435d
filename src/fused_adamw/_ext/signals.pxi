"""Deferral of Python's signal handlers.

Python runs them in the main thread, between any two of its instructions; a handler that raises,
such as that of Ctrl-C, leaves what it interrupts half done."""

import threading

from _signal import NSIG, getsignal, raise_signal, signal

cdef extern from *:
    """
    #if defined(_WIN32)
    typedef int signal_action;
    static void read_action(int number, signal_action *found) { (void)number; *found = 0; }
    static void write_action(int number, const signal_action *kept) { (void)number; (void)kept; }
    static size_t address_of(const signal_action *action) { return (size_t)*action; }
    #else
    #include <signal.h>
    typedef struct sigaction signal_action;
    static void read_action(int number, signal_action *found) { sigaction(number, NULL, found); }
    static void write_action(int number, const signal_action *kept)
    {
        sigaction(number, kept, NULL);
    }
    static size_t address_of(const signal_action *action) { return (size_t)action->sa_handler; }
    #endif
    """
    ctypedef struct signal_action:
        pass

    void read_action(int number, signal_action *found) noexcept
    void write_action(int number, const signal_action *kept) noexcept
    size_t address_of(const signal_action *action) noexcept

cdef tuple SIGNALS = tuple(range(1, NSIG))
cdef size_t INTERPRETER = 0  # its function that the system calls for Python's handlers, if known


@cython.final
cdef class DeferredSignals:
    """A block in which no Python signal handler runs. At its end the handlers of the signals that
    arrived run, once each; their exceptions propagate.

    Nested blocks defer to the end of the outermost. In threads other than the main thread, where no
    handler runs, nothing changes; nor do signals that are ignored, or handled outside of Python,
    such as those of ``faulthandler.register``, even where Python has a handler too.

    This is compiled because Python code could be interrupted between replacing one handler and the
    next."""

    cdef list replaced  # (signal, handler, its signal_action)
    cdef dict arrived   # by signal, the frame that it interrupted

    def __cinit__(self):
        self.replaced, self.arrived = [], {}

    def __call__(self, number, frame):  # as a signal handler
        self.arrived.setdefault(number, frame)

    def __enter__(self):
        try:
            for number, handler in zip(SIGNALS, map(getsignal, SIGNALS)):
                if callable(handler) and not isinstance(handler, DeferredSignals):
                    self.replace(number, handler)
        except BaseException:
            if threading.current_thread() is threading.main_thread():
                self.end()
                raise  # what a handler has raised that was still in its place
            # else a ValueError: handlers are replaced, and run, in the main thread only
        return self

    def __exit__(self, *exception):
        self.end()

    cdef int replace(self, int number, handler) except -1:
        global INTERPRETER
        cdef signal_action before, now
        read_action(number, &before)
        if INTERPRETER and address_of(&before) != INTERPRETER:
            return 0
        signal(number, self)
        self.replaced.append((number, handler, (<char *>&before)[:sizeof(before)]))
        read_action(number, &now)
        INTERPRETER = address_of(&now)
        if address_of(&before) != INTERPRETER:
            self.restore()
        return 0

    cdef int restore(self) except -1:
        """Put the handler back that was replaced last, unless the block has installed another."""
        cdef int number
        number, handler, action = self.replaced[len(self.replaced) - 1]
        if getsignal(number) is self:
            signal(number, handler)
            write_action(number, <const signal_action *><const char *>action)  # and its flags
        self.replaced.pop()
        return 0

    cdef int end(self) except -1:
        """Put the handlers back, then call those whose signals have arrived."""
        error = None
        while self.replaced:
            try:
                self.restore()
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
