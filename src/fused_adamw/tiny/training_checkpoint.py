"""A training in a file: all that it takes to go on as if it had never stopped.

Beside parameters and optimizer the file holds, as its `extra`, what defines the training, so that
no other one goes on from it, and the record so far.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import load_checkpoint, read_extra, save_checkpoint
from ..optimizer import AdamW
from .train_loop import Run

STEPS_LIMIT = 1_000_000  # their losses are 20 MB in the header of a file, which may have 100
OF_ONE_PROCESS = ("interrupted", "resumed_from")  # what is not saved of a record


@dataclass(frozen=True)
class TrainingFile:
    """Where a training is kept.

    Args:
        path: the file.
        definition: what the parameters after a number of steps follow from, by name of the option.
            JSON has to be able to hold the values.
        steps: how many updates there are to be.
        open_ended: `steps` may be another number when the training is resumed.
        every: save each so many steps, not only in the end.
    """

    path: Path
    definition: Mapping[str, Any]
    steps: int
    open_ended: bool
    every: int | None = None

    def __post_init__(self) -> None:
        if self.steps > STEPS_LIMIT:
            raise ValueError(
                f"steps is {self.steps}; a checkpoint holds a training of {STEPS_LIMIT} at most"
            )

    def read(self) -> Run:
        """The record so far. Raises ValueError where the file is not of this training."""
        if not self.path.is_file():
            raise ValueError(f"{self.path}: there is no such file to resume from")
        extra = read_extra(self.path)
        try:
            saved = extra["training"]
            definition = dict(saved["definition"])
            run = Run(**saved["run"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.path} is not from `fused-adamw train`") from None
        self._require_same(definition)
        if run.steps > self.steps:
            raise ValueError(f"{self.path} has {run.steps} steps; expected at most {self.steps}")
        run.resumed_from = run.steps
        return run

    def load(self, optimizer: Any) -> None:
        """Return parameters and optimizer to where the record ends."""
        loader, _ = functions_for(optimizer)
        loader(self.path, optimizer)

    def save_when_due(self, optimizer: Any, run: Run) -> None:
        """To be called after each step, and before the first; raises OSError with the path."""
        ends = run.steps == self.steps or run.interrupted
        due = ends or (self.every is not None and run.steps % self.every == 0)
        if due and run.steps != run.resumed_from:
            self._save(optimizer, run)

    def _save(self, optimizer: Any, run: Run) -> None:
        record = {name: value for name, value in asdict(run).items() if name not in OF_ONE_PROCESS}
        definition = {**self.definition, "steps": self.steps}
        extra = {"training": {"definition": definition, "run": record}}
        _, saver = functions_for(optimizer)
        try:
            saver(self.path, optimizer, extra=extra)
        except OSError as error:  # names a temporary file, or none
            reason = error.strerror or str(error)
            raise OSError(error.errno, reason, os.fspath(self.path)) from error

    def _require_same(self, saved: dict[str, Any]) -> None:
        own = {**self.definition, "steps": self.steps}
        differences = ", ".join(
            f"--{name.replace('_', '-')} is {_shown(saved.get(name))} there and "
            f"{_shown(own.get(name))} here"
            for name in {**own, **saved}
            if saved.get(name) != own.get(name) and not (name == "steps" and self.open_ended)
        )
        if differences:
            raise ValueError(f"{self.path} is of another training: {differences}")


def functions_for(optimizer: Any) -> tuple[Any, Any]:
    """What loads and what saves an optimizer: of one process, or sharded."""
    if isinstance(optimizer, AdamW):
        return load_checkpoint, save_checkpoint
    from .._io import sharded_checkpoint

    return sharded_checkpoint.load_checkpoint, sharded_checkpoint.save_checkpoint


def _shown(value: object) -> object:
    return "not given" if value is None else value
