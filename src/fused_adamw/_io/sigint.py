"""Ctrl-C for a loop that ends at a moment of its own choice."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_deferred() -> Iterator[threading.Event]:
    """A block in which SIGINT sets the event that this yields, and has no other effect.

    It replaces Python's default handler only, so that handlers of the application, and an ignored
    SIGINT, keep their effect; and only the main thread receives signals.
    """
    received = threading.Event()
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if handler is not signal.default_int_handler or not is_main:
        yield received
        return
    signal.signal(signal.SIGINT, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, handler)
