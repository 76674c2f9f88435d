"""What the host keeps of a parameter on a device."""

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._optim.options import roles_of
from .._optim.state_formats import (
    ELEMENT_TYPES,
    FORMATS,
    FROM_PARAMS,
    StateOptions,
    format_of,
    kept_roles,
    state_layout,
)
from .._torch.dtensors import is_dtensor, is_part_of_same, offset_of, placed_like, placements_of
from .._torch.fallback import require_step_tensor
from .._torch.state import Kind, State, host_zeros, state_names, torch_dtype
from .._torch.stored import Target, is_scale, storage_of


def kind_on_host(p: Tensor, group: Mapping[str, Any]) -> Kind:
    """How the state of a parameter is stored, whose dtype the kernels support."""
    name, state_dtype = dtype_name(p), group.get("state_dtype")
    roles, sharded = kept_roles(name, roles_of(group)), is_dtensor(p)
    if state_dtype is None and name in FORMATS and "master" not in roles:
        return Kind(name, roles, sharded)  # as PyTorch keeps them
    return Kind(format_of(name, state_dtype), roles, sharded)


def options_of(kind: Kind) -> StateOptions:
    """With which state is stored so."""
    return StateOptions(kind.format, kind.roles)


def dtype_name(p: Tensor) -> str:
    """As in the tables of the kernels."""
    return str(p.dtype).removeprefix("torch.")


def host_target(p: Tensor, group: Mapping[str, Any]) -> Target | None:
    """Where the state of a parameter is kept, and how; None for a dtype that no kernel supports."""
    if dtype_name(p) not in ELEMENT_TYPES:
        return None
    like, kind = local(p).detach(), kind_on_host(p, group)
    storage = storage_of(like, options_of(kind), kind.sharded)
    whole = p if kind.sharded else None
    return Target(storage, like, torch.device("cpu"), whole, is_host_only=True)


@cache
def state_length(dtype: str, kind: Kind, role: str, size: int) -> int:
    """The length of a state array for this many elements of a parameter."""
    return prod(state_layout(dtype, (size,), options_of(kind))[role][1])


