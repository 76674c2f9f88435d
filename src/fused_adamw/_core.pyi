from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Array | Sequence["Arrays"] | Mapping[Any, "Arrays"]
Gradients: TypeAlias = Array | Sequence["Gradients"] | Mapping[Any, "Gradients"] | None
Rates: TypeAlias = tuple[float | None, ...]
Hyper: TypeAlias = tuple[float, tuple[float, float], float, float, Rates]

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
def has_openmp() -> bool: ...
def default_num_threads() -> int: ...
def check_num_threads(num_threads: int | None) -> int: ...
def require_known_keys(where: str, group: Mapping[str, Any], keys: tuple[str, ...]) -> None: ...
def abbreviated(names: Iterable[Any], most: int = 5) -> str: ...
def check_decay(name: str, value: float | None) -> None: ...
def hyperparams_at(groups: Sequence[Mapping[str, Any]], t: int, rates: Rates) -> list[Hyper]: ...
def as_pair(betas: Any) -> tuple[float, float]: ...
def as_number(name: str, value: Any) -> float: ...
def check_seed(seed: int | None) -> None: ...
def norm_of_chunks(sums: NDArray[np.float64], grad_scale: float) -> float: ...
def clip_factor(norm: float, max_grad_norm: float | None) -> float: ...
def decode_state(
    state_format: str, arrays: Mapping[str, Array], size: int
) -> dict[str, NDArray[np.floating[Any]]]: ...
def encode_state(state_format: str, arrays: Mapping[str, Array], **moments: Array) -> None: ...
def _force_isa(name: str | None) -> None: ...
def _forget_stalls() -> None: ...

class TreeSpec:
    def __init__(self, params: Arrays, grouped: bool = False) -> None: ...
    def flatten(self, argument: str, arrays: Any) -> tuple[Any, ...]: ...
    def unflatten(self, flat: Any) -> Any: ...
    def paths(self) -> list[tuple[Any, ...]]: ...
    def names(self) -> list[str]: ...
    def argument_names(self, argument: str) -> list[str]: ...

class ParamSources:
    arrays: tuple[Any, ...]
    def __init__(self, spec: TreeSpec, params: Any, group_keys: tuple[str, ...]) -> None: ...
    def check(self, groups: Sequence[dict[str, Any]], written: bool) -> int: ...
    def hyperparams(
        self, groups: Sequence[dict[str, Any]], t: int, rates: Rates
    ) -> list[Hyper]: ...

class TensorState(Protocol):
    format: str
    arrays: dict[str, Array]

class BoundArrays:
    num_slots: int
    def __init__(
        self,
        spec: TreeSpec,
        params: Any,
        state: Sequence[TensorState] | None = None,
        *,
        moments: tuple[Any, Any] | None = None,
        slices: list[tuple[int, int, int]] | None = None,
        decays: list[bool] | None = None,
        seed: int | None = None,
        roles: tuple[str, ...] = (),
    ) -> None: ...
    def set_seed(self, seed: int | None) -> None: ...
    def set_decays(self, decays: list[bool]) -> None: ...

class BoundTensors(BoundArrays):
    t: int
    threads: int
    def step(
        self,
        grads: Any,
        hypers: list[Hyper],
        grad_scale: float = 1.0,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        maximize: bool = False,
        num_threads: int | None = None,
    ) -> float | None: ...
    def step_in_turn(
        self,
        lock: ReentrantLock,
        hypers_at: Callable[[int], list[Hyper]],
        grads: Any,
        grad_scale: float,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        maximize: bool,
        num_threads: int | None,
    ) -> float | None: ...
    def step_range(
        self,
        first: int,
        grads: list[Array | None],
        hypers: list[Hyper],
        grad_scale: float = 1.0,
        clip: float = 1.0,
        maximize: bool = False,
        num_threads: int | None = None,
    ) -> None: ...
    def sums_of_squares(
        self, first: int, grads: list[Array | None], num_threads: int | None = None
    ) -> NDArray[np.float64]: ...
    def check(
        self,
        hypers: list[Hyper],
        max_grad_norm: float | None,
        steps: list[int],
    ) -> None: ...
    def check_collective(
        self,
        grads: Any,
        hypers: list[Hyper],
        grad_scale: float = 1.0,
        max_grad_norm: float | None = None,
        num_threads: int | None = None,
        overwritten: bool = False,
    ) -> tuple[Any, ...]: ...
    def count_step(self, grads: tuple[Any, ...]) -> int: ...
    def get_steps(self) -> list[int]: ...
    def set_steps(self, steps: list[int]) -> None: ...

class ReentrantLock:
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...

class DeferredSignals:
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...

class DLPackExchange:
    def __init__(
        self,
        *types: type,
        is_negated: Callable[[Any], bool],
        is_negated_at: tuple[int, int] = (0, 0),
    ) -> None: ...

def gather_tensors(
    params: list[Any], state: Mapping[Any, Mapping[str, Any]], names: dict[str, str]
) -> tuple[list[Any], list[Any], list[Any], dict[str, list[Any]]] | None: ...

class PreparedStep:
    unsupported: list[int]
    others: tuple[list[Any], list[Any], list[Any], list[list[Any]]] | None
    fusible: list[bool]
    num_supported: int
    offsets: list[int] | None
    def __init__(
        self,
        exchange: DLPackExchange,
        names: dict[str, str],
        *,
        state_format: str | None = None,
        seed: int | None = None,
        fused: bool = False,
    ) -> None: ...
    def prepare(
        self,
        params: list[Any],
        state: Mapping[Any, Mapping[str, Any]],
        hyper: Hyper,
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
    def step(self, increment_version: Callable[[list[Any]], object]) -> None: ...

class GroupPlan:
    def __init__(
        self,
        group: dict[str, Any],
        prepared: PreparedStep,
        rates: tuple[float | None, ...],
        first: int,
    ) -> None: ...

class StepPlan:
    def __init__(
        self,
        groups: list[GroupPlan],
        lock: ReentrantLock,
        *,
        num_threads: Callable[[], int],
        increment_version: Callable[[list[Any]], object],
    ) -> None: ...
    def step(
        self, groups: list[dict[str, Any]], state: Mapping[Any, Mapping[str, Any]]
    ) -> bool: ...

def fused_adamw(
    params: Arrays,
    grads: Arrays,
    m: Arrays,
    v: Arrays,
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
