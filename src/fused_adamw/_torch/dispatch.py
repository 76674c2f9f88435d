"""Decides which tensors of a group the kernels update, and which fall back to PyTorch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from .._core import (
    DeferredSignals,
    DLPackExchange,
    PreparedStep,
    abbreviated,
    default_num_threads,
    gather_tensors,
)
from .._optim.options import NO_RATES, Rates, rates_of, roles_of
from .._optim.param_groups import Hyperparams
from .._optim.state_formats import ELEMENT_TYPES, StateOptions, either, supported_dtypes
from .fallback import step_with_torch, unscale
from .options import Group, check_group, kernel_only
from .state import GroupTensors, Kind, State, is_narrow, kind_of, missing_state, state_names

try:
    EXCHANGE = DLPackExchange(Tensor, torch.nn.Parameter, is_negated=Tensor.is_neg)
except TypeError as error:
    raise ImportError(f"fused_adamw.torch needs PyTorch 2.10 or later ({error})") from None

NOTHING = GroupTensors([], [], [], {})
TORCH_ROLES = {flag: roles_of({"amsgrad": flag}) for flag in (False, True)}
"""By amsgrad, the roles of a group without options that only the kernels implement."""


class Part(NamedTuple):
    """The parameters of a group whose state is of one kind."""

    params: list[Tensor]
    kind: Kind
    indices: list[int]  # of those with a gradient, among all parameters of the optimizer


class GroupDispatch(NamedTuple):
    """The step of a group, or of a part, checked, with nothing changed yet."""

    group: Group
    kernel: GroupTensors
    fallback: GroupTensors  # PyTorch's
    prepared: PreparedStep | None  # of ``kernel``; None where that is empty
    new_state: dict[Tensor, State]  # to be added before the step

    def is_one_call(self, optimizer: torch.optim.AdamW) -> bool:
        """Whether a single call of the kernels changes all that the step changes."""
        has_others = self.new_state or self.fallback.params
        return not has_others and getattr(optimizer, "grad_scale", None) is None

    def run(self, optimizer: torch.optim.AdamW) -> None:
        for p, entries in self.new_state.items():
            optimizer.state[p].update(entries)
        if self.fallback.params:
            step_with_torch(optimizer, self.group, self.fallback)
        if self.prepared is None:
            return
        in_kernel = _unscales_in_kernel(self.group, self.kernel.params)
        if not in_kernel:
            unscale(optimizer, self.kernel.grads)
        self.prepared.step()
        if in_kernel:
            unscale(optimizer, self.kernel.grads)
        torch.autograd.graph.increment_version(self.kernel.params)


def run_all(optimizer: torch.optim.AdamW, dispatches: Sequence[GroupDispatch]) -> None:
    """Step all groups, or, where a signal handler raises, all or none."""
    if len(dispatches) == 1 and dispatches[0].is_one_call(optimizer):
        dispatches[0].run(optimizer)
    elif torch.compiler.is_compiling():  # compiled code runs no handlers
        for group_dispatch in dispatches:
            group_dispatch.run(optimizer)
    else:
        with DeferredSignals():
            for group_dispatch in dispatches:
                group_dispatch.run(optimizer)


def dispatch(optimizer: torch.optim.AdamW, group: Group, first: int) -> list[GroupDispatch]:
    """Prepare the step of a group, whose parameters are numbered from ``first`` on; nothing changes
    yet but state that PyTorch initializes."""
    option = kernel_only(group)
    if option is None:
        return [_dispatch_with_fallback(optimizer, group)]
    check_group(group)
    if torch.compiler.is_compiling():
        raise RuntimeError(f"{option}={group[option]!r} does not support torch.compile")
    return [_dispatch_to_kernels(optimizer, group, x, option) for x in _parts(group, first)]


def _parts(group: Group, first: int) -> Iterator[Part]:
    """The parameters by the kind of their state: with master weights that depends on the dtype."""
    state_dtype, roles = group.get("state_dtype"), roles_of(group)
    if "master" not in roles:
        yield Part(group["params"], Kind(state_dtype, roles), _indices(group["params"], first))
        return
    kinds: dict[Kind, dict[int, Tensor]] = {}
    for i, p in enumerate(group["params"], first):
        if p.grad is not None:
            kinds.setdefault(kind_of(p.dtype, state_dtype, roles), {})[i] = p
    for kind, params in kinds.items():
        yield Part(list(params.values()), kind, list(params))


def _dispatch_with_fallback(optimizer: torch.optim.AdamW, group: Group) -> GroupDispatch:
    if torch.compiler.is_compiling():  # which could not trace _gather
        return GroupDispatch(group, NOTHING, _init(optimizer, group), None, {})
    names = state_names(None, TORCH_ROLES[bool(group["amsgrad"])])
    tensors = _gather(group["params"], optimizer.state, names)
    if tensors is None:  # the first step of a parameter
        tensors = _init(optimizer, group)
    if not _uses_kernels(group):
        return GroupDispatch(group, NOTHING, tensors, None, {})
    prepared = PreparedStep(
        EXCHANGE,
        tensors,
        hyper=_hyper(group, NO_RATES),
        maximize=group["maximize"],
        num_threads=_num_threads(),
        state_format=None,
        grad_scale=_kernel_scale(optimizer, group, tensors.params),
    )
    if not prepared.unsupported:
        return GroupDispatch(group, tensors, NOTHING, prepared, {})
    kernel, fallback = tensors.split(prepared.unsupported)
    if not kernel.storages().isdisjoint(fallback.storages()):  # the order of the steps matters
        return GroupDispatch(group, NOTHING, tensors, None, {})
    return GroupDispatch(group, kernel, fallback, prepared, {})


def _dispatch_to_kernels(
    optimizer: torch.optim.AdamW, group: Group, part: Part, option: str
) -> GroupDispatch:
    """Prepare the step of a part of a group with an option that only the kernels implement.

    Raises:
        TypeError: a tensor is not supported.
    """
    indices, names = part.indices, state_names(*part.kind)
    new_state: dict[Tensor, State] = {}
    tensors = _gather(part.params, optimizer.state, names)
    if tensors is None:  # the first step of a parameter, or of an option
        params = [p for p in part.params if p.grad is not None]
        expanded = {i for i, p in zip(indices, params, strict=True) if _is_expanded(p)}
        if expanded:  # their state could be larger than the memory
            _refuse(group, option, expanded)
        new_state = {p: missing_state(p, optimizer.state.get(p), group) for p in params}
        state = {p: {**optimizer.state.get(p, {}), **new_state[p]} for p in params}
        tensors = _gather(part.params, state, names)
    if tensors is None:
        raise KeyError(
            f"the state of a parameter must have {', '.join(names.values())} with "
            f"{option}={group[option]!r}"
        )
    prepared = PreparedStep(
        EXCHANGE,
        tensors,
        hyper=_hyper(group, rates_of(group)),
        maximize=group["maximize"],
        num_threads=_num_threads(),
        state_format=part.kind.format,
        grad_scale=_kernel_scale(optimizer, group, tensors.params),
        param_indices=indices,
        seed=_seed(optimizer, group),
    )
    if prepared.unsupported:
        _refuse(group, option, {indices[i] for i in prepared.unsupported})
    return GroupDispatch(group, tensors, NOTHING, prepared, new_state)


def _unscales_in_kernel(group: Group, params: list[Tensor]) -> bool:
    """Whether the kernels multiply the gradients, in float32, by what GradScaler leaves to the
    optimizer: an unscaled gradient can be 0 in float16."""
    return group.get("state_dtype") is not None or any(map(is_narrow, params))


def _kernel_scale(optimizer: torch.optim.AdamW, group: Group, params: list[Tensor]) -> float:
    """The factor of the gradients in the kernels."""
    grad_scale = getattr(optimizer, "grad_scale", None)
    if grad_scale is None or not _unscales_in_kernel(group, params):
        return 1.0
    factor: float = 1 / grad_scale.item()
    return factor


def _seed(optimizer: torch.optim.AdamW, group: Group) -> int | None:
    """Without a format or master weights, what has the dtypes of PyTorch is rounded as there."""
    if group.get("state_dtype") is None and not group.get("master_weights"):
        return None
    seed: int | None = group.get("seed", optimizer.defaults.get("seed", 0))
    return seed


def _is_expanded(p: Tensor) -> bool:
    """Whether several elements share memory."""
    return p.layout is torch.strided and p.untyped_storage().nbytes() < p.nbytes


def _refuse(group: Group, option: str, unsupported: set[int]) -> NoReturn:
    state_dtype = group.get("state_dtype")
    dtypes = (
        either(ELEMENT_TYPES)
        if state_dtype is None
        else supported_dtypes(StateOptions(state_dtype, roles_of(group)))
    )
    raise TypeError(
        f"{option}={group[option]!r} requires dense {dtypes} CPU parameters with matching "
        f"gradients; unsupported: parameters {abbreviated(sorted(unsupported), most=10)}"
    )


def _init(optimizer: torch.optim.AdamW, group: Group) -> GroupTensors:
    """Collect the tensors of a step; PyTorch initializes the state of new parameters."""
    tensors = GroupTensors([], [], [], {"m": [], "v": []})
    params, grads, steps, state = tensors
    v_max: list[Tensor] = []
    if torch.compiler.is_compiling():
        optimizer._init_group(group, params, grads, state["m"], state["v"], v_max, steps)
    else:
        with DeferredSignals():  # or a parameter could be left with a part of its state
            optimizer._init_group(group, params, grads, state["m"], state["v"], v_max, steps)
    if group["amsgrad"]:
        state["v_max"] = v_max
    return tensors


def _gather(
    params: list[Tensor], state: Mapping[Tensor, State], names: dict[str, str]
) -> GroupTensors | None:
    """Collect the tensors of a step; None where a parameter lacks state.

    Args:
        names: of ``state_names``.
    """
    try:
        gathered = gather_tensors(params, state, names)
    except KeyError:
        return None
    return None if gathered is None else GroupTensors(*gathered)


def _uses_kernels(group: Group) -> bool:
    """Whether the kernels may step a group, as far as its options show."""
    if group["fused"] is False or (group["fused"] is None and group["foreach"]):
        return False
    return not (group["capturable"] or group["differentiable"]) and group["decoupled_weight_decay"]


def _indices(params: list[Tensor], first: int) -> list[int]:
    """The indices of the parameters that have a gradient, among all those of the optimizer."""
    return [i for i, p in enumerate(params, first) if p.grad is not None]


def _hyper(group: Group, rates: Rates) -> Hyperparams:
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.item()
    return lr, group["betas"], group["eps"], group["weight_decay"], rates


def _num_threads() -> int:
    threads: int = min(torch.get_num_threads(), default_num_threads())
    return threads
