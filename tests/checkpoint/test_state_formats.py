"""State in fewer bits, in files."""

import json

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import DELETED, contents, metadata_of, rewrite
from states import params_of, train
from trained_state import KINDS, SHAPES, trained

from fused_adamw.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    MismatchedCheckpointError,
    load_checkpoint,
    save_checkpoint,
)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [(dtype, kind) for dtype in ("float32", "float16", "bfloat16") for kind in KINDS],
)
def test_a_file_resumes_to_the_bit(dtype, state_dtype, master_weights, order, path, piece):
    options = {"state_dtype": state_dtype, "master_weights": master_weights}
    opt = trained(dtype, order, seed=6, **options)
    save_checkpoint(path, opt, extra={"epoch": 3})
    other = trained(dtype, order, steps=1, seed=None, **options)
    assert load_checkpoint(path, other) == {"epoch": 3}
    assert contents(other) == contents(opt)
    train(opt, range(3, 6))
    train(other, range(3, 6))
    assert contents(other) == contents(opt)


TAGS = {  # of float32 parameters; without amsgrad
    None: {"params": "F32", "m": "F32", "v": "F32"},
    "float32": {"params": "F32", "m": "F32", "v": "F32"},
    "bfloat16": {"params": "F32", "m": "BF16", "v": "BF16"},
    "8bit": {"params": "F32", "m": "I8", "v": "U8", "m_scale": "F32", "v_scale": "U32"},
}


@pytest.mark.parametrize("state_dtype", KINDS)
@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("float32", {}),
        ("bfloat16", {"params": "BF16", "master": "I16"}),
        ("float16", {"params": "F16", "master": "F32"}),
    ],
)
def test_the_tag_of_a_tensor_is_its_type(dtype, changes, state_dtype, path):
    opt = trained(dtype, state_dtype=state_dtype, master_weights=True)
    save_checkpoint(path, opt)
    expected = TAGS[state_dtype] | changes
    if dtype == "bfloat16" and state_dtype is None:
        expected |= {"m": "BF16", "v": "BF16"}
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found = {key: entry["dtype"] for key, entry in header.items() if key.endswith("/0")}
    assert found == {f"{role}/0": tag for role, tag in expected.items()}


@pytest.mark.parametrize("state_dtype", KINDS)
def test_other_readers_find_parameters_and_moments(state_dtype, path, piece):
    opt = trained("bfloat16", "F", state_dtype=state_dtype)
    save_checkpoint(path, opt)
    found = safetensors.numpy.load_file(path)
    for i, p in enumerate(params_of(opt)):
        np.testing.assert_array_equal(found[f"params/{i}"], p, strict=True)
        if state_dtype != "8bit":
            moment = found[f"m/{i}"].astype(np.float32).reshape(p.shape, order="F")
            np.testing.assert_array_equal(moment, opt.m[i])


@pytest.mark.slow
@pytest.mark.parametrize("convert", [False, True])
def test_damaged_and_foreign_files_change_nothing(convert, path):
    opt = trained("bfloat16", state_dtype="8bit")
    save_checkpoint(path, opt)
    data = path.read_bytes()
    other = trained("bfloat16", state_dtype="8bit", steps=1)
    before = contents(other)
    size = int.from_bytes(data[:8], "little")
    for at in [*range(0, size, 97), *range(size, len(data), 29)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path, other, convert=convert)
    for end in (0, 7, 100, size, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(CorruptCheckpointError):
            load_checkpoint(path, other, convert=convert)
    assert contents(other) == before
    path.write_bytes(data)
    for wrong in (
        trained("float16", state_dtype="8bit"),
        trained("float32", state_dtype="8bit"),
        trained("bfloat16", state_dtype="8bit", shapes=[(90, 7), *SHAPES[1:]]),
        trained("bfloat16", state_dtype="8bit", shapes=SHAPES[:3]),
    ):
        before = contents(wrong)
        with pytest.raises(MismatchedCheckpointError):
            load_checkpoint(path, wrong, convert=convert)
        assert contents(wrong) == before


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("foreign/0", r"the state of '0' must have the arrays .*; got .*'foreign'"),
        ("m_scale/9", "unexpected m_scale/9"),
        ("foreign", "unexpected foreign"),
        ("v_max/1", "the state of '1' was saved with amsgrad=True"),
    ],
)
def test_one_tensor_too_many(key, message, convert, path):
    opt = trained(state_dtype="8bit")
    save_checkpoint(path, opt)
    rewrite(path, {key: np.zeros(3, np.float32)})
    before = contents(opt)
    with pytest.raises(MismatchedCheckpointError, match=message):
        load_checkpoint(path, opt, convert=convert)
    assert contents(opt) == before


@pytest.mark.parametrize("convert", [False, True])
def test_one_tensor_too_few(convert, path):
    """A file that lacks what its own options need is incomplete, and nothing to convert."""
    opt = trained(ema_decay=0.5)
    save_checkpoint(path, opt)
    rewrite(path, {"ema/1": DELETED})
    before = contents(opt)
    with pytest.raises(MismatchedCheckpointError, match="'1' must have the array 'ema' of ema_"):
        load_checkpoint(path, opt, convert=convert)
    assert contents(opt) == before


@pytest.mark.parametrize("convert", [False, True])
def test_a_bad_order(convert, path):
    opt = trained(state_dtype="8bit")
    save_checkpoint(path, opt)
    numbers = json.loads(metadata_of(path)["optimizer"])
    numbers["orders"]["0"] = "K"
    rewrite(path, optimizer=json.dumps(numbers))
    before = contents(opt)
    with pytest.raises(MismatchedCheckpointError, match="order of the state of '0' must be 'C' or"):
        load_checkpoint(path, opt, convert=convert)
    assert contents(opt) == before
