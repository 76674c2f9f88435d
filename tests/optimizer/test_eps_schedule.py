"""eps as a function of the step, as lr can be one."""

import copy
import math
import pickle

import numpy as np
import pytest
from twin import adamw_twin

from fused_adamw import AdamW

BETA2 = 0.999


def halving(t):
    return 0.1 / 2**t


def eps_hat(t):
    """0.1 added to the root of v before bias correction."""
    return 0.1 / math.sqrt(1 - BETA2**t)


def test_each_step_has_the_bits_of_the_twin(dtype):
    rng = np.random.default_rng(0)
    w = rng.standard_normal(100).astype(dtype)
    expected, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    opt = AdamW(w, lr=lambda t: 0.3 / t, eps=halving)
    for t in range(1, 6):
        g = rng.standard_normal(100).astype(dtype)
        opt.step(g)
        expected, m, v = adamw_twin(expected, g, m, v, t, lr=0.3 / t, eps=halving(t))
        np.testing.assert_array_equal(w, expected)


def test_it_translates_epsilon_hat():
    """The formula of section 2 of the paper of Adam, with epsilon hat."""
    w, m, v = np.ones(4), np.zeros(4), np.zeros(4)
    expected = w.copy()
    opt = AdamW(w, lr=0.01, eps=eps_hat, weight_decay=0.0)
    for t in range(1, 50):
        g = np.sin(np.arange(4) + t)
        opt.step(g)
        m, v = 0.9 * m + 0.1 * g, BETA2 * v + (1 - BETA2) * g * g
        rate = 0.01 * math.sqrt(1 - BETA2**t) / (1 - 0.9**t)
        expected -= rate * m / (np.sqrt(v) + 0.1)
    np.testing.assert_allclose(w, expected, rtol=1e-13)  # some roundings for each of 50 steps


def test_groups_have_schedules_of_their_own():
    params = [np.ones(3), np.ones(3)]
    opt = AdamW([{"params": params[0], "eps": halving}, {"params": params[1]}], eps=0.5)
    for _ in range(2):
        opt.step([np.ones(3), np.ones(3)])
    for w, eps in zip(params, (halving, lambda t: 0.5), strict=True):
        alone, m, v = np.ones(3), np.zeros(3), np.zeros(3)
        for t in (1, 2):
            alone, m, v = adamw_twin(alone, np.ones(3), m, v, t, eps=eps(t))
        np.testing.assert_array_equal(w, alone)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_and_state_dicts_keep_it(copied):
    opt = AdamW(np.ones(3), eps=halving)
    opt.step(np.ones(3))
    assert copied(opt).param_groups[0]["eps"] is halving
    other = AdamW(np.ones(3))
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["eps"] is halving


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "x", None])
def test_a_bad_value_changes_nothing(value):
    with pytest.raises((TypeError, ValueError), match=r"^eps must be"):
        AdamW(np.ones(3), eps=lambda t: value)
    w = np.ones(3)
    opt = AdamW(w, eps=lambda t: value if t == 2 else 0.1)
    opt.step(np.ones(3))
    before = w.copy()
    with pytest.raises((TypeError, ValueError), match=r"^eps must be"):
        opt.step(np.ones(3))
    np.testing.assert_array_equal(w, before)
    assert opt.t == 1


@pytest.mark.parametrize("name", ["betas", "weight_decay"])
def test_what_cannot_be_scheduled_is_refused(name):
    with pytest.raises(TypeError, match=f"^{name} must be"):
        AdamW(np.ones(3), **{name: lambda t: 0.1})
