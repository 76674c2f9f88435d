"""The step of the parameters on the CPU, in an optimizer that off-loads the others."""

import torch

from .._torch.dispatch import GroupDispatch, dispatch
from .._torch.options import numbered
from .._torch.paths import note_paths
from .lanes import Lanes

NO_GRADIENT = torch.nn.Parameter(torch.empty(0, device="cpu"))


def dispatch_host(
    optimizer: torch.optim.AdamW, lanes: Lanes, none: bool = False
) -> list[GroupDispatch]:
    """Prepare it. ``none``: it is planned otherwise."""
    dispatches: list[list[GroupDispatch]] = []
    for first, group in numbered(optimizer.param_groups):
        params = [p if lanes.of(p) is None else NO_GRADIENT for p in group["params"]]
        has_any = not none and any(p.grad is not None for p in params)
        own = group | {"params": params}
        dispatches.append(dispatch(optimizer, own, first) if has_any else [])
    note_paths(optimizer, dispatches)
    return [part for parts in dispatches for part in parts]
