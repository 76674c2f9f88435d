"""The state of a parameter: its names in state dicts, new state, and the tensors of a step.

Names, dtypes and sizes are derived from the rows of ``_core.state_formats()``. A role has the name
that PyTorch gives it, or its own. In a format with scales the names of the moments end in
``_code``: PyTorch's own class, which would misread them, does not find them.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from .._optim.allocation import LARGE, zeros
from .._optim.arrays import Shape
from .._optim.options import roles_of
from .._optim.state_formats import (
    AS_COMPUTED,
    ELEMENT_TYPES,
    FORMATS,
    FROM_PARAMS,
    StateOptions,
    format_of,
    has_scales,
    kept_roles,
    state_layout,
)
from .dtensors import is_dtensor, local_of

State = dict[str, Tensor]  # of one parameter, by name

NAMES = {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"}  # PyTorch's names

# Parameters whose master weights are stored whole, in float32. Those of bfloat16 complete the
# parameter, whatever it has become.
WHOLE_MASTER = torch.float16


class GroupTensors(NamedTuple):
    """Lists of one length: the parameters that have a gradient, in the order of the group."""

    params: list[Tensor]
    grads: list[Tensor]
    steps: list[Tensor]
    state: dict[str, list[Tensor]]  # by role

    def select(self, indices: list[int]) -> "GroupTensors":
        def take(tensors: list[Tensor]) -> list[Tensor]:
            return [tensors[i] for i in indices]

        state = {role: take(tensors) for role, tensors in self.state.items()}
        return GroupTensors(take(self.params), take(self.grads), take(self.steps), state)

    def split(self, indices: list[int]) -> tuple["GroupTensors", "GroupTensors"]:
        """The tensors that are not at ``indices``, and those that are."""
        others = set(range(len(self.params))).difference(indices)
        return self.select(sorted(others)), self.select(indices)


NOTHING = GroupTensors([], [], [], {})
ORDINARY = (Tensor, torch.nn.Parameter)
"""The classes whose memory means what PyTorch says of it."""


@cache
def state_names(
    state_dtype: str | None, roles: tuple[str, ...], sharded: bool = False
) -> dict[str, str]:
    """The name of each role, to be read only. ``state_dtype`` None: the dtype of the parameter;
    ``roles``: those that options need; ``sharded``: of a DTensor, whose scales no other tensor's
    state can be confused with."""
    suffix = "_code" if has_scales(state_dtype) else ""
    names = {
        role: NAMES.get(role, role) + ("" if role in AS_COMPUTED else suffix)
        for role in ("m", "v", *roles)
    }
    if has_scales(state_dtype):
        scale = "_shard_scale" if sharded else "_scale"
        names |= {f"{role}_scale": f"{NAMES[role]}{scale}" for role in ("m", "v")}
    return names


def is_scale(role: str) -> bool:
    """Of a role or its name: whether it is one value per block."""
    return role.endswith("_scale")


def is_in_blocks(name: str) -> bool:
    """Whether it is the name of moments that have a value per block beside them."""
    return name.endswith("_code")


def has_elements(role: str, shape: Shape, p: Tensor) -> bool:
    """Whether an array of the state, of this role and shape, has an element for each of this
    parameter; such arrays have its shape and strides."""
    return prod(shape) == p.numel() and not is_scale(role)


def missing_state(p: Tensor, state: State | None, group: dict[str, Any]) -> State:
    """The state that a parameter lacks: all of it before its first step; later, what an option
    needs that starts as the parameter."""
    options = options_of(p, group)
    missing: State = {}
    if not state:
        missing["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
    layout = layout_of(local_of(p), options)
    for position, (role, name) in enumerate(state_names(*options, is_dtensor(p)).items()):
        if not state or (role in FROM_PARAMS and name not in state):
            missing[name] = _zeros(p, role, position, *layout[role])
            if role in FROM_PARAMS and missing[name].is_floating_point():
                missing[name].copy_(p.detach())
    return missing


def has_large_state(p: Tensor) -> bool:
    """Whether moments of the dtype of this parameter are so large that it matters which memory they
    are in."""
    return _is_plain(p) and p.nbytes >= LARGE and dtype_name(p.dtype) in ELEMENT_TYPES


def states_of(optimizer: Any) -> Iterator[tuple[Tensor, State]]:
    """The parameters that have state; programs may keep other things in it."""
    for p, entry in optimizer.state.items():
        if isinstance(p, Tensor) and isinstance(entry, dict):
            yield p, entry


def is_lazy(p: Tensor) -> bool:
    """Whether it has no memory and no shape before the first forward of its module."""
    return isinstance(p, UninitializedParameter)


def is_ordinary(x: Tensor) -> bool:
    """Whether its class and layout have all operators, and elements in memory, if not on "meta"."""
    return type(x) in ORDINARY and x.layout is torch.strided


def params_with_unused_masters(
    group: Mapping[str, Any], state: Mapping[Tensor, State]
) -> list[Tensor]:
    """The parameters with whole master weights in a group without the option. A step of theirs
    makes these older than the parameter, so that it has to drop them."""
    if group.get("master_weights"):
        return []
    narrow = (p for p in group["params"] if p.dtype == WHOLE_MASTER)
    return [p for p in narrow if "master" in state.get(p, {})]


def can_have_state(p: Tensor) -> bool:
    """Whether new state can be made like it: it has the operators for that, and no elements share
    memory, which the state could be larger than."""
    return is_ordinary(p) and p.untyped_storage().nbytes() >= p.nbytes


def is_narrow(p: Tensor) -> bool:
    """Whether the kernels compute such a parameter in another dtype: one of 16 bits."""
    row = ELEMENT_TYPES.get(dtype_name(p.dtype))
    return row is not None and row.compute != row.name


class Kind(NamedTuple):
    """How the kernels store the state of parameters of one dtype."""

    format: str | None  # None: in the dtype of the parameter
    roles: tuple[str, ...]  # that options need
    sharded: bool = False  # whether they are DTensors

    @property
    def options(self) -> StateOptions:
        """The options with which state is stored in this way."""
        return StateOptions(self.format, self.roles)


@cache
def kind_of(
    dtype: torch.dtype, state_dtype: str | None, roles: tuple[str, ...], sharded: bool
) -> Kind:
    """The kind of parameters of this dtype in a group with these options."""
    name = dtype_name(dtype)
    if name in ELEMENT_TYPES and "master" in roles:
        roles = kept_roles(name, roles)
        if "master" in roles:
            return Kind(format_of(name, state_dtype), roles, sharded)
    return Kind(state_dtype, roles, sharded)


def options_of(p: Tensor, group: Mapping[str, Any]) -> StateOptions:
    """The options of a group, as far as they concern a parameter of this dtype. Without them the
    moments are of that dtype, as PyTorch keeps them."""
    name, roles, state_dtype = dtype_name(p.dtype), roles_of(group), group.get("state_dtype")
    kept = kept_roles(name, roles) if name in ELEMENT_TYPES else roles
    if state_dtype is None and name in FORMATS and "master" not in kept:
        state_dtype = name
    return StateOptions(state_dtype, kept)


def dtype_name(dtype: torch.dtype) -> str:
    """Its name without the one of PyTorch."""
    return str(dtype).removeprefix("torch.")


def layout_of(p: Tensor, options: StateOptions) -> dict[str, tuple[str, Shape]]:
    """The storage type and shape of each array of the state, by role."""
    dtype, shape = dtype_name(p.dtype), tuple(p.shape)
    if dtype in ELEMENT_TYPES:
        return state_layout(dtype, shape, options)
    # For a parameter that the kernels do not support.
    return dict.fromkeys(state_names(*options), (dtype, shape))


def _zeros(p: Tensor, role: str, position: int, storage: str, shape: Shape) -> Tensor:
    """A new array: flat for scales and packed elements, of those of this rank; else with the
    parameter's strides, and placed like it. ``position``: among those of the state."""
    dtype, size = torch_dtype(storage), prod(shape)
    is_like_param = has_elements(role, shape, local_of(p))
    if _is_plain(p) and size * dtype.itemsize >= LARGE:
        flat = host_zeros(size, dtype, position).zero_()  # pages read first are mapped twice
        strides = torch.empty_like(p, device="meta").stride()
        return flat.as_strided(p.shape, strides) if is_like_param else flat.view(shape)
    if is_like_param:
        return torch.zeros_like(p, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=p.device)


def host_zeros(size: int, dtype: torch.dtype, position: int) -> Tensor:
    """One-dimensional zeros that nothing has written to yet. NumPy allocates them: for large arrays
    it requests huge pages, which PyTorch does not."""
    if size == 0:  # NumPy gives it a stride of 0, which PyTorch cannot view as another dtype
        return torch.zeros(0, dtype=dtype, device="cpu")
    return torch.from_numpy(zeros(size, np.dtype(f"i{dtype.itemsize}"), position)).view(dtype)


def _is_plain(p: Tensor) -> bool:
    return p.device.type == "cpu" and type(p) in ORDINARY


def torch_dtype(storage: str) -> torch.dtype:
    """The dtype of a storage type. PyTorch can do little with uint32."""
    dtype: torch.dtype = getattr(torch, "int32" if storage == "uint32" else storage)
    return dtype
