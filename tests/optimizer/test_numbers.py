"""Hyper-parameters and options: kept as numbers of Python, and not set where nothing reads them."""

import copy
from collections import UserDict
from fractions import Fraction

import numpy as np
import pytest

from fused_adamw import AdamW, fused_adamw

NUMBERS = {"lr": 0.1, "eps": 1e-6, "weight_decay": 0.2, "max_grad_norm": 3.0, "ema_decay": 0.5}


def flatten(tree):
    """Every value of a state dict but its arrays."""
    if isinstance(tree, dict):
        return [leaf for key, x in tree.items() if key != "state" for leaf in flatten(x)]
    if isinstance(tree, (list, tuple)):
        return [leaf for x in tree for leaf in flatten(x)]
    return [tree]


KINDS = {
    "0-d": np.array,
    "float64": np.float64,
    "Fraction": Fraction,
    "longdouble": np.longdouble,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["construction", "group", "set later", "loaded"])
def test_numbers_are_kept_as_numbers(kind, when):
    given = {name: KINDS[kind](x) for name, x in NUMBERS.items()}
    given["betas"] = [KINDS[kind](0.5), KINDS[kind](0.75)]
    hyper = {name: given[name] for name in ("lr", "eps", "weight_decay", "betas")}
    options = {name: given[name] for name in ("max_grad_norm", "ema_decay")}
    w, start = np.ones(3), {"ema_decay": 0.5}
    if when == "construction":
        opt = AdamW(w, **given)
    elif when == "group":
        opt = AdamW([{"params": w, **hyper}], **options)
    elif when == "set later":
        opt = AdamW(w, **start)
        opt.param_groups[0].update(hyper)
        for name, value in options.items():
            setattr(opt, name, value)
    else:
        opt = AdamW(w, **start)
        saved = opt.state_dict() | options | {"param_groups": [hyper]}
        opt.load_state_dict(saved)
        assert all(type(x) in (float, tuple) for k, x in opt.param_groups[0].items() if k in hyper)
    state = opt.state_dict()
    assert {type(x) for x in flatten(state)} <= {int, float, bool, type(None)}
    assert state["param_groups"][0]["betas"] == (0.5, 0.75)
    for name, value in NUMBERS.items():
        assert float({**state, **state["param_groups"][0]}[name]) == pytest.approx(value, abs=1e-16)
    for x in given.values():  # what the caller does with his arrays does not reach the snapshot
        if isinstance(x, np.ndarray):
            x[...] = 7
    if when != "set later":
        assert opt.state_dict()["param_groups"] == state["param_groups"]


def test_integers_and_schedules_are_kept_as_they_are():
    opt = AdamW([{"params": np.ones(2), "lr": float}], eps=1)
    assert opt.state_dict()["param_groups"][0]["lr"] is float
    assert repr(opt.state_dict()["param_groups"][0]["eps"]) == "1"


def test_a_list_of_betas_is_not_shared_with_a_snapshot():
    opt = AdamW(np.ones(2))
    saved = opt.state_dict()
    saved["param_groups"][0]["betas"] = [0.5, 0.75]
    opt.load_state_dict(saved)
    saved["param_groups"][0]["betas"][0] = 7.0
    assert opt.param_groups[0]["betas"] == (0.5, 0.75)


UNORDERED = [
    {0.999, 0.9},
    frozenset((0.9, 0.999)),
    {0.9: 1, 0.999: 2},
    {0.9: 1, 0.999: 2}.keys(),
    UserDict({0.9: 1, 0.999: 2}),
    iter((0.9, 0.999)),
    (x for x in (0.9, 0.999)),
]


