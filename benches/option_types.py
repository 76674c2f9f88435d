"""Values of the benches' options, checked before what takes minutes: for ``type=`` of argparse and
of pytest."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """A function that returns the integer that a text is, from ``least`` to ``most``."""
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        number = int(text)
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be {bounds}; got {text}")
        return number

    parse.__name__ = "int"  # in argparse's message of what is no integer
    return parse


positive = integer(1)
threads = integer(1, 1024)  # num_threads accepts no other


def positive_number(text: str) -> float:
    """The finite number above 0 that a text is."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text}")
    return number


positive_number.__name__ = "float"


def output_file(text: str) -> Path:
    """The path of a file that can be written to. One that exists stays as it is."""
    path = Path(text)
    exists = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    if not exists:
        path.unlink()
    return path
