"""State dicts of optimizers in process groups, which can be loaded on any number of ranks.

An optimizer keeps one scale per block of the local shard. PyTorch's checkpoints divide each DTensor
between the ranks that load it, and a block there may be of parts of two. A state dict has the
scales as DTensors placed like the parameter, one per cell: the part of a block that stays together.
Loading brings them back to one per block. Blocks whose cells had the same scale keep their bits;
the moments of others are decoded, and encoded with a new scale.

Master weights of 16 bits are pairs of bytes there: no collective operation knows 16-bit integers.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._optim.state_formats import FORMATS, has_scales
from .dtensors import (
    grid_of,
    has_dtensors,
    is_dtensor,
    is_in_group,
    is_part_of_same,
    is_placed_like,
    local_of,
    new_dtensor,
    placed_like,
    placements_of,
    redistributed,
)
from .fill_ins import saved_entries, to_be_filled
from .flat_memory import flat_view, in_order_of, is_dense
from .merged_blocks import merge_blocks
from .options import Group
from .state import State, is_in_blocks, is_ordinary, is_scale, state_names

MOMENTS = ("m", "v")
Strides = tuple[int, ...]


def portable_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict of an optimizer, as others can load it."""
    return to_be_filled(optimizer, _portable(optimizer.param_groups, saved))


def _portable(groups: list[Group], saved: dict[str, Any]) -> dict[str, Any]:
    if not (
        is_in_group() or has_dtensors(chain.from_iterable(group["params"] for group in groups))
    ):
        return saved
    state = dict(saved["state"])
    for p, i, state_format in _entries(groups, saved):
        integers = {k: x for k, x in state[i].items() if getattr(x, "dtype", 0) == torch.int16}
        state[i] = state[i] | {name: _as_bytes(p, x) for name, x in integers.items()}
        if state_format and is_dtensor(p) and _has_shard_scales(state[i], state_format):
            state[i] |= _global_scales(p, state[i], state_format)
    return {**saved, "state": state}


