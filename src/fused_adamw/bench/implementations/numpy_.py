"""The step as NumPy expressions."""

import itertools
import math

import numpy as np

from ..harness import Step
from ..workloads import Arrays
from .base import BETAS, EPS, LR, MAX_OF_SLOW, WEIGHT_DECAY, Implementation


def prepare_expressions(
    params: Arrays,
    grads: Arrays,
    m: Arrays,
    v: Arrays,
    betas: tuple[float, float] = BETAS,
) -> Step:
    """In place where NumPy can; it allocates the intermediate results."""
    b1, b2 = betas
    count = itertools.count(1)

    def step() -> None:
        t = next(count)
        step_size, root = LR / (1 - b1**t), math.sqrt(1 - b2**t)
        for p, g, m_i, v_i in zip(params, grads, m, v, strict=True):
            m_i *= b1
            m_i += (1 - b1) * g
            v_i *= b2
            v_i += (1 - b2) * np.square(g)
            p *= 1 - LR * WEIGHT_DECAY
            p -= step_size * m_i / (np.sqrt(v_i) / root + EPS)

    return step


NUMPY = Implementation("numpy", lambda: prepare_expressions, ("numpy",), max_parameters=MAX_OF_SLOW)
