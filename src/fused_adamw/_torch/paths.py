"""Which groups the kernels have updated and which PyTorch, and why, in words.

A step only notes what it was divided into; the words are found when somebody asks.
"""

from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._core import StepPlan
from .._optim.user_warnings import warn_user
from .dispatch import GroupDispatch
from .options import Group, asked_for_pytorch
from .reasons import reason_of

PYTORCH = str(Path(torch.__file__).parent)
"""Where the lines are that lead from the program of the user to ``step``."""

PartPaths = list[tuple[bool, list[Tensor]]]
"""Of the parts of a group: whether the kernels updated any of it, and what PyTorch did."""

PATHS, ASKED = "_noted_paths", "_noted_fallbacks"  # attributes of the optimizer


class GroupPath(NamedTuple):
    """What the last step of a group went through.

    Attributes:
        path: "kernels", "PyTorch", "both", or "none" where no parameter had a gradient.
        reason: Why PyTorch; "" for the kernels.
    """

    path: Literal["kernels", "PyTorch", "both", "none"]
    reason: str = ""


def note_paths(optimizer: torch.optim.AdamW, dispatches: list[list[GroupDispatch]]) -> None:
    """Keep what a step, which is to follow, is divided into.

    Warns:
        UserWarning: once per optimizer, where PyTorch is to update what was meant for the kernels.
    """
    noted: list[PartPaths] = [
        [
            (
                part.prepared is not None and part.prepared.num_supported > 0,
                part.owners.of(part.fallback.params),
            )
            for part in parts
        ]
        for parts in dispatches
    ]
    attributes = vars(optimizer)
    attributes[PATHS] = noted
    asked: set[int] | None = attributes.setdefault(ASKED, set())
    if asked is None:  # it has been warned of
        return
    for i, parts in enumerate(noted):
        if i not in asked and any(params for _, params in parts):
            asked.add(i)  # once per group: to look at the tensors takes longer than to step them
            if _warn_of_fallback(optimizer, i, parts):
                attributes[ASKED] = None
                return


def last_paths(optimizer: torch.optim.AdamW) -> list[GroupPath]:
    """Of each group, for the last step; [] before the first."""
    plan: StepPlan | None = getattr(optimizer, "_plan", None)
    updated = None if plan is None else plan.updated()
    if updated is not None:
        return [GroupPath("kernels" if flag else "none") for flag in updated]
    noted: list[PartPaths] = getattr(optimizer, PATHS, [])
    pairs = zip(optimizer.param_groups, noted, strict=False)
    return [_path(optimizer, group, parts) for group, parts in pairs]


def _path(optimizer: torch.optim.AdamW, group: Group, parts: PartPaths) -> GroupPath:
    params = [p for _, found in parts for p in found]
    by_kernels = any(flag for flag, _ in parts)
    if not params:
        return GroupPath("kernels" if by_kernels else "none")
    reason = asked_for_pytorch(group) or _reasons(optimizer, group, params)
    return GroupPath("both" if by_kernels else "PyTorch", reason)


def _warn_of_fallback(optimizer: torch.optim.AdamW, index: int, parts: PartPaths) -> bool:
    """Warn, unless the user asked for PyTorch's update, by an option or by parameters on a device;
    return whether it did."""
    group = optimizer.param_groups[index]
    params = [p for _, found in parts for p in found if p.device.type == "cpu"]
    if not params or asked_for_pytorch(group):
        return False
    count = sum(p.grad is not None for p in group["params"])
    warn_user(
        f"PyTorch, not fused_adamw, updates {len(params)} of {count} tensors of "
        f"param_groups[{index}]: {_reasons(optimizer, group, params)}. `last_path` of the "
        "optimizer reports each step; fused=False selects PyTorch without this warning",
        through=[PYTORCH],
    )
    return True


def _reasons(optimizer: torch.optim.AdamW, group: Group, params: list[Tensor]) -> str:
    reasons = Counter(reason_of(p, group, optimizer.state.get(p, {})) for p in params)
    return "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