@pytest.mark.parametrize("betas", UNORDERED, ids=lambda x: type(x).__name__)
def test_betas_have_an_order(betas):
    """On every surface; an iterator would also be used up by the first step."""
    w, message = np.ones(2), "betas must be a pair of numbers"
    for make in (lambda: AdamW(w, betas=betas), lambda: AdamW([{"params": w, "betas": betas}])):
        with pytest.raises(TypeError, match=message):
            make()
    with pytest.raises(TypeError, match=message):
        fused_adamw(w, np.ones(2), np.zeros(2), np.zeros(2), 1, betas=betas)
    opt = AdamW(w)
    opt.param_groups[0]["betas"] = betas
    with pytest.raises(TypeError, match=message):
        opt.step(np.ones(2))
    saved = opt.state_dict() | {"t": 5}
    saved["param_groups"][0]["betas"] = betas
    with pytest.raises(TypeError, match=r"\['betas'\] must be a pair of numbers; got \w+$"):
        AdamW(w).load_state_dict(saved)
    assert (w == 1).all()
    assert opt.t == 0


@pytest.mark.parametrize("betas", [[0.5, 0.75], np.array([0.5, 0.75])], ids=["list", "array"])
def test_other_sequences_of_betas(betas):
    a, b = np.ones(2), np.ones(2)
    AdamW(a, betas=betas).step(np.ones(2))
    AdamW(b, betas=(0.5, 0.75)).step(np.ones(2))
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("bad", ["yes", "no", "", 2, 1.0, None, [], np.ones(2)], ids=repr)
def test_a_decay_mask_has_booleans(bad):
    params = {"layers": [{"w": np.ones(2)}], "b": np.ones(2)}
    with pytest.raises(TypeError, match=r"decay_mask\['layers'\]\[0\]\['w'\] must be a bool") as e:
        AdamW(params, decay_mask={"layers": [{"w": bad}], "b": False})
    assert repr(bad) in str(e.value)


@pytest.mark.parametrize("bad", ["no", None, 2, 1.0, np.ones(2)], ids=repr)
def test_a_decay_mask_returns_booleans(bad):
    """None is what a function returns that has forgotten to."""
    params = {"layers": [np.ones(2)]}
    with pytest.raises(TypeError, match=r"^decay_mask\('layers.0', ...\) must be a bool; got "):
        AdamW(params, decay_mask=lambda name, array: bad)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay", "grad_scale"])
def test_integers_beyond_float64(name):
    w, options = np.ones(2), {name: 10**400}
    with pytest.raises(ValueError, match=f"^{name} must be within the range of float64; got a "):
        AdamW(w).step(np.ones(2), **options) if name == "grad_scale" else AdamW(w, **options)
    assert (w == 1).all()


@pytest.mark.parametrize("true", [True, 1, np.True_])
def test_what_is_a_boolean_in_a_decay_mask(true):
    w, b = np.ones(2), np.ones(2)
    AdamW({"w": w, "b": b}, decay_mask={"w": true, "b": not true}).step(
        {"w": np.zeros(2), "b": np.zeros(2)}
    )
    assert (w < 1).all()
    assert (b == 1).all()


@pytest.mark.parametrize("name", ["lr", "betas", "eps", "weight_decay"])
def test_hyperparameters_are_set_in_groups(name):
    opt = AdamW(np.ones(2))
    with pytest.raises(AttributeError, match=rf"param_groups\[0\]\['{name}'\]"):
        setattr(opt, name, 0.1)
    assert not hasattr(opt, name)


@pytest.mark.parametrize("name", ["params", "decay_mask", "state_dtype", "seed", "t", "names"])
def test_what_has_no_effect_after_construction_cannot_be_set(name):
    with pytest.raises(AttributeError):
        setattr(AdamW(np.ones(2)), name, True)


@pytest.mark.parametrize("name", ["maximize", "skip_nonfinite"])
def test_flags_are_booleans_after_construction_too(name):
    opt = AdamW(np.ones(2))
    with pytest.raises(TypeError, match=f"{name} must be a bool; got 'no'"):
        setattr(opt, name, "no")
    assert getattr(opt, name) is False


