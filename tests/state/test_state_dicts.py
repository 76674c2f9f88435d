"""Low-precision state: bad arguments, snapshots and copies."""

import copy
import pickle

import numpy as np
import pytest
from arrays import DELETED, dtype_named, spoil
from states import (
    LOW_PRECISION,
    MODEL,
    contents,
    draw,
    moments,
    overwrite,
    params_of,
    train,
    trained,
)

from fused_adamw import AdamW, fused_adamw

# ---- bad arguments


@pytest.mark.parametrize(
    "name",
    ["", "8BIT", "8-bit", "float64", "int8", 8, True, np.float32, np.array("8bit"), ["8bit"]],
)
def test_unknown_state_dtypes(name):
    expected = r"state_dtype must be None, 'float32', 'bfloat16' or '8bit'; got"
    with pytest.raises(ValueError, match=expected):
        AdamW(np.ones(3, np.float32), state_dtype=name)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("view", [np.asarray, memoryview], ids=["array", "memoryview"])
def test_float64_keeps_its_own_moments(state_dtype, view):
    expected = rf"params\[1\] must have dtype float32, .*'{state_dtype}'; got float64"
    with pytest.raises(TypeError, match=expected):
        AdamW([np.ones(3, np.float32), view(np.ones(3))], state_dtype=state_dtype)
    with pytest.raises(TypeError, match=r"^params must have dtype float32"):
        AdamW(np.ones(3), state_dtype=state_dtype)


def test_there_is_no_amsgrad_in_8_bits():
    expected = "amsgrad must be False with state_dtype='8bit'; got True"
    with pytest.raises(ValueError, match=expected):
        AdamW(np.ones(3, np.float32), state_dtype="8bit", amsgrad=True)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30, 1.5, "0", (1,)])
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_bad_seeds(seed, state_dtype):
    with pytest.raises(
        TypeError if isinstance(seed, (float, str, tuple)) else ValueError, match="seed"
    ):
        AdamW(np.ones(3, np.float32), state_dtype=state_dtype, seed=seed)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int8", ">f2", "complex64", "object"])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "8bit"])
