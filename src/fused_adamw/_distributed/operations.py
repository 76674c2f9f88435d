"""Collective operations: one at a time on a communicator, and not ended by a signal handler."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .._core import DeferredSignals
from .error_marks import has_mark, mark

REFUSED_BY = "_refused_by"  # mark of an error
ONE_AT_A_TIME = (
    "operations of the optimizers of a communicator must run one at a time, neither in two threads "
    "nor one within another"
)


class CollectiveOperations:
    """The collective operations on one private communicator.

    Attributes:
        num_optimizers: how many were constructed over the communicator, here as on other ranks.
    """

    def __init__(self) -> None:
        self.num_optimizers = 0
        self._lock = threading.Lock()
        self._running = ""
        self._refused: str | None = None

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        """A block that no signal handler can end on one rank only.

        Args:
            name: the operation, as messages call it.

        Raises:
            RuntimeError: another operation is running, in another thread or around this one.
        """
        with DeferredSignals():
            if not self._lock.acquire(blocking=False):
                self._refused = f"{ONE_AT_A_TIME}; got {name} during {self._running}"
                refusal = RuntimeError(self._refused)
                mark(refusal, REFUSED_BY, id(self))  # not the lock: errors are pickled
                raise refusal
            try:
                self._running = name
                yield
            except RuntimeError as error:
                # Code of this operation had begun the other one: all ranks have learned of it.
                if has_mark(error, REFUSED_BY, id(self)):
                    self._refused = None
                raise
            finally:
                self._lock.release()

    def raise_refused(self) -> None:
        """Raise RuntimeError if an operation was refused since the last call: other ranks may have
        begun it, and have to learn of it."""
        refused, self._refused = self._refused, None
        if refused is not None:
            raise RuntimeError(refused)
