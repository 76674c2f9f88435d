"""A training run in a file: everything needed to continue as if it had never stopped.

Besides parameters and optimizer the file contains the options of the training, so that it is never
continued with others, the times so far, and, as the arrays ``losses``, ``gradient_norms`` and
``held_out_losses``, the loss after each step, the norm of its gradient, and the loss after each
epoch.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import as_integer
from .._io.file_lock import locked_file
from .._io.files import hidden_sibling, real_path
from .._io.json_values import encode_mapping
from .._optim.arrays import Array
from ..checkpoint import load_checkpoint, read_arrays, read_extra, save_checkpoint
from ..optimizer import AdamW
from .train_loop import History

if TYPE_CHECKING:
    from ..sharded import ShardedAdamW

SECONDS = ("forward_seconds", "backward_seconds", "optimizer_seconds")


@contextmanager
def checkpoint_lock(path: Path) -> Iterator[None]:
    """Lock the file that a training run saves to, so that no other saves to it meanwhile.

    The lock is one of the system (flock, on the file ``.NAME.lock`` in the same folder), which ends
    with the process. On Windows, and on file systems without locks, nothing is locked.

    Raises:
        ValueError: another training run has locked it.
        OSError: no file can be created there.
    """
    target = real_path(path)
    with locked_file(hidden_sibling(target, "lock")) as acquired:
        if not acquired:
            raise ValueError(
                f"{path} cannot be used: another training run saves to it; wait for its end, or "
                "choose another file"
            )
        yield


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The checkpoint file of a training run.

    Args:
        path: the file.
        options: what determines the parameters after a number of steps, by name of the option;
            values that JSON can represent.
        steps: number of updates in all.
        open_ended: whether the training may be continued with another number of `steps`.
        every: save each time after this number of steps, not only at the end; None: at the end.
        spelling: of an option in messages, by its name.

    Raises:
        TypeError, ValueError: `options`, `steps` or `every` is invalid; the message names it.
    """

    path: Path
    options: Mapping[str, Any]
    steps: int
    open_ended: bool
    every: int | None = None
    spelling: Callable[[str], str] = str

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", as_integer("steps", self.steps, minimum=0))
        if self.every is not None:
            every = as_integer("every", self.every, "an integer or None", minimum=1)
            object.__setattr__(self, "every", every)
        # As a file returns them, which they are compared with: a tuple as a list.
        options = json.loads(encode_mapping("options", self.options))
        object.__setattr__(self, "options", options)

    def read_history(self) -> History:
        """Read the history of the training so far, without parameters and optimizer.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is corrupt, or belongs to a different training.
        """
        training: Any = read_extra(self.path).get("training")
        arrays = read_arrays(self.path)
        history = _history(training, arrays.get("losses"))
        if history is None:
            raise ValueError(
                f"{self.path} must be the checkpoint of a training run; got one without its "
                "options, losses and times"
            )
        self._check_options(training["options"])
        if history.steps > self.steps:
            in_epochs = self.options.get("epochs") is not None
            name = self.spelling("epochs" if in_epochs else "steps")
            raise ValueError(
                f"{'the steps of ' * in_epochs}{name} must be at least {history.steps}, the number "
                f"of steps in {self.path}; got {self.steps}"
            )
        history.resumed_from = history.steps
        history.gradient_norms = _numbers(arrays.get("gradient_norms"))
        if len(history.gradient_norms) != history.steps:
            history.gradient_norms = [math.nan] * history.steps
        history.held_out_losses = _numbers(arrays.get("held_out_losses"))
        return history

    def load(self, optimizer: "AdamW | ShardedAdamW") -> None:
        """Restore parameters and optimizer as they were when the file was saved."""
        load_checkpoint(self.path, optimizer, convert=False)

    def save_when_due(self, optimizer: "AdamW | ShardedAdamW", history: History) -> None:
        """Save if the training is at its end or at a multiple of `every`.

        To be called before the first step and after each.

        Raises:
            OSError: the file cannot be written; the error names it.
        """
        at_end = history.steps == self.steps or history.interrupted
        due = at_end or (self.every is not None and history.steps % self.every == 0)
        if due and history.steps != history.resumed_from:
            self._save(optimizer, history)

    def _save(self, optimizer: "AdamW | ShardedAdamW", history: History) -> None:
        training = {"options": {**self.options, "steps": self.steps}}
        training |= {name: getattr(history, name) for name in SECONDS}
        arrays = {
            "losses": np.array(history.losses, np.float64),
            "gradient_norms": np.array(history.gradient_norms, np.float64),
            "held_out_losses": np.array(history.held_out_losses, np.float64),
        }
        save_checkpoint(self.path, optimizer, extra={"training": training}, arrays=arrays)

    def _check_options(self, saved: dict[str, Any]) -> None:
        current = {**self.options, "steps": self.steps}
        differences = ", ".join(
            f"{self.spelling(name)} {_shown(saved.get(name))} (now {_shown(current.get(name))})"
            for name in {**current, **saved}
            if _differ(saved.get(name), current.get(name)) and not self._may_differ(name, saved)
        )
        if differences:
            raise ValueError(f"{self.path} was saved with different options: {differences}")

    def _may_differ(self, name: str, saved: Mapping[str, Any]) -> bool:
        """Whether a training run is the same with this option changed, or another one says so."""
        epochs = saved.get("epochs"), self.options.get("epochs")
        if name == "epochs":
            return self.open_ended and None not in epochs
        return name == "steps" and (self.open_ended or epochs != (None, None))


def _history(training: Any, losses: Array | None) -> History | None:
    """The history of what a file contains; None where that is of something else."""
    if losses is None or losses.dtype != np.float64 or losses.ndim != 1 or losses.size == 0:
        return None
    if not isinstance(training, dict) or not isinstance(training.get("options"), dict):
        return None
    seconds: dict[str, Any] = {name: training.get(name) for name in SECONDS}
    if not all(isinstance(x, float) and 0 <= x < math.inf for x in seconds.values()):
        return None
    return History(losses.tolist(), **seconds)


def _numbers(saved: Array | None) -> list[float]:
    """The numbers of an array; none where the file has no such array."""
    if saved is None or saved.dtype != np.float64 or saved.ndim != 1:
        return []
    numbers: list[float] = saved.tolist()
    return numbers


def _differ(value: object, other: object) -> bool:
    """Whether these differ; NaN, which is unequal to itself, does not differ from NaN."""
    return value != other and json.dumps(value) != json.dumps(other)


def _shown(value: object) -> object:
    return "not given" if value is None else value
