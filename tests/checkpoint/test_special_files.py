"""What is no regular file, or claims to be longer than it is, is refused before it is read."""

import os
import socket
import tracemalloc
from errno import EINVAL, EISDIR

import pytest
from checkpoints import next_descriptor, nothing_changes

from fused_adamw.checkpoint import (
    CorruptCheckpointError,
    load_checkpoint,
    read_arrays,
    read_extra,
    read_step,
)


def make_special(kind):
    """A file of this kind, in the current folder: the path of a socket has to be short."""
    if kind == "pipe":
        os.mkfifo(kind)
    elif kind == "link to a pipe":
        os.mkfifo("pipe")
        os.symlink("pipe", kind)
    elif kind == "folder":
        os.mkdir(kind)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(kind)
    elif not os.path.exists(kind):
        pytest.skip(f"needs {kind}")


SPECIAL = ["pipe", "link to a pipe", "folder", "socket", "/dev/zero", "/dev/null", "/dev/tty"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs files of these kinds")
@pytest.mark.parametrize("special", SPECIAL)
def test_only_regular_files_are_read(tmp_path, monkeypatch, special, small):
    """And the others refused at once: nothing waits for a writer, or reads what never ends."""
    monkeypatch.chdir(tmp_path)
    make_special(special)
    optimizer, _ = small
    with nothing_changes(optimizer, OSError, "not a regular file"):
        load_checkpoint(special, optimizer)
    for read in (read_extra, read_step, read_arrays):
        with pytest.raises(OSError, match="not a regular file") as raised:
            read(special)
        assert raised.value.errno == (EISDIR if special == "folder" else EINVAL)
        assert raised.value.filename == special


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_file_that_becomes_a_pipe(path, small, monkeypatch):
    """Between the first look and the opening. It is closed again."""
    free = next_descriptor()
    regular = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: regular)
        with nothing_changes(small[0], OSError, "not a regular file"):
            load_checkpoint(path, small[0])
    assert next_descriptor() == free


def test_a_header_that_is_too_long(path, small):
    with open(path, "wb") as file:
        size = (32 << 20) + 8
        file.write(size.to_bytes(8, "little"))
        file.truncate(8 + size)
    tracemalloc.start()
    try:
        with nothing_changes(small[0], CorruptCheckpointError, "header length"):
            load_checkpoint(path, small[0])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("excess", [1, 1 << 20, 1 << 62])
def test_a_header_that_does_not_end_in_the_file(path, small, excess):
    header_bytes = os.stat(path).st_size - 8 + excess
    with open(path, "r+b") as file:
        file.write(header_bytes.to_bytes(8, "little"))
    with nothing_changes(small[0], CorruptCheckpointError, "exceeds the file size"):
        load_checkpoint(path, small[0])
