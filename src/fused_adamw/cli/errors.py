"""Failures of a command: one line on standard error, and an exit status."""

import os
import re
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, NoReturn

import typer

from .._distributed.agreement import is_on_all_ranks
from .._io.files import printable
from .._io.stop_signals import signal_of, status_after, stop_signals_raised
from ..tiny.launch import abort_all_ranks, rank_in_world

option_names: ContextVar[Set[str]] = ContextVar("option_names", default=frozenset())
"""The options of the command that runs, by the names of its parameters: functions that it calls
name the same arguments in their messages."""

_ARGUMENT = re.compile(r"\w+(?=(\[\d\])? must )")

# Typer raises it for any wrong option or command, but exports only its subclass.
USAGE_ERROR: Any = typer.BadParameter.__base__

BAD_INPUT, FAILED = 2, 1  # exit statuses: of usage errors, of what fails later


def flag(name: str) -> str:
    """Return an option as it is on the command line."""
    return f"--{name.replace('_', '-')}"


def report(message: object) -> None:
    """Print an error."""
    print(f"error: {printable(str(message))}", file=sys.stderr)


def fail(message: object, status: int = BAD_INPUT) -> NoReturn:
    """Print the error and exit."""
    report(message)
    raise typer.Exit(status)


def usage_message(error: Any) -> str:
    """Return the message of a usage error of Typer's; of one of ours, which says only what a value
    must be, after the name of the option."""
    option = getattr(error, "param", None)
    if option is not None and error.message.startswith("must "):
        return f"{flag(option.name)} {error.message}"
    return " ".join(error.format_message().split())


def describe(error: Exception) -> str:
    """Return the reason, with the file that it concerns; of an error without text, its name."""
    text = str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory: {text}" if text else "not enough memory"
    reason = getattr(error, "strerror", None) or text or type(error).__name__
    name = getattr(error, "filename", None)
    return f"{os.fsdecode(name)}: {reason}" if name else reason


@contextmanager
def bad_input_reported() -> Iterator[None]:
    """Report errors of the block as bad input."""
    try:
        yield
    except (OSError, MemoryError) as error:
        fail(describe(error))
    except (ValueError, OverflowError) as error:
        message = describe(error)
        argument = _ARGUMENT.match(message)
        if argument is not None and argument[0] in option_names.get():
            message = flag(argument[0]) + message[argument.end() :]
        fail(message)


@contextmanager
def failures_reported() -> Iterator[None]:
    """Report errors of the block as failures: it writes what the command has computed."""
    try:
        yield
    except (OSError, MemoryError, ValueError, OverflowError) as error:
        fail(describe(error), FAILED)


@contextmanager
def lone_failures_reported(on_ranks: bool) -> Iterator[None]:
    """Report an error of this rank alone, and end the others, which may wait for it. One that all
    ranks raise, and whatever is raised without ``on_ranks``, goes on."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if not on_ranks or is_on_all_ranks(error):
            raise
        _fail_on_all_ranks(f"rank {rank_in_world()}: {describe(error)}", FAILED)


@contextmanager
def interrupts_reported(on_ranks: bool = False) -> Iterator[None]:
    """Say that a signal ended the block, where there is no summary to say it.

    Args:
        on_ranks: whether other processes, those of MPI, may wait for this one: then it ends all of
            them. SIGTERM does so by default, which also works while this one waits for others.
    """
    try:
        with nullcontext() if on_ranks else stop_signals_raised():
            yield
    except KeyboardInterrupt as error:
        status = status_after(signal_of(error))
        if on_ranks:
            _fail_on_all_ranks("interrupted", status)
        with suppress(OSError):  # a terminal that is closed
            report("interrupted")
        raise typer.Exit(status) from None


def _fail_on_all_ranks(message: str, status: int) -> NoReturn:
    """Print the error on any rank, whichever are silent, and end the processes of all."""
    sys.stderr = sys.__stderr__ or sys.stderr  # None where it was closed
    with suppress(OSError):
        report(message)
    abort_all_ranks(status)


def print_in_handler(text: str) -> None:
    """Print a line on standard error, in the handler of a signal.

    The signal may have interrupted a `print`, so the buffer of `sys.stderr` cannot be used.
    """
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())
