"""Mixes: how parameters and state are stored, and how many bytes a step of each moves.

A mix is a dtype of the parameters, a format of the moments, and master weights or none. The list is
what ``AdamW`` accepts of all combinations of the tables of element types and state formats.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .._core import BLOCK
from .._optim.state_formats import ELEMENT_TYPES, STATE_DTYPES, StateDtype, format_of
from ..optimizer import AdamW
from .harness import Step
from .streams import Stream, bind_streams
from .workloads import RANGES, Array, Arrays, Shapes, aligned_copy

# ---------------------------------------------------------------------------- the mixes


class Mix(NamedTuple):
    """How the parameters and the state of an optimizer are stored."""

    param_dtype: str
    format: str
    master_weights: bool

    @property
    def name(self) -> str:
        """As tables and options have it."""
        master = "+master" if self.master_weights else ""
        return f"{self.param_dtype}{master}/{self.format}"

    @property
    def state_dtype(self) -> StateDtype | None:
        """What the class is asked for; None where the format is the default."""
        default = format_of(self.param_dtype, None)
        return None if self.format == default else cast(StateDtype, self.format)

    def optimizer(self, params: Arrays, **options: Any) -> AdamW:
        """``AdamW`` with this state for parameters of this dtype."""
        return AdamW(
            params,
            state_dtype=self.state_dtype,
            master_weights=self.master_weights,
            **options,
        )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of an element type; ImportError where NumPy and ml_dtypes lack it."""
    if hasattr(np, name):
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def available_mixes() -> dict[Mix, "Traffic"]:
    """The mixes that ``AdamW`` accepts, and their bytes.

    They are in the order of the tables, the first with float32 throughout. What is computed in
    float64 is left out: it has one format. So are master weights where they change nothing.
    """
    dtypes = (name for name, row in ELEMENT_TYPES.items() if row.compute == "float32")
    mixes: dict[Mix, Traffic] = {}
    for dtype, master, format_ in product(dtypes, (False, True), STATE_DTYPES):
        mix = Mix(dtype, format_, master)
        traffic = _traffic(mix)
        if traffic is None or traffic == mixes.get(mix._replace(master_weights=False)):
            continue
        mixes[mix] = traffic
    return mixes


# ---------------------------------------------------------------------------- bytes


class Traffic(NamedTuple):
    """Bytes a block of BLOCK parameters.

    Attributes:
        gradient: read by a step.
        parameter: read and written. (A step with master weights may not need the old parameters,
            but a cache line is read before a part of it is written.)
        state: read and written, by role.
    """

    gradient: int
    parameter: int
    state: dict[str, int]

    @property
    def state_bytes(self) -> float:
        """Bytes of state a parameter."""
        return sum(self.state.values()) / BLOCK

    @property
    def bytes_moved(self) -> float:
        """Bytes read and written by a step, a parameter."""
        return (self.gradient + 2 * self.parameter) / BLOCK + 2 * self.state_bytes

    @property
    def bytes_kept(self) -> float:
        """Bytes of memory a parameter, with its gradient."""
        return (self.gradient + self.parameter) / BLOCK + self.state_bytes


def _traffic(mix: Mix) -> Traffic | None:
    """What belongs to a block of parameters; None where the class does not accept the mix."""
    try:
        param = np.zeros(BLOCK, numpy_dtype(mix.param_dtype))
        optimizer = mix.optimizer([param])
    except (ImportError, TypeError, ValueError):
        return None
    state = {role: array.nbytes for role, array in state_arrays(optimizer)[0].items()}
    return Traffic(param.nbytes, param.nbytes, state)


def state_arrays(optimizer: AdamW) -> list[dict[str, Array]]:
    """The arrays themselves, by tensor and role."""
    return [state.arrays for state in optimizer._state]


# ---------------------------------------------------------------------------- what is timed


class Workload:
    """Parameters, gradients and an optimizer of a mix, and what is timed on them.

    Attributes:
        traffic: the bytes of the mix.
    """

    def __init__(self, mix: Mix, traffic: Traffic, shapes: Shapes) -> None:
        self.traffic = traffic
        dtype = numpy_dtype(mix.param_dtype)
        self.params, self.grads = (
            [tiled(shape, dtype, bounds) for shape in shapes] for bounds in RANGES[:2]
        )
        self.optimizer = mix.optimizer(self.params)

    def step(self, threads: int) -> Step:
        """The step of the optimizer."""
        optimizer, grads = self.optimizer, self.grads

        def step() -> None:
            if optimizer.num_threads != threads:
                optimizer.num_threads = threads
            optimizer.step(grads)

        return step

    def bound(self, threads: int) -> Step:
        """A loop with the loads and stores of the step, on the same arrays."""
        calls = [bind_streams(size, streams, threads) for size, streams in self._streams()]

        def step() -> None:
            for call in calls:
                call()

        return step

    def _streams(self) -> Iterator[tuple[int, Sequence[Stream]]]:
        traffic, states = self.traffic, state_arrays(self.optimizer)
        for param, grad, state in zip(self.params, self.grads, states, strict=True):
            yield (
                param.size,
                [
                    Stream(grad, traffic.gradient, False),
                    Stream(param, traffic.parameter, True),
                    *(Stream(array, traffic.state[role], True) for role, array in state.items()),
                ],
            )


PATTERN = 2**16  # elements


def tiled(shape: tuple[int, ...], dtype: DTypeLike, bounds: tuple[float, float]) -> Array:
    """Random numbers, repeated; made without a second array of that size."""
    low, high = bounds
    array: NDArray[Any] = aligned_copy(np.broadcast_to(np.zeros((), dtype), shape))
    flat = array.reshape(-1)
    pattern = (np.random.default_rng(0).random(PATTERN) * (high - low) + low).astype(dtype)
    for start in range(0, flat.size, PATTERN):
        part = flat[start : start + PATTERN]
        part[...] = pattern[: part.size]
    return array
