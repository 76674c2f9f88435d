"""Signals that ask a program to stop: it finishes what it is doing, and reads that it should."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._core import DeferredSignals

# Ctrl-C; what schedulers and service managers send; a terminal that is closed.
DEFAULT_HANDLERS = {
    getattr(signal, name): handler
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),
    )
    if hasattr(signal, name)
}


class StopRequest:
    """The number of the signal that asked to stop; 0 as long as none did."""

    signal = 0


@contextmanager
def stop_signals(on_repeat: Callable[[], None] | None = None) -> Iterator[StopRequest]:
    """Note the signals that ask to stop, in place of what they do by default.

    Handlers of the application, and ignored signals, keep their effect. Only the main thread
    receives signals; in any other thread nothing changes.

    Args:
        on_repeat: called at each further signal.
    """
    request = StopRequest()

    def handle(number: int, _: Any) -> None:
        if not request.signal:
            request.signal = int(number)
        elif on_repeat is not None:
            on_repeat()

    replaced: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number, default in DEFAULT_HANDLERS.items():
                if signal.getsignal(number) == default:
                    replaced[number] = signal.signal(number, handle)
        yield request
    finally:
        with DeferredSignals():  # one that raises would leave the rest replaced
            for number, handler in replaced.items():
                signal.signal(number, handler)
