"""Steps on low-precision state: each has the bits of the NumPy twin, wherever it is taken."""

import math

import numpy as np
import pytest
from arrays import ISAS, dtype_named
from states import (
    HYPER,
    LOW_PRECISION,
    OTHER,
    SIZES,
    assert_twins,
    contents,
    digest,
    draw,
    forced_isa,
    state_of,
    twins_of,
)
from twin_state import TensorTwin, norm_of, split_master

from fused_adamw import AdamW

# ---- the twin


@pytest.mark.slow
@pytest.mark.parametrize(
    ("master_weights", "ema_decay"), [(False, None), (True, None), (False, 0.75), (True, 0.999)]
)
@pytest.mark.parametrize("seed", [None, 0, 2**32 - 1])
@pytest.mark.parametrize(("dtype", "state_dtype"), LOW_PRECISION)
def test_every_kind_of_state(dtype, state_dtype, seed, master_weights, ema_decay):
    dtype = dtype_named(dtype)
    options = {
        "state_dtype": state_dtype,
        "seed": seed,
        "master_weights": master_weights,
        "ema_decay": ema_decay,
    }
    params = [np.asarray(p, order="F") for p in draw([*SIZES, (70_001,)], dtype)]
    opt, twins = AdamW(params, **HYPER, **options), twins_of(params, **options)
    for t in range(3):
        grads = [np.asarray(g, order="F") for g in draw([*SIZES, (70_001,)], dtype, seed=t)]
        opt.step(grads)
        for twin, g in zip(twins, grads, strict=True):
            twin.step(g, **HYPER)
    assert_twins(opt, twins)


@pytest.mark.slow
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("dtype", "state_dtype"), [*LOW_PRECISION, ("float64", None)])
def test_many_steps_in_which_everything_changes(dtype, state_dtype, amsgrad, isa):
    """Groups, missing gradients, options and hyper-parameters, over 40 steps."""
    if amsgrad and state_dtype == "8bit":
        pytest.skip("there is none")
    rng, dtype = np.random.default_rng(1), dtype_named(dtype)
    shapes = [(7, 5), (300,), (), (0, 3), (2, 150, 4), (256,)]
    params = [np.asarray(p, order="F") for p in draw(shapes, dtype)]
    options = {"state_dtype": state_dtype, "amsgrad": amsgrad, "ema_decay": 0.9}
    opt = AdamW(
        [{"params": params[:3]}, {"params": params[3:], **OTHER}],
        **HYPER,
        **options,
        skip_nonfinite=True,
    )
    twins = twins_of(params, **options)
    for t in range(1, 41):
        drawn = draw(shapes, dtype, seed=t, scale=10.0 ** rng.integers(-2, 2))
        grads = [None if rng.random() < 0.3 else g for g in drawn]
        scale = float(rng.choice([1.0, -1.0, 0.25, 3.7]))
        opt.param_groups[0] |= {"lr": rng.random() / 10, "weight_decay": rng.random()}
        opt.maximize = bool(rng.random() < 0.5)
        opt.max_grad_norm = rng.choice([None, 0.5, 100.0])
        opt.ema_decay = rng.random()
        norm = opt.step([grads[:3], grads[3:]], grad_scale=scale)
        exact = abs(scale) * norm_of([g for g in grads if g is not None])
        # At most 1,200 / 256 sums, of 16 squares to a lane, and of 16 lanes, each addition within
        # 2^-53; as many again for the root, the scale and the oracle.
        assert abs(norm - exact) <= 100 * 2.0**-53 * exact
        if opt.max_grad_norm:
            scale *= min(1.0, opt.max_grad_norm / (norm + 1e-6))
        for i, (twin, g) in enumerate(zip(twins, grads, strict=True)):
            group = opt.param_groups[i >= 3]
            hyper = {name: group[name] for name in HYPER}
            twin.ema_decay = opt.ema_decay
            if g is not None:
                same_order = np.asarray(g, order="F")
                twin.step(same_order, scale=-scale if opt.maximize else scale, **hyper)
        assert_twins(opt, twins)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_at_any_byte(dtype, state_dtype):
    dtype = dtype_named(dtype)

    def shifted(array):
        memory = np.zeros(array.nbytes + 1, np.uint8)
        memory[1:] = np.frombuffer(array.tobytes(), np.uint8)
        return memory[1:].view(dtype)

    (p,), (g,) = draw([(1001,)], dtype), draw([(1001,)], dtype, seed=1)
    p = shifted(p)
    opt, twin = AdamW(p, **HYPER, state_dtype=state_dtype), TensorTwin(p, state_dtype=state_dtype)
    for _ in range(2):
        opt.step(shifted(g))
        twin.step(g, **HYPER)
    assert_twins(opt, [twin])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_mixed_dtypes_and_gradients_in_another_order(dtype):
    dtype, shapes = dtype_named(dtype), [(30, 20), (300,)]
    params = [np.asfortranarray(draw(shapes, dtype)[0]), *draw([(300,)], np.float64)]
    grads = [draw(shapes, dtype, seed=1)[0], *draw([(300,)], np.float64, seed=1)]
    opt, twins = AdamW(params, **HYPER), twins_of(params)
    opt.step(grads)
    twins[0].step(np.asfortranarray(grads[0]), **HYPER)
    twins[1].step(grads[1], **HYPER)
    assert_twins(opt, twins)


