"""Conversion of snapshots between formats and memory orders."""

import numpy as np
import pytest
from states import (
    MODEL,
    STATE_DTYPES,
    contents,
    loads_unconverted,
    moments,
    overwrite,
    params_of,
    state_of,
    train,
    trained,
)
from twin_state import encode_8bit, raw, to_bfloat16

from fused_adamw import AdamW
from fused_adamw._optim import conversion

NEAREST = {"m": None, "v": None}


@pytest.mark.parametrize("orders", ["CC", "FF", "CF", "FC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("before", STATE_DTYPES)
@pytest.mark.parametrize("after", STATE_DTYPES)
def test_a_state_is_converted_to_the_nearest(before, after, dtype, orders):
    opt = trained(dtype, orders[0], state_dtype=before)
    other = trained(dtype, orders[1], state_dtype=after, steps=1)
    saved, untouched = opt.state_dict(), contents(other)
    if not loads_unconverted(dtype, before, after, orders):
        with pytest.raises((TypeError, ValueError), match="pass convert=True to convert"):
            other.load_state_dict(saved, convert=False)
        assert contents(other) == untouched
    overwrite(other, opt)
    other.load_state_dict(saved, convert=True)
    if before == after and orders[0] == orders[1]:
        assert contents(other) == contents(opt)
    for (m, v), was, entry, p in zip(
        moments(opt), saved["state"].values(), state_of(other), params_of(other), strict=True
    ):
        flat = [x.ravel(order="C" if p.flags.c_contiguous else "F") for x in (m, v)]
        if "order" in entry and (before, was.get("order")) == (after, entry["order"]):
            expected = {role: was[role] for role in ("m", "v")}
        elif "m_scale" in entry:
            expected = encode_8bit(*flat, NEAREST)
        elif entry["m"].dtype == np.uint16:
            expected = {"m": to_bfloat16(flat[0], None), "v": to_bfloat16(flat[1], None, True)}
        else:
            expected = dict(zip("mv", flat, strict=True))
        for role, values in expected.items():
            kept = entry[role] if "order" in entry else raw(np.asarray(entry[role]))
            np.testing.assert_array_equal(kept, values)
    train(other, [7])
    assert all(np.isfinite(p.astype(np.float64)).all() for p in params_of(other))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_amsgrad_is_not_converted(there, state_dtype):
    opt = trained(amsgrad=there, state_dtype="bfloat16")
    other = trained(amsgrad=not there, state_dtype=state_dtype)
    before = contents(other)
    with pytest.raises(ValueError, match=r"amsgrad|v_max"):
        other.load_state_dict(opt.state_dict(), convert=True)
    assert contents(other) == before
    if not there:  # 8-bit state has no v_max, which must not be dropped silently
        with pytest.raises(ValueError, match=r"amsgrad|v_max"):
            trained(state_dtype="8bit").load_state_dict(other.state_dict(), convert=True)


def test_moments_below_the_smallest_float_are_converted():
    """Of a tensor that is no longer trained."""
    plain = AdamW(np.ones(300, np.float32))
    saved = plain.state_dict()
    saved["state"]["params"] |= {
        "m": np.full(300, -1e-39, np.float32),
        "v": np.full(300, 0.25, np.float32),
    }
    opt = AdamW(np.ones(300, np.float32), state_dtype="8bit")
    with np.errstate(all="raise"):
        opt.load_state_dict(saved, convert=True)
    assert np.abs(opt.m).max() <= 1e-39


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_master_weights_that_a_snapshot_lacks(dtype):
    opt = trained(dtype, "F", state_dtype="8bit")
    other = trained(dtype, "F", state_dtype="8bit", master_weights=True, steps=1)
    overwrite(other, opt)
    other.load_state_dict(opt.state_dict(), convert=True)
    for p, master in zip(params_of(other), other.master, strict=True):
        np.testing.assert_array_equal(master, p.astype(np.float32), strict=True)
    opt.load_state_dict(other.state_dict(), convert=True)  # and back: they are dropped
    assert set(state_of(opt)[0]) == {"step", "order", "m", "v", "m_scale", "v_scale"}


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_averages_of_the_weights_are_made_kept_and_dropped(dtype, state_dtype):
    """Where a snapshot has none, it has some, or the optimizer has none."""
    without = trained(dtype, "F", state_dtype="8bit")
    opt = trained(dtype, "F", state_dtype=state_dtype, ema_decay=0.5, steps=1)
    before = contents(opt)
    with pytest.raises((TypeError, ValueError), match=r"\['ema'\]|convert=True"):
        opt.load_state_dict(without.state_dict(), convert=False)
    assert contents(opt) == before
    overwrite(opt, without)
    opt.load_state_dict(without.state_dict(), convert=True)
    assert opt.ema_decay == 0.5
    for p, average in zip(params_of(opt), opt.ema, strict=True):
        np.testing.assert_array_equal(average, p.astype(np.float32), strict=True)
    train(opt, [7])
    opt.ema_decay = 0.25
    for other_dtype in STATE_DTYPES:
        other = trained(dtype, "C", state_dtype=other_dtype, ema_decay=0.75, steps=1)
        other.load_state_dict(opt.state_dict(), convert=True)
        assert other.ema_decay == 0.25
        for average, expected in zip(other.ema, opt.ema, strict=True):
            np.testing.assert_array_equal(average, expected, strict=True)
    without.load_state_dict(opt.state_dict(), convert=True)
    assert without.ema is without.ema_decay is None
    assert "ema" not in state_of(without)[0]


def test_a_snapshot_with_other_arrays_is_described():
    plain, amsgrad, narrow = trained(), trained(amsgrad=True), trained(state_dtype="8bit")
    for opt, saved, expected in (
        (
            plain,
            narrow,
            r"\['0'\] holds '8bit' moments, this optimizer stores 'float32'; pass",
        ),
        (
            narrow,
            plain,
            r"\['0'\] holds 'float32' moments, this optimizer stores '8bit'; pass",
        ),
        (plain, amsgrad, r"\['0'\] was saved with amsgrad=True; this optimizer has amsgrad=False"),
        (amsgrad, plain, r"\['0'\] was saved with amsgrad=False; this optimizer has amsgrad=True"),
    ):
        with pytest.raises(ValueError, match=expected):
            opt.load_state_dict(saved.state_dict(), convert=False)


def test_conversion_calls_the_codec_once_a_tensor(monkeypatch):
    """Not once a block."""
    calls = []
    encode = conversion.encode_state
    monkeypatch.setattr(
        conversion, "encode_state", lambda *args, **kwargs: calls.append(encode(*args, **kwargs))
    )
    opt, other = trained(), trained(state_dtype="8bit")
    other.load_state_dict(opt.state_dict(), convert=True)
    assert len(calls) == len(MODEL)


@pytest.mark.parametrize("after", STATE_DTYPES)
def test_strided_arrays_of_a_snapshot_are_converted(after):
    params = {name: np.ones(300, np.float32) for name in "ab"}
    gradients = {name: np.full(300, 0.5, np.float32) for name in "ab"}
    opt = AdamW(params, state_dtype="bfloat16")
    opt.step(gradients)
    snapshot = opt.state_dict()
    dense, strided = AdamW(params, state_dtype=after), AdamW(params, state_dtype=after)
    dense.load_state_dict(snapshot, convert=True)
    entry = snapshot["state"]["b"]
    entry["m"], entry["v"] = np.repeat(entry["m"], 2)[::2], entry["v"][::-1].copy()[::-1]
    strided.load_state_dict(snapshot, convert=True)
    assert contents(strided) == contents(dense)


@pytest.mark.parametrize("after", STATE_DTYPES)
def test_moments_of_a_dtype_of_bfloat16_are_not_cast(after):
    """The snapshot has them as uint16; as bfloat16 they are refused, with nothing changed."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    opt = AdamW(np.ones(300, np.float32), state_dtype="bfloat16")
    opt.step(np.ones(300, np.float32))
    snapshot = opt.state_dict()
    entry = snapshot["state"]["params"]
    entry["m"], entry["v"] = entry["m"].view(bfloat16), entry["v"].view(bfloat16)
    other = AdamW(np.ones(300, np.float32), state_dtype=after)
    before = contents(other)
    with pytest.raises((TypeError, ValueError), match=r"state_dict\['state'\]\['params'\]"):
        other.load_state_dict(snapshot, convert=True)
    assert contents(other) == before
