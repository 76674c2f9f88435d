"""Steps, rates and lengths that a schedule refuses, by name."""

import math

import numpy as np
import pytest
from schedule_rates import SCHEDULES

from fused_adamw.schedules import Constant, CosineDecay, LinearDecay, LinearWarmup


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0, -1, float("nan")])
def test_t_below_1(schedule, t):
    with pytest.raises(ValueError, match=r"t must be a step number .*; got"):
        schedule(t)


RATES = [
    (lambda x: Constant(x), "lr"),
    (lambda x: LinearWarmup(x, 2), "peak"),
    (lambda x: LinearWarmup(0.3, 2, start=x), "start"),
    (lambda x: LinearDecay(x, 2), "start"),
    (lambda x: LinearDecay(0.3, 2, end=x), "end"),
    (lambda x: CosineDecay(x, 2), "start"),
    (lambda x: CosineDecay(0.3, 2, end=x), "end"),
]


@pytest.mark.parametrize(("make", "name"), RATES)
@pytest.mark.parametrize("value", [-0.1, math.inf, -math.inf, math.nan])
def test_rate_out_of_range(make, name, value):
    with pytest.raises(
        ValueError, match=f"^{name} must be a finite number, 0 or more; got {value}"
    ):
        make(value)


@pytest.mark.parametrize(("make", "name"), RATES)
@pytest.mark.parametrize("value", ["0.1", None, 0.1j, [0.1]])
def test_rate_that_is_no_number(make, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a number, 0 or more; got "):
        make(value)


STEPS = [
    lambda n: Constant(0.3, n),
    lambda n: LinearWarmup(0.3, n),
    lambda n: LinearDecay(0.3, n),
    lambda n: CosineDecay(0.3, n),
]


@pytest.mark.parametrize("make", STEPS)
def test_steps_out_of_range(make):
    for steps in 0, -5:
        with pytest.raises(ValueError, match=f"^steps must be 1 or more; got {steps}"):
            make(steps)
    for steps in 2.0, "2", True, [2]:
        with pytest.raises(TypeError, match=r"^steps must be an integer; got"):
            make(steps)


@pytest.mark.parametrize("make", STEPS)
def test_steps_of_numpy(make):
    for kind in (np.int64, np.uint8):
        schedule = make(kind(7))
        assert schedule == make(7)
        assert type(schedule.steps) is int


@pytest.mark.parametrize(
    "make", [Constant, lambda x: LinearWarmup(x, 3), lambda x: CosineDecay(x, 3)]
)
def test_rates_beyond_float64(make):
    with pytest.raises(ValueError, match="must be a finite number, 0 or more; got 1000"):
        make(10**400)


def test_the_wrong_way():
    with pytest.raises(ValueError, match=r"^start must be at most peak \(0\.3\); got 0\.4"):
        LinearWarmup(0.3, 5, start=0.4)
    for decay in LinearDecay, CosineDecay:
        with pytest.raises(ValueError, match=r"^end must be at most start \(0\.3\); got 0\.4"):
            decay(0.3, 5, end=0.4)
