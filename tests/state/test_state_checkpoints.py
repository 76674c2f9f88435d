"""Compressed state: bad arguments, snapshots, copies, checkpoints and conversion."""

import copy
import pickle

import numpy as np
import pytest
from arrays import DELETED, dtype_named, spoil
from test_state_steps import COMPRESSED, HYPER, contents, draw, state_of
from twin_state import TensorTwin, decode_8bit, encode_8bit, from_bfloat16, raw, to_bfloat16

from fused_adamw import AdamW, fused_adamw

SHAPES = [(7, 90), (300,), (), (0, 3)]
NEAREST = {"m": None, "v": None}


def trained(dtype="float32", order="C", steps=3, shapes=SHAPES, **options):
    dtype = dtype_named(dtype)
    params = [np.asarray(p, order=order) for p in draw(shapes, dtype)]
    opt = AdamW(params, **HYPER, **options)
    train(opt, range(steps))
    return opt


def params_of(opt):
    return opt.param_groups[0]["params"]


def train(opt, steps):
    params = params_of(opt)
    for t in steps:
        opt.step(draw([p.shape for p in params], params[0].dtype, seed=t))


def overwrite(opt, other):
    """With the parameters of another one."""
    for array, values in zip(params_of(opt), params_of(other), strict=True):
        array[...] = values


def moments(opt):
    """m, v of each tensor in C order, decoded by the twin."""
    found = []
    for p, entry in zip(params_of(opt), state_of(opt), strict=True):
        kept = entry["m"].dtype, entry["v"].dtype
        if "m_scale" in entry:
            values = decode_8bit(entry)
        elif kept == (np.uint16, np.uint16):
            values = [from_bfloat16(entry[role]) for role in ("m", "v")]
        else:
            values = [raw(entry[role]) for role in ("m", "v")]
        order = "C" if p.flags.c_contiguous else "F"
        found.append([x.reshape(p.shape, order=order) for x in values])
    return found


# ---- bad arguments


@pytest.mark.parametrize("name", ["", "8BIT", "8-bit", "float32", "int8", 8, True, np.float32])
def test_state_dtypes_that_there_are_not(name):
    with pytest.raises(ValueError, match=r"state_dtype is .*; expected None, 'bfloat16', '8bit'"):
        AdamW(np.ones(3, np.float32), state_dtype=name)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("lend", [np.asarray, memoryview], ids=["array", "memoryview"])
def test_float64_keeps_its_own_moments(state_dtype, lend):
    with pytest.raises(TypeError, match=r"params\['1'\] has dtype float64"):
        AdamW([np.ones(3, np.float32), lend(np.ones(3))], state_dtype=state_dtype)


def test_there_is_no_amsgrad_in_8_bits():
    with pytest.raises(ValueError, match="amsgrad"):
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
    with pytest.raises(TypeError, match="float32, float64, float16 or bfloat16"):
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
    good = draw(SHAPES, dtype_named(dtype), seed=9)
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
        for wrong, message in ((p[:, ::2], "dense"), (np.broadcast_to(p[0, 0], 5), "read-only")):
            with pytest.raises(ValueError, match=message):
                AdamW(wrong, state_dtype="8bit")
        with pytest.raises(ValueError, match="share memory"):
            AdamW([p, p[2:3]])


# ---- snapshots


@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize(("dtype", "state_dtype"), COMPRESSED)
def test_resuming_gives_the_bits_of_never_stopping(dtype, state_dtype, master_weights):
    options = {"state_dtype": state_dtype, "master_weights": master_weights}
    opt = trained(dtype, seed=3, **options)
    saved = opt.state_dict()
    for entry in saved["state"].values():
        for array in (x for x in entry.values() if isinstance(x, np.ndarray)):
            for own in (x for i in range(4) for x in opt._state_of(i).values()):
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
@pytest.mark.parametrize(("dtype", "state_dtype"), COMPRESSED)
def test_copies_go_on_alike(dtype, state_dtype, copied):
    opt = trained(dtype, "F", state_dtype=state_dtype, master_weights=True, seed=4)
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


# ---- conversion

KINDS = [None, "bfloat16", "8bit"]


