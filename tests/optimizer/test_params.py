"""What ``params`` may be: names of nested tensors, groups, and what is refused with a next step."""

import copy
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
from optimizers import HYPER, Twins, draw, leaves

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

FLAX = {"layers": [{"w": (2,), "b": (3,)}, {"w": (4,)}], "head": {"kernel": (5,), "scale": (1,)}}


def tree(shapes, make):
    if isinstance(shapes, dict):
        return {key: tree(x, make) for key, x in shapes.items()}
    return [tree(x, make) for x in shapes] if isinstance(shapes, list) else make(shapes)


def test_names_are_paths_with_dots():
    names = ["layers.0.w", "layers.0.b", "layers.1.w", "head.kernel", "head.scale"]
    params = tree(FLAX, np.ones)
    assert AdamW(params).names == names
    assert AdamW([{"params": params}]).names == [f"0.{name}" for name in names]
    assert AdamW([params, np.ones(2)]).names == [*(f"0.{name}" for name in names), "1"]


def test_moments_have_the_structure_of_the_parameters():
    params = tree(FLAX, np.ones)
    opt = AdamW(params, ema_decay=0.9)
    opt.step(tree(FLAX, np.ones))
    for found in (opt.m, opt.v, opt.ema):
        assert tree(FLAX, lambda shape: shape) == shapes_of(found)


def shapes_of(arrays):
    if isinstance(arrays, dict):
        return {key: shapes_of(x) for key, x in arrays.items()}
    return list(map(shapes_of, arrays)) if isinstance(arrays, list) else arrays.shape


def test_a_list_of_dicts_is_groups_only_if_they_have_params():
    arrays, grads = draw([2, 3, 4]), draw([2, 3, 4], seed=1)
    params = [{"w": arrays[0], "lr": arrays[1]}, {"w": arrays[2]}]
    opt, twins = AdamW(params, **HYPER), Twins(arrays)
    assert (opt.names, len(opt.param_groups)) == (["0.w", "0.lr", "1.w"], 1)
    opt.step([{"w": grads[0], "lr": grads[1]}, {"w": grads[2]}])
    twins.step(grads, HYPER)
    twins.assert_equal(opt)


def test_one_group_that_is_a_mapping_of_params_is_no_group():
    """Only a list has groups: here "params" is a key like others, as in Flax."""
    opt = AdamW({"params": {"w": np.ones(2)}})
    assert opt.names == ["params.w"]
    assert [a.shape for a in leaves(opt.m)] == [(2,)]


def test_decay_masks_are_nested_too():
    def params():
        return tree(FLAX, lambda shape: np.full(shape, 2.0))

    predicate = AdamW(params(), decay_mask=lambda name, array: name.endswith(".w"))
    mask = tree(FLAX, lambda shape: shape in ((2,), (4,)))
    booleans = AdamW(params(), decay_mask=mask)
    for opt in (predicate, booleans):
        opt.step(tree(FLAX, np.zeros))
        changed = [bool((a != 2).all()) for a in leaves(opt.param_groups[0]["params"])]
        assert changed == [True, False, True, False, False]


class MadeAtEachAccess(Mapping):
    """As an archive or a file of arrays is."""

    def __getitem__(self, key):
        return np.ones(3)

    def __iter__(self):
        return iter("ab")

    def __len__(self):
        return 2


class Trainable:
    """What a tensor of PyTorch has and an array has not."""

    requires_grad = True


@pytest.mark.parametrize(
    "params",
    [Trainable(), [Trainable()], {"a": [Trainable()]}],
    ids=["alone", "in a list", "in a mapping"],
)
def test_tensors_of_pytorch_are_refused_with_a_next_step(params):
    with pytest.raises(TypeError, match=r"must be .*; got Trainable; .*fused_adamw\.torch\.AdamW"):
        AdamW(params)


@pytest.mark.slow
def test_parameters_of_pytorch_are_refused_with_a_next_step():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    for params in (model.parameters(), model.weight, list(model.parameters())):
        with pytest.raises(TypeError, match=r"^params.* must be .*fused_adamw\.torch\.AdamW"):
            AdamW(params)


def test_a_mapping_that_makes_its_arrays_is_refused():
    message = r"params\['a'\] must return the same array on every access; got a new one"
    with pytest.raises(ValueError, match=message):
        AdamW(MadeAtEachAccess())


