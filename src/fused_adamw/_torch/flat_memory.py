"""The memory of dense tensors: the order of their elements, and flat views and arrays of it."""

import numpy as np
import torch
from torch import Tensor

from .._optim.arrays import Array
from .._optim.state_formats import storage_dtype

Order = tuple[int, ...]  # the dimensions of a tensor, from the outermost in memory to the innermost


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """The strides of dimensions of more than one element; the others have no meaning, nor has any
    of a tensor without elements."""
    if tensor.numel() == 0:
        return ()
    return tuple(s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether elements of tensors of one shape are in the same order in memory."""
    return a.stride() == b.stride() or strides_of(a) == strides_of(b)


def in_order_of(like: Tensor, tensor: Tensor) -> Tensor:
    """A tensor of the same shape as ``like`` with its elements in the same order in memory: the
    tensor itself where they are, else a copy."""
    if same_strides(tensor, like):
        return tensor
    with torch.no_grad():
        return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements are next to one another, in any order of the dimensions."""
    if tensor.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat_view(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, with no version of its own."""
    return tensor.data.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def dims_in_memory(tensor: Tensor) -> Order:
    """The dimensions as they are in memory. Those of one element have no place of their own: they
    come last."""
    strides, shape = tensor.stride(), tensor.shape
    dims = [d for d in range(tensor.dim()) if shape[d] != 1]
    ones = (d for d in range(tensor.dim()) if shape[d] == 1)
    return (*sorted(dims, key=lambda d: -strides[d]), *ones)


def flat(tensor: Tensor, order: Order | None, storage: str) -> Array:
    """The elements in an order of the dimensions: the tensor's own memory where it is in that
    order, else a copy.

    Args:
        tensor: in host memory.
        order: of ``dims_in_memory``; None: row by row.
        storage: the storage type of its elements.
    """
    elements = (tensor if order is None else tensor.permute(order)).reshape(-1)
    dtype = storage_dtype(storage)
    if elements.dtype == torch.bfloat16:  # which NumPy lacks
        elements = elements.view(torch.int16)
    array: Array = elements.numpy().view(dtype)
    return array


def shaped(array: Array, order: Order, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape over the memory of a flat array in an order of its dimensions."""
    back = np.argsort(order).tolist() if order else []
    return torch.from_numpy(array).view([shape[d] for d in order]).permute(back)
