"""The loop that joins a model, an optimizer and data, and measures where the time goes.

An optimizer is anything made for some parameters, whose ``step(grads)`` changes them in place.
Nothing here prints or parses.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from itertools import islice, repeat
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from .._io.sigint import interrupts_held
from ..optimizer import AdamW, Schedule
from ..reference import adamw_update_list
from ..schedules import CosineDecay, LinearDecay, LinearWarmup
from .model import (
    PAD,
    TARGETS,
    TOKENS,
    VOCABULARY,
    Cache,
    IntArray,
    Parameters,
    Sequences,
    TinyTransformer,
    softmax,
)

Batch: TypeAlias = tuple[Sequences, Sequences]  # tokens and their targets


# ---------------------------------------------------------------------------- optimizers


class Optimizer(Protocol):
    def step(self, grads: Parameters) -> object: ...


class ReferenceAdamW:
    """AdamW in pure Python, one number at a time."""

    def __init__(self, parameters: Parameters, lr: float, weight_decay: float) -> None:
        self.parameters = parameters
        self.m = {name: [0.0] * parameter.size for name, parameter in parameters.items()}
        self.v = {name: [0.0] * parameter.size for name, parameter in parameters.items()}
        self.t = 0
        self.lr = lr
        self.weight_decay = weight_decay

    def step(self, grads: Parameters) -> None:
        self.t += 1
        for name, parameter in self.parameters.items():
            theta, self.m[name], self.v[name] = adamw_update_list(
                parameter.ravel().tolist(),
                grads[name].ravel().tolist(),
                self.m[name],
                self.v[name],
                self.t,
                lr=self.lr,
                wd=self.weight_decay,
            )
            parameter[...] = np.reshape(theta, parameter.shape)


class SGD:
    """Plain gradient descent: one rate for all parameters, no state."""

    def __init__(self, parameters: Parameters, lr: float) -> None:
        self.parameters = parameters
        self.lr = lr

    def step(self, grads: Parameters) -> None:
        for name, parameter in self.parameters.items():
            parameter -= self.lr * grads[name]


class OptimizerName(StrEnum):
    FUSED = "fused"
    REFERENCE = "reference"
    SGD = "sgd"


def make_optimizer(
    name: OptimizerName,
    parameters: Parameters,
    lr: float,
    weight_decay: float = 0.01,
    num_threads: int | None = None,
    schedule: Schedule | None = None,
    max_grad_norm: float | None = None,
    state_dtype: str | None = None,
    adamw: Callable[..., Any] = AdamW,
) -> Optimizer:
    """A schedule, whose highest rate is `lr`, clipping and `state_dtype` are for the fused AdamW
    alone, which `adamw` makes."""
    if name is OptimizerName.SGD:
        return SGD(parameters, lr)
    if name is OptimizerName.REFERENCE:
        return ReferenceAdamW(parameters, lr, weight_decay)
    optimizer = adamw(
        parameters,
        lr,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        num_threads=num_threads,
        state_dtype=state_dtype,
    )
    if schedule is not None:
        # Only now: of a schedule AdamW would check the first rate, which may not be the highest.
        optimizer.param_groups[0]["lr"] = schedule
    made: Optimizer = optimizer
    return made


class ScheduleName(StrEnum):
    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


def make_schedule(name: ScheduleName, lr: float, warmup: int, steps: int) -> Schedule | None:
    """Up to `lr` over the first `warmup` steps, then the same or, over the rest of `steps`, down
    to 0; None where the rate is the same at all steps."""
    if name is ScheduleName.CONSTANT:
        return LinearWarmup(lr, warmup) if warmup else None
    if warmup >= steps:
        raise ValueError(
            f"warmup is {warmup}; expected fewer than the {steps} steps, to decay after"
        )
    kind = LinearDecay if name is ScheduleName.LINEAR else CosineDecay
    decay = kind(lr, steps - warmup)
    return LinearWarmup(lr, warmup).then(decay) if warmup else decay


# ---------------------------------------------------------------------------- the loop


@dataclass
class Run:
    """The record of a training: `losses[k]` is the loss after k updates."""

    losses: list[float] = field(default_factory=list)
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    interrupted: bool = False
    resumed_from: int | None = None  # the number of updates before, of an earlier process

    @property
    def steps(self) -> int:
        """How many updates were completed."""
        return len(self.losses) - 1

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds + self.optimizer_seconds


class Model(Protocol):
    def forward(self, tokens: Sequences, targets: Sequences) -> tuple[float, Cache]: ...

    def backward(self, cache: Cache) -> Parameters: ...


def train(
    model: Model,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    steps: int,
    on_step: Callable[[Run], None] | None = None,
    run: Run | None = None,
    agree: Callable[[bool], bool] = bool,
) -> Run:
    """Train for `steps` updates, or until Ctrl-C; the parameters never hold half an update.

    It takes one batch more than updates: the last gives the loss after the last update. `on_step`
    gets the record after every forward pass, so that its last loss and the parameters belong to
    `run.steps`. At the last call that is `steps`, or `run.interrupted` is set.

    Given the record of a training that stopped, `run`, with the model and the optimizer as they
    were then, it goes on up to `steps` updates in all; `batches` are those from the very start.

    `agree` is asked whether to stop, given whether Ctrl-C was pressed: where several processes
    train together, they have to stop together.
    """
    run = Run() if run is None else run
    # The last forward pass is taken again: the next update needs its gradients.
    del run.losses[-1:]
    # Where a loss diverges, the losses themselves say it.
    with interrupts_held() as interrupt, np.errstate(over="ignore", invalid="ignore"):
        for tokens, targets in islice(batches, len(run.losses), None):
            start = perf_counter()
            loss, cache = model.forward(tokens, targets)
            forward_end = perf_counter()
            run.losses.append(loss)
            run.interrupted = agree(interrupt.is_set())
            if on_step is not None:
                on_step(run)
            if run.steps >= steps or run.interrupted:
                break
            backward_start = perf_counter()
            grads = model.backward(cache)
            backward_end = perf_counter()
            optimizer.step(grads)
            end = perf_counter()
            run.forward_seconds += forward_end - start
            run.backward_seconds += backward_end - backward_start
            run.optimizer_seconds += end - backward_end
        run.interrupted = agree(interrupt.is_set())
    return run


def reference_step_seconds(
    model: TinyTransformer, batch: Batch, lr: float, weight_decay: float, repeats: int = 5
) -> float:
    """The median time of the pure-Python step on copies of the model's parameters."""
    parameters = {name: parameter.copy() for name, parameter in model.parameters.items()}
    _, grads = model.loss_and_gradients(*batch)
    optimizer = ReferenceAdamW(parameters, lr, weight_decay)
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        optimizer.step(grads)
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)


