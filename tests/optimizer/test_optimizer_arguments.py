"""``AdamW``: structures, arguments; a bad one is named, and changes nothing."""

import math

import numpy as np
import pytest
from optimizers import (
    EVERYTHING,
    HYPER,
    OTHER,
    SHAPES,
    Twins,
    draw,
    group_grads,
    group_params,
    grouped_optimizer,
    leaves,
    snapshot,
    steps_of,
)
from processes import run_python

from fused_adamw import AdamW

# ---- structures


PLAIN = {
    "sequence": list,
    "tuple": tuple,
    "mapping": lambda a: dict(zip("wbsev", a, strict=True)),
    "dicts in a list": lambda a: [{"w": a[0], "b": a[1]}, {"w": a[2], "b": a[3]}, a[4]],
    "Flax": lambda a: {
        "layers": [{"attention": {"q": a[0], "k": a[1]}}, {"mlp": (a[2], a[3])}],
        "head": {"kernel": a[4]},
    },
}
GROUPED = {
    "mappings": lambda a: [{"w": a[0], "b": a[1]}, {"w": a[2], "b": a[3], "e": a[4]}],
    "sequences": lambda a: [list(a[:2]), tuple(a[2:])],
    "arrays": list,
    "mixed": lambda a: ({0: a[0]}, [a[1], a[2]], a[3], {"w": a[4]}),
    "nested": lambda a: [{"x": [a[0], {"y": a[1]}]}, [(a[2],), {"z": [[a[3]], a[4]]}]],
}


@pytest.mark.parametrize("name", [*PLAIN, *GROUPED])
@pytest.mark.parametrize("absent", [{}, {1}, {0, 2, 4}, {0, 1, 2, 3, 4}], ids=str)
def test_structures_and_missing_gradients(name, absent):
    """A tensor without a gradient is left alone, and its bias correction with it."""
    arrange = PLAIN.get(name) or GROUPED[name]
    dtypes = [np.float32, np.float64, np.float64, np.float32, np.float64]
    arrays = [p.astype(dtype) for p, dtype in zip(draw(SHAPES), dtypes, strict=True)]
    params = arrange(arrays)
    hypers = [HYPER] * 5
    if name in GROUPED:
        sizes = [len(leaves([x])) for x in params]
        hypers = [OTHER if g else HYPER for g, n in enumerate(sizes) for _ in range(n)]
        params = group_params(params)
    opt, twins = AdamW(params, **HYPER), Twins(arrays)
    for t in range(1, 6):
        drawn = [g.astype(dtype) for g, dtype in zip(draw(SHAPES, seed=t), dtypes, strict=True)]
        grads = [None if t > 1 and i in absent else g for i, g in enumerate(drawn)]
        opt.step(arrange(grads))
        twins.step(grads, hypers)
    twins.assert_equal(opt)
    assert opt.t == 5
    assert [m.shape for m in leaves(opt.m)] == SHAPES


def test_one_array():
    (p,), (g,) = draw([(3, 2)]), draw([(3, 2)], seed=1)
    opt, twins = AdamW(p, **HYPER), Twins([p])
    opt.step(None)
    opt.step(g)
    twins.step([g], HYPER)
    twins.assert_equal(opt)
    assert (opt.t, steps_of(opt), opt.names) == (2, [1], ["params"])


def test_keys_in_another_order():
    arrays, grads = draw([2, 2]), draw([2, 2], seed=1)
    opt, twins = AdamW({"a": arrays[0], "b": arrays[1]}, **HYPER), Twins(arrays)
    opt.step({"b": grads[1], "a": grads[0]})
    twins.step(grads, HYPER)
    twins.assert_equal(opt)


