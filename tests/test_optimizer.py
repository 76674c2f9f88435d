"""``AdamW``: each step has the bits of the NumPy twin, and a bad call or state changes nothing."""

import contextlib
import copy
import math
import pickle
import signal
import threading
import tracemalloc

import numpy as np
import pytest
from conftest import ISAS
from hypothesis import given
from hypothesis import strategies as st
from test_runtime import run_python
from twin import adamw_twin

from fused_adamw import AdamW, matrices_only

HYPER = {"lr": 3e-3, "betas": (0.85, 0.99), "eps": 1e-6, "weight_decay": 0.1}
OTHER = {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.5}
SHAPES = [(7, 5), (5,), (), (0, 3), (2, 3, 4)]
SIZES = [1, 1000, 32767, 32768, 32769, 65535, 65536, 65537]  # threads join at 2 x 32,768
EVERYTHING = {"amsgrad": True, "maximize": True, "max_grad_norm": 0.5, "skip_nonfinite": True}


def draw(shapes, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), dtype) for shape in shapes]


def leaves(structure):
    """The arrays of a structure, in order."""
    if structure is None or isinstance(structure, np.ndarray):
        return [] if structure is None else [structure]
    values = structure.values() if isinstance(structure, dict) else structure
    return [leaf for value in values for leaf in leaves(value)]


def arrays_of(opt):
    """Parameters and moments: of each role, the arrays of all tensors."""
    params = leaves([group["params"] for group in opt.param_groups])
    return [params, leaves(opt.m), leaves(opt.v), leaves(opt.v_max)]


def steps_of(opt):
    return [entry["step"] for entry in opt.state_dict()["state"].values()]


def snapshot(opt):
    """Everything that an error, or a skipped step, must leave alone."""
    numbers = [{k: x for k, x in group.items() if k != "params"} for group in opt.param_groups]
    options = opt.maximize, opt.max_grad_norm, opt.skip_nonfinite, opt.num_threads
    data = [[array.tobytes() for array in role] for role in arrays_of(opt)]
    return opt.t, steps_of(opt), repr(numbers), options, data


def clip(norm, most):
    return min(1.0, most / (norm + 1e-6))


class Twins:
    """What an optimizer over ``params`` has to be after each step: the twin, tensor by tensor."""

    def __init__(self, params, amsgrad=False):
        state = 3 if amsgrad else 2
        self.tensors = [[p.copy(), *(np.zeros_like(p) for _ in range(state))] for p in params]
        self.steps = [0] * len(params)

    def step(self, grads, hypers, scale=1.0):
        """``hypers``: the hyper-parameters of each tensor, or one dict for all."""
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.steps[i] += 1
            p, m, v, *v_max = self.tensors[i]
            hyper = hypers if isinstance(hypers, dict) else hypers[i]
            options = {"scale": scale, "v_max": v_max[0] if v_max else None}
            new = adamw_twin(p, g, m, v, self.steps[i], **hyper, **options)
            self.tensors[i] = [np.asarray(array) for array in new]

    def assert_equal(self, opt):
        assert steps_of(opt) == self.steps
        for role, arrays in enumerate(arrays_of(opt)):
            for i, array in enumerate(arrays):
                np.testing.assert_array_equal(array, self.tensors[i][role], strict=True)


# ---- a step is the twin's


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options", [{}, *({name: value} for name, value in EVERYTHING.items()), EVERYTHING], ids=str
)
def test_every_option(dtype, options, size, num_threads):
    p, *gradients = draw([size] * 4, dtype)
    opt = AdamW(p, **HYPER, **options, num_threads=num_threads)
    twins = Twins([p], opt.amsgrad)
    sign = -1 if opt.maximize else 1
    for t, g in enumerate(gradients, 1):
        norm = opt.step(g, grad_scale=0.3 / t)
        assert (norm is None) == (opt.max_grad_norm is None and not opt.skip_nonfinite)
        clipped = clip(norm, opt.max_grad_norm) if opt.max_grad_norm else 1.0
        twins.step([g], HYPER, sign * (0.3 / t * clipped))
        twins.assert_equal(opt)
    assert opt.t == len(gradients)