# ---------------------------------------------------------------------------- text

HELD_OUT_SHARE = 10  # the last tenth of a text


class Level(StrEnum):
    """What a token of a text is."""

    CHARS = "chars"
    WORDS = "words"


@dataclass(frozen=True)
class Corpus:
    """A text as tokens: what to train on, and what to keep for the test."""

    vocabulary: tuple[str, ...]  # index PAD is <PAD>, which no text contains
    train: IntArray
    held_out: IntArray
    level: Level

    def decode(self, tokens: Iterable[int]) -> str:
        words = [self.vocabulary[token] for token in tokens]
        if self.level is Level.CHARS:
            return "".join(words)
        return re.sub(r" ([.,;:!?)\]])", r"\1", " ".join(words))

    @property
    def digest(self) -> str:
        """The same for the same tokens of the same vocabulary, on every machine."""
        digest = blake2b(json.dumps(self.vocabulary).encode(), digest_size=8)
        for tokens in (self.train, self.held_out):
            digest.update(tokens.astype("<i8").tobytes())
        return f"BLAKE2b {digest.hexdigest()}"


def read_text(path: Path, level: Level, context: int) -> Corpus:
    """The corpus of a UTF-8 file, long enough for windows of `context` tokens.

    Raises OSError where the file cannot be read, ValueError where it is no such text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None
    # A word keeps its apostrophes; every other sign is a token of its own.
    pieces = (
        list(text) if level is Level.CHARS else re.findall(r"\w+(?:['\u2019]\w+)*|[^\w\s]", text)
    )
    vocabulary = (VOCABULARY[PAD], *sorted(set(pieces)))
    index = {piece: i for i, piece in enumerate(vocabulary)}
    tokens = np.array([index[piece] for piece in pieces], dtype=np.intp)
    # The training part holds a window and the token after it; the held-out part, a target.
    fewest = max(context + 1 + context // (HELD_OUT_SHARE - 1), 2 * HELD_OUT_SHARE)
    if len(tokens) < fewest:
        raise ValueError(
            f"{path} has too few tokens: {len(tokens)}; expected {fewest} or more "
            f"for a context of {context}"
        )
    split = len(tokens) - len(tokens) // HELD_OUT_SHARE
    return Corpus(vocabulary, tokens[:split], tokens[split:], level)


def random_windows(
    tokens: IntArray, context: int, batch_size: int, seed: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Batches without end: each row a random stretch of `context` tokens, and the next ones."""
    generator = np.random.default_rng(seed)
    offsets = np.arange(context + 1)
    while True:
        starts = generator.integers(len(tokens) - context, size=(batch_size, 1))
        windows = tokens[starts + offsets]  # (batch_size, context + 1)
        yield windows[:, :-1], windows[:, 1:]


