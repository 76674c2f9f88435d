"""The table of options: what constructors, state dicts, ``repr`` and attributes derive from it."""

import inspect

import numpy as np
import pytest
from optimizers import EVERYTHING, HYPER, Twins, draw, grouped_optimizer, snapshot

from fused_adamw import AdamW
from fused_adamw._optim.options import HYPERPARAMETERS, OPTIONS


def defaults_of(kind):
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_the_constructor_of_adamw_has_every_option_with_its_default():
    expected = {name: option.default for name, option in OPTIONS.items()}
    found = defaults_of(AdamW)
    assert expected.items() <= found.items()
    assert set(found) - set(expected) == {*HYPERPARAMETERS, "decay_mask"}


def test_the_constructor_of_sharded_adamw_has_the_same():
    pytest.importorskip("mpi4py")
    from fused_adamw.sharded import ShardedAdamW

    alone, sharded = defaults_of(AdamW), defaults_of(ShardedAdamW)
    assert alone.items() - sharded.items() == {("master_weights", False)}
    assert set(sharded) - set(alone) == {"comm", "bucket_bytes"}


def test_state_dicts_contain_the_saved_options():
    saved = {name for name, option in OPTIONS.items() if option.saved}
    assert set(grouped_optimizer().state_dict()) == {"t", "param_groups", "state", *saved}
    numbers = grouped_optimizer(**EVERYTHING).state_numbers()
    assert {name: numbers[name] for name in saved & set(EVERYTHING)} == {
        name: value for name, value in EVERYTHING.items() if name in saved
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_fixed_options_cannot_be_changed(name):
    opt = AdamW(np.ones(3))
    if OPTIONS[name].fixed:
        with pytest.raises(AttributeError, match=f"{name} cannot be changed after construction"):
            setattr(opt, name, OPTIONS[name].default)
    else:
        setattr(opt, name, OPTIONS[name].default)
    assert getattr(opt, name) == OPTIONS[name].default


def test_repr_shows_options_that_are_not_the_default():
    assert repr(AdamW(np.ones(3))).startswith("AdamW(1 tensors, 3 parameters, t=0\n")
    text = repr(AdamW(np.ones(3, np.float32), **EVERYTHING, seed=4))
    for name, value in {**EVERYTHING, "seed": 4}.items():
        assert f", {name}={value!r}" in text


# ---- ema_decay


@pytest.mark.parametrize(("before", "after"), [(None, 0.9), (0.9, None)])
def test_averages_neither_come_nor_go(before, after):
    opt = grouped_optimizer(ema_decay=before)
    opt.ema_decay = after
    kept = snapshot(opt)
    expected = "None" if before is None else "a number"
    with pytest.raises(ValueError, match=f"ema_decay must be {expected}, as at construction"):
        opt.step([{"w": None, "b": None}, {"w": None}])
    assert snapshot(opt) == kept


@pytest.mark.parametrize("value", [1.0, -0.1, np.nan, 1 - 1e-9])
def test_a_bad_decay_changes_nothing(value):
    opt = AdamW(np.ones(3, np.float32), ema_decay=0.5)
    opt.ema_decay = value
    before = snapshot(opt)
    with pytest.raises(ValueError, match="ema_decay"):
        opt.step(np.ones(3, np.float32))
    assert snapshot(opt)[-1] == before[-1]
    assert opt.t == 0


def test_the_average_starts_as_the_parameters(dtype):
    params = draw([(3, 2), (4,)], dtype)
    opt, twins = AdamW(params, **HYPER, ema_decay=0.9), Twins(params, ema_decay=0.9)
    twins.assert_equal(opt)
    assert not any(map(np.shares_memory, opt.ema, params))
    grads = [draw([(3, 2)], dtype, seed=1)[0], None]
    for ema_decay in (0.9, 0.0, 0.5):
        opt.ema_decay = twins.ema_decay = ema_decay
        opt.step(grads)
        twins.step(grads, HYPER)
        twins.assert_equal(opt)
        if ema_decay == 0:
            np.testing.assert_array_equal(opt.ema[0], params[0])