def alike(dtype, before, after, orders):
    """Whether a state loads as it is: float32 parameters' own moments do from any memory order."""
    own = "bfloat16" if dtype == "bfloat16" else "float32"
    same_order = orders[0] == orders[1] or (dtype, before) == ("float32", None)
    return (before or own) == (after or own) and same_order


@pytest.mark.parametrize("orders", ["CC", "FF", "CF", "FC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_a_state_is_converted_to_the_nearest(before, after, dtype, orders):
    opt = trained(dtype, orders[0], state_dtype=before)
    other = trained(dtype, orders[1], state_dtype=after, steps=1)
    saved, untouched = opt.state_dict(), contents(other)
    if not alike(dtype, before, after, orders):
        with pytest.raises((TypeError, ValueError), match=r"order|another|expected an array of"):
            other.load_state_dict(saved)
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
    if not there:  # in 8 bits there is none: it is not dropped in silence
        with pytest.raises(ValueError, match=r"amsgrad|v_max"):
            trained(state_dtype="8bit").load_state_dict(other.state_dict(), convert=True)


def test_what_has_decayed_below_the_least_float_converts():
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
def test_master_weights_that_a_snapshot_has_not(dtype):
    opt = trained(dtype, "F", state_dtype="8bit")
    other = trained(dtype, "F", state_dtype="8bit", master_weights=True, steps=1)
    overwrite(other, opt)
    other.load_state_dict(opt.state_dict(), convert=True)
    for p, entry in zip(params_of(other), state_of(other), strict=True):
        np.testing.assert_array_equal(entry["master"], p.astype(np.float32).ravel(order="K"))
    opt.load_state_dict(other.state_dict(), convert=True)  # and back: they are dropped
    assert set(state_of(opt)[0]) == {"step", "order", "m", "v", "m_scale", "v_scale"}


def test_snapshots_from_before_there_was_a_seed():
    opt = trained(seed=8)
    saved = opt.state_dict()
    del saved["seed"]
    other = trained(steps=1, seed=5)
    other.load_state_dict(saved)
    assert other.seed == 5
    assert moments(other)[0][0].tobytes() == moments(opt)[0][0].tobytes()


# ---- files


@pytest.fixture
def checkpoint():
    pytest.importorskip("safetensors")
    from fused_adamw import checkpoint

    return checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize(("dtype", "state_dtype"), [*COMPRESSED, ("float32", None)])
def test_a_file_resumes_to_the_bit(dtype, state_dtype, master_weights, order, checkpoint, path):
    options = {"state_dtype": state_dtype, "master_weights": master_weights}
    opt = trained(dtype, order, seed=6, **options)
    checkpoint.save_checkpoint(path, opt, extra={"epoch": 3})
    other = trained(dtype, order, steps=1, seed=None, **options)
    assert checkpoint.load_checkpoint(path, other) == {"epoch": 3}
    assert contents(other) == contents(opt)
    train(opt, range(3, 6))
    train(other, range(3, 6))
    assert contents(other) == contents(opt)
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_other_readers_find_the_parameters(state_dtype, checkpoint, path):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    opt = trained("bfloat16", "F", state_dtype=state_dtype)
    checkpoint.save_checkpoint(path, opt)
    found = load_file(path)
    for i, p in enumerate(params_of(opt)):
        np.testing.assert_array_equal(found[f"params/{i}"], p, strict=True)


@pytest.mark.parametrize("orders", ["CC", "FF", "CF", "FC"])
@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_converted(before, after, orders, dtype, checkpoint, path):
    """As a snapshot is, and the parameters come with it."""
    opt = trained(dtype, orders[0], state_dtype=before)
    checkpoint.save_checkpoint(path, opt)
    other = trained(dtype, orders[1], state_dtype=after, steps=1)
    same = copy.deepcopy(other)
    untouched = contents(other)
    if not alike(dtype, before, after, orders):
        with pytest.raises(
            checkpoint.MismatchedCheckpointError, match=r"order|state_dtype|expected an array of"
        ):
            checkpoint.load_checkpoint(path, other)
        assert contents(other) == untouched
    checkpoint.load_checkpoint(path, other, convert=True)
    overwrite(same, opt)
    same.load_state_dict(opt.state_dict(), convert=True)
    assert contents(other) == contents(same)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_master_weights_that_a_file_has_not_are_made_from_its_parameters(dtype, checkpoint, path):
    opt = trained(dtype, "F", state_dtype="8bit")
    checkpoint.save_checkpoint(path, opt)
    other = trained(dtype, "C", state_dtype="8bit", master_weights=True, steps=9)
    checkpoint.load_checkpoint(path, other, convert=True)
    for p, q, entry in zip(params_of(opt), params_of(other), state_of(other), strict=True):
        np.testing.assert_array_equal(q, p)
        np.testing.assert_array_equal(entry["master"], p.astype(np.float32).ravel())


def test_a_file_of_a_build_without_these_options(checkpoint, path):
    """Its metadata has no seed and no orders."""
    opt = trained()
    described = checkpoint.described

    def older(state):
        found = described(state)
        assert found.pop("seed") == 0
        assert found.pop("orders") == {}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "described", older)
        checkpoint.save_checkpoint(path, opt)
    header = path.read_bytes()[8:2000]
    assert b"seed" not in header
    other, packed = trained(steps=1), trained(steps=1, state_dtype="8bit")
    checkpoint.load_checkpoint(path, other)
    assert contents(other) == contents(opt)
    checkpoint.load_checkpoint(path, packed, convert=True)
    assert packed.t == 3


@pytest.mark.parametrize("convert", [False, True])
def test_damaged_and_foreign_files_change_nothing(convert, checkpoint, path):
    opt = trained("bfloat16", state_dtype="8bit")
    checkpoint.save_checkpoint(path, opt)
    data = path.read_bytes()
    other = trained("bfloat16", state_dtype="8bit", steps=1)
    before = contents(other)
    size = int.from_bytes(data[:8], "little")
    for at in [*range(0, size, 97), *range(size, len(data), 29)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load_checkpoint(path, other, convert=convert)
    for end in (0, 7, 100, size, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(checkpoint.CorruptCheckpointError):
            checkpoint.load_checkpoint(path, other, convert=convert)
    assert contents(other) == before
    path.write_bytes(data)
    for wrong in (
        trained("float16", state_dtype="8bit"),
        trained("float32", state_dtype="8bit"),
        trained("bfloat16", state_dtype="8bit", shapes=[(90, 7), *SHAPES[1:]]),
        trained("bfloat16", state_dtype="8bit", shapes=SHAPES[:3]),
    ):
        before = contents(wrong)
        with pytest.raises(checkpoint.MismatchedCheckpointError):
            checkpoint.load_checkpoint(path, wrong, convert=convert)
        assert contents(wrong) == before


def test_a_tensor_of_the_file_that_is_of_no_use(checkpoint, path):
    """One array too many, of whatever name, is refused with ``convert`` too."""
    opt = trained(state_dtype="8bit")
    collected = opt.state_dict()
    collected["state"]["0"]["foreign"] = np.zeros(3, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opt, "state_dict", lambda: collected)
        checkpoint.save_checkpoint(path, opt)
    assert b"foreign/0" in path.read_bytes()
    for convert in (False, True):
        before = contents(opt)
        with pytest.raises(checkpoint.MismatchedCheckpointError, match="foreign"):
            checkpoint.load_checkpoint(path, opt, convert=convert)
        assert contents(opt) == before


def test_a_twin_goes_on_from_a_converted_state():
    """Float32 for two steps, 8 bits from there."""
    (p,) = draw([(600,)], np.float32)
    opt, other = AdamW(p, **HYPER), AdamW(p.copy(), **HYPER, state_dtype="8bit", seed=2)
    for t in range(2):
        opt.step(draw([(600,)], np.float32, seed=t)[0])
    twin = TensorTwin(p, state_dtype="8bit", seed=2)
    twin.state, twin.t = encode_8bit(opt.m, opt.v, NEAREST), 2
    saved = opt.state_dict() | {"seed": 2}
    other.param_groups[0]["params"][...] = p
    other.load_state_dict(saved, convert=True)
    for t in range(2, 5):
        (g,) = draw([(600,)], np.float32, seed=t)
        other.step(g)
        twin.step(g, **HYPER)
        state = state_of(other)[0]
        for role, values in twin.state.items():
            np.testing.assert_array_equal(state[role], values)
        np.testing.assert_array_equal(other.param_groups[0]["params"], twin.params)
