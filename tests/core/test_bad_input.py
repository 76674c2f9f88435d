"""Each mistake gets an error that names the argument, and no byte of any array has changed."""

import array
import collections
import ctypes
import types

import numpy as np
import pytest
from processes import run_python

from fused_adamw import AdamW, fused_adamw

ROLES = ["params", "grads", "m", "v"]


def call(arrays, t=1, **options):
    fused_adamw(*arrays, t, **options)


def assert_refused(arrays, error, *words, t=1, **options):
    """``arrays`` raise ``error`` with all ``words`` in its message, and are as they were."""
    before = [snapshot(structure) for structure in arrays]
    with pytest.raises(error) as caught:
        call(arrays, t, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert [snapshot(structure) for structure in arrays] == before


def snapshot(structure):
    if isinstance(structure, np.ndarray):
        return structure.tobytes()
    if isinstance(structure, dict):
        return {key: snapshot(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [snapshot(value) for value in structure]
    return repr(structure)


@pytest.fixture
def arrays(tensor):
    return list(tensor((4, 6), np.float32).arrays)


def replaced(arrays, role, value):
    return [value if name == role else old for name, old in zip(ROLES, arrays, strict=True)]


# ---- one array


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("value", [1.0, None, "text", object(), {1, 2}, np.float32(1).item()])
def test_not_an_array(arrays, role, value):
    assert_refused(replaced(arrays, role, value), TypeError, role, type(value).__name__)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "dtype", ["i4", "i8", "u1", "f2", "g", "c8", "c16", "?", "S4", "O", "M8[s]", "f4,f4", "i4,f4"]
)
def test_dtype_without_a_kernel(arrays, role, dtype):
    value = np.zeros((4, 6), dtype)
    assert_refused(replaced(arrays, role, value), TypeError, role, "must be", "float32")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_byte_order_of_other_machines(arrays, role, dtype):
    swapped = np.zeros((4, 6), np.dtype(dtype).newbyteorder("S"))
    assert_refused(replaced(arrays, role, swapped), TypeError, role, "byte order")


@pytest.mark.parametrize("role", ROLES[1:])
def test_dtype_that_differs(arrays, role):
    value = np.zeros((4, 6), np.float64)
    words = (role, "float64", "float32", "params")
    assert_refused(replaced(arrays, role, value), TypeError, *words)


@pytest.mark.parametrize("role", ROLES[1:])
@pytest.mark.parametrize("shape", [(), (0,), (1, 1)])
def test_dtype_that_differs_where_strides_do_not_tell(tensor, role, shape):
    arrays = list(tensor(shape, np.float32).arrays)
    value = np.zeros(shape, np.float64)
    assert_refused(replaced(arrays, role, value), TypeError, role, "float64", "float32")


@pytest.mark.parametrize("role", ROLES[1:])
@pytest.mark.parametrize("shape", [(6, 4), (24,), (4, 6, 1), (4, 5), (), (0,), (1, 6)])
def test_shape_that_differs(arrays, role, shape):
    value = np.zeros(shape, np.float32)
    words = (role, str(shape), "(4, 6)", "params")
    assert_refused(replaced(arrays, role, value), ValueError, *words)


@pytest.mark.parametrize("role", ["params", "m", "v"])
def test_read_only(arrays, role):
    value = np.ones((4, 6), np.float32)
    value.flags.writeable = False
    assert_refused(replaced(arrays, role, value), ValueError, role, "read-only")


STRIDED = {
    "every second column": lambda: np.ones((4, 12), np.float32)[:, ::2],
    "part of each row": lambda: np.ones((4, 9), np.float32)[:, :6],
    "every second row": lambda: np.ones((8, 6), np.float32)[::2],
    "backwards": lambda: np.ones((4, 6), np.float32)[::-1],
    "mirrored": lambda: np.ones((4, 6), np.float32)[:, ::-1],
}


@pytest.mark.parametrize("role", ["params", "m", "v"])
@pytest.mark.parametrize("layout", STRIDED)
def test_not_dense(arrays, role, layout):
    words = (role, "must be contiguous", "strides")
    assert_refused(replaced(arrays, role, STRIDED[layout]()), ValueError, *words)


def test_three_dimensions_in_no_order():
    arrays = [np.ones((2, 3, 4), np.float32).transpose(0, 2, 1) for _ in ROLES]
    assert_refused(arrays, ValueError, "params", "must be contiguous")


def test_broadcast(arrays):
    value = np.broadcast_to(np.float32(1), (4, 6))
    assert_refused(replaced(arrays, "v", value), ValueError, "v", "read-only")
    value = np.lib.stride_tricks.as_strided(np.ones(6, np.float32), (4, 6), (0, 4))
    assert_refused(replaced(arrays, "v", value), ValueError, "v", "must be contiguous")


@pytest.mark.parametrize("role", ["m", "v"])
def test_memory_order_that_differs(arrays, role):
    value = np.asfortranarray(np.ones((4, 6), np.float32))
    words = (role, "must be in C order", "got Fortran order", "params")
    assert_refused(replaced(arrays, role, value), ValueError, *words)


# ---- overlaps


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


def test_neighbours_do_not_share(tensor):
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


# ---- many arrays


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
    assert_refused(lists, ValueError, ROLES[role], "must have 3 items", "got 2")


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


# ---- numbers


@pytest.mark.parametrize("t", [0, -1, -(10**30)])
def test_t_too_small(arrays, t):
    assert_refused(arrays, ValueError, "t must be", t=t)


@pytest.mark.parametrize("t", [1.0, "1", None, np.ones(2)])
def test_t_not_an_integer(arrays, t):
    assert_refused(arrays, TypeError, "t must be an integer", t=t)


def test_t_beyond_all_numbers(arrays):
    assert_refused(arrays, ValueError, "t must be", t=2**63)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [-1e-9, -1, float("nan"), float("inf"), -float("inf")])
def test_number_out_of_range(arrays, name, value):
    assert_refused(arrays, ValueError, name, repr(value), **{name: value})


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", ["0.1", None, 1j, [0.1], np.ones(2)])
def test_not_a_number(arrays, name, value):
    assert_refused(arrays, TypeError, name, **{name: value})


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.1, float("nan")])
@pytest.mark.parametrize("i", [0, 1])
def test_beta_out_of_range(arrays, beta, i):
    betas = (beta, 0.9) if i == 0 else (0.9, beta)
    assert_refused(arrays, ValueError, f"betas[{i}]", repr(beta), betas=betas)


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), None, "ab"])
def test_betas_not_a_pair(arrays, betas):
    assert_refused(arrays, TypeError, "betas", betas=betas)


