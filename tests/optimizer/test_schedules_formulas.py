"""Schedules against their formulas, written out again, and against those of PyTorch."""

import itertools
import math
from fractions import Fraction

import pytest
from schedule_rates import rates

from fused_adamw.schedules import Constant, CosineDecay, LinearDecay, LinearWarmup


def near(fractions):
    """Rates of at most 0.7: the difference, its part, their product and the sum are each rounded
    by at most 2 ** -53 of that."""
    return pytest.approx([float(x) for x in fractions], rel=0, abs=4 * 0.7 * 2**-53)


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
