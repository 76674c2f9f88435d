"""Decides which tensors of a group the kernels update, and which fall back to PyTorch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from .._core import (
    DeferredSignals,
    DLPackExchange,
    PreparedStep,
    gather_tensors,
    step_all,
)
from .._optim.options import NO_RATES, DecayRates, rates_of, roles_of
from .._optim.state_formats import has_scales
from .arguments import hyperparams_of, num_threads, seed_of
from .dtensors import has_dtensors, is_dtensor, local_of
from .fallback import init_group, refuse_sparse, step_with_torch
from .grad_scaler import grad_scale_of, unscale
from .local_shards import PLAIN, Owners, increment_version, prepare
from .options import Group, asked_for_pytorch, check_group, kernel_only
from .portable_state import restore_masters
from .reasons import refuse
from .state import (
    NOTHING,
    GroupTensors,
    Kind,
    State,
    can_have_state,
    has_large_state,
    is_narrow,
    kind_of,
    missing_state,
    params_with_unused_masters,
    state_names,
)
from .step_counts import require_step_tensor
from .tensor_functions import exchange_arguments

try:
    EXCHANGE = DLPackExchange(
        Tensor, torch.nn.Parameter, is_negated=Tensor.is_neg, **exchange_arguments()
    )
except TypeError as error:
    raise ImportError(
        f"PyTorch must have DLPack's exchange API; got {torch.__version__} ({error})"
    ) from None

NO_STATES: Mapping[Tensor, State] = MappingProxyType({})
TORCH_ROLES = {flag: roles_of({"amsgrad": flag}) for flag in (False, True)}
"""By amsgrad, the roles of a group without options that only the kernels implement."""


class Part(NamedTuple):
    """The parameters of a group whose state is of one kind."""

    params: list[Tensor]
    kind: Kind
    first: int  # the number of the first parameter in the optimizer, where they are successive
    indices: list[int] | None  # else of each

    def numbered(self) -> dict[int, Tensor]:
        """The parameters by their numbers in the optimizer."""
        successive = range(self.first, self.first + len(self.params))
        numbers = successive if self.indices is None else self.indices
        return dict(zip(numbers, self.params, strict=True))


class GroupDispatch(NamedTuple):
    """The step of a group, or of a part, checked, with nothing changed yet."""

    group: Group
    prepared: PreparedStep | None  # None where the kernels step nothing
    fallback: GroupTensors = NOTHING  # PyTorch's
    fusible: list[bool] | None = None  # of ``fallback``, where it is known
    new_state: Mapping[Tensor, State] = NO_STATES  # to be added before the step
    stale_masters: Sequence[State] = ()  # the state whose master weights the step does not update
    rates: DecayRates = NO_RATES
    owners: Owners = PLAIN

    @property
    def increment_versions(self) -> Callable[[list[Tensor]], None]:
        """To be called with the tensors that were updated; without DTensors, no Python code."""
        return increment_version if self.owners is PLAIN else self.owners.increment_versions

    @property
    def changes_state(self) -> bool:
        """Whether ``change_state`` does anything."""
        return bool(self.new_state or self.stale_masters)

    def change_state(self, optimizer: torch.optim.AdamW) -> None:
        """Add new state; remove master weights that would be older than the parameters."""
        for p, entries in self.new_state.items():
            optimizer.state[p].update(entries)
        for entry in self.stale_masters:
            del entry["master"]

    def run(self, optimizer: torch.optim.AdamW) -> None:
        self.change_state(optimizer)
        if self.fallback.params:
            step_with_torch(optimizer, self.group, self.fallback, self.fusible)
            if self.owners is not PLAIN:  # PyTorch has updated the shards
                self.increment_versions(self.fallback.params)
        if self.prepared is None:
            return
        if grad_scale_of(optimizer) is None:
            step_all([self.prepared], [self.increment_versions])
            return
        grads, in_kernel = self.prepared.grads(), _unscales_in_kernel(self.group)
        if not in_kernel:
            unscale(optimizer, grads)
        step_all([self.prepared], [self.increment_versions])
        if in_kernel:
            unscale(optimizer, grads)


def run_all(optimizer: torch.optim.AdamW, dispatches: Sequence[GroupDispatch]) -> None:
    """Step all groups: all or none, where a signal handler raises, or where memory is refused and
    the kernels step all of them."""
    if grad_scale_of(optimizer) is not None or any(x.fallback.params for x in dispatches):
        with DeferredSignals():
            for group_dispatch in dispatches:
                group_dispatch.run(optimizer)
        return
    steps = [x.prepared for x in dispatches if x.prepared is not None]
    increments = [x.increment_versions for x in dispatches if x.prepared is not None]
    runs_python = any(x is not increment_version for x in increments)  # as for DTensors
    if not (runs_python or any(x.changes_state for x in dispatches)):
        step_all(steps, increments)
        return
    with DeferredSignals():
        for group_dispatch in dispatches:
            group_dispatch.change_state(optimizer)
        step_all(steps, increments)


def dispatch(optimizer: torch.optim.AdamW, group: Group, first: int) -> list[GroupDispatch]:
    """Prepare the step of a group, whose parameters are numbered from ``first`` on; nothing changes
    yet but state that PyTorch initializes."""
    if type(group["params"]) is not list:
        group = group | {"params": list(group["params"])}
    option = kernel_only(group)
    if option is None:
        parts = [_dispatch_with_fallback(optimizer, group, first)]
    else:
        check_group(group)
        parts = [_dispatch_to_kernels(optimizer, group, x, option) for x in _parts(group, first)]
    unused = params_with_unused_masters(group, optimizer.state)
    stale = [optimizer.state[p] for p in unused if p.grad is not None]
    if stale:
        parts[0] = parts[0]._replace(stale_masters=stale)
    return parts


def _parts(group: Group, first: int) -> Iterator[Part]:
    """The parameters by the kind of their state: with master weights that depends on the dtype."""
    state_dtype, roles = group.get("state_dtype"), roles_of(group)
    kinds: dict[Kind, dict[int, Tensor]] = {}
    if "master" in roles or (has_scales(state_dtype) and has_dtensors(group["params"])):
        for i, p in enumerate(group["params"], first):
            if p.grad is not None:
                kinds.setdefault(kind_of(p.dtype, state_dtype, roles, is_dtensor(p)), {})[i] = p
    if len(kinds) <= 1:
        kind = next(iter(kinds), Kind(state_dtype, roles))
        yield Part(group["params"], kind, first, None)
        return
    for kind, params in kinds.items():
        yield Part(list(params.values()), kind, first, list(params))


def _dispatch_with_fallback(
    optimizer: torch.optim.AdamW, group: Group, first: int
) -> GroupDispatch:
    if asked_for_pytorch(group):
        return GroupDispatch(group, None, init_group(optimizer, group))
    params, state = group["params"], optimizer.state
    names = state_names(None, TORCH_ROLES[bool(group["amsgrad"])])
    prepared = PreparedStep(EXCHANGE, names, fused=bool(group["fused"]))
    how = _arguments(optimizer, group, NO_RATES)
    owners = prepare(prepared, params, state, names, how)
    if owners is None:  # the first step of a parameter
        _add_large_states(optimizer, group)
        tensors = init_group(optimizer, group)
        owners = prepare(prepared, params, state, names, how)
        if owners is None:
            return GroupDispatch(group, None, tensors)
    if not prepared.unsupported:
        return GroupDispatch(group, prepared, owners=owners)
    if prepared.others is None or (prepared.num_supported and prepared.is_entangled()):
        prepared.clear()  # the order of the steps matters
        gathered = gather_tensors(params, state, names)
        tensors = NOTHING if gathered is None else GroupTensors(*gathered)
        refuse_sparse(optimizer, group, tensors.grads)
        return GroupDispatch(group, None, tensors)
    found, grads, steps, moments = prepared.others
    refuse_sparse(optimizer, group, grads)
    fallback = GroupTensors(found, grads, steps, dict(zip(names, moments, strict=True)))
    fusible = prepared.fusible if group["fused"] else None
    kernel = prepared if prepared.num_supported else None
    return GroupDispatch(group, kernel, fallback, fusible, owners=owners)


def _add_large_states(optimizer: torch.optim.AdamW, group: Group) -> None:
    """Initialize what PyTorch would, where it matters which memory that is in."""
    count = torch.zeros((), dtype=_get_scalar_dtype(group["fused"]), device="cpu")
    for p in group["params"]:
        is_new = p.grad is not None and not p.grad.is_sparse and not optimizer.state.get(p)
        if is_new and has_large_state(p):
            optimizer.state[p] = missing_state(p, None, group) | {"step": count.clone()}


def _dispatch_to_kernels(
    optimizer: torch.optim.AdamW, group: Group, part: Part, option: str
) -> GroupDispatch:
    """Prepare the step of a part of a group with an option that only the kernels implement.

    Raises:
        TypeError: a tensor is not supported.
    """
    names, rates = state_names(*part.kind), rates_of(group)
    new_state: dict[Tensor, State] = {}
    prepared = PreparedStep(
        EXCHANGE,
        names,
        state_format=part.kind.format,
        seed=seed_of(group),
        master_weights=bool(group.get("master_weights")),
    )
    how = _arguments(optimizer, group, rates) | {"first": part.first, "indices": part.indices}
    owners = prepare(prepared, part.params, optimizer.state, names, how)
    if owners is None:  # the first step of a parameter, or of an option
        new_state = _missing_states(optimizer, group, part, option)
        state = {p: {**optimizer.state.get(p, {}), **new_state[p]} for p in new_state}
        owners = prepare(prepared, part.params, state, names, how)
    if owners is None:
        raise KeyError(
            f"the state of each parameter must have {', '.join(('step', *names.values()))} with "
            f"{option}={group[option]!r}; got one that lacks some"
        )
    if prepared.unsupported and restore_masters(optimizer.state, part.params):
        return _dispatch_to_kernels(optimizer, group, part, option)
    if prepared.unsupported:
        for p in part.params:
            require_step_tensor(optimizer.state.get(p, {}).get("step", p))
        params = part.numbered()
        refuse(group, option, {i: params[i] for i in prepared.unsupported}, optimizer.state)
    return GroupDispatch(group, prepared, new_state=new_state, rates=rates, owners=owners)


def _missing_states(
    optimizer: torch.optim.AdamW, group: Group, part: Part, option: str
) -> dict[Tensor, State]:
    """What the parameters of a part lack."""
    params = {i: p for i, p in part.numbered().items() if p.grad is not None}
    refused = {i: p for i, p in params.items() if not can_have_state(local_of(p))}
    if refused:
        refuse(group, option, refused, optimizer.state)
    return {p: missing_state(p, optimizer.state.get(p), group) for p in params.values()}


def _arguments(optimizer: torch.optim.AdamW, group: Group, rates: DecayRates) -> dict[str, Any]:
    """The arguments of ``PreparedStep.prepare``."""
    return {
        "hyper": hyperparams_of(group, rates),
        "maximize": group["maximize"],
        "num_threads": num_threads(),
        "grad_scale": _kernel_scale(optimizer, group),
    }


def _unscales_in_kernel(group: Group) -> bool:
    """Whether the kernels multiply the gradients, in float32, by what GradScaler leaves to the
    optimizer: an unscaled gradient can be 0 in float16."""
    return group.get("state_dtype") is not None or any(map(is_narrow, group["params"]))


def _kernel_scale(optimizer: torch.optim.AdamW, group: Group) -> float:
    """The factor of the gradients in the kernels."""
    grad_scale = grad_scale_of(optimizer)
    if grad_scale is None or not _unscales_in_kernel(group):
        return 1.0
    factor: float = 1 / grad_scale.item()
    return factor
