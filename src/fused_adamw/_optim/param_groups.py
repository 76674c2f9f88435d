"""Parameters and parameter groups, as the optimizer classes are given them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._core import (
    BoundTensors,
    ParamSources,
    TreeSpec,
    abbreviated,
    as_number,
    as_pair,
    require_known_keys,
    shown,
)
from .arrays import Array
from .options import HYPERPARAMETERS, OPTIONS, RATE_OPTIONS, SCHEDULED, DecayRates, check_flag
from .state_formats import ELEMENT_TYPES, is_compatible, supported_dtypes

ParamGroup: TypeAlias = dict[str, Any]
"""The parameters of a group under "params", and its hyper-parameters."""

Hyperparams: TypeAlias = tuple[float, tuple[float, float], float, float, DecayRates]
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


class Arrangement(NamedTuple):
    """What an optimizer keeps of its ``params``, whose arrays are those of ``sources``."""

    groups: list[ParamGroup]
    spec: TreeSpec
    grouped: bool  # whether params was a list of groups
    sources: ParamSources


def arrange(params: Any, hyperparams: Mapping[str, Any]) -> Arrangement:
    """Take an optimizer's ``params`` apart and check all but the memory of the arrays.

    Args:
        params: a nest of arrays, or a list of groups.
        hyperparams: the values for groups that have none of their own.

    Raises:
        TypeError, ValueError: naming the argument as the user wrote it (``params[0]['w']``).
    """
    grouped = _is_grouped(params)
    groups = _checked_groups(params if grouped else [{"params": params}], hyperparams)
    found = [group["params"] for group in groups]
    trees = found if grouped else found[0]
    spec = TreeSpec(trees, grouped)
    sources = ParamSources(spec, trees, GROUP_KEYS)
    if not _as_arrays(spec, trees, sources.arrays):
        raise ValueError("params must contain at least one array; got none")
    duplicates = [name for name, count in Counter(spec.names()).items() if count > 1]
    if duplicates:
        raise ValueError(f"params must have unique names; got duplicates {abbreviated(duplicates)}")
    return Arrangement(groups, spec, grouped, sources)


def has_nothing_else(params: Any, tree: Any) -> bool:
    """Whether the parameters of a group are in dicts, lists and tuples that have the items of
    ``tree`` and no others."""
    if isinstance(tree, dict):
        kept = type(params) is dict and len(params) == len(tree)
        return kept and all(has_nothing_else(params[key], tree[key]) for key in tree)
    if isinstance(tree, list):
        kept = type(params) in (list, tuple) and len(params) == len(tree)
        return kept and all(map(has_nothing_else, params, tree))
    return True


def _is_grouped(params: Any) -> bool:
    """Whether ``params`` is a list of groups: of dicts that have "params".

    Raises:
        TypeError: some of the items are groups and others are not, or an item has an option of
            groups, but no "params".
    """
    if not isinstance(params, (list, tuple)):
        return False
    groups = [isinstance(item, Mapping) and "params" in item for item in params]
    if any(groups) and not all(groups):
        raise TypeError("params must be all parameter groups or all arrays; got both")
    if not any(groups):
        _refuse_options(params)
    return any(groups)


def _refuse_options(items: Sequence[Any]) -> None:
    """Raise TypeError for an item with a value that can only be an option of a group."""
    for i, item in enumerate(items):
        for key in HYPERPARAMETERS if isinstance(item, Mapping) else ():
            if isinstance(item.get(key), Real) or callable(item.get(key)):
                raise TypeError(
                    f"params[{i}] must have the key 'params', as parameter groups have; got "
                    f"{key!r} without it"
                )


def check_state_support(spec: TreeSpec, arrays: Sequence[Array], state_dtype: str | None) -> None:
    """Raise TypeError for a parameter whose state cannot be kept in ``state_dtype``."""
    for name, array in zip(spec.argument_names("params"), arrays, strict=True):
        if state_dtype is not None and not is_compatible(array.dtype.name, state_dtype):
            raise TypeError(
                f"{name} must have dtype {supported_dtypes(state_dtype)} with "
                f"state_dtype={state_dtype!r}; got {array.dtype.name}"
            )


def resolve_decay_mask(spec: TreeSpec, mask: DecayMask, arrays: Sequence[Array]) -> list[bool]:
    """Whether weight decay applies, for each tensor.

    Args:
        spec: the structure of the parameters.
        mask: a predicate of name and array, or booleans in that structure.
        arrays: the parameters, as the predicate is to see them.
    """
    if callable(mask):
        pairs = zip(spec.names(), arrays, strict=True)
        return [check_flag(f"decay_mask({name!r}, ...)", mask(name, a)) for name, a in pairs]
    names, decays = spec.argument_names("decay_mask"), spec.flatten("decay_mask", mask)
    return list(map(check_flag, names, decays))


GROUP_KEYS = ("params", *HYPERPARAMETERS)
"""The keys that each group has, and no others."""


def serialize_groups(groups: Sequence[ParamGroup]) -> list[ParamGroup]:
    """The groups of a state dict: the hyper-parameters alone; bad ones, which steps refuse, as they
    are."""
    found = [{name: group[name] for name in HYPERPARAMETERS} for group in groups]
    for group in found:
        for name, value in group.items():
            with suppress(TypeError):
                group[name] = as_numbers(name, value)
    return found


def groups_repr(groups: Any) -> str:
    """A line for each group with its hyper-parameters; whatever else was assigned, which steps
    refuse, as it is."""
    if not isinstance(groups, Sequence):
        return f"\n    param_groups={shown(groups)}"
    lines = []
    for g, group in enumerate(groups):
        text = shown(group)
        if isinstance(group, Mapping):
            text = ", ".join(f"{k}={shown(group[k])}" for k in HYPERPARAMETERS if k in group)
        lines.append(f"\n    group {g}: {text}")
    return "".join(lines)


def as_numbers(name: str, value: Any) -> Any:
    """A hyper-parameter as numbers of Python, which share nothing with arrays of the caller; a
    schedule as it is.

    Raises:
        TypeError: naming it. The core checks whether its numbers are in range.
    """
    if name in SCHEDULED and callable(value):
        return value
    return as_pair(value) if name == "betas" else as_number(name, value)


def as_python_numbers(hyper: Hyperparams) -> Hyperparams:
    """Hyper-parameters as numbers of Python: objects of the caller may run any code, and compare
    in any way.

    Raises:
        TypeError, ValueError: one of them is no such number.
    """
    *values, rates = hyper
    lr, betas, eps, weight_decay = map(as_numbers, HYPERPARAMETERS, values)
    names = zip(RATE_OPTIONS, rates, strict=True)
    numbers = (None if x is None else OPTIONS[str(k)].check(str(k), x) for k, x in names)
    return lr, betas, eps, weight_decay, tuple(numbers)


def _checked_groups(
    groups: Sequence[Mapping[str, Any]], hyperparams: Mapping[str, Any]
) -> list[ParamGroup]:
    defaults = {name: hyperparams[name] for name in HYPERPARAMETERS}
    for g, group in enumerate(groups):
        require_known_keys(f"params[{g}]", group, GROUP_KEYS)
    found = [{"params": group["params"], **defaults, **group} for group in groups]
    for group in found:
        group |= {name: as_numbers(name, group[name]) for name in HYPERPARAMETERS}
    return found


def _as_arrays(spec: TreeSpec, trees: Any, items: tuple[Any, ...]) -> list[Array]:
    """The parameters as NumPy arrays that share their memory."""
    try:
        arrays = [np.asarray(item) for item in items]
        if all(map(_is_suitable, arrays)):
            return arrays
    except MemoryError:  # which says nothing about the items
        raise
    except Exception:  # what NumPy cannot convert, the core refuses with a good message
        pass
    BoundTensors(spec, trees, None)
    types = sorted({type(item).__name__ for item in items})
    raise TypeError(f"params must be NumPy arrays; got {types}")


def _is_suitable(array: Array) -> bool:
    flags = array.flags
    return array.dtype.name in ELEMENT_TYPES and (flags.c_contiguous or flags.f_contiguous)
