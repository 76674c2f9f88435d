"""Where memory for a Python object is refused: MemoryError and nothing changed, or success."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fused_adamw import AdamW

PROGRAM = Path(__file__).parent / "programs" / "no_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="needs _testcapi")
@pytest.mark.parametrize("only", ["one", "rest"])
@pytest.mark.parametrize("call", ["step", "construct", "function", "load", "copies"])
def test_each_allocation_is_refused(call, only):
    refuse(call, only)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="needs _testcapi")
@pytest.mark.parametrize(("call", "at_least"), [("torch_step", 10), ("torch_next_step", 1)])
def test_each_allocation_of_a_step_of_pytorch_is_refused(call, at_least):
    """One by one: where all are refused, CPython 3.11 does not leave a ``with`` block."""
    pytest.importorskip("torch")
    refuse(call, "one", at_least)


def refuse(call, only, at_least=10):
    command = [sys.executable, PROGRAM, call, only]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    tried, refused = map(int, result.stdout.split())
    assert tried > refused >= at_least


class TooLarge:
    def __array__(self, dtype=None, copy=None):
        raise MemoryError("too large")


@pytest.mark.parametrize("params", [[TooLarge()], {"w": TooLarge()}, [{"params": [TooLarge()]}]])
def test_missing_memory_is_no_wrong_parameter(params):
    with pytest.raises(MemoryError, match="too large"):
        AdamW(params)
