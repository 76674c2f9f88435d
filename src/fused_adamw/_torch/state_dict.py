"""State dicts: what loading makes of them, and state as ``torch.optim.AdamW`` keeps it."""

from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._optim.state_dict import Difference, Stored, check_difference, warn_of_conversion
from .._optim.state_formats import BUFFERS, FORMATS, FROM_PARAMS, has_scales
from .dtensors import is_divided_otherwise, local_of, placements_of
from .fill_ins import without_fill_ins
from .flat_memory import same_strides
from .options import DEFAULTS, Group, check, check_group, complete, kernel_only, require_hyperparams
from .paths import PYTORCH
from .portable_state import state_to_load
from .state import State, dtype_name, is_lazy, is_ordinary, state_names
from .step_counts import copy_of_step, float32_step, require_count, usable_step
from .stored import (
    LIKE_V,
    Moments,
    Storage,
    Target,
    block_order,
    converted,
    find_moments,
    in_compute_type,
    new_order,
    placed,
)

STATE_NAMES = {
    name
    for state_format in FORMATS
    for sharded in (False, True)
    for name in state_names(state_format, (*LIKE_V, *FROM_PARAMS), sharded).values()
}
"""Of all state of parameters, in all formats, but for the count of steps."""

MASTERS = tuple(role for role in FROM_PARAMS if role not in BUFFERS)
"""The roles that start as the parameters and are no optional buffers. To add or drop such an array
is a conversion."""


class Loaded(NamedTuple):
    """A state dict in two parts."""

    state_dict: dict[str, Any]  # for PyTorch to load
    state: dict[Tensor, State]  # to be added then, as PyTorch would change its dtypes


class Entry(NamedTuple):
    """The saved state of one parameter, in the tensors that the optimizer will use."""

    tensors: State
    difference: Difference | None  # of what was saved; None where nothing was converted


def to_load(
    optimizer: torch.optim.Optimizer,
    saved: dict[str, Any],
    convert: bool,
    target_of: Callable[[Tensor, Group], Target | None],
) -> Loaded:
    """What is to be loaded into an optimizer.

    Args:
        optimizer: with its groups, and the state that it has.
        saved: a state dict.
        convert: whether state may be stored otherwise than in the optimizer.
        target_of: how the optimizer keeps the state of a parameter.

    Warns:
        UserWarning: something is converted.

    Raises:
        TypeError, ValueError: an option is not valid, or the state cannot be converted, or has to
            be where ``convert`` is False.
    """
    groups, saved = optimizer.param_groups, without_fill_ins(optimizer, saved)
    require_hyperparams(saved)
    completed = complete(saved, groups)
    for group in saved["param_groups"]:
        check(group)
    for group in completed:
        check_group(group)
    saved = state_to_load(groups, saved)
    state, own, differences = dict(saved["state"]), {}, []
    for p, i, group in _params_of(groups, completed):
        entry, target = state.get(i), target_of(p, group)
        where = f"state_dict['state'][{i!r}]"
        if i in state and not isinstance(entry, dict):
            raise TypeError(f"{where} must be a dict; got {type(entry).__name__}")
        if entry and is_lazy(p) and kernel_only(group) is not None:
            raise ValueError(
                f"{where} must be loaded after the first forward, which gives the parameter its "
                "shape; got a parameter of a lazy module before it"
            )
        if target is None or not entry:
            continue  # for PyTorch to load, or to refuse
        require_count(where, entry)
        found = _chosen(find_moments(entry, target), target.storage)
        loaded = _loaded(where, entry, target, found)
        if loaded is None:
            state[i] = entry | {"step": usable_step(entry["step"])}
            continue
        check_difference(where, loaded.difference, convert)
        differences.append(loaded.difference)
        rest = {name: x for name, x in entry.items() if name not in STATE_NAMES}
        if target.is_host_only:
            kept = {k: placed(x, k, target) for k, x in loaded.tensors.items()}
            own[p] = rest | {"step": float32_step(entry["step"])} | kept
            del state[i]
        else:
            own[p] = loaded.tensors
            state[i] = rest | {"step": copy_of_step(rest["step"])}
    warn_of_conversion("state_dict", differences, through=[PYTORCH])
    return Loaded({**saved, "state": state, "param_groups": completed}, own)


