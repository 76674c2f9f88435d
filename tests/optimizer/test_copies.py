"""Copies of an optimizer are of one whole step, and none shares a part; garbage is collected."""

import copy
import gc
import io
import pickle
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from optimizers import EVERYTHING, draw, leaves, snapshot

from fused_adamw import AdamW

SHAPES = [(5,), (3, 2)]


def test_a_shallow_copy_is_refused():
    opt = AdamW(np.ones(2))
    with pytest.raises(TypeError, match=r"AdamW cannot be copied in part; use copy\.deepcopy"):
        copy.copy(opt)


# ---- steps while an optimizer is copied


class SteppingPickler(pickle.Pickler):
    """Takes a step before it reads each array: as a thread may."""

    def __init__(self, file, step):
        super().__init__(file)
        self.step = step

    def reducer_override(self, obj):
        if isinstance(obj, np.ndarray):
            self.step()
        return NotImplemented


def pickled(opt, step):
    file = io.BytesIO()
    SteppingPickler(file, step).dump(opt)
    return pickle.loads(file.getvalue())


class SteppingRate:
    """A schedule; to copy it takes a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, t):
        return 0.1

    def __deepcopy__(self, memo):
        self.step()
        return lambda t: 0.1


def deep_copied(opt, step):
    opt.param_groups[0]["lr"] = SteppingRate(step)
    return copy.deepcopy(opt)


@pytest.mark.parametrize("copied", [pickled, deep_copied])
@pytest.mark.parametrize("options", [{}, EVERYTHING, {"state_dtype": "8bit"}], ids=str)
def test_a_copy_is_of_one_step(copied, options):
    params = [{"w": a} for a in draw(SHAPES, np.float32)]
    opt = AdamW(params, lr=0.1, **options)
    grads = [{"w": g} for g in draw(SHAPES, np.float32, seed=1)]
    opt.step(grads)
    before = snapshot(opt)
    other = copied(opt, lambda: opt.step(grads))
    assert opt.t > 1
    found = snapshot(other)
    assert found[:2] == before[:2]
    assert found[4] == before[4]


def test_a_copy_together_with_the_model_is_of_one_step():
    model = {"w": np.ones(3), "b": np.ones((2, 2), order="F")}
    opt = AdamW(model)
    grads = {"w": np.ones(3), "b": np.ones((2, 2))}
    file = io.BytesIO()
    SteppingPickler(file, lambda: opt.step(grads)).dump((model, opt))
    other, copied = pickle.loads(file.getvalue())
    expected = AdamW({"w": np.ones(3), "b": np.ones((2, 2), order="F")})
    for _ in range(copied.t):
        expected.step(grads)
    assert 0 < copied.t < opt.t
    assert snapshot(copied) == snapshot(expected)
    for name in model:
        assert copied.param_groups[0]["params"][name] is other[name]


# ---- cycles


class Owner:
    """Something that refers to the optimizer."""


class Tagged(np.ndarray):
    """An array with attributes."""


def owned(shape, dtype=np.float64):
    array = Tagged(shape, dtype)  # with memory of its own
    array[...] = 1
    return array


def own_array():
    array = owned(3)
    array.opt = opt = AdamW({"w": array})
    opt.step({"w": np.ones(3)})
    return opt


def own_view():
    array = np.ones(3).view(Tagged)
    array.opt = opt = AdamW([array], ema_decay=0.9)
    return opt


def own_array_in_low_precision():
    array = owned((300,), np.float32)
    array.opt = opt = AdamW([{"params": [array]}], state_dtype="8bit")
    opt.step([[np.ones(300, np.float32)]])
    opt.load_state_dict(opt.state_dict())
    return opt


def own_key():
    key = Owner()
    key.opt = opt = AdamW({key: np.ones(3)})
    opt.step({key: np.ones(3)})
    return opt


def own_nested_key():
    key = Owner()
    key.opt = opt = AdamW([{"params": {"a": [{key: np.ones(3)}]}}])
    return opt


def own_container():
    model = {"w": np.ones(3)}
    model["opt"] = opt = AdamW(model)
    return opt


def own_schedule():
    rate = SteppingRate(None)
    rate.step = opt = AdamW(np.ones(3), lr=rate)
    return opt


CYCLES = [
    *(own_array, own_view, own_array_in_low_precision, own_key, own_nested_key, own_container),
    own_schedule,
]


@pytest.mark.slow  # each goes through all objects of the process
@pytest.mark.parametrize("make", CYCLES)
def test_an_optimizer_in_a_cycle_is_collected(make):
    found = weakref.ref(make())
    gc.collect()
    assert found() is None


@pytest.mark.slow  # each goes through all objects of the process
@pytest.mark.parametrize("make", CYCLES)
def test_an_optimizer_in_use_is_not_collected(make):
    opt = make()
    expected = [array.copy() for array in leaves(opt.m)]
    gc.collect()
    assert all(map(np.array_equal, leaves(opt.m), expected))


# ---- models that are copied together with their optimizer


class Trainer:
    def __init__(self, params, key):
        self.params, self.key = params, key
        self.opt = AdamW(self.params)

    def replace(self):
        container = self.params[0] if isinstance(self.params, list) else self.params
        container[self.key] = container[self.key] * 2


def pickled(x):
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"w": np.ones(3), "b": np.ones(1)}, "w"),
        ([[np.ones(3), np.ones(1)], np.ones(2)], 1),
        ([{"w": np.ones(3)}, (np.ones(1),)], "w"),
    ],
)
def test_an_array_that_is_replaced_in_the_copied_model_is_refused(params, key, copied):
    trainer = copied(Trainer(params, key))
    grads = copy.deepcopy(trainer.params)
    trainer.opt.step(grads)
    trainer.replace()
    with pytest.raises(ValueError, match="must be the array that the optimizer was constructed"):
        trainer.opt.step(grads)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_model_whose_attributes_are_the_parameters_can_be_copied(copied):
    model = SimpleNamespace(w=np.ones(3))
    model.opt = AdamW(vars(model))
    model.note = "added later"
    twin = copied(model)
    twin.opt.step({"w": np.ones(3)})
    assert twin.w[0] != 1
    assert model.w[0] == 1


class Layers(list):
    pass


class Named(dict):
    pass


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize(
    ("model", "grads"),
    [(Layers([np.ones(3)]), [np.ones(3)]), (Named(w=np.ones(3)), {"w": np.ones(3)})],
    ids=["list", "dict"],
)
def test_a_model_that_is_the_container_of_its_parameters_can_be_copied(model, grads, copied):
    """Its optimizer is copied while the copy of the container is still empty."""
    model.opt = AdamW(model)
    twin = copied(model)
    twin.opt.step(grads)
    assert leaves(twin)[0][0] != leaves(model)[0][0] == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_what_was_added_to_a_list_of_parameters_is_not_copied(copied):
    opt = AdamW(outer := [inner := [np.ones(3)]])
    for added_to in (inner, outer):
        added_to.append(np.ones(2))
        twin = copied(opt)
        added_to.pop()
        assert list(map(len, twin.param_groups[0]["params"])) == [1]
        twin.step([[np.ones(3)]])


# ---- read-only memory: pickles of protocol 5, which is the default from Python 3.14 on


def out_of_band(opt, kind):
    """Through a pickle whose arrays are beside it, in buffers of a kind."""
    buffers = []
    data = pickle.dumps(opt, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[kind(buffer.raw()) for buffer in buffers])


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_buffers_beside_a_pickle(state_dtype):
    w = np.linspace(-1, 1, 600, dtype=np.float32)
    opt = AdamW({"w": w}, state_dtype=state_dtype)
    opt.step({"w": w + 1})
    other, fixed = out_of_band(opt, bytearray), out_of_band(opt, bytes)
    before = [x.tobytes() for x in (*fixed._arrays, *leaves(fixed.m), *leaves(fixed.v))]
    assert before == [x.tobytes() for x in (w, *leaves(opt.m), *leaves(opt.v))]
    with pytest.raises(ValueError, match=r"params\['w'\] must be writable"):
        fixed.step({"w": w})
    with pytest.raises(ValueError, match=r"params\['w'\] must be writable"):
        fixed.load_state_dict(opt.state_dict())
    assert fixed.t == 1
    assert before == [x.tobytes() for x in (*fixed._arrays, *leaves(fixed.m), *leaves(fixed.v))]
    # The state goes on with memory that can be written to.
    fresh = AdamW({"w": w.copy()}, state_dtype=state_dtype)
    fresh.load_state_dict(fixed.state_dict())
    for _ in range(3):
        gradient = {"w": w.copy()}
        assert [x.step(gradient) for x in (opt, other, fresh)] == [None] * 3
    assert w.tobytes() == other._arrays[0].tobytes() == fresh._arrays[0].tobytes()


def test_a_model_beside_a_pickle_stays_that_of_its_optimizer():
    model = {"w": np.ones(3)}
    other, opt = out_of_band((model, AdamW(model)), bytes)
    assert opt._arrays[0] is other["w"]
    with pytest.raises(ValueError, match=r"params\['w'\] must be writable"):
        opt.step({"w": np.ones(3)})
