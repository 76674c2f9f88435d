"""Loads saved state into host memory, and never onto the device of the parameters."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._optim.state_formats import ELEMENT_TYPES
from .._torch.state import State, state_names
from .lanes import Lanes
from .twin import dtype_name, kind_on_host, local, new_state

Groups = Sequence[Mapping[str, Any]]


def offloaded(
    saved: Mapping[str, Any], groups: Groups, lanes: Lanes
) -> Iterator[tuple[Any, Tensor, Mapping[str, Any]]]:
    """The saved key, the parameter and the group of each parameter on a device."""
    for old, group in zip(saved["param_groups"], groups, strict=False):
        for key, p in zip(old["params"], group["params"], strict=False):
            if lanes.of(p) is not None:
                yield key, p, group


def without(saved: dict[str, Any], keys: set[Any]) -> dict[str, Any]:
    """The same without the state of these parameters."""
    return {**saved, "state": {k: x for k, x in saved["state"].items() if k not in keys}}


def host_state(p: Tensor, group: Mapping[str, Any], entry: Mapping[str, Any]) -> State:
    """A copy of the saved state of a parameter: in the order of its elements in memory, and in the
    dtype of its kind where that is wider. Master weights in another dtype are left out: they start
    again from the parameter."""
    if dtype_name(p) not in ELEMENT_TYPES:
        return dict(entry)
    kind = kind_on_host(p, group)
    names, made = state_names(*kind), new_state(local(p), kind)
    roles = {name: role for role, name in names.items()}
    state: State = {}
    for name, value in entry.items():
        if not isinstance(value, Tensor) or name == "step":
            step = value.item() if isinstance(value, Tensor) else value
            state[name] = torch.tensor(float(step)) if name == "step" else value
            continue
        value = local(value).detach()
        target = made.get(name) if name in roles else None
        if target is None or target.shape != value.shape:
            state[name] = value.to("cpu", copy=True)
        elif _fits(value.dtype, target.dtype):
            state[name] = target.copy_(value)
        elif roles[name] != "master":
            state[name] = value.to("cpu", copy=True)
    return state


def _fits(saved: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a value can be kept in the wanted dtype without loss."""
    both = saved.is_floating_point and wanted.is_floating_point
    return saved == wanted or bool(both and wanted.itemsize > saved.itemsize)
