"""Every step of a training in a file, a line each, as CSV or as JSON."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TextIO, TypeAlias

from .train_loop import TrainingResult

Row: TypeAlias = dict[str, str | int | float | None]

COLUMNS = ("optimizer", "peak_lr", "epoch", "step", "loss", "learning_rate", "gradient_norm")
FLUSH_SECONDS = 1.0  # so that the file can be followed


def _as_csv(row: Row) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(row.values())
    return line.getvalue()


def _as_json(row: Row) -> str:
    finite = {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Row], str]] = {".csv": _as_csv, ".jsonl": _as_json}


def check_log_path(path: Path) -> None:
    """Raise ValueError unless the suffix of the file is that of a format."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--log must end in {' or '.join(FORMATS)}; got {path}")


class TrainingLog:
    """The steps of one training or several, written as they are made.

    The row of step t has the loss after t updates, and the learning rate and the norm of the
    gradient of update t; step 0 is before the first one.

    Args:
        file: to write to.
        path: its name, which tells the format.
        batches_per_epoch: None where there are no epochs.
    """

    def __init__(self, file: TextIO, path: Path, batches_per_epoch: int | None) -> None:
        self._file, self._path, self._batches_per_epoch = file, path, batches_per_epoch
        self._line = FORMATS[path.suffix.lower()]
        self._result: TrainingResult | None = None
        self._written = 0
        self._flushed = monotonic()
        if self._line is _as_csv:
            file.write(",".join(COLUMNS) + "\n")

    def add(self, result: TrainingResult) -> None:
        """Write the steps of a training since the last call for it."""
        if result is not self._result:
            self._result, self._written = result, 0
        with _named(self._path):
            for step in range(self._written, len(result.history.losses)):
                self._file.write(self._line(self._row(result, step)))
            if monotonic() - self._flushed > FLUSH_SECONDS:
                self._file.flush()
                self._flushed = monotonic()
        self._written = len(result.history.losses)

    def _row(self, result: TrainingResult, step: int) -> Row:
        history, per_epoch = result.history, self._batches_per_epoch
        values = (
            result.optimizer,
            result.lr,
            -(-step // per_epoch) if per_epoch else None,
            step,
            history.losses[step],
            result.rate_at(step) if step else None,
            history.gradient_norms[step - 1] if step else None,
        )
        return dict(zip(COLUMNS, values, strict=True))


@contextmanager
def training_log(path: Path, batches_per_epoch: int | None) -> Iterator[TrainingLog]:
    """Open a log, in the place of what is in the file.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    file = path.open("w", encoding="utf-8", newline="")
    try:
        yield TrainingLog(file, path, batches_per_epoch)
    finally:
        with _named(path):
            file.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a write does not know the name of what it writes to
        reason = error.strerror or str(error)
        raise OSError(error.errno, reason, os.fspath(path)) from error
