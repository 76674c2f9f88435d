"""Checkpoints: parameters and optimizer in one safetensors file, written all or not at all.

The tensors are ``params/NAME``, ``m/NAME``, ``v/NAME`` and whatever else the optimizer keeps of a
tensor (``v_max``; ``m_scale``, ``v_scale`` and ``master``: state.py has their format), so that any
reader of safetensors finds the parameters. The metadata of the file, strings all of them:

    format, version   what the file is, and of which version; these two are in every version
    optimizer         JSON: t, the steps of each tensor, hyper-parameters and options
    extra             JSON: what the caller added
    checksum          BLAKE2b of all tensors and of the rest of the metadata
"""

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOTSUP
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np

try:
    from safetensors import SafetensorError, deserialize
    from safetensors.numpy import save
except ModuleNotFoundError:
    raise ImportError(
        'checkpoints need safetensors: pip install "fused-adamw[checkpoint]"'
    ) from None

from ._core import Structure
from ._io.sigint import interrupt_deferred
from ._optim.state_formats import from_bfloat16
from .optimizer import AdamW

FORMAT = "fused-adamw checkpoint"
VERSION = 1
DTYPES = {  # what a file may hold
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # as bits_of
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "I8": np.int8,
}
HEADER_LIMIT = 100_000_000  # bytes: what safetensors reads, although some releases write more

Arrays: TypeAlias = dict[str, Any]
FilePath: TypeAlias = str | os.PathLike[str]


class Optimizer(Protocol):
    """What is asked of an optimizer beside its state."""

    param_groups: list[dict[str, Any]]

    @property
    def names(self) -> list[str]: ...


class CheckpointError(ValueError):
    """A file was refused; parameters and optimizer are as they were."""


class CorruptCheckpointError(CheckpointError):
    """The file is damaged, or is no checkpoint."""


class MismatchedCheckpointError(CheckpointError):
    """The file is of another model, or of an optimizer of another kind."""


class NewerCheckpointError(CheckpointError):
    """The file is of a version that this one does not know."""


