"""Checks of the dtype, tokens and targets that are passed to the model."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._core import shown
from .layers import PAD, IntArray

Sequences: TypeAlias = ArrayLike | Sequence[ArrayLike]
Row: TypeAlias = NDArray[np.integer[Any]]


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype; raise TypeError unless it is float32 or float64."""
    try:
        checked = np.dtype(dtype)
    except Exception:  # NumPy shows the value, too
        raise TypeError(f"dtype must be float32 or float64; got {shown(dtype)}") from None
    if checked not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64; got {checked}")
    return checked


def token_rows(tokens: Sequences, max_length: int) -> tuple[list[Row], bool]:
    """Return the sequences, and whether ``tokens`` is a single one outside a batch."""
    rows, one_sequence = _as_rows("tokens", tokens)
    lengths = [len(row) for row in rows]
    if min(lengths, default=0) == 0:
        raise ValueError(f"tokens must not contain an empty sequence; got lengths {lengths}")
    if max(lengths) > max_length:
        raise ValueError(
            f"tokens must not be longer than max_length ({max_length}); got {max(lengths)}"
        )
    return rows, one_sequence


def target_rows(targets: Sequences, tokens: list[Row]) -> list[Row]:
    """Return the targets of each sequence of ``tokens``, which may be fewer than its tokens."""
    rows, _ = _as_rows("targets", targets)
    if len(rows) != len(tokens):
        raise ValueError(
            f"targets must have as many sequences as tokens ({len(tokens)}); got {len(rows)}"
        )
    for i, (row, token_row) in enumerate(zip(rows, tokens, strict=True)):
        if len(row) > len(token_row):
            raise ValueError(
                f"targets must not be longer than tokens (length {len(token_row)} in sequence "
                f"{i}); got {len(row)}"
            )
    return rows


def pad(name: str, rows: list[Row], length: int, vocab_size: int) -> IntArray:
    """Return the rows as one (B, length) array, filled up with PAD."""
    batch = np.full((len(rows), length), PAD, dtype=np.intp)  # (B, n)
    for batch_row, row in zip(batch, rows, strict=True):
        batch_row[: len(row)] = row
    # Viewed as unsigned, a negative token is a huge one: a single pass finds both.
    if batch.view(np.uintp).max(initial=0) >= vocab_size:
        outside = next(x for row in rows for x in row.tolist() if not 0 <= x < vocab_size)
        raise ValueError(f"{name} must be between 0 and {vocab_size - 1}; got {outside}")
    return batch


def token_list(name: str, tokens: ArrayLike, vocab_size: int) -> list[int]:
    """Return a single sequence of tokens as a list."""
    row = _as_integers(name, tokens)
    if row.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension; got {row.ndim}")
    checked: list[int] = pad(name, [row], len(row), vocab_size)[0].tolist()
    return checked


def _as_rows(name: str, sequences: Sequences) -> tuple[list[Row], bool]:
    if isinstance(sequences, list | tuple) and any(hasattr(item, "__len__") for item in sequences):
        rows = [_as_integers(f"{name}[{i}]", row) for i, row in enumerate(sequences)]
        for i, row in enumerate(rows):
            if row.ndim != 1:
                raise ValueError(f"{name}[{i}] must have 1 dimension; got {row.ndim}")
        return rows, False
    array = _as_integers(name, sequences)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must have 1 dimension, or 2 for a batch; got {array.ndim}")
    return ([array], True) if array.ndim == 1 else (list(array), False)


def _as_integers(name: str, values: Sequences) -> Row:
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array; got a masked array: pass its .filled(PAD)")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of integers; {error}") from None
    # NumPy makes an empty list an array of float64.
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must contain integers; got dtype {array.dtype}")
    return array
