from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

_Array: TypeAlias = NDArray[Any]
_Arrays: TypeAlias = _Array | Sequence["_Arrays"] | Mapping[Any, "_Arrays"]
_Gradients: TypeAlias = _Array | Sequence["_Gradients"] | Mapping[Any, "_Gradients"] | None
_Rates: TypeAlias = tuple[float | None, ...]
_Hyper: TypeAlias = tuple[float, tuple[float, float], float, float, _Rates]

BLOCK: int
CHUNK: int
MIN_ELEMENTS_PER_THREAD: int

class ElementType(NamedTuple):
    name: str
    itemsize: int
    compute: str
    master: str

class StateFormat(NamedTuple):
    name: str
    m: str
    v: str
    m_bits: int
    v_bits: int
    block: int
    m_scale: str
    v_scale: str
    amsgrad: bool
    own: bool

class OptionalBuffer(NamedTuple):
    name: str
    option: str
    like_v: bool
    from_params: bool
    has_decay: bool

def element_types() -> list[ElementType]: ...
def state_formats() -> list[StateFormat]: ...
def optional_buffers() -> list[OptionalBuffer]: ...
def available_isas() -> list[str]: ...
def selected_isa() -> str: ...
def threading_library() -> str | None: ...
def default_num_threads() -> int: ...
def environment_sets_threads() -> bool: ...
def check_num_threads(num_threads: int | None) -> int: ...
def require_known_keys(where: str, group: Mapping[str, Any], keys: tuple[str, ...]) -> None: ...
def abbreviated(names: Iterable[Any], most: int = 5) -> str: ...
def check_decay(name: str, value: Any) -> float | None: ...
def hyperparams_at(groups: Sequence[Mapping[str, Any]], t: int, rates: _Rates) -> list[_Hyper]: ...
def as_pair(betas: Any) -> tuple[float, float]: ...
def as_number(name: str, value: Any) -> float: ...
def shown(value: object) -> str: ...
def as_integer(
    name: str, value: Any, what: str = "an integer", minimum: int | None = None
) -> int: ...
def printable_integer(name: str, value: Any) -> int: ...
def check_norm(name: str, value: Any) -> float | None: ...
def check_seed(name: str, seed: Any) -> int | None: ...
def norm_of_chunks(sums: NDArray[np.float64], grad_scale: float) -> float: ...
def clip_factor(norm: float, max_grad_norm: float | None) -> float: ...
def decode_state(
    state_format: str, arrays: Mapping[str, _Array], size: int
) -> dict[str, NDArray[np.floating[Any]]]: ...
def encode_state(state_format: str, arrays: Mapping[str, _Array], **moments: _Array) -> None: ...
def _force_isa(name: str | None) -> None: ...
def _forget_stalls() -> None: ...

@disjoint_base
class TreeSpec:
    def __new__(cls, params: _Arrays, grouped: bool = False) -> Self: ...
    def flatten(self, argument: str, arrays: Any) -> tuple[Any, ...]: ...
    def unflatten(self, flat: Any) -> Any: ...
    def paths(self) -> list[tuple[Any, ...]]: ...
    def names(self) -> list[str]: ...
    def argument_names(self, argument: str) -> list[str]: ...

@final
class ParamSources:
    arrays: tuple[Any, ...]
    def __new__(cls, spec: TreeSpec, params: Any, group_keys: tuple[str, ...]) -> Self: ...
    def check(self, groups: Sequence[dict[str, Any]], written: bool) -> int: ...
    def check_unchanged(self, groups: Sequence[dict[str, Any]], written: bool) -> int: ...
    def hyperparams(
        self, groups: Sequence[dict[str, Any]], t: int, rates: _Rates
    ) -> list[_Hyper]: ...

class _TensorState(Protocol):
    format: str
    arrays: dict[str, _Array]

@disjoint_base
class BoundArrays:
    num_slots: int
    def __new__(
        cls,
        spec: TreeSpec,
        params: Any,
        state: Sequence[_TensorState] | None = None,
        *,
        moments: tuple[Any, Any] | None = None,
        slices: list[tuple[int, int, int]] | None = None,
        seed: int | None = None,
        roles: tuple[str, ...] = (),
        readonly: bool = False,
    ) -> Self: ...
    def set_seed(self, seed: int | None) -> None: ...
    def set_decays(self, decays: list[bool]) -> None: ...

