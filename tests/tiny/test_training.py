"""The loop, the optimizers it drives, and text as data."""

import itertools
import math
import signal
import threading

import numpy as np
import pytest

from fused_adamw.tiny import train_loop as training
from fused_adamw.tiny.model import PAD, TARGETS, TOKENS, TinyTransformer
from fused_adamw.tiny.train_loop import Level, OptimizerName, make_optimizer, train

SENTENCE = itertools.repeat((TOKENS, TARGETS))


def trained(name=OptimizerName.FUSED, steps=20, lr=0.001, dtype=np.float64, **options):
    model = TinyTransformer(seed=42, dtype=dtype)
    optimizer = make_optimizer(name, model.parameters, lr, **options)
    return model, train(model, optimizer, SENTENCE, steps)


def assert_same(parameters, others):
    for name, parameter in parameters.items():
        np.testing.assert_array_equal(parameter, others[name], err_msg=name)


# --------------------------------------------------------------------------- the loop


def test_the_record_of_a_training():
    model, run = trained(steps=20)
    assert run.steps == 20
    assert len(run.losses) == 21
    assert not run.interrupted
    assert f"{run.losses[0]:.6f}" == "1.829868"
    # The last loss is the one after the last update, not before it.
    assert run.losses[-1] == model.loss(TOKENS, TARGETS)
    phases = (run.forward_seconds, run.backward_seconds, run.optimizer_seconds)
    assert min(phases) > 0
    assert run.seconds == sum(phases)


def test_on_step_sees_every_state():
    model = TinyTransformer()
    optimizer = make_optimizer(OptimizerName.SGD, model.parameters, 0.1)
    seen = []
    run = train(model, optimizer, SENTENCE, 3, lambda run: seen.append((run.steps, run.losses[-1])))
    assert seen == list(enumerate(run.losses))


def test_the_default_training_learns_the_sentence():
    model, run = trained(steps=500)
    assert run.losses[-1] < 0.02
    rows = training.predictions(model, training.sentence_task())
    assert [row.token for row in rows] == ["<BOS>", "I", "like", "transformers"]
    assert [row.predicted for row in rows] == [row.target for row in rows]
    mean = sum(-math.log(row.probability) for row in rows) / len(rows)
    assert mean == pytest.approx(run.losses[-1])  # another order of the same sum


def test_an_interrupt_ends_after_a_whole_step():
    model = TinyTransformer()
    optimizer = make_optimizer(OptimizerName.FUSED, model.parameters, 0.001)
    fused_step = optimizer.step

    def step(grads):
        if optimizer.t == 2:
            signal.raise_signal(signal.SIGINT)  # before the update, so that it could be lost
        fused_step(grads)

    optimizer.step = step
    run = train(model, optimizer, SENTENCE, 100)
    assert run.interrupted
    assert run.steps == 3
    expected, whole = trained(steps=3)
    assert run.losses == whole.losses
    assert_same(model.parameters, expected.parameters)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", OptimizerName)
@pytest.mark.parametrize("stop", [0, 1, 7, 20])
def test_a_training_goes_on_where_it_stopped(corpus, name, stop):
    task = training.text_task(corpus, 8, 4, seed=1, d_model=8, n_heads=2, d_ff=16)
    runs, models = [], []
    for parts in ((20,), (stop, 20)):
        model = TinyTransformer(0, **task.sizes)
        optimizer = make_optimizer(name, model.parameters, 0.01)
        run = training.Run()
        for steps in parts:
            assert train(model, optimizer, task.batches(), steps, run=run) is run
        runs.append(run)
        models.append(model)
    assert runs[0].losses == runs[1].losses
    assert len(runs[1].losses) == 21
    assert_same(models[0].parameters, models[1].parameters)


def test_the_last_call_of_on_step_knows_that_it_is_the_last():
    model = TinyTransformer()
    optimizer = make_optimizer(OptimizerName.SGD, model.parameters, 0.1)
    calls = []

    def on_step(run):
        calls.append((run.steps, run.interrupted))
        if run.steps == 2:
            signal.raise_signal(signal.SIGINT)

    run = train(model, optimizer, SENTENCE, 100, on_step)
    assert calls == [(0, False), (1, False), (2, False), (3, True)]
    # It may be too late for one more.
    optimizer = make_optimizer(OptimizerName.SGD, model.parameters, 0.1)
    run = train(model, optimizer, SENTENCE, 2, on_step)
    assert (run.steps, run.interrupted) == (2, True)


def test_training_in_a_thread_leaves_signals_alone():
    runs = []
    thread = threading.Thread(target=lambda: runs.append(trained(steps=2)[1]))
    thread.start()
    thread.join()
    assert runs[0].steps == 2


