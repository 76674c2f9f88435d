"""The training loop."""

import math
import signal
import threading

import pytest
from tiny_training import OPTIMIZERS, SENTENCE, assert_same_parameters, make_optimizer, trained

from fused_adamw.tiny import (
    TARGETS,
    TOKENS,
    History,
    TinyTransformer,
    sentence_task,
    text_task,
    train,
)
from fused_adamw.tiny.text_data import predictions


def test_the_record_of_a_training():
    model, history = trained(steps=20)
    assert history.steps == 20
    assert len(history.losses) == 21
    assert not history.interrupted
    assert f"{history.losses[0]:.6f}" == "1.829868"
    # The last loss is the one after the last update, not before it.
    assert history.losses[-1] == model.loss(TOKENS, TARGETS)
    phases = (history.forward_seconds, history.backward_seconds, history.optimizer_seconds)
    assert min(phases) > 0
    assert history.seconds == sum(phases)


def test_on_step_sees_every_state():
    model = TinyTransformer()
    optimizer = make_optimizer("SGD", model.parameters, 0.1)
    seen = []
    history = train(
        model,
        optimizer,
        SENTENCE,
        3,
        lambda history: seen.append((history.steps, history.losses[-1])),
    )
    assert seen == list(enumerate(history.losses))


def test_the_default_training_learns_the_sentence():
    model, history = trained(steps=500)
    assert history.losses[-1] < 0.02
    rows = predictions(model, sentence_task())
    assert [row.token for row in rows] == ["<BOS>", "I", "like", "transformers"]
    assert [row.predicted for row in rows] == [row.target for row in rows]
    mean = sum(-math.log(row.probability) for row in rows) / len(rows)
    assert mean == pytest.approx(history.losses[-1])  # another order of the same sum


def test_an_interrupt_ends_after_a_whole_step():
    model = TinyTransformer()
    optimizer = make_optimizer("AdamW", model.parameters, 0.001)
    fused_step = optimizer.step

    def step(grads):
        if optimizer.t == 2:
            signal.raise_signal(signal.SIGINT)  # before the update, so that it could be lost
        fused_step(grads)

    optimizer.step = step
    history = train(model, optimizer, SENTENCE, 100)
    assert history.interrupted
    assert history.steps == 3
    expected, whole = trained(steps=3)
    assert history.losses == whole.losses
    assert_same_parameters(model, expected)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 1, 7, 20])
def test_a_training_goes_on_where_it_stopped(corpus, name, stop):
    task = text_task(corpus, 8, 4, seed=1, d_model=8, n_heads=2, d_ff=16)
    histories, models = [], []
    for parts in ((20,), (stop, 20)):
        model = TinyTransformer(0, **task.sizes)
        optimizer = make_optimizer(name, model.parameters, 0.01)
        history = History()
        for steps in parts:
            assert train(model, optimizer, task.batches(), steps, history=history) is history
        histories.append(history)
        models.append(model)
    assert histories[0].losses == histories[1].losses
    assert len(histories[1].losses) == 21
    assert_same_parameters(models[0], models[1])


def test_the_last_call_of_on_step_knows_that_it_is_the_last():
    model = TinyTransformer()
    optimizer = make_optimizer("SGD", model.parameters, 0.1)
    calls = []

    def on_step(history):
        calls.append((history.steps, history.interrupted))
        if history.steps == 2:
            signal.raise_signal(signal.SIGINT)

    history = train(model, optimizer, SENTENCE, 100, on_step)
    assert calls == [(0, False), (1, False), (2, False), (3, True)]
    # It may be too late for one more.
    optimizer = make_optimizer("SGD", model.parameters, 0.1)
    history = train(model, optimizer, SENTENCE, 2, on_step)
    assert (history.steps, history.interrupted) == (2, True)


def test_training_in_a_thread_leaves_signals_alone():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(trained(steps=2)[1]))
    thread.start()
    thread.join()
    assert histories[0].steps == 2


def test_a_handler_of_the_caller_stays():
    received = []
    previous = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        model = TinyTransformer()
        optimizer = make_optimizer("SGD", model.parameters, 0.1)
        history = train(model, optimizer, SENTENCE, 2, lambda _: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(received) == 3
    assert not history.interrupted


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batches_that_end_early(count):
    """No update is made whose loss would not follow, so that training can go on from there."""
    model, history = TinyTransformer(), History()
    optimizer = make_optimizer("AdamW", model.parameters, 0.1)
    train(model, optimizer, [(TOKENS, TARGETS)] * count, 10, history=history)
    assert history.steps == max(count - 1, 0) == len(history.gradient_norms)
    assert len(history.losses) == count
    train(model, optimizer, SENTENCE, 10, history=history)
    whole, expected = trained(steps=10, lr=0.1)
    assert history.losses == expected.losses
    assert_same_parameters(model, whole)


def test_a_number_of_steps_that_cannot_be_made():
    model = TinyTransformer()
    optimizer = make_optimizer("AdamW", model.parameters, 0.01)
    before = TinyTransformer()
    with pytest.raises(ValueError, match=r"^steps must be 0 or more; got -1$"):
        train(model, optimizer, SENTENCE, -1)
    with pytest.raises(TypeError, match=r"^steps must be an integer; got 1.5$"):
        train(model, optimizer, SENTENCE, 1.5)
    assert_same_parameters(model, before)