@pytest.mark.parametrize("operation", ["step", "state_dict", "load_state_dict", "deepcopy"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda g: g.update(momentum=0.9),
            ValueError,
            "must have only the keys params, lr, .*; got 'momentum'",
        ),
        (lambda g: g.update({"learning rate": 1}), ValueError, "weight_decay; got 'learning rate'"),
        (lambda g: g.pop("eps"), ValueError, r"missing \['eps'\]"),
        (lambda g: g.update(foo=g.pop("lr")), ValueError, "weight_decay; got 'foo'"),
        (lambda g: g.clear(), ValueError, "must have the keys params, lr"),
    ],
)
def test_the_keys_of_a_group_are_checked_at_the_next_step(operation, change, error, message):
    opt = AdamW([{"params": np.ones(2)}, {"params": np.ones(2)}])
    saved = opt.state_dict()
    change(opt.param_groups[1])
    operations = {
        "step": lambda: opt.step([np.ones(2), np.ones(2)]),
        "state_dict": opt.state_dict,
        "load_state_dict": lambda: opt.load_state_dict(saved),
        "deepcopy": lambda: copy.deepcopy(opt),
    }
    with pytest.raises(error, match=rf"param_groups\[1\].*{message}"):
        operations[operation]()
    assert opt.t == 0


def test_a_group_is_a_dict():
    opt = AdamW(np.ones(2))
    opt.param_groups[0] = list(opt.param_groups[0].items())
    with pytest.raises(TypeError, match=r"param_groups\[0\] must be a dict; got list"):
        opt.step(np.ones(2))


NO_NUMBERS = {
    "text": np.array("0.5"),
    "str_": np.str_("0.5"),
    "complex": np.array(0.5 + 0j),
    "complex128": np.complex128(0.5),
    "object": np.array(0.5, object),
    "timedelta": np.array(1, "m8[s]"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("name", [*NUMBERS, "betas"])
@pytest.mark.filterwarnings("error")
def test_arrays_of_what_is_no_number(kind, name):
    value = NO_NUMBERS[kind]
    where = "betas\\[0\\]" if name == "betas" else name
    with pytest.raises(TypeError, match=f"^{where} must be a real number; got "):
        AdamW(np.ones(3), **{name: (value, 0.9) if name == "betas" else value})


@pytest.mark.parametrize("value", [True, False, np.False_])
def test_no_bool_switches_averages_off(value):
    match = f"^ema_decay must be a number or None; got {value!r}"
    with pytest.raises(TypeError, match=match):
        AdamW(np.ones(3), ema_decay=value)
    opt = AdamW(np.ones(3), ema_decay=0.9)
    opt.ema_decay = value
    with pytest.raises(TypeError, match=match):
        opt.step(np.ones(3))
    saved = AdamW(np.ones(3), ema_decay=0.9).state_dict() | {"ema_decay": value}
    with pytest.raises(TypeError, match="must be a number or None"):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array])
def test_integers_of_numpy_in_a_state_dict(kind):
    """They are kept as integers of Python: 255 + 1 is no uint8."""
    opt, other = AdamW(np.ones(3)), AdamW(np.ones(3))
    saved = opt.state_dict()
    saved |= {"t": kind(255), "maximize": kind(1), "skip_nonfinite": kind(0)}
    saved["state"]["params"]["step"] = kind(255)
    other.load_state_dict(saved)
    other.step(np.ones(3))
    found = other.state_dict()
    assert (found["t"], found["state"]["params"]["step"]) == (256, 256)
    assert (other.maximize, other.skip_nonfinite) == (True, False)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float64(1), "1", None])
def test_what_is_no_integer_in_a_state_dict(value):
    opt = AdamW(np.ones(3))
    with pytest.raises(TypeError, match=r"^state_dict\['t'\] must be an integer; got "):
        opt.load_state_dict(opt.state_dict() | {"t": value})
    saved = opt.state_dict()
    saved["state"]["params"]["step"] = value
    with pytest.raises(TypeError, match=r"\['step'\] must be an integer; got "):
        opt.load_state_dict(saved)
