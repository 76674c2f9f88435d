"""Each system call that writes a file fails once: the old file or the new one, never a mixture."""

import errno
import io
import os

import numpy as np
import pytest
from checkpoints import contents, draw, trained

from fused_adamw import AdamW
from fused_adamw._io import atomic_write
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

SMALL = 4096  # bytes of a write at most, so that a small file takes several


class FaultyFile(io.FileIO):
    """A file whose calls go through ``fault(name)``, which may raise or make a write short."""

    def __init__(self, path, fault):
        super().__init__(path, "xb")
        self.fault = fault

    def write(self, data):
        most = self.fault("write") or SMALL
        return super().write(memoryview(data).cast("B")[:most])

    def seek(self, position, whence=os.SEEK_SET):
        self.fault("seek")
        return super().seek(position, whence)


class Faults:
    """Counts the calls. The call ``at`` gets ``result``: an error, or the bytes it may write."""

    def __init__(self, name=None, at=0, result=None):
        self.name, self.at, self.result = name, at, result
        self.calls = {}

    def __call__(self, name):
        self.calls[name] = self.calls.get(name, 0) + 1
        if name != self.name or self.calls[name] != self.at:
            return None
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def open(self, path, mode):
        self("open")
        return io.BufferedWriter(FaultyFile(path, self), SMALL)

    def wrapped(self, name):
        function = getattr(os, name)

        def call(*arguments):
            self(name)
            return function(*arguments)

        return call

    def install(self, patch):
        patch.setattr(atomic_write, "open", self.open, raising=False)
        for name in ("fsync", "replace"):
            patch.setattr(os, name, self.wrapped(name))


def model(seed):
    return trained({"w": draw((40, 100), seed=seed), "b": draw(5, np.float64, seed)}, 1)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """How often a save makes each call."""
    faults = Faults()
    with monkeypatch.context() as patch:
        faults.install(patch)
        save_checkpoint(tmp_path / "counted", model(1))
    (tmp_path / "counted").unlink()
    assert faults.calls["write"] >= 10
    assert {"open", "seek", "fsync", "replace"} <= faults.calls.keys()
    return faults.calls


def found(path):
    """What is in a file, all of which its checksums cover."""
    optimizer = AdamW({"w": draw((40, 100), seed=9), "b": draw(5, np.float64, 9)})
    load_checkpoint(path, optimizer)
    return contents(optimizer)


NUMBERS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]


@pytest.mark.parametrize("exists", [True, False], ids=["over a file", "new"])
@pytest.mark.parametrize("number", NUMBERS, ids=[errno.errorcode[n] for n in NUMBERS])
def test_any_call_fails(path, monkeypatch, calls, number, exists):
    old, new = model(0), model(1)
    for name, count in calls.items():
        for at in range(1, count + 1):
            if exists:
                save_checkpoint(path, old)
            before, error = contents(new), OSError(number, os.strerror(number))
            with monkeypatch.context() as patch:
                Faults(name, at, error).install(patch)
                with pytest.raises(OSError, match=os.strerror(number)) as caught:
                    save_checkpoint(path, new)
            assert caught.value.__cause__ is error
            assert (caught.value.errno, caught.value.filename) == (number, str(path))
            assert contents(new) == before
            is_new = (name, at) == ("fsync", 2)  # of the folder: the file has been renamed
            assert os.listdir(path.parent) == ([path.name] if exists or is_new else [])
            if exists or is_new:
                assert found(path) == contents(new if is_new else old), (name, at)
                path.unlink()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_short_writes_are_continued(path, monkeypatch, calls, size):
    save_checkpoint(path, model(1))
    whole = path.read_bytes()
    for at in range(1, calls["write"] + 1):
        path.unlink()
        with monkeypatch.context() as patch:
            Faults("write", at, size).install(patch)
            save_checkpoint(path, model(1))
        assert path.read_bytes() == whole, at
    assert os.listdir(path.parent) == [path.name]


def test_interrupted_writes_are_repeated(path, monkeypatch, calls):
    """By a signal whose handler returns."""
    save_checkpoint(path, model(1))
    whole = path.read_bytes()
    for at in range(1, calls["write"] + 1):
        path.unlink()
        with monkeypatch.context() as patch:
            Faults("write", at, InterruptedError(errno.EINTR, "interrupted")).install(patch)
            save_checkpoint(path, model(1))
        assert path.read_bytes() == whole, at
    assert os.listdir(path.parent) == [path.name]


def test_a_disk_that_stays_full(path, monkeypatch, calls):
    """From some write on all fail, those of closing the file too."""
    save_checkpoint(path, model(0))
    for at in range(1, calls["write"] + 1):

        class Full(Faults):
            def __call__(self, name, at=at):
                super().__call__(name)
                if name == "write" and self.calls[name] >= at:
                    raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            Full().install(patch)
            with pytest.raises(OSError, match="full"):
                save_checkpoint(path, model(1))
        assert os.listdir(path.parent) == [path.name]
        assert found(path) == contents(model(0)), at
