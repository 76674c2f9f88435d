"""Hooks of PyTorch's ``load_state_dict``, which prepare what it loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .state_dict import Loaded, to_load

RUNNING = "_running_loads"  # attribute of the optimizer


class _Load:
    """A load that runs; hooks of the user may begin another one within."""

    def __init__(self, convert: bool) -> None:
        self.convert = convert
        self.loaded: Loaded | None = None


@contextmanager
def prepared_load(optimizer: torch.optim.AdamW, convert: bool) -> Iterator[None]:
    """A block around PyTorch's ``load_state_dict``: what it loads is prepared by ``to_load`` after
    the hooks of the user, and what it must not change is added before those that come after it."""
    running: list[_Load] = vars(optimizer).setdefault(RUNNING, [])
    running.append(_Load(convert))
    hooks = []
    try:
        if len(running) == 1:  # PyTorch walks over the hooks when it calls them
            hooks.append(optimizer.register_load_state_dict_pre_hook(_prepare))
            hooks.append(optimizer.register_load_state_dict_post_hook(_add_state, prepend=True))
        yield
    finally:
        running.pop()
        for hook in hooks:
            hook.remove()


def _prepare(optimizer: Any, given: dict[str, Any]) -> dict[str, Any]:
    load: _Load = vars(optimizer)[RUNNING][-1]
    load.loaded = to_load(optimizer, given, load.convert, optimizer._target)
    return load.loaded.state_dict


def _add_state(optimizer: Any) -> None:
    load: _Load = vars(optimizer)[RUNNING][-1]
    assert load.loaded is not None
    for p, state in load.loaded.state.items():
        optimizer.state[p].update(state)
