"""Where memory for a Python object is refused: MemoryError and nothing changed, or success."""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fused_adamw import AdamW

PROGRAM = Path(__file__).parent / "programs" / "no_memory.py"
CLOSURE = """
import _testcapi
value = object()
def count(found):
    return sum(1 for x in (1, 2) if found)
for n in range(1, 50):
    _testcapi.set_nomemory(n, n + 1)
    try:
        count(value)
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="needs _testcapi")
@pytest.mark.parametrize("only", ["one", "rest"])
@pytest.mark.parametrize("call", ["step", "construct", "function", "load", "copies"])
def test_each_allocation_is_refused(call, only):
    refuse(call, only)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="needs _testcapi")
@pytest.mark.parametrize(("call", "at_least"), [("torch_step", 10), ("torch_next_step", 0)])
def test_each_allocation_of_a_step_of_pytorch_is_refused(call, at_least):
    """One by one: where all are refused, CPython 3.11 does not leave a ``with`` block. A step like
    the last one may need no memory."""
    pytest.importorskip("torch")
    refuse(call, "one", at_least)


@functools.cache
def survives():
    """Whether Python lives on where memory for a function is refused. 3.12 and 3.13.0 do not:
    github.com/python/cpython/issues/122752."""
    return subprocess.run([sys.executable, "-c", CLOSURE], timeout=60).returncode == 0


def refuse(call, only, at_least=10):
    if not survives():
        pytest.skip("this version of Python crashes where memory for a function is refused")
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
