"""Permissions of the file and of its folder."""

import errno
import os
import stat
from pathlib import Path

import pytest
from checkpoints import Failing, mapping, trained
from permissions import binding_permissions
from systems import needs_modes

from fused_adamw.checkpoint import load_checkpoint, save_checkpoint


@needs_modes
def test_permissions(path):
    optimizer = trained(mapping())
    umask = os.umask(0o027)
    try:
        save_checkpoint(path, optimizer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        save_checkpoint(path, optimizer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
        path.chmod(0o6754)  # the new file may belong to somebody else
        save_checkpoint(path, optimizer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o754
    finally:
        os.umask(umask)


@needs_modes
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


@pytest.mark.skipif(os.name != "nt", reason="elsewhere a file without permission is replaced")
def test_a_read_only_file_is_not_replaced_on_windows(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    path.chmod(0o444)
    with pytest.raises(PermissionError) as caught:
        save_checkpoint(path, optimizer, extra={"n": 2})
    assert caught.value.filename == str(path)
    assert os.listdir(path.parent) == [path.name]
    assert load_checkpoint(path, optimizer) == {"n": 1}


def test_a_mode_that_is_right_is_not_set(path, monkeypatch):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)
    monkeypatch.setattr(os, "chmod", Failing(None, 1, OSError(errno.EIO, "I/O error")))
    save_checkpoint(path, optimizer, extra={"n": 2})
    assert load_checkpoint(path, optimizer) == {"n": 2}


def test_unwritable_folder(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    path.parent.chmod(0o555)
    try:
        with binding_permissions():
            with pytest.raises(PermissionError):
                save_checkpoint(path, optimizer, extra={"n": 2})
            assert load_checkpoint(path, optimizer) == {"n": 1}
    finally:
        path.parent.chmod(0o755)
    assert os.listdir(path.parent) == [path.name]


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


def test_a_folder_of_mode_0300(path):
    optimizer = trained(mapping())
    path.parent.chmod(0o300)
    try:
        with binding_permissions():
            with pytest.raises(PermissionError):
                os.listdir(path.parent)
            for n in range(2):
                save_checkpoint(path, optimizer, extra={"n": n})
            assert load_checkpoint(path, optimizer) == {"n": 1}
    finally:
        path.parent.chmod(0o755)
    assert os.listdir(path.parent) == [path.name]
