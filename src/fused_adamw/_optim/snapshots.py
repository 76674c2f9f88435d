"""State dicts as they are at one moment."""

from collections.abc import Mapping
from typing import Any

NESTED = 4  # containers within one another: a state dict, its state, that of a tensor; groups


def read_once(saved: Any, depth: int = NESTED) -> Any:
    """The containers of a state dict as dicts and lists of their own: what is checked is then what
    is loaded, even where a mapping reads its items from a file, or other code changes it."""
    if depth and isinstance(saved, Mapping):
        return {key: read_once(saved[key], depth - 1) for key in saved}
    if depth and isinstance(saved, list):
        return [read_once(item, depth - 1) for item in saved]
    return saved
