"""The parameters of a group as the kernels see them: the local shard in place of each DTensor.

Every rank steps its own shards. Nothing is communicated, except for a gradient that is not placed
as its parameter is.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import PreparedStep
from .dtensors import (
    has_dtensors,
    is_dtensor,
    is_partial,
    is_placed_like,
    local_of,
    offset_of,
    redistributed,
)
from .flat_memory import in_order_of
from .state import State

increment_version = torch._C._increment_version


def version_of(tensor: Tensor) -> int:
    """How often it was changed in place; unknown for a tensor made in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def versions_of(tensor: Tensor) -> tuple[int, int]:
    """Of a DTensor its own and that of its shard: what writes to the shard counts only there."""
    return version_of(tensor), version_of(local_of(tensor))


class Owners(NamedTuple):
    """The user's parameters that the tensors of a step are the memory of."""

    whole: Mapping[Tensor, Tensor]  # the DTensors of the shards

    def of(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self.whole.get(x, x) for x in tensors]

    def increment_versions(self, tensors: list[Tensor]) -> None:
        """Increment the versions of the user's parameters, after these tensors were updated."""
        increment_version(self.of(tensors))


PLAIN = Owners({})
"""Of a group without DTensors: the tensors are the user's."""


class LocalGroup(NamedTuple):
    """The parameters of a group: in place of each DTensor that has a gradient, its shard here.

    What cannot be stepped in parts, such as a DTensor with state that is placed otherwise, is left
    as it is, which no kernel supports.
    """

    params: list[Tensor]
    state: Mapping[Tensor, State]
    offsets: list[int]  # of the shards, for stochastic rounding that does not depend on the ranks
    whole: dict[Tensor, Tensor]  # the DTensors of the shards


def prepare(
    prepared: PreparedStep,
    params: list[Tensor],
    state: Mapping[Tensor, State],
    names: dict[str, str],
    how: dict[str, Any],
) -> Owners | None:
    """Prepare a step, of DTensors that of the shards of this rank.

    Args:
        names: of the state, by role.
        how: more arguments of ``PreparedStep.prepare``.

    Returns:
        The parameters that the tensors of the step are of; None where one lacks state.
    """
    if not has_dtensors(params):
        return PLAIN if prepared.prepare(params, state, **how) else None
    local = _local_group(params, state, names)
    prepared.offsets = local.offsets
    found = prepared.prepare(local.params, local.state, **how)
    return Owners(local.whole) if found else None


def _local_group(
    params: list[Tensor], state: Mapping[Tensor, State], names: dict[str, str]
) -> LocalGroup:
    group = LocalGroup([], {}, [], {})
    found: dict[Tensor, State] = {}
    for p in params:
        entries = state.get(p, {})
        shard = _shard_of(p, entries, names)
        if shard is None:
            group.params.append(p)
            found[p] = entries
        else:
            local, found[local] = shard
            group.params.append(local)
            group.whole[local] = p
        group.offsets.append(offset_of(p))
    return group._replace(state=found)


def _shard_of(p: Any, entries: State, names: dict[str, str]) -> tuple[Tensor, State] | None:
    """The local memory of a parameter, with its gradient, and of its state; None where it has no
    such parts."""
    if not is_dtensor(p) or is_partial(p):
        return None
    grad = _local_like(redistributed(p.grad, p), p)
    state = {
        name: x if _is_undivided(name, names) else _local_like(x, p) for name, x in entries.items()
    }
    if grad is None or any(x is None for x in state.values()):
        return None
    local = local_of(p).detach()
    _close_gaps(grad, local)
    if grad.dtype != local.dtype and hasattr(local, "grad_dtype"):  # PyTorch 2.11 or later
        local.requires_grad_().grad_dtype = grad.dtype
    try:
        local.grad = grad
    except (RuntimeError, TypeError):  # its dtype or shape is different
        return None
    return local, state


def _is_undivided(name: str, names: dict[str, str]) -> bool:
    """Whether an array of the state is not divided: the counter, and the scales of local blocks."""
    return name == "step" or name in (names.get("m_scale"), names.get("v_scale"))


def _close_gaps(grad: Tensor, local: Tensor) -> None:
    """Give a gradient in another memory order than its shard memory of its own, with the same
    values: PyTorch adds up parts that differ in size with padding, which is left in the gradients
    of some of the ranks."""
    if type(grad) is not Tensor or grad.layout is not torch.strided or grad.device.type != "cpu":
        return
    ordered = in_order_of(local, grad) if grad.shape == local.shape else grad
    if ordered is not grad:
        grad.data = ordered


def _local_like(x: Any, p: Any) -> Any:
    """The local part of a DTensor that is divided as the parameter is; None for all else."""
    return local_of(x) if is_dtensor(x) and is_placed_like(x, p) else None