def test_the_state_is_bound_once_with_a_mask(monkeypatch):
    """The mask is given to what is bound; nothing is bound a second time."""
    from fused_adamw import optimizer

    calls = []
    bind = optimizer.BoundTensors
    monkeypatch.setattr(
        optimizer, "BoundTensors", lambda *args, **kwargs: calls.append(1) or bind(*args, **kwargs)
    )
    AdamW({"w": np.ones(2)}, decay_mask={"w": False})
    assert len(calls) == 1


def test_masked_arrays_are_refused():
    """Their memory includes the elements that are masked."""
    with pytest.raises(TypeError, match=r"params\['w'\] must be a plain array; got a masked array"):
        AdamW({"w": np.ma.ones(3)})
    opt = AdamW({"w": np.ones(3)})
    with pytest.raises(TypeError, match=r"grads\['w'\] must be a plain array; got a masked array"):
        opt.step({"w": np.ma.ones(3)})
    assert opt.t == 0


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int4"])
def test_dtypes_without_a_buffer_format(dtype):
    array = np.zeros(3, getattr(pytest.importorskip("ml_dtypes"), dtype))
    with pytest.raises(TypeError, match=f"^params must be a NumPy array of .*; got dtype {dtype}$"):
        AdamW(array)


def test_dates_are_no_parameters():
    with pytest.raises(TypeError, match=r"got dtype datetime64\[s\]$"):
        AdamW(np.zeros(3, "M8[s]"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dtype", np.int64, "must have the dtype float64, as at construction; got int64"),
        ("shape", (2, 3), r"must have the shape \(6,\), as at construction; got \(2, 3\)"),
    ],
)
def test_an_array_that_has_been_reinterpreted_in_place(tmp_path, name, value, message):
    w = np.ones(6)
    opt = AdamW({"w": w})
    opt.step({"w": np.ones(6)})
    saved, path = opt.state_dict(), tmp_path / "file"
    save_checkpoint(path, opt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of later versions of NumPy
        setattr(w, name, value)
    for call in (
        opt.state_dict,
        lambda: opt.load_state_dict(saved),
        lambda: save_checkpoint(path, opt),
        lambda: load_checkpoint(path, opt),
        lambda: copy.deepcopy(opt),
    ):
        with pytest.raises(ValueError, match=rf"^params\['w'\] {message}"):
            call()


@pytest.mark.parametrize("sizes", [(3,), (1 << 20,), (1 << 20, 1000)], ids=["less", "more", "both"])
@pytest.mark.parametrize("kind", [np.ndarray, np.recarray])
def test_an_array_that_has_been_resized(tmp_path, kind, sizes):
    """NumPy frees the memory that the optimizer was given, and a step would write to it."""
    w, b = np.ones(1000).view(kind), np.ones(1000)
    w = w.copy()  # which owns its memory
    opt = AdamW({"b": b, "w": w})
    gradient = {"b": np.ones(1000), "w": np.ones(1000)}
    opt.step(gradient)
    saved, path = opt.state_dict(), tmp_path / "file"
    save_checkpoint(path, opt)
    kept = [np.ones(1000)]
    for size in sizes:
        w.resize(size, refcheck=False)
        kept += [np.ones(1000) for _ in range(9)]  # where the memory was
    before = b.tobytes()
    for call in (
        lambda: opt.step(gradient),
        opt.state_dict,
        lambda: opt.load_state_dict(saved),
        lambda: save_checkpoint(path, opt),
        lambda: load_checkpoint(path, opt),
        lambda: copy.deepcopy(opt),
    ):
        with pytest.raises(ValueError, match=r"^params\['w'\] must keep the memory of 1000 elem"):
            call()
    assert b.tobytes() == before
    assert all((array == 1).all() for array in kept)
    assert opt.t == 1


def test_a_schedule_that_resizes_an_array():
    w = np.ones(1000)
    opt = AdamW([w], lr=lambda t: w.resize(3, refcheck=False) or 0.1 if t == 2 else 0.1)
    opt.step([np.ones(1000)])
    with pytest.raises(ValueError, match=r"^params\[0\] must keep .*; got an array of 3:"):
        opt.step([np.ones(1000)])
