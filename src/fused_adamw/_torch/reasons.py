"""Why no kernel supports a parameter, in words, as far as it can be seen from its tensors."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._core import abbreviated
from .._optim.state_formats import (
    ELEMENT_TYPES,
    FROM_PARAMS,
    format_of,
    is_compatible,
    supported_dtypes,
)
from .dtensors import is_dtensor, is_part_of_same, local_of
from .flat_memory import is_dense, same_strides
from .options import Group
from .state import (
    ORDINARY,
    State,
    dtype_name,
    has_elements,
    is_narrow,
    layout_of,
    options_of,
    state_names,
    torch_dtype,
)

OTHER = "sharing memory with other tensors, or unsupported for another reason"
NO_STEPS = torch.zeros((), device="cpu")


def reason_of(p: Tensor, group: Group, state: State) -> str:
    """What is wrong with a parameter of a group, its gradient or its state."""
    local = local_of(p)
    if p.device.type != "cpu":
        return f"on device {p.device}"
    if type(local) not in ORDINARY:
        return f"of class {type(p).__name__}"
    if p.layout is not torch.strided:
        return f"of layout {p.layout}"
    if not has_kernel(p, group):
        hint = dtype_hint(p)
        return f"of dtype {p.dtype}" + (f", which {hint}" if hint else "")
    if local.is_neg():
        return "a negated view"
    if not is_dense(local):
        return "with gaps or overlaps in memory"
    return _of_step(state) or _of_gradient(p) or _of_state(p, group, state) or OTHER


def has_kernel(p: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether there is a kernel for this dtype with the `state_dtype` of the group."""
    name = dtype_name(p.dtype)
    return name in ELEMENT_TYPES and is_compatible(name, format_of(name, group.get("state_dtype")))


def dtype_hint(p: Tensor) -> str:
    """What to do about a dtype without a kernel, if there is something."""
    return "needs state_dtype=None" if has_kernel(p, {}) else ""


def refuse(
    group: Group, option: str, params: Mapping[int, Tensor], state: Mapping[Tensor, State]
) -> NoReturn:
    """Raise for parameters, by their numbers, of a group that nothing may be left to PyTorch of."""
    dtypes = supported_dtypes(group.get("state_dtype"))
    numbers: dict[str, list[int]] = {}
    for i, p in params.items():
        numbers.setdefault(reason_of(p, group, state.get(p, {})), []).append(i)
    reasons = (f"{abbreviated(found, most=10)} ({reason})" for reason, found in numbers.items())
    raise TypeError(
        f"{option}={group[option]!r} requires dense {dtypes} CPU parameters with gradients and "
        f"state that match; unsupported: parameters {', '.join(reasons)}"
    )


def _of_step(state: State) -> str:
    step = state.get("step", NO_STEPS)
    if not isinstance(step, Tensor):
        return "with a count of steps that is not a tensor"
    if step.device.type != "cpu" or step.dtype not in (torch.float32, torch.float64):
        return f"with a count of steps of dtype {step.dtype} on device {step.device}"
    if step.numel() != 1:
        return f"with a count of steps of shape {tuple(step.shape)}"
    if not (float(step) >= 0 and float(step).is_integer()):
        return f"with a count of steps of {float(step)}"
    return ""


def _of_gradient(p: Tensor) -> str:
    grad = p.grad
    if grad is None:
        return ""
    if not is_part_of_same(grad, p):
        return "with gradient divided between the ranks in another way"
    is_wide = grad.dtype == torch.float32 and is_narrow(p)
    difference = _difference(local_of(grad), local_of(p), grad.dtype if is_wide else p.dtype)
    return difference and f"with gradient {difference}"


def _of_state(p: Tensor, group: Group, state: State) -> str:
    local, options = local_of(p), options_of(p, group)
    layout = layout_of(local, options)
    for role, name in state_names(*options, is_dtensor(p)).items():
        x = state.get(name)
        if not isinstance(x, Tensor):
            if not state or (role in FROM_PARAMS and name not in state):  # the step makes it
                continue
            return f"without the tensor {name}"
        storage, shape = layout[role]
        is_like_param = has_elements(role, shape, local)
        if is_like_param and not is_part_of_same(x, p):
            return f"with {name} divided between the ranks in another way"
        like = local if is_like_param else torch.empty(shape, device="meta")
        difference = _difference(local_of(x), like, torch_dtype(storage))
        if difference:
            return f"with {name} {difference}"
    return ""


def _difference(x: Tensor, like: Tensor, dtype: torch.dtype) -> str:
    if type(x) not in ORDINARY:
        return f"of class {type(x).__name__}"
    if x.layout is not torch.strided or x.device.type != "cpu":
        return f"of layout {x.layout} on device {x.device}"
    if x.dtype != dtype:
        return f"of dtype {x.dtype}"
    if x.shape != like.shape:
        return f"of shape {tuple(x.shape)}"
    if x.is_neg():
        return "that is a negated view"
    if not same_strides(x, like):
        return f"in a memory layout of its own (strides {x.stride()}, not {like.stride()})"
    return ""
