"""Mixes: how parameters and state are stored, and how many bytes a step of each moves.

A mix is a dtype of the parameters, a format of the moments, and master weights or none. The list is
what ``AdamW`` accepts of all combinations of the tables of element types and state formats.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from typing import NamedTuple, cast

from .arrays import Shape
from .state_formats import (
    ELEMENT_TYPES,
    FORMATS,
    STATE_DTYPES,
    StateDtype,
    StateOptions,
    format_of,
    is_compatible,
    state_layout,
    stored_as,
)


class Traffic(NamedTuple):
    """Bytes of the arrays of tensors.

    Attributes:
        parameters: their number.
        gradient: read by a step.
        parameter: read and written. (A step with master weights may not need the old parameters,
            but a cache line is read before a part of it is written.)
        state: read and written, by role.
    """

    parameters: int
    gradient: int
    parameter: int
    state: dict[str, int]

    @property
    def total_state(self) -> int:
        """Bytes of state."""
        return sum(self.state.values())

    @property
    def total_moved(self) -> int:
        """Bytes read and written by a step."""
        return self.gradient + 2 * (self.parameter + self.total_state)

    @property
    def state_bytes(self) -> float:
        """Bytes of state a parameter."""
        return self.total_state / self.parameters

    @property
    def bytes_moved(self) -> float:
        """Bytes read and written by a step, a parameter."""
        return self.total_moved / self.parameters

    @property
    def bytes_kept(self) -> float:
        """Bytes of memory a parameter, with its gradient."""
        return (self.gradient + self.parameter + self.total_state) / self.parameters


class Mix(NamedTuple):
    """How the parameters and the state of an optimizer are stored."""

    param_dtype: str
    format: str
    master_weights: bool

    @property
    def name(self) -> str:
        """Its name in tables and command-line options, such as "bfloat16+master/8bit"."""
        master = "+master" if self.master_weights else ""
        return f"{self.param_dtype}{master}/{self.format}"

    @property
    def state_dtype(self) -> StateDtype | None:
        """What the class is asked for; None where the format is the default."""
        default = format_of(self.param_dtype, None)
        return None if self.format == default else cast(StateDtype, self.format)

    @property
    def compute_dtype(self) -> str:
        """What the step is computed in."""
        return ELEMENT_TYPES[self.param_dtype].compute

    def traffic(self, shapes: Iterable[Shape]) -> Traffic:
        """The bytes of tensors of these shapes."""
        options = StateOptions(self.format, ("master",) if self.master_weights else ())
        state: dict[str, int] = {}
        parameters = 0
        for shape in shapes:
            parameters += prod(shape)
            layout = stored_as(state_layout(self.param_dtype, shape, options))
            for role, (dtype, size) in layout.items():
                state[role] = state.get(role, 0) + dtype.itemsize * prod(size)
        item = ELEMENT_TYPES[self.param_dtype].itemsize
        return Traffic(parameters, item * parameters, item * parameters, state)


def all_mixes() -> Iterator[Mix]:
    """The mixes, in the order of the tables, the first with float32 throughout."""
    for dtype, master, format_ in product(ELEMENT_TYPES, (False, True), FORMATS):
        row = ELEMENT_TYPES[dtype]
        if format_ not in STATE_DTYPES and format_ != row.compute:  # only PyTorch's class has it
            continue
        if is_compatible(dtype, format_) and (row.master or not master):
            yield Mix(dtype, format_, master)