def _params_of(groups: list[Group], completed: list[Group]) -> Iterator[tuple[Tensor, Any, Group]]:
    """Each parameter, its key in a state dict, and its options there. PyTorch refuses groups of
    other numbers or sizes."""
    sizes = [[len(group["params"]) for group in x] for x in (groups, completed)]
    if sizes[0] == sizes[1]:
        for own, group in zip(groups, completed, strict=True):
            for p, i in zip(own["params"], group["params"], strict=True):
                yield p, i, group


def _loaded(where: str, entry: State, target: Target, found: Moments | None) -> Entry | None:
    """The state to keep for a saved entry; None where PyTorch is to load it as it is.
    ``found``: the moments in the entry."""
    own = target.storage
    if found is None:
        return _unrecognized(where, entry, target)
    rest = _rest(entry, target)
    orders = _block_orders(found, target)
    saved = _described(found.format, own, {*rest, *_dropped(entry, own)}, orders[0])
    difference = saved.difference_from(_described(own.format, own, own.layout, orders[1]))
    if difference is None and target.is_of_pytorch and _is_in_order(entry, target.like):
        return None
    if found.format == own.format and orders[0] == orders[1]:
        tensors = _copies(_moments(entry, own), target) | rest
    else:
        _require_memory(where, list(found.arrays.values()))
        tensors = converted(found, target) | rest
    names = [name for name in own.names.values() if name in tensors]
    return Entry({name: tensors[name] for name in names} | tensors, difference)


def _unrecognized(where: str, entry: State, target: Target) -> Entry | None:
    """``_loaded`` for state in no format, or not of the parameter's size. What has the optimizer's
    own names and dtypes but another size is left for the step to refuse, as PyTorch does.

    Raises:
        ValueError: it is stored otherwise.
    """
    own, like = target.storage, target.like
    dtypes = {own.names[role]: own.dtype(role) for role in own.moments}
    found = {name: x for name, x in entry.items() if name in STATE_NAMES and isinstance(x, Tensor)}
    given = {name: x.dtype for name, x in found.items() if name in dtypes}
    if target.is_of_pytorch and (given or not found):
        return None
    has_own_dtypes = given and all(dtypes[name] == dtype for name, dtype in given.items())
    is_elsewhere = any(is_divided_otherwise(x, target.whole) for x in found.values())
    if not found or (has_own_dtypes and not is_elsewhere):
        return Entry(_copies(entry, target), None)
    described = {name: f"{x.dtype} {tuple(x.shape)}{placements_of(x)}" for name, x in found.items()}
    raise ValueError(
        f"{where} must be that of a {dtype_name(like.dtype)} parameter of shape "
        f"{tuple(like.shape)}; got {described}"
    )


def _chosen(found: list[Moments], own: Storage) -> Moments | None:
    """Of two, those under other names than this optimizer's: the saved ones."""
    others = [x for x in found if has_scales(x.format) != has_scales(own.format)]
    return next(iter(others or found), None)


def _block_orders(found: Moments, target: Target) -> tuple[Any, Any]:
    """The orders of dimensions in memory, saved and here, where they matter: formats without blocks
    are the same in all."""
    if not has_scales(found.format):
        return None, None
    return block_order(found, target.like), new_order(target.like)


def _described(format_: str, own: Storage, roles: Container[str], order: Any) -> Stored:
    names = {own.names["m"], own.names["v"]}
    wanted = {*MASTERS, *own.layout}
    names |= {role for role in FROM_PARAMS if role in roles and role in wanted}
    return Stored(format_, frozenset(names), order)


