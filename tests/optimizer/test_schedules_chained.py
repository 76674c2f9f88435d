"""Schedules after one another, those of the caller among them."""

import copy
import pickle

import numpy as np
import pytest
from schedule_rates import rates

from fused_adamw import AdamW
from fused_adamw.checkpoint import save_checkpoint
from fused_adamw.schedules import Constant, CosineDecay, Joined, LinearDecay, LinearWarmup


def test_then_counts_from_one_again():
    joined = LinearWarmup(1.0, 2).then(Constant(1.0, 2)).then(LinearDecay(1.0, 2))
    assert rates(joined, 8) == [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert joined.steps == 6


def test_then_takes_any_schedule_inside_another():
    a, b, c = LinearWarmup(1.0, 2), Constant(0.5, 3), CosineDecay(0.5, 4)
    assert rates(a.then(b).then(c), 12) == rates(a.then(b.then(c)), 12)
    assert a.then(b.then(c)).steps == 9


@pytest.mark.parametrize("t", ["1", None, [1]])
def test_steps_that_are_no_numbers(t):
    for schedule in (Constant(0.1), LinearWarmup(0.1, 2).then(LinearDecay(0.1, 2))):
        with pytest.raises(TypeError, match=r"^t must be a step number 1, 2, 3, \.\.\.; got "):
            schedule(t)


class Halves:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, t):
        return 0.5**t


def test_a_schedule_of_the_caller_may_tell_when_it_ends():
    assert Constant(1.0, 2).then(Halves(3)).steps == 5
    assert Constant(1.0, 2).then(Halves(None)).steps is None
    with pytest.raises(TypeError, match=r"^following.steps must be an int or None; got '3'$"):
        Constant(1.0, 2).then(Halves("3"))
    with pytest.raises(ValueError, match=r"^following.steps must be 1 or more; got 0$"):
        Constant(1.0, 2).then(Halves(0))
    with pytest.raises(TypeError, match=r"^first must be a schedule of this module; got <"):
        Joined(Halves(3), Constant(1.0))


def test_then_takes_any_function_of_t():
    joined = Constant(1.0, 2).then(lambda t: np.float32(1 / t))
    assert rates(joined, 5) == [1.0, 1.0, 1.0, 0.5, np.float32(1 / 3)]
    assert {type(rate) for rate in rates(joined, 5)} == {float}
    assert joined.steps is None
    with pytest.raises(ValueError, match="first must have `steps`"):
        joined.then(Constant(1.0))


def test_a_schedule_that_never_ends_cannot_be_chained():
    with pytest.raises(ValueError, match="first must have `steps`"):
        Constant(0.3).then(Constant(0.1))


@pytest.mark.parametrize("following", [0.1, None, "Constant(0.1)"])
def test_only_a_function_follows(following):
    with pytest.raises(TypeError, match="following"):
        Constant(0.3, 2).then(following)


def restarts(count):
    schedule = decay = CosineDecay(1.0, 2)
    for _ in range(count):
        schedule = schedule.then(decay)
    return schedule


def restarts_from_the_end(count):
    schedule = decay = CosineDecay(1.0, 2)
    for _ in range(count):
        schedule = decay.then(schedule)
    return schedule


@pytest.mark.parametrize("chained", [restarts, restarts_from_the_end])
def test_thousands_in_a_chain(chained, tmp_path):
    """More than Python nests calls."""
    count = 3000
    schedule, same, longer = chained(count), restarts(count), restarts(count + 1)
    assert rates(schedule, 2 * count + 4) == [1.0, 0.5] * (count + 1) + [0.0, 0.0]
    assert repr(schedule).count(".then(") == count
    assert (schedule == same, schedule == longer) == (True, False)
    assert hash(schedule) == hash(same) != hash(longer)
    opt = AdamW(np.ones(3), lr=schedule)
    for copied in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        copied.step(np.ones(3))
        assert copied.param_groups[0]["lr"] == schedule
        assert copied.param_groups[0]["lr"].steps == 2 * count + 2
    save_checkpoint(tmp_path / "x", opt)