def test_many_steps_in_which_everything_changes(dtype):
    """Groups, missing gradients, options and hyper-parameters, over 150 steps."""
    rng = np.random.default_rng(1)
    params = draw(SHAPES, dtype)
    groups = [{"params": params[:2]}, {"params": params[2:], **OTHER, "lr": lambda t: 0.1 / t}]
    opt = AdamW(groups, **HYPER, amsgrad=True, skip_nonfinite=True)
    twins = Twins(params, amsgrad=True)
    for t in range(1, 151):
        grads = [None if rng.random() < 0.3 else g for g in draw(SHAPES, dtype, seed=t)]
        scale = float(rng.choice([1.0, -1.0, 0.25, 3.7]))
        lr, weight_decay = rng.random(2) / 10
        opt.param_groups[0] |= {"lr": lr, "weight_decay": weight_decay}
        opt.maximize = bool(rng.random() < 0.5)
        opt.max_grad_norm = rng.choice([None, 0.5, 100.0])
        opt.num_threads = int(rng.integers(1, 4))
        norm = opt.step([grads[:2], grads[2:]], scale)
        if opt.max_grad_norm:
            scale *= clip(norm, opt.max_grad_norm)
        first, second = HYPER | {"lr": lr, "weight_decay": weight_decay}, OTHER | {"lr": 0.1 / t}
        hypers = [first, first, second, second, second]
        twins.step(grads, hypers, -scale if opt.maximize else scale)
        twins.assert_equal(opt)
    assert opt.t == 150


@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=5),
    lr=st.floats(0, 1),
    betas=st.tuples(st.floats(0, 0.99999), st.floats(0, 0.99999)),
    eps=st.floats(1e-12, 1e-2),
    weight_decay=st.floats(0, 2),
    grad_scale=st.floats(-1e3, 1e3),
    max_grad_norm=st.none() | st.floats(1e-6, 1e6),
    switches=st.tuples(*[st.booleans()] * 3),
    order=st.sampled_from("CF"),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_shapes_and_numbers(
    seed, shapes, lr, betas, eps, weight_decay, grad_scale, max_grad_norm, switches, order, dtype
):
    hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    options = dict(zip(["amsgrad", "maximize", "skip_nonfinite"], switches, strict=True))
    params = [np.asarray(p, order=order) for p in draw(shapes, dtype, seed)]
    opt = AdamW(params, **hyper, **options, max_grad_norm=max_grad_norm)
    twins = Twins(params, opt.amsgrad)
    for t in range(3):
        grads = draw(shapes, dtype, seed + t)
        norm = opt.step(grads, grad_scale)
        scale = grad_scale * (clip(norm, max_grad_norm) if max_grad_norm else 1.0)
        twins.step(grads, hyper, -scale if opt.maximize else scale)
    twins.assert_equal(opt)


@pytest.mark.parametrize("steps", [2**24 + 5, 2**31, 2**53, 2**62])
def test_large_counts_are_exact(steps):
    """Betas so near to 1 that the bias corrections still depend on the count."""
    beta = max(2.0**-53, 1 / steps)
    hyper = HYPER | {"betas": (1 - beta, 1 - beta)}
    p, g, m, v = draw([9] * 4)
    opt = AdamW(p, **hyper)
    state = opt.state_dict() | {"t": steps}
    state["state"] = {"params": {"step": steps, "m": m, "v": v * v}}
    opt.load_state_dict(state)
    expected = adamw_twin(p, g, m, v * v, steps + 1, **hyper)
    opt.step(g)
    assert opt.t == steps_of(opt)[0] == steps + 1
    for array, twin in zip((p, opt.m, opt.v), expected, strict=True):
        np.testing.assert_array_equal(array, twin)


