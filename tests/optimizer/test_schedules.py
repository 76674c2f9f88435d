"""Schedules against their formulas, written out again, and against those of PyTorch."""

import copy
import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from twin import adamw_twin

from fused_adamw import AdamW, fused_adamw
from fused_adamw.schedules import Constant, CosineDecay, Joined, LinearDecay, LinearWarmup

SCHEDULES = [
    Constant(0.3),
    Constant(0.3, 7),
    LinearWarmup(0.3, 7),
    LinearWarmup(0.3, 7, start=0.1),
    LinearDecay(0.3, 7),
    LinearDecay(0.3, 7, end=0.1),
    CosineDecay(0.3, 7),
    CosineDecay(0.3, 7, end=0.1),
    LinearWarmup(0.3, 3).then(CosineDecay(0.3, 4)),
    LinearWarmup(0.3, 3).then(Constant(0.3, 5)).then(LinearDecay(0.3, 4, end=0.1)),
]


def rates(schedule, count):
    return [schedule(t) for t in range(1, count + 1)]


def near(fractions):
    """Rates of at most 0.7: the difference, its part, their product and the sum are each rounded
    by at most 2 ** -53 of that."""
    return pytest.approx([float(x) for x in fractions], rel=0, abs=4 * 0.7 * 2**-53)


# ---- formulas


def test_constant():
    assert rates(Constant(0.3), 5) == [0.3] * 5
    assert Constant(0.3)(10**18) == 0.3


def test_linear_warmup():
    # From 1 to 3 in steps of a half, by hand.
    assert rates(LinearWarmup(3.0, 4, start=1.0), 6) == [1.5, 2.0, 2.5, 3.0, 3.0, 3.0]
    assert rates(LinearWarmup(1.0, 4), 5) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(LinearWarmup(0.3, 1), 2) == [0.3, 0.3]


def test_linear_decay():
    assert rates(LinearDecay(3.0, 4, end=1.0), 6) == [3.0, 2.5, 2.0, 1.5, 1.0, 1.0]
    assert rates(LinearDecay(1.0, 4), 6) == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert rates(LinearDecay(0.3, 1), 2) == [0.3, 0.0]


def test_cosine_decay():
    # cos of 0, 60, 120 and 180 degrees is 1, 1/2, -1/2 and -1.
    assert rates(CosineDecay(1.0, 3), 5) == pytest.approx([1.0, 0.75, 0.25, 0.0, 0.0], rel=1e-15)
    assert rates(CosineDecay(5.0, 3, end=1.0), 5) == pytest.approx([5, 4, 2, 1, 1], rel=1e-15)
    assert rates(CosineDecay(0.3, 1), 2) == [0.3, 0.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 997])
def test_linear_schedules_against_fractions(steps):
    low, high = Fraction(0.1), Fraction(0.7)
    up = [low + (high - low) * min(Fraction(t, steps), 1) for t in range(1, steps + 4)]
    assert rates(LinearWarmup(0.7, steps, start=0.1), steps + 3) == near(up)
    down = [high - (high - low) * min(Fraction(t, steps), 1) for t in range(steps + 3)]
    assert rates(LinearDecay(0.7, steps, end=0.1), steps + 3) == near(down)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 997])
def test_cosine_against_the_half_angle(steps):
    # (1 + cos x) / 2 = cos(x / 2) ** 2: another way to the same number.
    expected = [
        0.1 + 0.6 * math.cos(math.pi / 2 * min(t / steps, 1)) ** 2 for t in range(steps + 3)
    ]
    assert rates(CosineDecay(0.7, steps, end=0.1), steps + 3) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("peak", [0.3, 1e-3, 1 / 3, 5e-324])
@pytest.mark.parametrize("steps", [1, 3, 49, 1000])
def test_ends_are_exact(peak, steps):
    other = peak / 3
    assert LinearWarmup(peak, steps, start=other)(steps) == peak
    assert LinearWarmup(peak, steps, start=other)(10**18) == peak
    for decay in LinearDecay, CosineDecay:
        assert decay(peak, steps, end=other)(1) == peak
        assert decay(peak, steps, end=other)(steps + 1) == other
        assert decay(peak, steps, end=other)(10**18) == other