@final
class BoundTensors(BoundArrays):
    t: int
    sources: ParamSources | None
    threads: int
    def step(
        self,
        grads: Any,
        hypers: list[_Hyper],
        grad_scale: float = 1.0,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        maximize: bool = False,
        num_threads: int | None = None,
    ) -> float | None: ...
    def step_in_turn(
        self,
        lock: ReentrantLock,
        hypers_at: Callable[[int], list[_Hyper]],
        grads: Any,
        grad_scale: float,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        maximize: bool,
        num_threads: int | None,
    ) -> float | None: ...
    def shares_memory(self, array: _Array) -> bool: ...
    def step_range(
        self,
        first: int,
        grads: list[_Array | None],
        hypers: list[_Hyper],
        grad_scale: float = 1.0,
        clip: float = 1.0,
        maximize: bool = False,
        num_threads: int | None = None,
    ) -> None: ...
    def sums_of_squares(
        self, first: int, grads: list[_Array | None], num_threads: int | None = None
    ) -> NDArray[np.float64]: ...
    def check(
        self,
        hypers: list[_Hyper],
        steps: list[int],
    ) -> None: ...
    def check_rates(self, rates: _Rates) -> None: ...
    def check_collective(
        self,
        grads: Any,
        hypers: list[_Hyper],
        grad_scale: float = 1.0,
        max_grad_norm: float | None = None,
        num_threads: int | None = None,
        overwritten: bool = False,
    ) -> tuple[Any, ...]: ...
    def count_step(self, grads: tuple[Any, ...]) -> int: ...
    def get_steps(self) -> list[int]: ...
    def set_steps(self, steps: list[int]) -> None: ...

@final
class ReentrantLock:
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def during(self, operation: str, *, changes: bool = True) -> OperationBlock: ...
    def require_between(self, operation: str) -> None: ...

@final
class OperationBlock:
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...

@final
class DeferredSignals:
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...

@final
class DLPackExchange:
    def __new__(
        cls,
        *types: type,
        is_negated: Callable[[Any], bool],
        functions: dict[str, int] | None = None,
        offset: int = 0,
        shape_at: int = 0,
        version_at: int = 0,
        examples: Iterable[Any] = (),
    ) -> Self: ...

def gather_tensors(
    params: list[Any], state: Mapping[Any, Mapping[str, Any]], names: dict[str, str]
) -> tuple[list[Any], list[Any], list[Any], dict[str, list[Any]]] | None: ...

@final
class PreparedStep:
    unsupported: list[int]
    others: tuple[list[Any], list[Any], list[Any], list[list[Any]]] | None
    fusible: list[bool]
    num_supported: int
    offsets: list[int] | None
    def __new__(
        cls,
        exchange: DLPackExchange,
        names: dict[str, str],
        *,
        state_format: str | None = None,
        seed: int | None = None,
        fused: bool = False,
        master_weights: bool = False,
    ) -> Self: ...
    def prepare(
        self,
        params: list[Any],
        state: Mapping[Any, Mapping[str, Any]],
        hyper: _Hyper,
        *,
        maximize: bool,
        num_threads: int | None,
        grad_scale: float = 1.0,
        first: int = 0,
        indices: list[int] | None = None,
    ) -> bool: ...
    def clear(self) -> int: ...
    def is_entangled(self) -> bool: ...
    def grads(self) -> list[Any]: ...

def step_all(
    steps: list[PreparedStep], increment_versions: list[Callable[[list[Any]], None]]
) -> None: ...
def share_counts(steps: list[PreparedStep], others: list[Any]) -> bool: ...

@disjoint_base
class GroupPlan:
    def __new__(
        cls,
        group: dict[str, Any],
        prepared: PreparedStep,
        rates: tuple[float | None, ...],
    ) -> Self: ...

@disjoint_base
class StepPlan:
    def __new__(
        cls,
        groups: list[GroupPlan],
        lock: ReentrantLock,
        *,
        num_threads: Callable[[], int],
        increment_version: Callable[[list[Any]], object],
        num_modes: Callable[[], int],
    ) -> Self: ...
    def step(
        self, groups: Sequence[dict[str, Any]], state: Mapping[Any, Mapping[str, Any]]
    ) -> bool: ...
    def updated(self) -> list[bool] | None: ...

def fused_adamw(
    params: _Arrays,
    grads: _Arrays,
    m: _Arrays,
    v: _Arrays,
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    num_threads: int | None = None,
) -> None: ...
def step_pieces(
    exchange: DLPackExchange, pieces: Any, recipe: Any, clip: float = 1.0, run: bool = True
) -> bool: ...
def sums_of_squares(
    exchange: DLPackExchange, grads: list[Any], num_threads: int | None = None
) -> NDArray[np.float64]: ...
