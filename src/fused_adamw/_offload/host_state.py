"""What the host keeps of a parameter on a device."""

from collections.abc import Iterator, Mapping, Set
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .._optim.state_formats import FROM_PARAMS, format_of, state_layout
from .._torch.dtensors import (
    is_dtensor,
    is_part_of_same,
    local_of,
    offset_of,
    placed_like,
    placements_of,
)
from .._torch.flat_memory import flat_view, same_strides
from .._torch.local_shards import versions_of
from .._torch.state import (
    WHOLE_MASTER,
    Kind,
    State,
    dtype_name,
    has_elements,
    host_zeros,
    is_scale,
    options_of,
    state_names,
    torch_dtype,
)
from .._torch.step_counts import require_step_tensor
from .._torch.stored import Target, target_of


def kind_on_host(p: Tensor, group: Mapping[str, Any]) -> Kind:
    """How the state of a parameter is stored, whose dtype the kernels support."""
    options = options_of(p, group)
    return Kind(format_of(dtype_name(p.dtype), options.state_dtype), options.roles, is_dtensor(p))


def host_target(p: Tensor, group: Mapping[str, Any]) -> Target | None:
    """As ``target_of``, for state that is kept in host memory."""
    target = target_of(p, group)
    if target is None:
        return None
    return target._replace(device=torch.device("cpu"), is_host_only=True)


@cache
def state_length(dtype: str, kind: Kind, role: str, size: int) -> int:
    """The length of a state array for this many elements of a parameter."""
    return prod(state_layout(dtype, (size,), kind.options)[role][1])


def new_state(p: Tensor, kind: Kind) -> State:
    """Zeros in host memory, under the names of state dicts, of DTensors placed like the parameter;
    pages are placed by the threads that first write to them."""
    whole, p = p, local_of(p)
    layout = state_layout(dtype_name(p.dtype), tuple(p.shape), kind.options)
    state: State = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    for position, (role, name) in enumerate(state_names(*kind).items()):
        storage, shape = layout[role]
        flat = host_zeros(prod(shape), torch_dtype(storage), position)
        if has_elements(role, shape, p):
            state[name] = placed_like(whole, flat.as_strided(p.shape, p.stride()))
        else:
            state[name] = flat.view(shape)
    return state


class Address(NamedTuple):
    """Which version of a parameter is where: other code that writes or moves it changes this. Does
    not keep the memory, which may then be allocated again: a reference to it tells the two apart.
    """

    versions: tuple[int, int]
    pointer: int
    memory: StorageWeakRef | None

    @classmethod
    def of(cls, p: Tensor) -> "Address":
        local = local_of(p)
        return cls(versions_of(p), local.data_ptr(), StorageWeakRef(local.untyped_storage()))


NOWHERE = Address((-1, -1), -1, None)


