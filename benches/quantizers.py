"""Simpler ways than ours to store moments in 8 bits, in NumPy, for bench_state.py to compare with.

A quantizer gives the values that read back after storing. Arrays are (blocks, 256); the elements of
a block share a scale. Each rounds a real position between two representable values: up where its
fraction plus ``dither``, from 0 to 1, reaches 1. A dither of 1/2 rounds to nearest.

The format of the package is not among them: bench_state.py measures that of the kernel.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.floating]

BLOCK = 256  # elements

# ---------------------------------------------------------------------------- scalar quantizers


def block_maximum(x: Values) -> Values:
    found = np.abs(x).max(axis=1, keepdims=True)
    return np.where(found > 0, found, 1)


def linear(x: Values, dither: Values, steps: int) -> Values:
    """``steps`` equal steps between 0 and the maximum of the block."""
    scale = block_maximum(x) / steps
    return np.clip(np.floor(x / scale + dither), -steps, steps) * scale


def small_float(x: Values, dither: Values, mantissa: int) -> Values:
    """4 bits of exponent, as in float8 E4M3; its largest value is the maximum of the block."""
    top = 2 - 2.0**-mantissa
    scale = block_maximum(x) / top
    magnitude = np.abs(x) / scale
    exponent = np.clip(np.frexp(magnitude)[1] - 1, -14, 0)  # below are the subnormals
    spacing = np.ldexp(1.0, exponent - mantissa)
    rounded = np.floor(magnitude / spacing + dither) * spacing
    return np.sign(x) * np.minimum(rounded, top) * scale


# ---------------------------------------------------------------------------- of v and m

V_QUANTIZERS: dict[str, Callable[[Values, Values], Values]] = {
    "float32": lambda v, dither: v,
    "linear": lambda v, dither: linear(v, dither, 255),
    "root, linear": lambda v, dither: linear(np.sqrt(v), dither, 255) ** 2,
    "root, E4M4": lambda v, dither: small_float(np.sqrt(v), dither, 4) ** 2,
}


def relative_to_root(
    quantize: Callable[[Values, Values], Values],
) -> Callable[[Values, Values, Values], Values]:
    """Quantize m / sqrt(v) instead of m."""

    def quantized(m: Values, root: Values, dither: Values) -> Values:
        ratio = np.divide(m, root, out=np.zeros_like(m), where=root > 0)
        return quantize(ratio, dither) * root

    return quantized


M_QUANTIZERS: dict[str, Callable[[Values, Values, Values], Values]] = {
    "float32": lambda m, root, dither: m,
    "linear": lambda m, root, dither: linear(m, dither, 127),
    "E4M3": lambda m, root, dither: small_float(m, dither, 3),
    "by root, linear": relative_to_root(lambda ratio, dither: linear(ratio, dither, 127)),
    "by root, E4M3": relative_to_root(lambda ratio, dither: small_float(ratio, dither, 3)),
}

# ---------------------------------------------------------------------------- a pair of them

IRRATIONAL = (0.7548776662466927, 0.6180339887498949)  # of v and m: plastic number, golden ratio


class Quantizer(NamedTuple):
    """The quantizers of v and m, and whether they round stochastically or to nearest."""

    v: str
    m: str
    stochastic: bool = True

    def __call__(self, m: Values, v: Values, t: int) -> tuple[Values, Values]:
        """Store and read back the moments of step t."""
        shape = (-1, BLOCK)
        v = V_QUANTIZERS[self.v](v.reshape(shape), self._dither(v.size, t, 0))
        m = M_QUANTIZERS[self.m](m.reshape(shape), np.sqrt(v), self._dither(m.size, t, 1))
        return m.astype(np.float32).ravel(), v.astype(np.float32).ravel()

    def _dither(self, size: int, t: int, role: int) -> Values:
        """A Weyl sequence over the steps, from a random start for each element, as the package has
        it: the mean is kept with less noise than by independent random numbers."""
        if not self.stochastic:
            return np.full((size // BLOCK, BLOCK), 0.5)
        start = np.random.default_rng(role).random(size).reshape(-1, BLOCK)
        return (start + t * IRRATIONAL[role]) % 1


def load_adamw(quantizer, hyperparameters):
    """AdamW in NumPy with such moments, as an implementation; None: moments in float32."""

    def prepare(params, grads, *_):
        (p,), (g,) = params, grads
        state, t = (np.zeros_like(p), np.zeros_like(p)), 0
        b1, b2 = map(np.float32, hyperparameters["betas"])
        decay = np.float32(hyperparameters["lr"] * hyperparameters["weight_decay"])
        eps = np.float32(hyperparameters["eps"])

        def step():
            nonlocal state, t
            t += 1
            m, v = b1 * state[0] + (1 - b1) * g, b2 * state[1] + (1 - b2) * g * g
            state = m, v = quantizer(m, v, t) if quantizer else (m, v)
            size = np.float32(hyperparameters["lr"] / (1 - float(b1) ** t))
            root = np.float32(1 / math.sqrt(1 - float(b2) ** t))
            p[:] -= decay * p
            p[:] -= size * (m / (np.sqrt(v) * root + eps))

        return step

    return prepare
