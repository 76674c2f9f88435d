"""What an implementation is, how it is loaded, and the hyper-parameters that all of them use."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypedDict

from ...runtime import runtime_info
from ..harness import Prepare
from ..suppress_output import suppress_output

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01


class AdamWArguments(TypedDict):
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


ADAMW_ARGUMENTS: AdamWArguments = {  # the defaults of fused_adamw and of its reference
    "lr": LR,
    "betas": BETAS,
    "eps": EPS,
    "weight_decay": WEIGHT_DECAY,
}

MAX_OF_SLOW = 2**27  # parameters, just above GPT-2 Small: beyond it, a slow step takes seconds


@dataclass(frozen=True)
class Implementation:
    """One row of a benchmark.

    Attributes:
        name: as the tables and ``--implementation`` have it.
        load: imports or compiles what is needed; returns ``prepare(params, grads, m, v)``, which
            takes lists of NumPy arrays and returns the step.
        packages: that have to be installed.
        install_hint: how to install it; by default with pip.
        setup: a context that surrounds loading and all steps, such as a number of threads that is
            set for the whole process.
        min_parameters, max_parameters: the sizes at which its time is meaningful and not too long.
        too_small: why there is a minimum.
        peak_arrays: how many arrays of the parameters' size have to fit into memory, including the
            four that are shared.
        extra_arrays: how many of them it keeps beyond the four for as long as a comparison lasts.
        bytes_per_parameter: read and written by a step; None: four arrays read, three written.
        dtypes: of the parameters.
    """

    name: str
    load: Callable[[], Prepare]
    packages: tuple[str, ...] = ()
    install_hint: str = ""
    setup: Callable[[], AbstractContextManager[None]] | None = None
    min_parameters: int = 0
    too_small: str = "meaningless where the call takes the time, not memory"
    max_parameters: float = math.inf
    peak_arrays: float = 4
    extra_arrays: float = 0
    bytes_per_parameter: float | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")

    def unsuitable(self, num_parameters: int, dtype: str) -> str | None:
        """Why it is not timed on parameters of this number and dtype; None where it is."""
        if dtype not in self.dtypes:
            return f"does not support {dtype}"
        if num_parameters > self.max_parameters:
            return "takes too long"
        return self.too_small if num_parameters < self.min_parameters else None


class Loader:
    """Loads each implementation once, and restores the process when it is closed.

    Attributes:
        unavailable: {name: how to install it, and the error} of those that could not be loaded.
    """

    def __init__(self) -> None:
        self.unavailable: dict[str, str] = {}
        self._loaded: dict[str, Prepare] = {}
        self._stack = ExitStack()
        self._entered: set[Callable[[], AbstractContextManager[None]]] = set()

    def load(self, implementation: Implementation) -> Prepare | None:
        """What prepares its steps; None where it is unavailable, whatever the reason is."""
        name = implementation.name
        if name not in self._loaded and name not in self.unavailable:
            try:
                self._loaded[name] = self._load(implementation)
            except Exception as error:
                pip = f"pip install {' '.join(implementation.packages)}"
                reason = f"{implementation.install_hint or pip} ({first_line(error)})"
                self.unavailable[name] = reason
        return self._loaded.get(name)

    def _load(self, implementation: Implementation) -> Prepare:
        setup = implementation.setup
        with suppress_output():
            if setup is not None and setup not in self._entered:
                self._stack.enter_context(setup())
                self._entered.add(setup)
            return implementation.load()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def num_threads() -> int:
    """The number of threads that every implementation is given."""
    return runtime_info()["num_threads"]
