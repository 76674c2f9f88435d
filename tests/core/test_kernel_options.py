"""The kernels give the bits of the twin with a scale, AMSGrad and an average, and of the norm."""

import math

import numpy as np
import pytest
from arrays import PER_THREAD
from kernel_steps import HYPER, NUMBERS, Kept, bound_step
from twin import adamw_twin

from fused_adamw import _core
from fused_adamw._core import BoundTensors, TreeSpec


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.37, -1e-3, 0.0])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("length", [1, 7, 16, 33, 257, 1023, 2 * PER_THREAD + 5])
def test_scale_and_amsgrad(tensor, dtype, isa, length, amsgrad, scale):
    x = tensor(length, dtype, seed=length)
    v_max = x.v[::-1].copy() if amsgrad else None
    expected = adamw_twin(*x.arrays, 3, **HYPER, scale=scale, v_max=v_max)
    bound_step(x, 3, scale, 2, **({"v_max": v_max} if amsgrad else {}))
    written = (x.p, x.m, x.v, v_max) if amsgrad else (x.p, x.m, x.v)
    for array, twin in zip(written, expected, strict=True):
        np.testing.assert_array_equal(array, twin, strict=True)


@pytest.mark.parametrize("where", ["gradient", "v", "v_max"])
def test_amsgrad_keeps_nan(tensor, dtype, isa, where):
    x = tensor(40, dtype)
    v_max = x.v.copy()
    {"gradient": x.g, "v": x.v, "v_max": v_max}[where][21] = np.nan
    expected = adamw_twin(*x.arrays, 1, **HYPER, v_max=v_max)
    bound_step(x, 1, v_max=v_max)
    assert np.isnan(v_max[21])
    for array, twin in zip((x.p, x.m, x.v, v_max), expected, strict=True):
        np.testing.assert_array_equal(array, twin, strict=True)


# ---- the norm of the gradient

LANES, CHUNK = 16, 16384  # written out: the order of the sum is a promise


def test_the_constants_of_the_tests_are_those_of_the_library():
    assert (_core.CHUNK, _core.MIN_ELEMENTS_PER_THREAD) == (CHUNK, PER_THREAD)


def norm_twin(arrays):
    """The Euclidean norm of all arrays in the order of the kernels: lanes, then chunks."""
    total = 0.0
    for array in arrays:
        for begin in range(0, array.size, CHUNK):
            chunk = array[begin : begin + CHUNK].astype(np.float64)
            lanes = np.zeros(LANES)
            for i in range(0, chunk.size, LANES):
                part = chunk[i : i + LANES]
                lanes[: part.size] += part * part
            while lanes.size > 1:
                half = lanes.size // 2
                lanes = lanes[:half] + lanes[half:]
            total += float(lanes[0])
    return math.sqrt(total)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "lengths", [[0], [1], [15, 0, 17], [CHUNK + 1], [3, 5 * CHUNK, 40, 3 * CHUNK - 1, 0, 100]]
)
def test_norm(tensor, dtype, isa, lengths, num_threads):
    many = [tensor(n, dtype, seed=i) for i, n in enumerate(lengths)]
    p, g, _, _ = (list(column) for column in zip(*(x.arrays for x in many), strict=True))
    tensors = BoundTensors(TreeSpec(p), p, [Kept(x) for x in many])
    norm = tensors.step(g, [(*NUMBERS, (None, None))], max_grad_norm=0.5, num_threads=num_threads)
    assert norm == norm_twin(g)


# ---- the moving average of the weights


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("length", [1, 7, 16, 33, 257, 1023, 2 * PER_THREAD + 5])
def test_average(tensor, dtype, isa, length, decay, amsgrad):
    x = tensor(length, dtype, seed=length)
    ema, v_max = x.g[::-1].copy(), x.v[::-1].copy() if amsgrad else None
    d = dtype(decay)
    p, *_ = adamw_twin(*x.arrays, 3, **HYPER, v_max=v_max)
    expected = d * ema + dtype(1 - float(d)) * p
    others = {"v_max": v_max} if amsgrad else {}
    bound_step(x, 3, num_threads=2, ema_decay=decay, ema=ema, **others)
    np.testing.assert_array_equal(x.p, p, strict=True)
    np.testing.assert_array_equal(ema, expected, strict=True)


def test_an_average_needs_its_decay(tensor):
    x = tensor(5, np.float32)
    with pytest.raises(ValueError, match="ema_decay must be a number"):
        bound_step(x, 1, ema=x.g.copy())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1 - 1e-9, float("nan"), "0.9"])
def test_bad_decay_of_the_average(tensor, decay):
    x = tensor(5, np.float32)
    before = x.bytes()
    with pytest.raises((TypeError, ValueError), match="ema_decay must be"):
        bound_step(x, 1, ema_decay=decay, ema=x.g.copy())
    assert x.bytes() == before
