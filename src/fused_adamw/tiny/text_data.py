"""Text as training data: the corpus, windows of it, the tasks, and what a model makes of them."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from .._core import as_integer
from .._io.files import FilePath, path_text
from .layers import PAD, IntArray, softmax
from .model import TARGETS, TOKENS, VOCABULARY, TinyTransformer
from .token_input import Sequences, token_list

Batch: TypeAlias = tuple[Sequences, Sequences]
"""Tokens and their targets."""

HELD_OUT_SHARE = 10  # the last tenth of a text is held out

# ---------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Corpus:
    """A text whose tokens are its characters, split into a training part and a held-out part.

    Attributes:
        vocabulary: characters by token; that of PAD is "<PAD>", which no text contains.
        train: tokens to train on, shape (n,).
        held_out: tokens to evaluate on, shape (n,).
    """

    vocabulary: tuple[str, ...]
    train: IntArray
    held_out: IntArray

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of these tokens, each a position in ``vocabulary``.

        Raises:
            TypeError: `tokens` is not of integers.
            ValueError: one of them is not in the vocabulary.
        """
        indices = token_list("tokens", [*tokens], len(self.vocabulary))
        return "".join(self.vocabulary[token] for token in indices)

    @property
    def digest(self) -> str:
        """A checksum of vocabulary and tokens that is the same on every machine."""
        digest = blake2b(json.dumps(self.vocabulary).encode(), digest_size=8)
        for tokens in (self.train, self.held_out):
            digest.update(tokens.astype("<i8").tobytes())
        return f"BLAKE2b {digest.hexdigest()}"


