"""Schedules that are called with what is no step, that return no number, or that change things."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from fused_adamw import AdamW
from fused_adamw.schedules import Constant, CosineDecay, LinearDecay, LinearWarmup

SCHEDULES = [
    Constant(0.1),
    CosineDecay(0.1, 9),
    LinearDecay(0.1, 9),
    LinearWarmup(0.1, 9),
    Constant(0.1, 2).then(Constant(0.2)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [np.arange(1, 4), np.array([3]), [3], None, "3", 3j], ids=repr)
def test_what_is_no_step(schedule, t):
    with pytest.raises(TypeError, match=r"^t must be a step number 1, 2, 3, \.\.\.; got "):
        schedule(t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    "kind",
    [np.int64, np.uint8, np.array, float, np.float16, np.float32, np.longdouble, Fraction, Decimal],
)
def test_numbers_of_all_kinds_are_steps(schedule, kind):
    """Of the same rate to the last bit, whatever the precision of the number is."""
    rate = schedule(kind(3))
    assert (rate, type(rate)) == (schedule(3), float)


def test_what_follows_is_called_with_an_integer():
    rates = [0.3, 0.2, 0.1]
    schedule = Constant(1.0, 2).then(lambda t: rates[t - 1])
    assert [schedule(np.int16(t)) for t in (2, 3, 4, 5)] == [1.0, *rates]


NO_NUMBERS = ["x", "0.1", b"0.1", np.array("0.1"), np.complex64(0.1), 0.1j, Decimal("sNaN")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [None, (1, 2), *NO_NUMBERS], ids=repr)
def test_what_follows_has_to_return_a_number(value):
    schedule = Constant(0.1, 1).then(lambda t: value)
    assert schedule(1) == 0.1
    with pytest.raises(TypeError, match="following must return a number; got "):
        schedule(2)
    opt = AdamW(np.ones(3), lr=schedule)
    opt.step(np.ones(3))
    with pytest.raises(TypeError, match="following must return a number"):
        opt.step(np.ones(3))
    assert opt.t == 1


def test_what_follows_returns_more_than_float64_has():
    schedule = Constant(0.1, 1).then(lambda t: 10**400)
    with pytest.raises(ValueError, match="following must return a number within the range of fl"):
        schedule(2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_rate(value):
    """Also where NumPy or Python would make a float of it."""
    for make in (Constant, lambda x: LinearWarmup(x, 2), lambda x: CosineDecay(1.0, 2, end=x)):
        with pytest.raises(TypeError, match=r"^(lr|peak|end) must be a number, 0 or more; got "):
            make(value)


def ending_after(number):
    return type("Own", (), {"steps": number, "__call__": lambda self, t: 0.1})()


def test_the_length_of_what_follows():
    found = Constant(0.1, 3).then(ending_after(np.int64(3))).steps
    assert (found, type(found)) == (6, int)
    for number in True, 3.0, "3":
        with pytest.raises(TypeError, match=r"^following\.steps must be an int or None; got "):
            Constant(0.1, 3).then(ending_after(number))


def changing(change):
    """An optimizer with a schedule that makes a change before its second step."""
    w = np.ones(3)

    def schedule(t):
        if t == 2:
            change(opts[0], w)
        return 0.1

    opts = []  # empty while the first one is constructed
    opts.append(AdamW(w, lr=schedule))
    opts[0].step(np.ones(3))
    return opts[0], w


def test_a_parameter_that_a_schedule_makes_read_only_is_not_written_to():
    opt, w = changing(lambda opt, w: w.setflags(write=False))
    before = w.copy()
    with pytest.raises(ValueError, match=r"^params must be writable"):
        opt.step(np.ones(3))
    np.testing.assert_array_equal(w, before)
