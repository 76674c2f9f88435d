"""The step of all groups: as the last one, where nothing but tensors and rates has changed."""

import torch
from torch.autograd.profiler import record_function

from .._core import GroupPlan, ReentrantLock, StepPlan
from .arguments import num_threads
from .dispatch import GroupDispatch, dispatch, run_all
from .grad_scaler import found_infinity, grad_scale_of
from .hooks import never_compiled
from .local_shards import PLAIN, increment_version
from .options import numbered
from .own_counts import require_own_counts
from .paths import note_paths
from .state import params_with_unused_masters

PROFILED_AS = "fused_adamw::adamw"


@never_compiled
def take_step(optimizer: torch.optim.AdamW) -> None:
    """Update all parameters that have a gradient, unless GradScaler found an infinity."""
    if torch.autograd._profiler_enabled():
        with record_function(PROFILED_AS):
            take_unprofiled_step(optimizer)
    else:
        take_unprofiled_step(optimizer)


def take_unprofiled_step(optimizer: torch.optim.AdamW) -> None:
    """``take_step`` without an entry for profilers."""
    attributes = optimizer.__dict__  # where calls would cost more than they find
    if "found_inf" in attributes and found_infinity(optimizer):
        return
    plan: StepPlan | None = attributes.get("_plan")
    if (
        plan is not None
        and ("grad_scale" not in attributes or grad_scale_of(optimizer) is None)
        and plan.step(optimizer.param_groups, optimizer.state)
    ):
        return
    lock: ReentrantLock = optimizer.exclusive()
    with lock.during("step"):
        optimizer.__dict__.pop("_plan", None)
        dispatches: list[list[GroupDispatch]] = []
        for first, group in numbered(optimizer.param_groups):
            dispatches.append(dispatch(optimizer, group, first))
        parts = [part for parts in dispatches for part in parts]
        require_own_counts(parts)
        note_paths(optimizer, dispatches)
        # Before anything changes: memory for it could be refused. Without the state that this step
        # adds, a plan steps nothing.
        plan = _plan_for(optimizer, dispatches, lock)
        if plan is not None:
            optimizer.__dict__["_plan"] = plan
        run_all(optimizer, parts)


def _plan_for(
    optimizer: torch.optim.AdamW, dispatches: list[list[GroupDispatch]], lock: ReentrantLock
) -> StepPlan | None:
    """To step like this again; None where not all tensors are stepped by the kernels, group by
    group."""
    groups: list[GroupPlan] = []
    for parts in dispatches:
        prepared = parts[0].prepared
        if len(parts) != 1 or prepared is None or parts[0].fallback.params:
            return None
        if parts[0].owners is not PLAIN:  # of DTensors
            return None
        if params_with_unused_masters(parts[0].group, optimizer.state):  # a plan does not drop them
            return None
        if isinstance(parts[0].group["lr"], torch.Tensor):  # whose number is read in Python
            return None
        groups.append(GroupPlan(parts[0].group, prepared, parts[0].rates))
    return StepPlan(
        groups,
        lock,
        num_threads=num_threads,
        increment_version=increment_version,
        num_modes=torch._C._len_torch_function_stack,
    )
