"""Epochs: the windows of a pass over a text, and what is known at its end."""

import math
from itertools import islice

import numpy as np
import pytest
from tiny_training import make_optimizer

from fused_adamw.tiny import Corpus, TinyTransformer, TrainingResult, text_task, train
from fused_adamw.tiny.epochs import Epoch, complete_epochs, epoch_of, evaluate_epoch
from fused_adamw.tiny.text_data import shuffled_windows, windows_per_epoch
from fused_adamw.tiny.train_loop import History

TOKENS = np.arange(100)  # each token is its position


@pytest.mark.parametrize(
    ("n", "context", "windows"), [(100, 8, 12), (97, 8, 12), (96, 8, 11), (9, 8, 1), (8, 8, 0)]
)
def test_the_number_of_windows(n, context, windows):
    """The last token has none after it, so that it is a target only."""
    assert windows_per_epoch(TOKENS[:n], context) == windows


def epochs(count, batch_size, seed=0):
    """The batches of so many epochs, 12 windows each."""
    per_epoch = 12 // batch_size
    batches = list(islice(shuffled_windows(TOKENS, 8, batch_size, seed), count * per_epoch))
    return [batches[i : i + per_epoch] for i in range(0, len(batches), per_epoch)]


def test_each_window_comes_once_in_an_epoch():
    orders = []
    for batches in epochs(3, batch_size=4):
        rows = np.concatenate([tokens for tokens, _ in batches])
        assert rows.shape == (12, 8)
        np.testing.assert_array_equal(np.sort(rows.ravel()), TOKENS[:96])
        np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(8))
        for tokens, targets in batches:
            np.testing.assert_array_equal(targets, tokens + 1)
        orders.append(tuple(rows[:, 0]))
    assert len(set(orders)) == 3  # shuffled for each


def test_what_does_not_fill_a_batch_is_left_out():
    left_out = set()
    for batches in epochs(6, batch_size=5):
        starts = {int(row[0]) for tokens, _ in batches for row in tokens}
        assert len(starts) == 10
        left_out |= set(range(0, 96, 8)) - starts
    assert len(left_out) > 2  # not always the same


def test_the_seed_fixes_the_order():
    first, again, other = (epochs(2, 4, seed)[1] for seed in (1, 1, 2))
    for (tokens, _), (same, _) in zip(first, again, strict=True):
        np.testing.assert_array_equal(tokens, same)
    assert any(
        (tokens != others).any() for (tokens, _), (others, _) in zip(first, other, strict=True)
    )


def test_a_batch_larger_than_an_epoch_is_refused():
    corpus = Corpus(tuple("abcdef"), np.ones(30, np.intp), np.ones(5, np.intp))
    sizes = {"d_model": 4, "n_heads": 2, "d_ff": 8}
    assert text_task(corpus, 4, 7, 0, in_epochs=True, **sizes).batches_per_epoch == 1
    message = r"batch_size must be at most the number of windows in the text \(7\); got 8"
    with pytest.raises(ValueError, match=message):
        text_task(corpus, 4, 8, 0, in_epochs=True, **sizes)
    text_task(corpus, 4, 8, 0, **sizes)  # random windows can be any number


def test_the_record_of_an_epoch():
    history = History([4.0, 3.0, 2.0, 1.0, 0.5, 9.0], held_out_losses=[2.5])
    first, second = complete_epochs(history, 2)
    assert first == Epoch(1, 2, 3.5, 2.5) == epoch_of(history, 1, 2)
    assert (second.epoch, second.steps, second.loss) == (2, 4, 1.5)
    assert math.isnan(second.held_out_loss)
    assert complete_epochs(History([4.0, 3.0]), 2) == []


def test_held_out_text_is_evaluated_at_the_end_of_each_epoch(corpus):
    task = text_task(corpus, 8, 4, 1, in_epochs=True, d_model=8, n_heads=2, d_ff=16)
    per_epoch = task.batches_per_epoch
    model = TinyTransformer(0, **task.sizes)
    history = History()
    result = TrainingResult("SGD", 0.1, model, history)
    optimizer = make_optimizer("SGD", model.parameters, 0.1)
    expected = []

    def on_step(history):
        evaluate_epoch(result, task)
        if history.steps in (per_epoch, 2 * per_epoch):
            total = 0.0
            for start in range(0, len(corpus.held_out) - 1, 8):
                window = corpus.held_out[start : start + 9]
                total += model.loss(window[:-1], window[1:]) * (len(window) - 1)
            expected.append(total / (len(corpus.held_out) - 1))
        if history.steps > 2 * per_epoch:  # asked to stop: nothing more is evaluated
            history.stop_requested = lambda: True

    train(model, optimizer, task.batches(), 3 * per_epoch, on_step, history)
    assert history.held_out_losses == pytest.approx(expected, rel=1e-12)
    assert len(expected) == 2
    # A process that goes on from here evaluates it, once.
    history.stop_requested = bool
    for _ in range(2):
        evaluate_epoch(result, task)
        assert len(history.held_out_losses) == 3
    # Earlier ones that are not known stay so.
    history.held_out_losses.clear()
    evaluate_epoch(result, task)
    assert [math.isnan(x) for x in history.held_out_losses] == [True, True, False]
