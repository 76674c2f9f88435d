from typing import Any

BLOCK: int

def available_isas() -> list[str]: ...
def selected_isa() -> str: ...
def has_openmp() -> bool: ...
def require_seed(seed: int | None) -> None: ...
def resolve_threads(num_threads: int | None) -> int: ...

class Structure:
    def __init__(self, params: Any, grouped: bool = False) -> None: ...
    def flatten(self, argument: str, arrays: Any) -> tuple[Any, ...]: ...
    def unflatten(self, flat: Any) -> Any: ...
    def paths(self) -> list[tuple[Any, ...]]: ...

class Tensors:
    t: int
    threads: int
    def __init__(
        self,
        structure: Structure,
        params: Any,
        m: Any,
        v: Any,
        v_max: Any = None,
        decays: list[bool] | None = None,
        packed: list[Any] | None = None,
        seed: int | None = None,
    ) -> None: ...
    def set_places(self, places: list[int], firsts: list[int], seed: int | None) -> None: ...
    def sums_of_squares(self, grads: Any, num_threads: int | None = None) -> Any: ...
    def set_seed(self, seed: int | None) -> None: ...
    def take_step(
        self,
        grads: Any,
        hypers: list[tuple[float, tuple[float, float], float, float]],
        t: int,
        grad_scale: float,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        maximize: bool,
        num_threads: int | None,
        isa: str | None,
        clip: float = 1,
    ) -> float | None: ...
    def check(
        self,
        hypers: list[tuple[float, tuple[float, float], float, float]],
        max_grad_norm: float | None,
        steps: list[int],
    ) -> None: ...
    def count_step(self, grads: tuple[Any, ...]) -> int: ...
    def get_steps(self) -> list[int]: ...
    def set_steps(self, steps: list[int]) -> None: ...

class WholeTensors(Tensors):
    def check_step(
        self,
        grads: Any,
        hypers: list[tuple[float, tuple[float, float], float, float]],
        grad_scale: float,
        max_grad_norm: float | None,
        num_threads: int | None,
        overwritten: bool,
    ) -> tuple[Any, ...]: ...

def fused_adamw(
    params: Any,
    grads: Any,
    m: Any,
    v: Any,
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    num_threads: int | None = None,
    isa: str | None = None,
) -> None: ...

class Lender:
    def __init__(self, *types: type) -> None: ...

class Loan:
    refused: list[int]
    def __init__(
        self,
        lender: Lender,
        params: list[Any],
        grads: list[Any],
        m: list[Any],
        v: list[Any],
        v_max: list[Any],
        steps: list[Any],
        hyper: tuple[float, tuple[float, float], float, float],
        maximize: bool,
        num_threads: int | None,
        state_dtype: str | None = None,
        m_scale: list[Any] | None = None,
        v_scale: list[Any] | None = None,
        places: list[int] | None = None,
        seed: int | None = None,
        scale: float = 1.0,
    ) -> None: ...
    def step(self) -> None: ...