def save_checkpoint(
    path: FilePath, optimizer: AdamW, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write the parameters and the state of ``optimizer`` to a file.

    A process that is killed at any moment leaves the file that was there or the new one, whole: the
    new one is written beside it, flushed to disk, and renamed. So does an error, such as a full
    disk. What a killed process leaves, ``.FILE.*.tmp``, is removed by the next save to ``path``;
    only one process may save to a path at a time.

    Args:
        path: the file. What a symbolic link points to is replaced, not the link. A file that
            exists keeps its permissions.
        optimizer: its parameters and its state are saved. Of a schedule, for information only, the
            repr. ``decay_mask`` and ``num_threads`` are not saved.
        extra: anything else that belongs to this step, such as the position in the data and the
            state of a random number generator: a mapping that ``json`` can write. It comes back
            with strings for keys and lists for tuples.

    Raises TypeError or ValueError for an ``extra`` or names that cannot be written, OSError for
    what goes wrong with the file.

    Takes the memory of nearly three such files while it runs.
    """
    state = optimizer.state_dict()
    metadata = metadata_of(state, extra)
    params = params_of(optimizer)
    tensors = {f"params/{name}": array for name, array in params.items()}
    tensors |= {
        f"{role}/{name}": array
        for name, entry in state["state"].items()
        for role, array in entry.items()
        if isinstance(array, np.ndarray)
    }
    # safetensors would write the memory of an array in Fortran order as if it were in C order.
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    metadata["checksum"] = _checksum(tensors, metadata)
    data = _serialized(tensors, metadata)
    with replacing(Path(os.path.realpath(path))) as file:
        file.write(data)


def load_checkpoint(path: FilePath, optimizer: AdamW, *, convert: bool = False) -> dict[str, Any]:
    """Return the parameters and the state of ``optimizer`` to what a file holds.

    Parameters, moments, step counts, hyper-parameters and options (``maximize``,
    ``max_grad_norm``, ``skip_nonfinite``, the seed) are those of the file. A schedule is the
    optimizer's own: the file has to have been saved with one too. The arrays are written in place.

    Args:
        path: a file that ``save_checkpoint`` wrote.
        optimizer: over parameters of the same names, shapes and dtypes; in any memory order, but
            for those of 16 bits, or with a ``state_dtype``, in the same.
        convert: as of ``AdamW.load_state_dict``: from one ``state_dtype`` or memory order to
            another. Master weights that the file has not are made from its parameters.

    Returns the ``extra`` that was saved, {} without one.

    Raises with nothing changed: CorruptCheckpointError, MismatchedCheckpointError or
    NewerCheckpointError, each a CheckpointError and so a ValueError; OSError where the file cannot
    be read.

    Takes the memory of about two such files while it runs.
    """
    tensors, metadata = _read(path)
    params = params_of(optimizer)
    try:
        extra: dict[str, Any] = json.loads(metadata["extra"])
        require_model(tensors, params, None if convert else optimizer.state_layout())
        state = restored(json.loads(metadata["optimizer"]), tensors, optimizer)
        if convert:
            _add_masters(state["state"], tensors, optimizer)
        with interrupt_deferred():
            optimizer.load_state_dict(state, convert)  # which checks all of it first
            for name, array in params.items():
                bits_of(array)[...] = tensors[f"params/{name}"]
    except (KeyError, TypeError, ValueError) as error:
        raise MismatchedCheckpointError(f"{os.fspath(path)} does not fit: {error}") from error
    return extra


def read_extra(path: FilePath) -> dict[str, Any]:
    """The ``extra`` of a file, which ``load_checkpoint`` would return; nothing is loaded.

    Raises as ``load_checkpoint`` does, but for a file of another model.
    """
    _, metadata = _read(path)
    extra: dict[str, Any] = json.loads(metadata["extra"])
    return extra


# ---- what is saved of an optimizer


def params_of(optimizer: Optimizer) -> Arrays:
    """The parameters, by name."""
    groups = [group["params"] for group in optimizer.param_groups]
    arrays = Structure(groups, True).flatten("params", groups)
    return {name: np.asarray(array) for name, array in zip(optimizer.names, arrays, strict=True)}


def described(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict in terms of JSON, without its arrays."""
    groups = [
        group | ({"lr": {"schedule": repr(group["lr"])}} if callable(group["lr"]) else {})
        for group in state["param_groups"]
    ]
    steps = {name: entry["step"] for name, entry in state["state"].items()}
    orders = {name: e["order"] for name, e in state["state"].items() if "order" in e}
    options = {name: value for name, value in state.items() if name != "state"}
    return options | {"param_groups": groups, "steps": steps, "orders": orders}


def restored(saved: dict[str, Any], tensors: Arrays, optimizer: Optimizer) -> dict[str, Any]:
    """The state dict that ``described`` was given."""
    groups, own = saved.pop("param_groups"), optimizer.param_groups
    if len(groups) != len(own):
        raise ValueError(f"it has {len(groups)} parameter groups; expected {len(own)}")
    for g, group in enumerate(groups):
        group["betas"] = tuple(group["betas"])
        scheduled = isinstance(group["lr"], dict)
        if scheduled != callable(own[g]["lr"]):
            lr = group["lr"]["schedule"] if scheduled else group["lr"]
            raise ValueError(f"lr of group {g} is {lr} there, and {own[g]['lr']!r} here")
        if scheduled:
            group["lr"] = own[g]["lr"]
    state = {name: {"step": step} for name, step in saved.pop("steps").items()}
    for name, order in saved.pop("orders", {}).items():  # of what state.py packs
        state[name]["order"] = order
    for path, array in tensors.items():
        role, name = path.split("/", 1)
        if role != "params":
            state[name][role] = array
    return {**saved, "param_groups": groups, "state": state}


def _add_masters(state: dict[str, Any], tensors: Arrays, optimizer: AdamW) -> None:
    """Where the optimizer has master weights and the file has not."""
    for name, roles in optimizer.state_layout().items():
        entry = state[name]
        if "master" in roles and "master" not in entry:
            flat = tensors[f"params/{name}"].ravel(order=entry["order"])
            # bfloat16 comes as bits_of
            entry["master"] = (
                from_bfloat16(flat) if flat.dtype == np.uint16 else flat.astype(np.float32)
            )


def metadata_of(state: dict[str, Any], extra: Mapping[str, Any] | None) -> dict[str, str]:
    """All but the checksum."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "optimizer": json.dumps(described(state), default=plain),
        "extra": extra_text({} if extra is None else extra),
    }


def plain(value: Any) -> Any:
    """A number that is not of Python's own types."""
    return value.item() if isinstance(value, np.generic) else float(value)


def extra_text(extra: Mapping[str, Any]) -> str:
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra is of type {type(extra).__name__}; expected a mapping")
    try:
        return json.dumps(dict(extra))
    except (TypeError, ValueError) as error:
        raise type(error)(f"extra cannot be written as JSON: {error}") from error


def require_model(
    tensors: Arrays, params: Arrays, layout: Mapping[str, tuple[str, ...]] | None
) -> None:
    """``layout``: what the optimizer keeps of each tensor; None where that may differ."""
    expected = {f"params/{name}" for name in params}
    found = set(tensors)
    if layout is None:
        found = {name for name in tensors if name.startswith("params/")}
    else:
        amsgrad = any(name.startswith("v_max/") for name in tensors)
        if amsgrad != any("v_max" in roles for roles in layout.values()):
            raise ValueError(f"it is of an optimizer with amsgrad={amsgrad}")
        expected |= {f"{role}/{name}" for name, roles in layout.items() for role in roles}
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise ValueError(
            f"missing {_some(missing)}, unexpected {_some(unexpected)}: it is of another model or "
            "state_dtype"
        )
    for name, array in params.items():
        found, array = tensors[f"params/{name}"], bits_of(array)
        if (found.shape, found.dtype) != (array.shape, array.dtype):
            raise ValueError(
                f"params/{name} has shape {found.shape} and dtype {found.dtype}; expected "
                f"{array.shape} and {array.dtype}"
            )
        if not array.flags.writeable:
            raise ValueError(f"the array for params/{name} is read-only")


def _some(names: list[str]) -> str:
    return f"{names[:4]} and {len(names) - 4} more" if len(names) > 5 else str(names)


def bits_of(array: Any) -> Any:
    """The array itself; the same memory as uint16 where it is of bfloat16."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


# ---- the file


def _read(path: FilePath) -> tuple[Arrays, dict[str, str]]:
    # Read, not mapped: the pages of a mapping change or vanish with the file.
    data = Path(path).read_bytes()
    with damage_reported(path):
        metadata = known_metadata(path, data)
        tensors = _loaded(data)
        if metadata.pop("checksum") != _checksum(tensors, metadata):
            raise ValueError("its checksum is another")
    return tensors, metadata


@contextmanager
def damage_reported(path: FilePath) -> Iterator[None]:
    """What is raised where a file cannot be understood."""
    try:
        yield
    except NewerCheckpointError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CorruptCheckpointError(
            f"{os.fspath(path)} is damaged, or no checkpoint of fused-adamw ({reason})"
        ) from error


def _loaded(data: bytes) -> Arrays:
    """The arrays of a file; bfloat16, which NumPy has not, as ``bits_of``."""
    return {
        name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in deserialize(data)  # type: ignore[no-untyped-call]
    }


def known_metadata(path: FilePath, data: bytes) -> dict[str, str]:
    """The metadata of a file of safetensors: its header is JSON, behind eight bytes of its size."""
    size = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError(f"its format is {metadata['format']!r}")
    # Before all else: only the metadata of a newer file can be relied on.
    if int(metadata["version"]) > VERSION:
        raise NewerCheckpointError(
            f"{os.fspath(path)} is of version {metadata['version']} of the format; this release "
            f"of fused-adamw reads up to {VERSION}"
        )
    return metadata


def _checksum(tensors: Arrays, metadata: Mapping[str, str]) -> str:
    tensors = {name: bits_of(array) for name, array in tensors.items()}
    checksum = begun_checksum(tensors, metadata)
    for name in sorted(tensors):
        checksum.update(tensors[name].reshape(-1).view(np.uint8))
    return str(checksum.hexdigest())


def begun_checksum(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Any:
    """Of all that a file means, whatever order it is in: what the elements of the tensors, which
    are of these dtypes and shapes, are to be added to; in C order, and sorted by name."""
    layout = [(name, tensors[name].dtype.name, tensors[name].shape) for name in sorted(tensors)]
    return blake2b(json.dumps([sorted(metadata.items()), layout]).encode(), digest_size=32)


def _serialized(tensors: Arrays, metadata: dict[str, str]) -> bytes:
    try:
        data = save(tensors, metadata)
        if int.from_bytes(data[:8], "little") > HEADER_LIMIT:
            raise SafetensorError("header too large")
    except SafetensorError as error:
        raise ValueError(f"names or extra do not fit into a safetensors file: {error}") from error
    return data


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file to be written to, which takes the place of ``target`` at one stroke behind the
    block."""
    permissions = _permissions(target)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if permissions is not None:
                os.chmod(temporary, permissions)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)


def _permissions(target: Path) -> int | None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        # To rename onto a device or a pipe would remove it.
        raise OSError(EINVAL, "not a regular file", str(target))
    return stat.S_IMODE(mode)


def _remove_leftovers(target: Path) -> None:
    leftover = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.tmp")
    with suppress(OSError):  # a folder that may not be listed can be written to all the same
        for file in target.parent.iterdir():
            if leftover.fullmatch(file.name):
                file.unlink()


def _flush_folder(folder: Path) -> None:
    """Make a renaming last: without it, a power cut may bring the old file back."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):  # by which file systems say that they do without
            raise
    finally:
        os.close(descriptor)
