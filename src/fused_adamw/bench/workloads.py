"""What a step is timed on: shapes from the tiny transformer to GPT-2, and arrays of them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..optimizer import AdamW
from ..runtime import runtime_info
from ..tiny.model import TinyTransformer

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = list[Array]
Shapes: TypeAlias = Sequence[tuple[int, ...]]

CACHE_LINE = 64  # bytes
ARRAYS_MOVED = 4 + 3  # a step reads params, grads, m and v, and writes all but grads

RANGES = ((-1.0, 1.0), (-0.1, 0.1), (-0.01, 0.01), (1e-4, 1e-3))  # of params, grads, m and v

# ---------------------------------------------------------------------------- shapes


class Case(NamedTuple):
    """Tensors that one step updates.

    ``drawn``: whether a chart over the number of parameters shows it.
    """

    name: str
    title: str
    shapes: Shapes
    drawn: bool = True

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.shapes)


def count_parameters(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def tiny_transformer() -> Shapes:
    return [parameter.shape for parameter in TinyTransformer().parameters.values()]


def gpt2(layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """The shapes of GPT-2's tensors (Radford et al. 2019)."""
    block: Shapes = [
        *[(width,), (width,)],
        *[(width, 3 * width), (3 * width,), (width, width), (width,)],
        *[(width,), (width,)],
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],
    ]
    return [(vocabulary, width), (context, width), *(list(block) * layers), (width,), (width,)]


MANY_SMALL: Shapes = [(64,)] * 1000
GPT2_SMALL, GPT2_LARGE = gpt2(12, 768), gpt2(36, 1280)

CASES = {
    case.name: case
    for case in (
        Case("tiny-transformer", "13 tensors of the tiny transformer", tiny_transformer()),
        # Not drawn: as many parameters as 2^16, but a different time.
        Case("1000x64", "1,000 tensors of 64", MANY_SMALL, drawn=False),
        *(Case(f"2^{k}", f"one array of 2^{k}", [(2**k,)]) for k in (16, 20, 24, 26)),
        Case("gpt2-small", "GPT-2 Small, 148 tensors", GPT2_SMALL),
        Case("gpt2-large", "GPT-2 Large, 436 tensors", GPT2_LARGE),
    )
}

# ---------------------------------------------------------------------------- arrays


def aligned_copy(array: Array) -> Array:
    """A copy that starts at a cache line, as the arrays of torch and jax do.

    NumPy's own arrays start anywhere, which costs every implementation a few percent, and not the
    same in every run.
    """
    memory = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def to_bfloat16(arrays: Iterable[Array]) -> Arrays:
    """Copies in bfloat16; or the arrays themselves, where they have that dtype."""
    import ml_dtypes

    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return [a if a.dtype == bfloat16 else aligned_copy(a.astype(bfloat16)) for a in arrays]


def draw(shapes: Shapes, dtype: DTypeLike, roles: int = 4) -> tuple[Arrays, ...]:
    """Random params, grads, m and v, as after some steps of training; or the first ``roles``."""
    rng = np.random.default_rng(0)
    return tuple(
        [aligned_copy(_uniform(rng, shape, dtype, low, high)) for shape in shapes]
        for low, high in RANGES[:roles]
    )


def draw_with_optimizer(shapes: Shapes, dtype: DTypeLike) -> tuple[Arrays, Arrays, AdamW]:
    """Random params and grads, and an ``AdamW`` with random moments.

    All implementations use the moments of this optimizer: for the largest models, memory does not
    suffice for a second set.
    """
    params, grads = draw(shapes, dtype, roles=2)
    optimizer = AdamW(params, num_threads=runtime_info()["num_threads"])
    rng = np.random.default_rng(1)
    for moments, bounds in zip((optimizer.m, optimizer.v), RANGES[2:], strict=True):
        for moment in cast("Arrays", moments):
            moment[...] = _uniform(rng, moment.shape, dtype, *bounds)
    return params, grads, optimizer


def _uniform(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike, low: float, high: float
) -> Array:
    real: Any = np.dtype(dtype).type
    array: Array = rng.random(shape, real) * real(high - low) + real(low)
    return array
