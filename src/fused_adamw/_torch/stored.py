"""How the moments of a parameter are stored: found in a state dict, and converted."""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._core import CHUNK
from .._optim.arrays import Shape, items_of_range
from .._optim.conversion import convert_range, without_blocks
from .._optim.state_formats import (
    AS_COMPUTED,
    BUFFERS,
    ELEMENT_TYPES,
    FORMATS,
    StateOptions,
    TensorState,
    format_of,
    has_scales,
    state_layout,
)
from .dtensors import is_divided_otherwise, is_dtensor, local_of, placed_like
from .flat_memory import Order, dims_in_memory, flat, shaped
from .state import (
    State,
    dtype_name,
    has_elements,
    is_lazy,
    is_scale,
    options_of,
    state_names,
    torch_dtype,
)

PIECE_ELEMENTS = 16 * CHUNK
"""Elements that are converted at once: what is decoded on the way stays in the cache."""
NO_PARAMS = np.broadcast_to(np.float32(0), PIECE_ELEMENTS)
LIKE_V = tuple(name for name in BUFFERS if name not in AS_COMPUTED)


class Storage(NamedTuple):
    """How an optimizer stores the state of a parameter."""

    format: str  # of the moments, a row of FORMATS
    layout: dict[str, tuple[str, Shape]]  # by role, the storage type and shape
    names: dict[str, str]  # by role, in state dicts

    @property
    def moments(self) -> list[str]:
        """The roles of moments and of what belongs to them."""
        return [role for role in self.layout if role not in AS_COMPUTED]

    def dtype(self, role: str) -> torch.dtype:
        """Of the tensor of a role."""
        return torch_dtype(self.layout[role][0])


class Moments(NamedTuple):
    """The stored moments of a parameter."""

    format: str  # as in ``Storage``
    arrays: dict[str, Tensor]  # by role: m, v, what is stored like v, and scales


class Target(NamedTuple):
    """Where an optimizer keeps the state of a parameter, and how.

    ``like``: the elements of this rank; their dtype, shape and strides matter, not their values.
    """

    storage: Storage
    like: Tensor
    device: torch.device  # of the state
    whole: Tensor | None = None  # the DTensor that ``like`` is the local shard of
    is_host_only: bool = False  # whether PyTorch must not load any of it

    @property
    def is_of_pytorch(self) -> bool:
        """Whether PyTorch's class, which gives it the parameter's dtype, can load it."""
        dtypes = set(map(self.storage.dtype, self.storage.layout))
        return dtypes == {self.like.dtype} and not self.is_host_only


def target_of(p: Tensor, group: Mapping[str, Any]) -> Target | None:
    """Of a parameter in a group with these options; None for a dtype that no kernel supports, and
    for a parameter that has no shape yet."""
    if is_lazy(p):
        return None
    like, is_whole = local_of(p).detach(), not is_dtensor(p)
    options = options_of(p, group)
    if dtype_name(p.dtype) not in ELEMENT_TYPES:
        return None
    return Target(
        storage_of(like, options, sharded=not is_whole),
        like,
        p.device,
        None if is_whole else p,
    )


def storage_of(like: Tensor, options: StateOptions, sharded: bool = False) -> Storage:
    """How the state of a parameter is stored with these options; the kernels support its dtype."""
    name = dtype_name(like.dtype)
    format_ = format_of(name, options.state_dtype)
    layout = state_layout(name, tuple(like.shape), StateOptions(format_, options.roles))
    return Storage(format_, layout, state_names(format_, options.roles, sharded))


def in_compute_type(moments: Moments, target: Target) -> Target:
    """The target with storage for these moments as float32 or float64, under PyTorch's names."""
    compute = ELEMENT_TYPES[dtype_name(target.like.dtype)].compute
    roles = tuple(role for role in LIKE_V if role in moments.arrays)
    return target._replace(storage=storage_of(target.like, StateOptions(compute, roles)))


