"""Files that were valid and then changed at random: refused, or loaded as what they say.

Half of them are sealed, with the checksums of what they have become, so that the checks after those
of the checksums are tried too. MUTATED_FILES is the number of files, MUTATED_SECONDS the time after
which no further one is tried.
"""

import copy
import json
import os
import random
import re
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from checkpoints import contents, digest, draw, gradients, header_and_data, header_text, trained

from fused_adamw.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_arrays,
    read_extra,
    read_step,
    save_checkpoint,
)
from fused_adamw.schedules import CosineDecay

FILES = int(os.environ.get("MUTATED_FILES", "2000"))
SECONDS = float(os.environ.get("MUTATED_SECONDS", "120"))
MEMORY = 512 << 20  # what loading files of some KiB may take, at most

KINDS = {
    "plain": ([(2, 3), 4], np.float32, {"ema_decay": 0.9}),
    "amsgrad": ([(1, 3), ()], np.float64, {"amsgrad": True, "max_grad_norm": 1.0}),
    "bfloat16": ([(3, 2), (0, 2)], np.float32, {"state_dtype": "bfloat16"}),
    "8bit": ([(300,)], np.float32, {"state_dtype": "8bit", "lr": CosineDecay(0.1, 9)}),
}


def make(kind, steps=2):
    shapes, dtype, options = KINDS[kind]
    params = {f"p{i}": draw(shape, dtype, i + 10 * steps) for i, shape in enumerate(shapes)}
    return trained({k: np.asfortranarray(p) for k, p in params.items()}, steps, **options)


# ---- changes

NUMBERS = [b"0", b"1", b"-1", b"2.5", b"1e400", b"NaN", b"true", b"9" * 30, b"4294967296", b'"7"']
BYTES = [b"\0", b"\xff", b"\x80", b'"', b"{", b"[", b"]", b",", b"\\u", b"\t"]


def change_bits(data, rng):
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def change_bytes(data, rng):
    at, size = rng.randrange(len(data)), rng.choice([0, 1, 2, 8, 64])
    data[at : at + size] = rng.choice([rng.randbytes(size), b"", rng.choice(BYTES) * size, b" "])


def move_bytes(data, rng):
    begin, at = (rng.randrange(len(data)) for _ in range(2))
    part = data[begin : begin + rng.choice([1, 4, 16, 100])]
    data[at : at + rng.choice([0, len(part)])] = part


def change_number(data, rng):
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", data[8:]))
    one = rng.choice(found) if found else None
    if one:
        data[8 + one.start() : 8 + one.end()] = rng.choice(NUMBERS)


def swap_words(data, rng):
    found = list(re.finditer(rb"\w+", data[8:]))
    if len(found) > 1:
        one, other = (rng.choice(found) for _ in range(2))
        data[8 + one.start() : 8 + one.end()] = other[0]


def cut(data, rng):
    del data[rng.randrange(len(data)) :]


CHANGES = [change_bits, change_bytes, move_bytes, change_number, swap_words, change_number]


def mutated(content, rng):
    """The content of a file after a few changes, of the header, of the data, or of all of it."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = bytearray(content[:start]), bytearray(content[start:])
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        part = header if rng.random() < 0.75 or not data else data
        rng.choice(CHANGES)(part, rng)
        if not header:
            break
    if rng.random() < 0.05:
        cut(rng.choice([p for p in (header, data) if p] or [bytearray(1)]), rng)
    if rng.random() < 0.7 and len(header) >= 8:  # else most lengths would be wrong
        header[:8] = (len(header) - 8).to_bytes(8, "little")
    return bytes(header), bytes(data)


def seal(header, data):
    """The same with checksums that are right, as far as there is anything to compute them of."""
    try:
        parsed = json.loads(header[8:])
        metadata = parsed["__metadata__"]
        sums = {
            name: digest(data[slice(*entry["data_offsets"])])
            for name, entry in parsed.items()
            if name != "__metadata__"
        }
        metadata["tensor_checksums"] = json.dumps(sums)
        text = header_text(parsed)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return header, data
    return len(text).to_bytes(8, "little") + text, data


# ---- what may come of it


@contextmanager
def little_memory():
    """An allocation of a size that a file only claims fails."""
    resource = pytest.importorskip("resource")
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        pytest.skip("needs /proc")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(path, optimizer):
    """Load and read a file; whether it was loaded. Any error but CheckpointError is a failure."""
    before, loaded = contents(optimizer), False
    with suppress(CheckpointError):
        load_checkpoint(path, optimizer, convert=False)
        loaded = True
    assert loaded or contents(optimizer) == before
    for read in (read_extra, read_step, read_arrays):
        with suppress(CheckpointError):
            read(path)
    return loaded


def assert_loaded_as_it_is(path, optimizer):
    """What was loaded is what is in the file, and is itself saved and loaded."""
    header, data = header_and_data(path)
    state = optimizer.state_dict()["state"]
    for name, param in optimizer.param_groups[0]["params"].items():
        found = {"params": param, **state[name]}
        for role in found.keys() - {"step", "order"}:
            there = data[slice(*header[f"{role}/{name}"]["data_offsets"])]
            assert there == found[role].tobytes("C"), (role, name)
    save_checkpoint(path, optimizer)
    again = copy.deepcopy(optimizer)
    again.step(gradients(again.param_groups[0]["params"], 5))
    load_checkpoint(path, again, convert=False)
    assert contents(again) == contents(optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [False, True], ids=["damaged", "sealed"])
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files(path, kind, sealed):
    source = make(kind)
    save_checkpoint(path, source, extra={"a": [1, "b"]}, arrays={"losses": np.arange(3.0)})
    content, rng = path.read_bytes(), random.Random(f"{kind} {sealed} {FILES}")
    loaded, share = 0, FILES // (2 * len(KINDS))
    end = time.monotonic() + SECONDS / (2 * len(KINDS))
    target = make(kind, 1)
    with little_memory():
        for tried in range(share):
            if time.monotonic() > end:
                break
            header, data = mutated(content, rng)
            header, data = seal(header, data) if sealed else (header, data)
            path.write_bytes(header + data)
            if outcome(path, target):
                loaded += 1
                if sealed:
                    assert_loaded_as_it_is(path, target)
                else:
                    assert contents(target) == contents(source), tried
                target = make(kind, 1)
    print(f"{tried + 1} files, {loaded} of them loaded")  # pytest -rP shows it
    if sealed:  # most of what is sealed differs in a number, which may be any
        assert loaded
