"""examples/offload_lm.py, with all its modes."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

EXAMPLES = Path(__file__).parents[2] / "examples"

if not EXAMPLES.exists():
    pytest.skip("this copy of the tests comes without the examples", allow_module_level=True)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import offload_lm

    return offload_lm


def test_the_modes_have_the_same_losses(example):
    losses = {mode: example.train(mode, 6, seed=0) for mode in example.MODES}
    if example.DEVICE is None:
        assert losses["in-memory"] == losses["plain"] == losses["overlapped"]
        assert losses["clipped"] == losses["next-forward"]
    for found in losses.values():
        assert found[-1] < found[0] - 0.1
    assert losses["clipped"] != losses["plain"]


def test_the_command():
    command = [sys.executable, str(EXAMPLES / "offload_lm.py"), "--steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "overlapped" in done.stdout
