"""Signals that ask a program to stop: it finishes what it is doing, and reads that it should."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

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


class StopSignal(KeyboardInterrupt):
    """A signal that asks to stop, raised where the program is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def signal_of(error: KeyboardInterrupt) -> int:
    """Return the number of the signal that was raised."""
    return error.number if isinstance(error, StopSignal) else int(signal.SIGINT)


def status_after(number: int) -> int:
    """Return the exit status after a signal, as shells have it."""
    return 128 + number


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

    with _handled_by(handle, DEFAULT_HANDLERS):
        yield request


class _Raiser:
    """A handler that raises StopSignal."""

    def __init__(self) -> None:
        self.request = StopRequest()

    def __call__(self, number: int, _: Any) -> NoReturn:
        self.request.signal = int(number)
        raise StopSignal(int(number))


@contextmanager
def stop_signals_raised() -> Iterator[StopRequest]:
    """Raise StopSignal at the signals that ask to stop, of which two would end the process without
    a word; within ``stop_signals`` they are noted. Other handlers keep their effect, as there.

    Yields:
        The request, of the outermost block where there are several. After another exception it
        tells whether that was a signal at first, which an import, for example, may have replaced.
    """
    handlers = map(signal.getsignal, DEFAULT_HANDLERS)
    raiser = next((handler for handler in handlers if isinstance(handler, _Raiser)), _Raiser())
    with _handled_by(raiser, DEFAULT_HANDLERS):
        yield raiser.request


@contextmanager
def _handled_by(handler: Callable[[int, Any], None], numbers: Iterable[int]) -> Iterator[None]:
    """Replace the handlers of these signals where they are the default or a ``_Raiser``."""
    replaced: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                previous = signal.getsignal(number)
                if previous == DEFAULT_HANDLERS[number] or isinstance(previous, _Raiser):
                    replaced[number] = signal.signal(number, handler)
        yield
    finally:
        with DeferredSignals():  # one that raises would leave the rest replaced
            for number, previous in replaced.items():
                signal.signal(number, previous)
