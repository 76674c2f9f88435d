"""Threads that end before the interpreter does: one that is inside PyTorch then would abort it."""

import atexit
import threading
from collections.abc import Callable

from .._core import DeferredSignals

SIGNALS_AFTER = 0.05  # seconds that a waiting thread leaves signals unhandled
PATIENCE = 30.0  # seconds to wait for a thread whose device no longer responds

_stops: dict[threading.Thread, Callable[[], None] | None] = {}


def start_thread(name: str, run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Start a thread that runs ``run``, which ``stop`` lets return."""

    def run_until_stopped() -> None:
        try:
            run()
        finally:
            _stops[thread] = None  # it still has to free what it used

    _forget_ended()
    thread = threading.Thread(target=run_until_stopped, name=name, daemon=True)
    with DeferredSignals():  # or one that has started could be forgotten
        _stops[thread] = stop
        try:
            thread.start()
        except BaseException:
            del _stops[thread]
            raise


def wait_between_signals(wait: Callable[[float], bool]) -> None:
    """Call ``wait``, which waits for a number of seconds at most, until it returns True. Signal
    handlers of Python run between the calls: the locks of ``threading`` are Python code, which an
    exception of a handler would leave acquired.
    """
    done = False
    while not done:
        with DeferredSignals():
            done = wait(SIGNALS_AFTER)


def _forget_ended() -> None:
    for thread, stop in list(_stops.items()):
        if stop is None and not thread.is_alive():
            _stops.pop(thread, None)


@atexit.register
def _stop_all() -> None:
    for thread, stop in reversed(list(_stops.items())):  # those that need others first
        if thread.is_alive():
            if stop is not None:
                stop()
            thread.join(PATIENCE)
