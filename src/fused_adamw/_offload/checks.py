"""What is refused before anything changes."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .._optim.state_formats import supported_dtypes
from .._torch.dtensors import is_part_of_same, is_partial, local_of, placements_of
from .._torch.flat_memory import is_dense
from .._torch.reasons import dtype_hint, has_kernel


def check_parameter(p: Tensor, index: int, group: Mapping[str, Any]) -> None:
    """Raise TypeError for a parameter that the kernels do not support."""
    state_dtype, supported = group.get("state_dtype"), has_kernel(p, group)
    if (
        not supported
        or p.layout is not torch.strided
        or _has_own_dispatch(local_of(p))
        or not is_dense(local_of(p))
        or p.is_neg()
        or is_partial(p)
    ):
        dtypes = supported_dtypes(state_dtype)
        hint = f" ({dtype_hint(p)})" if not supported and dtype_hint(p) else ""
        raise TypeError(
            f"parameter {index} must be dense and of {dtypes} with state_dtype={state_dtype!r}; "
            f"got {type(local_of(p)).__name__}, {p.dtype}{hint}, {p.layout}, "
            f"shape {tuple(p.shape)}, "
            f"strides {p.stride() if p.layout is torch.strided else None}{_negation_of(p)}"
            f"{placements_of(p)}"
        )


def _has_own_dispatch(tensor: Tensor) -> bool:
    """Whether its class decides what operations do, and so what its memory means, if it has any."""
    own: Any = type(tensor).__torch_dispatch__
    return own is not Tensor.__torch_dispatch__


def check_gradient(p: Tensor, grad: Tensor, index: int) -> None:
    """Raise TypeError for a gradient that is not like its parameter."""
    if (
        grad.layout is not torch.strided
        or _has_own_dispatch(local_of(grad))
        or grad.dtype != p.dtype
        or grad.device != p.device
        or grad.shape != p.shape
        or not is_part_of_same(grad, p)
        or grad.is_neg()
    ):
        raise TypeError(
            f"the gradient of parameter {index} must be dense and match it in dtype, device, "
            f"shape, kind and placements; got {type(grad).__name__}, {grad.layout}, {grad.dtype}, "
            f"{grad.device}, {tuple(grad.shape)}{_negation_of(grad)}{placements_of(grad)}"
        )


def _negation_of(tensor: Tensor) -> str:
    """Whether PyTorch multiplies what is in memory by -1, as words to append."""
    return ", a negated view" if tensor.is_neg() else ""


def check_apart(
    params: Iterable[tuple[int, Tensor]], grads: Iterable[tuple[int, Tensor]] = ()
) -> None:
    """Raise ValueError where parameters, numbered as in the optimizer, share memory with one
    another or with a gradient. Gradients may share memory."""
    memory = ParameterMemory(params)
    for index, grad in grads:
        memory.require_apart(grad, index)


class ParameterMemory:
    """Where parameters are, numbered as in the optimizer.

    Raises:
        ValueError: they share memory with one another.
    """

    def __init__(self, params: Iterable[tuple[int, Tensor]]) -> None:
        ranges = sorted((*_range_of(p), i) for i, p in params)
        check_ranges((begin, nbytes, f"parameter {i}") for begin, nbytes, i in ranges)
        self._ranges = [x for x in ranges if x[1]]

    def require_apart(self, grad: Tensor, index: int) -> None:
        """Raise ValueError where a gradient shares memory with one of them. ``index``: of the
        parameter whose gradient it is."""
        begin, nbytes = _range_of(grad)
        k = bisect_left(self._ranges, (begin + nbytes,)) - 1  # the last that begins before its end
        if nbytes and k >= 0 and sum(self._ranges[k][:2]) > begin:
            raise ValueError(
                f"the gradient of parameter {index} must not share memory with parameter "
                f"{self._ranges[k][2]}"
            )


def _range_of(tensor: Tensor) -> tuple[int, int]:
    """The address and bytes from its first to its last element, with gaps or overlaps."""
    part = local_of(tensor)
    if part.numel() == 0:
        return part.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True))
    return part.data_ptr(), (last + 1) * part.element_size()


def check_ranges(ranges: Iterable[tuple[int, int, str]]) -> None:
    """Raise ValueError where two ranges (address, bytes, name) overlap."""
    for (begin, nbytes, name), (other, _, second) in pairwise(sorted(r for r in ranges if r[1])):
        if other < begin + nbytes:
            first, last = sorted((name, second))
            raise ValueError(f"{first} must not share memory with {last}")
