"""Steps on low-precision state with numbers that are not ordinary: those of the NumPy twin."""

import numpy as np
import pytest
from arrays import dtype_named
from states import HYPER, assert_twins, draw, state_of
from twin_state import TensorTwin, dithers

from fused_adamw import AdamW

TINY = 1e-45  # the least float32


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [-0.0, 0.0],
        [TINY],
        [1e-20, 3e-23, 1e-38],
        [1e-20, 1.0, 1e15],
        [np.nan, 1.0],
        [-np.nan, 1.0],  # as processors make it
        [np.inf, 1.0, 0.0],
        [-np.inf, 1e-10],
        [1e19, 1.0],
        [3e38],
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 256, 257, 768])
def test_values_that_are_not_ordinary(values, state_dtype, seed, isa, size):
    """Also: what is not finite stays in its own element."""
    g = np.resize(np.array(values, np.float32), size)
    p = np.ones(size, np.float32)
    options = {"state_dtype": state_dtype, "seed": seed}
    opt, twin = AdamW(p, **HYPER, **options), TensorTwin(p, **options)
    for gradient in (g, g, g[::-1].copy(), np.zeros_like(g)):
        opt.step(gradient)
        twin.step(gradient, **HYPER)
        assert_twins(opt, [twin])
    touched = ~np.isfinite(g) | ~np.isfinite(g[::-1])
    assert not np.isnan(p[~touched]).any()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 0, 3, 1]], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_blocks_of_other_ranges_one_after_another(dtype, order, isa):
    """Zeros, numbers that are not finite, a wide range, and an ordinary block."""
    rng = np.random.default_rng(5)
    ordinary = rng.standard_normal((4, 256))
    blocks = ordinary * [[0.0], [1.0], [1.0], [1.0]]
    blocks[1, ::3] = np.nan, *[np.inf] * 84, -np.inf
    blocks[2] *= 10 ** rng.uniform(-18, 3, 256)
    with np.errstate(all="ignore"):
        g = np.array(blocks[order].ravel(), dtype_named(dtype))
    p = np.ones(g.size, g.dtype)
    options = {"state_dtype": "8bit", "master_weights": dtype != "float32"}
    opt, twin = AdamW(p, **HYPER, **options), TensorTwin(p, **options)
    for gradient in (g, g, np.roll(g, 256), g[::-1].copy()):
        opt.step(gradient)
        twin.step(gradient, **HYPER)
        assert_twins(opt, [twin])


@pytest.mark.parametrize("size", [255, 256, 600])
def test_ratios_that_leave_the_range_of_float32(size, isa):
    """State from outside can hold an |m| / s near the largest float32; here v shrinks faster."""
    p = np.ones(size, np.float32)
    opt, twin = AdamW(p, **HYPER, state_dtype="8bit"), TensorTwin(p, state_dtype="8bit")
    hyper = HYPER | {"betas": (0.9, 0.5)}
    (g,) = draw([size], np.float32)
    opt.step(g)
    twin.step(g, **HYPER)
    saved = opt.state_dict()
    saved["state"]["params"]["m_scale"][:] = twin.state["m_scale"][:] = 2.6e36
    opt.load_state_dict(saved)
    for name, value in hyper.items():
        opt.param_groups[0][name] = value
    for _ in range(2):
        opt.step(np.zeros_like(g))
        twin.step(np.zeros_like(g), **hyper)
        assert_twins(opt, [twin])
    assert np.isfinite(opt.m).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_a_tensor_that_is_no_longer_trained(state_dtype, seed, isa):
    """m decays below the least float32 long before v does."""
    (g,) = draw([(300,)], np.float32)
    p = np.ones(300, np.float32)
    options = {"state_dtype": state_dtype, "seed": seed}
    opt, twin = AdamW(p, **options, weight_decay=0.0), TensorTwin(p, **options)
    hyper = HYPER | {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    for t in range(1100):
        gradient = g if t == 0 else np.zeros_like(g)
        opt.step(gradient)
        twin.step(gradient, **hyper)
    assert_twins(opt, [twin])
    assert np.isfinite(opt.m).all()
    assert np.abs(opt.m).max() < 1e-38


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_code_where_its_factor_was_rounded_up(sign, isa):
    """The factor of m / s is an ulp less then, since the largest would be more than 127 by it and,
    with the largest dithers, come out as -128."""
    size, one, top = 1 << 20, np.float32(1), np.float32(127 * 2**24)
    assert (dithers(0, 0, size, 1)["m"] >= 2**32 - 128 * 2**8).any()
    betas = (np.float32(b / 64) for b in range(1, 64))
    b1 = next(b for b in betas if top / (one - b) * (one - b) > top)
    opt = AdamW(np.ones(size, np.float32), state_dtype="8bit", betas=(b1, 0.0))
    opt.step(np.full(size, sign, np.float32))  # |m| / s is 1 - b1 exactly
    codes = sign * state_of(opt)[0]["m"].astype(int)
    assert set(np.unique(codes)) <= {126, 127}
    assert np.count_nonzero(codes == 126) < 100


@pytest.mark.parametrize("seed", [None, *range(5)])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_v_is_never_rounded_to_zero(state_dtype, seed):
    g = (10 ** np.random.default_rng(0).uniform(-21, 18, 100_000)).astype(np.float32)
    g[:50_000] = np.sort(g[:50_000])
    g[0] = 1e-21
    opt = AdamW(np.ones_like(g), state_dtype=state_dtype, seed=seed, eps=0.0)
    for _ in range(3):
        before = opt.v
        opt.step(g)
        exact = np.float32(1 - float(np.float32(0.999))) * (g * g)
        assert (opt.v[(before > 0) | (exact > 0)] > 0).all()


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize("role", ["params", "grads", "m", "v"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_nan_of_any_bits_stays_nan(dtype, role, master_weights, seed, isa):
    """No bits that rounding adds are carried out of its lower half."""
    dtype = dtype_named(dtype)
    codes = np.arange(1 << 16, dtype=np.uint16)
    own = codes.view(dtype if role in ("params", "grads") else dtype_named("bfloat16"))
    nan = codes[np.isnan(own.astype(np.float32))]
    p, g = np.ones(nan.size, dtype), np.ones(nan.size, dtype)
    if role == "params":
        p = nan.view(dtype).copy()
    opt = AdamW(p, state_dtype="bfloat16", master_weights=master_weights, seed=seed)
    if role in ("m", "v"):
        saved = opt.state_dict()
        saved["state"]["params"][role] = nan.copy()
        opt.load_state_dict(saved)
    opt.step(nan.view(dtype) if role == "grads" else g)
    assert np.isnan(p.astype(np.float32)).all()
    if master_weights:
        assert np.isnan(opt.master).all()
    for moment, follows in ((opt.m, ("grads", "m")), (opt.v, ("grads", "v"))):
        assert np.isnan(moment).all() == (role in follows)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC0FFFF, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_clipping_by_nan_of_any_bits_gives_nan(dtype, bits, isa):
    """The global norm has the bits of a float32 gradient, which tensors of 16 bits cannot keep."""
    p, q = np.ones(300, dtype_named(dtype)), np.ones(4, np.float32)
    opt = AdamW([p, q], state_dtype="bfloat16", max_grad_norm=1.0)
    opt.step([np.ones_like(p), np.full(4, bits, np.uint32).view(np.float32)])
    for array in (p.astype(np.float32), q, *opt.m, *opt.v):
        assert np.isnan(array).all()