def new_state(p: Tensor, kind: Kind) -> State:
    """Zeros in host memory, under the names of state dicts, of DTensors placed like the parameter;
    pages are placed by the threads that first write to them."""
    whole, p = p, local(p)
    layout = state_layout(dtype_name(p), tuple(p.shape), options_of(kind))
    state: State = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    for position, (role, name) in enumerate(state_names(*kind).items()):
        storage, shape = layout[role]
        flat = host_zeros(prod(shape), torch_dtype(storage), position)
        if flat.numel() == p.numel() and not role.endswith("_scale"):
            state[name] = placed_like(whole, flat.as_strided(p.shape, p.stride()))
        else:
            state[name] = flat.view(shape)
    return state


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that is here, which shares its memory."""
    part: Tensor = tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor
    return part


def flat_view(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, with no version of its own."""
    return tensor.data.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def version_of(tensor: Tensor) -> int:
    """How often it was changed in place; unknown for a tensor made in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


class Address(NamedTuple):
    """Which version of a parameter is where: other code that writes or moves it changes this."""

    version: int
    pointer: int

    @classmethod
    def of(cls, p: Tensor) -> "Address":
        return cls(version_of(p), local(p).data_ptr())


class Twin:
    """The state of a parameter in host memory.

    Attributes:
        index: of the parameter among all of the optimizer.
        kind: how its state is stored.
        first: the index of its first element in the whole parameter, of which it may be a part.
        step: the count of its steps.
        added: what the optimizer's state of the parameter lacks; it is new.
        fresh: the roles that are to start as the parameter when that arrives on the host.
        written: the parameter's address after its last update; None where nothing is known.
    """

    def __init__(self, p: Tensor, index: int, kind: Kind, entry: State) -> None:
        names = state_names(*kind)
        missing = [role for role in names if names[role] not in entry]
        if entry and not ("step" in entry and set(missing) <= set(FROM_PARAMS)):
            listed = ", ".join(("step", *names.values()))
            raise KeyError(f"the state of parameter {index} must have {listed}; got {list(entry)}")
        made = new_state(p, kind) if missing else {}
        self.index, self.kind, self._dtype = index, kind, dtype_name(p)
        self.first = offset_of(p)
        self._looks = _looks_of(local(p))
        self._params: tuple[int, Tensor] | None = None
        self.added = {x: made[x] for x in made if not entry or x in map(names.get, missing)}
        self.fresh = {role for role in missing if role in FROM_PARAMS}
        self.written: Address | None = None
        self._entry = {**entry, **self.added}
        self.step = self._entry["step"]
        require_step_tensor(self.step)
        self._flat = {r: self._checked(p, r, self._entry[name]) for r, name in names.items()}

    def is_like(self, p: Tensor) -> bool:
        """Whether the parameter is still as it was when it was checked, but for its values."""
        return self._looks == _looks_of(local(p))

    def is_of(self, kind: Kind, entry: State) -> bool:
        """Whether this is still the state that the optimizer has."""
        return kind == self.kind and self.has_state(entry)

    def has_state(self, entry: State) -> bool:
        """The same, however it is stored."""
        return all(entry.get(name) is x for name, x in self._entry.items())

    def flat_params(self, p: Tensor) -> Tensor:
        """The parameter's elements in the order of memory, on the device."""
        pointer = Address.of(p).pointer
        if self._params is None or self._params[0] != pointer:
            self._params = pointer, flat_view(local(p))
        return self._params[1]

    def note_writes(self, p: Tensor) -> None:
        """Master weights start again from a parameter that other code has written or replaced."""
        if self.written is not None and self.written != Address.of(p) and "master" in self._flat:
            self.fresh.add("master")

    def count_step(self, entry: State) -> None:
        """An update begins; ``entry``: the optimizer's state of the parameter."""
        if self.added:
            entry.update(self.added)
            self.added = {}
        self.fresh.clear()
        self.step += 1

    def memory(self) -> Iterator[tuple[int, int, str]]:
        """Address, size and name of each array of the state."""
        for name, x in {**self._flat, "step": self.step}.items():
            yield x.data_ptr(), x.nbytes, f"the {name} of parameter {self.index}"

    def part(self, role: str, begin: int, end: int) -> Tensor:
        """The state of a range of elements, which begins at a multiple of the block."""
        at = [state_length(self._dtype, self.kind, role, i) for i in (begin, end)]
        return self._flat[role][at[0] : at[1]]

    def start_part(self, params: Tensor, begin: int, end: int, fresh: frozenset[str]) -> None:
        """Let roles of a range start as its parameters."""
        for role in fresh:
            part = self.part(role, begin, end)
            if part.is_floating_point():
                part.copy_(params)
            else:  # what master weights have beyond the parameters
                part.zero_()

    def _checked(self, p: Tensor, role: str, array: Tensor) -> Tensor:
        """A state array as one dimension."""
        size = local(p).numel()
        storage, _ = state_layout(self._dtype, (size,), options_of(self.kind))[role]
        length = state_length(self._dtype, self.kind, role, size)
        is_placed = is_part_of_same(array, p) or is_scale(role)
        array, p, described = local(array), local(p), placements_of(array)
        is_like_p = array.shape == p.shape and _strides(array) == _strides(p)
        if (
            not is_placed
            or array.device.type != "cpu"
            or array.dtype != torch_dtype(storage)
            or array.numel() != length
            or array.is_neg()
            or not (is_like_p or (array.ndim == 1 and array.is_contiguous()))
        ):
            raise TypeError(
                f"the {role} of parameter {self.index} must be {storage} of {length} elements in "
                "host memory in the order of the parameter, and placed like it; got "
                f"{array.dtype} of shape {tuple(array.shape)} on {array.device}{described}"
            )
        return flat_view(array)


def _looks_of(p: Tensor) -> tuple[Any, ...]:
    if p.layout is not torch.strided:
        return (p.layout,)
    return p.dtype, p.shape, p.stride(), p.device, p.is_neg()


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides of dimensions of more than one element; the others have no meaning."""
    return tuple(s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements are next to one another, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether elements of tensors of one shape are in the same order in memory."""
    return _strides(a) == _strides(b)
