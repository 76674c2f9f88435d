"""Stored numbers of 8 and 16 bits, against brute force and NumPy."""

import numpy as np
import pytest
from arrays import dtype_named
from states import CARRIED, STILL, stored
from twin_state import BLOCK, blocks, decode_8bit, roots

from fused_adamw import AdamW
from fused_adamw._core import decode_state, encode_state


def codes_16(dtype):
    return np.arange(65536, dtype=np.uint16).view(dtype)


def floats_to_round(dtype):
    """Random ones, all that 16 bits hold, the middles between these, and their neighbors."""
    rng = np.random.default_rng(0)
    exact = codes_16(dtype).astype(np.float32)
    exact = np.sort(exact[np.isfinite(exact)])
    middles = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    points = np.concatenate([exact, middles])
    random = rng.integers(0, 2**32, 300_000, np.uint32).view(np.float32)
    near = rng.standard_normal(100_000, np.float32)
    ends = np.float32([65504, 65519.996, 65520, 1e-45, 2.0**-25, -(2.0**-24), 3.4e38])
    up, down = (np.nextafter(points, np.float32(end)) for end in (np.inf, -np.inf))
    return np.concatenate([points, up, down, random, near, ends, -ends])


# ---- 16 bits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_number_of_16_bits_is_read_exactly(dtype, isa):
    """As a gradient that becomes m, kept in float32 or, with bfloat16, in that."""
    dtype = dtype_named(dtype)
    g = codes_16(dtype)
    opt = AdamW(np.zeros(65536, dtype), **CARRIED)
    opt.step(g)
    np.testing.assert_array_equal(opt.m, g.astype(np.float32), strict=True)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_parameter_of_16_bits_is_written_as_it_was(dtype, seed, isa):
    dtype = dtype_named(dtype)
    p = codes_16(dtype)
    p = p[np.isfinite(p.astype(np.float32))]
    before = p.tobytes()
    opt = AdamW(p, **STILL, seed=seed)
    opt.step(np.zeros_like(p))
    assert p.tobytes() == before


def test_parameters_are_rounded_to_the_nearest(isa):
    """From master weights, ties to even, as NumPy does. (bfloat16: test_master_weights.py.)"""
    dtype = np.dtype("float16")
    exact = floats_to_round(dtype)
    exact = exact[np.isfinite(exact)]
    p = np.zeros(exact.size, dtype)
    opt = AdamW(p, **STILL, master_weights=True)
    saved = opt.state_dict()
    saved["state"]["params"]["master"] = exact
    opt.load_state_dict(saved)
    opt.step(np.zeros_like(p))
    with np.errstate(over="ignore"):
        expected = exact.astype(dtype)
    np.testing.assert_array_equal(p.view(np.uint16), expected.view(np.uint16))


def test_moments_are_rounded_to_the_nearest_bfloat16(isa):
    bfloat16 = dtype_named("bfloat16")
    g = np.concatenate([floats_to_round(bfloat16), np.float32([np.nan, np.inf, -np.inf])])
    opt = AdamW(np.zeros_like(g), **CARRIED, state_dtype="bfloat16", seed=None)
    opt.step(g)
    with np.errstate(all="ignore"):
        for role, exact in (("m", g + 0), ("v", g * g)):
            expected, found = exact.astype(bfloat16), stored(opt)[role].view(bfloat16)
            if role == "v":  # which is never rounded to 0
                least = np.uint16([1]).view(bfloat16)
                expected = np.where((exact > 0) & (expected == 0), least, expected)
            nan = np.isnan(exact)
            assert np.isnan(found[nan].astype(np.float32)).all()
            np.testing.assert_array_equal(
                found[~nan].view(np.uint16), expected[~nan].view(np.uint16)
            )
    np.testing.assert_array_equal(opt.m, stored(opt)["m"].view(bfloat16).astype(np.float32))


# ---- 8 bits


def assert_nearest(kept, m, v):
    """Each code of v is the nearest of its block to the root, and each of m to m / root, where that
    is at least the lowest of its block."""
    for b, part in enumerate(blocks(m.size)):
        scale = kept["v_scale"][b]
        shift, base = int(scale) & 31, int(scale) >> 5 << 5
        assert 5 <= shift <= 20
        assert base % 2**shift == 0
        s, code = np.sqrt(v[part].astype(np.float64)), kept["v"][part]
        assert ((code == 0) == (v[part] == 0)).all()
        some = v[part] > 0
        if not some.any():
            assert not kept["m"][part].any()
            continue
        candidates = roots(np.arange(1, 255), scale).astype(np.float64)
        found = roots(code, scale).astype(np.float64)
        distance = np.abs(s[:, None] - candidates).min(axis=1)
        # The kernel's root is rounded to float32, by 2^-24, and may so be nearer to another code.
        assert (np.abs(s - found)[some] <= (distance + s * 2.0**-23)[some]).all()
        lowest = candidates[0]
        ratio = np.divide(m[part], np.maximum(s, lowest), where=some, out=np.zeros(s.size))
        unit = float(kept["m_scale"][b])
        distance = np.abs(ratio[:, None] - unit * np.arange(-127, 128)).min(axis=1)
        # Root, ratio, unit, factor and product are each off by 2^-24 of at most 127.5 units, the
        # factor by another ulp, 2^-23; the last place is 2^-24.
        slack = unit * (127.5 * 7 * 2.0**-24 + 2.0**-24)
        assert (np.abs(ratio - unit * kept["m"][part]) <= distance + slack).all()


