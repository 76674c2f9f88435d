"""The step of all parameters: those on devices by the engine, those on the CPU as in the class for
these."""

from typing import Any, TypeAlias

import torch

from .._core import DeferredSignals, clip_factor
from .._torch.dispatch import GroupDispatch, dispatch, run_all
from .._torch.grad_scaler import found_infinity, grad_scale_of, is_scaled, unscale
from .._torch.hooks import never_compiled
from .._torch.options import numbered
from .._torch.own_counts import require_own_counts
from .._torch.paths import note_paths
from . import overlap
from .engine import CheckedUpdate
from .lanes import Lanes
from .modules import require_waited, require_whole_norm

AdamW: TypeAlias = Any  # that of fused_adamw.offload, which imports this module
NO_GRADIENT = torch.nn.Parameter(torch.empty(0, device="cpu"))


@never_compiled
def take_step(optimizer: AdamW) -> None:
    """Update all parameters that have a gradient, unless GradScaler found an infinity."""
    engine = optimizer._engine()
    overlap.require_unscaled(engine, optimizer)
    if not found_infinity(optimizer):
        with optimizer.exclusive().during("step"), overlap.whole_after_errors(engine):
            _step(optimizer)


def _step(optimizer: AdamW) -> None:
    engine, order = optimizer._engine(), optimizer._order()
    if order is not None:
        order.require_same_params()
    scale = grad_scale_of(optimizer)
    clips = optimizer.max_grad_norm is not None
    require_whole_norm(optimizer.param_groups, optimizer.max_grad_norm)
    updates = engine.check(
        optimizer.param_groups,
        optimizer.state,
        with_host=clips,
        grad_scale=1.0 if scale is None else 1 / scale.item(),
    )
    require_used_in_order(optimizer, updates)
    engine.wait_for([p for p in engine.pending if p not in engine.begun])
    dispatches = _dispatch_host(optimizer, engine.lanes, by_engine=clips)
    overlap.require_unchanged(engine, optimizer.param_groups, clips)
    clip = 1.0
    if clips:
        if is_scaled(optimizer):
            engine.forget_sums()  # unscale_ changes gradients, and no version counts it
        norm = engine.norm(updates)
        clip = clip_factor(norm, optimizer.max_grad_norm)
        optimizer.grad_norm = norm
    if order is not None:
        updates.sort(key=lambda update: order.sort_key(update.p))
    grads = [update.p.grad for update in updates if update.p.grad is not None]
    with DeferredSignals():
        ready = engine.make_ready(updates, clip)
        run_all(optimizer, dispatches)
        engine.begin(ready, optimizer.state)
        _finish(optimizer, updates)
    if order is None:
        engine.synchronize()
    else:
        engine.wait_for([p for p in engine.pending if p not in order.params])
    unscale(optimizer, [] if order else grads)


def _finish(optimizer: AdamW, updates: list[CheckedUpdate]) -> None:
    """What ``overlapped`` has begun is of this step; with ``module`` the gradients are used up."""
    engine, order = optimizer._engine(), optimizer._order()
    used = [*engine.begun, *(update.p for update in updates)]
    if order is not None:
        order.start(used)
        for p in used:
            p.grad = None
    engine.begun.clear()
    engine.updated = set(used)


def require_used_in_order(optimizer: AdamW, updates: list[CheckedUpdate]) -> None:
    """Raise RuntimeError where parameters have been used before their update."""
    if optimizer._order() is not None and updates:
        indices = {update.p: update.host_state.index for update in updates}
        require_waited(list(indices), optimizer._engine().pending, indices)


def _dispatch_host(
    optimizer: torch.optim.AdamW, lanes: Lanes, by_engine: bool
) -> list[GroupDispatch]:
    """Prepare the step of the parameters on the CPU. ``by_engine``: nothing, as the engine steps
    them with the others, for one norm."""
    dispatches: list[list[GroupDispatch]] = []
    for first, group in numbered(optimizer.param_groups):
        params = [p if lanes.of(p) is None else NO_GRADIENT for p in group["params"]]
        has_any = not by_engine and any(p.grad is not None for p in params)
        own = group | {"params": params}
        dispatches.append(dispatch(optimizer, own, first) if has_any else [])
    parts = [part for parts in dispatches for part in parts]
    require_own_counts(parts)
    note_paths(optimizer, dispatches)
    return parts
