"""What options accept on the command line; anything else is an error in our words.

A parser takes the text that was given, or a default, and returns the value. The name of the option
is added to its message.
"""

import sys
from collections.abc import Callable
from copy import copy
from enum import StrEnum
from types import NoneType
from typing import Annotated, Any, TypeAlias, get_args, get_origin

import typer

Parser: TypeAlias = Callable[[Any], Any]


def with_parser(annotation: Any) -> Any:
    """Return the annotation of an option whose values this module parses, if they are numbers or
    those of a StrEnum; else the annotation itself."""
    hint, *metadata = get_args(annotation)
    kind = _kind_of(hint)
    option = copy(metadata[0])
    if kind in (int, float):
        option.parser = _number_parser(kind, option.min)
    elif issubclass(kind, StrEnum):
        option.parser = _choice_parser(kind)
        option.metavar = option.metavar or "|".join(kind)
    return Annotated[hint, option]


def _kind_of(hint: Any) -> type:
    """The type of a value, also of an option that may be left out or has several."""
    if get_origin(hint) in (list, tuple):
        return _kind_of(get_args(hint)[0])
    kinds = [x for x in get_args(hint) if x is not NoneType]
    return _kind_of(kinds[0]) if kinds else hint


def _number_parser(kind: type, minimum: float | None) -> Parser:
    convert = _integer if kind is int else _number

    def parse(value: Any) -> Any:
        number = convert(value) if isinstance(value, str) else value
        if minimum is not None and number < minimum:
            raise typer.BadParameter(f"must be at least {minimum}; got {value}")
        return number

    # Versions of Typer that show no range in the help of such an option show this name.
    name = "integer" if kind is int else "number"
    parse.__name__ = name if minimum is None else f"{name} >= {minimum}"
    return parse


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        digits, most = text.strip().lstrip("+-"), sys.get_int_max_str_digits()
        if digits.isdecimal() and len(digits) > most > 0:
            raise typer.BadParameter(
                f"must have at most {most:,} digits; got {len(digits):,}"
            ) from None
        raise typer.BadParameter(f"must be an integer; got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number; got {text!r}") from None


def _choice_parser(kind: type[StrEnum]) -> Parser:
    def parse(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            names = ", ".join(kind)
            raise typer.BadParameter(f"must be one of {names}; got {value!r}") from None

    return parse
