"""Saving and loading stream: little memory beyond the state, and no byte read without need."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import trained
from processes import bytes_read
from systems import needs_linux

from fused_adamw.checkpoint import (
    CorruptCheckpointError,
    read_arrays,
    read_extra,
    read_step,
    save_checkpoint,
)

PROGRAM = Path(__file__).with_name("memory_program.py")
MIB = 8

pytestmark = needs_linux


def run(*arguments):
    command = [sys.executable, *map(str, [PROGRAM, *arguments])]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mib"),  # the size of the file
    [
        ("float32", 192),
        ("amsgrad", 64),
        ("Fortran", 48),
        ("8bit", 96),
        ("converted", 24),
        ("converted from float32", 12),
        ("converted and permuted", 24),
        ("permuted into blocks", 24),
    ],
)
def test_memory_beyond_the_state(path, case, mib):
    assert run(path, case, "save", MIB) <= MIB
    assert mib <= path.stat().st_size / 2**20 < mib + 1
    assert run(path, case, "load", MIB) <= MIB


@pytest.mark.slow
@pytest.mark.parametrize("case", ["float32", "Fortran", "converted", "permuted into blocks"])
def test_little_memory_leaves_everything_as_it_was(path, case):
    """However much there is: a MemoryError, or success."""
    program = Path(__file__).with_name("low_memory_program.py")
    command = [sys.executable, program, path, case]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 72
    for action, outcome, is_whole, has_changed in found:
        assert outcome in ("done", "MemoryError")
        assert is_whole
        assert has_changed == (action == "load" and outcome == "done")
    assert ["load", "MemoryError", True, False] in found
    assert ["load", "done", True, True] in found
    assert ["save", "done", True, False] in found


@pytest.fixture
def large(path):
    arrays = {"losses": np.arange(100.0), "empty": np.zeros((0, 3), np.int32)}
    params = {"a": np.ones(10_000, np.float32), "z": np.ones(10_000, np.float32)}
    save_checkpoint(path, trained(params), extra={"epoch": 7}, arrays=arrays)
    return path


def header_bytes(path):
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize(("read", "expected"), [(read_extra, {"epoch": 7}), (read_step, 3)])
def test_only_the_header_is_read(large, read, expected):
    assert read(large) == expected
    assert bytes_read(lambda: read(large)) == header_bytes(large)


def test_only_header_and_arrays_are_read(large):
    assert bytes_read(lambda: read_arrays(large)) == header_bytes(large) + 800


@pytest.mark.parametrize("read", [read_extra, read_step, read_arrays])
def test_a_damaged_header_is_refused(large, read):
    """Although nothing but the header is read."""
    whole = large.read_bytes()
    for at in range(0, header_bytes(large), 7):
        large.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptCheckpointError):
            read(large)
    large.write_bytes(whole[:-1])
    with pytest.raises(CorruptCheckpointError):
        read(large)


def test_damaged_arrays_are_refused(large):
    whole = large.read_bytes()
    at = whole.index(np.arange(100.0).tobytes())
    large.write_bytes(whole[: at + 9] + b"x" + whole[at + 10 :])
    with pytest.raises(CorruptCheckpointError, match="checksum mismatch in tensor extra/losses"):
        read_arrays(large)
    assert read_extra(large) == {"epoch": 7}


@pytest.mark.parametrize("read", [read_extra, read_step, read_arrays])
def test_a_file_that_is_not_there(path, read):
    with pytest.raises(FileNotFoundError):
        read(path)
