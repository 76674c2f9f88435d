"""Sweeps over learning rates, of training runs that are made up."""

import math
import signal

import pytest

from fused_adamw.tiny import History, TinyTransformer, TrainingResult
from fused_adamw.tiny.sweep import Sweep, rate_of, sweep_rates, working_loss

MODEL = TinyTransformer()
CHANCE = math.log(6)


def result(lr, loss, stop_signal=0):
    return TrainingResult("SGD", lr, MODEL, History([CHANCE, loss], stop_signal=stop_signal))


def swept(loss_at):
    """The sweep of runs whose loss is this function of the rate, and the rates in order."""
    tried = []

    def train_at(lr):
        tried.append(lr)
        return result(lr, loss_at(lr))

    return sweep_rates("SGD", CHANCE, train_at), tried


def valley(best):
    return lambda lr: 0.01 + 0.3 * math.log10(lr / best) ** 2


GRID = [0.0001, 0.000316, 0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0]


def test_the_rates_are_half_a_decade_apart():
    assert [rate_of(k) for k in range(-8, 1)] == GRID
    assert (rate_of(-14), rate_of(8)) == (1e-7, 1e4)


def test_the_best_rate_of_the_grid():
    sweep, tried = swept(valley(0.01))
    assert sorted(tried) == GRID
    assert tried[0] == 0.001  # from the middle to both sides
    assert (sweep.best.lr, sweep.best_loss) == (0.01, pytest.approx(0.01))
    assert sweep.losses == {lr: pytest.approx(valley(0.01)(lr)) for lr in GRID}
    assert sweep.shown is sweep.best
    # At most 0.188, nine tenths of the way from 1.79 to 0.01: 0.3 x^2 is at most 0.178.
    assert sweep.working() == [0.00316, 0.01, 0.0316]
    assert sweep.working(1.0) == [lr for lr in GRID if valley(0.01)(lr) <= 1.0792]


@pytest.mark.parametrize(
    ("best", "ends"),
    [
        (10, (0.0001, 100)),  # 31.6 works, 100 does not
        (3.16, (0.0001, 31.6)),
        (1e-5, (1e-6, 1)),
        (1e4, (0.0001, 1e4)),  # the last ones
        (1e-9, (1e-7, 1)),
    ],
)
def test_a_sweep_goes_on_until_the_best_rate_is_inside(best, ends):
    sweep, tried = swept(valley(best))
    assert (min(tried), max(tried)) == ends
    assert len(set(tried)) == len(tried)
    assert sweep.best.lr == min(tried, key=valley(best))


def test_it_goes_on_while_rates_work():
    """Although none of them is better, so that the range is known."""
    sweep, _ = swept(lambda lr: 0.1 if lr < 50 else 9.0)
    assert max(sweep.losses) == 100
    assert min(sweep.losses) == 1e-7


def test_a_rate_beyond_one_that_does_not_work_does_not_count():
    """What such a training ends with depends on the last bits of the matrix products."""
    sweep, tried = swept(lambda lr: 0.02 if lr == 1 else valley(0.01)(lr))
    assert sweep.losses[1.0] < working_loss(CHANCE, sweep.best_loss) < sweep.losses[0.1]
    assert sweep.working() == [0.00316, 0.01, 0.0316]
    assert max(tried) == 1
    assert Sweep("SGD", CHANCE).working() == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_trainings_that_diverge(loss):
    sweep, tried = swept(lambda lr: loss if lr > 0.02 else 1.5)
    assert set(sweep.losses.values()) == {math.inf, 1.5}
    assert max(tried) == 1
    sweep, _ = swept(lambda lr: loss)
    assert set(sweep.losses.values()) == {math.inf}
    assert sweep.best_loss == math.inf
    assert sweep.shown.lr == 0.001


def test_a_signal_ends_a_sweep():
    for last in (1, 4):
        tried = []

        def train_at(lr, last=last, tried=tried):
            tried.append(lr)
            number = signal.SIGINT if len(tried) == last else 0
            return result(lr, 1 / len(tried), number)

        sweep = sweep_rates("SGD", CHANCE, train_at)
        assert len(tried) == last
        assert sweep.interrupted.lr == tried[-1]
        assert len(sweep.losses) == last - 1  # a part of a training run does not count
        assert sweep.shown.lr == tried[max(last - 2, 0)]


def test_what_counts_as_a_rate_that_works():
    assert working_loss(2.0, 1.0) == pytest.approx(1.1)
    assert working_loss(2.0, 2.5) == 2.5  # nothing is better than to guess
    assert Sweep("SGD", 2.0, {0.1: 2.5, 1.0: 3.0}).working() == [0.1]


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([CHANCE, 1.0], False),
        ([CHANCE, 2 * CHANCE - 0.01], False),
        ([CHANCE, 2 * CHANCE + 0.01], True),
        ([CHANCE, 5.0], True),  # a loss that is finite all along
        ([5.0, 6.0], False),  # it began there
        ([CHANCE, 9.0, 1.0], False),  # it came back
        ([CHANCE, math.nan, math.nan], True),
        ([CHANCE, math.inf], True),
    ],
)
def test_divergence_is_a_loss_far_beyond_chance(losses, diverged):
    assert TrainingResult("AdamW", 1.0, MODEL, History(losses)).diverged is diverged


def test_the_outcome_is_on_held_out_text_where_there_is_some():
    of_training = TrainingResult("AdamW", 1.0, MODEL, History([2.0, 1.0]))
    assert of_training.outcome == 1.0
    of_training.final_held_out_loss = 1.5
    assert of_training.outcome == 1.5
    of_training.final_held_out_loss = math.nan
    assert of_training.outcome == math.inf
