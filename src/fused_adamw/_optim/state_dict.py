"""State dicts: what they contain, and checks of what is loaded."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._core import BoundTensors, abbreviated, printable_integer, shown
from .arrays import Array, ArrayTypes, MemoryOrder, order_of
from .options import HYPERPARAMETERS, OPTIONS, ROLES, roles_of
from .state_formats import (
    BUFFERS,
    FROM_PARAMS,
    StateOptions,
    TensorState,
    detect_format,
    format_of,
    has_param_layout,
    state_layout,
    stored_as,
)
from .user_warnings import warn_user

MAX_STEPS = 2**63 - 2**32  # leaves a count of 64 bits far from its end


class Difference(NamedTuple):
    """How saved state differs from that of an optimizer, in words."""

    found: str  # a clause, such as "holds 'float32' moments"
    stored: str  # what the optimizer stores in place of that


class StateMatch(NamedTuple):
    """How the state of a tensor was saved, and whether the optimizer stores it in that way."""

    format: str
    own_format: str
    order: MemoryOrder | None  # of saved arrays that are flat
    difference: Difference | None  # None where the arrays can be copied
    roles: tuple[str, ...]  # of saved arrays


class SavedState(NamedTuple):
    """The arrays of one tensor in a state dict."""

    state: TensorState
    order: MemoryOrder | None
    difference: Difference | None = None  # of ``StateMatch``


class Stored(NamedTuple):
    """How the state of a tensor is stored, as far as that can differ, for messages."""

    format: str
    names: frozenset[str]  # of the arrays; master weights and averages under their roles
    order: Any = None  # in memory
    master: str = ""  # the dtype of master weights

    def difference_from(self, own: "Stored") -> Difference | None:
        """From how an optimizer stores it; None if that is the same."""
        if self == own:
            return None
        found, stored = f"is in memory order {self.order!r}", f"{own.order!r}"
        if self.format != own.format:
            found, stored = f"holds {self.format!r} moments", f"{own.format!r}"
            for role in sorted((self.names ^ own.names) & set(FROM_PARAMS)):
                found += f" with{'' if role in self.names else 'out'} {role}"
                stored += f" with{'' if role in own.names else 'out'} {role}"
        elif self.names != own.names:
            found, stored = f"has {sorted(self.names)}", f"{sorted(own.names)}"
        elif self.order == own.order:
            found, stored = f"holds master weights as {self.master}", own.master
        return Difference(found, stored)


def check_difference(where: str, difference: Difference | None, convert: bool) -> None:
    """Raise ValueError for a difference that is not to be converted."""
    if difference is not None and not convert:
        found, stored = difference
        raise ValueError(
            f"{where} {found}, this optimizer stores {stored}; pass convert=True to convert"
        )


def warn_of_conversion(
    what: str, differences: Iterable[Difference | None], *, through: Iterable[str] = ()
) -> None:
    """Issue one warning of all conversions of a load; none where nothing is converted.

    Args:
        what: was loaded.
        differences: of each tensor.
        through: as in ``warn_user``.
    """
    counts = Counter(difference for difference in differences if difference is not None)
    if counts:
        listed = "; ".join(
            f"the state of {count} tensor{'' if count == 1 else 's'} {found}, "
            f"this optimizer stores {stored}"
            for (found, stored), count in counts.items()
        )
        warn_user(f"{what} was converted: {listed}; convert=False refuses that", through=through)


def step_counts(saved: Mapping[str, Any], names: list[str]) -> tuple[int, list[int]]:
    """The numbers of steps, ``t`` and those of each tensor, of a state dict that has entries of
    these tensors; TypeError or ValueError, naming the entry, where one is no such number."""
    t, state = _checked_count("state_dict['t']", saved["t"]), saved["state"]
    where = "state_dict['state'][{!r}]['step']"
    return t, [_checked_count(where.format(name), state[name]["step"]) for name in names]


def check_numbers(
    saved: Mapping[str, Any], num_groups: int, names: list[str]
) -> tuple[int, list[int]]:
    """Check a state dict but for its arrays and the values of its hyper-parameters.

    Returns:
        The numbers of ``step_counts``.

    Raises:
        TypeError, ValueError: naming the entry.
    """
    options = {name for name, option in OPTIONS.items() if option.saved}
    _check_keys("state_dict", saved, {"t", "param_groups", "state", *options})
    _check_keys("state_dict['state']", saved["state"], set(names))
    for name in sorted(options):
        OPTIONS[name].check(f"state_dict[{name!r}]", saved[name])
    _check_groups(saved["param_groups"], num_groups)
    for name in names:
        where, entry = f"state_dict['state'][{name!r}]", saved["state"][name]
        _check_mapping(where, entry)
        _check_keys(where, entry, {"step", *entry})
    return step_counts(saved, names)


def require_saved_roles(where: str, saved: Mapping[str, Any], roles: Container[str]) -> None:
    """Raise ValueError where state lacks an array that an option of the same state dict needs: it
    is incomplete, and nothing to convert.

    Args:
        where: what the state is called in messages.
        saved: a state dict, or its numbers.
        roles: of the arrays of a tensor.
    """
    for option, role in ROLES.items():
        value = saved.get(option)
        if role not in roles and role in roles_of({option: value}):
            raise ValueError(
                f"{where} must have the array {role!r} of {option}={value}; got state without it"
            )


def read_entry(
    where: str,
    entry: Mapping[str, Any],
    options: StateOptions,
    param: Array,
    convert: bool,
    bound: BoundTensors,
) -> SavedState:
    """The state in an entry of a state dict, in plain arrays that loading does not write to.

    Args:
        where: the name of the entry, for messages.
        entry: the arrays of one tensor, its ``step`` and ``order``.
        options, param, convert: as in ``match_state``.
        bound: the arrays that loading writes to.

    Raises:
        TypeError, ValueError: as ``match_state`` does.
    """
    arrays = {role: x for role, x in entry.items() if role not in ("step", "order")}
    for role, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{where}[{role!r}] must be an array; got {type(array).__name__}")
        # NumPy imports np.ma when it is first asked for.
        if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{where}[{role!r}] must have no mask; got MaskedArray")
    # A matrix, for one, cannot be made flat.
    arrays = {role: np.ndarray.view(array, np.ndarray) for role, array in arrays.items()}
    found = {role: (array.dtype, array.shape) for role, array in arrays.items()}
    match = match_state(where, found, entry.get("order"), options, param, convert)
    if match.order is not None:  # flat arrays, which are decoded where they are
        arrays = {role: np.ascontiguousarray(array) for role, array in arrays.items()}
    for role, array in arrays.items():
        if bound.shares_memory(array):  # it may be written to before it is read
            arrays[role] = array.copy()
    return SavedState(TensorState(match.format, arrays), match.order, match.difference)


def match_state(
    where: str, saved: ArrayTypes, order: Any, options: StateOptions, param: Array, convert: bool
) -> StateMatch:
    """Compare the saved state of a tensor with what the optimizer stores.

    Args:
        where: what the state is called in messages.
        saved: by role, the dtype and shape of each array that was saved.
        order: the memory order of saved arrays that are flat; else None.
        options: those that decide how the optimizer stores state.
        param: the parameter whose state it is.
        convert: whether format, memory order, and arrays that start as the parameters may differ.

    Raises:
        TypeError, ValueError: it is no state of such a parameter, or cannot be loaded.
    """
    _check_order(where, order)
    dtype = param.dtype.name
    own_format = format_of(dtype, options.state_dtype)
    expected = stored_as(state_layout(dtype, param.shape, options))
    for role, row in BUFFERS.items():
        if not row.from_params and (role in saved) != (role in expected):
            raise ValueError(
                f"{where} was saved with {row.option}={role in saved}; this optimizer has "
                f"{row.option}={role in expected} (array {role!r})"
            )
    try:
        format_ = detect_format(saved, param.shape, dtype)
    except ValueError as error:
        _raise_difference(where, saved, expected)
        raise ValueError(f"{where}: {error}") from None
    if (order is None) != has_param_layout(dtype, format_):
        raise ValueError(
            f"the order of {where} must be 'C' or 'F' if it is flat; got {shown(order)}"
        )
    own_order = None if has_param_layout(dtype, own_format) else order_of(param)
    difference = None
    if saved != expected or order != own_order:
        difference = _described(format_, saved, order).difference_from(
            _described(own_format, expected, own_order)
        )
    check_difference(where, difference, convert)
    return StateMatch(format_, own_format, order, difference, tuple(saved))


def _check_order(where: str, order: Any) -> None:
    is_order = isinstance(order, str) and order in ("C", "F")  # an array may equal one
    if order is not None and not is_order:
        raise ValueError(f"the order of {where} must be 'C' or 'F'; got {shown(order)}")


def _described(format_: str, arrays: ArrayTypes, order: MemoryOrder | None) -> Stored:
    master = str(arrays["master"][0]) if "master" in arrays else ""
    return Stored(format_, frozenset(arrays), order, master)


def _raise_difference(where: str, saved: ArrayTypes, expected: ArrayTypes) -> None:
    if set(saved) != set(expected):
        found = abbreviated(sorted(map(str, saved)))
        raise ValueError(f"{where} must have the arrays {sorted(expected)}; got {found}")
    for role, (dtype, shape) in expected.items():
        if saved[role] != (dtype, shape):
            raise (ValueError if saved[role][0] == dtype else TypeError)(
                f"{where}: {role!r} must have shape {shape} and dtype {dtype}; got "
                f"{saved[role][1]} and {saved[role][0]}"
            )


def _check_groups(groups: Any, count: int) -> None:
    where = "state_dict['param_groups']"
    if not isinstance(groups, list):
        raise TypeError(f"{where} must be a list; got {shown(groups)}")
    if len(groups) != count:
        raise ValueError(f"{where} must have length {count}; got {len(groups)}")
    for g, group in enumerate(groups):
        _check_keys(f"{where}[{g}]", group, set(HYPERPARAMETERS))
        if not isinstance(group["betas"], (tuple, list)):  # an iterator would be used up
            kind = type(group["betas"]).__name__
            raise TypeError(f"{where}[{g}]['betas'] must be a pair of numbers; got {kind}")


def _check_mapping(where: str, mapping: Any) -> None:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{where} must be a mapping; got {type(mapping).__name__}")


def _check_keys(where: str, mapping: Any, keys: set[str]) -> None:
    _check_mapping(where, mapping)
    if set(mapping) != keys:
        missing = sorted(keys - set(mapping))
        unexpected = sorted(map(str, set(mapping) - keys))
        differences = {"missing": missing, "unexpected": unexpected}
        is_of_torch = set(mapping) == {"state", "param_groups"}
        hint = ": state dicts of PyTorch are for fused_adamw.torch.AdamW" if is_of_torch else ""
        listed = (f"{how} {abbreviated(names)}" for how, names in differences.items() if names)
        raise ValueError(f"{where} must have the keys of this optimizer; {', '.join(listed)}{hint}")


def _checked_count(where: str, count: Any) -> int:
    number = printable_integer(where, count)
    if not 0 <= number < MAX_STEPS:
        raise ValueError(
            f"{where} must be a number of steps, 0 or more and below {MAX_STEPS}; got {number}"
        )
    return number
