"""What `extra` may contain; what it may not is refused before anything is written."""

import os
import sys

import numpy as np
import pytest
from checkpoints import mapping, nothing_changes, trained

from fused_adamw import AdamW
from fused_adamw._io import safetensors_stream
from fused_adamw.checkpoint import load_checkpoint, read_arrays, read_extra, save_checkpoint


def nested(depth, make=lambda inner: {"a": inner}):
    value = 1
    for _ in range(depth):
        value = make(value)
    return value


def circular():
    value = {}
    value["self"] = [value]
    return value


def wide_circular():
    """In each level twice: walked naively it would take 2^100 steps."""
    value = []
    value += [value, value]
    return {"a": value}


COLLIDING = [
    {1: "int", "1": "str"},
    {"1": "str", 1: "int"},
    {"a": {"b": [{True: 1, "true": 2}]}},
    {"a": ({None: 1, "null": 2},)},
    {1.5: 1, "1.5": 2},
    {float("nan"): 1, "NaN": 2},
    {float("nan"): 1, -float("nan"): 2},
]


@pytest.mark.parametrize("extra", COLLIDING, ids=repr)
def test_keys_that_are_the_same_text(path, extra):
    """JSON has one of them only."""
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"old": 1})
    with nothing_changes(optimizer, ValueError, "extra must have keys that differ as text; got"):
        save_checkpoint(path, optimizer, extra=extra)
    assert read_extra(path) == {"old": 1}


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        (nested(101), ValueError),
        (nested(100_000), ValueError),
        ({"a": nested(100_000, lambda inner: [inner])}, ValueError),
        ({"a": nested(100_000, lambda inner: (inner,))}, ValueError),
        (circular(), ValueError),
        (wide_circular(), ValueError),
        ({"a": 10**5000}, ValueError),
        ({"a": {1, 2}}, TypeError),
        ({b"a": 1}, TypeError),
        ({("a", "b"): 1}, TypeError),
        ({"a": [{frozenset(): 1}]}, TypeError),
        ([("a", 1)], TypeError),
        ("a", TypeError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_cannot_be_written(path, extra, error):
    optimizer = trained(mapping())
    with nothing_changes(optimizer, error, "^extra must ") as caught:
        save_checkpoint(path, optimizer, extra=extra)
    assert type(caught.value) is error
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(("value", "hint"), [(np.ones(2), "; pass arrays as `arrays`"), ({1}, "")])
def test_where_arrays_go_is_said(path, value, hint):
    with pytest.raises(TypeError, match=f"not JSON serializable{hint}$"):
        save_checkpoint(path, trained(mapping()), extra={"a": value})


@pytest.mark.parametrize("make", [circular, wide_circular])
def test_what_contains_itself_is_said(path, make):
    with pytest.raises(ValueError, match="must not contain itself"):
        save_checkpoint(path, trained(mapping()), extra=make())


@pytest.mark.parametrize("make", [lambda inner: {"a": inner}, lambda inner: [inner]])
def test_what_was_saved_can_be_read_wherever_it_is_read(path, make):
    """Where the stack is deep, too: JSON is read recursively."""
    extra = {"a": nested(99, make)}
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra=extra)

    def deep(frames):
        return deep(frames - 1) if frames else read_extra(path)

    assert deep(sys.getrecursionlimit() // 2) == extra


def test_keys_and_sequences_become_those_of_json(path):
    optimizer = trained(mapping())
    shared = [1, 2]
    extra = {1: (1, 2), None: {2.5: shared}, "again": shared}
    save_checkpoint(path, optimizer, extra=extra)
    expected = {"1": [1, 2], "null": {"2.5": [1, 2]}, "again": [1, 2]}
    assert load_checkpoint(path, optimizer) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_arrays_of_dtypes_that_numpy_lacks_are_refused(path, dtype):
    """Where ml_dtypes is not installed nobody could read the file."""
    array = np.ones(3, getattr(pytest.importorskip("ml_dtypes"), dtype))
    with pytest.raises(TypeError, match=rf"arrays\['a'\] must be .*; got ndarray of {dtype}"):
        save_checkpoint(path, AdamW(np.ones(3)), arrays={"a": array})
    assert not path.exists()


def test_arrays_of_a_dtype_with_metadata(path):
    array = np.arange(3, dtype=np.dtype(np.float64, metadata={"unit": "m"}))
    save_checkpoint(path, AdamW(np.ones(3)), arrays={"a": array})
    np.testing.assert_array_equal(read_arrays(path)["a"], [0, 1, 2])


@pytest.mark.parametrize("dtype", [">f8", "c16", "g", "M8[s]", "U1", [("x", float)]], ids=str)
def test_arrays_of_other_dtypes_are_refused_with_those_that_can_be_saved(path, dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is float64 here")
    allowed = "float64, float32, float16, int64, .*, bool in native byte order"
    with pytest.raises(
        TypeError, match=rf"arrays\['a'\] must be an array of {allowed}; got ndarray"
    ):
        save_checkpoint(path, AdamW(np.ones(3)), arrays={"a": np.zeros(3, dtype)})


def test_lists_of_unequal_lengths_are_refused(path):
    with pytest.raises(ValueError, match=r"^arrays\['a'\] must be an array of numbers; .*homogen"):
        save_checkpoint(path, AdamW(np.ones(3)), arrays={"a": [[1, 2], [3]]})
    assert not path.exists()


@pytest.mark.parametrize(
    ("tensors", "extra", "found"),
    [
        (40, None, "for 120 tensors: use fewer arrays, or shorter names$"),
        (1, "x" * 6000, r"of which extra is 6,009: save large data with `arrays`$"),
    ],
)
def test_a_header_that_is_too_large(path, monkeypatch, tensors, extra, found):
    monkeypatch.setattr(safetensors_stream, "MAX_HEADER_BYTES", 5000)
    optimizer = AdamW([np.ones(1) for _ in range(tensors)])
    with pytest.raises(ValueError, match=rf"must fit in a header of 5,000 bytes; got .*{found}"):
        save_checkpoint(path, optimizer, extra=extra and {"a": extra})


def test_a_mapping_that_contains_itself(path):
    circular = {}
    circular["x"] = circular
    with pytest.raises(ValueError, match="extra must not contain itself"):
        save_checkpoint(path, AdamW(np.ones(3)), extra=circular)
