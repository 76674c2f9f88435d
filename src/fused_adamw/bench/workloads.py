"""What a step is taken on: shapes from the tiny transformer's to GPT-2's, and arrays of them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..optimizer import AdamW
from ..runtime import runtime_info
from ..tiny.model import TinyTransformer

Array: TypeAlias = NDArray[Any]
Shapes: TypeAlias = Sequence[tuple[int, ...]]

CACHE_LINE = 64
READ_AND_WRITTEN = 4 + 3  # arrays

RANGES = ((-1.0, 1.0), (-0.1, 0.1), (-0.01, 0.01), (1e-4, 1e-3))  # of params, grads, m and v

# ---------------------------------------------------------------------------- shapes


class Case(NamedTuple):
    name: str
    title: str
    shapes: Shapes
    drawn: bool = True  # in a chart over the size alone

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes))


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


GPT2_SMALL, GPT2_LARGE = gpt2(12, 768), gpt2(36, 1280)

CASES = {
    case.name: case
    for case in (
        Case("tiny-transformer", "13 tensors of the tiny transformer", tiny_transformer()),
        # Of the size of 2^16, and unlike it.
        Case("1000x64", "1,000 tensors of 64", [(64,)] * 1000, drawn=False),
        *(Case(f"2^{k}", f"one array of 2^{k}", [(2**k,)]) for k in (16, 20, 24, 26)),
        Case("gpt2-small", "GPT-2 Small, 148 tensors", GPT2_SMALL),
        Case("gpt2-large", "GPT-2 Large, 436 tensors", GPT2_LARGE),
    )
}

# ---------------------------------------------------------------------------- arrays


def aligned(array: Array) -> Array:
    """A copy that starts a cache line, as the arrays of torch and jax do. NumPy's start anywhere,
    which costs every contender the same few percent and would vary from run to run."""
    memory = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def uniform(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: DTypeLike, low: float, high: float
) -> Array:
    real: Any = np.dtype(dtype).type
    array: Array = rng.random(shape, real) * real(high - low) + real(low)
    return array


def draw(shapes: Shapes, dtype: DTypeLike, roles: int = 4) -> tuple[list[Array], ...]:
    """params, grads, m and v, as after some steps of training; or the first of these roles."""
    rng = np.random.default_rng(0)
    return tuple(
        [aligned(uniform(rng, shape, dtype, low, high)) for shape in shapes]
        for low, high in RANGES[:roles]
    )


def held(shapes: Shapes, dtype: DTypeLike) -> tuple[list[Array], list[Array], AdamW]:
    """params, grads, and an AdamW that holds the moments. It makes them itself, and the largest
    models have room for one set alone: whoever else takes a step takes it on these."""
    params, grads = draw(shapes, dtype, roles=2)
    optimizer = AdamW(params, num_threads=runtime_info()["num_threads"])
    rng = np.random.default_rng(1)
    for moments, bounds in zip((optimizer.m, optimizer.v), RANGES[2:], strict=True):
        for moment in moments:
            moment[...] = uniform(rng, moment.shape, dtype, *bounds)
    return params, grads, optimizer
