"""What the tests of checkpoints share: models, their contents, files that we did not write."""

import json
import os
from contextlib import contextmanager, suppress
from hashlib import blake2b

import numpy as np
import pytest
import safetensors.numpy

from fused_adamw import AdamW
from fused_adamw.checkpoint import CheckpointError, load_checkpoint

FORMAT = "fused-adamw checkpoint"
TAGS = {
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "uint32": "U32",
    "float16": "F16",
}


def draw(shape, dtype=np.float32, seed=0):
    return np.array(np.random.default_rng(seed).standard_normal(shape), dtype)


def mapping(dtype=np.float32):
    return {"W_Q": draw((3, 4), dtype, 1), "b": draw(5, dtype, 2), "scale": draw((), dtype, 3)}


def groups():
    return [
        {"params": {"w": draw((4, 3), seed=1), "b": draw(4, np.float64, 2)}, "lr": 0.01},
        {"params": [draw(6, seed=3)], "weight_decay": 0.0, "betas": (0.8, 0.95)},
    ]


def arrays_in(structure):
    """The arrays of params, or of groups, in order."""
    if isinstance(structure, dict):
        return [a for key, part in structure.items() if key != "lr" for a in arrays_in(part)]
    if isinstance(structure, list):
        return [array for part in structure for array in arrays_in(part)]
    return [structure] if isinstance(structure, np.ndarray) else []


def gradients(params, seed, missing=False):
    """Random ones in the structure of ``params``; some are None with ``missing``."""
    rng = np.random.default_rng(seed)

    def like(part):
        if isinstance(part, dict) and "params" in part:
            return like(part["params"])
        if isinstance(part, dict):
            return {key: like(value) for key, value in part.items()}
        if isinstance(part, list):
            return [like(x) for x in part]
        gradient = np.array(rng.standard_normal(part.shape), part.dtype)
        return None if missing and rng.random() < 0.4 else gradient

    return like(params)


def trained(params, steps=3, **options):
    optimizer = AdamW(params, **options)
    for seed in range(steps):
        optimizer.step(gradients(params, seed))
    return optimizer


def contents(optimizer):
    """All that a checkpoint restores, byte by byte."""
    state = optimizer.state_dict()
    entries = {
        name: {
            key: (x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x
            for key, x in entry.items()
        }
        for name, entry in state.pop("state").items()
    }
    params = arrays_in([group["params"] for group in optimizer.param_groups])
    return [array.tobytes() for array in params], entries, state


def next_descriptor():
    """The lowest number of a file that is not in use."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@contextmanager
def nothing_changes(optimizer, error=CheckpointError, match=None):
    before = contents(optimizer)
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert contents(optimizer) == before


# ---- files


def metadata_of(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def digest(data):
    return blake2b(data, digest_size=32).hexdigest()


def sealed(tensors, metadata):
    """The metadata with the checksums of docs/checkpoint-format.md."""
    checksums = {name: digest(array.tobytes()) for name, array in tensors.items()}
    found = metadata | {"tensor_checksums": json.dumps(checksums)}
    found.pop("checksum", None)
    layout = [[name, TAGS[x.dtype.name], x.shape] for name, x in sorted(tensors.items())]
    return found | {"checksum": digest(json.dumps([sorted(found.items()), layout]).encode())}


DELETED = object()


def rewrite(path, other_tensors=(), **changes):
    """Make a file of other tensors (or without those that are DELETED) and metadata, with the
    checksums that belong to it."""
    tensors = safetensors.numpy.load(path.read_bytes()) | dict(other_tensors)
    tensors = {key: x for key, x in tensors.items() if x is not DELETED}
    metadata = sealed(tensors, metadata_of(path) | changes)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


def refuses(path, optimizer):
    with suppress(CheckpointError):
        load_checkpoint(path, optimizer)
        return False
    return True


# ---- files with any contents, and the right checksums

VALUES = [
    *(DELETED, None, True, False, -1, 0, 7, 2.5, -0.5, 10**30, float("inf"), float("nan")),
    *("", "x", "7", "\x1b[31m\r", "\ud800", [], [1], [[]], {}, {"x": 1}, {"schedule": 5}),
]


def header_and_data(path):
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def header_text(header):
    """The bytes of a header, whose checksum is made right where one can be computed."""
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict):
        metadata.pop("checksum", None)
        with suppress(KeyError, TypeError, AttributeError):
            layout = [[k, x["dtype"], x["shape"]] for k, x in sorted(header.items()) if k[0] != "_"]
            covered = json.dumps([sorted(metadata.items()), layout])
            metadata["checksum"] = digest(covered.encode())
    return json.dumps(header).encode()


def write_file(path, header, data):
    text = header_text(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def places(value, path=()):
    """The paths of all values in nested dicts and lists."""
    yield path
    if not isinstance(value, (dict, list)):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(item, (*path, key))


def changed(value, path, other):
    """A copy of nested dicts and lists with another value at this path."""
    if not path:
        return other
    copied = dict(value) if isinstance(value, dict) else list(value)
    key, *rest = path
    if other is DELETED and not rest:
        del copied[key]
    else:
        copied[key] = changed(copied[key], rest, other)
    return copied


def changes(value):
    """(path, other value, the whole with it), for all places and all of VALUES."""
    for path in places(value):
        for other in VALUES:
            if path or other is not DELETED:
                yield path, other, changed(value, path, other)


class Failing:
    """Stands for a function of ``os``; its call number ``at`` raises instead."""

    def __init__(self, function, at, error):
        self.function, self.at, self.error, self.calls = function, at, error, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.function(*args, **options)


def stored_arrays(path):
    """The bytes of the arrays of a file, by name."""
    load_file = safetensors.numpy.load_file
    return {name: array.tobytes() for name, array in load_file(path).items()}
