"""The options of the commands: a class whose fields are options, with their defaults and help."""

import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias, get_type_hints

import typer

from .._optim.state_formats import STATE_DTYPES
from ..tiny.launch import MPIProcesses, join_mpi
from .errors import USAGE_ERROR, fail, flag, interrupts_reported, option_names
from .parsers import with_parser

# ---------------------------------------------------------------------------- option classes

Command: TypeAlias = Callable[..., None]

Related: TypeAlias = Mapping[str, str]
"""Another option, by option; both by the names of their fields."""

NONE: Related = MappingProxyType({})


def with_options(command: Command, requires: Related = NONE, excludes: Related = NONE) -> Command:
    """Give a command one option for each field of the dataclasses that it takes.

    Args:
        command: called with these dataclasses.
        requires: by option that does nothing without another one, that one.
        excludes: by option, another one for the same thing.
    """
    hints: dict[str, Any] = get_type_hints(command)
    classes: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}

    def invoke(ctx: typer.Context, **values: Any) -> None:
        option_names.set(values.keys())
        try:
            arguments = {
                name: kind(**{field.name: values[field.name] for field in fields(kind)})
                for name, kind in classes.items()
            }
            # Last: an option that is missing is of no use beside those that exclude it.
            _check_related(ctx, requires, excludes)
        except ValueError as error:
            raise USAGE_ERROR(str(error)) from None
        with interrupts_reported(on_ranks=bool(values.get("mpi"))):
            command(**arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    for kind in classes.values():
        annotations = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                keyword,
                default=field.default,
                annotation=with_parser(annotations[field.name]),
            )
            for field in fields(kind)
        ]
    paragraphs = (" ".join(part.split()) for part in (command.__doc__ or "").split("\n\n"))
    invoke.__name__, invoke.__doc__ = command.__name__, "\n\n".join(paragraphs)
    invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return invoke


def _check_related(ctx: typer.Context, requires: Related, excludes: Related) -> None:
    def given(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    for name, required in requires.items():
        if given(name) and ctx.params[required] is None:
            raise ValueError(f"{flag(name)} requires {flag(required)}")
    for name, excluded in excludes.items():
        if given(name) and given(excluded):
            raise not_both(flag(name), flag(excluded))


def not_both(option: str, other: str) -> ValueError:
    """The error of a command that was given both options."""
    return ValueError(f"{option} cannot be combined with {other}; leave one of them out")


def with_values(
    arguments: Sequence[str], optional_values: Mapping[str, Sequence[str]]
) -> list[str]:
    """Write out the values of options that were given without one.

    Args:
        arguments: of the command line.
        optional_values: by option that also works without a value, all its values; the last one
            stands for none.
    """
    completed = []
    for argument, following in zip_longest(arguments, arguments[1:]):
        values = optional_values.get(argument)
        is_bare = values is not None and following not in values
        completed.append(f"{argument}={values[-1]}" if values and is_bare else argument)
    return completed


# ---------------------------------------------------------------------------- callbacks

N_HEADS = 2  # of the model that is trained


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be finite; got {value}")
    return value


def above_zero(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"must be a finite number above 0; got {value}")
    return value


def divided_by_heads(value: int) -> int:
    """The width of the model, which the heads share."""
    if value % N_HEADS:
        raise typer.BadParameter(
            f"must be a multiple of the number of heads ({N_HEADS}); got {value}"
        )
    return value


def file_name(value: str) -> Path:
    """The path of a file; an empty one would be that of the current folder."""
    if not value:
        raise typer.BadParameter("must be the name of a file; got ''")
    return Path(value)


def output_file(value: str) -> Path:
    path = file_name(value)
    if os.path.isdir(path):
        raise typer.BadParameter(f"must be a file; got the folder {value!r}")
    return path


def known_state_dtype(value: str | None) -> str | None:
    if value is not None and value not in STATE_DTYPES:
        raise typer.BadParameter(f"must be one of {', '.join(STATE_DTYPES)}; got {value!r}")
    return value


def silence_other_ranks(mpi: bool) -> bool:
    """Runs first: only rank 0 prints."""
    if mpi:
        try:
            _join_silently()
        except ImportError as error:  # its message says what to install
            fail(error)
    return mpi


def _join_silently() -> None:
    if not join_mpi():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def of_all_ranks(message: str) -> str:
    """Return the message of a usage error on this rank, for rank 0 to print. Where it is that of
    one rank alone, the others get it in their first operation together, and do not wait."""
    try:
        _join_silently()
        with MPIProcesses().errors_on_all_ranks():
            raise ValueError(message)
    except ImportError:
        return message
    except ValueError as error:
        return str(error)


# ---------------------------------------------------------------------------- values


class DtypeName(StrEnum):
    """What the tiny transformer and the benchmark compute in."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


TEXT_PANEL, CHECKPOINT_PANEL, OUTPUT_PANEL = "With --text", "Checkpoint", "Output"
TEXT_SIZE: dict[str, Any] = {"min": 1, "rich_help_panel": TEXT_PANEL}
OUTPUT_FILE: dict[str, Any] = {
    "parser": output_file,
    "show_default": False,
    "metavar": "FILE",
}

Dtype = Annotated[
    DtypeName, typer.Option(help="Data type of parameters, gradients and optimizer state.")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=OUTPUT_PANEL,
        help="Print the result as JSON and nothing else.",
    ),
]
