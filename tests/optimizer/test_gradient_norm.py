"""``AdamW``: the norm of the gradients, and gradients that are not finite."""

import copy
import math

import numpy as np
import pytest
from arrays import ISAS
from optimizers import HYPER, Twins, clip, draw, snapshot
from processes import run_python

from fused_adamw import AdamW

# ---- the norm


def norm_of(grads, dtype, grad_scale=1.0, **options):
    params = [np.ones(np.shape(g), dtype) for g in grads]
    return AdamW(params, skip_nonfinite=True, **options).step(grads, grad_scale)


def relative_bound(sizes):
    """Of the norm against one from correctly rounded sums. 16,384 squares, each rounded once in
    float64, are added in 16 lanes, so at most 1,024 to a lane; the lanes in 4 levels, the sums one
    after another. All are positive, so their relative errors add up, and the root halves them.
    It rounds once, as do the oracle's square, sum (both halved) and root."""
    u = 2.0**-53
    chunks = sum(-(-n // 16384) for n in sizes)
    additions = min(max(sizes), 16384) / 16 + 1 + 4 + chunks
    return ((1 + additions + 2) / 2 + 2) * u


@pytest.mark.parametrize(
    "sizes", [[1], [15], [16], [17], [16384], [16385], [50_021], [3, 0, 40_000, 1, 16384]], ids=str
)
def test_norm_is_the_root_of_the_sum_of_squares(dtype, sizes):
    grads = draw(sizes, dtype)
    exact = math.sqrt(math.fsum(float(x) * float(x) for g in grads for x in g))
    assert abs(norm_of(grads, dtype) - exact) <= relative_bound(sizes) * exact
    assert norm_of(grads, dtype, -0.5) == 0.5 * norm_of(grads, dtype)


@pytest.mark.parametrize("value", [1 + 2**-23, 1e-30, 1e-45, 3e38, -3e38, 0.1])
def test_squares_of_float32_are_exact(value):
    g = np.full(1, value, np.float32)
    assert norm_of([g], np.float32) == abs(float(g[0]))


def test_sums_of_integers_are_exact():
    """Every element counts once: squares and sums of these integers are exact in float64."""
    g = np.random.default_rng(0).integers(-(2**17), 2**17, 100_003)
    total = sum(int(x) ** 2 for x in g)
    assert norm_of([g.astype(np.float32)], np.float32) == math.sqrt(total)


def test_norm_is_of_the_gradients_that_there_are():
    opt = AdamW([np.ones(2), np.ones(2), np.ones(1)], max_grad_norm=1.0)
    assert opt.step([np.array([3.0, 0.0]), None, np.array([4.0])]) == 5.0
    assert opt.step([None, None, None]) == 0.0
    assert opt.t == 2


NORMS = """
import hashlib, numpy as np
from fused_adamw import AdamW
sizes = (199_999, 0, 33, 65_536)
for seed in range(12):
    rng, dtype = np.random.default_rng(seed), (np.float32, np.float64)[seed % 2]
    p, g = ([rng.standard_normal(n, dtype) for n in sizes] for _ in "pg")
    for threads in (1, 2, 3, 7):
        copies = [x.copy() for x in p]
        norm = AdamW(copies, max_grad_norm=1.0, num_threads=threads).step(g, 0.3)
        print(norm.hex(), hashlib.sha256(b"".join(x.tobytes() for x in copies)).hexdigest())
"""


@pytest.mark.slow
def test_norm_and_step_have_the_same_bits_everywhere():
    """Of several gradients, as a root can hide the last bit of a sum."""
    printed = [run_python(NORMS, FUSED_ADAMW_ISA=isa).stdout for isa in ISAS]
    lines = printed[0].splitlines()
    assert printed == printed[:1] * len(ISAS)
    assert lines[::4] == lines[1::4] == lines[2::4] == lines[3::4]
    assert len(set(lines)) == 12


# ---- gradients that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"amsgrad": True}], ids=str)
def test_a_skipped_step_is_none_at_all(value, options):
    sizes, dtypes = [3, 17, 20_000, 1], [np.float32, np.float64, np.float32, np.float64]
    params = [p.astype(dtype) for p, dtype in zip(draw(sizes), dtypes, strict=True)]
    grads = [g.astype(dtype) for g, dtype in zip(draw(sizes, seed=1), dtypes, strict=True)]
    seen = []
    opt = AdamW(params, lr=lambda t: seen.append(t) or 0.1, skip_nonfinite=True, **options)
    opt.step([*grads[:3], None])
    other = copy.deepcopy(opt)
    before = snapshot(opt)
    for i, position in [(0, 0), (0, 2), (1, 16), (2, 0), (2, 16384), (2, 19_999), (3, 0)]:
        bad = [g.copy() for g in grads]
        bad[i][position] = value
        assert not math.isfinite(opt.step(bad))
        assert snapshot(opt) == before
    seen.clear()
    assert opt.step(grads) == other.step(grads)
    assert snapshot(opt)[1:] == snapshot(other)[1:]
    assert seen == [2, 2]  # t, for the rate of both
    assert opt.t == 2


def test_a_norm_beyond_float64_is_skipped():
    opt = AdamW(np.ones(2), skip_nonfinite=True)
    assert opt.step(np.full(2, 1e200)) == math.inf
    assert opt.step(np.ones(2), 1.7e308) == math.inf
    assert opt.t == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_without_skipping_they_follow_ieee(dtype, value, max_grad_norm, amsgrad):
    """Into the clipping factor too: an infinity makes it 0, a NaN all NaN, as in PyTorch."""
    (p,), (g,) = draw([40], dtype), draw([40], dtype, seed=1)
    opt = AdamW(p, **HYPER, max_grad_norm=max_grad_norm, amsgrad=amsgrad)
    twins = Twins([p], amsgrad)
    if amsgrad:  # a NaN here is the largest, whatever v is
        opt.v_max[3] = twins.v_max[0][3] = math.nan
    for gradient in (g, np.where(np.arange(40) == 7, dtype(value), g), g):
        norm = opt.step(gradient)
        exact = math.sqrt(math.fsum(float(x) ** 2 for x in gradient))
        factor = 1.0
        if max_grad_norm:
            np.testing.assert_allclose(norm, exact, rtol=relative_bound([40]))
            factor = math.nan if math.isnan(exact) else clip(norm, 1.0)
        twins.step([gradient], HYPER, factor)
        twins.assert_equal(opt)
    assert opt.t == 3
