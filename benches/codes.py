"""Ways to keep the moments in 8 bits, in NumPy: bench_state.py compares them with each other.

A way gives m and v as they read back after they were written. It consists of a code for v, a code
for m, a rounding and the size of a block, whose elements share a scale. Arrays are (blocks, block).

Every code rounds a real position between two codes: up where its fraction and `dither`, from 0 to
1, reach 1. A dither of 1/2 rounds to the nearest, a random one up with the probability that keeps
the mean."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fused_adamw._optim.state_formats import span


class Way(NamedTuple):
    v: str = "root, spanned"
    m: str = "by root, linear"
    rounding: str = "Weyl"
    block: int = 256
    undone: bool = False  # what the rounding of m will do to p is undone in p at once

    def __call__(self, m: Any, v: Any, t: int) -> tuple[Any, Any]:
        shape = (-1, self.block)
        dither = ROUNDINGS[self.rounding]
        v = V_CODES[self.v](v.reshape(shape), dither(v.size, t, 0).reshape(shape))
        m = M_CODES[self.m](m.reshape(shape), np.sqrt(v), dither(m.size, t, 1).reshape(shape))
        return m.astype(np.float32).ravel(), v.astype(np.float32).ravel()


# ---------------------------------------------------------------------------- roundings

IRRATIONAL = (0.7548776662466927, 0.6180339887498949)  # of v and m: plastic number, golden ratio

INDEPENDENT = np.random.default_rng(1)


def nearest(size, t, role):
    return np.full(size, 0.5)


def independent(size, t, role):
    return INDEPENDENT.random(size)


def weyl(size, t, role):
    """From another start for each element on, always further by an irrational part of 1."""
    return (np.random.default_rng(role).random(size) + t * IRRATIONAL[role]) % 1


ROUNDINGS: dict[str, Callable[..., Any]] = {
    "nearest": nearest,
    "independent": independent,
    "Weyl": weyl,
}

# ---------------------------------------------------------------------------- scales of a block


def largest(x):
    found = np.abs(x).max(axis=1, keepdims=True)
    return np.where(found > 0, found, 1)


def linear(x, dither, codes):
    """In `codes` equal parts of the largest of the block."""
    scale = largest(x) / codes
    return np.clip(np.floor(x / scale + dither), -codes, codes) * scale


def small_float(x, dither, mantissa):
    """With 4 bits of exponent, as float8 E4M3 is one, its largest value at that of the block."""
    top = 2 - 2.0**-mantissa
    scale = largest(x) / top
    magnitude = np.abs(x) / scale
    exponent = np.clip(np.frexp(magnitude)[1] - 1, -14, 0)  # below, the spacing stays: subnormal
    spacing = np.ldexp(1.0, exponent - mantissa)
    rounded = np.floor(magnitude / spacing + dither) * spacing
    return np.sign(x) * np.minimum(rounded, top) * scale


def spanned(x, dither):
    """The code of `fused_adamw.state` for roots: floats whose spacing the block's range gives."""
    bits = x.astype(np.float32).view(np.int32).astype(np.int64)
    counts = bits > 0
    base, shift = (
        np.array(column)[:, None]
        for column in zip(*(span(row[row > 0]) for row in bits), strict=True)
    )
    part = np.floor(dither * 2.0**shift).astype(np.int64)
    steps = (np.maximum(bits - base, 0) + part) >> shift
    return np.where(counts, base + (steps << shift), 0).astype(np.uint32).view(np.float32)


# ---------------------------------------------------------------------------- codes

V_CODES: dict[str, Callable[..., Any]] = {
    "linear": lambda v, dither: linear(v, dither, 255),
    "root, linear": lambda v, dither: linear(np.sqrt(v), dither, 255) ** 2,
    "root, E4M4": lambda v, dither: small_float(np.sqrt(v), dither, 4) ** 2,
    "root, spanned": lambda v, dither: spanned(np.sqrt(v), dither) ** 2,
}


def by_root(code):
    def coded(m, root, dither):
        ratio = np.divide(m, root, out=np.zeros_like(m), where=root > 0)
        return code(ratio, root, dither) * root

    return coded


def m_linear(m, root, dither):
    return linear(m, dither, 127)


def m_small_float(m, root, dither):
    return small_float(m, dither, 3)


M_CODES: dict[str, Callable[..., Any]] = {
    "linear": m_linear,
    "E4M3": m_small_float,
    "by root, linear": by_root(m_linear),
    "by root, E4M3": by_root(m_small_float),
}

# ---------------------------------------------------------------------------- AdamW


def adamw(way, hyper):
    """A contender as in fused_adamw.bench.peers; without a way it is AdamW in float32."""

    def prepare(params, grads, *_):
        (p,), (g,) = params, grads
        state, t = [np.zeros_like(p), np.zeros_like(p)], 0
        b1, b2 = map(np.float32, hyper["betas"])

        def step():
            nonlocal state, t
            t += 1
            m, v = b1 * state[0] + (1 - b1) * g, b2 * state[1] + (1 - b2) * g * g
            size = np.float32(hyper["lr"] / (1 - float(b1) ** t))
            root = np.float32(1 / math.sqrt(1 - float(b2) ** t))
            p[:] -= np.float32(hyper["lr"] * hyper["weight_decay"]) * p
            state = way(m, v, t) if way else (m, v)
            # An error e of m comes back as b1 e, b1^2 e and so on: b1 / (1 - b1) times in all.
            ahead = (state[0] - m) * (b1 / (1 - b1)) if way and way.undone else 0
            p[:] -= size * ((m - ahead) / (np.sqrt(v) * root + np.float32(hyper["eps"])))

        return step

    return prepare
