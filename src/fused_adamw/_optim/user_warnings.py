"""Warnings, which name the line of the user's program that led to them."""

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


def warn_user(message: str, *, through: Iterable[str] = ()) -> None:
    """Issue a UserWarning for the innermost line outside of this package.

    Args:
        message: the text.
        through: folders of other packages whose lines are passed over too.
    """
    passed = tuple(os.path.join(folder, "") for folder in (_PACKAGE, *through))
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(passed):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
