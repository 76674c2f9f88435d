"""JSON of the metadata: what a caller's ``extra`` has to be, and what a file has to contain.

In JSON keys are text, and for Python ``true`` is a number: neither is noticed by ``json``.
"""

import json
from collections.abc import Mapping
from typing import Any

from .._optim.options import OPTIONS, SCHEDULED, check_flag

KEY_TYPES = (str, int, float, type(None))  # json.dumps refuses others
MAX_DEPTH = 100  # of containers: far from what json can read, whatever calls it
FLAGS = [name for name, x in OPTIONS.items() if x.saved and x.check is check_flag]

# ---------------------------------------------------------------------------- writing


def encode_extra(extra: Mapping[str, Any] | None) -> str:
    """The JSON of ``extra``. Raises TypeError or ValueError where reading it would differ."""
    return "{}" if extra is None else encode_mapping("extra", extra)


def encode_mapping(name: str, mapping: Mapping[str, Any]) -> str:
    """The JSON of an argument. Raises TypeError or ValueError where reading it would differ."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{name} must be a mapping; got {type(mapping).__name__}")
    values = dict(mapping)
    _check_nested(name, values, ())
    return _json_of(name, values)


def _json_of(name: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        hint = "; pass arrays as `arrays`" if name == "extra" and "ndarray" in str(error) else ""
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} must be serializable as JSON: {error}{hint}") from error


def _check_nested(name: str, value: Any, parents: tuple[int, ...]) -> None:
    if not isinstance(value, (dict, list, tuple)):
        return
    if id(value) in parents:
        raise ValueError(f"{name} must not contain itself; got a circular reference")
    if len(parents) == MAX_DEPTH:
        raise ValueError(f"{name} must be nested at most {MAX_DEPTH} deep; got more")
    if isinstance(value, dict):
        _check_keys(name, value)
    inner = (*parents, id(value))
    for item in value.values() if isinstance(value, dict) else value:
        _check_nested(name, item, inner)


def _check_keys(name: str, mapping: dict[Any, Any]) -> None:
    found: dict[str, Any] = {}
    for key in mapping:
        if not isinstance(key, KEY_TYPES):
            continue
        text = str.__str__(key) if isinstance(key, str) else _json_of(name, key)
        if text in found:
            raise ValueError(
                f"{name} must have keys that differ as text; got {found[text]!r} and {key!r}"
            )
        found[text] = key


# ---------------------------------------------------------------------------- reading


def read_metadata(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object in the metadata of a file."""
    value = json.loads(metadata[key])
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} must be a JSON object; got {type(value).__name__}")
    return value


def read_step_count(metadata: Mapping[str, str]) -> int:
    """The ``t`` of the optimizer in the metadata of a file."""
    t = read_metadata(metadata, "optimizer")["t"]
    if type(t) is not int or t < 0:
        raise ValueError(f"'t' must be a number of steps, 0 or more; got {t!r}")
    return t


def require_json_types(saved: Mapping[str, Any]) -> None:
    """Raise TypeError where the numbers of an optimizer have booleans, or its flags numbers."""
    for flag in FLAGS:
        if type(saved[flag]) is not bool:
            raise TypeError(f"{flag} must be a bool; got {saved[flag]!r}")
    for group in saved["param_groups"]:
        for option in SCHEDULED:
            value = group[option]
            if isinstance(value, dict) and [*value] != ["schedule"]:
                raise TypeError(f"{option} must be a number or a schedule; got {value!r}")
    for name, value in saved.items():
        if name not in FLAGS:
            _require_no_bool(name, value)


def _require_no_bool(name: str, value: Any) -> None:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if isinstance(value, dict):
        for key, item in value.items():
            _require_no_bool(f"{name}[{key!r}]", item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _require_no_bool(f"{name}[{i}]", item)
