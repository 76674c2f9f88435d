"""Errors and consistency checks that all ranks take part in.

If one rank raised alone, the others would wait for it forever; so whatever can go wrong on one rank
raises on all.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np

from .error_marks import has_mark, mark

SENT_AS_THEY_ARE = (TypeError, ValueError, OverflowError, MemoryError, RuntimeError)
MAX_SHOWN = 200  # characters of a value in a message
NO_MESSAGE = "<no message>"  # of an object whose text cannot be made
ON_ALL_RANKS = "_is_on_all_ranks"  # mark of an error


@contextmanager
def raise_on_all_ranks(comm: Any, fingerprint: dict[str, Any] | None) -> Iterator[None]:
    """Run the block on all ranks; if it raises on one, raise the same error on all.

    One all-reduce of 24 bytes, if there is nothing to raise. To be used where signal handlers are
    deferred.

    Args:
        comm: a communicator of mpi4py; None: a single process, where nothing is done.
        fingerprint: values by name, which the block may fill in, that must be equal on all ranks.
            A name that only some ranks have counts as False on the others. The first block of an
            operation has the operation among them.

    Raises:
        ValueError: the fingerprints differ; the message names the first difference.
    """
    if comm is None:
        yield
        return
    failure, digest = None, 0
    try:
        yield
        digest = _digest(fingerprint) if fingerprint else 0
    except BaseException as error:  # SystemExit too would leave the others waiting
        failure = error
    flags = np.array([failure is not None, digest, -digest], np.int64)
    from . import mpi  # here, as a single process does not need mpi4py

    mpi.replace_by_maximum(comm, flags)
    failed, largest, negated_smallest = flags
    try:
        if failed:
            _raise_first_error(comm, failure)
        if largest != -negated_smallest:
            _raise_difference(comm, fingerprint or {})
    except Exception as error:
        mark(error, ON_ALL_RANKS)
        raise


def is_on_all_ranks(error: BaseException | None) -> bool:
    """Whether ``raise_on_all_ranks`` has raised the error, or one that this was raised for."""
    return has_mark(error, ON_ALL_RANKS)


def _digest(fingerprint: Mapping[str, Any]) -> int:
    return int.from_bytes(blake2b(repr(fingerprint).encode(), digest_size=7).digest(), "little")


def _raise_first_error(comm: Any, failure: BaseException | None) -> None:
    """Raise what the first of the ranks that failed did; where that is no Exception, its own
    rank raises it, and the others a RuntimeError."""
    gathered = comm.allgather(None if failure is None else _picklable(failure))
    if failure is not None and not isinstance(failure, Exception):
        raise failure
    rank, error = next((rank, x) for rank, x in enumerate(gathered) if x is not None)
    on_all = len({str(x) for x in gathered}) == 1
    if on_all or isinstance(error, OSError):
        raise error from failure
    raise type(error)(f"rank {rank}: {str(error) or type(error).__name__}") from failure


def _picklable(error: BaseException) -> Exception:
    """An exception with the same message that can be sent to other ranks, whatever code of the
    user's that runs does: if this raised, the others would wait."""
    try:
        copy = _with_the_same_message(error)
        pickle.dumps(copy)
    except BaseException:
        sent = (kind for kind in SENT_AS_THEY_ARE if isinstance(error, kind))
        copy = next(sent, RuntimeError)(f"{type(error).__name__}: {NO_MESSAGE}")
    return copy


def _with_the_same_message(error: BaseException) -> Exception:
    if isinstance(error, OSError) and error.errno is None:
        return OSError(str(error))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    if not isinstance(error, Exception):
        return RuntimeError(f"{type(error).__name__}: {error}")
    if type(error) in SENT_AS_THEY_ARE or type(error).__module__.startswith("fused_adamw."):
        return type(error)(*map(str, error.args))
    for kind in SENT_AS_THEY_ARE:
        if isinstance(error, kind):
            return kind(f"{type(error).__name__}: {error}")
    return RuntimeError(f"{type(error).__name__}: {error}")


def _raise_difference(comm: Any, fingerprint: Mapping[str, Any]) -> None:
    gathered = comm.allgather({name: _text_of(value) for name, value in fingerprint.items()})
    first = gathered[0]
    for rank, other in enumerate(gathered):
        for name in {**first, **other}:
            ours, theirs = first.get(name, "False"), other.get(name, "False")
            if ours != theirs:
                raise ValueError(
                    f"{name} must be the same on all ranks; got {_shortened(ours)} on rank 0 and "
                    f"{_shortened(theirs)} on rank {rank}"
                )
    raise RuntimeError("the arguments must be the same on all ranks; got different ones")


def _text_of(value: Any) -> str:
    try:
        return repr(value)
    except BaseException:  # the others wait for it
        return NO_MESSAGE


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
