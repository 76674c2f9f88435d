"""Master weights of bfloat16 parameters: the parameter and 16 bits that complete it."""

import numpy as np
import pytest
from arrays import dtype_named
from states import HYPER, STILL, draw, stored
from twin_state import from_bfloat16, join_master, split_master

from fused_adamw import AdamW

CODES = np.arange(1 << 16, dtype=np.uint16)
RESTS = np.int16([-(2**15), 1 - 2**15, -12345, -256, -1, 0, 1, 255, 4096, 2**15 - 2, 2**15 - 1])


def bfloat16(codes):
    return np.asarray(codes, np.uint16).view(dtype_named("bfloat16"))


def with_rest(codes, rest, **options):
    """Parameters of these bits, and an optimizer with this rest of their master weights."""
    p = bfloat16(codes).copy()
    opt = AdamW(p, **options, master_weights=True)
    saved = opt.state_dict()
    saved["state"]["params"]["master"] = rest
    opt.load_state_dict(saved)
    return p, opt


def finite_masters():
    """Every upper half of a finite float32 beside the ends and some others of the lower half."""
    lows = RESTS.view(np.uint16).astype(np.uint32)
    found = (CODES.astype(np.uint32)[:, None] << np.uint32(16) | lows).ravel().view(np.float32)
    return found[np.isfinite(found)]


