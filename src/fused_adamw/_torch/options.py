"""The options of a group that PyTorch's AdamW does not have."""

from itertools import chain, repeat
from typing import Any

from .._optim.options import OPTIONS, RATE_OPTIONS, roles_of
from .._optim.state_formats import StateOptions, check_roles

Group = dict[str, Any]  # of param_groups

DEFAULTS: Group = {name: option.default for name, option in OPTIONS.items() if option.torch}
RATES = DEFAULTS.keys() & RATE_OPTIONS
KERNEL_ONLY = tuple(name for name, default in DEFAULTS.items() if default is None)


def select(arguments: Group) -> Group:
    """Those of these arguments that are such options."""
    return {name: arguments[name] for name in DEFAULTS}


def kernel_only(group: Group) -> str | None:
    """The name of an option of the group that only the kernels implement: a group that has one
    never falls back to PyTorch."""
    return next((name for name in KERNEL_ONLY if group.get(name) is not None), None)


def check_group(group: Group) -> None:
    """Raise what is wrong with these options, or cannot be combined with them."""
    check(group)
    option = kernel_only(group)
    if option is None:
        return
    for name in ("foreach", "capturable", "differentiable"):
        if group.get(name):
            raise ValueError(f"{name}={group[name]} cannot be combined with {option}")
    for name in ("fused", "decoupled_weight_decay"):
        if group.get(name) is False:
            raise ValueError(f"{name}=False cannot be combined with {option}")


def check(group: Group) -> None:
    """Raise TypeError or ValueError for an invalid value."""
    for name in DEFAULTS:
        OPTIONS[name].check(name, group.get(name))
    check_roles(StateOptions(group.get("state_dtype"), roles_of(group)))


def keep_rates(saved: list[Group], groups: list[Group]) -> list[Group]:
    """The saved groups, with the decay rates of ``groups`` that they lack: an average that silently
    ended would be noticed too late."""
    own = chain(({k: group.get(k) for k in RATES} for group in groups), repeat({}))
    return [
        group | {k: x for k, x in rates.items() if x is not None and group.get(k) is None}
        for group, rates in zip(saved, own, strict=False)
    ]
