"""The kernels give the bits of the NumPy twin: every instruction set, length, place and thread."""

import math
import mmap
import os

import numpy as np
import pytest
from arrays import FORCED, ISAS, PER_THREAD, Tensor
from hypothesis import given
from hypothesis import strategies as st
from twin import adamw_twin

from fused_adamw import _core, fused_adamw, runtime_info
from fused_adamw._core import BoundTensors, TreeSpec
from fused_adamw.reference import adamw_update

# Straddle the vector widths (2 to 16 elements), their multiples, the tails that are handled with
# narrower vectors, and the 64 elements at whose multiples threads part.
LENGTHS = [*range(36), 47, 48, 49, 63, 64, 65, 127, 128, 129, 255, 257, 1023, 1024, 1025, 4099]

# A second thread joins at 2 x PER_THREAD elements, a third at 3 x, and so on.
THREADED_LENGTHS = [
    2 * PER_THREAD - 1,
    2 * PER_THREAD,
    2 * PER_THREAD + 1,
    3 * PER_THREAD + 63,
    5 * PER_THREAD + 65,
    8 * PER_THREAD + 12345,
]

HYPER = {"lr": 3e-3, "betas": (0.85, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def assert_step_is_twin(arrays, t=3, hyper=HYPER, **how):
    p, g, m, v = arrays
    expected = adamw_twin(p, g, m, v, t, **hyper)
    gradient = g.copy()
    fused_adamw(p, g, m, v, t, **hyper, **how)
    for array, twin in zip((p, m, v), expected, strict=True):
        np.testing.assert_array_equal(array, twin, strict=True)
    np.testing.assert_array_equal(g, gradient)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(tensor, dtype, isa, length):
    assert_step_is_twin(tensor(length, dtype, seed=length).arrays)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", THREADED_LENGTHS)
def test_every_number_of_threads(tensor, dtype, isa, length, num_threads):
    arrays = tensor(length, dtype, seed=length).arrays
    assert_step_is_twin(arrays, num_threads=num_threads)


@pytest.mark.parametrize("offset", [*range(1, 9), 12, 16, 31, 32, 60, 63])
def test_every_alignment(tensor, dtype, isa, offset):
    """Arrays may begin at any byte, even between two elements."""

    def place(array):
        room = np.empty(array.nbytes + 128, np.uint8)
        start = -room.ctypes.data % 64 + offset
        moved = room[start : start + array.nbytes].view(dtype)
        moved[:] = array
        return moved

    assert_step_is_twin(tensor(1003, dtype, place=place).arrays)


@pytest.mark.parametrize("which", range(4))
def test_alignments_that_differ(tensor, dtype, isa, which):
    arrays = list(tensor(515, dtype).arrays)
    room = np.empty(516, dtype)
    room[1:] = arrays[which]
    arrays[which] = room[1:]
    assert_step_is_twin(arrays)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 1000])
def test_nothing_around_a_buffer_changes(tensor, dtype, isa, length):
    rooms = []

    def place(array):
        room = np.full(array.nbytes + 512, 0xA5, np.uint8)
        rooms.append(room)
        room[256:-256] = array.view(np.uint8)
        return room[256:-256].view(dtype)

    assert_step_is_twin(tensor(length, dtype, place=place).arrays)
    for room in rooms:
        assert (room[:256] == 0xA5).all()
        assert (room[-256:] == 0xA5).all()


@pytest.mark.skipif(os.name == "nt", reason="no mprotect here")
@pytest.mark.parametrize("length", [1, 3, 16, 17, 100, 1024])
@pytest.mark.parametrize("side", ["begin", "end"])
def test_nothing_around_a_buffer_is_touched(tensor, dtype, isa, length, side):
    """The buffer ends (or begins) where a page does that cannot even be read."""
    arrays = tensor(length, dtype, place=lambda array: beside_guard_page(array, side)).arrays
    assert_step_is_twin(arrays)


def beside_guard_page(array, side):
    import ctypes

    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 4 * page)
    room = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for guard in (0, 3 * page):
        assert protect(room.ctypes.data + guard, page, 0) == 0
    start = page if side == "begin" else 3 * page - array.nbytes
    moved = room[start : start + array.nbytes].view(array.dtype)
    moved[:] = array
    return moved


