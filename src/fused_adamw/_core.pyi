from typing import Any

def available_isas() -> list[str]: ...
def selected_isa() -> str: ...
def has_openmp() -> bool: ...
def resolve_threads(num_threads: int | None) -> int: ...

class Tensors:
    def __init__(self, params: Any, m: Any, v: Any) -> None: ...
    def step(
        self,
        grads: Any,
        t: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        num_threads: int | None,
        isa: str | None,
    ) -> None: ...