# ---- where it is taken


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "state_dtype"), LOW_PRECISION)
def test_the_same_bits_everywhere(dtype, state_dtype):
    """On each instruction set, and however threads split the tensors: the borders of their parts
    are multiples of 64 elements of all tensors together, so most lie inside blocks."""
    dtype, shapes = dtype_named(dtype), [(150_001,), (77,), (0,), (90_001,), (1,)]
    grads = [draw(shapes, dtype, seed=t) for t in range(1, 3)]
    digests = {}
    for isa in ISAS:
        for num_threads in (1, 2, 3, 7):
            params = draw(shapes, dtype)
            opt = AdamW(
                params,
                **HYPER,
                state_dtype=state_dtype,
                max_grad_norm=10.0,
                num_threads=num_threads,
            )
            with forced_isa(isa):
                norms = [opt.step(g).hex() for g in grads]
            digests[isa, num_threads] = (digest(opt), norms)
    assert len(set(map(str, digests.values()))) == 1, digests


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_a_seed_and_a_tensors_index_decide(state_dtype):
    (p,), (g,) = draw([(5000,)], np.float32), draw([(5000,)], np.float32, seed=1)

    def trained(seed):
        opt = AdamW([p.copy(), p.copy()], state_dtype=state_dtype, seed=seed)
        for _ in range(2):
            opt.step([g, g])
        return state_of(opt)

    first, again, other = trained(1), trained(1), trained(2)
    np.testing.assert_array_equal(first[0]["v"], again[0]["v"])
    assert (first[0]["v"] != other[0]["v"]).any()
    assert (first[0]["v"] != first[1]["v"]).any()
    nearest = trained(None)
    np.testing.assert_array_equal(nearest[0]["v"], nearest[1]["v"])


# ---- what it is for


@pytest.mark.parametrize("seed", [0, 1])
def test_an_outlier_in_each_block(seed):
    """Gradients of 1e-4 and one of 1 in each block: no step is larger than 1.5 lr, and the small
    elements come to within 10 % of where float32 takes them."""
    g = np.full(1024, 1e-4, np.float32)
    g[17::256] = 1
    p, q = np.zeros_like(g), np.zeros_like(g)
    opt = AdamW(p, lr=1e-3, weight_decay=0.0, state_dtype="8bit", seed=seed)
    exact = AdamW(q, lr=1e-3, weight_decay=0.0)
    for _ in range(300):
        before = p.copy()
        opt.step(g)
        exact.step(g)
        assert np.abs(p - before).max() <= 1.5e-3
    small = g < 1
    np.testing.assert_allclose(p[small], q[small], rtol=0.1)


def test_steps_below_the_rounding_of_bfloat16_add_up():
    """By a tenth of what lies between two numbers: rounded to the nearest they are lost. The dither
    of successive steps fills the interval, so sums are off by a few intervals at most, here 4; by
    independent draws the standard deviation were sqrt(1000 * 0.09) = 9.5."""
    dtype = dtype_named("bfloat16")
    step = 2.0**-7 / 10
    moved = {}
    for seed in (None, 0):
        p = np.full(2000, 129, dtype)  # bfloat16 are 1 apart
        opt = AdamW(p, lr=128 * step, weight_decay=0.0, eps=0.0, seed=seed)
        for _ in range(600):
            opt.step(np.full(2000, -1, dtype))
        moved[seed] = p.astype(float) - 129
    assert (moved[None] == 0).all()
    np.testing.assert_allclose(moved[0], 600 * 128 * step, atol=4)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_master_weights_are_those_of_float32(dtype, state_dtype, isa):
    """A run on float32 parameters, of gradients that 16 bits hold; the parameters are it,
    rounded to the nearest."""
    dtype = dtype_named(dtype)
    (p,) = draw([(700,)], dtype)
    q = p.astype(np.float32)
    options = {"state_dtype": state_dtype, "seed": 5}
    narrow, wide = AdamW(p, **options, master_weights=True), AdamW(q, **options)
    for t in range(20):
        (g,) = draw([(700,)], dtype, seed=t)
        narrow.step(g)
        wide.step(g.astype(np.float32))
        np.testing.assert_array_equal(narrow.master, q, strict=True)
        expected = split_master(q)[0].view(dtype) if dtype.name == "bfloat16" else q.astype(dtype)
        np.testing.assert_array_equal(p, expected)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_a_skipped_step_is_none_at_all(state_dtype):
    (p,), (g,) = draw([(600,)], np.float16), draw([(600,)], np.float16, seed=1)
    options = {"state_dtype": state_dtype, "master_weights": True, "ema_decay": 0.9}
    opt = AdamW(p, skip_nonfinite=True, **options)
    opt.step(g)
    before = contents(opt)
    for value in (np.nan, np.inf):
        bad = g.copy()
        bad[-1] = value
        assert not math.isfinite(opt.step(bad))
        assert contents(opt) == before


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_the_norm_does_not_depend_on_how_state_is_stored(state_dtype):
    g = np.random.default_rng(0).standard_normal(100_001).astype(np.float32)
    norms = [
        AdamW(np.ones_like(g), max_grad_norm=1.0, state_dtype=kept).step(g)
        for kept in (None, state_dtype)
    ]
    assert norms[0] == norms[1]
