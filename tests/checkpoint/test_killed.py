"""Processes that are killed while they save leave the old file or the new one, complete."""

import errno
import os
import random
import signal
import time
from functools import partial
from itertools import count

import pytest
from killed_saves import mark_in, save_marked, start

from fused_adamw._io import atomic_write

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def stop(child):
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child ended before it was killed"


@pytest.mark.slow
@forks
def test_killed_at_random_moments(path):
    rng = random.Random(0)
    save_marked(path, 1)
    reached = 1
    has_saved, saves = os.pipe()  # a byte for the first save of each child

    def save_for_ever():
        save_marked(path, reached + 1)
        os.write(saves, b"1")
        for n in count(reached + 2):
            save_marked(path, n)

    for _ in range(40):
        child = start(save_for_ever)
        assert os.read(has_saved, 1)  # however slow the machine is
        time.sleep(rng.uniform(0, 0.04))
        stop(child)
        found = mark_in(path)
        assert found > reached
        reached = found
        assert len(os.listdir(path.parent)) <= 2  # the file, and what the last child left
    os.close(has_saved)
    os.close(saves)
    save_marked(path, reached)
    assert os.listdir(path.parent) == [path.name]


@forks
@pytest.mark.parametrize(
    ("name", "call", "before", "found"),
    [
        ("fsync", 1, True, 1),
        ("fsync", 1, False, 1),
        ("replace", 1, True, 1),
        ("replace", 1, False, 2),
        ("fsync", 2, True, 2),
        ("fsync", 2, False, 2),
    ],
)
def test_killed_at_each_stage(path, name, call, before, found):
    save_marked(path, 1)

    def save():
        function, calls = getattr(os, name), []

        def killing(*args):
            calls.append(args)
            if before and len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*args)
            if not before and len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, killing)
        save_marked(path, 2)

    _, status = os.waitpid(start(save), 0)
    assert os.WIFSIGNALED(status)
    assert mark_in(path) == found
    assert len(os.listdir(path.parent)) == (2 if found == 1 else 1)
    save_marked(path, 3)
    assert os.listdir(path.parent) == [path.name]


class CutOff:
    """A file whose writer is killed when it has written so many bytes."""

    def __init__(self, left, *arguments):
        self.left, self.arguments = left, arguments

    def __enter__(self):
        self.file = open(*self.arguments)
        return self

    def __exit__(self, *error):
        self.file.close()

    def fileno(self):
        return self.file.fileno()

    def seek(self, position):
        self.file.seek(position)

    def write(self, data):
        self.file.write(data[: self.left])
        self.left -= len(data)
        if self.left <= 0:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)


@forks
@pytest.mark.parametrize("part", [0, 0.001, 0.5, 0.999, 1, 1.0001])
def test_killed_while_writing(path, part):
    """At last while the header is written for the second time, with the checksums."""
    save_marked(path, 1)
    left = int(path.stat().st_size * part)

    def save():
        atomic_write.open = partial(CutOff, left)
        save_marked(path, 2)

    _, status = os.waitpid(start(save), 0)
    assert os.WIFSIGNALED(status)
    assert mark_in(path) == 1
    assert len(os.listdir(path.parent)) == 2
    save_marked(path, 2)
    assert os.listdir(path.parent) == [path.name]


@forks
@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_full_disk(path, size):
    """The limit on the size of files fails a write halfway, as a full disk does."""
    resource = pytest.importorskip("resource")
    save_marked(path, 1)

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            save_marked(path, 2)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 2)

    _, status = os.waitpid(start(save), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert mark_in(path) == 1
    assert os.listdir(path.parent) == [path.name]


@forks
def test_loaded_while_another_process_saves(path):
    save_marked(path, 1)

    def save_for_ever():
        n = 1
        while True:
            n += 1
            save_marked(path, n)

    child = start(save_for_ever)
    try:
        found, end = [1], time.monotonic() + 10
        while len(set(found)) < 40 and time.monotonic() < end:
            found.append(mark_in(path))
    finally:
        stop(child)
    assert found == sorted(found)
    assert len(set(found)) >= 2
