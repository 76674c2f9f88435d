"""Loading reads the file and keeps nothing of it; an error amid the reading says what changed."""

import errno
import os

import pytest
from checkpoints import Failing, contents, gradients, mapping, trained

from fused_adamw._io import checkpoint_load
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint


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
