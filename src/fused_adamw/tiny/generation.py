"""Text that a trained model writes: the prompt as tokens, and what follows it as text."""

from collections.abc import Sequence
from math import inf

import numpy as np

from .._core import as_integer
from .layers import PAD, softmax
from .model import TOKENS, VOCABULARY, TinyTransformer
from .text_data import Task
from .token_input import token_list

DEFAULT_LENGTH = 300  # characters of a text
BOS, EOS = VOCABULARY.index("<BOS>"), VOCABULARY.index("<EOS>")
WORDS = VOCABULARY[EOS + 1 :]


def prompt_tokens(task: Task, prompt: str | None) -> list[int]:
    """Return the tokens that a text begins with.

    Args:
        task: what the model has been trained on: characters, or the words of a sentence.
        prompt: None for the first character of the held-out text, or for the start of the sentence.

    Raises:
        ValueError: the task has no such tokens.
    """
    if task.corpus is None:
        return [BOS, *_word_tokens("" if prompt is None else prompt, len(TOKENS) - 1)]
    if prompt is None:
        return [int(task.corpus.held_out[0])]
    if not prompt:
        raise ValueError("prompt must be at least one character of the text; got ''")
    index = {character: token for token, character in enumerate(task.vocabulary)}
    for character in prompt:
        if character not in index:
            raise ValueError(f"prompt must contain characters of the text only; got {character!r}")
    return [index[character] for character in prompt]


def _word_tokens(prompt: str, most: int) -> list[int]:
    words = prompt.split()
    for word in words:
        if word not in WORDS:
            known = ", ".join(WORDS)
            raise ValueError(f"prompt must contain words of {known} only; got {word!r}")
    if len(words) > most:
        raise ValueError(f"prompt must be at most {most} words; got {len(words)}")
    return [VOCABULARY.index(word) for word in words]


def generate(
    model: TinyTransformer, task: Task, start: list[int], length: int | None, seed: int
) -> str:
    """Return a text that begins with `start`.

    `length` more tokens follow it, each drawn from the model's prediction. A sentence ends at
    <EOS>, or where the positions of the model do.
    """
    if task.corpus is not None:
        length = DEFAULT_LENGTH if length is None else length
        return task.corpus.decode(sample(model, start, length, seed))
    most = model.max_length - len(start)
    length = most if length is None else min(length, most)
    tokens = sample(model, start, length, seed, end=EOS)
    return " ".join(task.vocabulary[token] for token in tokens[1:])


def sample(
    model: TinyTransformer, start: Sequence[int], length: int, seed: int, end: int | None = None
) -> list[int]:
    """Return `start` and `length` more tokens, each drawn from the model's prediction.

    PAD is never drawn. The model sees the last `model.max_length` tokens at each step.

    Args:
        model: predicts each token from those before it; of a vocabulary of 2 tokens or more.
        start: the tokens to begin with, at least one.
        length: number of tokens to draw.
        seed: of the draws, 0 or more; the same seed gives the same tokens.
        end: a token after which no more are drawn; None to draw all of them.

    Raises:
        TypeError: `start`, `length` or `seed` is not of integers.
        ValueError: `start` is empty or contains what is not a token of the model; `length` or
            `seed` is below 0; the model has no token but PAD; the scores that it predicts are not
            finite.
    """
    length = as_integer("length", length, minimum=0)
    seed = as_integer("seed", seed, minimum=0)
    tokens = token_list("start", start, model.vocab_size)
    if not tokens:
        raise ValueError("start must contain at least one token; got none")
    if model.vocab_size < 2:
        raise ValueError(
            f"model must have a vocabulary of 2 tokens or more; got {model.vocab_size}"
        )
    generator = np.random.default_rng(seed)
    for _ in range(length):
        logits = model.logits(tokens[-model.max_length :])[-1].astype(np.float64)
        if not np.isfinite(logits).all():
            raise ValueError("scores of the model must be finite; got NaN or infinity")
        logits[PAD] = -inf
        tokens.append(int(generator.choice(model.vocab_size, p=softmax(logits))))
        if tokens[-1] == end:
            break
    return tokens
