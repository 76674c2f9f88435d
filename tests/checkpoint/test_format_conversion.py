"""State in a file is converted to how the optimizer stores it, as by ``load_state_dict``."""

import copy
import json
from inspect import signature

import numpy as np
import pytest
from checkpoints import contents
from states import loads_unconverted, overwrite, params_of
from trained_state import KINDS, trained

from fused_adamw import AdamW
from fused_adamw._io import checkpoint_convert
from fused_adamw.checkpoint import MismatchedCheckpointError, load_checkpoint, save_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("orders", ["CC", "FF", "CF", "FC"])
@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_converted(before, after, orders, dtype, path, piece):
    """As a snapshot is, and the parameters come with it."""
    opt = trained(dtype, orders[0], state_dtype=before)
    save_checkpoint(path, opt)
    other = trained(dtype, orders[1], state_dtype=after, steps=1)
    same = copy.deepcopy(other)
    untouched = contents(other)
    if not loads_unconverted(dtype, before, after, orders):
        with pytest.raises(MismatchedCheckpointError, match=r"pass convert=True"):
            load_checkpoint(path, other, convert=False)
        assert contents(other) == untouched
    load_checkpoint(path, other, convert=True)
    overwrite(same, opt)
    same.load_state_dict(opt.state_dict(), convert=True)
    assert contents(other) == contents(same)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_master_weights_that_a_file_lacks_are_made_from_its_parameters(dtype, order, path, piece):
    opt = trained(dtype, order, state_dtype="8bit")
    save_checkpoint(path, opt)
    other = trained(dtype, "C", state_dtype="8bit", master_weights=True, steps=9)
    with pytest.raises(MismatchedCheckpointError, match=r"convert=True"):
        load_checkpoint(path, other, convert=False)
    load_checkpoint(path, other, convert=True)
    for p, q, master in zip(params_of(opt), params_of(other), other.master, strict=True):
        np.testing.assert_array_equal(q, p)
        np.testing.assert_array_equal(master, p.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_master_weights_are_converted_or_dropped(order, dtype, path, piece):
    opt = trained(dtype, "C", state_dtype="8bit", master_weights=True)
    save_checkpoint(path, opt)
    other = trained(dtype, order, steps=1, master_weights=True)
    load_checkpoint(path, other, convert=True)
    for own, expected in zip(other.master, opt.master, strict=True):
        np.testing.assert_array_equal(own, expected)
    for p, array, entry in zip(
        params_of(opt),
        opt.state_dict()["state"].values(),
        other.state_dict()["state"].values(),
        strict=True,
    ):
        master = array["master"].reshape(p.shape)
        np.testing.assert_array_equal(entry["master"].reshape(p.shape, order=order), master)
    without = trained(dtype, order, state_dtype="8bit", steps=1)
    load_checkpoint(path, without, convert=True)
    assert "master" not in without.state_dict()["state"]["0"]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_amsgrad_is_not_converted(saved, state_dtype, path):
    save_checkpoint(path, trained(amsgrad=saved, state_dtype="bfloat16"))
    other = trained(amsgrad=not saved, state_dtype=state_dtype, steps=1)
    before = contents(other)
    message = f"saved with amsgrad={saved}; this optimizer has amsgrad={not saved}"
    with pytest.raises(MismatchedCheckpointError, match=message):
        load_checkpoint(path, other, convert=True)
    assert contents(other) == before


# ---- averages of the weights


@pytest.mark.skipif("ema_decay" not in signature(AdamW).parameters, reason="needs ema_decay")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("state_dtype", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_averages(dtype, state_dtype, order, path, piece):
    """Are saved, converted, and begun from the parameters where a file lacks them."""
    if dtype == "float64" and state_dtype is not None:
        pytest.skip("there is no such state")
    opt = trained(dtype, ema_decay=0.5)
    save_checkpoint(path, opt)
    tag = {"float64": "F64"}.get(dtype, "F32")
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["ema/0"]["dtype"] == tag
    other = trained(dtype, order, steps=1, state_dtype=state_dtype, ema_decay=0.5)
    load_checkpoint(path, other, convert=True)
    for found, expected in zip(other.ema, opt.ema, strict=True):
        np.testing.assert_array_equal(found, expected)

    opt = trained(dtype)
    save_checkpoint(path, opt)
    with pytest.raises(MismatchedCheckpointError, match=r"ema|convert=True"):
        load_checkpoint(path, other, convert=False)
    load_checkpoint(path, other, convert=True)
    for found, p in zip(other.ema, params_of(opt), strict=True):
        np.testing.assert_array_equal(found, p.astype(found.dtype))


# ---- the cost of another memory order


def elements_read(monkeypatch, path, other):
    total = 0

    def read(file, position, data, original=checkpoint_convert.read_exactly):
        nonlocal total
        total += data.nbytes
        original(file, position, data)

    monkeypatch.setattr(checkpoint_convert, "read_exactly", read)
    load_checkpoint(path, other, convert=True)
    return total // 8  # m and v of float32


@pytest.mark.parametrize("shape", [(64, 128), (3, 4096)])
def test_a_file_in_another_memory_order_is_read_once(shape, path, monkeypatch):
    monkeypatch.setattr(checkpoint_convert, "PIECE_ELEMENTS", 512)
    save_checkpoint(path, trained("float16", "C", shapes=[shape]))
    other = trained("float16", "F", steps=1, shapes=[shape], state_dtype="bfloat16")
    assert elements_read(monkeypatch, path, other) == np.prod(shape)


def test_blocks_are_gathered_from_the_pieces_that_have_their_elements(path, monkeypatch):
    shape = (2, 8192)
    monkeypatch.setattr(checkpoint_convert, "PIECE_ELEMENTS", 512)
    opt = trained("float16", "C", shapes=[shape])
    save_checkpoint(path, opt)
    other = trained("float16", "F", steps=1, shapes=[shape], state_dtype="8bit")
    assert elements_read(monkeypatch, path, other) == 2 * np.prod(shape)
    # Each block of 256 takes its elements from a piece of each row.
    np.testing.assert_allclose(other.m[0], opt.m[0], rtol=0, atol=np.abs(opt.m[0]).max() / 50)
    np.testing.assert_allclose(other.v[0], opt.v[0], rtol=0.1)


@pytest.mark.filterwarnings("ignore:.* was converted:UserWarning")
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
@pytest.mark.parametrize(("before", "after"), [("C", "F"), ("F", "C")])
def test_as_many_dimensions_as_numpy_has(before, after, state_dtype, path):
    """A file of another memory order is read into them, too."""
    shape = (*[1] * 30, 3, *[1] * 32, 2)
    values = np.arange(6.0).reshape(shape).astype(np.float16)
    p, other = values.copy(order=before), np.zeros(shape, np.float16, order=after)
    opt = AdamW([p])
    opt.step([values])
    save_checkpoint(path, opt)
    loaded = AdamW([other], state_dtype=state_dtype)
    load_checkpoint(path, loaded)
    np.testing.assert_array_equal(other, p)
    np.testing.assert_allclose(loaded.m[0], opt.m[0], rtol=0.02)