def test_beta_that_rounds_to_one(arrays, tensor):
    betas = (0.9, 1 - 1e-9)
    assert_refused(
        arrays, ValueError, "betas[1]", "less than 1 once rounded to float32", betas=betas
    )
    fused_adamw(*tensor(3, np.float64).arrays, 1, betas=betas)


@pytest.mark.parametrize(
    ("what", "given", "options"),
    [
        ("lr / (1 - betas[0]**t)", "lr=1e+39", {"lr": 1e39}),
        ("lr / (1 - betas[0]**t)", "lr=1e+38", {"lr": 1e38}),  # which float32 can represent
        ("eps", "1e+39", {"eps": 1e39}),
        ("lr * weight_decay", "weight_decay=1e+39", {"weight_decay": 1e39, "lr": 1.0}),
    ],
)
def test_number_too_large_for_the_dtype(arrays, tensor, what, given, options):
    message = f"{what} must be representable in float32; got {given}"
    assert_refused(arrays, ValueError, message, **options)
    fused_adamw(*tensor(3, np.float64).arrays, 1, **options)


@pytest.mark.parametrize("num_threads", [0, -1, 1025, 10**30])
def test_num_threads_out_of_range(arrays, num_threads):
    assert_refused(arrays, ValueError, "num_threads", num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [1.5, "2", (1,)])
def test_num_threads_not_an_integer(arrays, num_threads):
    assert_refused(arrays, TypeError, "num_threads", num_threads=num_threads)


def test_numbers_of_other_kinds(arrays, tensor):
    """NumPy scalars, integers and 0-d arrays are numbers too."""
    other = tensor((4, 6), np.float32).arrays
    call(arrays, np.int64(3), lr=np.float64(0.5), betas=[0, np.float64(0.5)], eps=np.array(0.25))
    call(other, 3, lr=0.5, betas=(0.0, 0.5), eps=0.25)
    assert [a.tobytes() for a in arrays] == [a.tobytes() for a in other]


class Interrupting:
    def __float__(self):
        raise KeyboardInterrupt


def test_other_exceptions_pass_through(arrays):
    with pytest.raises(KeyboardInterrupt):
        call(arrays, lr=Interrupting())


