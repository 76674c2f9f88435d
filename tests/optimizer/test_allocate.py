"""State in memory of the caller's choice."""

import copy
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

FAQ = Path(__file__).parents[2] / "docs" / "faq.md"


class Disk:
    """Arrays in files, as a user would write it; counts their bytes."""

    def __init__(self, folder):
        self.folder, self.nbytes = folder, 0

    def __call__(self, size, dtype):
        with tempfile.TemporaryFile(dir=self.folder) as file:
            array = np.memmap(file, dtype, "w+", shape=size)
        self.nbytes += array.nbytes
        return array


def params(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(300, 4), (7,), (), (0, 3)]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return [*arrays, np.asfortranarray(rng.standard_normal((5, 6)).astype(dtype))]


def gradients(dtype=np.float32):
    return [np.sin(np.arange(p.size)).reshape(p.shape).astype(dtype) for p in params()]


OPTIONS = [
    {},
    {"amsgrad": True, "ema_decay": 0.9},
    {"state_dtype": "8bit"},
    {"state_dtype": "bfloat16", "master_weights": True},
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "none")
def test_the_state_is_there_and_the_bits_are_the_same(options, dtype, tmp_path):
    disk = Disk(tmp_path)
    found, expected = params(dtype), params(dtype)
    mapped, plain = AdamW(found, allocate=disk, **options), AdamW(expected, **options)
    assert disk.nbytes == mapped.state_nbytes == plain.state_nbytes > 0
    for _ in range(3):
        mapped.step(gradients(dtype))
        plain.step(gradients(dtype))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    for name, entry in plain.state_dict()["state"].items():
        for role, array in entry.items():
            np.testing.assert_array_equal(mapped.state_dict()["state"][name][role], array)


def test_steps_and_loading_write_to_it(tmp_path):
    made = []

    def allocate(size, dtype):
        made.append(np.zeros(size, dtype))
        return made[-1]

    opt = AdamW(np.ones(3), allocate=allocate)
    opt.step(np.ones(3))
    after = [array.copy() for array in made]
    assert [array.any() for array in after] == [True, True]
    saved = opt.state_dict()
    save_checkpoint(tmp_path / "file", opt)
    for load in (opt.load_state_dict, lambda _: load_checkpoint(tmp_path / "file", opt)):
        opt.step(np.ones(3))
        assert not np.array_equal(made[0], after[0])
        load(saved)
        np.testing.assert_array_equal(made, after)


def test_a_copy_is_in_ordinary_memory(tmp_path):
    disk = Disk(tmp_path)
    opt = AdamW(np.ones(3), allocate=disk)
    other = copy.deepcopy(opt)
    other.step(np.ones(3))
    assert not opt.m.any()
    assert other.m.any()
    assert disk.nbytes == opt.state_nbytes  # no more than for the first


SHARED = np.zeros(100)
READ_ONLY = np.zeros(3)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("allocate", "error", "message"),
    [
        (lambda size, dtype: [0.0] * size, TypeError, "must return an array; got list"),
        (lambda size, dtype: np.zeros(size + 1), ValueError, r"shape \(3,\) .*; got .* \(4,\)"),
        (lambda size, dtype: np.zeros((size, 1)), ValueError, r"got .* shape \(3, 1\)"),
        (lambda size, dtype: np.zeros(size, "f4"), ValueError, "dtype float64; got .* float32"),
        (lambda size, dtype: np.zeros(size, ">f8"), ValueError, "dtype float64; got .* >f8"),
        (
            lambda size, dtype: np.zeros(2 * size)[::2],
            ValueError,
            "contiguous, writable array; got one with contiguous=False, writeable=True$",
        ),
        (lambda size, dtype: READ_ONLY, ValueError, "got .* contiguous=True, writeable=False$"),
        (lambda size, dtype: np.full(size, 1e-300), ValueError, "zeros; got other values"),
        (lambda size, dtype: np.full(size, np.nan), ValueError, "zeros; got other values"),
    ],
)
def test_what_it_must_return(allocate, error, message):
    with pytest.raises(error, match=f"^allocate .*{message}"):
        AdamW(np.ones(3), allocate=allocate)


@pytest.mark.parametrize("size", [0, 3])
def test_it_must_be_a_function(size):
    with pytest.raises(TypeError, match=r"^allocate must be None or a function like .*; got 7$"):
        AdamW(np.ones(size), allocate=7)


def test_arrays_that_share_memory_are_refused():
    with pytest.raises(ValueError, match="must not share memory"):
        AdamW(np.ones(3), allocate=lambda size, dtype: SHARED[:size])


def test_it_is_fixed():
    opt = AdamW(np.ones(3))
    with pytest.raises(AttributeError, match="allocate cannot be changed after construction"):
        opt.allocate = np.zeros


@pytest.mark.skipif(not FAQ.exists(), reason="this copy of the tests comes without the docs")
@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_the_recipe_of_the_faq_reserves_its_space(tmp_path, monkeypatch):
    """A file with holes ends the process in a step, by SIGBUS, where the disk is full by then."""
    blocks = re.findall(r"^```python\n([^`]*)^```", FAQ.read_text(encoding="utf-8"), re.M)
    (recipe,) = (block for block in blocks if "allocate=on_disk" in block)
    reserved = []

    def memmap(file, dtype, mode, shape, memmap=np.memmap):
        reserved.append(os.fstat(file.fileno()).st_blocks * 512 >= shape * dtype.itemsize > 0)
        return memmap(file, dtype, mode, shape=shape)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(np, "memmap", memmap)
    exec(recipe, {})
    assert reserved == [True] * 4
