"""Stochastic rounding, against what statistics expect."""

import numpy as np
import pytest
from arrays import dtype_named
from states import CARRIED, STILL, stored
from twin_state import dithers, roots

from fused_adamw import AdamW

DRAWS = 100_000


def assert_share(ups, probability):
    """5 standard deviations of a binomial distribution: beyond it by chance in 6 of 10^7 cases."""
    deviation = 5 * np.sqrt(ups.size * probability * (1 - probability))
    assert abs(np.count_nonzero(ups) - ups.size * probability) <= max(deviation, 1)


@pytest.mark.parametrize("share", [0.0, 1 / 1024, 0.1, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_bfloat16_moments_go_up_with_the_probability_of_what_lies_above(share, seed):
    x = np.float32(-(1 + share / 128))
    opt = AdamW(np.zeros(DRAWS, np.float32), **CARRIED, state_dtype="bfloat16", seed=seed)
    opt.step(np.full(DRAWS, x))
    exact = {"m": float(x), "v": float(x * x)}
    for role, value in exact.items():
        found = np.abs(getattr(opt, role).astype(np.float64))
        below = np.floor(abs(value) * 128) / 128
        assert set(np.unique(found)) <= {below, below + 1 / 128}
        assert_share(found > below, (abs(value) - below) * 128)


@pytest.mark.parametrize("share", [1 / 1024, 0.3, 0.5, 0.9])
def test_bfloat16_parameters_go_up_with_the_probability_of_what_lies_above(share):
    dtype = dtype_named("bfloat16")
    p = np.full(DRAWS, 1.5, dtype)
    opt = AdamW(p, lr=share / 128, weight_decay=0.0, betas=(0.0, 0.0), eps=0.0)
    opt.step(np.full(DRAWS, -1, dtype))
    assert set(np.unique(p.astype(np.float64))) <= {1.5, 1.5 + 1 / 128}
    exact = np.float32(1.5) + np.float32(share / 128)
    assert_share(p.astype(np.float64) > 1.5, (float(exact) - 1.5) * 128)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.8])
@pytest.mark.parametrize("octaves", [1, 10, 30])
def test_roots_in_8_bits_go_up_with_the_probability_of_what_lies_above(share, octaves):
    """Two elements of each block set its range, the others lie between two codes."""
    g = np.ones(DRAWS // 254 * 256, np.float32).reshape(-1, 256)
    g[:, 0], g[:, 1] = 2.0**-octaves, 1.9
    probe = AdamW(g[0].copy(), **CARRIED, state_dtype="8bit")
    probe.step(g[0])
    scale = stored(probe)["v_scale"][0]
    below, above = roots([100, 101], scale)
    x = np.float32(below + share * (above - below))
    g[:, 2:] = x
    opt = AdamW(np.zeros(g.size, np.float32), **CARRIED, state_dtype="8bit")
    opt.step(g.ravel())
    codes = stored(opt)["v"].reshape(-1, 256)[:, 2:]
    assert set(np.unique(codes)) <= {100, 101}
    assert_share(codes == 101, float(x - below) / float(above - below))


@pytest.mark.parametrize("seed", [0, 1])
def test_m_in_8_bits_is_what_it_was_on_average(seed):
    """m / s is 1 for one element of each block, less for the others."""
    blocks_of = DRAWS // 255 + 1
    first = np.ones((blocks_of, 256), np.float32)
    second = np.ones((blocks_of, 256), np.float32)
    first[:, 1:] = -0.25  # which has a code of its own, as its m has
    opt = AdamW(
        np.zeros(first.size, np.float32), **STILL, betas=(0.5, 0.0), state_dtype="8bit", seed=seed
    )
    opt.step(first.ravel())
    before = opt.m.astype(np.float64).reshape(blocks_of, 256)
    opt.step(second.ravel())
    exact = ((before + 1) / 2)[:, 1:]  # the roots are 1
    scale = stored(opt)["m_scale"].astype(np.float64)[:, None]
    codes, at = stored(opt)["m"].reshape(blocks_of, 256)[:, 1:], exact / scale
    assert (np.abs(codes - at) < 1 + 1e-4).all()
    # The variance of a code is p (1 - p) where p is the probability to go up.
    variance = (at % 1 * (1 - at % 1)).sum()
    assert variance > DRAWS / 100
    assert abs((codes - at).sum()) <= 5 * np.sqrt(variance)


@pytest.mark.parametrize("role", ["m", "v"])
def test_one_element_over_many_steps(role):
    """The share of steps in which it goes up, for each of 64 elements."""
    share, steps = 0.3, 2000
    x = np.float32(1 + share / 128)
    exact = {"m": float(x), "v": float(x * x)}[role]
    below = np.floor(exact * 128) / 128
    opt = AdamW(np.zeros(64, np.float32), **CARRIED, state_dtype="bfloat16")
    ups = np.zeros((steps, 64), bool)
    for t in range(steps):
        opt.step(np.full(64, x))
        ups[t] = getattr(opt, role) > below
    for of_element in ups.T:
        assert_share(of_element, (exact - below) * 128)
    # Successive steps fill the interval: 2000 multiples of a quadratic irrational number, or of
    # those of the plastic number, leave a discrepancy of some log2(2000) = 11, not sqrt(2000) = 45.
    assert (np.abs(ups.sum(0) - steps * (exact - below) * 128) <= 11).all()


@pytest.mark.parametrize("role", ["m", "v"])
def test_neighbors_cancel(role):
    """Of each block of 256 equal elements, as many go up as their fraction says: their dithers fill
    the interval. By independent draws the standard deviation were sqrt(256 * 0.21) = 7.3. Which
    ones go up differs from block to block."""
    share, blocks = 0.3, 400
    x = np.float32(1 + share / 128)
    exact = {"m": float(x), "v": float(x * x)}[role]
    below = np.floor(exact * 128) / 128
    opt = AdamW(np.zeros(256 * blocks, np.float32), **CARRIED, state_dtype="bfloat16")
    opt.step(np.full(256 * blocks, x))
    ups = (getattr(opt, role) > below).reshape(blocks, 256)
    assert (np.abs(ups.sum(1) - 256 * (exact - below) * 128) <= 5).all()
    assert len(np.unique(ups, axis=0)) > blocks / 2
    assert_share(ups[:, 0], (exact - below) * 128)


@pytest.mark.parametrize("columns", [2**k for k in range(7)])
@pytest.mark.parametrize("role", ["m", "v", "params"])
def test_columns_of_short_rows_do_not_go_up_together(columns, role):
    """The elements of a column in one block are no more correlated than independent ones. A stride
    whose multiple by ``columns`` is close to a fraction of few parts has up to twice the
    deviation."""
    u = dithers(0, 0, 2**19, 1)[role].reshape(-1, 256 // columns, columns) / 2**32
    for share in (0.1, 0.3, 0.5):
        ups = (u < share).sum(1)
        variance = 256 / columns * share * (1 - share)
        assert ups.var() <= 1.4 * variance