@pytest.mark.parametrize("shape", [(24,), (4, 6), (0,)])
@pytest.mark.parametrize("role", range(4))
def test_ctypes_arrays(tensor, role, shape):
    """Their buffers come without strides."""
    expected, x = tensor(shape, np.float32), tensor(shape, np.float32)
    fused_adamw(*expected.arrays, 1)
    arrays = list(x.arrays)
    kind = ctypes.c_float
    for size in reversed(shape):
        kind = kind * size
    arrays[role] = kind.from_buffer_copy(arrays[role].tobytes())
    call(arrays)
    assert [memoryview(array).tobytes() for array in arrays] == expected.bytes()


# ---- gradients in another memory order


GRADIENTS = {
    "Fortran order": np.asfortranarray,
    "transposed": lambda g: g.T.copy().T,
    "every second column": lambda g: np.repeat(g, 2, axis=1)[:, ::2],
    "backwards": lambda g: g[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": lambda g: np.frombuffer(g.tobytes(), g.dtype).reshape(g.shape),
}


@pytest.mark.parametrize("layout", GRADIENTS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradient_layouts(tensor, dtype, layout, order):
    expected, x = tensor((37, 41), dtype), tensor((37, 41), dtype)
    fused_adamw(*expected.arrays, 3)
    p, m, v = (np.array(array, order=order) for array in (x.p, x.m, x.v))
    g = GRADIENTS[layout](x.g)
    before = g.tobytes()
    fused_adamw(p, g, m, v, 3)
    assert g.tobytes() == before
    for array_, wanted in zip((p, m, v), (expected.p, expected.m, expected.v), strict=True):
        np.testing.assert_array_equal(array_, wanted)


def test_broadcast_gradient(tensor, dtype):
    expected, x = tensor((5, 3), dtype), tensor((5, 3), dtype)
    expected.g[:] = 0.25
    fused_adamw(*expected.arrays, 1)
    fused_adamw(x.p, np.broadcast_to(dtype(0.25), (5, 3)), x.m, x.v, 1)
    np.testing.assert_array_equal(x.p, expected.p)


def test_zero_dimensions(dtype):
    p, g, m, v = (np.array(0.5, dtype) for _ in range(4))
    flat = [np.full(1, 0.5, dtype) for _ in range(4)]
    fused_adamw(p, g, m, v, 1)
    fused_adamw(*flat, 1)
    assert p.shape == ()
    assert p == flat[0][0] != 0.5


def test_16_bits_that_are_no_array_of_numpy():
    arrays = [memoryview(np.zeros(4, np.float16)) for _ in range(4)]
    with pytest.raises(TypeError, match=r"params must be .* of float32 or float64; got dtype"):
        fused_adamw(*arrays, t=1)


def test_a_subclass_cannot_misstate_its_memory():
    """The memory of an array of bfloat16 is asked of NumPy, whatever a subclass answers."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    elsewhere = np.full(64, 7, np.uint8)

    class Lying(np.ndarray):
        def view(self, *_):
            return elsewhere[:8]

    own = np.ones(8, bfloat16)
    opt = AdamW(np.ndarray.view(own, Lying), lr=0.5)
    opt.step(np.ones(8, bfloat16))
    assert (elsewhere == 7).all()
    assert (own < 0.6).all()


def test_bfloat16_in_the_byte_order_of_other_machines():
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    swapped = np.zeros(8, bfloat16.newbyteorder())
    if swapped.dtype.isnative:
        pytest.skip("this ml_dtypes ignores byte orders")
    with pytest.raises(TypeError, match="params must be"):
        AdamW(swapped)


# ---- many arrays

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


# ---- arrays that are larger than the memory


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.9}])
@pytest.mark.parametrize("stride", [0, 4, 12])
def test_views_of_more_elements_than_memory(stride, options):
    """Refused before their state is made."""
    memory = np.ones(8, np.float32)
    huge = np.lib.stride_tricks.as_strided(memory, (10**12, 2), (stride, 4 if stride else 0))
    for params in (huge, [memory, huge], [{"params": [huge]}]):
        with pytest.raises(ValueError, match="contiguous"):
            AdamW(params, **options)
    with pytest.raises(ValueError, match="contiguous"):
        fused_adamw(huge, huge, huge, huge, 1)
    with pytest.raises(ValueError, match="shape"):
        fused_adamw(memory, huge, memory.copy(), memory.copy(), 1)
