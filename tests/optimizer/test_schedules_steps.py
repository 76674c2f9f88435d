"""The optimizer asks a schedule for the rate of each step, which may miss zero by rounding."""

import numpy as np
import pytest
from twin import adamw_twin

from fused_adamw import AdamW, fused_adamw
from fused_adamw.schedules import CosineDecay, LinearWarmup


def test_the_optimizer_asks_for_the_rate_of_each_step():
    schedule = LinearWarmup(0.1, 3).then(CosineDecay(0.1, 4, end=0.01))
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(9), rng.standard_normal((10, 9))
    scheduled, by_hand = start.copy(), start.copy()
    one, other = AdamW(scheduled, lr=schedule), AdamW(by_hand)
    for t, grad in enumerate(grads, start=1):
        one.step(grad)
        other.param_groups[0]["lr"] = schedule(t)
        other.step(grad)
        assert np.array_equal(scheduled, by_hand)


# ---- rounding errors of 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_schedule_that_misses_zero_by_rounding(dtype):
    """It is stepped with as it is; the state of such a step is loaded, too."""
    g = np.array([0.3, -2.0], dtype)
    p = np.array([1e-20, -2.0], dtype)
    expected = p.copy(), np.zeros_like(p), np.zeros_like(p)
    opt = AdamW(p, lr=lambda t: 1e-17 * (2 - t), weight_decay=0.5)
    for t in range(1, 5):
        opt.step(g)
        expected = adamw_twin(expected[0], g, *expected[1:], t, 1e-17 * (2 - t), weight_decay=0.5)
        np.testing.assert_array_equal(p, expected[0])
    assert np.any(expected[0] != np.array([1e-20, -2.0], dtype))
    again = AdamW(p, lr=-1e-17)
    again.load_state_dict(again.state_dict())
    m, v = np.zeros_like(p), np.zeros_like(p)
    expected = adamw_twin(p, g, m, v, 1, -1e-17)
    fused_adamw(p, g, m, v, 1, lr=-1e-17)
    np.testing.assert_array_equal(p, expected[0])


@pytest.mark.parametrize("options", [{"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}])
def test_a_schedule_that_misses_zero_with_low_precision_state(options):
    p = np.ones(300, np.float32)
    opt = AdamW(p, lr=lambda t: -1e-17, **options)
    opt.step(np.ones_like(p))
    assert (p == 1).all()


@pytest.mark.parametrize("lr", [-1.01e-12, -1e-9])
def test_a_rate_that_is_below_zero(lr):
    p = np.ones(3)
    opt = AdamW(p, lr=lambda t: 0.1 if t == 1 else lr)
    opt.step(np.ones(3))
    before = p.copy()
    with pytest.raises(ValueError, match=r"^lr must be a finite number, 0 or more; got -1"):
        opt.step(np.ones(3))
    np.testing.assert_array_equal(p, before)
