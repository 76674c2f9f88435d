"""Failures of a command: one line on standard error, and an exit status."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses: of usage errors, of a shell after SIGINT


def fail(message: object) -> NoReturn:
    """Print the error and exit."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(BAD_INPUT)


def describe(error: OSError) -> str:
    """Return the reason, with the file that it concerns."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


@contextmanager
def bad_input_reported() -> Iterator[None]:
    """Report errors of the block as bad input."""
    try:
        yield
    except OSError as error:
        fail(describe(error))
    except ValueError as error:
        fail(error)
