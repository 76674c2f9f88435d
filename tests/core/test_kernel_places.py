"""The kernels give the bits of the twin for every length, alignment, thread and division."""

import mmap
import os

import numpy as np
import pytest
from arrays import PER_THREAD
from kernel_steps import HYPER, assert_step_is_twin, bound_step
from twin import adamw_twin

from fused_adamw import fused_adamw, runtime_info

# Straddle the vector widths (2 to 16 elements), their multiples, the tails that are handled with
# narrower vectors, and the 64 elements at whose multiples threads part.
LENGTHS = [*range(36), 47, 48, 49, 63, 64, 65, 127, 128, 129, 255, 257, 1023, 1024, 1025, 4099]

# A second thread joins at 2 x PER_THREAD elements, a third at 3 x, and so on.
THREADED_LENGTHS = [
    2 * PER_THREAD - 1,
    2 * PER_THREAD,
    2 * PER_THREAD + 1,
    3 * PER_THREAD + 63,
    5 * PER_THREAD + 65,
    8 * PER_THREAD + 12345,
]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(tensor, dtype, isa, length):
    assert_step_is_twin(tensor(length, dtype, seed=length).arrays)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", THREADED_LENGTHS)
def test_every_number_of_threads(tensor, dtype, isa, length, num_threads):
    arrays = tensor(length, dtype, seed=length).arrays
    assert_step_is_twin(arrays, num_threads=num_threads)


@pytest.mark.parametrize("offset", [*range(1, 9), 12, 16, 31, 32, 60, 63])
def test_every_alignment(tensor, dtype, isa, offset):
    """Arrays may begin at any byte, even between two elements."""

    def place(array):
        room = np.empty(array.nbytes + 128, np.uint8)
        start = -room.ctypes.data % 64 + offset
        moved = room[start : start + array.nbytes].view(dtype)
        moved[:] = array
        return moved

    assert_step_is_twin(tensor(1003, dtype, place=place).arrays)


@pytest.mark.parametrize("which", range(4))
def test_alignments_that_differ(tensor, dtype, isa, which):
    arrays = list(tensor(515, dtype).arrays)
    room = np.empty(516, dtype)
    room[1:] = arrays[which]
    arrays[which] = room[1:]
    assert_step_is_twin(arrays)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 1000])
def test_nothing_around_a_buffer_changes(tensor, dtype, isa, length):
    rooms = []

    def place(array):
        room = np.full(array.nbytes + 512, 0xA5, np.uint8)
        rooms.append(room)
        room[256:-256] = array.view(np.uint8)
        return room[256:-256].view(dtype)

    assert_step_is_twin(tensor(length, dtype, place=place).arrays)
    for room in rooms:
        assert (room[:256] == 0xA5).all()
        assert (room[-256:] == 0xA5).all()


@pytest.mark.skipif(os.name == "nt", reason="no mprotect here")
@pytest.mark.parametrize("length", [1, 3, 16, 17, 100, 1024])
@pytest.mark.parametrize("side", ["begin", "end"])
def test_nothing_around_a_buffer_is_touched(tensor, dtype, isa, length, side):
    """The buffer ends (or begins) where a page does that cannot even be read."""
    arrays = tensor(length, dtype, place=lambda array: beside_guard_page(array, side)).arrays
    assert_step_is_twin(arrays)


def beside_guard_page(array, side):
    import ctypes

    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 4 * page)
    room = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for guard in (0, 3 * page):
        assert protect(room.ctypes.data + guard, page, 0) == 0
    start = page if side == "begin" else 3 * page - array.nbytes
    moved = room[start : start + array.nbytes].view(array.dtype)
    moved[:] = array
    return moved


@pytest.mark.skipif(not runtime_info()["threading"], reason="a build for one thread")
@pytest.mark.parametrize(("length", "threads"), [(-1, 1), (0, 2), (PER_THREAD, 3)])
def test_the_sizes_that_threads_join_at(tensor, length, threads):
    """The lengths above meet the edges of PER_THREAD."""
    x = tensor(2 * PER_THREAD + length, np.float32)
    assert bound_step(x, 1, num_threads=8).threads == threads


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_many_tensors_are_as_each_alone(tensor, isa, num_threads):
    """Sizes from 0 on, both dtypes mixed; thread boundaries fall inside and between tensors."""
    sizes = [0, 1, 5, PER_THREAD, 0, 33, 80000, 64, 7, PER_THREAD, 2, 0]
    dtypes = [np.float32, np.float64]
    many = [tensor(n, dtypes[i % 3 == 0], seed=i) for i, n in enumerate(sizes)]
    expected = [adamw_twin(*x.arrays, 7, **HYPER) for x in many]
    lists = [list(column) for column in zip(*(x.arrays for x in many), strict=True)]
    fused_adamw(*lists, 7, **HYPER, num_threads=num_threads)
    for x, twins in zip(many, expected, strict=True):
        for array, twin in zip((x.p, x.m, x.v), twins, strict=True):
            np.testing.assert_array_equal(array, twin, strict=True)


def test_split_does_not_matter(tensor, dtype, isa):
    whole, split = tensor(100_021, dtype), tensor(100_021, dtype)
    fused_adamw(*whole.arrays, 2)
    cuts = [1, 2, 17, 16384, 16385, 70000]
    fused_adamw(*(np.split(array, cuts) for array in split.arrays), 2)
    assert whole.bytes() == split.bytes()
