"""The options of the optimizer classes: one entry each, from which the rest is derived.

State dicts, the comparison between ranks, ``repr`` and the attributes that cannot be changed follow
from these entries. To add an option, add an entry here, an annotation to ``BaseOptimizer`` and a
parameter to the constructors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._core import check_num_threads, check_seed
from .state_formats import check_state_dtype

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
"""The options that each parameter group has values of its own for."""


class Option(NamedTuple):
    """An option, kept as an attribute of the optimizer.

    Attributes:
        default: the value where none is given.
        check: called with the name and a value; returns the value to keep, or raises.
        saved: whether state dicts contain it.
        fixed: whether after construction only ``load_state_dict`` changes it.
    """

    default: Any
    check: Callable[[str, Any], Any]
    saved: bool
    fixed: bool = False


def check_flag(name: str, value: Any) -> bool:
    """Raise TypeError unless the value is True or False, or 1 or 0."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be a bool; got {value!r}")


def _checked_seed(name: str, value: Any) -> int | None:
    check_seed(value)
    return None if value is None else int(value)


def _checked_threads(name: str, value: Any) -> int | None:
    check_num_threads(value)
    return None if value is None else int(value)


def _checked_by_core(name: str, value: Any) -> Any:
    """A number that ``BoundTensors.check`` and ``step`` check with the hyper-parameters."""
    return value


OPTIONS = {
    "amsgrad": Option(False, check_flag, saved=False, fixed=True),
    "maximize": Option(False, check_flag, saved=True),
    "max_grad_norm": Option(None, _checked_by_core, saved=True),
    "skip_nonfinite": Option(False, check_flag, saved=True),
    "state_dtype": Option(None, check_state_dtype, saved=False, fixed=True),
    "master_weights": Option(False, check_flag, saved=False, fixed=True),
    "seed": Option(0, _checked_seed, saved=True, fixed=True),
    "ema_decay": Option(None, _checked_by_core, saved=True),
    "num_threads": Option(None, _checked_threads, saved=False),
}