def state_to_load(groups: list[Group], saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict as an optimizer with these groups keeps it.

    Raises:
        ValueError: what is saved of a parameter cannot be divided as the parameter is.
    """
    state = dict(saved["state"])
    for p, i, state_format in _entries(groups, saved):
        if is_dtensor(p):
            state[i] = _moved(p, state[i])
        master = state[i].get("master")
        if isinstance(master, Tensor) and master.dtype == torch.int8:
            state[i] = state[i] | {"master": _from_bytes(master)}
        strides = _order_of_blocks(p, state[i])
        if is_dtensor(p):
            state[i] = _in_order(p, _divided(p, state[i]))
        if state_format:
            state[i] = _with_own_scales(p, state[i], state_format, strides)
    return {**saved, "state": state}


def restore_masters(state: Mapping[Tensor, State], params: Iterable[Tensor]) -> bool:
    """Give the state of parameters the master weights as an optimizer keeps them, where other code
    has put those of a state dict into it, as ``ZeroRedundancyOptimizer`` does. Returns whether
    there were any."""
    found = False
    for p in params:
        master = state.get(p, {}).get("master")
        if isinstance(master, Tensor) and master.dtype == torch.int8:
            state[p]["master"] = _from_bytes(master)
            found = True
    return found


def _moved(p: Any, entry: State) -> State:
    """The state with the parts of this rank, of DTensors that are divided in another way. Scales
    stay: they are found in those of the whole."""
    dims = len(p.shape)
    return {
        name: redistributed(x, p)
        if is_dtensor(x) and x.shape[:dims] == p.shape and not is_scale(name)
        else x
        for name, x in entry.items()
    }


def _divided(p: Any, entry: State) -> State:
    """The state with this rank's part of arrays that were gathered."""
    return {
        name: new_dtensor(p, _part_of(p, x), tuple(p.shape), tuple(p.stride()))
        if _is_whole(p, name, x)
        else x
        for name, x in entry.items()
    }


def _in_order(p: Any, entry: State) -> State:
    """The state with its elements where those of the parameter are. Blocks stay as they are: their
    scales are those of their own order."""
    return {
        name: x if not _has_same_elements(p, x) or is_in_blocks(name) else _like_local(p, x)
        for name, x in entry.items()
    }


def _like_local(p: Any, x: Any) -> Any:
    found = local_of(x)
    ordered = in_order_of(local_of(p), found) if is_ordinary(found) else found
    return x if ordered is found else placed_like(p, ordered)


def _is_whole(p: Any, name: str, x: Any) -> bool:
    has_elements = isinstance(x, Tensor) and not is_dtensor(x) and x.shape == p.shape
    return has_elements and name != "step" and not is_scale(name)


def _entries(groups: list[Group], saved: dict[str, Any]) -> Iterator[tuple[Any, Any, str | None]]:
    """The parameters that have saved state, its keys, and their state format if it has scales."""
    for p, i, group, of_group in saved_entries(groups, saved):
        state_format = of_group.get("state_dtype", group.get("state_dtype"))
        yield p, i, state_format if has_scales(state_format) else None


def _as_bytes(p: Any, master: Any) -> Any:
    """The same memory, with one more dimension."""
    pairs = local_of(master).unsqueeze(-1).view(torch.int8)
    if not is_dtensor(p):
        return pairs
    return new_dtensor(p, pairs, (*p.shape, pairs.shape[-1]))


def _from_bytes(pairs: Any) -> Any:
    integers = local_of(pairs).contiguous().view(torch.int16).squeeze(-1)
    return new_dtensor(pairs, integers, tuple(pairs.shape[:-1])) if is_dtensor(pairs) else integers


def _scale_names(state_format: str, sharded: bool) -> dict[str, str]:
    """The names of the scales of the moments."""
    names = state_names(state_format, (), sharded)
    return {role: names[f"{role}_scale"] for role in MOMENTS}


def _has_shard_scales(entry: State, state_format: str) -> bool:
    return entry.keys() >= set(_scale_names(state_format, True).values())


def _global_scales(p: Any, entry: State, state_format: str) -> State:
    """The scales of cells, and the moments that they belong to: copies of both, or neither."""
    block = FORMATS[state_format].block
    scales = {
        name: _global_scale(p, name, entry[name], block)
        for name in _scale_names(state_format, True).values()
    }
    if grid_of(p._spec, block).cell == block:
        return scales
    moments = [state_names(state_format, (), True)[role] for role in MOMENTS]
    return scales | {name: entry[name].clone() for name in moments}


def _global_scale(p: Any, name: str, scale: Tensor, block: int) -> Any:
    """One scale per cell; in the memory that the optimizer uses, where the cells are blocks."""
    local, grid = local_of(p), grid_of(p._spec, block)
    if grid.is_by_element:
        cells = torch.empty_like(local, dtype=scale.dtype, device=scale.device)
        flat_view(cells).copy_(scale.repeat_interleave(block)[: local.numel()])
        return new_dtensor(p, cells, grid.shape, tuple(p.stride()))
    if not local.is_contiguous():
        raise ValueError(f"{name} must be of a contiguous shard; got strides {local.stride()}")
    if grid.cell < block:
        scale = scale.repeat_interleave(block // grid.cell)[: local.numel() // grid.cell]
    return new_dtensor(p, scale.view(grid.local_shape(local.shape)), grid.shape)


def _order_of_blocks(p: Any, entry: State) -> Strides | None:
    """The strides of a moment in blocks, where there is one of the whole parameter."""
    whole = (x for name, x in entry.items() if is_in_blocks(name) and _is_whole(p, name, x))
    return next((x.stride() for x in whole if is_ordinary(x) and is_dense(x)), None)


def _with_own_scales(p: Any, entry: State, state_format: str, strides: Strides | None) -> State:
    """The state with scales of this parameter's kind. Those under the names of the other kind are
    of a gathered state dict, and preferred: PyTorch fills in what a state dict lacks."""
    own, other = (_scale_names(state_format, is_dtensor(p) == flag) for flag in (True, False))
    given = other if entry.keys() >= set(other.values()) else own
    if not entry.keys() >= set(given.values()) or not (given is other or is_dtensor(p)):
        return entry
    rest = {name: x for name, x in entry.items() if name not in other.values()}
    block = FORMATS[state_format].block
    scales = {
        role: _local_scale(p, name, entry[name], block, strides) for role, name in given.items()
    }
    per_block = -(-local_of(p).numel() // block)
    if all(scale.shape == (per_block,) for scale in scales.values()):
        return rest | {own[role]: scale for role, scale in scales.items()}
    return rest | _merged(p, entry, scales, state_format)


def _merged(p: Any, entry: State, scales: State, state_format: str) -> State:
    """The moments with scales per block, from those with scales per element."""
    names = state_names(state_format, (), is_dtensor(p))
    own = {role: _moment(p, names[role], entry.get(names[role])) for role in MOMENTS}
    arrays = {role: flat_view(local_of(x)).numpy() for role, x in own.items()}
    for role, x in scales.items():
        spread = _on_host(local_of(p), x.dtype).copy_(x)
        arrays[f"{role}_scale"] = flat_view(spread).numpy()
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
    return placed_like(p, _on_host(local_of(p), value.dtype).copy_(local_of(value)))


def _on_host(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for elements in the same order; parameters may be on a device."""
    return torch.empty_like(like, dtype=dtype, device="cpu", requires_grad=False)


def _has_same_elements(p: Any, value: Any) -> bool:
    is_tensor = isinstance(value, Tensor)
    return is_tensor and value.shape == p.shape and is_part_of_same(value, p)


def _local_scale(p: Any, name: str, value: Any, block: int, strides: Strides | None) -> Tensor:
    """The scales of the elements of this rank or, flat, of its blocks."""
    if is_dtensor(p) and is_dtensor(value) and is_placed_like(value, p):
        grid = grid_of(p._spec, block)
        if tuple(value.shape) == grid.shape:
            cells = local_of(value).reshape(-1)
            if grid.cell == block:
                return cells
            return cells.repeat_interleave(grid.cell).view(local_of(p).shape)
    cell = _cell_of_whole(p, value, block, strides)
    if cell is None:
        raise ValueError(
            f"{name} must have a scale for each block of its parameter or for each of equal parts "
            f"of the blocks, placed like it; got {_described(value)}"
        )
    scale = value.full_tensor() if is_dtensor(value) else value
    whole = scale.reshape(-1).repeat_interleave(cell)[: p.numel()]
    order = None if cell == 1 else strides
    whole = whole.view(p.shape) if order is None else whole.as_strided(p.shape, order)
    return _part_of(p, whole) if is_dtensor(p) else whole


def _cell_of_whole(p: Any, value: Any, block: int, strides: Strides | None) -> int | None:
    """The number of elements per scale, where these are the scales of the whole parameter."""
    if not isinstance(value, Tensor) or (is_dtensor(value) and not is_dtensor(p)):
        return None
    size, cells = p.numel(), value.numel()
    cell = block if cells == -(-size // block) else size // max(cells, 1)
    fits = cell == block or (cell > 0 and cell * cells == size and block % cell == 0)
    is_ordered = cell == 1 or strides is not None or p.is_contiguous()
    return cell if fits and is_ordered else None


def _part_of(p: Any, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    found = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
    return local_of(found).to(local_of(p).device)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{type(value).__name__} of shape {tuple(value.shape)}{placements_of(value)}"