def find_moments(entry: State, target: Target) -> list[Moments]:
    """The moments that are in an entry of a state dict, in any format: mostly one, but where
    PyTorch's distributed checkpoints add what was saved to what they find in an optimizer, both."""
    found = []
    for name in FORMATS:
        roles = tuple(role for role in LIKE_V if FORMATS[name].amsgrad)
        storage = storage_of(target.like, StateOptions(name, roles), target.whole is not None)
        arrays = {role: entry.get(storage.names[role]) for role in storage.moments}
        tensors = {
            r: local_of(x)
            for r, x in arrays.items()
            if isinstance(x, Tensor) and not is_divided_otherwise(x, target.whole)
        }
        if tensors.keys() >= storage.layout.keys() - set(LIKE_V) and all(
            x.dtype == storage.dtype(role) and x.numel() == prod(storage.layout[role][1])
            for role, x in tensors.items()
        ):
            found.append(Moments(name, tensors))
    return found


def block_order(moments: Moments, like: Tensor) -> Order:
    """The order of the dimensions in which the elements were divided into blocks."""
    m = moments.arrays["m"]
    has_order = m.layout is torch.strided and m.shape == like.shape
    return dims_in_memory(m) if has_order else new_order(like)


def new_order(like: Tensor) -> Order:
    """The order of the dimensions in new state."""
    return dims_in_memory(torch.empty_like(like, device="meta"))


def converted(moments: Moments, target: Target) -> State:
    """The moments as an optimizer stores them, rounded to the nearest, in new tensors by name."""
    own, like = target.storage, target.like
    saved = moments.arrays.items()
    kept = {r: x.detach().cpu().resolve_neg() for r, x in saved if r in own.layout or is_scale(r)}
    new = {r: _new(like, r, own) for r in own.moments if r in kept or is_scale(r)}
    source = Moments(moments.format, kept)
    order = new_order(like)
    if has_scales(source.format) and block_order(source, like) != order:
        source = _decoded(source, like)
    _write(source, Moments(own.format, new), order, like)
    return {own.names[r]: placed(x.to(target.device), r, target) for r, x in new.items()}


def _new(like: Tensor, role: str, own: Storage) -> Tensor:
    """Memory of the host, not initialized, with the strides of the parameter where it has its
    shape."""
    shape, dtype = own.layout[role][1], own.dtype(role)
    if has_elements(role, shape, like):
        return torch.empty_like(like, dtype=dtype, device="cpu")
    return torch.empty(shape, dtype=dtype, device="cpu")


def placed(x: Tensor, role: str, target: Target) -> Tensor:
    """An array of the local shard's state as the optimizer keeps it: of a DTensor, all but scales
    are DTensors, too. ``role``: or the name."""
    whole: Tensor = x if is_scale(role) else placed_like(target.whole, x)
    return whole


def _decoded(moments: Moments, like: Tensor) -> Moments:
    """The moments of a format with scales in tensors of the parameter's shape."""
    order = block_order(moments, like)
    state = without_blocks(_flat(moments, order, like), like.numel())
    arrays = {r: shaped(x, order, tuple(like.shape)) for r, x in state.arrays.items()}
    return Moments(state.format, arrays)


def _flat(moments: Moments, order: Order, like: Tensor) -> TensorState:
    layout = state_layout(
        dtype_name(like.dtype), tuple(like.shape), StateOptions(moments.format, LIKE_V)
    )
    arrays = {
        role: flat(x, None if is_scale(role) or x.shape != like.shape else order, layout[role][0])
        for role, x in moments.arrays.items()
    }
    return TensorState(moments.format, arrays)


def _write(source: Moments, target: Moments, order: Order, like: Tensor) -> None:
    size = like.numel()
    states = _flat(source, order, like), _flat(target, order, like)
    for begin in range(0, size, PIECE_ELEMENTS):
        end = min(begin + PIECE_ELEMENTS, size)
        found, written = (_elements(state, begin, end, size) for state in states)
        convert_range(found, written, NO_PARAMS[: end - begin])


def _elements(state: TensorState, begin: int, end: int, size: int) -> TensorState:
    """The elements [begin, end) of ``size``."""
    items = {r: slice(*items_of_range(begin, end, x.size, size)) for r, x in state.arrays.items()}
    return TensorState(state.format, {r: x[items[r]] for r, x in state.arrays.items()})