def nearest(masters):
    """The bits of the nearest bfloat16, ties away from zero, by distances in float64; what rounds
    to 2^128 is infinity."""
    toward_zero = (masters.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    away = toward_zero + np.uint16(1)
    beyond = np.where(away & 0x7FFF == 0x7F80, 2.0**128, np.abs(from_bfloat16(away), dtype=float))
    exact = np.abs(masters, dtype=float)
    up = beyond - exact <= exact - np.abs(from_bfloat16(toward_zero), dtype=float)
    return np.where(up, away, toward_zero)


@pytest.mark.slow
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_every_finite_master_is_kept_to_the_bit(state_dtype, isa):
    masters = finite_masters()
    codes, rest = split_master(masters)
    p, opt = with_rest(codes, rest, **STILL, state_dtype=state_dtype)
    np.testing.assert_array_equal(opt.master.view(np.uint32), masters.view(np.uint32))
    opt.step(np.zeros_like(p))
    np.testing.assert_array_equal(p.view(np.uint16), nearest(masters))
    np.testing.assert_array_equal(opt.master.view(np.uint32), masters.view(np.uint32))


@pytest.mark.slow
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_parameters_that_others_write_are_kept_to_the_bit(state_dtype, isa):
    """Beside any rest; the master is within half a unit of the last place."""
    codes, rest = (x.ravel() for x in np.broadcast_arrays(CODES[:, None], RESTS))
    p, opt = with_rest(codes, rest, **STILL, state_dtype=state_dtype)
    exact, masters = p.astype(np.float32), opt.master
    np.testing.assert_array_equal(np.isnan(masters), np.isnan(exact))
    known = ~np.isnan(exact)
    expected, found = codes.copy(), split_master(masters)[0]
    np.testing.assert_array_equal(found[known], expected[known])
    opt.step(np.zeros_like(p))
    finite = np.isfinite(masters)
    np.testing.assert_array_equal(p.view(np.uint16)[finite], codes[finite])
    np.testing.assert_array_equal(np.isnan(p.astype(np.float32)), ~finite)  # inf - 0 inf
    np.testing.assert_array_equal(
        opt.master.view(np.uint32)[finite], masters.view(np.uint32)[finite]
    )


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC08000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_nan_of_any_bits_stays_nan(bits, isa):
    """Its lower half is not carried into the parameter."""
    p, opt = with_rest(np.full(300, 0x3F80), np.zeros(300, np.int16), state_dtype="float32")
    saved = opt.state_dict()
    saved["state"]["params"]["m"] = np.full(300, bits, np.uint32).view(np.float32)
    opt.load_state_dict(saved)
    opt.step(np.zeros_like(p))
    assert np.isnan(p.astype(np.float32)).all()
    assert np.isnan(opt.master).all()


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_zeros_that_are_written_over_parameters_stay_numbers(state_dtype):
    """A rest below 0 beside 0 would have the bits of NaN."""
    p = draw([(700,)], dtype_named("bfloat16"))[0]
    opt = AdamW(p, **HYPER, state_dtype=state_dtype, master_weights=True)
    opt.step(draw([(700,)], p.dtype, seed=1)[0])
    assert (stored(opt)["master"] < 0).any()
    p[::2], p[1::2] = 0.0, -0.0
    assert (np.abs(opt.master) < 1e-40).all()
    opt.step(draw([(700,)], p.dtype, seed=2)[0])
    assert np.isfinite(p.astype(np.float32)).all()


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_a_master_that_was_nan_restarts_from_what_is_written(state_dtype):
    (p,), (g,) = (draw([(600,)], dtype_named("bfloat16"), seed=s) for s in (0, 1))
    opt = AdamW(p, **STILL, state_dtype=state_dtype, master_weights=True)
    g[::3] = np.nan
    opt.step(g)
    assert np.isnan(p[::3].astype(np.float32)).all()
    assert np.isnan(opt.master[::3]).all()
    assert not stored(opt)["master"][::3].any()
    p[::3] = 1.5
    np.testing.assert_array_equal(opt.master[::3], np.float32(1.5))


@pytest.mark.parametrize("order", ["C", "F"])
def test_masters_are_read_in_the_shape_of_the_parameters(order):
    dtype = dtype_named("bfloat16")
    params = [np.asarray(draw([(6, 50)], dtype)[0], order=order), draw([(9,)], np.float32)[0]]
    opt = AdamW(params, **HYPER, master_weights=True)
    assert AdamW(params).master is None
    opt.step([np.ones((6, 50), dtype), np.ones(9, np.float32)])
    rest = stored_of(opt, "0").reshape(6, 50, order=order)
    codes = np.ascontiguousarray(params[0]).view(np.uint16)
    np.testing.assert_array_equal(opt.master[0], join_master(codes, rest), strict=True)
    assert opt.master[1] is params[1]
    opt.master[0][...] = 0  # a copy
    assert opt.master[0].any()


def stored_of(opt, name):
    return opt.state_dict()["state"][name]["master"]


def test_masters_in_float32_are_converted():
    """Those that round to the parameter are kept, the others start from it."""
    masters = np.float32([1.0, 1 + 2.0**-10, 1 - 2.0**-12, 1 + 2.0**-8, 1.5, np.nan, -1.0])
    p = bfloat16([0x3F80] * 7)
    opt = AdamW(p, **HYPER, master_weights=True)
    saved = opt.state_dict()
    saved["state"]["params"]["master"] = masters
    before = stored(opt)["master"].copy()
    with pytest.raises(ValueError, match=r"master weights as float32, .* int16; pass convert=True"):
        opt.load_state_dict(saved, convert=False)
    np.testing.assert_array_equal(stored(opt)["master"], before)
    opt.load_state_dict(saved, convert=True)
    tie = np.nextafter(masters[3], np.float32(0))  # was rounded to even, towards zero
    np.testing.assert_array_equal(opt.master, np.float32([1, *masters[1:3], tie, 1, 1, 1]))


@pytest.mark.parametrize("size", [0, 1, 255, 257, 70_001])
def test_bytes_of_state(size):
    p = np.zeros(size, dtype_named("bfloat16"))
    blocks = -(-size // 256)
    for state_dtype, nbytes in (("bfloat16", 6 * size), ("8bit", 4 * size + 8 * blocks)):
        assert AdamW(p, state_dtype=state_dtype, master_weights=True).state_nbytes == nbytes
