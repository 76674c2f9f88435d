"""Errors amid a save leave a complete file, the old one or the new one."""

import errno
import io
import os
import re
import stat

import pytest
from checkpoints import Failing, contents, mapping, trained
from systems import needs_modes

from fused_adamw._io.atomic_write import atomic_write
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

FLUSHES_FOLDERS = os.name != "nt"
needs_flushed_folders = pytest.mark.skipif(not FLUSHES_FOLDERS, reason="folders are not flushed")
ERRORS = [OSError(errno.EIO, "I/O error"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", ["fsync", "replace", pytest.param("chmod", marks=needs_modes)])
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


@needs_flushed_folders
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
    assert calls == [path.stat().st_size, "rename", *["folder"] * FLUSHES_FOLDERS]


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
