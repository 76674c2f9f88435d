"""Lists and dicts that do not match are refused by name, and no byte has changed."""

import array
import collections
import types

import numpy as np
import pytest
from refusals import ROLES, assert_refused, call, snapshot

from fused_adamw import AdamW


@pytest.fixture
def lists(tensor):
    many = [tensor(shape, np.float32) for shape in [(3,), (2, 2), (5,)]]
    return [list(column) for column in zip(*(x.arrays for x in many), strict=True)]


@pytest.fixture
def dicts(lists):
    return [dict(zip(["w", "b", "s"], column, strict=True)) for column in lists]


@pytest.mark.parametrize("role", range(4))
def test_last_of_many_is_named_and_none_is_changed(lists, dicts, role):
    lists[role][2] = np.ones(5, np.int32)
    assert_refused(lists, TypeError, f"{ROLES[role]}[2]", "int32")
    dicts[role]["s"] = np.ones(5, np.int32)
    assert_refused(dicts, TypeError, f"{ROLES[role]}['s']", "int32")


@pytest.mark.parametrize("role", range(1, 4))
def test_number_of_arrays(lists, role):
    lists[role] = lists[role][:2]
    assert_refused(lists, ValueError, ROLES[role], "must have length 3", "got 2")


@pytest.mark.parametrize("role", range(1, 4))
def test_keys(dicts, role):
    dicts[role] = dict(dicts[role])
    moved = dicts[role].pop("b")
    assert_refused(dicts, ValueError, ROLES[role], "missing keys ['b']")
    dicts[role]["bias"] = moved
    assert_refused(dicts, ValueError, ROLES[role], "missing keys ['b']", "unexpected keys ['bias']")
    dicts[role]["b"] = moved
    assert_refused(dicts, ValueError, ROLES[role], "unexpected keys ['bias']")


def test_default_dict_is_not_filled(dicts):
    grads = collections.defaultdict(lambda: np.zeros(3, np.float32), dicts[1])
    del grads["w"]
    assert_refused([dicts[0], grads, *dicts[2:]], ValueError, "grads", "missing keys ['w']")
    assert "w" not in grads


@pytest.mark.parametrize("role", range(1, 4))
def test_structures_that_differ(lists, dicts, arrays, role):
    for one, other in [(lists, dicts), (lists, arrays), (dicts, lists), (dicts, arrays)]:
        mixed = [other[i] if i == role else x for i, x in enumerate(one)]
        assert_refused(mixed, TypeError, ROLES[role], type(other[role]).__name__)
    mixed = [lists[i] if i == role else x for i, x in enumerate(arrays)]
    assert_refused(mixed, TypeError, ROLES[role], "list")


@pytest.mark.parametrize("role", range(4))
def test_iterators_are_not_consumed(lists, role):
    lists[role] = iter(lists[role])
    with pytest.raises(TypeError, match=ROLES[role]):
        call(lists)
    assert len(list(lists[role])) == 3


class Lying(dict):
    """A mapping whose values are not those of its keys."""

    def values(self):
        return []


@pytest.mark.parametrize("role", range(4))
def test_a_mapping_is_asked_for_its_keys_alone(dicts, tensor, role):
    expected = [{key: array.copy() for key, array in column.items()} for column in dicts]
    call(expected)
    dicts[role] = Lying(dicts[role])
    call(dicts)
    assert [snapshot(dict(column)) for column in dicts] == [snapshot(x) for x in expected]


def test_other_structures_and_buffers(lists, dicts):
    """What is accepted beside lists, dicts and NumPy arrays."""
    call([tuple(column) for column in lists])
    call([collections.UserList(column) for column in lists])
    call([types.MappingProxyType(column) for column in dicts])
    call([collections.OrderedDict(reversed(column.items())) for column in dicts[:1]] + dicts[1:])
    call([memoryview(column[0]) for column in lists])
    call([array.array("d", [1, 2]) for _ in ROLES])
    call([[], [], [], []])
    call([{}, {}, {}, {}])


# ---- many names


@pytest.mark.parametrize("role", ROLES[1:])
def test_names_of_many_keys_are_not_all_listed(role):
    dicts = [{f"key{i}": np.ones(1) for i in range(20_000)} for _ in range(4)]
    dicts[ROLES.index(role)] = {f"other{i}": np.ones(1) for i in range(20_000)}
    with pytest.raises(ValueError, match="19,995 more") as caught:
        call(dicts)
    assert len(str(caught.value)) < 400
    assert "key4" in str(caught.value)
    assert "key5" not in str(caught.value)


def test_names_in_other_messages_are_not_all_listed():
    """Of parameters with the same name, and of entries of a state dict."""
    twice = {"a": {f"w{i}": np.ones(1) for i in range(50)}}
    twice |= {f"a.w{i}": np.ones(1) for i in range(50)}
    with pytest.raises(ValueError, match="45 more") as caught:
        AdamW(twice)
    assert len(str(caught.value)) < 400
    optimizer = AdamW({f"w{i}": np.ones(1) for i in range(50)})
    saved = optimizer.state_dict()
    saved["state"] = {f"other{i}": entry for i, entry in enumerate(saved["state"].values())}
    with pytest.raises(ValueError, match=r"45 more.*45 more") as caught:
        optimizer.load_state_dict(saved)
    assert len(str(caught.value)) < 400
