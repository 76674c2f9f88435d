"""The options of a group that PyTorch's AdamW does not have."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any, TypeVar

from .._core import printable_integer, shown
from .._optim.options import HYPERPARAMETERS, OPTIONS, RATE_OPTIONS, roles_of
from .._optim.state_formats import StateOptions, check_roles

Group = dict[str, Any]  # of param_groups
AnyGroup = TypeVar("AnyGroup", bound=Mapping[str, Any])

DEFAULTS: Group = {name: option.default for name, option in OPTIONS.items() if option.torch}
RATES = DEFAULTS.keys() & RATE_OPTIONS
FLAGS = tuple(name for name, default in DEFAULTS.items() if default is False)
KERNEL_ONLY = tuple(name for name, x in DEFAULTS.items() if x is None or name in FLAGS)

OF_STORAGE = tuple(name for name in DEFAULTS if not OPTIONS[name].saved)
"""The options that decide how state is stored, which loading does not change."""


ADAMW = {"decoupled_weight_decay": True}
"""What PyTorch's AdamW sets in the groups that it loads, those of Adam too."""

UPDATES = ("foreach", "fused", "capturable", "differentiable")
"""PyTorch's options that choose one of its updates."""

_WITH_KERNELS: dict[str, tuple[bool | None, ...]] = {
    "capturable": (False,),
    "differentiable": (False,),
    "decoupled_weight_decay": (True,),
    "fused": (None, True),
    "foreach": (None, False),
}
"""The values of PyTorch's options that leave the update to the kernels."""


def numbered(groups: Iterable[AnyGroup]) -> Iterator[tuple[int, AnyGroup]]:
    """Each group, and the number of its first parameter among all of the optimizer."""
    first = 0
    for group in groups:
        yield first, group
        first += len(group["params"])


def select(arguments: Group) -> Group:
    """The arguments of a constructor that are options of its groups."""
    return {name: arguments[name] for name in DEFAULTS}


def kernel_only(group: Group) -> str | None:
    """The name of an option of the group that only the kernels implement: a group that has one
    never falls back to PyTorch."""
    for name in KERNEL_ONLY:  # each step asks: a loop takes half as long as a generator
        value = group.get(name)
        if value is not None and (value or name not in FLAGS):
            return name
    return None


def require_in_range(arguments: Group) -> None:
    """Raise ValueError for an integer that no float64 can be: PyTorch's messages would fail to
    write it."""
    for name in HYPERPARAMETERS:
        value = arguments[name]
        pair = isinstance(value, (tuple, list))
        numbers = {f"{name}[{i}]": x for i, x in enumerate(value)} if pair else {name: value}
        for where, number in numbers.items():
            if isinstance(number, int) and not isinstance(number, bool):
                printable_integer(where, number)


def check_group(group: Group) -> None:
    """Raise what is wrong with these options, or cannot be combined with them."""
    check(group)
    option = kernel_only(group)
    if option is not None:
        require_kernels(group, f"{option}={group[option]!r}")


def require_kernels(group: Mapping[str, Any], feature: str) -> None:
    """Raise ValueError for options that ask for PyTorch's own updates, which lack a feature."""
    for name, allowed in _WITH_KERNELS.items():
        if not _leaves_to_kernels(group, name):
            listed = " or ".join(map(repr, allowed))
            raise ValueError(f"{name} must be {listed} with {feature}; got {shown(group[name])}")


def asked_for_pytorch(group: Group) -> str:
    """The option that chooses PyTorch's update, as in "fused=False"; "" where the kernels may step
    the group, as far as its options show. PyTorch disregards ``foreach`` where ``fused`` is set."""
    for name in _WITH_KERNELS:
        ignored = name == "foreach" and group["fused"] is not None
        if not (ignored or _leaves_to_kernels(group, name)):
            return f"{name}={group[name]!r}"
    return ""


def _leaves_to_kernels(group: Mapping[str, Any], name: str) -> bool:
    value = group.get(name)
    return value is None or bool(value) in _WITH_KERNELS[name]


def check(group: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for an invalid value."""
    for name in DEFAULTS:
        OPTIONS[name].check(name, group.get(name, DEFAULTS[name]))
    check_roles(StateOptions(group.get("state_dtype"), roles_of(group)))


def require_hyperparams(saved: dict[str, Any]) -> None:
    """Raise TypeError where a group of a state dict is no dict, and ValueError where it lacks one
    of AdamW's numbers, as those of other optimizers do."""
    for i, group in enumerate(saved["param_groups"]):
        if not isinstance(group, dict):
            kind = type(group).__name__
            raise TypeError(f"state_dict['param_groups'][{i}] must be a dict; got {kind}")
        missing = [name for name in HYPERPARAMETERS if name not in group]
        if missing:
            raise ValueError(
                f"state_dict['param_groups'][{i}] must have {', '.join(HYPERPARAMETERS)}; missing "
                f"{missing}"
            )


def complete(saved: dict[str, Any], groups: list[Group]) -> list[Group]:
    """The groups of a state dict, with the options of the same one of ``groups``: those that decide
    how state is stored; those that a saved group lacks; decay rates that are None there, as an
    average that silently ended would be noticed too late; and, where only the kernels can update a
    group, those that choose among PyTorch's updates."""
    pairs = zip(saved["param_groups"], chain(groups, repeat(DEFAULTS)), strict=False)
    return [group | _own(group, other) | _chosen_update(other) | ADAMW for group, other in pairs]


def _chosen_update(own: Group) -> Group:
    return {} if kernel_only(own) is None else {x: own[x] for x in UPDATES if x in own}


def _own(saved: Group, own: Group) -> Group:
    if DEFAULTS.keys().isdisjoint(saved) and DEFAULTS.keys().isdisjoint(own):
        return {}  # both are PyTorch's
    return {
        name: own.get(name, default)
        for name, default in DEFAULTS.items()
        if name in OF_STORAGE or name not in saved or (name in RATES and saved[name] is None)
    }