def test_parameters_that_are_not_served(dtype, state_dtype):
    with pytest.raises(TypeError, match="float32, float64, bfloat16 or float16"):
        AdamW(np.zeros(3, dtype), state_dtype=state_dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("which", range(4))
def test_the_function_takes_no_16_bits(dtype, which):
    """In any of its arguments, with nothing changed."""
    arrays = [np.ones(3, np.float32) for _ in range(4)]
    arrays[which] = np.ones(3, dtype_named(dtype))
    before = [a.tobytes() for a in arrays]
    with pytest.raises(TypeError, match=dtype):
        fused_adamw(*arrays, 1)
    with pytest.raises(TypeError, match=dtype):
        fused_adamw(*[np.ones(3, dtype_named(dtype))] * 4, 1)
    assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("master_weights", [False, True])
def test_bad_gradients_change_nothing(dtype, state_dtype, master_weights):
    opt = trained(dtype, state_dtype=state_dtype, master_weights=master_weights)
    good = draw(MODEL, dtype_named(dtype), seed=9)
    before = contents(opt)
    for wrong in ("float16", "bfloat16", "float32", "float64", "uint16"):
        if wrong != dtype:
            with pytest.raises(TypeError, match=r"grads\[1\]"):
                opt.step([good[0], np.ones(300, dtype_named(wrong)), *good[2:]])
    for shape in ((), (1,), (299,), (300, 1)):
        with pytest.raises(ValueError, match=r"grads\[1\]"):
            opt.step([good[0], np.ones(shape, good[0].dtype), *good[2:]])
    for grads in (good[:3], good[0], dict(enumerate(good)), [*good, good[0]]):
        with pytest.raises((TypeError, ValueError), match="grads"):
            opt.step(grads)
    with pytest.raises(ValueError, match="share memory"):
        opt.step([good[0], params_of(opt)[1], *good[2:]])
    assert contents(opt) == before


def test_parameters_have_to_be_dense_writable_and_apart():
    for dtype in (np.dtype(np.float16), dtype_named("bfloat16")):
        p = np.ones((6, 4), dtype)
        for wrong in (p[:, ::2], np.broadcast_to(p[0, 0], 5)):
            with pytest.raises(ValueError, match=r"must be (contiguous|writable)"):
                AdamW(wrong, state_dtype="8bit")
        with pytest.raises(ValueError, match="share memory"):
            AdamW([p, p[2:3]])


# ---- snapshots


@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize(("dtype", "state_dtype"), LOW_PRECISION)
def test_resuming_gives_the_bits_of_never_stopping(dtype, state_dtype, master_weights):
    options = {"state_dtype": state_dtype, "master_weights": master_weights, "ema_decay": 0.9}
    opt = trained(dtype, seed=3, **options)
    saved = opt.state_dict()
    for entry in saved["state"].values():
        for array in (x for x in entry.values() if isinstance(x, np.ndarray)):
            for own in (x for state in opt._state for x in state.arrays.values()):
                assert not np.shares_memory(array, own)
    other, frozen = trained(dtype, steps=1, seed=99, **options), copy.deepcopy(saved)
    overwrite(other, opt)
    train(opt, range(3, 8))
    other.load_state_dict(saved)
    assert other.seed == 3
    train(other, range(3, 8))
    assert contents(other) == contents(opt)
    assert repr(saved) == repr(frozen)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@pytest.mark.parametrize(("dtype", "state_dtype"), LOW_PRECISION)
def test_copies_continue_identically(dtype, state_dtype, copied):
    options = {"state_dtype": state_dtype, "master_weights": True, "ema_decay": 0.5}
    opt = trained(dtype, "F", **options, seed=4)
    other, before = copied(opt), contents(opt)
    assert contents(other) == before
    train(other, [3, 4])
    assert contents(opt) == before
    train(opt, [3, 4])
    assert contents(other) == contents(opt)


def test_repr_and_what_is_seen():
    opt = trained("float16", "F", state_dtype="8bit", master_weights=True, seed=4)
    for text in (
        "4 tensors, 931 parameters",
        "state_dtype='8bit'",
        "master_weights=True",
        "seed=4",
    ):
        assert text in repr(opt)
    assert "seed" not in repr(AdamW(np.ones(3)))
    all_seen = zip(opt.m, opt.v, strict=True)
    for array, seen, (m, v) in zip(params_of(opt), all_seen, moments(opt), strict=True):
        np.testing.assert_array_equal(seen[0], m, strict=True)
        np.testing.assert_array_equal(seen[1], v, strict=True)
        assert seen[0].shape == array.shape
    with pytest.raises(AttributeError):
        opt.seed = 5


ENDLESS = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((["seed"], value) for value in (-1, 2**32, 1.5, "x")),
        *((["state", "0", role], DELETED) for role in ("m", "v", "m_scale", "v_scale", "step")),
        *((["state", "0", "m"], np.zeros(n, np.int8)) for n in (1, 629, (7, 90))),
        *((["state", "0", "v_scale"], np.zeros(n, np.uint32)) for n in (1, 2, 4)),
        (["state", "0", "m"], np.zeros(630, np.uint8)),
        (["state", "0", "m"], [0] * 630),
        (["state", "0", "v"], np.zeros(630, np.float64)),
        (["state", "0", "order"], "K"),
        (["state", "0", "order"], None),
        (["state", "0", "v_max"], np.zeros(630, np.uint8)),
        (["state", "0"], None),
        (["state", "0"], DELETED),
        (["state", "9"], {}),
        (["state"], None),
        (["seed"], ENDLESS),
        (["state", "0", "m"], ENDLESS),
    ],
    ids=str,
)
def test_a_bad_state_changes_nothing(path, value, convert):
    opt, saved = trained(state_dtype="8bit", seed=None), trained(state_dtype="8bit", steps=5)
    saved = saved.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    spoil(saved, path, value)
    before, twin = contents(opt), copy.deepcopy(opt)
    with pytest.raises((TypeError, ValueError)) as caught:
        opt.load_state_dict(saved, convert=convert)
    assert not isinstance(caught.value, UnicodeError)
    assert path[0] in str(caught.value)
    assert contents(opt) == before
    for other in (opt, twin):  # the rounding is as it was, too
        train(other, [5])
    assert contents(opt) == contents(twin)


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_masked_state_is_refused(state_dtype):
    """As masked parameters and gradients are: a mask would be lost."""
    opt = AdamW(np.ones(3, np.float32), state_dtype=state_dtype)
    opt.step(np.ones(3, np.float32))
    saved, before = opt.state_dict(), contents(opt)
    (entry,) = saved["state"].values()
    entry["m"] = np.ma.array(entry["m"], mask=[True, False, False])
    with pytest.raises(TypeError, match=r"\['m'\] must have no mask; got MaskedArray"):
        opt.load_state_dict(saved)
    assert contents(opt) == before
