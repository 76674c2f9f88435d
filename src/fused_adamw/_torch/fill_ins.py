"""State that PyTorch's functions for distributed state dicts fill in.

``set_optimizer_state_dict`` takes a state dict of the optimizer and puts what was saved into it, in
place where that is in DTensors. Arrays that were not saved, or with ``broadcast_from_rank0`` not
under a name that every rank has, stay the optimizer's own beside the saved count of steps.
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from .._optim.state_formats import FROM_PARAMS
from .dtensors import has_other_ranks, is_in_group, local_of
from .local_shards import version_of
from .state import State

Versions: TypeAlias = Mapping[Tensor, Mapping[str, int]]

NOTED = "_noted_versions"  # attribute of the optimizer


class OwnState:
    """The state that an optimizer has while another one is loaded."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._state: Mapping[Tensor, State] = optimizer.state
        self._versions: Versions = vars(optimizer).get(NOTED, {})

    def without_fill_ins(self, p: Tensor, entry: State) -> State:
        """A saved entry without its own arrays, where these would start as the parameters."""
        own = self._fill_ins(p, entry)
        if not own or any(name not in FROM_PARAMS for name in own):
            return entry
        return {name: x for name, x in entry.items() if name not in own}

    def require_saved(
        self, where: str, p: Tensor, entry: State, loaded: Mapping[str, Tensor]
    ) -> None:
        """Raise ValueError where moments to be loaded are the optimizer's own, and so lost.

        Args:
            where: the entry, for the message.
            p: the parameter.
            entry: what was saved.
            loaded: of this, what is to be loaded, by role.
        """
        if not has_other_ranks():
            return
        own = {local_of(entry[name]).data_ptr() for name in self._fill_ins(p, entry)}
        if any(x.numel() and x.data_ptr() in own for x in loaded.values()):
            raise ValueError(
                f"{where} must be saved state on every rank; got that of this optimizer beside "
                "a saved count of steps, as broadcast_from_rank0 leaves arrays that not all ranks "
                "have. Give every rank the state dict, without broadcast_from_rank0"
            )

    def _fill_ins(self, p: Tensor, entry: State) -> list[str]:
        """The names of arrays that nothing was saved in."""
        own, versions = self._state.get(p, {}), self._versions.get(p, {})
        if _is_same(entry["step"], own.get("step")):
            return []
        return [
            name
            for name, x in entry.items()
            if _is_same(x, own.get(name))
            and (name not in versions or version_of(local_of(x)) == versions[name])
        ]


def note_versions(optimizer: torch.optim.Optimizer) -> None:
    """Note the versions of a state of which a state dict is made, in a process group."""
    if is_in_group():
        vars(optimizer)[NOTED] = {
            p: {k: version_of(local_of(x)) for k, x in entry.items() if isinstance(x, Tensor)}
            for p, entry in optimizer.state.items()
        }


def _is_same(x: object, own: object) -> bool:
    """Whether a tensor has the memory of the optimizer's own."""
    if not (isinstance(x, Tensor) and isinstance(own, Tensor)):
        return False
    if x is own:
        return True
    ours, theirs = local_of(own), local_of(x)
    return bool(theirs.numel() > 0 and theirs.data_ptr() == ours.data_ptr())
