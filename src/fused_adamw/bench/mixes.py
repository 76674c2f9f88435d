"""Steps of mixes, and loops with the same loads and stores, to be timed."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .._core import BLOCK
from .._optim.mixes import Mix, Traffic, all_mixes
from ..optimizer import AdamW
from .harness import Step
from .streams import Stream, bind_streams
from .workloads import RANGES, Array, Arrays, Shapes, aligned_copy

# ---------------------------------------------------------------------------- the mixes


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of an element type; ImportError where NumPy and ml_dtypes lack it."""
    if hasattr(np, name):
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def available_mixes() -> dict[Mix, Traffic]:
    """The mixes whose dtypes this machine has, and the bytes of BLOCK parameters.

    What is computed in float64 is left out: it has one format.
    """
    mixes: dict[Mix, Traffic] = {}
    for mix in all_mixes():
        with suppress(ImportError):
            numpy_dtype(mix.param_dtype)
            if mix.compute_dtype == "float32":
                mixes[mix] = mix.traffic([(BLOCK,)])
    return mixes


def optimizer_of(mix: Mix, params: Arrays, **options: Any) -> AdamW:
    """``AdamW`` with the state of a mix for parameters of its dtype."""
    return AdamW(params, state_dtype=mix.state_dtype, master_weights=mix.master_weights, **options)


def state_arrays(optimizer: AdamW) -> list[dict[str, Array]]:
    """The arrays themselves, by tensor and role."""
    return [state.arrays for state in optimizer._state]


# ---------------------------------------------------------------------------- what is timed


class Workload:
    """Parameters, gradients and an optimizer of a mix, and what is timed on them.

    Attributes:
        traffic: the bytes of BLOCK parameters of the mix.
    """

    def __init__(self, mix: Mix, traffic: Traffic, shapes: Shapes) -> None:
        self.traffic = traffic
        dtype = numpy_dtype(mix.param_dtype)
        self.params, self.grads = (
            [tiled(shape, dtype, bounds) for shape in shapes] for bounds in RANGES[:2]
        )
        self.optimizer = optimizer_of(mix, self.params)

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
