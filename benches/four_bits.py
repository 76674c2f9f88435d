"""Ways to store moments in 4 bits, in NumPy, for bench_four_bits.py to try.

A quantizer gives the values that read back after storing. Arrays are (blocks, elements of a block);
the elements of a block share a scale. ``dither``, from 0 to 1, decides which of the two values
around an element it becomes: the upper one where the fraction plus the dither reaches 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from quantizers import IRRATIONAL, Values, block_maximum, linear, relative_to_root

from fused_adamw import fused_adamw

DYNAMIC_EXPONENT = np.array([0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875])
SIGNED = np.array([*-DYNAMIC_EXPONENT[::-1], 0, *DYNAMIC_EXPONENT, 1])  # Dettmers et al. 2022
NO_ZERO = np.arange(1, 17) / 16  # Li, Chen & Zhu 2023: without a zero, m / sqrt(v) stays small


def to_levels(x: Values, dither: Values, levels: Values) -> Values:
    """x, from the first level to the last, at one of the two levels around it."""
    x = np.clip(x, levels[0], levels[-1])
    below = np.clip(np.searchsorted(levels, x, side="right") - 1, 0, len(levels) - 2)
    low, high = levels[below], levels[below + 1]
    return np.where((x - low) / (high - low) + dither >= 1, high, low)


def dynamic_exponent(x: Values, dither: Values) -> Values:
    scale = block_maximum(x)
    return to_levels(x / scale, dither, SIGNED) * scale


def logarithmic(root: Values, dither: Values, steps: int, octaves: float) -> Values:
    """0, and ``steps`` equal steps on the scale of the bits of a float32 from the smallest root
    above 0 to the largest, of the least power of two that suffices, as the 8-bit format has them;
    what lies more than ``octaves`` below the largest is raised to there."""
    x = root.astype(np.float32).view(np.int32) / 2**23
    high = x.max(axis=1, keepdims=True)
    low = np.where(root > 0, x, np.inf).min(axis=1, keepdims=True)
    low = np.clip(low, high - octaves, high)
    spacing = 2.0 ** np.ceil(np.log2(np.maximum(high - low, 2**-18) / steps))
    spacing *= 1 + (np.ceil(high / spacing) - np.floor(low / spacing) > steps)
    low = np.floor(low / spacing) * spacing
    code = np.minimum(np.floor(np.maximum(x - low, 0) / spacing + dither), steps)
    stored = np.rint((low + code * spacing) * 2**23).astype(np.int32).view(np.float32)
    return np.where(root > 0, stored, 0)


def rank_1(v: Values, dither: Values, shape: tuple[int, ...]) -> Values:
    """Li, Chen & Zhu 2023: v of a matrix in units of the smaller of the maxima of its row and of
    its column."""
    matrix = v.ravel()[: shape[0] * shape[1]].reshape(shape)
    largest = [matrix.max(axis=k, keepdims=True) for k in (0, 1)]
    scale = np.minimum(*largest)
    part = np.divide(matrix, scale, out=np.zeros_like(matrix), where=scale > 0)
    stored = v.copy()
    of_matrix = dither.ravel()[: matrix.size].reshape(shape)
    stored.ravel()[: matrix.size] = (to_levels(part, of_matrix, NO_ZERO) * scale).ravel()
    return stored


def by_block_or_rank_1(v: Values, dither: Values, shape: tuple[int, ...]) -> Values:
    if len(shape) == 2:
        return rank_1(v, dither, shape)
    scale = block_maximum(v)
    return to_levels(v / scale, dither, NO_ZERO) * scale


OfV = Callable[[Values, Values, tuple[int, ...]], Values]
OfM = Callable[[Values, Values, Values], Values]


def logarithmic_v(steps: int, octaves: float) -> OfV:
    return lambda v, dither, shape: logarithmic(np.sqrt(v), dither, steps, octaves) ** 2


OF_V: dict[str, OfV] = {
    "float32": lambda v, dither, shape: v,
    "8, logarithmic": logarithmic_v(253, 31.6),
    "4, logarithmic": logarithmic_v(14, 31.6),
    "4, root, linear": lambda v, dither, shape: linear(np.sqrt(v), dither, 15) ** 2,
    "4, rank 1, no zero": by_block_or_rank_1,
}
OF_M: dict[str, OfM] = {
    "float32": lambda m, root, dither: m,
    "8, by root": relative_to_root(lambda ratio, dither: linear(ratio, dither, 127)),
    "4, by root": relative_to_root(lambda ratio, dither: linear(ratio, dither, 7)),
    "4, dynamic exponent": lambda m, root, dither: dynamic_exponent(m, dither),
}


@dataclass(frozen=True)
class Format:
    """How m and v are stored."""

    m: str
    v: str
    block: int = 256
    stochastic: bool = True

    def __str__(self) -> str:
        rounding = "" if self.stochastic else "; to nearest"
        return f"m {self.m}; v {self.v}; blocks of {self.block}{rounding}"

    @property
    def bytes_per_parameter(self) -> float:
        """With a scale of 4 bytes for each block, which stands for those of rank 1 too."""
        return sum(
            4.0 if name == "float32" else int(name.partition(",")[0]) / 8 + 4 / self.block
            for name in (self.m, self.v)
        )

    def __call__(self, m: Values, v: Values, t: int, tensor: int) -> None:
        """Store the moments of step t and read them back, in place."""
        size, shape = m.size, m.shape
        padded = [np.zeros(-(-size // self.block) * self.block, np.float32) for _ in range(2)]
        for full, x in zip(padded, (m, v), strict=True):
            full[:size] = x.ravel()
        of_m, of_v = (x.reshape(-1, self.block) for x in padded)
        stored_v = OF_V[self.v](of_v, self._dither(of_v.shape, t, tensor, 0), shape)
        root = np.sqrt(stored_v).astype(np.float32)
        stored_m = OF_M[self.m](of_m, root, self._dither(of_m.shape, t, tensor, 1))
        m[...] = stored_m.ravel()[:size].reshape(shape)
        v[...] = stored_v.ravel()[:size].reshape(shape)

    def _dither(self, shape: tuple[int, ...], t: int, tensor: int, role: int) -> Values:
        """A Weyl sequence over the steps, from a random start for each element."""
        if not self.stochastic:
            return np.full(shape, 0.5)
        start = np.random.default_rng([role, tensor]).random(shape)
        return (start + t * IRRATIONAL[role]) % 1


class StoredAdamW:
    """AdamW with the step of the package, on moments that are stored in a format in between."""

    def __init__(self, params, lr, format_, **hyperparameters):
        self.params, self.lr, self.format = dict(params), lr, format_
        self.hyperparameters, self.t = hyperparameters, 0
        self.state = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in self.params.items()}

    def step(self, grads):
        self.t += 1
        lr = self.lr(self.t) if callable(self.lr) else self.lr
        for i, (name, p) in enumerate(self.params.items()):
            m, v = self.state[name]
            g = np.ascontiguousarray(grads[name])
            fused_adamw(p, g, m, v, self.t, lr=lr, num_threads=1, **self.hyperparameters)
            self.format(m, v, self.t, i)
