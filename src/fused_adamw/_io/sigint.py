"""Ctrl-C, held back while something that has to be whole is written, or for a loop to end in."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Ctrl-C takes effect after the block instead of amid it."""
    received = threading.Event()
    try:
        # A handler that is not of Python, None here, could not be put back.
        with _noted(received, lambda handler: handler is not None):
            yield
    finally:
        if received.is_set():
            signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupts_held() -> Iterator[threading.Event]:
    """Within this context Ctrl-C sets the event, instead of stopping Python between two lines.

    Where Ctrl-C is handled otherwise, or ignored, nothing is changed.
    """
    interrupt = threading.Event()
    with _noted(interrupt, lambda handler: handler is signal.default_int_handler):
        yield interrupt


@contextmanager
def _noted(interrupt: threading.Event, replaces: Callable[[Any], bool]) -> Iterator[None]:
    """Ctrl-C sets the event, if this ``replaces`` the handler; and in the main thread, which alone
    receives it."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not replaces(handler):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: interrupt.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
