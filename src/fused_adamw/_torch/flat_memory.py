"""The memory of dense tensors as flat arrays of NumPy, in the types of the state formats."""

import numpy as np
import torch
from torch import Tensor

from .._optim.arrays import Array
from .._optim.state_formats import storage_dtype

Order = tuple[int, ...]  # the dimensions of a tensor, from the outermost in memory to the innermost


def order_of(tensor: Tensor) -> Order:
    """The order of the dimensions in memory. Those of one element have no place of their own: they
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
        order: of ``order_of``; None: row by row.
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
