"""The table of options: what constructors, state dicts, ``repr`` and attributes derive from it."""

import inspect

import numpy as np
import pytest
from optimizers import EVERYTHING, HYPER, Twins, draw, grouped_optimizer, snapshot

from fused_adamw import AdamW
from fused_adamw._core import optional_buffers
from fused_adamw._optim.options import HYPERPARAMETERS, OPTIONS, rates_of, roles_of


def defaults_of(kind):
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_the_constructor_of_adamw_has_every_option_with_its_default():
    expected = {name: option.default for name, option in OPTIONS.items()}
    found = defaults_of(AdamW)
    assert expected.items() <= found.items()
    assert set(found) - set(expected) == {*HYPERPARAMETERS, "decay_mask", "allocate"}


def test_the_constructor_of_sharded_adamw_has_the_same():
    pytest.importorskip("mpi4py")
    from fused_adamw.sharded import ShardedAdamW

    alone, sharded = defaults_of(AdamW), defaults_of(ShardedAdamW)
    assert alone.items() <= sharded.items()
    assert set(sharded) - set(alone) == {"comm", "bucket_bytes"}


def test_state_dicts_contain_the_saved_options():
    saved = {name for name, option in OPTIONS.items() if option.saved}
    assert set(grouped_optimizer().state_dict()) == {"t", "param_groups", "state", *saved}
    numbers = grouped_optimizer(**EVERYTHING)._state_numbers()
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


def test_options_are_kept_as_they_are_given():
    given = {**EVERYTHING, "seed": np.int64(4), "num_threads": np.int64(2)}
    opt = AdamW(np.ones(3, np.float32), **given)
    assert {name: getattr(opt, name) for name in given} == given
    assert {type(opt.seed), type(opt.num_threads)} == {int}
    opt.num_threads = 3
    assert opt.num_threads == 3


def test_repr_shows_options_that_are_not_the_default():
    assert repr(AdamW(np.ones(3))).startswith("AdamW(1 tensor, 3 parameters, t=0\n")
    text = repr(AdamW(np.ones(3, np.float32), **EVERYTHING, seed=4))
    for name, value in {**EVERYTHING, "seed": 4}.items():
        assert f", {name}={value!r}" in text


@pytest.mark.parametrize(
    ("groups", "error", "shown"),
    [
        (None, TypeError, "param_groups=None"),
        (5, TypeError, "param_groups=5"),
        ({}, TypeError, "param_groups={}"),
        ([1], TypeError, "group 0: 1"),
        ([{"lr": 0.5}], ValueError, "group 0: lr=0.5"),
    ],
)
def test_groups_that_are_none(groups, error, shown):
    opt = AdamW(np.ones(3))
    opt.param_groups = groups
    assert shown in repr(opt)
    for call in (lambda: opt.step(np.ones(3)), opt.state_dict):
        with pytest.raises(error, match=r"^param_groups.* must "):
            call()


def test_one_of_each():
    assert "1 tensor, 1 parameter, t=0" in repr(AdamW(np.ones(1)))
    opt = AdamW([np.ones(1)])
    with pytest.raises(ValueError, match="grads must have length 1, like params; got 2"):
        opt.step([np.ones(1), np.ones(1)])
    opt.param_groups = []
    with pytest.raises(ValueError, match="must have length 1, as at construction; got 0"):
        opt.step([np.ones(1)])


# ---- options with a buffer


def test_every_optional_buffer_belongs_to_an_option():
    assert [(row.name, row.option) for row in optional_buffers()] == [
        ("v_max", "amsgrad"),
        ("ema", "ema_decay"),
    ]
    assert {row.option for row in optional_buffers()} <= set(OPTIONS)


@pytest.mark.parametrize(
    ("values", "roles", "rates"),
    [
        ({}, (), (None, None)),
        ({"amsgrad": False, "ema_decay": None, "master_weights": False}, (), (None, None)),
        ({"amsgrad": 0, "ema_decay": 0}, ("ema",), (None, 0)),
        ({"amsgrad": np.True_, "ema_decay": 0.0}, ("v_max", "ema"), (None, 0.0)),
        ({"amsgrad": 1, "master_weights": True}, ("v_max", "master"), (None, None)),
    ],
)
def test_flags_that_are_set_and_rates_that_are_given_need_a_buffer(values, roles, rates):
    """A rate of 0 is one; None is not."""
    assert roles_of(values) == roles
    assert rates_of(values) == rates


BAD_DECAYS = [
    (1.0, ValueError, "at least 0 and less than 1; got 1.0"),
    (np.nan, ValueError, "at least 0 and less than 1; got nan"),
    ("0.5", TypeError, r"a real number; got '0.5' \(str\)"),
    (np.array([0.5, 0.6]), TypeError, r"a real number; got array\(\[0.5, 0.6\]\) \(ndarray\)"),
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_DECAYS)
def test_every_class_refuses_a_decay_with_the_same_words(value, error, message):
    torch = pytest.importorskip("torch", minversion="2.10")
    from fused_adamw.torch import AdamW as TorchAdamW

    with pytest.raises(error, match=f"^ema_decay must be {message}$"):
        AdamW(np.ones(3), ema_decay=value)
    with pytest.raises(error, match=f"^ema_decay must be {message}$"):
        TorchAdamW([torch.nn.Parameter(torch.ones(3))], ema_decay=value)


@pytest.mark.parametrize(("value", "error", "message"), BAD_DECAYS)
def test_a_bad_decay_of_a_state_dict_is_named_as_there(value, error, message):
    opt = AdamW(np.ones(3), ema_decay=0.5)
    saved = opt.state_dict() | {"ema_decay": value}
    before = snapshot(opt)
    with pytest.raises(error, match=rf"^state_dict\['ema_decay'\] must be {message}$"):
        opt.load_state_dict(saved)
    assert snapshot(opt) == before


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
