"""Temporary files of killed processes are removed, those of other processes are not."""

import errno
import os
from pathlib import Path

import pytest
from checkpoints import Failing, mapping, next_descriptor, trained
from processes import start_children

from fused_adamw._io.atomic_write import atomic_write
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint


def test_leftovers_of_killed_processes_are_removed(path):
    """And no file stays open."""
    free = next_descriptor()
    own = [f".{path.name}.{'0123456789abcdef'}.tmp", f".{path.name}.{'f' * 16}.tmp"]
    others = [
        f".{path.name}.0123.tmp",
        f".{path.name}.{'g' * 16}.tmp",
        f".{path.name}x.{'f' * 16}.tmp",
        f".x{path.name}.{'f' * 16}.tmp",
        f"{path.name}.{'f' * 16}.tmp",
        f"x.{path.name}.{'f' * 16}.tmp",
        f".{path.name}.{'f' * 16}.tmp.gz",
        f".{path.name.replace('.', '-')}.{'f' * 16}.tmp",
    ]
    for name in own + others:
        path.with_name(name).touch()
    save_checkpoint(path, trained(mapping()))
    assert sorted(os.listdir(path.parent)) == sorted([*others, path.name])
    assert next_descriptor() == free


def test_leftovers_of_long_names_are_removed(tmp_path, monkeypatch):
    """And not those of other names that begin in the same way."""
    optimizer, names = trained(mapping()), ["x" * 240 + end for end in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as a killed process does not
        for name in names:
            patch.setattr(os, "fsync", Failing(None, 1, OSError(errno.ENOSPC, "full")))
            with pytest.raises(OSError, match="full"):
                save_checkpoint(tmp_path / name, optimizer)
    left = set(os.listdir(tmp_path))
    assert len(left) == 2
    save_checkpoint(tmp_path / names[0], optimizer)
    assert len(left & set(os.listdir(tmp_path))) == 1
    save_checkpoint(tmp_path / names[1], optimizer)
    assert sorted(os.listdir(tmp_path)) == names


# ---- several processes


def test_the_last_of_two_writers_wins(path):
    """Each has a file of its own, which the other does not take for a leftover."""
    with atomic_write(path) as first:
        first.write(b"first")
        with atomic_write(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b", last")
    assert path.read_bytes() == b"first, last"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_save_to_one_file(path):
    """No save fails, and every one of them leaves a complete file."""
    optimizer = trained(mapping())

    def save_often(n):
        for _ in range(30):
            save_checkpoint(path, optimizer, extra={"n": n})

    statuses = start_children(save_often, range(3))
    while not path.exists():
        pass
    for _ in range(50):
        assert load_checkpoint(path, optimizer)["n"] in range(3)
    assert statuses() == [0, 0, 0]
    assert os.listdir(path.parent) == [path.name]
