"""Paths, folders and permissions; errors while saving."""

import errno
import io
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import contents, gradients, mapping, next_descriptor, nothing_changes, trained
from processes import start_children

from fused_adamw._io import checkpoint_load
from fused_adamw._io.atomic_write import atomic_write
from fused_adamw.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_arrays,
    read_extra,
    read_step,
    save_checkpoint,
)


def test_what_is_loaded_does_not_hold_the_file(path, small):
    optimizer, source = small
    load_checkpoint(path, optimizer)
    with open(path, "r+b") as file:
        file.write(b"\0" * 100)
        file.truncate(100)
    assert contents(optimizer) == contents(source)
    optimizer.step(gradients(optimizer.param_groups[0]["params"], 3))


def test_the_file_is_read_not_mapped(path, small, monkeypatch):
    maps = []

    def read(*arguments, read_exactly=checkpoint_load.read_exactly):
        with open("/proc/self/maps") as file:
            maps.append(file.read())
        read_exactly(*arguments)

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(checkpoint_load, "read_exactly", read)
    load_checkpoint(path, small[0])
    assert len(maps) == 6  # two tensors of three roles
    assert not any(path.name in lines for lines in maps)


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
    with pytest.raises(CheckpointError, match=str(path)):
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


def test_a_path_without_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    save_checkpoint("a", trained(mapping()))
    assert os.listdir() == ["a"]


def test_permissions(path):
    optimizer = trained(mapping())
    umask = os.umask(0o027)
    try:
        save_checkpoint(path, optimizer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        save_checkpoint(path, optimizer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(umask)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EACCES, errno.ENOSYS])
def test_a_file_system_that_refuses_permissions(path, monkeypatch, number):
    """As CIFS and gcsfuse may: their files have the mode of the mount."""
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)
    path.chmod(0o604)
    refused = Failing(None, 1, OSError(number, os.strerror(number)))
    monkeypatch.setattr(os, "chmod", refused)
    save_checkpoint(path, optimizer, extra={"n": 2})
    assert refused.calls == 1
    assert load_checkpoint(path, optimizer) == {"n": 2}


def test_a_mode_that_is_right_is_not_set(path, monkeypatch):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)
    monkeypatch.setattr(os, "chmod", Failing(None, 1, OSError(errno.EIO, "I/O error")))
    save_checkpoint(path, optimizer, extra={"n": 2})
    assert load_checkpoint(path, optimizer) == {"n": 2}


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
    with pytest.raises(NotADirectoryError):
        save_checkpoint(tmp_path / "file" / "a", optimizer)


def test_unwritable_folder(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    path.parent.chmod(0o555)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(PermissionError):
            save_checkpoint(path, optimizer, extra={"n": 2})
        assert load_checkpoint(path, optimizer) == {"n": 1}
    finally:
        path.parent.chmod(0o755)
    assert os.listdir(path.parent) == [path.name]


def test_leftovers_of_killed_processes_are_removed(path):
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


def test_a_folder_that_may_not_be_listed(path, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    save_checkpoint(path, trained(mapping()))
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_may_be_written_but_not_listed(path, monkeypatch):
    """Mode 0300, for someone who is not root."""
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)

    def open_(name, flags, *arguments, open_=os.open):
        if os.path.isdir(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return open_(name, flags, *arguments)

    monkeypatch.setattr(os, "open", open_)
    save_checkpoint(path, optimizer, extra={"n": 2})
    assert load_checkpoint(path, optimizer) == {"n": 2}


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users")
def test_a_folder_of_mode_0300(tmp_path):
    """With the permissions of a user that they bind."""
    optimizer, folder = trained(mapping()), Path(tempfile.mkdtemp(dir="/tmp"))
    own = os.geteuid()
    try:
        if own == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        folder.chmod(0o300)
        for n in range(2):
            save_checkpoint(folder / "run", optimizer, extra={"n": n})
        assert load_checkpoint(folder / "run", optimizer) == {"n": 1}
    finally:
        os.seteuid(own)
        shutil.rmtree(folder)


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


# ---- errors amid a save


class Failing:
    """Stands for a function of ``os``; its call number ``at`` raises instead."""

    def __init__(self, function, at, error):
        self.function, self.at, self.error, self.calls = function, at, error, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.function(*args, **options)


ERRORS = [OSError(errno.EIO, "I/O error"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_before_the_renaming_leaves_the_old_file(path, monkeypatch, name, error, exists):
    optimizer = trained(mapping())
    if exists or name == "chmod":
        save_checkpoint(path, optimizer, extra={"n": 1})
    if name == "chmod":
        path.chmod(0o604)  # other than that of a new file
    old = path.read_bytes() if path.exists() else None
    before = contents(optimizer)
    with monkeypatch.context() as patch:
        failing = Failing(getattr(os, name), 1, error)
        patch.setattr(os, name, failing)
        with pytest.raises(type(error)) as caught:
            save_checkpoint(path, optimizer, extra={"n": 2})
    if isinstance(error, OSError):
        assert (caught.value.__cause__, caught.value.errno) == (error, error.errno)
        assert caught.value.filename == str(path)
    else:
        assert caught.value is error
    assert failing.calls == 1
    assert os.listdir(path.parent) == ([path.name] if old else [])
    assert old is None or path.read_bytes() == old
    assert contents(optimizer) == before


def test_an_error_of_the_folder_leaves_the_new_file(path, monkeypatch):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Failing(os.fsync, 2, OSError(errno.EIO, "I/O error")))
        with pytest.raises(OSError, match="I/O error"):
            save_checkpoint(path, optimizer, extra={"n": 2})
    assert load_checkpoint(path, optimizer) == {"n": 2}
    assert os.listdir(path.parent) == [path.name]


def test_a_file_system_that_cannot_flush_folders(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, 2, OSError(errno.EINVAL, "Invalid")))
    save_checkpoint(path, trained(mapping()))


def test_file_is_flushed_before_the_renaming_and_the_folder_after(path, monkeypatch):
    calls = []

    def fsync(descriptor, fsync=os.fsync):
        status = os.fstat(descriptor)
        calls.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(descriptor)

    def replace(source, target, replace=os.replace):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save_checkpoint(path, trained(mapping()))
    assert calls == [path.stat().st_size, "rename", "folder"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(errno.EIO, "I/O error"), "I/O error"), (EOFError("short"), "short")],
)
def test_a_file_that_fails_after_it_was_verified(path, monkeypatch, error, reason):
    """The only error that leaves something changed says so."""
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)
    monkeypatch.setattr(checkpoint_load, "read_exactly", Failing(None, 1, error))
    with pytest.raises(OSError, match=f"{reason}; parameters and state are only partly") as caught:
        load_checkpoint(path, optimizer)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))


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
    }
    for path, kind in errors.items():
        with pytest.raises(kind) as caught:
            save_checkpoint(path, optimizer)
        assert caught.value.filename == path
    assert sorted(os.listdir()) == ["link", "run"]
    assert Path("run").read_bytes() == whole


@pytest.mark.parametrize(
    "error",
    [
        OSError("without a number"),
        io.UnsupportedOperation("seek"),
        FileNotFoundError(errno.ENOENT, "No such file", "other"),
    ],
)
def test_an_error_of_the_block_stays_as_it_is(tmp_path, error):
    raised = pytest.raises(OSError, match=re.escape(str(error)))
    with raised as caught, atomic_write(tmp_path / "file"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


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
