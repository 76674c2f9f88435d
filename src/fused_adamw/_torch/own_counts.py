"""Parameters of several groups: PyTorch would update them once for each."""

from collections.abc import Sequence

from .._core import share_counts
from .dispatch import GroupDispatch


def require_own_counts(parts: Sequence[GroupDispatch]) -> None:
    """Raise ValueError where two parts update one parameter, or count their steps in one tensor.
    All are prepared before the first is run: the second would have the number of the same step."""
    steps = [part.prepared for part in parts if part.prepared is not None]
    if len(parts) < 2 or not steps:
        return
    left = (x for part in parts for x in (*part.fallback.params, *part.fallback.steps))
    if share_counts(steps, list(dict.fromkeys(left))):
        raise ValueError(
            "params must be in one group each, with counts of steps of their own; got a parameter "
            "or a count that several groups have"
        )
