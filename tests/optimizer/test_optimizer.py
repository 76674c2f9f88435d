"""``AdamW``: each step has the bits of the NumPy twin, and a bad call or state changes nothing."""

import copy
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizers import EVERYTHING, HYPER, OTHER, SHAPES, Twins, clip, draw, steps_of
from twin import adamw_twin

from fused_adamw import AdamW

SIZES = [1, 1000, 32767, 32768, 32769, 65535, 65536, 65537]  # threads join at 2 x 32,768


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options", [{}, *({name: value} for name, value in EVERYTHING.items()), EVERYTHING], ids=str
)
def test_every_option(dtype, options, size, num_threads):
    p, *gradients = draw([size] * 4, dtype)
    opt = AdamW(p, **HYPER, **options, num_threads=num_threads)
    twins = Twins([p], opt.amsgrad, opt.ema_decay)
    sign = -1 if opt.maximize else 1
    for t, g in enumerate(gradients, 1):
        norm = opt.step(g, grad_scale=0.3 / t)
        assert (norm is None) == (opt.max_grad_norm is None and not opt.skip_nonfinite)
        clipped = clip(norm, opt.max_grad_norm) if opt.max_grad_norm else 1.0
        twins.step([g], HYPER, sign * (0.3 / t * clipped))
        twins.assert_equal(opt)
    assert opt.t == len(gradients)


@pytest.mark.slow
def test_many_steps_in_which_everything_changes(dtype):
    """Groups, missing gradients, options and hyper-parameters, over 150 steps."""
    rng = np.random.default_rng(1)
    params = draw(SHAPES, dtype)
    groups = [{"params": params[:2]}, {"params": params[2:], **OTHER, "lr": lambda t: 0.1 / t}]
    opt = AdamW(groups, **HYPER, amsgrad=True, skip_nonfinite=True, ema_decay=0.5)
    twins = Twins(params, amsgrad=True, ema_decay=0.5)
    for t in range(1, 151):
        grads = [None if rng.random() < 0.3 else g for g in draw(SHAPES, dtype, seed=t)]
        scale = float(rng.choice([1.0, -1.0, 0.25, 3.7]))
        lr, weight_decay = rng.random(2) / 10
        opt.param_groups[0] |= {"lr": lr, "weight_decay": weight_decay}
        opt.maximize = bool(rng.random() < 0.5)
        opt.max_grad_norm = rng.choice([None, 0.5, 100.0])
        opt.num_threads = int(rng.integers(1, 4))
        opt.ema_decay = twins.ema_decay = rng.random()
        norm = opt.step([grads[:2], grads[2:]], scale)
        if opt.max_grad_norm:
            scale *= clip(norm, opt.max_grad_norm)
        first, second = HYPER | {"lr": lr, "weight_decay": weight_decay}, OTHER | {"lr": 0.1 / t}
        hypers = [first, first, second, second, second]
        twins.step(grads, hypers, -scale if opt.maximize else scale)
        twins.assert_equal(opt)
    assert opt.t == 150


@pytest.mark.slow
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
    ema_decay=st.none() | st.floats(0, 0.99999),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_shapes_and_numbers(
    seed,
    shapes,
    lr,
    betas,
    eps,
    weight_decay,
    grad_scale,
    max_grad_norm,
    switches,
    order,
    ema_decay,
    dtype,
):
    hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    options = dict(zip(["amsgrad", "maximize", "skip_nonfinite"], switches, strict=True))
    options["ema_decay"] = ema_decay
    params = [np.asarray(p, order=order) for p in draw(shapes, dtype, seed)]
    opt = AdamW(params, **hyper, **options, max_grad_norm=max_grad_norm)
    twins = Twins(params, opt.amsgrad, ema_decay)
    for t in range(3):
        grads = draw(shapes, dtype, seed + t)
        norm = opt.step(grads, grad_scale)
        scale = grad_scale * (clip(norm, max_grad_norm) if max_grad_norm else 1.0)
        twins.step(grads, hyper, -scale if opt.maximize else scale)
    twins.assert_equal(opt)


MAX_STEPS = 2**63 - 2**32


@pytest.mark.parametrize("steps", [2**24 + 5, 2**31, 2**53, 2**62, MAX_STEPS - 1])
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


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (-1, ValueError, f"must be a number of steps, 0 or more and below {MAX_STEPS}; got -1"),
        (10**400, ValueError, "must be within the range of float64; got a number beyond it"),
        (MAX_STEPS, ValueError, f"0 or more and below {MAX_STEPS}; got {MAX_STEPS}"),
        (True, TypeError, "must be an integer; got True"),
        (1.0, TypeError, "must be an integer; got 1.0"),
        ("1", TypeError, "must be an integer; got '1'"),
    ],
)
def test_counts_that_are_refused(steps, error, message):
    p, m, v = draw([9] * 3)
    opt = AdamW(p)
    state = opt.state_dict()
    entries = {"params": {"step": steps, "m": m, "v": v * v}}
    with pytest.raises(error, match=message):
        opt.load_state_dict(state | {"t": steps})
    with pytest.raises(error, match=message):
        opt.load_state_dict(state | {"state": entries})
    assert opt.t == 0


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


@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_are_only_read(dtype, order):
    params = [np.asarray(p, order=order) for p in draw([(30, 20), (4,)], dtype)]
    twins = Twins(params, amsgrad=True, ema_decay=0.9)
    opt = AdamW(params, **HYPER, **EVERYTHING)
    grads = draw([(30, 20), (4,)], dtype, seed=1)
    before = [g.tobytes() for g in grads]
    for g in grads:
        g.flags.writeable = False
    norm = opt.step(grads, 0.5)
    assert [g.tobytes() for g in grads] == before
    twins.step(grads, HYPER, -0.5 * clip(norm, 0.5))
    twins.assert_equal(opt)


def test_a_copy_keeps_attributes_that_a_program_has_added():
    opt = AdamW(np.ones(3))
    opt.values, opt.steps, opt.epoch = 3, 5, 7
    other = copy.deepcopy(opt)
    assert (other.values, other.steps, other.epoch) == (3, 5, 7)
