"""The scales of DTensors' moments, in state dicts that can be loaded on any number of ranks.

An optimizer keeps one scale per block of the local shard. PyTorch's checkpoints divide each DTensor
between the ranks that load it, so a state dict has the scales as DTensors placed like the
parameter: one per block, in the memory that the optimizer uses, where each block is always on one
rank; else one per element. Loading brings them back to one per block. Blocks of elements that had
the same scale keep their bits; the moments of others are decoded, and encoded with a new scale.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._optim.state_formats import FORMATS
from .dtensors import block_grid, has_dtensors, is_dtensor, is_placed_like, local_of, new_dtensor
from .merged_blocks import merge_blocks
from .state import State, state_names

Group = dict[str, Any]
MOMENTS = ("m", "v")


def with_global_scales(groups: list[Group], saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict of an optimizer, with the scales of DTensors as DTensors."""
    if not has_dtensors(chain.from_iterable(group["params"] for group in groups)):
        return saved
    state = dict(saved["state"])
    for p, i, state_format in _with_scales(groups, saved):
        names = _names(state_format, is_dtensor(p)).values()
        if is_dtensor(p) and not state[i].keys().isdisjoint(names):
            scales = {name: _global_scale(p, state[i][name], state_format) for name in names}
            state[i] = state[i] | scales
    return {**saved, "state": state}


def with_local_scales(groups: list[Group], saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict with the scales as an optimizer with these groups keeps them.

    Raises:
        ValueError: they cannot be divided as the parameter is.
    """
    state = dict(saved["state"])
    for p, i, state_format in _with_scales(groups, saved):
        state[i] = _localized(p, state[i], state_format)
    return {**saved, "state": state}


def _with_scales(groups: list[Group], saved: dict[str, Any]) -> Iterator[tuple[Any, Any, str]]:
    """The parameters whose saved state has scales, with their keys and the state format."""
    for group, of_group in zip(groups, saved["param_groups"], strict=False):
        state_format = of_group.get("state_dtype")
        if state_format is None or FORMATS[state_format].block == 1:
            continue
        for p, i in zip(group["params"], of_group["params"], strict=False):
            if i in saved["state"]:
                yield p, i, state_format


def _names(state_format: str, sharded: bool) -> dict[str, str]:
    """The names of the scales of the moments."""
    names = state_names(state_format, (), sharded)
    return {role: names[f"{role}_scale"] for role in MOMENTS}


def _global_scale(p: Any, scale: Tensor, state_format: str) -> Any:
    """One per block, if that can be; else one per element."""
    local, block = local_of(p), FORMATS[state_format].block
    grid = block_grid(p._spec, block)
    if grid is None:
        spread = torch.empty_like(local, dtype=scale.dtype)
        _in_memory_order(spread).copy_(_per_element(scale, block, local.numel()))
        return new_dtensor(p, spread, tuple(p.shape), tuple(p.stride()))
    shape = (*local.shape[: len(grid) - 1], -1) if local.numel() else _empty(local, grid)
    return new_dtensor(p, scale.view(shape), grid)


def _empty(local: Tensor, grid: tuple[int, ...]) -> tuple[int, ...]:
    shape = (*local.shape[: len(grid) - 1], grid[-1])
    return shape if 0 in shape else (*shape[:-1], 0)


def _per_element(scale: Tensor, block: int, size: int) -> Tensor:
    return scale.repeat_interleave(block)[:size]


def _in_memory_order(x: Tensor) -> Tensor:
    """The elements of a dense tensor, as one dimension."""
    return x.as_strided((x.numel(),), (1,))


def _localized(p: Any, entry: State, state_format: str) -> State:
    """The state with scales of this parameter's kind. Those under the names of the other kind are
    of a gathered state dict, and preferred: PyTorch fills in what a state dict lacks."""
    own, other = (_names(state_format, is_dtensor(p) == flag) for flag in (True, False))
    given = other if entry.keys() >= set(other.values()) else own
    if not entry.keys() >= set(given.values()) or not (given is other or is_dtensor(p)):
        return entry
    rest = {name: x for name, x in entry.items() if name not in other.values()}
    block = FORMATS[state_format].block
    scales = {role: _local_scale(p, name, entry[name], block) for role, name in given.items()}
    per_block = -(-local_of(p).numel() // block)
    if all(scale.shape == (per_block,) for scale in scales.values()):
        return rest | {own[role]: scale for role, scale in scales.items()}
    return rest | _merged(p, entry, scales, state_format)


def _merged(p: Any, entry: State, scales: State, state_format: str) -> State:
    """The moments with scales per block, from those with scales per element."""
    names = state_names(state_format, (), is_dtensor(p))
    own = {role: _moment(p, names[role], entry.get(names[role])) for role in MOMENTS}
    arrays = {role: _in_memory_order(local_of(x)).numpy() for role, x in own.items()}
    for role, x in scales.items():
        spread = torch.empty_like(local_of(p), dtype=x.dtype, requires_grad=False).copy_(x)
        arrays[f"{role}_scale"] = _in_memory_order(spread).numpy()
    merged = merge_blocks(state_format, arrays)
    for role in MOMENTS:
        arrays[role][:] = merged[role]
    return {names[role]: own[role] for role in MOMENTS} | {
        names[f"{role}_scale"]: torch.from_numpy(merged[f"{role}_scale"]) for role in MOMENTS
    }


def _moment(p: Any, name: str, value: Any) -> Any:
    """A copy, in the memory order of the parameter."""
    if not _has_same_elements(p, value):
        raise ValueError(f"{name} must be placed like its parameter; got {_described(value)}")
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def _has_same_elements(p: Any, value: Any) -> bool:
    if not isinstance(value, Tensor) or is_dtensor(value) != is_dtensor(p):
        return False
    return value.shape == p.shape and (not is_dtensor(p) or is_placed_like(value, p))


def _local_scale(p: Any, name: str, value: Any, block: int) -> Tensor:
    """The scales of the elements of this rank or, flat, of its blocks."""
    if _has_same_elements(p, value):
        return local_of(value)
    if _has_own_blocks(p, value, block):
        return local_of(value).reshape(-1)
    if _has_all_blocks(p, value, block):
        return _distributed(p, value, block) if is_dtensor(p) else value.reshape(-1)
    raise ValueError(
        f"{name} must have a scale for each element or block of its parameter, placed like it; "
        f"got {_described(value)}"
    )


def _has_own_blocks(p: Any, value: Any, block: int) -> bool:
    if not (is_dtensor(p) and is_dtensor(value) and is_placed_like(value, p)):
        return False
    return tuple(value.shape) == block_grid(p._spec, block)


def _has_all_blocks(p: Any, value: Any, block: int) -> bool:
    """Whether these are the scales of all blocks, row by row; on this rank or on several."""
    if not isinstance(value, Tensor) or (is_dtensor(value) and not is_dtensor(p)):
        return False
    return value.numel() == -(-p.numel() // block) and bool(p.is_contiguous())


def _distributed(p: Any, value: Any, block: int) -> Tensor:
    """The scales of the elements of this rank, from those of all blocks."""
    from torch.distributed.tensor import distribute_tensor

    scale = (value.full_tensor() if is_dtensor(value) else value).reshape(-1)
    whole = _per_element(scale, block, p.numel()).view(p.shape)
    found = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
    return local_of(found).to(local_of(p).device)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    placed = f" placed {value.placements}" if is_dtensor(value) else ""
    return f"{type(value).__name__} of shape {tuple(value.shape)}{placed}"