def test_a_handler_of_the_caller_stays():
    received = []
    previous = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        model = TinyTransformer()
        optimizer = make_optimizer(OptimizerName.SGD, model.parameters, 0.1)
        run = train(model, optimizer, SENTENCE, 2, lambda _: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(received) == 3
    assert not run.interrupted


# --------------------------------------------------------------------------- optimizers


def test_fused_and_reference_agree():
    model, run = trained(OptimizerName.FUSED, weight_decay=0.1)
    other, reference_run = trained(OptimizerName.REFERENCE, weight_decay=0.1)
    # The two round differently, by an ulp or so of a step, and the training passes it on: 1e-15 has
    # been seen after 20 steps. The slack is for other math libraries, whose noise a small gradient
    # magnifies; a weight decay that is off by a thousandth differs by 2e-6.
    for name, parameter in model.parameters.items():
        np.testing.assert_allclose(parameter, other.parameters[name], rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.losses, reference_run.losses, rtol=0, atol=1e-11)


def test_float32_follows_float64():
    _, run = trained(dtype=np.float32)
    _, double = trained(dtype=np.float64)
    # Roundings of 6e-8 in every operation; 1e-7 has been seen after 20 steps.
    np.testing.assert_allclose(run.losses, double.losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sgd_subtracts_the_scaled_gradient(dtype):
    fresh = TinyTransformer(dtype=dtype)
    _, grads = fresh.loss_and_gradients(TOKENS, TARGETS)
    model, _ = trained(OptimizerName.SGD, steps=1, lr=0.25, dtype=dtype)
    expected = {name: p - dtype(0.25) * grads[name] for name, p in fresh.parameters.items()}
    assert_same(model.parameters, expected)
    assert all(parameter.dtype == dtype for parameter in model.parameters.values())


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_threads_change_no_bit(num_threads):
    model, run = trained(num_threads=num_threads)
    expected, default = trained()
    assert run.losses == default.losses
    assert_same(model.parameters, expected.parameters)


def test_weight_decay_reaches_both_optimizers():
    for name in (OptimizerName.FUSED, OptimizerName.REFERENCE):
        (with_decay, _), (without, _) = (trained(name, 1, weight_decay=w) for w in (10.0, 0.0))
        shrunk = without.parameters["gamma"] - 0.001 * 10.0  # gamma starts at 1
        # Two subtractions near 1 round twice.
        np.testing.assert_allclose(with_decay.parameters["gamma"], shrunk, rtol=4e-16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay"),
        ({"lr": 0.1, "num_threads": 0}, "num_threads"),
    ],
)
def test_bad_options_are_refused_before_the_training(options, message):
    parameters = TinyTransformer().parameters
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerName.FUSED, parameters, **options)
    assert_same(parameters, TinyTransformer().parameters)


def test_a_constant_rate_is_a_plain_number():
    model = TinyTransformer()
    schedule = training.make_schedule(training.ScheduleName.CONSTANT, 0.1, 0, 10)
    optimizer = make_optimizer(OptimizerName.FUSED, model.parameters, 0.1, schedule=schedule)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("name", training.ScheduleName)
@pytest.mark.parametrize("warmup", [1, 4, 9])
def test_schedules_rise_to_the_rate_and_never_above(name, warmup):
    schedule = training.make_schedule(name, 0.1, warmup, 10)
    rates = [schedule(t) for t in range(1, 11)]
    assert rates[warmup - 1] == rates[warmup] == max(rates) == 0.1
    assert rates[:warmup] == pytest.approx([0.1 * t / warmup for t in range(1, warmup + 1)])
    assert schedule(11) == (0.1 if name is training.ScheduleName.CONSTANT else 0)


def test_timing_the_reference_changes_nothing():
    model = TinyTransformer()
    assert training.reference_step_seconds(model, (TOKENS, TARGETS), 0.1, 0.1, repeats=1) > 0
    assert_same(model.parameters, TinyTransformer().parameters)


def test_a_diverging_training_reaches_its_end():
    with np.errstate(over="raise", invalid="raise"):  # the loop lets them pass
        _, run = trained(OptimizerName.SGD, steps=12, lr=1e10)
    assert run.steps == 12
    assert not math.isfinite(run.losses[-1])


# --------------------------------------------------------------------------- text


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 100, encoding="utf-8")
    return training.read_text(path, Level.CHARS, context=8)


def test_characters(corpus):
    assert corpus.vocabulary == ("<PAD>", *sorted(set("the cat sat on the mat. ")))
    assert (len(corpus.train), len(corpus.held_out)) == (2160, 240)
    everything = np.concatenate((corpus.train, corpus.held_out))
    assert corpus.decode(everything) == "the cat sat on the mat. " * 100
    assert PAD not in everything


