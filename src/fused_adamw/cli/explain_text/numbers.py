"""How numbers are written: rounded, as long as the rounded number says enough."""

import math
from collections.abc import Sequence

from ...tiny.layers import FloatArray

ENOUGH = 0.004  # relative error of a rounded number that still says enough


def number(value: float, places: int = 6, digits: int = 6) -> str:
    """Return a number with these decimal places, or so many digits and an exponent where it is too
    small or too large for them."""
    if not math.isfinite(value):
        return str(value)
    value += 0.0  # without the sign of -0
    fixed = f"{value:.{places}f}"
    if abs(value) < 1e6 and abs(float(fixed) - value) <= ENOUGH * abs(value):
        return fixed
    return f"{value:.{digits - 1}e}"


def cell(value: float, places: int = 6) -> str:
    """Return a number for a table, with 3 digits where it has an exponent."""
    return number(value, places, digits=3)


def narrow(value: float, width: int, places: int = 6) -> str:
    """Return a number as in a cell of a table, with fewer digits where it would not fit."""
    shorter = (f"{value:{style}}" for style in (".4g", ".2e", ".1e", ".0e"))
    texts = [cell(value, places), *shorter]
    return next((text for text in texts if len(text) <= width), texts[-1])


def in_parentheses(number: str) -> str:
    """Return a number as it is subtracted: in parentheses where it is negative."""
    return f"({number})" if number.startswith("-") else number


def signed(value: float) -> str:
    """Return a number with its sign, also a positive one."""
    text = number(value)
    return text if text.startswith("-") else f"+{text}"


def factor(value: float) -> str:
    """Return a number such as 1 - beta without the digits of its rounding error."""
    return f"{value:.10g}"


def times(value: float) -> str:
    """Return a multiple: with two decimals, or whole where it is large."""
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e12 else f"{value:.2e}"


def vector(values: FloatArray | Sequence[float], count: int = 6) -> str:
    """Return the first numbers of a vector, with four decimals."""
    shown = " ".join(f"{value:7.4f}" for value in values[:count])
    return f"[{shown} …]" if len(values) > count else f"[{shown} ]"
