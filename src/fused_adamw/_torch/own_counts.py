"""Parameters that are in several groups, which PyTorch would update once for each."""

from collections.abc import Sequence

from .._core import share_counts
from .dispatch import GroupDispatch


def require_own_counts(parts: Sequence[GroupDispatch]) -> None:
    """Raise ValueError where two parts update one parameter, or count their steps in one tensor:
    all parts read their counts before the first is run, so that both would take the same step."""
    steps = [part.prepared for part in parts if part.prepared is not None]
    if len(parts) < 2 or not steps:
        return
    left = (x for part in parts for x in (*part.fallback.params, *part.fallback.steps))
    if share_counts(steps, list(dict.fromkeys(left))):
        raise ValueError(
            "params must be in one group each and have their own counts of steps; got a parameter "
            "or a count that several groups share"
        )
