"""DTensors: tensors of which each rank of a device mesh has a part, its shard, in its own memory.

PyTorch's module of DTensors takes long to import. It is only used where the program has done so.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, no_grad


def dtensor_type() -> Any:
    """PyTorch's class; None before it is imported."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_in_group() -> bool:
    """Whether this process has joined a process group of PyTorch, even if it is alone there."""
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def is_dtensor(tensor: object) -> bool:
    return type(tensor) is dtensor_type()


def has_dtensors(tensors: Iterable[object]) -> bool:
    found = dtensor_type()
    return found is not None and found in map(type, tensors)


def local_of(tensor: Any) -> Tensor:
    """The part of a DTensor that this rank has: the same memory. Other tensors as they are."""
    if not is_dtensor(tensor):
        return tensor
    local = tensor._local_tensor
    # The result of a collective operation may have to be waited for.
    return local if type(local) is Tensor else getattr(local, "wait", lambda: local)()


def is_placed_like(tensor: Any, other: Any) -> bool:
    """Whether each rank has the same part of two DTensors."""
    spec, expected = tensor._spec, other._spec
    return spec is expected or (
        spec.placements == expected.placements
        and spec.mesh == expected.mesh
        and spec.shard_order == expected.shard_order
    )


def is_divided_otherwise(tensor: Any, other: Any) -> bool:
    """Whether two tensors are DTensors of which a rank has different parts."""
    both = is_dtensor(tensor) and is_dtensor(other)
    return both and not is_placed_like(tensor, other)


def is_part_of_same(tensor: Any, other: Any) -> bool:
    """Whether two tensors are both in one place, or are divided between the ranks in one way."""
    return is_dtensor(tensor) == is_dtensor(other) and not is_divided_otherwise(tensor, other)


def is_partial(tensor: Any) -> bool:
    """Whether the values are sums over the ranks, which are still to be added up."""
    return is_dtensor(tensor) and any(x.is_partial() for x in tensor._spec.placements)


def redistributed(x: Any, p: Any) -> Any:
    """A gradient or state placed as its parameter is, which PyTorch's operators do too; as it is
    where its ranks are others."""
    if not is_divided_otherwise(x, p) or x._spec.mesh != p._spec.mesh:
        return x
    with no_grad():
        return x.redistribute(placements=p._spec.placements)


def new_dtensor(
    like: Any, local: Tensor, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> Any:
    """A DTensor with this memory, placed like another; ``strides`` None: row by row."""
    old = like._spec
    meta = type(old.tensor_meta)(Size(shape), strides or _strides_by_row(shape), local.dtype)
    # from_local would move it to the device of the mesh.
    return dtensor_type()(local, replace(old, tensor_meta=meta), requires_grad=False)


def placements_of(tensor: Any) -> str:
    """The end of a message that describes a tensor: how a DTensor is divided between the ranks."""
    return f", placed {tensor.placements}" if is_dtensor(tensor) else ""


def placed_like(p: Any, local: Tensor) -> Any:
    """This memory, of the shape of the local shard, as a DTensor where ``p`` is one."""
    if not is_dtensor(p) or is_dtensor(local):
        return local
    return new_dtensor(p, local, tuple(p.shape), tuple(p.stride()))


def offset_of(tensor: Any) -> int:
    """The index of the first element of the local shard among all elements of the tensor, row by
    row. The others follow it where only the first dimension is sharded, in contiguous parts."""
    return _offset(tensor._spec) if is_dtensor(tensor) else 0


@lru_cache(maxsize=4096)
def _offset(spec: Any) -> int:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape: tuple[int, ...] = tuple(spec.shape)
    _, offsets = compute_local_shape_and_global_offset(shape, spec.mesh, spec.placements)
    index: int = sum(offset * prod(shape[k + 1 :]) for k, offset in enumerate(offsets))
    return min(index, prod(shape))  # of an empty shard: the end


class Grid(NamedTuple):
    """A division of the elements of a DTensor, row by row, into cells of consecutive ones."""

    shape: tuple[int, ...]  # of a tensor with one element per cell
    cell: int  # elements
    is_by_element: bool = False  # in whichever order they are in memory

    def local_shape(self, elements: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the cells of this rank, from the shape of its elements."""
        k = len(self.shape) - 1
        return (*elements[:k], prod(elements[k:]) // self.cell)


@lru_cache(maxsize=4096)
def grid_of(spec: Any, block: int) -> Grid:
    """The largest cells such that every rank has whole ones, and so has each block of its shard;
    and such that a tensor of cells is divided between the ranks as its elements are.

    The number of ranks makes no difference, unless other dimensions than the first are sharded.
    """
    shape = tuple(spec.shape)
    if tuple(spec.stride) != _strides_by_row(shape):
        return Grid(shape, 1, is_by_element=True)
    sharded = [x.dim if hasattr(x, "dim") else 0 for x in spec.placements]
    last = max(sharded)
    row = prod(shape[last + 1 :])
    if last > 0 and sharded.count(last) == 1:
        k = sharded.index(last)
        ranks = spec.mesh.shape[k]
        part = -(-shape[last] // ranks) * row
        cell = gcd(block, part, shape[last] * row)
        cells = shape[last] * row // cell
        if spec.placements[k].is_shard() and -(-cells // ranks) * cell == part:
            return Grid((*shape[:last], cells), cell)
    cell = gcd(block, row)
    return Grid((*shape[: last + 1], row // cell), cell)


def _strides_by_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(max(size, 1) for size in shape[k + 1 :]) for k in range(len(shape)))
