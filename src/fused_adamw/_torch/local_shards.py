"""The tensors of a step as the kernels see them: the local shard in the place of each DTensor.

Every rank steps its own shards. Nothing is communicated, except for a gradient that is not placed
as its parameter is.
"""

from typing import Any

import torch
from torch import Tensor

from .dtensors import is_dtensor, is_placed_like, local_of, offset_of
from .state import GroupTensors


def local_shards(tensors: GroupTensors) -> GroupTensors:
    """The tensors with the memory of this rank.

    What cannot be stepped in parts, such as a DTensor with state that is placed otherwise, is left
    as something that no kernel supports.
    """
    params, grads, steps, state = tensors
    return GroupTensors(
        [_local_param(p) for p in params],
        [_local_grad(grad, p) for grad, p in zip(grads, params, strict=True)],
        steps,
        {
            role: arrays if role.endswith("_scale") else _local_state(arrays, params)
            for role, arrays in state.items()
        },
    )


def offsets_of(params: list[Tensor]) -> list[int]:
    """Where the local shards begin, for stochastic rounding that does not depend on the ranks."""
    return [offset_of(p) for p in params]


def _local_param(p: Any) -> Tensor:
    if is_dtensor(p) and any(placement.is_partial() for placement in p._spec.placements):
        return p  # the values are sums over the ranks
    return local_of(p)


def _local_grad(grad: Any, p: Any) -> Any:
    """Redistributed as the parameter is, which PyTorch's operators do too."""
    if not (is_dtensor(p) and is_dtensor(grad)):
        return _local_like(grad, p)
    if not is_placed_like(grad, p) and grad._spec.mesh == p._spec.mesh:
        with torch.no_grad():
            grad = grad.redistribute(placements=p._spec.placements)
    return _local_like(grad, p)


def _local_state(arrays: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    return [_local_like(x, p) for x, p in zip(arrays, params, strict=True)]


def _local_like(x: Any, p: Any) -> Any:
    """None where the two are not parts of the same elements."""
    if is_dtensor(x) and is_dtensor(p):
        return local_of(x) if is_placed_like(x, p) else None
    return None if is_dtensor(p) else x