NUMBERS = (HYPER["lr"], HYPER["betas"], HYPER["eps"], HYPER["weight_decay"])


class Kept:
    """The state of one tensor, as an optimizer keeps it."""

    def __init__(self, x, **others):
        self.format = x.p.dtype.name
        self.arrays = {"m": x.m, "v": x.v, **others}


def bound_step(x, t, scale=1.0, num_threads=1, ema_decay=None, **state):
    """Step t with what only optimizers use: AMSGrad, an average and a scale."""
    tensors = BoundTensors(TreeSpec(x.p), x.p, [Kept(x, **state)], roles=tuple(state))
    tensors.set_steps([t - 1])
    hyper = (*NUMBERS, (None, ema_decay))
    tensors.step(x.g, [hyper], abs(scale), None, False, scale < 0, num_threads)
    return tensors


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


@pytest.mark.skipif(not runtime_info()["threading"], reason="a build for one thread")
@pytest.mark.parametrize(("length", "threads"), [(-1, 1), (0, 2), (PER_THREAD, 3)])
def test_the_sizes_that_threads_join_at(tensor, length, threads):
    """The lengths above meet the edges of PER_THREAD."""
    x = tensor(2 * PER_THREAD + length, np.float32)
    assert bound_step(x, 1, num_threads=8).threads == threads


LANES, CHUNK = 16, 16384  # written out: the order of the sum is a promise


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


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_many_tensors_are_as_each_alone(tensor, isa, num_threads):
    """Sizes from 0 on, both dtypes mixed; thread boundaries fall inside and between tensors."""
    sizes = [0, 1, 5, PER_THREAD, 0, 33, 80000, 64, 7, PER_THREAD, 2, 0]
    dtypes = [np.float32, np.float64]
    many = [tensor(n, dtypes[i % 3 == 0], seed=i) for i, n in enumerate(sizes)]
    expected = [adamw_twin(*x.arrays, 7, **HYPER) for x in many]
    lists = [list(column) for column in zip(*(x.arrays for x in many), strict=True)]
    fused_adamw(*lists, 7, **HYPER, num_threads=num_threads)
    for x, twins in zip(many, expected, strict=True):
        for array, twin in zip((x.p, x.m, x.v), twins, strict=True):
            np.testing.assert_array_equal(array, twin, strict=True)


def test_split_does_not_matter(tensor, dtype, isa):
    whole, split = tensor(100_021, dtype), tensor(100_021, dtype)
    fused_adamw(*whole.arrays, 2)
    cuts = [1, 2, 17, 16384, 16385, 70000]
    fused_adamw(*(np.split(array, cuts) for array in split.arrays), 2)
    assert whole.bytes() == split.bytes()


def test_many_steps(tensor, dtype, isa):
    x = tensor(999, dtype)
    p, g, m, v = (array.copy() for array in x.arrays)
    for t in range(1, 101):
        p, m, v = adamw_twin(p, g * t, m, v, t, **HYPER)
        fused_adamw(x.p, g * t, x.m, x.v, t, **HYPER)
    for array, twin in zip((x.p, x.m, x.v), (p, m, v), strict=True):
        np.testing.assert_array_equal(array, twin, strict=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 1e-40, 0.0, -0.0])
def test_special_gradients_stay_in_their_element(tensor, dtype, isa, value):
    x = tensor(100, dtype)
    x.g[37] = value
    untouched = [np.delete(array, 37) for array in adamw_twin(*x.arrays, 1)]
    assert_step_is_twin(x.arrays, t=1, hyper={})
    for array, twin in zip((x.p, x.m, x.v), untouched, strict=True):
        np.testing.assert_array_equal(np.delete(array, 37), twin)


def test_zero_gradient_and_state_only_decay(dtype, isa):
    p = np.ones(40, dtype)
    zeros = [np.zeros(40, dtype) for _ in range(3)]
    fused_adamw(p, *zeros, 1, lr=0.5, weight_decay=0.5)
    np.testing.assert_array_equal(p, np.full(40, 0.75, dtype))


