"""``AdamW`` takes the steps of ``torch.optim.AdamW``: every option, and all pairs of them."""

import math
from itertools import combinations

import numpy as np
import pytest
from torch_bounds import (
    FACTOR_ROUNDINGS,
    FIRST,
    MAX_NORM,
    SECOND,
    SHAPES,
    STEPS,
    bounds,
    gradients,
)

from fused_adamw import AdamW

OPTIONS = [
    "amsgrad",
    "maximize",
    "groups",
    "none_grads",
    "changing_lr",
    "callable_lr",
    "max_grad_norm",
    "grad_scale",
    "skip_nonfinite",
]


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


class Torch:
    """PyTorch's loop, with the options as its users would write them."""

    def __init__(self, torch, params, groups, options):
        self.torch = torch
        self.params = [torch.tensor(p, requires_grad=True) for p in params]
        hypers = [FIRST, SECOND] if groups else [FIRST]
        parts = [self.params[:2], self.params[2:]] if groups else [self.params]
        self.opt = torch.optim.AdamW(
            [{"params": part, **hyper} for part, hyper in zip(parts, hypers, strict=True)],
            amsgrad="amsgrad" in options,
            maximize="maximize" in options,
            foreach=False,
            fused=False,
        )

    def step(self, grads, grad_scale, max_grad_norm):
        for p, g in zip(self.params, grads, strict=True):
            p.grad = None if g is None else self.torch.tensor(g) * grad_scale
        norm = None
        if max_grad_norm:
            norm = self.torch.nn.utils.clip_grad_norm_(self.params, max_grad_norm).item()
        self.opt.step()
        return norm

    def arrays(self):
        """p, and m, v (and v_max), of each tensor."""
        for p in self.params:
            state = self.opt.state[p]
            keys = [key for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if key in state]
            yield [p.detach().numpy(), *(state[key].numpy() for key in keys)]


def scheduled(t):
    return FIRST["lr"] * (0.5 + 0.5 / t)


def set_rates(ours, theirs, t, options):
    """lr of step t, for PyTorch, and where it is not callable for us; weight decay beside it."""
    if "callable_lr" in options:
        theirs.param_groups[0]["lr"] = scheduled(t)
    if "changing_lr" in options:
        rate, decay = 1e-2 * (1 + 0.5 * math.sin(t)), 0.1 * (t % 3)
        which = -1 if "groups" in options else 0
        for opt in (ours, theirs):
            opt.param_groups[which]["weight_decay"] = decay
        if which or "callable_lr" not in options or t % 2:
            theirs.param_groups[which]["lr"] = rate
            ours.param_groups[which]["lr"] = rate
        else:
            ours.param_groups[0]["lr"] = scheduled


def our_optimizer(params, groups, options):
    first = FIRST | ({"lr": scheduled} if "callable_lr" in options else {})
    switches = {name: name in options for name in ("amsgrad", "maximize", "skip_nonfinite")}
    norm = {"max_grad_norm": MAX_NORM if "max_grad_norm" in options else None}
    if groups:
        groups = [{"params": params[:2]}, {"params": params[2:], **SECOND}]
    return AdamW(groups or params, **first, **switches, **norm)


def flat(structure, groups):
    return [array for part in structure for array in part] if groups else structure


def assert_near(ours, groups, theirs, dtype, options, t, largest, most):
    p_bound, m_bound, v_bound = bounds(dtype, options, t, largest)
    moments = [flat(x, groups) for x in (ours.m, ours.v, ours.v_max) if x is not None]
    params = flat([group["params"] for group in ours.param_groups], True)
    for own, others in zip(zip(params, *moments, strict=True), theirs.arrays(), strict=True):
        p, m, *vs = (np.asarray(a, np.float64) for a in own)
        other_p, other_m, *other_vs = (a.astype(np.float64) for a in others)
        assert np.abs(p - other_p).max() <= p_bound
        assert np.abs(m - other_m).max() <= m_bound * most
        for v, other_v in zip(vs, other_vs, strict=True):
            assert (np.abs(v - other_v) <= v_bound * other_v).all()


def assert_parity(torch, dtype, options):
    rng = np.random.default_rng(3)
    params = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    groups = "groups" in options
    theirs = Torch(torch, params, groups, options)
    ours = our_optimizer(params, groups, options)
    largest = most = 0.0
    for t in range(1, STEPS + 1):
        grads = gradients(rng, t, dtype, options)
        scale = [1.0, 1.5][t % 2] / 1000 if "grad_scale" in options else 1.0
        if "max_grad_norm" in options:  # every third step is not clipped
            unit = 1e-3 if "grad_scale" in options else 1.0
            ours.max_grad_norm = (100.0 if t % 3 == 0 else MAX_NORM) * unit
        set_rates(ours, theirs.opt, t, options)
        mine = [grads[:2], grads[2:]] if groups else grads
        if "skip_nonfinite" in options and t % 10 == 0:
            last = np.full((5, 2), [np.nan, np.inf][t % 20 == 0], dtype)
            ours.step([[None, None], [None, last]] if groups else [None, None, None, last])
        norm = ours.step(mine, scale)
        other_norm = theirs.step(grads, scale, ours.max_grad_norm)
        if other_norm is not None:
            assert abs(norm - other_norm) <= FACTOR_ROUNDINGS * np.finfo(dtype).eps / 2 * norm
        largest = max(largest, *(np.abs(p).max() for p in params))
        most = max(most, 1.5 * scale)
        if t in (1, 2, 10, 50, STEPS):
            assert_near(ours, groups, theirs, dtype, options, t, largest, most)
    assert ours.t == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), *((name,) for name in OPTIONS)], ids="+".join)
def test_every_option(torch, dtype, options):
    assert_parity(torch, dtype, options)


@pytest.mark.slow
@pytest.mark.parametrize("options", list(combinations(OPTIONS, 2)), ids="+".join)
def test_every_pair_of_options(torch, dtype, options):
    assert_parity(torch, dtype, options)


def test_all_options_at_once(torch, dtype):
    assert_parity(torch, dtype, tuple(OPTIONS))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"amsgrad": True}], ids=str)
def test_gradients_that_are_not_finite_do_the_same_harm(torch, dtype, value, options):
    """Which elements stay finite; a later step does not mend the others."""
    params = [np.ones(3, dtype), np.ones(2, dtype)]
    theirs = Torch(torch, params, False, options)
    ours = AdamW(params, **FIRST, **options)
    for bad in (value, 1.0):
        grads = [np.array([1.0, bad, 2.0], dtype), np.ones(2, dtype)]
        ours.step(grads)
        theirs.step(grads, 1.0, options.get("max_grad_norm"))
        for p, (other, *_) in zip(params, theirs.arrays(), strict=True):
            np.testing.assert_array_equal(np.isfinite(p), np.isfinite(other))