class HostState:
    """The state of a parameter in host memory.

    Attributes:
        index: of the parameter among all of the optimizer.
        kind: how its state is stored.
        first: the index of its first element in the whole parameter, of which it may be a part.
        step: the count of its steps.
        added: what the optimizer's state of the parameter lacks; it is new.
        fresh: the roles that are to start as the parameter when that arrives on the host.
        unverified: those that are to start so where they do not round to it: master weights that
            were loaded, or are of a shard. (The kernels do the same with those of two bytes.)
        written: the parameter's address after its last update; None where nothing is known.
    """

    def __init__(self, p: Tensor, index: int, kind: Kind, entry: State) -> None:
        names = state_names(*kind)
        missing = [role for role in names if names[role] not in entry]
        if entry and not ("step" in entry and set(missing) <= set(FROM_PARAMS)):
            listed = ", ".join(("step", *names.values()))
            raise KeyError(f"the state of parameter {index} must have {listed}; got {list(entry)}")
        made = new_state(p, kind) if missing else {}
        self.index, self.kind, self._dtype = index, kind, dtype_name(p.dtype)
        self.first = offset_of(p)
        self._looks = _looks_of(local_of(p))
        self.added = {x: made[x] for x in made if not entry or x in map(names.get, missing)}
        self.fresh = {role for role in missing if role in FROM_PARAMS}
        self.unverified = set[str]()
        self.written: Address | None = None
        self._entry = {**entry, **self.added}
        self.step = self._entry["step"]
        require_step_tensor(self.step)
        self._flat = {r: self._checked(p, r, self._entry[name]) for r, name in names.items()}
        if "master" in self._flat and self._flat["master"].is_floating_point():
            self.unverified.add("master")

    def is_like(self, p: Tensor) -> bool:
        """Whether the parameter is still as it was when it was checked, but for its values."""
        return self._looks == _looks_of(local_of(p))

    def is_of(self, kind: Kind, entry: State) -> bool:
        """Whether this is still the state that the optimizer has."""
        return kind == self.kind and self.has_state(entry)

    def has_state(self, entry: State) -> bool:
        """Whether its tensors are those of the optimizer's entry; their kind is not compared."""
        return all(entry.get(name) is x for name, x in self._entry.items())

    def note_writes(self, p: Tensor) -> None:
        """Master weights start again from a parameter that other code has written or replaced."""
        if self.written is not None and self.written != Address.of(p) and "master" in self._flat:
            self.fresh.add("master")

    def count_step(self, entry: State) -> None:
        """An update begins; ``entry``: the optimizer's state of the parameter."""
        if self.added:
            entry.update(self.added)
            self.added = {}
        if "master" not in self._flat and self._dtype == dtype_name(WHOLE_MASTER):
            entry.pop("master", None)  # it would be older than the parameter
        self.fresh.clear()
        if not self.kind.sharded:  # no version counts what is written through a state dict
            self.unverified.clear()
        self.step += 1

    def memory(self) -> Iterator[tuple[int, int, str]]:
        """Address, size and name of each array of the state."""
        for name, x in {**self._flat, "step": self.step}.items():
            yield x.data_ptr(), x.nbytes, f"the {name} of parameter {self.index}"

    def part(self, role: str, begin: int, end: int) -> Tensor:
        """The state of a range of elements, which begins at a multiple of the block."""
        at = [state_length(self._dtype, self.kind, role, i) for i in (begin, end)]
        return self._flat[role][at[0] : at[1]]

    def start_part(
        self, params: Tensor, begin: int, end: int, fresh: Set[str], unverified: Set[str]
    ) -> None:
        """Let roles of a range start as its parameters, everywhere or where they differ."""
        for role in unverified - fresh:
            part = self.part(role, begin, end)
            torch.where(part.to(params.dtype) == params, part, params.to(part.dtype), out=part)
        for role in fresh:
            part = self.part(role, begin, end)
            if part.is_floating_point():
                part.copy_(params)
            else:  # what master weights have beyond the parameters
                part.zero_()

    def _checked(self, p: Tensor, role: str, array: Tensor) -> Tensor:
        """A state array as one dimension."""
        size = local_of(p).numel()
        storage, _ = state_layout(self._dtype, (size,), self.kind.options)[role]
        length = state_length(self._dtype, self.kind, role, size)
        is_placed = is_part_of_same(array, p) or is_scale(role)
        array, p, described = local_of(array), local_of(p), placements_of(array)
        is_strided = array.layout is torch.strided
        is_like_p = is_strided and array.shape == p.shape and same_strides(array, p)
        is_flat = is_strided and array.ndim == 1 and array.is_contiguous()
        if (
            not is_placed
            or array.device.type != "cpu"
            or array.dtype != torch_dtype(storage)
            or array.numel() != length
            or array.is_neg()
            or not (is_like_p or is_flat)
        ):
            raise TypeError(
                f"the {role} of parameter {self.index} must be {storage} of {length} elements in "
                "host memory in the order of the parameter, and placed like it; got "
                f"{array.dtype}, {array.layout}, of shape {tuple(array.shape)} on {array.device}"
                f"{described}"
            )
        return flat_view(array)


def _looks_of(p: Tensor) -> tuple[Any, ...]:
    if p.layout is not torch.strided:
        return (p.layout,)
    return p.dtype, p.shape, p.stride(), p.device, p.is_neg()