def moments(spread, size=2000, seed=0):
    """v that differ by ``spread`` decades, some 0, and m of up to three roots of them."""
    rng = np.random.default_rng(seed)
    s = 10 ** rng.uniform(-spread / 2, spread / 2, size)
    s[rng.random(size) < 0.02] = 0
    return (s * rng.uniform(-3, 3, size)).astype(np.float32), (s * s).astype(np.float32)


SPREADS = [0, 1e-6, 1e-3, 0.1, 1, 3, 9, 16, 30]


@pytest.mark.parametrize("spread", SPREADS)
def test_converted_moments_get_the_nearest_codes(spread):
    m, v = moments(spread)
    opt = AdamW(np.zeros_like(m), state_dtype="8bit")
    plain = AdamW(np.zeros_like(m)).state_dict()
    plain["state"]["params"] |= {"m": m, "v": v}
    opt.load_state_dict(plain, convert=True)
    assert_nearest(stored(opt), m, v)


@pytest.mark.parametrize("spread", SPREADS[:-1])
def test_steps_give_the_nearest_codes(spread, isa):
    """Of the exact new moments, which follow from the codes before."""
    betas = tuple(np.float32(b) for b in (0.75, 0.875))  # exact, as 1 minus them is
    opt = AdamW(np.zeros(2000, np.float32), **STILL, betas=betas, state_dtype="8bit", seed=None)
    for t in range(3):
        g, _ = moments(spread, seed=t)
        m, v = decode_8bit(stored(opt))
        opt.step(g)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * (g * g)
        assert_nearest(stored(opt), m, v)


@pytest.mark.parametrize("shift", range(5, 21))
@pytest.mark.parametrize("seed", [None, 0])
def test_every_code_of_v_is_written_as_it_was(shift, seed, isa):
    """The root of a square is the number itself, so gradients set the roots."""
    base = 0x3F800000 >> shift << shift
    codes = np.arange(1, 255)
    g = np.append(roots(codes, base | shift), np.zeros(2, np.float32))
    g *= np.random.default_rng(0).choice(np.float32([-1, 1]), g.size)
    opt = AdamW(np.zeros_like(g), **CARRIED, state_dtype="8bit", seed=seed)
    opt.step(g)
    np.testing.assert_array_equal(np.sqrt(opt.v), np.abs(g))
    np.testing.assert_array_equal(stored(opt)["v"], [*codes, 0, 0])
    assert stored(opt)["v_scale"] == [base | shift]
    np.testing.assert_array_equal(stored(opt)["m"], 127 * np.sign(g))


@pytest.mark.parametrize("unit", [1e-30, 0.01, 1.0, 1e10])
def test_every_code_of_m_decodes_and_encodes_to_itself(unit):
    stored = {
        "m": np.arange(-127, 128).astype(np.int8),
        "v": (np.random.default_rng(0).permutation(254).repeat(2)[:255] + 1).astype(np.uint8),
        "m_scale": np.full(1, unit, np.float32),
        "v_scale": np.full(1, 0x3F800000 | 18, np.uint32),
    }
    decoded = decode_state("8bit", stored, 255)
    for role, values in zip("mv", decode_8bit(stored), strict=True):
        np.testing.assert_array_equal(decoded[role], values, strict=True)
    again = {role: np.zeros_like(array) for role, array in stored.items()}
    encode_state("8bit", again, **decoded)
    np.testing.assert_array_equal(again["m"], stored["m"])
    np.testing.assert_array_equal(decode_state("8bit", again, 255)["v"], decoded["v"])


def test_what_is_no_number_starts_again(isa):
    g = np.zeros(257, np.float32)
    g[:4] = np.nan, np.inf, -np.inf, 1
    opt = AdamW(np.zeros_like(g), **CARRIED, state_dtype="8bit")
    opt.step(g)
    assert list(stored(opt)["m"][:4]) == [0, 0, 0, 127]
    assert list(stored(opt)["v"][:4]) == [0, 0, 0, 1]
    assert not stored(opt)["m"][4:].any()
    assert not stored(opt)["v"][4:].any()
    np.testing.assert_array_equal(opt.m[:4], [0, 0, 0, 1])
    np.testing.assert_array_equal(opt.v[:4], [0, 0, 0, 1])


@pytest.mark.parametrize("size", [0, 1, 4, 79, 80, 255, 256, 257, 511, 512, 513, 70_001])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_state_nbytes(size, dtype):
    p, dtype = np.zeros(size, dtype), np.dtype(dtype)
    master = 4 * size if dtype == np.float16 else 0
    expected = {"bfloat16": 4 * size, "8bit": 2 * size + 8 * -(-size // BLOCK)}
    for state_dtype, nbytes in expected.items():
        opt = AdamW(p, state_dtype=state_dtype)
        assert opt.state_nbytes == nbytes
        kept = (x for x in stored(opt).values() if isinstance(x, np.ndarray))
        assert sum(x.nbytes for x in kept) == nbytes
        opt = AdamW(p, state_dtype=state_dtype, master_weights=True)
        assert opt.state_nbytes == nbytes + master
    assert AdamW(p).state_nbytes == 8 * size
    if size >= 80 and size != 257:
        assert expected["8bit"] <= 2.1 * size
