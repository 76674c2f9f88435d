"""Prompts as tokens, and text that a model writes."""

import numpy as np
import pytest

from fused_adamw.tiny import Corpus, TinyTransformer, sentence_task, text_task
from fused_adamw.tiny.generation import generate, prompt_tokens

SENTENCE = sentence_task()


@pytest.fixture
def task():
    corpus = Corpus(("<PAD>", *"abc"), np.array([1, 2, 3] * 9), np.array([2, 1, 3]))
    return text_task(corpus, 4, 2, 0, d_model=4, n_heads=2, d_ff=8)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (None, [1]),
        ("", [1]),
        ("I", [1, 3]),
        (" I  like ", [1, 3, 4]),
        ("I like transformers I", [1, 3, 4, 5, 3]),
    ],
)
def test_prompts_of_the_sentence(prompt, tokens):
    assert prompt_tokens(SENTENCE, prompt) == tokens


def test_prompts_of_a_text(task):
    assert prompt_tokens(task, None) == [2]  # the first character held out
    assert prompt_tokens(task, "cab" * 5) == [3, 1, 2] * 5


@pytest.mark.parametrize(
    ("of_text", "prompt", "message"),
    [
        (False, "I love", "prompt must contain words of I, like, transformers only; got 'love'"),
        (False, "<PAD>", "prompt must contain words of .*; got '<PAD>'"),
        (False, "I I I I I", "prompt must be at most 4 words; got 5"),
        (True, "abd", "prompt must contain characters of the text only; got 'd'"),
        (True, "", "prompt must be at least one character of the text; got ''"),
    ],
)
def test_prompts_that_the_model_cannot_read(task, of_text, prompt, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        prompt_tokens(task if of_text else SENTENCE, prompt)


def sure_of(model, token):
    """Have the model predict this token, whatever comes before."""
    for parameter in model.parameters.values():
        parameter[...] = 0
    model.parameters["beta"][0] = 100.0
    model.parameters["W_lm"][token, 0] = 1.0
    return model


def test_a_text_has_the_length_that_was_asked_for(task):
    model = sure_of(TinyTransformer(0, **task.sizes), 3)
    assert generate(model, task, [1, 2], 6, seed=0) == "ab" + "c" * 6
    assert generate(model, task, [1, 2, 3] * 4, 2, seed=0) == "abc" * 4 + "cc"  # beyond the context
    assert generate(model, task, [1], None, seed=0) == "a" + "c" * 300


def test_a_sentence_ends_at_its_end_or_where_the_positions_end():
    model = sure_of(TinyTransformer(), 4)
    assert generate(model, SENTENCE, [1, 3], None, seed=0) == "I like like like"
    assert generate(model, SENTENCE, [1, 3], 1, seed=0) == "I like"
    assert generate(model, SENTENCE, [1, 3], 100, seed=0) == "I like like like"
    assert generate(model, SENTENCE, [1, 3, 4, 5, 3], None, seed=0) == "I like transformers I"
    sure_of(model, 2)
    assert generate(model, SENTENCE, [1, 3], None, seed=0) == "I <EOS>"


def test_the_seed_fixes_the_text(task):
    model = TinyTransformer(0, **task.sizes)
    first, again, other = (generate(model, task, [1], 40, seed) for seed in (1, 1, 2))
    assert first == again != other
