"""State that PyTorch's functions for distributed state dicts fill in.

``set_optimizer_state_dict`` takes a state dict of the optimizer and puts what was saved into it, in
place where that is in DTensors. Arrays that were not saved, or with ``broadcast_from_rank0`` not
under a name that every rank has, stay the optimizer's own beside the saved count of steps.
"""

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._optim.state_formats import FORMATS
from .dtensors import local_of
from .local_shards import version_of
from .options import Group
from .state import State, is_scale, state_names

NOTED = "_noted_tensors"  # attribute of the optimizer
STATE_DICT_MODULE = "torch.distributed.checkpoint.state_dict"
SETTERS = ("set_optimizer_state_dict", "set_state_dict")
MOMENTS = {
    frozenset(state_names(state_format, (), sharded).values())
    for state_format in FORMATS
    for sharded in (False, True)
}
"""The names of all that the moments are stored in, in each format."""
ARRAYS = {name for names in MOMENTS for name in names if not is_scale(name)}
"""Of these, the names of what has an item for each element."""


class Noted(NamedTuple):
    """A tensor of a state dict, as it was when the state dict was made."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, x: Tensor) -> "Noted":
        return cls(local_of(x), version_of(local_of(x)))

    def is_still(self, x: object) -> bool:
        """Whether this is that tensor, to which nothing has been written. Another one may have the
        same memory: a program loads what the optimizer has, beside other counts of steps."""
        if not isinstance(x, Tensor):
            return False
        found = local_of(x)
        return found is self.tensor and version_of(found) == self.version


def to_be_filled(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict of the optimizer; one that PyTorch is about to fill with tensors that nothing
    else refers to, which are noted. One that is made otherwise ends what was noted before, for a
    load that failed."""
    vars(optimizer).pop(NOTED, None)
    if not _is_being_set():
        return saved
    state, noted = dict(saved["state"]), {}
    for p, i, *_ in saved_entries(optimizer.param_groups, saved):
        tensors = {k: x.detach() for k, x in state[i].items() if isinstance(x, Tensor)}
        state[i] = state[i] | tensors
        noted[p] = {k: Noted.of(x) for k, x in tensors.items()}
    vars(optimizer)[NOTED] = noted
    return {**saved, "state": state}


def without_fill_ins(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict to be loaded, without arrays in which nothing was saved: averages and master
    weights start from the parameters then.

    Raises:
        ValueError: moments were not saved, and so are lost.
    """
    noted: Mapping[Tensor, Mapping[str, Noted]] = vars(optimizer).pop(NOTED, {})
    if not noted:
        return saved
    state = dict(saved["state"])
    for p, i, *_ in saved_entries(optimizer.param_groups, saved):
        entry = _without(f"state_dict['state'][{i!r}]", state.pop(i), noted.get(p, {}))
        if entry is not None:
            state[i] = entry
    return {**saved, "state": state}


def _is_initial(entry: State) -> bool:
    """Whether this is of the step with zeros for gradients by which PyTorch makes an optimizer
    have state: it has master weights and averages of weights that may be loaded later."""
    step = entry["step"]
    moments = (local_of(entry[name]) for name in ARRAYS & entry.keys())
    return float(step) == 1 and not any(bool(x.any()) for x in moments)


def _without(where: str, entry: State, noted: Mapping[str, Noted]) -> State | None:
    """None for an entry to start without."""
    own = {name for name, found in noted.items() if found.is_still(entry.get(name))}
    if "step" in own:  # nothing was saved of this parameter
        return None if _is_initial(entry) else entry
    saved = {name: x for name, x in entry.items() if name not in own}
    if own and not any(saved.keys() >= names for names in MOMENTS):
        raise ValueError(
            f"{where} must be saved state on every rank; got that of this optimizer beside a saved "
            "count of steps, as broadcast_from_rank0 leaves arrays that not all ranks have. Give "
            "every rank the state dict, without broadcast_from_rank0"
        )
    return saved


def saved_entries(
    groups: list[Group], saved: Mapping[str, Any]
) -> Iterator[tuple[Any, Any, Group, Group]]:
    """The parameters that have saved state, its key, and their group here and in the state dict."""
    for group, of_group in zip(groups, saved["param_groups"], strict=False):
        for p, i in zip(group["params"], of_group["params"], strict=False):
            if isinstance(saved["state"].get(i), dict):
                yield p, i, group, of_group


def _is_being_set() -> bool:
    """Whether one of SETTERS runs. Nothing else in what it loads shows it: a state dict with other
    numbers of steps may as well be one that a program has edited."""
    if STATE_DICT_MODULE not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in SETTERS and frame.f_globals.get("__name__") == STATE_DICT_MODULE:
            return True
        frame = frame.f_back
    return False
