"""Arrays that share memory are refused by name, and no byte has changed."""

import numpy as np
import pytest
from processes import run_python
from refusals import ROLES, assert_refused, call, replaced

from fused_adamw import fused_adamw


@pytest.mark.parametrize(
    ("a", "b"), [("params", "m"), ("params", "v"), ("m", "v"), ("params", "grads"), ("v", "grads")]
)
@pytest.mark.parametrize("shift", [-23, -1, 0, 1, 23])
def test_shared_memory(arrays, a, b, shift):
    room = np.ones(80, np.float32)
    first, second = room[28:52], room[28 + shift : 52 + shift]
    arrays = [array.reshape(24) for array in arrays]
    arrays = replaced(replaced(arrays, a, first), b, second)
    assert_refused(arrays, ValueError, a, b, "share memory")


def test_neighbors_do_not_share(tensor):
    room = np.ones(96, np.float32)
    p, m, v, g = np.split(room, 4)
    fused_adamw(p, g, m, v, 1)
    assert (room[72:] == 1).all()


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("k", range(4))
def test_shared_between_tensors(tensor, i, k):
    many = [tensor(8, np.float32, seed) for seed in range(5)]
    lists = [list(column) for column in zip(*(x.arrays for x in many), strict=True)]
    lists[i][1] = lists[k][3]
    if i == k == 1:
        call(lists)  # two gradients may share memory: they are only read
    else:
        words = (f"{ROLES[i]}[1]", f"{ROLES[k]}[3]", "share memory")
        assert_refused(lists, ValueError, *words)


def test_gradient_between_two_that_are_updated():
    """It begins where one ends, and reaches into the next."""
    room = np.ones(100, np.float32)
    arrays = [room[:10], room[10:20], room[19:29], room[40:50]]
    assert_refused(arrays, ValueError, "grads", "m", "share memory")


def test_empty_arrays_share_nothing():
    empty = np.ones((0, 3), np.float32)
    fused_adamw(empty, empty, empty, empty, 1)


MANY = """
import numpy as np
from fused_adamw import AdamW, fused_adamw
memory = np.ones(4 * 150_000, np.float32).reshape(4, 150_000, 1)
p, g, m, v = (list(x) for x in memory)
p[149_998] = p[149_999] = v[3]
for call in (lambda: fused_adamw(p, g, m, v, 1), lambda: AdamW(p)):
    try:
        call()
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_an_overlap_among_many_arrays():
    """To compare every array with every other one would take minutes."""
    printed = run_python(MANY).stdout.splitlines()
    assert printed == [
        "params[149998] must not share memory with params[149999]: both are updated in place",
        "params[149998] must not share memory with params[149999]: both are updated in place",
    ]
