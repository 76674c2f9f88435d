"""Nested arguments: sequences and mappings of arrays in one another, in any depth."""

import collections
import types

import numpy as np
import pytest

from fused_adamw import fused_adamw
from fused_adamw._core import TreeSpec

SHAPES = [(3,), (2, 2), (5,), (), (4,), (1, 2)]
ROLES = ["params", "grads", "m", "v"]


def nested(a, b, c, d, e, f):
    """Every kind of container in another, in three levels."""
    return {"layers": [{"w": a, "b": b}, (c,)], "head": {"out": [d, {"scale": e}]}, "x": f}


@pytest.fixture
def columns(tensor):
    many = [tensor(shape, np.float32, seed) for seed, shape in enumerate(SHAPES)]
    return [list(column) for column in zip(*(x.arrays for x in many), strict=True)]


def test_a_nested_call_is_a_flat_one(columns):
    flat = [[array.copy() for array in column] for column in columns]
    fused_adamw(*flat, 2)
    fused_adamw(*(nested(*column) for column in columns), 2)
    for ours, expected in zip(columns, flat, strict=True):
        for array, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(array, other, strict=True)


def test_names_and_paths():
    spec = TreeSpec(nested(*map(np.zeros, SHAPES)))
    assert spec.names() == [
        *("layers.0.w", "layers.0.b", "layers.1.0", "head.out.0", "head.out.1.scale", "x")
    ]
    assert spec.paths()[4] == ("head", "out", 1, "scale")
    assert TreeSpec(np.zeros(3)).names() == ["params"]
    assert TreeSpec([{"w": np.zeros(3)}, [np.zeros(2)]], grouped=True).names() == ["0.w", "1.0"]


def test_flatten_and_unflatten_are_inverse():
    spec = TreeSpec(nested(*map(np.zeros, SHAPES)))
    tree = spec.unflatten("abcdef")
    assert tree == {
        "layers": [{"w": "a", "b": "b"}, ["c"]],
        "head": {"out": ["d", {"scale": "e"}]},
        "x": "f",
    }
    assert spec.flatten("grads", tree) == tuple("abcdef")


def test_mappings_may_have_another_order_and_type(columns):
    flat = [[array.copy() for array in column] for column in columns]
    fused_adamw(*flat, 1)
    trees = [nested(*column) for column in columns]
    trees[1] = types.MappingProxyType(dict(reversed(trees[1].items())))
    trees[2] = collections.OrderedDict(trees[2])
    fused_adamw(*trees, 1)
    np.testing.assert_array_equal(columns[0][4], flat[0][4])


@pytest.mark.parametrize("role", range(1, 4))
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: t["layers"].pop(), ValueError, "['layers'] must have length 2"),
        (lambda t: t["layers"][0].pop("b"), ValueError, "['layers'][0] must have the same keys"),
        (lambda t: t.update(layers=3), TypeError, "['layers'] must be a sequence"),
        (lambda t: t["head"].update(out={}), TypeError, "['head']['out'] must be a sequence"),
        (lambda t: t["layers"].__setitem__(0, []), TypeError, "['layers'][0] must be a mapping"),
        (lambda t: t["layers"].__setitem__(0, np.ones(2)), TypeError, "must be a mapping"),
        (lambda t: t["layers"][0].update(w=[]), TypeError, "['layers'][0]['w'] must be"),
    ],
)
def test_other_arrangements_are_refused(columns, role, change, error, words):
    trees = [nested(*column) for column in columns]
    before = [array.tobytes() for column in columns for array in column]
    change(trees[role])
    with pytest.raises(error) as caught:
        fused_adamw(*trees, 1)
    assert ROLES[role] + words in str(caught.value) or words in str(caught.value)
    assert ROLES[role] in str(caught.value)
    assert [array.tobytes() for column in columns for array in column] == before


def test_an_array_that_is_wrong_is_named_by_its_path(columns):
    trees = [nested(*column) for column in columns]
    trees[0]["head"]["out"][1]["scale"] = np.ones(4, np.int32)
    with pytest.raises(TypeError, match=r"params\['head'\]\['out'\]\[1\]\['scale'\] must be"):
        fused_adamw(*trees, 1)


@pytest.mark.parametrize("value", ["text", {1, 2}, 3.0, None, iter([])])
def test_what_is_no_container_is_refused(value):
    for tree in (value, [value], {"a": [value]}):
        with pytest.raises(TypeError, match="params"):
            fused_adamw(tree, tree, tree, tree, 1)


def test_a_structure_that_contains_itself_is_refused():
    cyclic_list, cyclic_dict = [], {}
    cyclic_list.append(cyclic_list)
    cyclic_dict |= {"self": cyclic_dict, "w": np.ones(3)}
    deep = np.ones(3)
    for _ in range(100_000):
        deep = [deep]
    for tree in (cyclic_list, cyclic_dict, deep):
        with pytest.raises(ValueError, match="params must be nested at most 100 deep"):
            fused_adamw(tree, tree, tree, tree, 1)
    while isinstance(deep, list):  # or the interpreter recurses to free it
        (deep,) = deep


def test_a_hundred_levels_are_accepted(tensor):
    x, y = tensor(3, np.float32), tensor(3, np.float32)
    trees = list(x.arrays)
    for _ in range(100):
        trees = [[tree] for tree in trees]
    fused_adamw(*trees, 1)
    fused_adamw(*y.arrays, 1)
    np.testing.assert_array_equal(x.p, y.p)
