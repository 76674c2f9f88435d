"""The kernels give the bits of the twin for every number, NaN and infinity among them."""

import numpy as np
import pytest
from arrays import FORCED, ISAS, PER_THREAD, Tensor
from hypothesis import given
from hypothesis import strategies as st
from kernel_steps import HYPER, assert_step_is_twin
from twin import adamw_twin

from fused_adamw import _core, fused_adamw
from fused_adamw.reference import adamw_update


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
