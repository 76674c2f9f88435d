"""DTensors: tensors of which each rank of a device mesh has a part, its shard, in its own memory.

PyTorch's module of DTensors takes long to import. It is only used where the program has done so.
"""

import sys
from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any

from torch import Size, Tensor


def dtensor_type() -> Any:
    """PyTorch's class; None before it is imported."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


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
        spec.placements == expected.placements and spec.mesh == expected.mesh
    )


def new_dtensor(
    like: Any, local: Tensor, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> Any:
    """A DTensor with this memory, placed like another; ``strides`` None: row by row."""
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(Size(shape), strides or _strides_by_row(shape), local.dtype)
    spec = DTensorSpec(like._spec.mesh, like._spec.placements, tensor_meta=meta)
    # from_local would move it to the device of the mesh.
    return dtensor_type()(local, spec, requires_grad=False)


def offset_of(tensor: Any) -> int:
    """The index of the first element of the local shard among all elements of the tensor, row by
    row. The others follow it where only the first dimension is sharded, in contiguous parts."""
    return _offset(tensor._spec) if is_dtensor(tensor) else 0


@lru_cache(maxsize=4096)
def _offset(spec: Any) -> int:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape = tuple(spec.shape)
    _, offsets = compute_local_shape_and_global_offset(shape, spec.mesh, spec.placements)
    index: int = sum(offset * prod(shape[k + 1 :]) for k, offset in enumerate(offsets))
    return min(index, prod(shape))  # of an empty shard: the end


@lru_cache(maxsize=4096)
def block_grid(spec: Any, block: int) -> tuple[int, ...] | None:
    """The shape of a tensor with one element per block of a DTensor, such that each rank
    has the elements of its own blocks where both are placed in the same way; None where a block may
    be on two ranks.

    The blocks are consecutive parts of rows: of the smallest trailing dimensions whose elements are
    a multiple of ``block``, the first of all dimensions not being one of them. The result depends
    on the number of ranks only where one of the trailing dimensions is sharded.
    """
    shape = tuple(spec.shape)
    first = max((k for k in range(1, len(shape)) if prod(shape[k:]) % block == 0), default=0)
    if first == 0 or tuple(spec.stride) != _strides_by_row(shape):
        return None
    grid = (*shape[:first], prod(shape[first:]) // block)
    within = [k for k, x in enumerate(spec.placements) if getattr(x, "dim", -1) >= first]
    if not within:
        return grid
    ranks = spec.mesh.shape[within[0]]
    elements = _largest_part(shape[first], ranks) * prod(shape[first + 1 :])
    is_one = len(within) == 1 and spec.placements[within[0]].is_shard(first)
    return grid if is_one and _largest_part(grid[-1], ranks) * block == elements else None


def _largest_part(size: int, ranks: int) -> int:
    return -(-size // ranks)


def _strides_by_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(max(size, 1) for size in shape[k + 1 :]) for k in range(len(shape)))
