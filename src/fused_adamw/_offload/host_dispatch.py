"""The step of the parameters on the CPU, in an optimizer that off-loads the others."""

import torch

from .._torch.dispatch import GroupDispatch, dispatch, run_all
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


def step_compiled(optimizer: torch.optim.AdamW, lanes: Lanes) -> None:
    """The step in code that PyTorch compiles.

    Raises:
        RuntimeError: a parameter is off-loaded.
    """
    params = (p for group in optimizer.param_groups for p in group["params"])
    if any(lanes.of(p) is not None for p in params):
        raise RuntimeError(
            "off-loaded parameters must be stepped outside of torch.compile; got a compiled step()"
        )
    run_all(optimizer, dispatch_host(optimizer, lanes))