BAD_GRADS = {
    "missing key": (lambda g, p: [g[0], {}], ValueError, ["grads[1]", "missing keys ['w']"]),
    "extra key": (lambda g, p: [g[0], g[1] | {"x": 1}], ValueError, ["grads[1]", "['x']"]),
    "another key": (lambda g, p: [{"w": 1, "c": 1}, g[1]], ValueError, ["grads[0]", "'b'", "'c'"]),
    "too few groups": (lambda g, p: g[:1], ValueError, ["grads must have length 2", "got 1"]),
    "too many groups": (
        lambda g, p: [*g, g[1]],
        ValueError,
        ["grads must have length 2", "got 3"],
    ),
    "no groups": (lambda g, p: g[0], TypeError, ["grads must be a sequence", "got dict"]),
    "a list": (lambda g, p: [[1, 2], g[1]], TypeError, ["grads[0]", "list"]),
    "no group": (lambda g, p: [g[0], None], TypeError, ["grads[1]", "NoneType"]),
    "nothing": (lambda g, p: None, TypeError, ["grads", "NoneType"]),
    "shape": (lambda g, p: [g[0], {"w": np.ones(4)}], ValueError, ["grads[1]['w']", "(4,)"]),
    "dtype": (
        lambda g, p: [g[0], {"w": np.ones(5, np.float32)}],
        TypeError,
        ["grads[1]['w']", "float32", "float64"],
    ),
    "no array": (lambda g, p: [g[0], {"w": "text"}], TypeError, ["grads[1]['w']", "str"]),
    "shared": (lambda g, p: [g[0], {"w": p}], ValueError, ["grads[1]['w']", "share memory"]),
}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("case", BAD_GRADS)
def test_bad_gradients_are_named_and_nothing_changes(case, options):
    change, error, words = BAD_GRADS[case]
    opt = grouped_optimizer(**options)
    before = snapshot(opt)
    grads = group_grads(draw([(4, 3), (3,), (5,)]))
    with pytest.raises(error) as caught:
        opt.step(change(grads, opt.param_groups[1]["params"]["w"]))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert snapshot(opt) == before


def raising(t):
    raise OSError("rate unknown")


