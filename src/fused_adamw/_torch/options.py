"""The options of a group that PyTorch's AdamW does not have."""

from itertools import chain, repeat
from typing import Any

from .._optim.options import OPTIONS, RATE_OPTIONS, roles_of
from .._optim.state_formats import StateOptions, check_roles
from .state import is_stored_as

Group = dict[str, Any]  # of param_groups

DEFAULTS: Group = {name: option.default for name, option in OPTIONS.items() if option.torch}
RATES = DEFAULTS.keys() & RATE_OPTIONS
FLAGS = tuple(name for name, default in DEFAULTS.items() if default is False)
KERNEL_ONLY = tuple(name for name, x in DEFAULTS.items() if x is None or name in FLAGS)


def select(arguments: Group) -> Group:
    """Those of these arguments that are such options."""
    return {name: arguments[name] for name in DEFAULTS}


def kernel_only(group: Group) -> str | None:
    """The name of an option of the group that only the kernels implement: a group that has one
    never falls back to PyTorch."""
    for name in KERNEL_ONLY:  # each step asks: a loop takes half as long as a generator
        value = group.get(name)
        if value is not None and (value or name not in FLAGS):
            return name
    return None


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
        OPTIONS[name].check(name, group.get(name, DEFAULTS[name]))
    check_roles(StateOptions(group.get("state_dtype"), roles_of(group)))


def complete(saved: dict[str, Any], groups: list[Group]) -> list[Group]:
    """The groups of a state dict. Options that one lacks are those of the same one of ``groups``,
    as are decay rates that are None: an average that silently ended would be noticed too late."""
    own = chain(groups, repeat(DEFAULTS))
    pairs = zip(saved["param_groups"], own, strict=False)
    return [group | _lacking(group, other, saved["state"]) for group, other in pairs]


def _lacking(saved: Group, own: Group, state: dict[Any, Any]) -> Group:
    if DEFAULTS.keys().isdisjoint(saved) and DEFAULTS.keys().isdisjoint(own):
        return {}  # both are PyTorch's
    lacking = {name: own.get(name, default) for name, default in DEFAULTS.items()}
    entries = [state[i] for i in saved["params"] if i in state]
    if not is_stored_as(lacking["state_dtype"], entries):
        lacking["state_dtype"] = None
    return {
        name: value
        for name, value in lacking.items()
        if name not in saved or (name in RATES and saved[name] is None)
    }
