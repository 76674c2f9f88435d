"""The options of the optimizer classes: one row each, from which the rest is derived.

Attributes and their types, checks, state dicts, the comparison between ranks, ``repr``, and what
the PyTorch class puts into its groups follow from the rows of ``Options``. To add an option, add a
row here and a parameter to the constructors. An array of the state that an option needs is a row of
``FUSED_ADAMW_OPTIONAL_BUFFERS`` (csrc/formats.h), which has the name of the option.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import get_annotations
from typing import Annotated, Any, NamedTuple

import numpy as np

from .._core import (
    as_integer,
    check_decay,
    check_norm,
    check_num_threads,
    check_seed,
    shown,
)
from .state_formats import BUFFERS, StateDtype, check_state_dtype

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
"""The options of which each parameter group has its own values."""

SCHEDULED = ("lr", "eps")
"""The hyper-parameters that may be functions of the step."""


class Option(NamedTuple):
    """An option, kept as an attribute of the optimizer.

    Attributes:
        default: the value where none is given.
        check: called with the name and a value; returns the value to keep, or raises.
        saved: whether state dicts contain it.
        fixed: whether after construction only ``load_state_dict`` changes it.
        torch: whether it is an option of each group of the PyTorch class, which PyTorch's own class
            does not have.
    """

    default: Any
    check: Callable[[str, Any], Any]
    saved: bool = True
    fixed: bool = False
    torch: bool = False


def check_flag(name: str, value: Any) -> bool:
    """Raise TypeError unless the value is True or False, or 1 or 0."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    with suppress(TypeError):
        if (number := as_integer(name, value)) in (0, 1):
            return bool(number)
    raise TypeError(f"{name} must be a bool; got {shown(value)}")


def _checked_threads(name: str, value: Any) -> int | None:
    check_num_threads(value)
    return None if value is None else int(value)


class Options:
    """The options as attributes of an optimizer, with the types of their values."""

    amsgrad: Annotated[bool, Option(False, check_flag, saved=False, fixed=True)]
    maximize: Annotated[bool, Option(False, check_flag)]
    max_grad_norm: Annotated[float | None, Option(None, check_norm)]
    skip_nonfinite: Annotated[bool, Option(False, check_flag)]
    state_dtype: Annotated[
        StateDtype | None, Option(None, check_state_dtype, saved=False, fixed=True, torch=True)
    ]
    master_weights: Annotated[bool, Option(False, check_flag, saved=False, fixed=True, torch=True)]
    seed: Annotated[int | None, Option(0, check_seed, fixed=True, torch=True)]
    ema_decay: Annotated[float | None, Option(None, check_decay, torch=True)]
    num_threads: Annotated[int | None, Option(None, _checked_threads, saved=False)]


OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_annotations(Options).items()
}

ROLES = {row.option: row.name for row in BUFFERS.values()} | {"master_weights": "master"}
"""By option, the role of the array of the state that it needs."""

RATE_OPTIONS = tuple(row.option if row.has_decay else None for row in BUFFERS.values())
"""The options that are decay rates, in the order of the optional buffers; None for a flag."""

DecayRates = tuple[float | None, ...]
"""The values of RATE_OPTIONS."""

_ROLE_ITEMS = tuple(ROLES.items())
NO_RATES: DecayRates = (None,) * len(RATE_OPTIONS)


def roles_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The roles that options with these values need: of flags that are set, and rates given."""
    roles: tuple[str, ...] = ()
    for option, role in _ROLE_ITEMS:  # a loop, and `is`, as each step of PyTorch's class calls this
        value = values.get(option)
        if value is not None and value is not False and (value or option in RATE_OPTIONS):
            roles += (role,)
    return roles


def rates_of(values: Mapping[Any, Any]) -> DecayRates:
    """The decay rates of the optional buffers among these values by option; None for those without
    one. (None is not a key of ``values``.)"""
    if values.keys().isdisjoint(RATE_OPTIONS):
        return NO_RATES
    return tuple(map(values.get, RATE_OPTIONS))
