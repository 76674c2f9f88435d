"""The options of a group that PyTorch's AdamW does not have."""

from itertools import chain, repeat
from typing import Any

from .._core import check_seed
from .._optim.state_formats import check_amsgrad, check_state_dtype

Group = dict[str, Any]  # of param_groups

DEFAULTS: Group = {"state_dtype": None, "seed": 0, "ema_decay": None}


def kernel_only(group: Group) -> str | None:
    """The name of an option of the group that only the kernels implement: a group that has one
    never falls back to PyTorch."""
    if group.get("state_dtype") is not None:
        return "state_dtype"
    return "ema_decay" if group.get("ema_decay") is not None else None


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
    check_seed(group.get("seed"))
    _check_ema_decay(group.get("ema_decay"))
    state_dtype = check_state_dtype("state_dtype", group.get("state_dtype"))
    check_amsgrad(state_dtype, group.get("amsgrad", False))


def _check_ema_decay(ema_decay: float | None) -> None:
    if ema_decay is None:
        return
    if isinstance(ema_decay, str) or not hasattr(ema_decay, "__float__"):
        found = f"{ema_decay!r} ({type(ema_decay).__name__})"
        raise TypeError(f"ema_decay must be a real number; got {found}")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be at least 0 and less than 1; got {ema_decay}")


def keep_ema_decay(saved: list[Group], groups: list[Group]) -> list[Group]:
    """The saved groups, with the ``ema_decay`` of ``groups`` where they have none: an average that
    silently ended would be noticed too late."""
    own = chain((group.get("ema_decay") for group in groups), repeat(None))
    return [
        group
        if group.get("ema_decay") is not None or decay is None
        else group | {"ema_decay": decay}
        for group, decay in zip(saved, own, strict=False)
    ]
