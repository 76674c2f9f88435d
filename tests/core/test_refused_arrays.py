"""Arrays of a wrong type, dtype, shape or layout are refused by name, and no byte has changed."""

import numpy as np
import pytest
from refusals import ROLES, assert_refused, replaced

from fused_adamw import AdamW, fused_adamw


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("value", [1.0, None, "text", object(), {1, 2}, np.float32(1).item()])
def test_not_an_array(arrays, role, value):
    assert_refused(replaced(arrays, role, value), TypeError, role, type(value).__name__)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "dtype", ["i4", "i8", "u1", "f2", "g", "c8", "c16", "?", "S4", "O", "M8[s]", "f4,f4", "i4,f4"]
)
def test_dtype_without_a_kernel(arrays, role, dtype):
    value = np.zeros((4, 6), dtype)
    assert_refused(replaced(arrays, role, value), TypeError, role, "must be", "float32")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_byte_order_of_other_machines(arrays, role, dtype):
    swapped = np.zeros((4, 6), np.dtype(dtype).newbyteorder("S"))
    assert_refused(replaced(arrays, role, swapped), TypeError, role, "byte order")


@pytest.mark.parametrize("role", ROLES[1:])
def test_dtype_that_differs(arrays, role):
    value = np.zeros((4, 6), np.float64)
    words = (role, "float64", "float32", "params")
    assert_refused(replaced(arrays, role, value), TypeError, *words)


@pytest.mark.parametrize("role", ROLES[1:])
@pytest.mark.parametrize("shape", [(), (0,), (1, 1)])
def test_dtype_that_differs_where_strides_do_not_tell(tensor, role, shape):
    arrays = list(tensor(shape, np.float32).arrays)
    value = np.zeros(shape, np.float64)
    assert_refused(replaced(arrays, role, value), TypeError, role, "float64", "float32")


@pytest.mark.parametrize("role", ROLES[1:])
@pytest.mark.parametrize("shape", [(6, 4), (24,), (4, 6, 1), (4, 5), (), (0,), (1, 6)])
def test_shape_that_differs(arrays, role, shape):
    value = np.zeros(shape, np.float32)
    words = (role, str(shape), "(4, 6)", "params")
    assert_refused(replaced(arrays, role, value), ValueError, *words)


@pytest.mark.parametrize("role", ["params", "m", "v"])
def test_read_only(arrays, role):
    value = np.ones((4, 6), np.float32)
    value.flags.writeable = False
    assert_refused(replaced(arrays, role, value), ValueError, role, "read-only")


STRIDED = {
    "every second column": lambda: np.ones((4, 12), np.float32)[:, ::2],
    "part of each row": lambda: np.ones((4, 9), np.float32)[:, :6],
    "every second row": lambda: np.ones((8, 6), np.float32)[::2],
    "backwards": lambda: np.ones((4, 6), np.float32)[::-1],
    "mirrored": lambda: np.ones((4, 6), np.float32)[:, ::-1],
}


@pytest.mark.parametrize("role", ["params", "m", "v"])
@pytest.mark.parametrize("layout", STRIDED)
def test_not_dense(arrays, role, layout):
    words = (role, "must be contiguous", "strides")
    assert_refused(replaced(arrays, role, STRIDED[layout]()), ValueError, *words)


def test_three_dimensions_in_no_order():
    arrays = [np.ones((2, 3, 4), np.float32).transpose(0, 2, 1) for _ in ROLES]
    assert_refused(arrays, ValueError, "params", "must be contiguous")


def test_broadcast(arrays):
    value = np.broadcast_to(np.float32(1), (4, 6))
    assert_refused(replaced(arrays, "v", value), ValueError, "v", "read-only")
    value = np.lib.stride_tricks.as_strided(np.ones(6, np.float32), (4, 6), (0, 4))
    assert_refused(replaced(arrays, "v", value), ValueError, "v", "must be contiguous")


@pytest.mark.parametrize("role", ["m", "v"])
def test_memory_order_that_differs(arrays, role):
    value = np.asfortranarray(np.ones((4, 6), np.float32))
    words = (role, "must be in C order", "got Fortran order", "params")
    assert_refused(replaced(arrays, role, value), ValueError, *words)


def test_16_bits_that_are_no_array_of_numpy():
    arrays = [memoryview(np.zeros(4, np.float16)) for _ in range(4)]
    with pytest.raises(TypeError, match=r"params must be .* of float32 or float64; got dtype"):
        fused_adamw(*arrays, t=1)


def test_bfloat16_in_the_byte_order_of_other_machines():
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    swapped = np.zeros(8, bfloat16.newbyteorder())
    if swapped.dtype.isnative:
        pytest.skip("this ml_dtypes ignores byte orders")
    with pytest.raises(TypeError, match="params must be"):
        AdamW(swapped)