def test_threads_step_optimizers_of_their_own():
    sizes = [7, 3000, 40_000, 80_000]
    optimizers = [AdamW(p, **HYPER, max_grad_norm=1.0) for p in draw(sizes, np.float32)]
    twins = [Twins([opt.param_groups[0]["params"]]) for opt in optimizers]
    grads = draw(sizes, np.float32, seed=1)
    norms, start = [[] for _ in sizes], threading.Barrier(len(sizes))

    def train(i):
        start.wait()
        norms[i] += [optimizers[i].step(grads[i]) for _ in range(20)]

    threads = [threading.Thread(target=train, args=(i,)) for i in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, opt in enumerate(optimizers):
        for norm in norms[i]:
            twins[i].step([grads[i]], HYPER, clip(norm, 1.0))
        twins[i].assert_equal(opt)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_step_allocates_nothing_that_grows(options):
    p, g = draw([1 << 20] * 2, np.float32)
    opt = AdamW(p, **options)
    opt.step(g)
    tracemalloc.start()
    try:
        opt.step(g)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < p.nbytes / 500  # 8 bytes for the sum of each 16,384 squares, and some objects


# ---- the norm


def norm_of(grads, dtype, grad_scale=1.0, **options):
    params = [np.ones(np.shape(g), dtype) for g in grads]
    return AdamW(params, skip_nonfinite=True, **options).step(grads, grad_scale)


def relative_bound(sizes):
    """Of the norm against one from correctly rounded sums. 16,384 squares, each rounded once in
    float64, are added in 16 lanes, so at most 1,024 to a lane; the lanes in 4 levels, the sums one
    after another. All are positive, so their relative errors add up, and the root halves them.
    It rounds once, as do the oracle's square, sum (both halved) and root."""
    u = 2.0**-53
    chunks = sum(-(-n // 16384) for n in sizes)
    additions = min(max(sizes), 16384) / 16 + 1 + 4 + chunks
    return ((1 + additions + 2) / 2 + 2) * u


@pytest.mark.parametrize(
    "sizes", [[1], [15], [16], [17], [16384], [16385], [50_021], [3, 0, 40_000, 1, 16384]], ids=str
)
def test_norm_is_the_root_of_the_sum_of_squares(dtype, sizes):
    grads = draw(sizes, dtype)
    exact = math.sqrt(math.fsum(float(x) * float(x) for g in grads for x in g))
    assert abs(norm_of(grads, dtype) - exact) <= relative_bound(sizes) * exact
    assert norm_of(grads, dtype, -0.5) == 0.5 * norm_of(grads, dtype)


@pytest.mark.parametrize("value", [1 + 2**-23, 1e-30, 1e-45, 3e38, -3e38, 0.1])
def test_squares_of_float32_are_exact(value):
    g = np.full(1, value, np.float32)
    assert norm_of([g], np.float32) == abs(float(g[0]))


def test_sums_of_integers_are_exact():
    """Every element counts once: squares and sums of these integers are exact in float64."""
    g = np.random.default_rng(0).integers(-(2**17), 2**17, 100_003)
    total = sum(int(x) ** 2 for x in g)
    assert norm_of([g.astype(np.float32)], np.float32) == math.sqrt(total)


def test_norm_is_of_the_gradients_that_there_are():
    opt = AdamW([np.ones(2), np.ones(2), np.ones(1)], max_grad_norm=1.0)
    assert opt.step([np.array([3.0, 0.0]), None, np.array([4.0])]) == 5.0
    assert opt.step([None, None, None]) == 0.0
    assert opt.t == 2


NORMS = """
import hashlib, numpy as np
from fused_adamw import AdamW
sizes = (199_999, 0, 33, 65_536)
for seed in range(12):
    rng, dtype = np.random.default_rng(seed), (np.float32, np.float64)[seed % 2]
    p, g = ([rng.standard_normal(n, dtype) for n in sizes] for _ in "pg")
    for threads in (1, 2, 3, 7):
        copies = [x.copy() for x in p]
        norm = AdamW(copies, max_grad_norm=1.0, num_threads=threads).step(g, 0.3)
        print(norm.hex(), hashlib.sha256(b"".join(x.tobytes() for x in copies)).hexdigest())
"""


def test_norm_and_step_have_the_same_bits_everywhere():
    """Of several gradients, as a root can hide the last bit of a sum."""
    printed = [run_python(NORMS, FUSED_ADAMW_ISA=isa).stdout for isa in ISAS]
    lines = printed[0].splitlines()
    assert printed == printed[:1] * len(ISAS)
    assert lines[::4] == lines[1::4] == lines[2::4] == lines[3::4]
    assert len(set(lines)) == 12


@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_are_only_read(dtype, order):
    params = [np.asarray(p, order=order) for p in draw([(30, 20), (4,)], dtype)]
    twins = Twins(params, amsgrad=True)
    opt = AdamW(params, **HYPER, **EVERYTHING)
    grads = draw([(30, 20), (4,)], dtype, seed=1)
    before = [g.tobytes() for g in grads]
    for g in grads:
        g.flags.writeable = False
    norm = opt.step(grads, 0.5)
    assert [g.tobytes() for g in grads] == before
    twins.step(grads, HYPER, -0.5 * clip(norm, 0.5))
    twins.assert_equal(opt)


# ---- gradients that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"amsgrad": True}], ids=str)
def test_a_skipped_step_is_none_at_all(value, options):
    sizes, dtypes = [3, 17, 20_000, 1], [np.float32, np.float64, np.float32, np.float64]
    params = [p.astype(dtype) for p, dtype in zip(draw(sizes), dtypes, strict=True)]
    grads = [g.astype(dtype) for g, dtype in zip(draw(sizes, seed=1), dtypes, strict=True)]
    seen = []
    opt = AdamW(params, lr=lambda t: seen.append(t) or 0.1, skip_nonfinite=True, **options)
    opt.step([*grads[:3], None])
    other = copy.deepcopy(opt)
    before = snapshot(opt)
    for i, position in [(0, 0), (0, 2), (1, 16), (2, 0), (2, 16384), (2, 19_999), (3, 0)]:
        bad = [g.copy() for g in grads]
        bad[i][position] = value
        assert not math.isfinite(opt.step(bad))
        assert snapshot(opt) == before
    seen.clear()
    assert opt.step(grads) == other.step(grads)
    assert snapshot(opt)[1:] == snapshot(other)[1:]
    assert seen == [2, 2]  # t, for the rate of both
    assert opt.t == 2


def test_a_norm_beyond_float64_is_skipped():
    opt = AdamW(np.ones(2), skip_nonfinite=True)
    assert opt.step(np.full(2, 1e200)) == math.inf
    assert opt.step(np.ones(2), 1.7e308) == math.inf
    assert opt.t == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_without_skipping_they_follow_ieee(dtype, value, max_grad_norm, amsgrad):
    """Into the clipping factor too: an infinity makes it 0, a NaN all NaN, as in PyTorch."""
    (p,), (g,) = draw([40], dtype), draw([40], dtype, seed=1)
    opt = AdamW(p, **HYPER, max_grad_norm=max_grad_norm, amsgrad=amsgrad)
    twins = Twins([p], amsgrad)
    if amsgrad:  # a NaN here is the largest, whatever v is
        opt.v_max[3] = twins.tensors[0][3][3] = math.nan
    for gradient in (g, np.where(np.arange(40) == 7, dtype(value), g), g):
        norm = opt.step(gradient)
        exact = math.sqrt(math.fsum(float(x) ** 2 for x in gradient))
        factor = 1.0
        if max_grad_norm:
            np.testing.assert_allclose(norm, exact, rtol=relative_bound([40]))
            factor = math.nan if math.isnan(exact) else clip(norm, 1.0)
        twins.step([gradient], HYPER, factor)
        twins.assert_equal(opt)
    assert opt.t == 3


# ---- structures


def group_params(structures):
    return [{"params": x, **(OTHER if g else {})} for g, x in enumerate(structures)]


PLAIN = {
    "sequence": list,
    "tuple": tuple,
    "mapping": lambda a: dict(zip("wbsev", a, strict=True)),
}
GROUPED = {
    "mappings": lambda a: [{"w": a[0], "b": a[1]}, {"w": a[2], "b": a[3], "e": a[4]}],
    "sequences": lambda a: [list(a[:2]), tuple(a[2:])],
    "arrays": list,
    "mixed": lambda a: ({0: a[0]}, [a[1], a[2]], a[3], {"w": a[4]}),
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


def grouped_optimizer(seed=0, **options):
    """Two groups in two dtypes and memory orders; the last tensor has no gradient in one step."""
    w, b, last = draw([(4, 3), (3,), (5,)], seed=seed)
    groups = group_params([{"w": np.asfortranarray(w, np.float32), "b": b}, {"w": last}])
    opt = AdamW(groups, **HYPER, **options)
    for t in range(3):
        grads = draw([(4, 3), (3,), (5,)], seed=10 + t)
        opt.step(group_grads([*grads[:2], None if t == 1 else grads[2]]))
    return opt


def group_grads(grads):
    return [{"w": grads[0].astype(np.float32), "b": grads[1]}, {"w": grads[2]}]


BAD_GRADS = {
    "missing key": (lambda g, p: [g[0], {}], ValueError, ["grads[1]", "missing ['w']"]),
    "extra key": (lambda g, p: [g[0], g[1] | {"x": 1}], ValueError, ["grads[1]", "['x']"]),
    "another key": (lambda g, p: [{"w": 1, "c": 1}, g[1]], ValueError, ["grads[0]", "'b'", "'c'"]),
    "too few groups": (lambda g, p: g[:1], ValueError, ["grads has 1", "expected 2"]),
    "too many groups": (lambda g, p: [*g, g[1]], ValueError, ["grads has 3", "expected 2"]),
    "no groups": (lambda g, p: g[0], TypeError, ["grads is of type dict"]),
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
        ("option", "num_threads", 0, ValueError),
    ],
)
def test_a_bad_number_changes_nothing(where, name, value, error):
    opt = grouped_optimizer()
    if where == "group":
        opt.param_groups[1][name] = value
    elif where == "option":
        setattr(opt, name, value)
    before = snapshot(opt)
    with pytest.raises(error, match="rate unknown" if error is OSError else name):
        opt.step(
            group_grads(draw([(4, 3), (3,), (5,)])), **{name: value} if where == "step" else {}
        )
    assert snapshot(opt) == before


# ---- the constructor

vector, matrix, room = np.ones(3), np.ones((2, 2)), np.ones(4)
BAD_ARGUMENTS = [
    ([], {}, ValueError, ["params", "no array"]),
    ([{"params": []}], {}, ValueError, ["params", "no array"]),
    ("text", {}, TypeError, ["params", "str"]),
    (iter([vector]), {}, TypeError, ["params", "iterator"]),
    ([vector, 1.0], {}, TypeError, ["params[1]", "float"]),
    ([vector, np.ones(2, int)], {}, TypeError, ["params[1]", "int64"]),
    ([vector[::2]], {}, ValueError, ["params[0]", "not dense"]),
    ([{"params": vector}, matrix], {}, TypeError, ["groups and arrays"]),
    ([{"lr": 1.0}], {}, ValueError, ["params[0]", "'params'"]),
    ([{"params": vector, "momentum": 0.9}], {}, ValueError, ["params[0]", "'momentum'"]),
    ([{"params": vector}, {"params": matrix, "lr": -1}], {}, ValueError, ["lr is -1"]),
    (
        [{"params": {"w": room}}, {"params": [room[3:]]}],
        {},
        ValueError,
        ["params[0]['w']", "params[1][0]", "share memory"],
    ),
    (vector, {"lr": -1e-9}, ValueError, ["lr"]),
    (vector, {"lr": "fast"}, TypeError, ["lr"]),
    (vector, {"lr": lambda t: -t}, ValueError, ["lr is -1"]),
    (vector, {"betas": 0.9}, TypeError, ["betas"]),
    (vector, {"betas": (0.9, 1.0)}, ValueError, ["betas[1]"]),
    (vector, {"eps": math.nan}, ValueError, ["eps"]),
    (vector, {"weight_decay": math.inf}, ValueError, ["weight_decay"]),
    (vector, {"max_grad_norm": 0}, ValueError, ["max_grad_norm"]),
    (vector, {"max_grad_norm": -1.0}, ValueError, ["max_grad_norm"]),
    (vector, {"max_grad_norm": "1"}, TypeError, ["max_grad_norm"]),
    (vector, {"state_dtype": "float32"}, ValueError, ["state_dtype", "float32"]),
    (vector, {"num_threads": 0}, ValueError, ["num_threads"]),
    ({"w": vector}, {"decay_mask": {"b": True}}, ValueError, ["decay_mask", "['w']", "['b']"]),
    ([vector, matrix], {"decay_mask": [True]}, ValueError, ["decay_mask has 1", "expected 2"]),
    ({1: vector, "1": matrix}, {}, ValueError, ["params", "'1'"]),  # one name for two tensors
]


@pytest.mark.parametrize(("params", "options", "error", "words"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(params, options, error, words):
    with pytest.raises(error) as caught:
        AdamW(params, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


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


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        {"w": True, "b": False, "u": True},
        matrices_only,
        lambda name, array: not name.endswith("b") and array.ndim == 2,
    ],
    ids=["booleans", "matrices_only", "predicate"],
)
def test_decay_mask(grouped, mask):
    """A tensor that it exempts steps as with weight_decay=0, in copies of the optimizer too."""
    shapes = [(3, 2), (2,), (2, 2)]
    arrays, grads = draw(shapes), dict(zip("wbu", draw(shapes, seed=1), strict=True))
    params = dict(zip("wbu", arrays, strict=True))
    twins = Twins(arrays)
    twins.step(grads.values(), [HYPER, HYPER | {"weight_decay": 0.0}, HYPER])
    if grouped:
        params, grads = [{"params": params}], [grads]
        mask = [mask] if isinstance(mask, dict) else mask
    first = AdamW(params, **HYPER, decay_mask=mask)
    for opt in (copy.deepcopy(first), first):
        opt.step(grads)
        twins.assert_equal(opt)


@pytest.mark.parametrize(("grouped", "prefix"), [(False, ""), (True, "0.")])
def test_a_mask_gets_the_names_of_state_dict(grouped, prefix):
    seen = []
    params = dict(zip("wb", draw([2, 3]), strict=True))

    def mask(name, array):
        seen.append((name, array is params[name[-1]]))
        return True

    opt = AdamW([{"params": params}] if grouped else params, decay_mask=mask)
    assert seen == [(prefix + "w", True), (prefix + "b", True)]
    assert opt.names == list(opt.state_dict()["state"]) == [name for name, _ in seen]


# ---- state


def test_moments_are_visible_and_live():
    opt = grouped_optimizer(amsgrad=True)
    assert [list(opt.m[0]), list(opt.v[1]), len(opt.v_max)] == [["w", "b"], ["w"], 2]
    m, v, v_max = opt.m, opt.v, opt.v_max
    before = [array.copy() for array in leaves([m, v, v_max])]
    opt.step(group_grads([10 * g for g in draw([(4, 3), (3,), (5,)], seed=99)]))
    for old, array in zip(before, leaves([m, v, v_max]), strict=True):
        assert (old != array).any()
    m[1]["w"][:] = 7
    assert (opt.state_dict()["state"]["1.w"]["m"] == 7).all()
    assert grouped_optimizer().v_max is None


@pytest.mark.parametrize(("amsgrad", "moments"), [(False, 2), (True, 3)])
def test_state_nbytes(amsgrad, moments):
    opt = grouped_optimizer(amsgrad=amsgrad)
    assert opt.state_nbytes == moments * (12 * 4 + 3 * 8 + 5 * 8)
    assert opt.state_nbytes == sum(a.nbytes for role in arrays_of(opt)[1:] for a in role)


def test_state_dict_is_a_snapshot():
    opt = grouped_optimizer(amsgrad=True)
    opt.param_groups[0]["betas"] = betas = [0.8, 0.9]
    state = opt.state_dict()
    assert state["t"] == 3
    assert {name: e["step"] for name, e in state["state"].items()} == {"0.w": 3, "0.b": 3, "1.w": 2}
    frozen = copy.deepcopy(state)
    opt.step(group_grads(draw([(4, 3), (3,), (5,)])))
    betas[0] = 0.1
    opt.param_groups[1]["lr"] = 5.0
    assert repr(state) == repr(frozen)
    for entry in state["state"].values():
        for role in ("m", "v", "v_max"):
            assert not any(np.shares_memory(entry[role], a) for a in leaves(arrays_of(opt)))


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_resuming_gives_the_bits_of_never_stopping(layout):
    def train(opt, steps):
        for t in steps:
            opt.step(group_grads(draw([(4, 3), (3,), (5,)], seed=t)), 0.5)

    opt = grouped_optimizer(**EVERYTHING)
    opt.param_groups[0] |= {"lr": halving, "weight_decay": 0.3}
    train(opt, range(10))
    state = opt.state_dict()
    params = [array.copy() for array in arrays_of(opt)[0]]
    train(opt, range(10, 30))

    other = grouped_optimizer(seed=7, amsgrad=True)
    kept = arrays_of(other)
    for array, saved in zip(kept[0], params, strict=True):
        array[...] = saved
    for entry in state["state"].values():
        entry.update({role: layout(entry[role]) for role in ("m", "v", "v_max")})
    other.load_state_dict(state)
    for before, after in zip(leaves(kept), leaves(arrays_of(other)), strict=True):
        assert before is after  # its own memory, dtype and order
    for entry in state["state"].values():
        entry["m"][...] = entry["v"][...] = math.nan  # not aliased
    train(other, range(10, 30))
    assert snapshot(other) == snapshot(opt)
    assert other.maximize is other.skip_nonfinite is True


DELETED = object()
CORRUPTIONS = [
    *((["t"], value, ValueError) for value in (-1, 1.5, "3", None, 2**63, DELETED)),
    (["extra"], 1, ValueError),
    (["param_groups"], 3, TypeError),
    (["param_groups"], [], ValueError),
    (["param_groups"], [1, 2], TypeError),
    (["param_groups", 1, "params"], [], ValueError),
    *((["param_groups", 1, "lr"], value, ValueError) for value in (-1.0, math.nan, DELETED)),
    (["param_groups", 1, "lr"], "1", TypeError),
    (["param_groups", 1, "lr"], lambda t: math.inf, ValueError),
    (["param_groups", 0, "betas"], 0.9, TypeError),
    (["param_groups", 0, "betas"], (0.9, 1 - 1e-9), ValueError),  # 1 in float32
    (["param_groups", 1, "eps"], -1e-8, ValueError),
    (["param_groups", 1, "weight_decay"], None, TypeError),
    *((["max_grad_norm"], value, ValueError) for value in (0.0, -1, math.inf, DELETED)),
    (["max_grad_norm"], "1", TypeError),
    (["maximize"], "no", TypeError),
    (["skip_nonfinite"], None, TypeError),
    (["state"], None, TypeError),
    (["state", "1.w"], DELETED, ValueError),
    (["state", "2.w"], {}, ValueError),
    (["state", "1.w"], None, TypeError),
    *(
        (["state", "1.w", "step"], x, ValueError)
        for x in (-1, 0.5, None, 2**63 - 1, 2**63, DELETED)
    ),
    *((["state", "1.w", role], DELETED, ValueError) for role in ("m", "v", "v_max")),
    (["state", "1.w", "extra"], np.ones(5), ValueError),
    (["state", "1.w", "m"], [0.0] * 5, TypeError),
    (["state", "1.w", "v"], np.ones(5, np.float32), TypeError),
    (["state", "1.w", "v"], np.ones(5, np.dtype(float).newbyteorder()), TypeError),
    *((["state", "1.w", "v_max"], np.ones(n), ValueError) for n in (1, 4, (5, 1), ())),
]


@pytest.mark.parametrize(("path", "value", "error"), CORRUPTIONS)
def test_a_bad_state_is_named_and_nothing_changes(path, value, error):
    """The state is another one throughout, so that whatever were loaded from it would show."""
    opt, saved = grouped_optimizer(amsgrad=True), grouped_optimizer(seed=7, **EVERYTHING)
    saved.step(group_grads(draw([(4, 3), (3,), (5,)])))
    saved.param_groups[0] |= OTHER
    state = saved.state_dict()
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    before = snapshot(opt)
    with pytest.raises(error) as caught:
        opt.load_state_dict(state)
    assert path[-1] in str(caught.value)
    assert snapshot(opt) == before


@pytest.mark.parametrize("state", [None, 3, [], {}])
def test_what_is_no_state(state):
    opt = grouped_optimizer()
    with pytest.raises((TypeError, ValueError), match="state_dict"):
        opt.load_state_dict(state)


def test_a_loaded_schedule_is_asked_for_the_step_that_comes_next():
    """One that ends is not asked for a step behind its end, where this optimizer happens to be."""
    rates = [None, 0.1, 0.2, 0.3]
    opt = AdamW(np.ones(2), lr=rates.__getitem__)
    opt.step(np.ones(2))
    state = opt.state_dict()
    opt.step(np.ones(2))
    opt.step(np.ones(2))
    opt.load_state_dict(state)
    assert opt.t == 1


def halving(t):
    return 0.1 * 0.5**t


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_share_no_memory_and_go_on_alike(copied):
    opt = grouped_optimizer(**EVERYTHING)
    opt.param_groups[1]["lr"] = halving
    opt.num_threads = 2
    before = snapshot(opt)
    other = copied(opt)
    assert snapshot(other) == before
    for a in leaves(arrays_of(opt)):
        assert not any(np.shares_memory(a, b) for b in leaves(arrays_of(other)))
    for a, b in zip(leaves(arrays_of(opt)), leaves(arrays_of(other)), strict=True):
        assert (a.dtype, a.strides) == (b.dtype, b.strides)
    gradients = [group_grads(draw([(4, 3), (3,), (5,)], seed=t)) for t in range(5)]
    norms = [other.step(g) for g in gradients]
    other.param_groups[0]["lr"] = 1.0
    assert snapshot(opt) == before
    assert norms == [opt.step(g) for g in gradients]
    opt.param_groups[0]["lr"] = 1.0
    assert snapshot(opt) == snapshot(other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_together_with_the_model_steps_the_copied_model(copied):
    model = {"w": np.ones(3)}
    other, opt = copied((model, AdamW(model)))
    opt.step({"w": np.ones(3)})
    assert (other["w"] != 1).all()
    assert (model["w"] == 1).all()


def test_repr():
    text = repr(grouped_optimizer(amsgrad=True, max_grad_norm=0.5))
    for word in ("AdamW(3 tensors, 20 parameters, t=3", "amsgrad=True", "max_grad_norm=0.5"):
        assert word in text
    for g, hyper in enumerate([HYPER, OTHER]):
        line = next(line for line in text.splitlines() if f"group {g}" in line)
        assert all(f"{name}={value!r}" in line for name, value in hyper.items())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that signals")
def test_an_interrupt_leaves_whole_steps():
    """Ctrl-C that arrives within a step is raised behind it, with the step counted."""
    opt = AdamW(np.ones(200_000), num_threads=1)
    gradient = np.full(200_000, 0.1)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in np.linspace(1e-4, 2e-3, 100):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, delay)
                while True:
                    opt.step(gradient)
            assert opt.t == opt.state_dict()["state"]["params"]["step"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_changed_dict_does_not_mix_up_tensors():
    """The optimizer keeps its own arrangement of the arrays that it was given."""
    params = {"w": np.ones(3), "b": np.full(3, 2.0)}
    opt = AdamW(params)
    opt.step({"w": np.full(3, 5.0), "b": np.full(3, -7.0)})
    params["w"] = params.pop("w")
    params["new"] = np.ones(1)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        for name in ("w", "b"):
            np.testing.assert_array_equal(other.m[name], opt.m[name])
            np.testing.assert_array_equal(other.param_groups[0]["params"][name], params[name])


@pytest.mark.parametrize("mask", [matrices_only, [True]])
def test_a_mask_is_asked_behind_the_checks(mask):
    with pytest.raises(TypeError, match=r"params\[0\] is of type float"):
        AdamW([1.0], decay_mask=mask)


def test_flags_of_other_kinds_are_saved_as_bools():
    opt = AdamW(np.ones(2))
    opt.skip_nonfinite, opt.maximize = 1, np.True_
    other = AdamW(np.ones(2))
    other.load_state_dict(opt.state_dict())
    assert (other.skip_nonfinite, other.maximize) == (True, True)


def test_a_state_is_checked_at_its_own_step():
    """A rate that the bias correction of an early step makes too large for float32."""
    opt = AdamW(np.ones(2, np.float32))
    state = opt.state_dict()
    for _ in range(400):
        opt.step(np.ones(2, np.float32))
    state["param_groups"][0]["lr"] = 1e38
    with pytest.raises(ValueError, match="lr is 1e\\+38"):
        opt.load_state_dict(state)
    assert opt.t == 400
