"""State of one tensor: which arrays it consists of.

The formats are the rows of ``_core.state_formats()``. The kernels read and write them, and do the
encoding and decoding. docs/state-formats.md describes what the arrays contain.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np

from .._core import (
    OptionalBuffer,
    decode_state,
    element_types,
    optional_buffers,
    shown,
    state_formats,
)
from .allocation import Allocate, zeros
from .arrays import Array, Shape, order_of, ravel_like, reshape_like
from .master_weights import read_master, start_of, with_whole_master

StateDtype: TypeAlias = Literal["float32", "bfloat16", "8bit"]

ELEMENT_TYPES = {row.name: row for row in element_types()}
FORMATS = {row.name: row for row in state_formats()}
STATE_DTYPES = tuple(name for name, row in FORMATS.items() if not row.own)
"""The formats that can be asked for: those of more than one type of parameters."""
BUFFERS = {row.name: row for row in optional_buffers()}
FROM_PARAMS = ("master", *(name for name, row in BUFFERS.items() if row.from_params))
"""The roles that start as a copy of the parameters."""
AS_COMPUTED = ("master", *(name for name, row in BUFFERS.items() if not row.like_v))
"""The roles that are stored in one way, whatever the format of the moments."""


@dataclass
class TensorState:
    """The state that an optimizer keeps of one tensor.

    Attributes:
        format: name of the format of the moments, a row of ``_core.state_formats()``.
        arrays: by role, in this order: m, v, the optional buffers that are stored like v, m_scale,
            v_scale (formats with scales), the other optional buffers, and master (16-bit parameters
            with master weights).
    """

    format: str
    arrays: dict[str, Array]

    def copy(self) -> "TensorState":
        """A copy with memory of its own."""
        return TensorState(self.format, {k: x.copy("K") for k, x in self.arrays.items()})

    def is_writable(self) -> bool:
        return all(array.flags.writeable for array in self.arrays.values())


class StateOptions(NamedTuple):
    """The options of an optimizer that decide which arrays it keeps."""

    state_dtype: str | None = None
    roles: tuple[str, ...] = ()  # that options need: "master" and those of BUFFERS


# ---------------------------------------------------------------------------- layout


def check_state_dtype(name: str, value: Any) -> StateDtype | None:
    """Raise ValueError unless the value is None or a format that can be asked for."""
    if value is not None and not (isinstance(value, str) and value in STATE_DTYPES):
        expected = either(["None", *map(repr, STATE_DTYPES)])
        raise ValueError(f"{name} must be {expected}; got {shown(value)}")
    return cast(StateDtype | None, value)


def check_roles(options: StateOptions) -> None:
    """Raise ValueError where the format has no place for an array that an option needs."""
    state_dtype, buffers = options.state_dtype, _like_v(options)
    if buffers and state_dtype is not None and not FORMATS[state_dtype].amsgrad:
        name = buffers[0].option
        raise ValueError(f"{name} must be False with state_dtype={state_dtype!r}; got True")


def _like_v(options: StateOptions) -> list[OptionalBuffer]:
    """The optional buffers that are stored as v is."""
    return [row for row in BUFFERS.values() if row.like_v and row.name in options.roles]


def format_of(param_dtype: str, state_dtype: str | None) -> str:
    """The format of the moments: ``state_dtype``, else the parameters' own type where that can be
    one, else the compute type (float16 lacks the range for v)."""
    if state_dtype is not None:
        return state_dtype
    return param_dtype if param_dtype in STATE_DTYPES else ELEMENT_TYPES[param_dtype].compute


def is_compatible(param_dtype: str, format_: str) -> bool:
    """Whether there is a kernel. float64 parameters have no format but their own."""
    row = FORMATS[format_]
    return row.m == param_dtype if row.own else ELEMENT_TYPES[param_dtype].compute != "float64"


def has_param_layout(param_dtype: str, format_: str) -> bool:
    """Whether the state has the parameter's shape and memory order; else it is flat."""
    return param_dtype == format_ == ELEMENT_TYPES[param_dtype].compute


def has_scales(state_dtype: str | None) -> bool:
    """Whether the elements are divided into blocks that share scales; not without a format."""
    return state_dtype is not None and FORMATS[state_dtype].block > 1


def supported_dtypes(state_dtype: str | None) -> str:
    """The dtypes of parameters that go with a ``state_dtype``, for messages."""
    return either(
        name for name in ELEMENT_TYPES if is_compatible(name, format_of(name, state_dtype))
    )


def kept_roles(param_dtype: str, roles: tuple[str, ...]) -> tuple[str, ...]:
    """The roles with an array of their own: wide parameters are their own master weights."""
    has_master = ELEMENT_TYPES[param_dtype].master
    return tuple(role for role in roles if role != "master" or has_master)