@pytest.mark.parametrize(
    ("where", "name", "value", "error"),
    [
        ("step", "grad_scale", "1", TypeError),
        ("step", "grad_scale", math.inf, ValueError),
        ("step", "grad_scale", 1e39, ValueError),  # too large for float32
        ("group", "lr", -1.0, ValueError),
        ("group", "lr", lambda t: math.nan, ValueError),
        ("group", "lr", raising, OSError),
        ("group", "betas", (0.9, 1.0), ValueError),
        ("group", "eps", None, TypeError),
        ("group", "weight_decay", -0.1, ValueError),
        ("option", "max_grad_norm", 0.0, ValueError),
        ("option", "max_grad_norm", True, TypeError),
        ("option", "num_threads", 0, ValueError),
        ("option", "ema_decay", 0.9, ValueError),  # without averages from the start
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_a_bad_number_changes_nothing(where, name, value, error, missing):
    """Nor where the group that has it has no gradients."""
    opt = grouped_optimizer()
    *first, last = draw([(4, 3), (3,), (5,)])
    grads = group_grads([*first, None if missing else last])
    if where == "group":
        opt.param_groups[1][name] = value
    elif where == "option":
        setattr(opt, name, value)
    before = snapshot(opt)
    with pytest.raises(error, match="rate unknown" if error is OSError else name):
        opt.step(grads, **{name: value} if where == "step" else {})
    assert snapshot(opt) == before


# ---- the constructor

vector, matrix, memory = np.ones(3), np.ones((2, 2)), np.ones(4)
BAD_ARGUMENTS = [
    ([], {}, ValueError, ["params must contain", "got none"]),
    ([{"params": []}], {}, ValueError, ["params must contain", "got none"]),
    ([[], {}, ()], {}, ValueError, ["params must contain", "got none"]),
    ("text", {}, TypeError, ["params", "str"]),
    (iter([vector]), {}, TypeError, ["params", "iterator"]),
    ([vector, 1.0], {}, TypeError, ["params[1]", "float"]),
    ([vector, np.ones(2, int)], {}, TypeError, ["params[1]", "int64"]),
    ([vector[::2]], {}, ValueError, ["params[0] must be contiguous", "strides (16,)"]),
    (
        [{"params": vector}, matrix],
        {},
        TypeError,
        ["params must be all parameter groups or all arrays; got both"],
    ),
    ([{"params": vector}, {"lr": 1.0}], {}, TypeError, ["all parameter groups", "got both"]),
    (
        [{"param": vector, "lr": 1.0}],
        {},
        TypeError,
        ["params[0] must have the key 'params', as parameter groups have; got 'lr' without it"],
    ),
    ([vector, {"eps": abs}], {}, TypeError, ["params[1] must have the key 'params'", "got 'eps'"]),
    ([{"betas": 1.0}], {}, TypeError, ["params[0] must have the key 'params'", "got 'betas'"]),
    ([{"lr": "fast"}], {}, TypeError, ["params[0]['lr'] must be", "got str"]),
    (
        {"b": np.float64(0)},
        {},
        TypeError,
        ["params['b'] must be an array; got a scalar of float64: pass np.array(value)"],
    ),
    (
        [{"params": vector, "momentum": 0.9}],
        {},
        ValueError,
        ["params[0] must have only the keys params, lr, betas, eps, weight_decay; got 'momentum'"],
    ),
    ([{"params": vector}, {"params": matrix, "lr": -1}], {}, ValueError, ["lr", "got -1"]),
    (
        [{"params": {"w": memory}}, {"params": [memory[3:]]}],
        {},
        ValueError,
        ["params[0]['w']", "params[1][0]", "share memory"],
    ),
    (vector, {"lr": -1e-9}, ValueError, ["lr"]),
    (vector, {"lr": "fast"}, TypeError, ["lr"]),
    (vector, {"lr": lambda t: -t}, ValueError, ["lr", "got -1"]),
    (vector, {"betas": 0.9}, TypeError, ["betas"]),
    (vector, {"betas": (0.9, 1.0)}, ValueError, ["betas[1]"]),
    (vector, {"eps": math.nan}, ValueError, ["eps"]),
    (vector, {"weight_decay": math.inf}, ValueError, ["weight_decay"]),
    (vector, {"max_grad_norm": 0}, ValueError, ["max_grad_norm"]),
    (vector, {"max_grad_norm": -1.0}, ValueError, ["max_grad_norm"]),
    (vector, {"max_grad_norm": "1"}, TypeError, ["max_grad_norm"]),
    (vector, {"max_grad_norm": True}, TypeError, ["max_grad_norm must be a number or None"]),
    (vector, {"state_dtype": "float64"}, ValueError, ["state_dtype", "float64"]),
    (vector, {"num_threads": 0}, ValueError, ["num_threads"]),
    (vector, {"num_threads": True}, TypeError, ["num_threads must be an integer; got True"]),
    (vector, {"seed": False}, TypeError, ["seed must be an integer; got False"]),
    (vector, {"maximize": "no"}, TypeError, ["maximize must be a bool; got 'no'"]),
    (vector, {"ema_decay": 1.0}, ValueError, ["ema_decay", "got 1.0"]),
    (vector, {"ema_decay": -0.5}, ValueError, ["ema_decay", "got -0.5"]),
    (vector, {"ema_decay": "1"}, TypeError, ["ema_decay"]),
    (np.ones(3, np.float32), {"ema_decay": 1 - 1e-9}, ValueError, ["ema_decay"]),
    ({"a": [{"b": vector[::2]}]}, {}, ValueError, ["params['a'][0]['b'] must be contiguous"]),
    ({"a": [{"b": 1.0}]}, {}, TypeError, ["params['a'][0]['b'] must be", "got float"]),
    (
        {"a": {"b": vector}, "a.b": matrix},
        {},
        ValueError,
        ["params must have unique names; got duplicates", "'a.b'"],
    ),
    ({"w": vector}, {"decay_mask": {"b": True}}, ValueError, ["decay_mask", "['w']", "['b']"]),
    (
        [vector, matrix],
        {"decay_mask": [True]},
        ValueError,
        ["decay_mask must have length 2", "got 1"],
    ),
    ({1: vector, "1": matrix}, {}, ValueError, ["params", "'1'"]),  # one name for two tensors
]


@pytest.mark.parametrize(("params", "options", "error", "words"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(params, options, error, words):
    with pytest.raises(error) as caught:
        AdamW(params, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["clear", "pop", "append"])
def test_groups_can_be_neither_added_nor_removed(change):
    """In a process of its own: the core must not look for the numbers of a group that is gone."""
    code = (
        "import numpy as np; from fused_adamw import AdamW\n"
        "opt = AdamW([{'params': np.ones(2)}, {'params': np.ones(2)}])\n"
        f"opt.param_groups.{change}(" + ("{**opt.param_groups[0]}" if change == "append" else "")
    )
    printed = run_python(
        code + ")\ntry: opt.step([np.ones(2), np.ones(2)])\n"
        "except ValueError as error: print(error, opt.t)"
    )
    assert "param_groups" in printed.stdout, printed
    assert printed.stdout.strip().endswith(" 0")