def read_text(path: FilePath, context: int) -> Corpus:
    """Read a UTF-8 file that is long enough for windows of `context` tokens.

    Args:
        path: the file, or a pipe. A byte order mark at its start is skipped.
        context: tokens, which are characters, in a window.

    Returns:
        The text as tokens. The last tenth is held out.

    Raises:
        OSError: the file cannot be read.
        TypeError: `path` is no path, or `context` is not an integer.
        ValueError: the file is a folder or a device, not UTF-8, or too short; `context` is below 1.
    """
    path = path_text(path)
    context = as_integer("context", context, minimum=1)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} must be a file or a pipe; got a folder")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # it might never end
        raise ValueError(f"{path} must be a file or a pipe; got a device")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text; byte {error.start} is invalid") from None
    vocabulary = (VOCABULARY[PAD], *sorted(set(text)))
    index = {character: i for i, character in enumerate(vocabulary)}
    tokens = np.array([index[character] for character in text], dtype=np.intp)
    # The training part has to contain a window and the token after it; the held-out part, a target.
    fewest = max(context + 1 + context // (HELD_OUT_SHARE - 1), 2 * HELD_OUT_SHARE)
    if len(tokens) < fewest:
        raise ValueError(
            f"{path} must have at least {fewest} characters for a context of {context}; "
            f"got {len(tokens)}"
        )
    split = len(tokens) - len(tokens) // HELD_OUT_SHARE
    return Corpus(vocabulary, tokens[:split], tokens[split:])


def random_windows(
    tokens: IntArray, context: int, batch_size: int, seed: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield random windows of the text and, as targets, the same windows one token later.

    Both arrays have the shape (batch_size, context). The batches never end, and are determined by
    the seed.
    """
    generator = np.random.default_rng(seed)
    offsets = np.arange(context + 1)
    while True:
        starts = generator.integers(len(tokens) - context, size=(batch_size, 1))
        windows = tokens[starts + offsets]  # (batch_size, context + 1)
        yield windows[:, :-1], windows[:, 1:]


def windows_per_epoch(tokens: IntArray, context: int) -> int:
    """Return the number of windows that do not overlap, each with the token after it."""
    return (len(tokens) - 1) // context


def shuffled_windows(
    tokens: IntArray, context: int, batch_size: int, seed: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the windows of the text that do not overlap, epoch after epoch.

    They are shuffled for each epoch. Those that do not fill a batch are left out; they differ from
    epoch to epoch. Shapes and targets are those of `random_windows`.
    """
    generator = np.random.default_rng(seed)
    offsets = np.arange(context + 1)
    n_windows = windows_per_epoch(tokens, context)
    while True:
        starts = context * generator.permutation(n_windows)[:, np.newaxis]
        for i in range(0, n_windows - batch_size + 1, batch_size):
            windows = tokens[starts[i : i + batch_size] + offsets]
            yield windows[:, :-1], windows[:, 1:]


# ---------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """What a model is trained on.

    Attributes:
        vocabulary: the text of each token.
        sizes: keyword arguments of the model.
        batches: yields the batches from the start, at every call.
        example: the tokens and targets whose predictions are shown.
        corpus: the text; None for the single sentence.
        batches_per_epoch: the number of batches in a pass over the data.
    """

    vocabulary: tuple[str, ...]
    sizes: Mapping[str, int]
    batches: Callable[[], Iterator[Batch]]
    example: tuple[Sequence[int], Sequence[int]]
    corpus: Corpus | None = None
    batches_per_epoch: int = 1

    @property
    def text_digest(self) -> str | None:
        """The checksum of the text, if there is one."""
        return None if self.corpus is None else self.corpus.digest


def sentence_task() -> Task:
    """Return the task of the default model: "I like transformers", at every step."""
    return Task(VOCABULARY, {}, lambda: repeat((TOKENS, TARGETS)), (TOKENS, TARGETS))


def text_task(
    corpus: Corpus, context: int, batch_size: int, seed: int, in_epochs: bool = False, **sizes: int
) -> Task:
    """Return the task of windows of a text; its example is held-out text.

    Args:
        corpus: the text.
        context: tokens in a window.
        batch_size: windows in a batch.
        seed: of their order, 0 or more.
        in_epochs: each window once in an epoch; else the windows are random.
        sizes: of the model, by name.

    Raises:
        TypeError: `context`, `batch_size` or `seed` is not an integer.
        ValueError: `context` or `batch_size` is below 1 or `seed` below 0, the text has no window
            of that many tokens, an epoch no batch, or the held-out text no token with one before
            it.
    """
    context = as_integer("context", context, minimum=1)
    batch_size = as_integer("batch_size", batch_size, minimum=1)
    seed = as_integer("seed", seed, minimum=0)
    if context >= len(corpus.train):
        raise ValueError(
            f"context must be less than the {len(corpus.train)} tokens of the training text; got "
            f"{context}"
        )
    if len(corpus.held_out) < 2:
        raise ValueError(f"corpus must have 2 held-out tokens or more; got {len(corpus.held_out)}")
    example = corpus.held_out[: min(context, 12) + 1].tolist()
    n_windows = windows_per_epoch(corpus.train, context)
    if in_epochs and batch_size > n_windows:
        raise ValueError(
            f"batch_size must be at most the number of windows in the text ({n_windows}); got "
            f"{batch_size}"
        )
    windows = shuffled_windows if in_epochs else random_windows
    return Task(
        corpus.vocabulary,
        {"vocab_size": len(corpus.vocabulary), "max_length": context, **sizes},
        lambda: windows(corpus.train, context, batch_size, seed),
        (example[:-1], example[1:]),
        corpus,
        n_windows // batch_size,
    )


# ---------------------------------------------------------------------------- evaluation


def mean_loss(
    model: TinyTransformer,
    tokens: IntArray,
    stop_requested: Callable[[], bool] = bool,
    batch_size: int = 64,
) -> float | None:
    """Return the mean loss over all of `tokens`, in consecutive windows; None when asked to stop.

    `stop_requested` is called before each batch of windows.
    """
    context = model.max_length
    starts = range(0, len(tokens) - 1, context)
    windows = [tokens[start : start + context + 1] for start in starts]
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(0, len(windows), batch_size):
            if stop_requested():
                return None
            batch = windows[i : i + batch_size]
            targets = [window[1:] for window in batch]
            loss = model.loss([window[:-1] for window in batch], targets)
            total += loss * sum(map(len, targets))
    return total / (len(tokens) - 1)


class Prediction(NamedTuple):
    """What the model predicts after a token."""

    token: str
    target: str
    predicted: str | None  # None where the scores are not finite
    probability: float  # of the target


def predictions(model: TinyTransformer, task: Task) -> list[Prediction]:
    """Return the predictions at each position of the task's example that has a target."""
    tokens, targets = task.example
    with np.errstate(over="ignore", invalid="ignore"):
        P = softmax(model.logits(tokens))  # (n, V)
    names = task.vocabulary
    found = (names[int(row.argmax())] if np.isfinite(row).all() else None for row in P)
    return [
        Prediction(names[token], names[target], predicted, float(row[target]))
        for token, target, predicted, row in zip(tokens, targets, found, P, strict=False)
    ]
