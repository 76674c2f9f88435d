"""Code of the user that an operation of ``AdamW`` calls, and that uses the same optimizer."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from garbage import collect_after

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, read_step, save_checkpoint

BETWEEN = r"^{} must be called between other operations of the optimizer; got a call during {}$"
GRADS = [np.full(5, 0.5)] * 3


def made(**options):
    options = {"lr": lambda t: 0.1**t, **options}
    return AdamW([np.ones(5) for _ in range(3)], **options)


def contents(opt):
    return repr((opt.state_dict(), opt._arrays))


class Once:
    """What calls a function at its first use, as some object that an operation is given."""

    def __init__(self, call, value):
        self.call, self.value = call, value

    def use(self):
        call, self.call = self.call, lambda: None
        call()
        return self.value

    def __float__(self):
        return float(self.use())

    def __index__(self):
        return int(self.use())


class Lazy(Sequence):
    """A container that calls a function at the first access to an item."""

    def __init__(self, call, items):
        self.once = Once(call, items)

    def __len__(self):
        return len(self.once.value)

    def __getitem__(self, k):
        return self.once.use()[k]


class Masquerade(np.ndarray):
    """An array whose class is asked for, which calls a function."""

    once = None

    @property
    def __class__(self):
        return np.ndarray if self.once is None else self.once.use()


def masquerading(call):
    array = GRADS[1].copy().view(Masquerade)
    array.once = Once(call, np.ndarray)
    return array


def set_group(opt, **numbers):
    opt.param_groups[0].update(numbers)
    opt.step(GRADS)


STEPS = {
    "a schedule": lambda opt, call: set_group(opt, lr=lambda t: Once(call, 0.1).use()),
    "betas": lambda opt, call: set_group(opt, betas=(Once(call, 0.9), 0.99)),
    "weight_decay": lambda opt, call: set_group(opt, weight_decay=Once(call, 0.1)),
    "a container": lambda opt, call: opt.step(Lazy(call, GRADS)),
    "grad_scale": lambda opt, call: opt.step(GRADS, Once(call, 1)),
    "a gradient": lambda opt, call: opt.step([GRADS[0], masquerading(call), GRADS[2]]),
}


@pytest.mark.parametrize("name", STEPS)
def test_code_within_a_step_must_not_change_the_optimizer(name):
    """It would count a step between two tensors of one, whose rate is of the step before."""
    opt = made()
    saved = opt.state_dict()
    opt.step(GRADS)
    changes = {
        "step": lambda: opt.step(GRADS),
        "load_state_dict": lambda: opt.load_state_dict(saved),
    }
    for operation, call in changes.items():
        before = [p.copy() for p in opt._arrays]
        with pytest.raises(RuntimeError, match=BETWEEN.format(operation, "step")):
            STEPS[name](opt, call)
        np.testing.assert_array_equal(opt._arrays, before)
        assert opt._bound.get_steps() == [1, 1, 1]


def test_code_within_a_step_may_read_the_optimizer(tmp_path):
    opt, found = made(), []

    def read():
        found.append(opt.state_dict()["t"])
        save_checkpoint(tmp_path / "x", opt)
        found.append(read_step(tmp_path / "x"))

    opt.step(Lazy(read, GRADS))
    assert found == [0, 0]
    assert opt.t == 1


def test_finalizers_within_a_step_must_not_change_the_optimizer(monkeypatch):
    """Garbage is collected at any moment."""
    refused = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: refused.append(found.exc_type))
    expected = [made() for _ in range(3)]
    for steps, opt in enumerate(expected):
        for _ in range(steps):
            opt.step(GRADS)
    for allocations in range(1, 12):
        opt, ran = made(), []

        class Stepping:
            def __del__(self, opt=opt, ran=ran):
                ran.append(1)
                opt.step(GRADS)

        collect_after(allocations, Stepping, lambda opt=opt: opt.step(GRADS))
        assert ran
        np.testing.assert_array_equal(opt._arrays, expected[opt.t]._arrays)
    assert set(refused) == {RuntimeError}


def test_groups_that_code_within_a_step_adds_are_refused():
    a, b = np.ones(5), np.ones(5)
    params = Lazy(lambda: None, [a])
    opt = AdamW([{"params": params}, {"params": [b]}])
    grads = [[GRADS[0]], [GRADS[0]]]
    params.once.call = lambda: opt.param_groups.extend([{**opt.param_groups[0]}] * 50)
    with pytest.raises(ValueError, match="param_groups must have length 2"):
        opt.step(grads)
    del opt.param_groups[2:]
    opt.step(grads)
    assert opt.t == 1


def test_a_list_of_groups_is_what_it_yields():
    class Longer(list):
        def __iter__(self):
            return iter(list(super().__iter__()) * 50)

    opt = made()
    opt.param_groups = Longer(opt.param_groups)
    with pytest.raises(ValueError, match=r"^param_groups must have length 1, .*; got 50$"):
        opt.step(GRADS)


class Failing(dict):
    """Fails at an access, as a mapping that reads a file may. Accesses of all are counted."""

    accesses, last = 0, 0

    def __getitem__(self, key):
        Failing.accesses += 1
        if Failing.accesses == Failing.last:
            raise OSError
        return super().__getitem__(key)


def failing(saved):
    if isinstance(saved, Mapping):
        return Failing({key: failing(x) for key, x in saved.items()})
    return [failing(x) for x in saved] if isinstance(saved, list) else saved


def test_a_state_dict_that_fails_changes_nothing():
    def grouped(lr):
        groups = [{"params": [np.ones(5)], "lr": lr * k} for k in (1, 2)]
        return AdamW(groups, ema_decay=lr)

    grads = [GRADS[:1], GRADS[:1]]
    other, opt = grouped(0.2), grouped(0.1)
    other.step(grads)
    saved, before = failing(other.state_dict()), contents(opt)
    for last in range(1, 1000):
        Failing.accesses, Failing.last = 0, last
        try:
            opt.load_state_dict(saved)
        except OSError:
            assert contents(opt) == before
        else:
            break
    assert last > 20
    assert repr(opt.state_dict()) == repr(other.state_dict())


CHANGES = {
    "t": lambda opt, saved: saved.update(t="none"),
    "lr": lambda opt, saved: saved["param_groups"][0].update(lr=-1.0),
    "steps": lambda opt, saved: saved["state"]["0"].update(step=-1),
    "groups": lambda opt, saved: opt.param_groups.append(opt.param_groups[0]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_shows_a_warning_changes_no_load(name, tmp_path, monkeypatch):
    other, opt = (
        AdamW([np.ones(5, np.float32)], lr=lr, state_dtype=dtype)
        for lr, dtype in ((0.2, None), (0.1, "bfloat16"))
    )
    other.step([np.ones(5, np.float32)])
    save_checkpoint(tmp_path / "x", other)
    saved = other.state_dict()
    monkeypatch.setattr(warnings, "showwarning", lambda *args, **names: CHANGES[name](opt, saved))
    for load in (lambda: opt.load_state_dict(saved), lambda: load_checkpoint(tmp_path / "x", opt)):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            if name == "groups":
                with pytest.raises(ValueError, match="param_groups must have length 1"):
                    load()
                del opt.param_groups[1:]
                assert (opt.t, opt.param_groups[0]["lr"]) == (0, 0.1)
            else:
                load()
                assert (opt.t, opt.param_groups[0]["lr"]) == (1, 0.2)
                assert opt._bound.get_steps() == [1]
                break


def test_a_save_is_of_one_step(tmp_path):
    opt = made()
    opt.step(GRADS)

    class Schedule:
        def __call__(self, t):
            return 0.1

        def __repr__(self):
            opt.step(GRADS)
            return "Schedule()"

    opt.param_groups[0]["lr"] = Schedule()
    with pytest.raises(RuntimeError, match=BETWEEN.format("step", "save_checkpoint")):
        save_checkpoint(tmp_path / "x", opt)
    assert opt.t == 1


def test_what_a_save_calls_must_not_change_the_parameters(tmp_path):
    """No optimizer could load the file, which would replace one that can be loaded."""
    opt, path = made(), tmp_path / "x"
    save_checkpoint(path, opt)
    before = path.read_bytes()

    class Reshaping:
        def __array__(self, dtype=None, copy=None):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy deprecates it
                opt.param_groups[0]["params"][0].shape = (5, 1)
            return np.zeros(3)

    with pytest.raises(ValueError, match=r"^params\[0\] must have the shape \(5,\), as at"):
        save_checkpoint(path, opt, arrays={"extra": Reshaping()})
    assert path.read_bytes() == before
