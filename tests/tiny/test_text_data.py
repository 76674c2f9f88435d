"""Text as training data."""

import dataclasses
import itertools
import math
import os
import stat

import numpy as np
import pytest
from tiny_training import make_optimizer

from fused_adamw.tiny import (
    PAD,
    TinyTransformer,
    read_text,
    sample,
    text_task,
    train,
)
from fused_adamw.tiny.text_data import mean_loss, random_windows


def test_characters(corpus):
    assert corpus.vocabulary == ("<PAD>", *sorted(set("the cat sat on the mat. ")))
    assert (len(corpus.train), len(corpus.held_out)) == (2160, 240)
    everything = np.concatenate((corpus.train, corpus.held_out))
    assert corpus.decode(everything) == "the cat sat on the mat. " * 100
    assert PAD not in everything


def test_the_digest_of_a_text(tmp_path):
    path = tmp_path / "text.txt"

    def digest(text):
        path.write_text(text, encoding="utf-8")
        return read_text(path, context=2).digest

    text = "the cat sat on the mat. " * 10
    others = {digest(text), digest(text.replace("c", "b"))}
    others |= {digest(text[:-2] + "! "), digest(text[2:] + text[:2]), digest(text[:-1])}
    assert len(others) == 5
    # On other machines, too: it is in files that may be moved there.
    assert digest(text) == "BLAKE2b bfd76e7c6bbfd14c"


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Don't stop, été!\n" * 20, encoding="utf-8-sig")  # as Windows editors save
    corpus = read_text(path, context=8)
    assert corpus.decode(corpus.train[:16]) == "Don't stop, été!"