def mean_loss(model: TinyTransformer, tokens: IntArray, batch_size: int = 64) -> float:
    """The mean loss over all of `tokens`, in windows that do not overlap."""
    context = model.max_length
    starts = range(0, len(tokens) - 1, context)
    windows = [tokens[start : start + context + 1] for start in starts]
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(0, len(windows), batch_size):
            batch = windows[i : i + batch_size]
            targets = [window[1:] for window in batch]
            loss = model.loss([window[:-1] for window in batch], targets)
            total += loss * sum(map(len, targets))
    return total / (len(tokens) - 1)


def sample(model: TinyTransformer, start: Sequence[int], length: int, seed: int) -> list[int]:
    """`start` and `length` tokens more, each drawn from what the model predicts."""
    generator = np.random.default_rng(seed)
    tokens = list(start)
    for _ in range(length):
        logits = model.logits(tokens[-model.max_length :])[-1].astype(np.float64)
        logits[PAD] = -inf
        tokens.append(int(generator.choice(model.vocab_size, p=softmax(logits))))
    return tokens


# ---------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """What a model is trained on."""

    vocabulary: tuple[str, ...]
    sizes: Mapping[str, int]  # of the model
    batches: Callable[[], Iterator[Batch]]  # from the start at every call
    shown: tuple[Sequence[int], Sequence[int]]  # the sequence whose predictions are shown
    corpus: Corpus | None = None


def sentence_task() -> Task:
    """The one sentence of the default model, at every step."""
    return Task(VOCABULARY, {}, lambda: repeat((TOKENS, TARGETS)), (TOKENS, TARGETS))


def text_task(corpus: Corpus, context: int, batch_size: int, seed: int, **sizes: int) -> Task:
    """Random windows of a text; what is shown comes from its held-out part."""
    shown = corpus.held_out[: min(context, 12) + 1].tolist()
    return Task(
        corpus.vocabulary,
        {"vocab_size": len(corpus.vocabulary), "max_length": context, **sizes},
        lambda: random_windows(corpus.train, context, batch_size, seed),
        (shown[:-1], shown[1:]),
        corpus,
    )


class Prediction(NamedTuple):
    """What the model expects after a token."""

    token: str
    target: str
    predicted: str
    probability: float  # of the target


def predictions(model: TinyTransformer, task: Task) -> list[Prediction]:
    """One row for each position that has a target."""
    tokens, targets = task.shown
    with np.errstate(over="ignore", invalid="ignore"):
        P = softmax(model.logits(tokens))  # (n, V)
    names = task.vocabulary
    return [
        Prediction(names[token], names[target], names[int(row.argmax())], float(row[target]))
        for token, target, row in zip(tokens, targets, P, strict=False)
    ]
