"""PyTorch's own update, for what the kernels do not support."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from .._core import DeferredSignals
from .flat_memory import strides_of
from .grad_scaler import grad_scale_of, unscale
from .options import Group
from .state import NOTHING, GroupTensors

CHECK_CAPTURE = (  # raises while a CUDA graph is captured; the name depends on the version
    getattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", None)
    or torch.optim.Optimizer._cuda_graph_capture_health_check
)


def init_group(optimizer: torch.optim.AdamW, group: Group) -> GroupTensors:
    """Collect the tensors of a step; PyTorch initializes the state of new parameters."""
    tensors = GroupTensors([], [], [], {"m": [], "v": []})
    params, grads, steps, state = tensors
    v_max: list[Tensor] = []
    # A signal could leave a parameter with half of its state. PyTorch 2.10 puts counts of steps on
    # the default device.
    with DeferredSignals(), _cpu_by_default():
        optimizer._init_group(group, params, grads, state["m"], state["v"], v_max, steps)
    if group["amsgrad"]:
        state["v_max"] = v_max
    return tensors


def _cpu_by_default() -> AbstractContextManager[object]:
    on_cpu = torch.get_default_device().type == "cpu"
    return nullcontext() if on_cpu else torch.device("cpu")


def step_with_torch(
    optimizer: torch.optim.AdamW,
    group: Group,
    tensors: GroupTensors,
    fusible: list[bool] | None,
) -> None:
    """Update the tensors, with unscaled gradients, as ``torch.optim.AdamW`` does. ``fusible``: of
    each, whether PyTorch's fused update is correct, where it is known."""
    if not tensors.params:
        return
    CHECK_CAPTURE(optimizer)
    fused, others = NOTHING, tensors
    if group["fused"]:
        if fusible is None:
            fusible = [_is_fusible(tensors, i) for i in range(len(tensors.params))]
        fused, others = tensors, NOTHING
        if not all(fusible):
            others, fused = tensors.split([i for i, x in enumerate(fusible) if x])
    scale = grad_scale_of(optimizer)  # divides float16 gradients in float32
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
        _adam(group, fused, foreach=False, fused=True, grad_scale=scale)
        unscale(optimizer, others.grads)
        if group["fused"]:
            _adam(group, others, foreach=False, fused=False)
        else:
            _adam(group, others, foreach=group["foreach"], fused=group["fused"])


def refuse_sparse(optimizer: torch.optim.AdamW, group: Group, grads: Iterable[Tensor]) -> None:
    """Raise what PyTorch raises for sparse gradients."""
    if any(grad.is_sparse for grad in grads):
        optimizer._init_group(group, [], [], [], [], [], [])


def _is_fusible(tensors: GroupTensors, i: int) -> bool:
    """Whether PyTorch's fused update is correct here: on the CPU it ignores strides."""
    p = tensors.params[i]
    if p.device.type != "cpu":
        return True
    moments = (arrays[i] for arrays in tensors.state.values())
    strides = {strides_of(tensor) for tensor in (p, tensors.grads[i], *moments)}
    return strides == {strides_of(torch.empty_like(p, device="meta"))}  # those of p, if it is dense


def _adam(group: Group, tensors: GroupTensors, **implementation: Any) -> None:
    if not tensors.params:
        return
    beta1, beta2 = group["betas"]
    adam(
        tensors.params,
        tensors.grads,
        tensors.state["m"],
        tensors.state["v"],
        tensors.state.get("v_max", []),
        tensors.steps,
        **implementation,
        capturable=group["capturable"],
        differentiable=group["differentiable"],
        has_complex=any(map(torch.is_complex, tensors.params)),
        decoupled_weight_decay=group["decoupled_weight_decay"],
        amsgrad=group["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
