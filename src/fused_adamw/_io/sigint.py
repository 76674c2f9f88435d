"""Deferral of SIGINT (Ctrl-C) while something has to run to its end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_deferred(*, reraise: bool = True) -> Iterator[threading.Event]:
    """Defer SIGINT to the end of the block.

    Only the main thread receives signals; in any other thread nothing changes.

    Args:
        reraise: deliver the signal after the block, to whatever handles it. False is for a loop
            that reads the event to end early; it replaces Python's default handler only, so that
            handlers of the application, and an ignored SIGINT, keep their effect.

    Yields an event that is set when SIGINT arrives.
    """
    received = threading.Event()
    handler = signal.getsignal(signal.SIGINT)
    # None: a handler that was not installed from Python, which could not be restored.
    replaceable = handler is not None if reraise else handler is signal.default_int_handler
    if not replaceable or threading.current_thread() is not threading.main_thread():
        yield received
        return
    signal.signal(signal.SIGINT, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, handler)
        if reraise and received.is_set():
            signal.raise_signal(signal.SIGINT)
