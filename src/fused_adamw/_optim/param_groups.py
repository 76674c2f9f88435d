"""Parameters and parameter groups, as the optimizer classes are given them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from .._core import BoundTensors, TreeSpec, abbreviated
from .arrays import Array
from .options import HYPERPARAMETERS, Rates
from .state_formats import ELEMENT_TYPES, is_compatible, supported_dtypes

ParamGroup: TypeAlias = dict[str, Any]
"""The parameters of a group under "params", and its hyper-parameters."""

Hyperparams: TypeAlias = tuple[float, tuple[float, float], float, float, Rates]
"""lr, betas, eps, weight_decay of one step, and the decay rates of the optional buffers."""

DecayMask: TypeAlias = (
    Callable[[str, Array], bool] | bool | Sequence["DecayMask"] | Mapping[Any, "DecayMask"]
)
"""Which tensors weight decay applies to: a predicate of a tensor's name and array, or booleans in
the structure of the parameters."""


def matrices_only(name: str, array: Array) -> bool:
    """A ``decay_mask`` that exempts biases and the scales and shifts of norms from weight decay.

    Args:
        name: ignored.
        array: a parameter.

    Returns:
        Whether it has two or more dimensions, as is usual for what decays in transformers.
    """
    return bool(np.ndim(array) >= 2)


def arrange(
    params: Any, hyperparams: Mapping[str, Any]
) -> tuple[list[ParamGroup], TreeSpec, list[Array], bool]:
    """Take an optimizer's ``params`` apart and check all but the memory of the arrays.

    Args:
        params: a nest of arrays, or a list of groups.
        hyperparams: the values for groups that have none of their own.

    Returns:
        The groups, their structure, the arrays, and whether ``params`` was a list of groups.

    Raises:
        TypeError, ValueError: naming the argument as the user wrote it (``params[0]['w']``).
    """
    grouped = _is_grouped(params)
    groups = _checked_groups(params if grouped else [{"params": params}], hyperparams)
    found = [group["params"] for group in groups]
    trees = found if grouped else found[0]
    spec = TreeSpec(trees, grouped)
    items = spec.flatten("params", trees)
    for path, item, again in zip(spec.paths(), items, spec.flatten("params", trees), strict=True):
        if item is not again:
            raise ValueError(
                f"{argument_name('params', path)} must return the same array on every access; "
                "got a new one: pass the arrays in a dict or list"
            )
    arrays = _as_arrays(spec, trees, items)
    if not arrays:
        raise ValueError("params must contain at least one array; got none")
    duplicates = [name for name, count in Counter(spec.names()).items() if count > 1]
    if duplicates:
        raise ValueError(f"params must have unique names; got duplicates {abbreviated(duplicates)}")
    # Our own arrangement of the same objects: the caller may change a dict later.
    own = spec.unflatten(items)
    for group, tree in zip(groups, own if grouped else [own], strict=True):
        group["params"] = tree
    return groups, spec, arrays, grouped


def _is_grouped(params: Any) -> bool:
    """Whether ``params`` is a list of groups: of dicts that have "params".

    Raises:
        TypeError: some of the items are groups and others are not.
    """
    if not isinstance(params, (list, tuple)):
        return False
    groups = [isinstance(item, Mapping) and "params" in item for item in params]
    if any(groups) and not all(groups):
        raise TypeError("params mixes parameter groups and arrays; give each group as a dict")
    return any(groups)


def argument_name(argument: str, path: tuple[Any, ...]) -> str:
    """How messages name an array of an argument: ``params[0]['w']``."""
    return argument + "".join(f"[{key!r}]" for key in path)


def check_state_support(spec: TreeSpec, arrays: Sequence[Array], state_dtype: str | None) -> None:
    """Raise TypeError for a parameter whose state cannot be kept in ``state_dtype``."""
    for path, array in zip(spec.paths(), arrays, strict=True):
        if state_dtype is not None and not is_compatible(array.dtype.name, state_dtype):
            raise TypeError(
                f"{argument_name('params', path)} must have dtype {supported_dtypes(state_dtype)} "
                f"with state_dtype={state_dtype!r}; got {array.dtype.name}"
            )


def resolve_decay_mask(spec: TreeSpec, mask: DecayMask, arrays: Sequence[Array]) -> list[bool]:
    """Whether weight decay applies, for each tensor.

    Args:
        spec: the structure of the parameters.
        mask: a predicate of name and array, or booleans in that structure.
        arrays: the parameters, as the predicate is to see them.
    """
    if callable(mask):
        return [bool(mask(name, a)) for name, a in zip(spec.names(), arrays, strict=True)]
    return [bool(decays) for decays in spec.flatten("decay_mask", mask)]


_values_of = itemgetter(*HYPERPARAMETERS)


def hyperparams_at(groups: Sequence[ParamGroup], t: int, rates: Rates) -> list[Hyperparams]:
    """The hyper-parameters of step t, by group: schedules of lr are evaluated."""
    hypers = []
    for group in groups:
        lr, betas, eps, weight_decay = _values_of(group)
        hypers.append((lr(t) if callable(lr) else lr, betas, eps, weight_decay, rates))
    return hypers


def serialize_groups(groups: Sequence[ParamGroup]) -> list[ParamGroup]:
    """The groups of a state dict: the hyper-parameters alone."""
    return [
        {name: group[name] for name in HYPERPARAMETERS} | {"betas": tuple(group["betas"])}
        for group in groups
    ]


def _checked_groups(
    groups: Sequence[Mapping[str, Any]], hyperparams: Mapping[str, Any]
) -> list[ParamGroup]:
    defaults = {name: hyperparams[name] for name in HYPERPARAMETERS}
    for g, group in enumerate(groups):
        unknown = [key for key in group if key != "params" and key not in HYPERPARAMETERS]
        if unknown:
            allowed = ", ".join(["params", *HYPERPARAMETERS])
            raise ValueError(f"params[{g}]: unknown key {unknown[0]!r}; allowed: {allowed}")
    return [{"params": group["params"], **defaults, **group} for group in groups]


def _as_arrays(spec: TreeSpec, trees: Any, items: tuple[Any, ...]) -> list[Array]:
    """The parameters as NumPy arrays that share their memory."""
    with suppress(Exception):  # what NumPy cannot convert, the core refuses with a good message
        arrays = [np.asarray(item) for item in items]
        if all(map(_is_suitable, arrays)):
            return arrays
    BoundTensors(spec, trees, None)
    types = sorted({type(item).__name__ for item in items})
    raise TypeError(f"params must be NumPy arrays; got {types}")


def _is_suitable(array: Array) -> bool:
    flags = array.flags
    return array.dtype.name in ELEMENT_TYPES and (flags.c_contiguous or flags.f_contiguous)