def _dropped(entry: State, own: Storage) -> list[str]:
    """The saved arrays that an optimizer has no use for, and no option would bring back."""
    return [role for role in MASTERS if role in entry and role not in own.layout]


def _rest(entry: State, target: Target) -> State:
    """What starts as the parameters, where it was saved. Master weights in a wrong dtype are left
    out: PyTorch's class had loaded them, and stepped the parameters without them."""
    rest = {}
    for role in FROM_PARAMS:
        value = entry.get(role)
        if not isinstance(value, Tensor):
            continue
        dtype = target.storage.dtype(role) if role in target.storage.layout else None
        if role not in MASTERS:
            rest[role] = _copy(value, target, dtype)
        elif value.dtype == dtype:
            rest[role] = _copy(value, target)
    return rest


def _moments(entry: State, own: Storage) -> State:
    names = [name for role, name in own.names.items() if role not in FROM_PARAMS]
    return {name: entry[name] for name in names if name in entry}


def _copies(entry: State, target: Target) -> State:
    return {
        k: _copy(x, target) for k, x in entry.items() if k in STATE_NAMES and isinstance(x, Tensor)
    }


def _copy(x: Tensor, target: Target, dtype: torch.dtype | None = None) -> Tensor:
    """With memory of its own, and the strides of the parameter where it has its shape."""
    like, dtype = target.like, dtype or x.dtype
    if target.is_host_only:
        x = local_of(x)
    if x.shape == like.shape and _has_memory(x) and x.stride() != like.stride():
        return torch.empty_like(like, dtype=dtype, device=target.device).copy_(x.detach())
    return x.detach().to(target.device, dtype, copy=True)


def _is_in_order(entry: State, like: Tensor) -> bool:
    """Whether all elements are where those of the parameter are: PyTorch keeps saved strides."""
    found = (x for x in entry.values() if isinstance(x, Tensor) and _has_memory(x))
    return all(same_strides(x, like) for x in found if x.shape == like.shape)


def _has_memory(x: Tensor) -> bool:
    """Whether it is an ordinary tensor, whose elements can be read."""
    return is_ordinary(x) and x.device.type != "meta"


def _require_memory(where: str, tensors: list[Tensor]) -> None:
    for x in tensors:
        if not _has_memory(x):
            kind = f"{type(x).__name__} ({x.layout}, {x.device})"
            raise ValueError(f"{where} must have ordinary tensors to be converted; got {kind}")


# ---------------------------------------------------------------------------- for PyTorch


def as_of_pytorch(
    groups: list[Group],
    saved: dict[str, Any],
    target_of: Callable[[Tensor, Group], Target | None],
) -> dict[str, Any]:
    """A state dict of an optimizer with these groups as ``torch.optim.AdamW`` has it: moments of
    the compute type, or of the parameter's dtype where they are stored so, and nothing else.

    Args:
        groups: of the optimizer.
        target_of: as in ``to_load``.
        saved: state as the optimizer keeps it.
    """
    state = dict(saved["state"])
    for p, i, group in _params_of(groups, saved["param_groups"]):
        target = target_of(p, group)
        if target is not None and state.get(i):
            state[i] = _entry_of_pytorch(state[i], target)
    own = [
        {name: x for name, x in group.items() if name not in DEFAULTS}
        for group in saved["param_groups"]
    ]
    return {**saved, "state": state, "param_groups": own}


def _entry_of_pytorch(entry: State, target: Target) -> State:
    for found in find_moments(entry, target):
        theirs = in_compute_type(found, target)
        if found.format not in (theirs.storage.format, dtype_name(target.like.dtype)):
            others = {name: x for name, x in entry.items() if name not in STATE_NAMES}
            step = {"step": copy_of_step(others["step"])}
            return others | step | converted(found, theirs)
    return {name: x for name, x in entry.items() if name not in FROM_PARAMS}