@pytest.mark.parametrize("end", [0.0, 0.1, 0.3])
def test_rates_stay_between_their_ends_and_go_one_way(end):
    up = rates(LinearWarmup(0.3, 997, start=end), 1000)
    assert all(end <= a <= b <= 0.3 for a, b in itertools.pairwise(up))
    for decay in LinearDecay, CosineDecay:
        down = rates(decay(0.3, 997, end=end), 1000)
        assert all(0.3 >= a >= b >= end for a, b in itertools.pairwise(down))


def test_no_step_is_spent_at_a_rate_of_zero():
    steps = rates(LinearWarmup(0.3, 5).then(CosineDecay(0.3, 5)).then(LinearDecay(0.3, 5)), 15)
    assert min(steps) > 0


# ---- chained


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
    with pytest.raises(TypeError, match=r"^first must be a schedule of this module; got <"):
        Joined(Halves(3), Constant(1.0))


def test_then_takes_any_function_of_t():
    joined = Constant(1.0, 2).then(lambda t: np.float32(1 / t))
    assert rates(joined, 5) == [1.0, 1.0, 1.0, 0.5, np.float32(1 / 3)]
    assert {type(rate) for rate in rates(joined, 5)} == {float}
    assert joined.steps is None
    with pytest.raises(ValueError, match="never ends; give it `steps`"):
        joined.then(Constant(1.0))


def test_a_schedule_that_never_ends_cannot_be_chained():
    with pytest.raises(ValueError, match="never ends; give it `steps`"):
        Constant(0.3).then(Constant(0.1))


@pytest.mark.parametrize("following", [0.1, None, "Constant(0.1)"])
def test_only_a_function_follows(following):
    with pytest.raises(TypeError, match="following"):
        Constant(0.3, 2).then(following)


# ---- PyTorch, which gives step t the rate of its epoch t - 1


def torch_rates(lr, make, count):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


# PyTorch goes from one rate to the next, and adds up a rounding or two a step.
CHAINED = {"rel": 1e-12, "abs": 1e-14}


@pytest.mark.slow
def test_warmup_of_torch():
    def make(schedulers, optimizer):
        return schedulers.LinearLR(optimizer, start_factor=1 / 20, total_iters=19)

    assert rates(LinearWarmup(0.3, 20), 30) == pytest.approx(torch_rates(0.3, make, 30), **CHAINED)


@pytest.mark.slow
def test_linear_decay_of_torch():
    def make(schedulers, optimizer):
        return schedulers.LinearLR(optimizer, start_factor=1.0, end_factor=0.25, total_iters=20)

    expected = torch_rates(0.4, make, 30)
    assert rates(LinearDecay(0.4, 20, end=0.1), 30) == pytest.approx(expected, **CHAINED)


@pytest.mark.slow
def test_cosine_of_torch():
    def make(schedulers, optimizer):
        return schedulers.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)

    # Up to the end alone: PyTorch's goes up again from there.
    expected = torch_rates(0.4, make, 21)
    assert rates(CosineDecay(0.4, 20, end=0.1), 21) == pytest.approx(expected, **CHAINED)


# ---- as values


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


def test_a_float32_does_not_set_the_precision():
    third = np.float32(1 / 3)
    for kind in LinearWarmup, LinearDecay, CosineDecay:
        assert rates(kind(third, 7), 9) == rates(kind(float(third), 7), 9)
        assert type(kind(third, 7)(3)) is float


# ---- bad input


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
    with pytest.raises(ValueError, match=f"^{name} must be a finite number >= 0; got {value}"):
        make(value)


@pytest.mark.parametrize(("make", "name"), RATES)
@pytest.mark.parametrize("value", ["0.1", None, 0.1j, [0.1]])
def test_rate_that_is_no_number(make, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a number >= 0; got "):
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
        with pytest.raises(ValueError, match=f"^steps must be an integer >= 1; got {steps}"):
            make(steps)
    for steps in 2.0, "2", True, [2]:
        with pytest.raises(TypeError, match="steps must be an integer >= 1; got"):
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
    with pytest.raises(ValueError, match="must be a finite number >= 0; got 1000"):
        make(10**400)


def test_the_wrong_way():
    with pytest.raises(ValueError, match=r"^start must be <= peak \(0\.3\); got 0\.4"):
        LinearWarmup(0.3, 5, start=0.4)
    for decay in LinearDecay, CosineDecay:
        with pytest.raises(ValueError, match=r"^end must be <= start \(0\.3\); got 0\.4"):
            decay(0.3, 5, end=0.4)


# ---- in the optimizer


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
