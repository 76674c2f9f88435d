"""What must be the same on all ranks, by the names that messages use."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .._optim.arrays import Array, order_of
from .._optim.base import BaseOptimizer
from .._optim.options import HYPERPARAMETERS, RATE_OPTIONS, Option
from .._optim.param_groups import Hyperparams

NUMBERS = {"max_grad_norm", *filter(None, RATE_OPTIONS)}
"""The options that are real numbers, or None."""


def of_construction(
    optimizer: BaseOptimizer, params: Sequence[str], decays: Sequence[bool], flat: Sequence[Array]
) -> dict[str, Any]:
    """Of the arguments of a constructor.

    Args:
        optimizer: with its options and groups.
        params: names of the parameters in messages.
        decays: by tensor, whether weight decay applies to it.
        flat: the elements of each parameter.
    """
    fingerprint = _options(optimizer, lambda option: option.saved or option.fixed)
    for i, name in enumerate([*optimizer.names, None]):  # None: the end
        fingerprint[f"the name of parameter {i}"] = name
    arrays = optimizer._arrays
    for name, array, applies in zip(params, arrays, decays, strict=True):
        order = "C" if order_of(array) == "C" else "Fortran"
        fingerprint[name] = f"{array.dtype} {array.shape} in {order} order"
        fingerprint[f"decay_mask for {name}"] = applies
    for g, group in enumerate(optimizer.param_groups):
        values = (group[name] for name in HYPERPARAMETERS)
        fingerprint |= _of_group(g, ("a schedule" if callable(x) else _plain(x) for x in values))
    for name, elements in zip(params, flat, strict=True):
        fingerprint[f"the values of {name} (CRC-32)"] = zlib.crc32(elements.view(np.uint8).data)
    return fingerprint


def of_step(
    optimizer: BaseOptimizer, grads: Sequence[Any], grad_scale: float, hypers: list[Hyperparams]
) -> dict[str, Any]:
    """Of a step by these gradients; None for a tensor without one."""
    fingerprint = _options(optimizer, lambda option: option.saved)
    if any(grad is None for grad in grads):
        names = zip(optimizer._spec.argument_names("grads"), grads, strict=True)
        fingerprint |= {f"whether {name} is None": True for name, grad in names if grad is None}
    fingerprint["grad_scale"] = float(grad_scale)
    for g, (*values, _) in enumerate(hypers):  # the last are options
        fingerprint |= _of_group(g, map(_plain, values))
    return fingerprint


def _of_group(g: int, values: Iterable[Any]) -> dict[str, Any]:
    return {f"{name} of group {g}": x for name, x in zip(HYPERPARAMETERS, values, strict=True)}


def _options(optimizer: BaseOptimizer, choose: Callable[[Option], bool]) -> dict[str, Any]:
    options = optimizer._get_options(choose)
    return {k: _plain(x) if k in NUMBERS else x for k, x in options.items()}


def _plain(value: Any) -> Any:
    """Numbers as floats: equal ones may be of different types."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return float(value) if isinstance(value, (Real, np.generic)) else value
