"""Mixes of 16-bit parameters, moments and master weights: conversion from each to each, in
snapshots and in files; and float32 moments of float32 parameters, which are the plain ones."""

from itertools import product

import numpy as np
import pytest
from states import contents, overwrite, params_of, state_of, train, trained

from fused_adamw import AdamW
from fused_adamw.checkpoint import MismatchedCheckpointError, load_checkpoint, save_checkpoint

MIXES = list(product(["float32", "bfloat16", "8bit"], [False, True]))
NBYTES = {"float32": 8, "bfloat16": 4, "8bit": 2 + 8 / 256}


def options_of(mix):
    return dict(zip(("state_dtype", "master_weights"), mix, strict=True))


@pytest.mark.parametrize("after", MIXES, ids=str)
@pytest.mark.parametrize("before", MIXES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_each_mix_becomes_each_other(dtype, before, after, tmp_path):
    opt, path = trained(dtype, **options_of(before)), tmp_path / "saved"
    save_checkpoint(path, opt)
    other = trained(dtype, steps=1, **options_of(after))
    from_file = trained(dtype, steps=1, **options_of(after))
    if before != after:
        untouched = contents(other)
        with pytest.raises(ValueError, match="pass convert=True"):
            other.load_state_dict(opt.state_dict(), convert=False)
        with pytest.raises(MismatchedCheckpointError, match="pass convert=True"):
            load_checkpoint(path, other, convert=False)
        assert contents(other) == untouched
    overwrite(other, opt)
    other.load_state_dict(opt.state_dict(), convert=True)
    load_checkpoint(path, from_file, convert=True)
    assert contents(from_file) == contents(other)
    if before == after:
        assert contents(other) == contents(opt)
    exact = after[0] in ("float32", before[0])
    for p, entry, saved in zip(params_of(other), state_of(other), state_of(opt), strict=True):
        assert ("master" in entry) == after[1]
        if after[1] and before[1]:
            np.testing.assert_array_equal(entry["master"], saved["master"])
        elif after[1]:  # it starts from the parameters: they are it, rounded
            own = AdamW(p.copy(), **options_of(after)).state_dict()["state"]["params"]
            np.testing.assert_array_equal(entry["master"], own["master"])
    if exact:
        for role in "mv":
            for a, b in zip(getattr(other, role), getattr(opt, role), strict=True):
                np.testing.assert_array_equal(a, b)
    train(other, [7])


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bytes(dtype, mix):
    opt = trained(dtype, shapes=[(1024,)], **options_of(mix))
    own = sum(array.nbytes for name, array in state_of(opt)[0].items() if name == "master")
    assert (own > 0) == mix[1]
    assert opt.state_nbytes == 1024 * NBYTES[mix[0]] + own


def test_none_is_the_parameters_own_or_float32():
    for dtype, own in (("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")):
        plain, named = trained(dtype), trained(dtype, state_dtype=own)
        assert contents(plain)[0] == contents(named)[0]
        assert contents(plain)[2] == contents(named)[2]


def test_float32_moments_of_float32_parameters_are_the_plain_ones(tmp_path):
    """The bits of the steps, and the same file."""
    plain, named = trained(order="F"), trained(order="F", state_dtype="float32")
    assert contents(plain) == contents(named)
    for opt, name in ((plain, "plain"), (named, "named")):
        save_checkpoint(tmp_path / name, opt)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "named").read_bytes()
    load_checkpoint(tmp_path / "plain", named)
    plain.load_state_dict(named.state_dict())
    assert contents(plain) == contents(named)
