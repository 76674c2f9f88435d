"""Ctrl-C, held back while something that has to be whole is written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Ctrl-C takes effect after the block instead of amid it."""
    handler = signal.getsignal(signal.SIGINT)
    # Python interrupts its main thread alone. A handler that is not of Python, None here, cannot be
    # put back.
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)
