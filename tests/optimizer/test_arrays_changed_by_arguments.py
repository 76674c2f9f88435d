"""Code that an argument runs, such as __float__ or __getitem__, and that changes arrays: they are
checked after it, before anything is written."""

from collections.abc import Mapping

import numpy as np
import pytest

from fused_adamw import AdamW, fused_adamw
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

SIZE = 1000


class Number:
    """A number that runs code where it is converted."""

    def __init__(self, value, change):
        self.value, self.change = value, change

    def __float__(self):
        self.change()
        return self.value


class Gradients(Mapping):
    """Gradients that are computed where they are asked for."""

    def __init__(self, arrays, change):
        self.arrays, self.change = arrays, change

    def __getitem__(self, key):
        self.change()
        return self.arrays[key]

    def __iter__(self):
        return iter(self.arrays)

    def __len__(self):
        return len(self.arrays)


def step_with_a_rate(opt, grads, change):
    opt.param_groups[0]["lr"] = Number(0.1, change)
    opt.step(grads)


def step_with_a_schedule(opt, grads, change):
    opt.param_groups[0]["eps"] = lambda t: change() or 1e-8
    opt.step(grads)


def step_with_a_norm(opt, grads, change):
    opt.max_grad_norm = Number(1.0, change)
    opt.step(grads)


STEPS = {
    "gradients": lambda opt, grads, change: opt.step(Gradients(grads, change)),
    "grad_scale": lambda opt, grads, change: opt.step(grads, Number(0.5, change)),
    "lr": step_with_a_rate,
    "schedule": step_with_a_schedule,
    "max_grad_norm": step_with_a_norm,
}
CHANGES = {
    "must be writable": lambda w: w.setflags(write=False),
    "must keep the memory of 1000": lambda w: w.resize(3, refcheck=False),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("message", CHANGES)
def test_steps(name, message):
    b, w = np.ones(SIZE), np.ones(SIZE)
    opt = AdamW({"b": b, "w": w}, ema_decay=0.5)
    grads = {"b": np.full(SIZE, 2.0), "w": np.full(SIZE, 2.0)}
    opt.step(grads)
    before, state, kept = b.tobytes(), repr(opt._state), []

    def change():
        CHANGES[message](w)
        kept.extend(np.zeros(SIZE) for _ in range(20))  # where the memory was

    with pytest.raises(ValueError, match=rf"^params\['w'\] {message}"):
        STEPS[name](opt, grads, change)
    assert (opt.t, b.tobytes(), repr(opt._state)) == (1, before, state)
    assert not any(array.any() for array in kept)


@pytest.mark.parametrize("which", ["params", "m", "v"])
@pytest.mark.parametrize("argument", ["lr", "betas", "grads"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=["read-only", "resized"])
def test_the_function(change, argument, which):
    arrays = {name: [np.ones(SIZE), np.ones(SIZE)] for name in ("params", "m", "v")}
    kept = []

    def change_one():
        change(arrays[which][1])
        kept.extend(np.zeros(SIZE) for _ in range(20))  # where the memory was

    grads, given = [np.ones(SIZE)] * 2, {"t": 1}
    if argument == "grads":
        arrays = {name: dict(enumerate(x)) for name, x in arrays.items()}
        grads = Gradients(dict(enumerate(grads)), change_one)
    else:
        number = Number(0.5, change_one)
        given[argument] = number if argument == "lr" else (number, 0.9)
    with pytest.raises(ValueError, match=rf"^{which}\[1\] must be writable and keep its memory"):
        fused_adamw(grads=grads, **arrays, **given)
    for found in arrays.values():
        assert all((found[i] == 1).all() for i in (0, 1))
    assert not any(array.any() for array in kept)


def shape_changed(w):
    w.shape = (2, SIZE // 2)


class FilePath:
    def __init__(self, path, change):
        self.path, self.change = path, change

    def __fspath__(self):
        self.change()
        return str(self.path)


class Extra(Gradients):
    """Of ``save_checkpoint``."""


SAVES = {
    "path": lambda opt, path, change: save_checkpoint(FilePath(path, change), opt),
    "extra": lambda opt, path, change: save_checkpoint(path, opt, extra=Extra({"a": 1}, change)),
    "arrays": lambda opt, path, change: save_checkpoint(
        path, opt, arrays=Extra({"a": np.zeros(2)}, change)
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of later versions of NumPy
@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize("change", [CHANGES["must keep the memory of 1000"], shape_changed])
def test_saves(name, change, tmp_path):
    """No optimizer could load the file, which would replace one that can be loaded."""
    path, w = tmp_path / "x", np.ones(SIZE)
    opt = AdamW({"w": w})
    save_checkpoint(path, opt)
    with pytest.raises(ValueError, match=r"^params\['w'\] must (have|keep) "):
        SAVES[name](opt, path, lambda: change(w))
    load_checkpoint(path, AdamW({"w": np.ones(SIZE)}))
