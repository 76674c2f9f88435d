"""Every step of a training run in a file, a line each, as CSV or as JSON."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

from .train_loop import TrainingResult

Row: TypeAlias = dict[str, str | int | float | None]

COLUMNS = ("optimizer", "peak_lr", "epoch", "step", "loss", "learning_rate", "gradient_norm")
FLUSH_SECONDS = 1.0  # so that the file can be followed


def _as_csv(row: Row) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(row.values())
    return line.getvalue()


def _as_json(row: Row) -> str:
    return json.dumps(without_nan(row), allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """Return the same with None for numbers that are not finite, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


FORMATS: dict[str, Callable[[Row], str]] = {".csv": _as_csv, ".jsonl": _as_json}


def check_log_path(log: Path) -> None:
    """Raise ValueError unless the suffix of the file is that of a format."""
    if log.suffix.lower() not in FORMATS:
        raise ValueError(f"log must end in {' or '.join(FORMATS)}; got {log}")


class TrainingLog:
    """The steps of one or more training runs, written as they are taken.

    The row of step t has the loss after t updates, and the learning rate and the norm of the
    gradient of update t; step 0 is before the first one.

    If the file can no longer be written, the training continues, and `error` has the reason.

    Args:
        path: the file, which the first row replaces: a training that is refused leaves it as it
            was. Its suffix tells the format.
        batches_per_epoch: None where there are no epochs.

    Attributes:
        error: why writing has failed; None as long as it works.
    """

    def __init__(self, path: Path, batches_per_epoch: int | None) -> None:
        self.error: OSError | None = None
        self._path, self._batches_per_epoch = path, batches_per_epoch
        self._file: TextIOWrapper | None = None
        self._line = FORMATS[path.suffix.lower()]
        self._result: TrainingResult | None = None
        self._written = 0
        self._flushed = monotonic()

    def add(self, result: TrainingResult) -> None:
        """Write the steps of a training run since the last call for it."""
        if self.error is not None:
            return
        if result is not self._result:
            self._result, self._written = result, 0
        with self._failure_noted():
            file = self._opened()
            for step in range(self._written, len(result.history.losses)):
                file.write(self._line(self._row(result, step)))
            if monotonic() - self._flushed > FLUSH_SECONDS:
                file.flush()
                self._flushed = monotonic()
        self._written = len(result.history.losses)

    def close(self) -> None:
        """Write what has not been written."""
        with self._failure_noted():
            if self._file is not None:
                self._file.close()

    def _opened(self) -> TextIOWrapper:
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
            if self._line is _as_csv:
                self._file.write(",".join(COLUMNS) + "\n")
        return self._file

    @contextmanager
    def _failure_noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a write does not know the name of what it writes to
            reason = error.strerror or str(error)
            self.error = OSError(error.errno, reason, os.fspath(self._path))

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