def either(names: Iterable[str]) -> str:
    """The names as in "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def state_layout(
    param_dtype: str, shape: Shape, options: StateOptions
) -> dict[str, tuple[str, Shape]]:
    """The storage type and shape of each array of a tensor's state, by role.

    Args:
        param_dtype: name of the parameter's dtype.
        shape: of the parameter.
        options: of the optimizer.
    """
    format_ = format_of(param_dtype, options.state_dtype)
    element, row, size = ELEMENT_TYPES[param_dtype], FORMATS[format_], prod(shape)
    roles = kept_roles(param_dtype, options.roles)
    like_param = has_param_layout(param_dtype, format_)

    def stored(storage: str, bits: int) -> tuple[str, Shape]:
        length = -(-size * bits // (8 * storage_dtype(storage).itemsize))
        return storage, shape if like_param else (length,)

    own = shape if like_param else (size,)
    blocks = (-(-size // row.block),)
    layout = {"m": stored(row.m, row.m_bits), "v": stored(row.v, row.v_bits)}
    layout |= {buffer.name: layout["v"] for buffer in _like_v(options)}
    if has_scales(format_):
        layout |= {"m_scale": (row.m_scale, blocks), "v_scale": (row.v_scale, blocks)}
    for role in roles:
        if role in AS_COMPUTED:
            layout[role] = (element.master if role == "master" else element.compute, own)
    return layout


@cache
def storage_dtype(name: str) -> np.dtype[Any]:
    """The dtype of the arrays of a storage type; unsigned integers for one that NumPy lacks."""
    if name in ELEMENT_TYPES and not hasattr(np, name):
        return np.dtype(f"u{ELEMENT_TYPES[name].itemsize}")
    return np.dtype(name)


def stored_as(layout: Mapping[str, tuple[str, Shape]]) -> dict[str, tuple[np.dtype[Any], Shape]]:
    """The dtypes and shapes of the arrays of a layout."""
    return {role: (storage_dtype(storage), shape) for role, (storage, shape) in layout.items()}


def allocate_state(param: Array, options: StateOptions, allocate: Allocate | None) -> TensorState:
    """The state before the first step: 0, or as the parameters. Memory that is 0 has not been
    written to: the threads of the first step place its pages (on their NUMA nodes)."""
    order = order_of(param)
    layout = state_layout(param.dtype.name, param.shape, options)
    arrays: dict[str, Array] = {
        role: zeros(prod(shape), dtype, position, allocate).reshape(shape, order=order)
        for position, (role, (dtype, shape)) in enumerate(stored_as(layout).items())
    }
    for role in arrays.keys() & FROM_PARAMS:
        start = start_of(arrays[role].dtype, param.ravel("K"))
        if isinstance(start, np.ndarray):
            arrays[role].ravel("K")[...] = start
    return TensorState(format_of(param.dtype.name, options.state_dtype), arrays)


# ---------------------------------------------------------------------------- moments


def moment(state: TensorState, role: str, param: Array) -> Array:
    """A moment, the master weights, or an optional buffer, in the shape of the parameter.

    An array with the parameter's shape and dtype is returned itself. Moments in another format are
    decoded into a new float32 array; everything else is a view.
    """
    if role == "master" and role not in state.arrays:
        return param
    array = state.arrays[role]
    if has_param_layout(param.dtype.name, state.format):
        return array
    if role == "master":
        array = read_master(array, ravel_like(param, order_of(param)))
    elif role not in AS_COMPUTED:
        array = decode_state(state.format, state.arrays, param.size)[role]
    return reshape_like(array, param)


# ---------------------------------------------------------------------------- saved arrays


def detect_format(
    found: Mapping[str, tuple[np.dtype[Any], Shape]], param_shape: Shape, param_dtype: str
) -> str:
    """The name of the format that saved arrays are in.

    Args:
        found: by role, the dtype (uint16 for bfloat16) and the shape.
        param_shape, param_dtype: of the parameter whose state it is.

    Raises:
        ValueError: the arrays are in none of the formats for such a parameter.
    """
    for name, row in FORMATS.items():
        options = StateOptions(name, tuple(found))
        if not is_compatible(param_dtype, name) or (_like_v(options) and not row.amsgrad):
            continue
        expected = stored_as(state_layout(param_dtype, param_shape, options))
        if found in (expected, with_whole_master(expected)):
            return name
    listed = {role: f"{dtype} {shape}" for role, (dtype, shape) in found.items()}
    raise ValueError(
        f"the state must be that of a {param_dtype} parameter of shape {param_shape}; got {listed}"
    )