@pytest.mark.parametrize("context", [1, 8, 9, 18, 32, 100])
def test_the_shortest_text(tmp_path, context):
    path = tmp_path / "text.txt"
    # The definition: the training part holds a window and its last target, the rest one target.
    fewest = next(n for n in itertools.count() if n - n // 10 >= context + 1 and n // 10 >= 2)
    path.write_text("ab" * fewest, encoding="utf-8")
    path.write_text(path.read_text()[:fewest])
    corpus = read_text(path, context)
    model = TinyTransformer(vocab_size=3, max_length=context)
    tokens, _ = next(random_windows(corpus.train, context, 2, seed=0))
    assert tokens.shape == (2, context)
    assert math.isfinite(mean_loss(model, corpus.held_out))

    path.write_text(path.read_text()[:-1])
    with pytest.raises(
        ValueError,
        match=f"at least {fewest} characters for a context of {context}; got {fewest - 1}",
    ):
        read_text(path, context)


def test_windows_are_slices_of_the_text_and_follow_the_seed():
    text = np.arange(100, 120)
    batches = random_windows(text, 8, batch_size=500, seed=3)
    tokens, targets = next(batches)
    np.testing.assert_array_equal(targets, tokens + 1)
    np.testing.assert_array_equal(np.diff(tokens), 1)
    # Every window occurs, the first and the last too: 12 of them in 500 draws.
    assert set(tokens[:, 0]) == set(range(100, 112))
    again, _ = next(random_windows(text, 8, batch_size=500, seed=3))
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
    mean = mean_loss(model, tokens, batch_size=3)
    assert mean == pytest.approx(np.mean(losses), rel=1e-12)  # another order of the same sum


def test_training_on_text_beats_chance_on_held_out_text(corpus):
    task = text_task(corpus, 8, 8, seed=0, d_model=16, n_heads=2, d_ff=32)
    model = TinyTransformer(0, **task.sizes)
    optimizer = make_optimizer("AdamW", model.parameters, 0.01)
    train(model, optimizer, task.batches(), 150)
    # After a character the next is nearly certain; single frequencies would give about 2.2.
    assert mean_loss(model, corpus.held_out) < 1.0 < math.log(len(corpus.vocabulary))


def test_a_sample_follows_its_seed_and_holds_no_padding(corpus):
    model = TinyTransformer(0, vocab_size=len(corpus.vocabulary), max_length=8)
    model.parameters["W_lm"][PAD] = 0
    model.parameters["W_lm"][1:] *= 0.01  # all tokens equally likely: PAD would come often
    tokens = sample(model, [1], 200, seed=5)
    assert tokens == sample(model, [1], 200, seed=5)
    assert tokens != sample(model, [1], 200, seed=6)
    assert len(tokens) == 201
    assert set(tokens) == set(range(1, len(corpus.vocabulary)))


def test_a_sample_is_of_integers_of_python():
    assert {type(token) for token in sample(TinyTransformer(), np.array([1, 3]), 3, 0)} == {int}


def test_tokens_that_are_no_characters(corpus):
    size = len(corpus.vocabulary)
    for token in (-1, size):
        message = f"^tokens must be between 0 and {size - 1}; got {token}$"
        with pytest.raises(ValueError, match=message):
            corpus.decode([1, token])
    assert corpus.decode(token for token in (1, 2)) == "".join(corpus.vocabulary[1:3])
    assert corpus.decode([]) == ""


def test_held_out_text_without_a_target(corpus):
    for size in (0, 1):
        short = dataclasses.replace(corpus, held_out=corpus.held_out[:size])
        message = f"^corpus must have 2 held-out tokens or more; got {size}$"
        with pytest.raises(ValueError, match=message):
            text_task(short, 8, 4, 0)
    task = text_task(dataclasses.replace(corpus, held_out=corpus.held_out[:2]), 8, 4, 0)
    assert [len(x) for x in task.example] == [1, 1]


@pytest.mark.parametrize("kind", ["S_ISCHR", "S_ISBLK"])
def test_a_device_is_not_read(tmp_path, monkeypatch, kind):
    """It might never end."""
    (tmp_path / "device").write_text("text of a device")
    monkeypatch.setattr(stat, kind, lambda mode: True)
    with pytest.raises(ValueError, match=r"device must be a file or a pipe; got a device$"):
        read_text(tmp_path / "device", context=4)


def test_samples_that_cannot_be_drawn():
    model = TinyTransformer(0)
    assert sample(model, [1], 0, seed=0) == [1]
    with pytest.raises(ValueError, match=r"^length must be 0 or more; got -1$"):
        sample(model, [1], -1, seed=0)
    with pytest.raises(TypeError, match=r"^length must be an integer; got 2.5$"):
        sample(model, [1], 2.5, seed=0)
    with pytest.raises(ValueError, match=r"^start must contain at least one token; got none$"):
        sample(model, [], 3, seed=0)
    for length in (0, 3):
        for outside in ([6], [-1], [6, *[1] * model.max_length]):
            with pytest.raises(ValueError, match=r"^start must be between 0 and 5; got (6|-1)$"):
                sample(model, outside, length, seed=0)
        with pytest.raises(ValueError, match=r"^start must have 1 dimension; got 2$"):
            sample(model, [[1]], length, seed=0)
        with pytest.raises(TypeError, match=r"^start must contain integers; got dtype float64$"):
            sample(model, [1.0], length, seed=0)
    with pytest.raises(
        ValueError, match=r"^model must have a vocabulary of 2 tokens or more; got 1$"
    ):
        sample(TinyTransformer(vocab_size=1), [0], 3, seed=0)
    model.parameters["W_lm"][2] = np.nan
    with pytest.raises(ValueError, match=r"^scores of the model must be finite; got NaN"):
        sample(model, [1], 3, seed=0)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, "seed must be 0 or more; got -1"),
        (1.5, TypeError, "seed must be an integer; got 1.5"),
        ("1", TypeError, "seed must be an integer; got '1'"),
        (True, TypeError, "seed must be an integer; got True"),
    ],
)
def test_seeds(corpus, seed, error, message):
    calls = (
        TinyTransformer,
        lambda seed: sample(TinyTransformer(), [1], 3, seed),
        lambda seed: text_task(corpus, 8, 4, seed),
    )
    for call in calls:
        with pytest.raises(error, match=f"^{message}$"):
            call(seed)
        call(np.int64(3))  # as a loop over np.arange has


def test_the_same_batches_for_every_training(corpus):
    task = text_task(corpus, 8, 4, seed=1)
    first, second = (next(task.batches()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_sizes_that_a_text_cannot_have(corpus, tmp_path):
    for name in ("context", "batch_size"):
        for size in (0, -1):
            sizes = {"context": 5, "batch_size": 4, name: size}
            with pytest.raises(ValueError, match=f"^{name} must be 1 or more; got {size}$"):
                text_task(corpus, seed=0, **sizes)
        with pytest.raises(TypeError, match=f"^{name} must be an integer; got 2.5$"):
            text_task(corpus, seed=0, **{"context": 5, "batch_size": 4, name: 2.5})
    for in_epochs in (False, True):
        with pytest.raises(ValueError, match="context must be less than the 2160 tokens"):
            text_task(corpus, 2160, 1, 0, in_epochs)
    assert next(iter(text_task(corpus, 2159, 1, 0).batches()))[0].shape == (1, 2159)
    path = tmp_path / "text"
    path.write_text("some words " * 20, encoding="utf-8")
    with pytest.raises(ValueError, match="context must be 1 or more; got 0"):
        read_text(path, 0)
    with pytest.raises(TypeError, match="context must be an integer; got '5'"):
        read_text(path, "5")
    for same in (str(path), os.fsencode(path)):
        assert read_text(same, 5).digest == read_text(path, 5).digest
    with pytest.raises(TypeError, match=r"^path must be a str, bytes or PathLike; got NoneType$"):
        read_text(None, 5)
    with pytest.raises(FileNotFoundError):
        read_text("", 5)