def test_sign_of_nothing(isa):
    """eps = 0 with no gradient at all is 0/0, as the formula says."""
    p, g, m, v = (np.zeros(3) for _ in range(4))
    fused_adamw(p, g, m, v, 1, eps=0)
    assert np.isnan(p).all()


@pytest.mark.parametrize("t", [1, 2, 1000, 2**24 + 1, 2**31, 2**53 + 1, 2**62])
def test_every_step_number(tensor, dtype, isa, t):
    assert_step_is_twin(tensor(33, dtype).arrays, t=t)


numbers = st.floats(-1e3, 1e3, width=32)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 7), max_size=4),
    t=st.integers(1, 10**7),
    lr=st.floats(0, 10),
    betas=st.tuples(st.floats(0, 0.99999), st.floats(0, 0.99999)),
    eps=st.floats(0, 1e-2),
    weight_decay=st.floats(0, 2),
    order=st.sampled_from("CF"),
    single=st.booleans(),
)
def test_any_shape_and_hyper_parameters(
    seed, shape, t, lr, betas, eps, weight_decay, order, single
):
    dtype = np.float32 if single else np.float64
    x = Tensor(shape, dtype, seed, lambda array: np.asarray(array, order=order))
    hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    for isa in ISAS:
        _core._force_isa(isa)
        assert_step_is_twin([array.copy(order="K") for array in x.arrays], t, hyper)
    _core._force_isa(FORCED)


def test_against_the_definition(tensor, isa):
    """The pure-Python reference rounds m_hat, v_hat and the decay on the way, the kernel folds
    them into two scalars. Each has about ten roundings of half an ulp for the update, and one for
    the decay at the scale of p: the parameters, of size 1 with updates of 1e-2, agree within one
    ulp; the moments, of two products and a sum each, within two ulps of the larger term."""
    x = tensor(500, np.float64)
    expected = [
        adamw_update(*map(float, row), t=5, lr=1e-2, wd=0.1)
        for row in zip(x.p, x.g, x.m, x.v, strict=True)
    ]
    p, g = x.p.copy(), x.g.copy()
    fused_adamw(*x.arrays, 5, lr=1e-2, weight_decay=0.1)
    theta, m, v = map(np.array, zip(*expected, strict=True))
    ulp = np.finfo(np.float64).eps
    assert np.abs(x.p - theta).max() <= 2 * ulp * np.abs(p).max()
    assert np.abs(x.m - m).max() <= 2 * ulp * 0.1 * np.abs(g).max() + 2 * ulp * np.abs(m).max()
    np.testing.assert_allclose(x.v, v, rtol=4 * ulp, atol=0)


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


def test_the_constants_of_the_tests_are_those_of_the_library():
    assert (_core.CHUNK, _core.MIN_ELEMENTS_PER_THREAD) == (CHUNK, PER_THREAD)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_nan_of_every_payload_and_sign(tensor, dtype, isa, num_threads):
    """Which elements are NaN is promised, not with which sign and payload; all others keep their
    bits."""
    x = tensor(PER_THREAD * 2 + 77, dtype, seed=3)
    rng = np.random.default_rng(4)
    integers = np.uint32 if dtype == np.float32 else np.uint64
    infinity = np.array(np.inf, dtype).view(integers)
    sign = np.array(-0.0, dtype).view(integers)
    for array in x.arrays:
        chosen = rng.random(array.size) < 0.1
        payloads = rng.integers(1, 2 ** np.finfo(dtype).nmant, array.size).astype(integers)
        signs = rng.integers(0, 2, array.size).astype(integers) * sign
        array[chosen] = (infinity | payloads | signs).view(dtype)[chosen]
    expected = adamw_twin(*x.arrays, 2)
    fused_adamw(*x.arrays, 2, num_threads=num_threads)
    for found, twin in zip((x.p, x.m, x.v), expected, strict=True):
        nan = np.isnan(twin)
        assert 0.1 < nan.mean() < 0.5
        np.testing.assert_array_equal(np.isnan(found), nan)
        assert found[~nan].tobytes() == twin[~nan].tobytes()
