"""Kinds of paths, long names, links, and what is no file."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import mapping, next_descriptor, nothing_changes, trained
from systems import needs_links

from fused_adamw.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_arrays,
    read_extra,
    read_step,
    save_checkpoint,
)


class BytesPath:
    def __init__(self, path):
        self.path = os.fsencode(path)

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("make", [str, os.fspath, lambda path: path, os.fsencode, BytesPath])
def test_kinds_of_paths(path, make):
    optimizer, free = trained(mapping()), next_descriptor()
    save_checkpoint(make(path), optimizer, extra={"n": 1}, arrays={"a": np.arange(3)})
    assert next_descriptor() == free
    assert os.listdir(path.parent) == [path.name]
    assert load_checkpoint(make(path), optimizer) == read_extra(make(path)) == {"n": 1}
    assert read_step(make(path)) == 3
    assert read_arrays(make(path))["a"].tolist() == [0, 1, 2]
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_checkpoint(make(path), optimizer)


@pytest.mark.parametrize("path", [3, None, object()])
def test_what_is_no_path(path):
    optimizer = trained(mapping())
    for call in (save_checkpoint, load_checkpoint):
        with nothing_changes(optimizer, TypeError, "path must be a str, bytes or PathLike; got"):
            call(path, optimizer)
    with pytest.raises(TypeError, match="path must be"):
        read_step(path)


LONG_NAMES = ["x" * 234, "x" * 255, "ü" * 127, "語" * 85, b"x\xff" * 127]


@pytest.mark.skipif(os.name == "nt", reason="Windows limits the whole path, which is Unicode")
@pytest.mark.parametrize("name", LONG_NAMES, ids=["234", "255", "254", "255 of 3", "not UTF-8"])
def test_names_as_long_as_they_may_be(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    try:
        open(path, "wb").close()
        os.unlink(path)
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    optimizer = trained(mapping())
    for n in range(2):
        save_checkpoint(path, optimizer, extra={"n": n})
    assert load_checkpoint(path, optimizer) == {"n": 1}
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


def test_a_path_without_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    save_checkpoint("a", trained(mapping()))
    assert os.listdir() == ["a"]


@needs_links
def test_symbolic_links(tmp_path):
    optimizer = trained(mapping())
    (tmp_path / "disk").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("disk/real")
    for _ in range(2):  # to a file that is not there yet, and to one that is
        save_checkpoint(link, optimizer)
        assert link.is_symlink()
        assert os.listdir(tmp_path / "disk") == ["real"]
        assert not (tmp_path / "disk" / "real").is_symlink()
    load_checkpoint(link, optimizer)


def test_hard_links_keep_the_old_file(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    other = path.with_name("kept")
    other.hardlink_to(path)
    save_checkpoint(path, optimizer, extra={"n": 2})
    assert load_checkpoint(other, optimizer) == {"n": 1}
    assert load_checkpoint(path, optimizer) == {"n": 2}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_not_a_regular_file(path, kind):
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("needs pipes")
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        save_checkpoint(path, trained(mapping()))
    assert os.listdir(path.parent) == [path.name]
    assert not path.is_file()


def test_no_such_file(path):
    optimizer = trained(mapping())
    with nothing_changes(optimizer, FileNotFoundError):
        load_checkpoint(path, optimizer)


def test_no_such_folder(tmp_path):
    optimizer = trained(mapping())
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "none" / "a", optimizer)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError if os.name == "nt" else NotADirectoryError):
        save_checkpoint(tmp_path / "file" / "a", optimizer)


@pytest.mark.skipif(os.name == "nt", reason="Windows takes .. without looking for the folder")
def test_errors_name_the_path_that_was_given(tmp_path, monkeypatch):
    """Not the temporary file, nor the file that a link leads to."""
    monkeypatch.chdir(tmp_path)
    optimizer = trained(mapping())
    save_checkpoint("run", optimizer)
    whole = Path("run").read_bytes()
    os.symlink("missing/run", "link")
    errors = {
        "missing/run": FileNotFoundError,
        "link": FileNotFoundError,
        "run/": IsADirectoryError,
        "run/.": IsADirectoryError,
        "new/": FileNotFoundError,
        "new/.": FileNotFoundError,
        "missing/../run": FileNotFoundError,
        "run/../run": NotADirectoryError,
        "": FileNotFoundError,
    }
    for path, kind in errors.items():
        with pytest.raises(kind) as caught:
            save_checkpoint(path, optimizer)
        assert caught.value.filename == path
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            load_checkpoint(path, optimizer)
    assert sorted(os.listdir()) == ["link", "run"]
    assert Path("run").read_bytes() == whole


@needs_links
def test_errors_name_the_path_of_a_loop_of_links(tmp_path, monkeypatch):
    """And not the one to which it leads."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        save_checkpoint("loop", trained(mapping()))
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, "loop")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a current folder")
def test_errors_name_the_path_where_the_current_folder_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    optimizer = trained(mapping())
    for path in ("run", "../run"):
        for call in (save_checkpoint, load_checkpoint):
            with pytest.raises(FileNotFoundError) as caught:
                call(path, optimizer)
            assert caught.value.filename == path
    save_checkpoint(tmp_path / "run", optimizer)


@pytest.mark.parametrize("path", ["a\0b", b"a\0b"])
def test_paths_that_no_system_takes(path):
    optimizer = trained(mapping())
    calls = (
        read_extra,
        read_step,
        read_arrays,
        lambda path: load_checkpoint(path, optimizer),
        lambda path: save_checkpoint(path, optimizer),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"^path must not contain a null character; got 'a"):
            call(path)
