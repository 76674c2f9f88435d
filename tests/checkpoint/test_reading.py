"""Loading reads the file and keeps nothing of it; an error amid the reading says what changed."""

import errno

import numpy as np
import pytest
from checkpoints import Failing, contents, gradients, mapping, nothing_changes, trained
from systems import needs_linux

from fused_adamw import checkpoint
from fused_adamw._io import checkpoint_load, safetensors_stream
from fused_adamw.checkpoint import (
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


@needs_linux
def test_the_file_is_read_not_mapped(path, small, monkeypatch):
    maps = []

    def read(*arguments, read_exactly=checkpoint_load.read_exactly):
        with open("/proc/self/maps") as file:
            maps.append(file.read())
        read_exactly(*arguments)

    monkeypatch.setattr(checkpoint_load, "read_exactly", read)
    load_checkpoint(path, small[0])
    assert len(maps) == 6  # two tensors of three roles
    assert not any(path.name in lines for lines in maps)


@pytest.mark.parametrize("read", [load_checkpoint, read_extra, read_step, read_arrays])
@pytest.mark.parametrize("reads", [1, 2, 3])
def test_a_file_that_cannot_be_read(path, monkeypatch, read, reads):
    """The length of the header, the header, or the data."""
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, arrays={"a": np.ones(3)})
    failing = Failing(safetensors_stream.read_bytes, reads, OSError(errno.EIO, "I/O error"))
    for module in (checkpoint, safetensors_stream):
        monkeypatch.setattr(module, "read_bytes", failing)
    arguments = [optimizer] if read is load_checkpoint else []
    if reads == 3 and read in (read_extra, read_step):
        read(path)  # which reads no data
        return
    with nothing_changes(optimizer, OSError, match="I/O error") as caught:
        read(path, *arguments)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))


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
