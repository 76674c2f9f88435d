"""A process that is killed at any system call of a save leaves the old file or the new one."""

import os
import re
import shutil

import pytest
from killed_saves import mark_in, save_marked, traced_save
from systems import needs_linux

pytestmark = [
    pytest.mark.slow,
    needs_linux,
    pytest.mark.skipif(not shutil.which("strace"), reason="needs strace"),
]

CALLS = {"flock", "write", "fsync", "close"}  # among others
OPEN = {"open", "openat"}  # of musl, and of others


@pytest.fixture
def names(tmp_path, path):
    """The system calls that a save makes."""
    log = tmp_path / "log"
    try:
        assert not traced_save(path, 1, log)
    except PermissionError as error:
        pytest.skip(f"processes may not be traced here: {error}")
    found = set(re.findall(r"^\d+\s+(\w+)\(", log.read_text(), re.MULTILINE))
    assert found >= CALLS
    assert found & OPEN
    path.unlink()
    log.unlink()
    return sorted(found)


def was_renamed(log):
    return re.search(r"\brename(at2?)?\(.*= 0$", log.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("exists", [True, False], ids=["over a file", "new"])
def test_killed_at_every_system_call(tmp_path, path, names, exists):
    """Before its k-th call of each name, for every k that there is. The end of the process is a
    call, too."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    target, log = folder / path.name, tmp_path / "log"
    n, killed, replaced = 1, 0, 0
    for name in names:
        count = 0
        while True:
            if exists:
                save_marked(target, old := n)
            else:
                target.unlink(missing_ok=True)  # temporary files stay, for the next save
            n, count = n + 1, count + 1
            inject = f"inject={name}:signal=KILL:when={count}"
            if not traced_save(target, n, log, "-e", inject):
                break
            killed += 1
            leftovers = {file for file in os.listdir(folder) if file.endswith(".tmp")}
            assert len(leftovers) <= 1, (name, count)
            assert set(os.listdir(folder)) - leftovers <= {target.name}
            if was_renamed(log):
                replaced += 1
                assert mark_in(target) == n, (name, count)
            elif exists:
                assert mark_in(target) == old, (name, count)
            else:
                assert not target.exists(), (name, count)
        assert mark_in(target) == n, name
        assert os.listdir(folder) == [target.name], name
    assert killed >= 20
    assert 0 < replaced < killed
