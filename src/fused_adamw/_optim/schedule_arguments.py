"""What schedules are made of, called with, and return: rates, and numbers of steps."""

import math
from contextlib import suppress
from typing import Any, cast

from .._core import as_integer, as_number, shown


def check_rate(name: str, value: Any) -> float:
    """A rate as a float, so that a NumPy scalar does not set the precision.

    Raises:
        TypeError, ValueError: it is not a finite number, 0 or more.
    """
    try:
        rate = float(as_number(name, value))
    except TypeError:
        raise TypeError(f"{name} must be a number, 0 or more; got {shown(value)}") from None
    except (ValueError, OverflowError):  # beyond float64
        rate = math.inf
    if not (math.isfinite(rate) and value >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more; got {shown(value)}")
    return rate


def check_step(t: Any) -> int:
    """The number of a step as an int of Python, so that a NumPy scalar does not set the precision;
    a number that is no integer, which the type of a schedule excludes, as a float.

    Raises:
        TypeError, ValueError: it is not a number, 1 or more.
    """
    step = t if type(t) is int else _as_step(t)
    if step is not None and step >= 1:
        return step
    kind = TypeError if step is None else ValueError
    raise kind(f"t must be a step number 1, 2, 3, ...; got {shown(t)}")


def _as_step(t: Any) -> int | None:
    """An int or a float; None for what is not a number."""
    if getattr(t, "ndim", 0) != 0:
        return None
    for convert in (as_integer, as_number):
        with suppress(TypeError):
            return cast(int, convert("t", t))
    return None


def check_returned(rate: Any) -> float:
    """What a function that follows a schedule has returned, as a float.

    Raises:
        TypeError, ValueError: it is not a number, or one that float64 does not have.
    """
    try:
        return float(as_number("following", rate))
    except TypeError:
        raise TypeError(f"following must return a number; got {shown(rate)}") from None
    except (ValueError, OverflowError):
        raise ValueError(
            "following must return a number within the range of float64; got one beyond it"
        ) from None
