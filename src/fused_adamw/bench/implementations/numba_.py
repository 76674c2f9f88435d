"""The step as a loop that numba compiles."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..harness import Prepare, Step
from ..workloads import Arrays
from .base import BETAS, EPS, LR, WEIGHT_DECAY, Implementation, num_threads


@contextmanager
def numba_threads() -> Iterator[None]:
    """Give numba as many threads as all implementations have."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(num_threads())
    try:
        yield
    finally:
        numba.set_num_threads(before)


def load_loop() -> Prepare:
    import numba

    @numba.njit(parallel=True, fastmath=True)  # type: ignore[untyped-decorator, unused-ignore]
    def update(p, g, m, v, scalars):  # type: ignore[no-untyped-def]
        b1, c1, b2, c2, decay, eps, step_size, root = scalars
        for i in numba.prange(p.size):
            m_i = b1 * m[i] + c1 * g[i]
            v_i = b2 * v[i] + c2 * g[i] * g[i]
            m[i] = m_i
            v[i] = v_i
            p[i] = p[i] * decay - step_size * m_i / (np.sqrt(v_i) * root + eps)

    def prepare(params: Arrays, grads: Arrays, m: Arrays, v: Arrays) -> Step:
        flat = ([array.reshape(-1) for array in role] for role in (params, grads, m, v))
        tensors = list(zip(*flat, strict=True))
        real = params[0].dtype.type
        b1, b2 = BETAS
        constants = (b1, 1 - b1, b2, 1 - b2, 1 - LR * WEIGHT_DECAY, EPS)
        count = itertools.count(1)

        def step() -> None:
            t = next(count)
            of_step = LR / (1 - b1**t), 1 / math.sqrt(1 - b2**t)
            scalars = tuple(map(real, (*constants, *of_step)))
            for tensor in tensors:
                update(*tensor, scalars)

        return step

    return prepare


NUMBA = Implementation("numba", load_loop, ("numba",), setup=numba_threads)
