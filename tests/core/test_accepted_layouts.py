"""Buffers of ctypes, gradients in another memory order, no dimensions, a subclass of arrays."""

import ctypes

import numpy as np
import pytest
from refusals import call

from fused_adamw import AdamW, fused_adamw


@pytest.mark.parametrize("shape", [(24,), (4, 6), (0,)])
@pytest.mark.parametrize("role", range(4))
def test_ctypes_arrays(tensor, role, shape):
    """Their buffers come without strides."""
    expected, x = tensor(shape, np.float32), tensor(shape, np.float32)
    fused_adamw(*expected.arrays, 1)
    arrays = list(x.arrays)
    kind = ctypes.c_float
    for size in reversed(shape):
        kind = kind * size
    arrays[role] = kind.from_buffer_copy(arrays[role].tobytes())
    call(arrays)
    assert [memoryview(array).tobytes() for array in arrays] == expected.bytes()


# ---- gradients in another memory order


GRADIENTS = {
    "Fortran order": np.asfortranarray,
    "transposed": lambda g: g.T.copy().T,
    "every second column": lambda g: np.repeat(g, 2, axis=1)[:, ::2],
    "backwards": lambda g: g[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": lambda g: np.frombuffer(g.tobytes(), g.dtype).reshape(g.shape),
}


@pytest.mark.parametrize("layout", GRADIENTS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradient_layouts(tensor, dtype, layout, order):
    expected, x = tensor((37, 41), dtype), tensor((37, 41), dtype)
    fused_adamw(*expected.arrays, 3)
    p, m, v = (np.array(array, order=order) for array in (x.p, x.m, x.v))
    g = GRADIENTS[layout](x.g)
    before = g.tobytes()
    fused_adamw(p, g, m, v, 3)
    assert g.tobytes() == before
    for array_, wanted in zip((p, m, v), (expected.p, expected.m, expected.v), strict=True):
        np.testing.assert_array_equal(array_, wanted)


def test_broadcast_gradient(tensor, dtype):
    expected, x = tensor((5, 3), dtype), tensor((5, 3), dtype)
    expected.g[:] = 0.25
    fused_adamw(*expected.arrays, 1)
    fused_adamw(x.p, np.broadcast_to(dtype(0.25), (5, 3)), x.m, x.v, 1)
    np.testing.assert_array_equal(x.p, expected.p)


def test_zero_dimensions(dtype):
    p, g, m, v = (np.array(0.5, dtype) for _ in range(4))
    flat = [np.full(1, 0.5, dtype) for _ in range(4)]
    fused_adamw(p, g, m, v, 1)
    fused_adamw(*flat, 1)
    assert p.shape == ()
    assert p == flat[0][0] != 0.5


def test_a_subclass_cannot_misstate_its_memory():
    """The memory of an array of bfloat16 is asked of NumPy, whatever a subclass answers."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    elsewhere = np.full(64, 7, np.uint8)

    class Lying(np.ndarray):
        def view(self, *_):
            return elsewhere[:8]

    own = np.ones(8, bfloat16)
    opt = AdamW(np.ndarray.view(own, Lying), lr=0.5)
    opt.step(np.ones(8, bfloat16))
    assert (elsewhere == 7).all()
    assert (own < 0.6).all()