def test_the_digest_of_a_text(tmp_path):
    path = tmp_path / "text.txt"

    def digest(text, level=Level.CHARS):
        path.write_text(text, encoding="utf-8")
        return training.read_text(path, level, context=2).digest

    text = "the cat sat on the mat. " * 10
    others = {digest(text), digest(text, Level.WORDS), digest(text.replace("c", "b"))}
    others |= {digest(text[:-2] + "! "), digest(text[2:] + text[:2]), digest(text[:-1])}
    assert len(others) == 6
    # On other machines, too: it is in files that may be moved there.
    assert digest(text) == "BLAKE2b bfd76e7c6bbfd14c"


def test_words(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Don't stop, été!\n" * 20, encoding="utf-8-sig")  # as Windows editors save
    corpus = training.read_text(path, Level.WORDS, context=8)
    assert corpus.vocabulary == ("<PAD>", "!", ",", "Don't", "stop", "été")
    assert corpus.decode(corpus.train[:5]) == "Don't stop, été!"


@pytest.mark.parametrize("context", [1, 8, 9, 18, 32, 100])
def test_the_shortest_text(tmp_path, context):
    path = tmp_path / "text.txt"
    # The definition: the training part holds a window and its last target, the rest one target.
    fewest = next(n for n in itertools.count() if n - n // 10 >= context + 1 and n // 10 >= 2)
    path.write_text("ab" * fewest, encoding="utf-8")
    path.write_text(path.read_text()[:fewest])
    corpus = training.read_text(path, Level.CHARS, context)
    model = TinyTransformer(vocab_size=3, max_length=context)
    tokens, _ = next(training.random_windows(corpus.train, context, 2, seed=0))
    assert tokens.shape == (2, context)
    assert math.isfinite(training.mean_loss(model, corpus.held_out))

    path.write_text(path.read_text()[:-1])
    with pytest.raises(ValueError, match=f"few tokens: {fewest - 1}; expected {fewest} or more"):
        training.read_text(path, Level.CHARS, context)


def test_windows_are_stretches_of_the_text_and_follow_the_seed():
    text = np.arange(100, 120)
    batches = training.random_windows(text, 8, batch_size=500, seed=3)
    tokens, targets = next(batches)
    np.testing.assert_array_equal(targets, tokens + 1)
    np.testing.assert_array_equal(np.diff(tokens), 1)
    # Every stretch occurs, the first and the last too: 12 of them in 500 draws.
    assert set(tokens[:, 0]) == set(range(100, 112))
    again, _ = next(training.random_windows(text, 8, batch_size=500, seed=3))
    np.testing.assert_array_equal(tokens, again)
    assert not np.array_equal(tokens, next(batches)[0])


@pytest.mark.parametrize("length", [2, 5, 6, 7, 11, 12, 40])
def test_mean_loss_counts_every_target_once(length):
    model = TinyTransformer()  # five positions
    tokens = np.random.default_rng(0).integers(1, 6, length)
    losses = [
        model.loss(tokens[start:i], [PAD] * (i - start - 1) + [int(tokens[i])])
        for i in range(1, length)
        for start in [(i - 1) // 5 * 5]
    ]
    mean = training.mean_loss(model, tokens, batch_size=3)
    assert mean == pytest.approx(np.mean(losses), rel=1e-12)  # another order of the same sum


def test_training_on_text_beats_chance_on_held_out_text(corpus):
    task = training.text_task(corpus, 8, 8, seed=0, d_model=16, n_heads=2, d_ff=32)
    model = TinyTransformer(0, **task.sizes)
    optimizer = make_optimizer(OptimizerName.FUSED, model.parameters, 0.01)
    train(model, optimizer, task.batches(), 150)
    # After a character the next is nearly certain; single frequencies would give about 2.2.
    assert training.mean_loss(model, corpus.held_out) < 1.0 < math.log(len(corpus.vocabulary))


def test_a_sample_follows_its_seed_and_holds_no_padding(corpus):
    model = TinyTransformer(0, vocab_size=len(corpus.vocabulary), max_length=8)
    model.parameters["W_lm"][PAD] = 0
    model.parameters["W_lm"][1:] *= 0.01  # all tokens alike: PAD would come often
    tokens = training.sample(model, [1], 200, seed=5)
    assert tokens == training.sample(model, [1], 200, seed=5)
    assert tokens != training.sample(model, [1], 200, seed=6)
    assert len(tokens) == 201
    assert set(tokens) == set(range(1, len(corpus.vocabulary)))


def test_the_same_batches_for_every_training(corpus):
    task = training.text_task(corpus, 8, 4, seed=1)
    first, second = (next(task.batches()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
