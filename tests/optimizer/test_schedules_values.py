"""Schedules are frozen values, whose rates are floats."""

import copy
import pickle

import numpy as np
import pytest
from schedule_rates import SCHEDULES, rates

from fused_adamw.schedules import Constant, CosineDecay, Joined, LinearDecay, LinearWarmup


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_repr_pickle_copy_and_equality(schedule):
    names = {
        kind.__name__: kind for kind in (Constant, LinearWarmup, LinearDecay, CosineDecay, Joined)
    }
    for same in (
        eval(repr(schedule), names),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ):
        assert same == schedule
        assert hash(same) == hash(schedule)
        assert rates(same, 20) == rates(schedule, 20)
    assert sum(schedule == other for other in SCHEDULES) == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_frozen(schedule):
    with pytest.raises(AttributeError):
        schedule.steps = 3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_rates_are_floats(schedule):
    assert {type(rate) for rate in rates(schedule, 20)} == {float}


def test_a_warm_up_ends_at_its_argument():
    start, peak = 0.001, 0.009
    assert start + (peak - start) > peak  # what the formula would round to
    assert rates(LinearWarmup(peak, 4, start=start), 6)[3:] == [peak] * 3


def test_a_float32_does_not_set_the_precision():
    third = np.float32(1 / 3)
    for kind in LinearWarmup, LinearDecay, CosineDecay:
        assert rates(kind(third, 7), 9) == rates(kind(float(third), 7), 9)
        assert type(kind(third, 7)(3)) is float
