"""State that is 0 is not written to before the first step, whose threads place its pages, with one
page fault for each."""

from importlib.util import find_spec

import pytest
from processes import run_python
from systems import needs_linux

CONSTRUCTION = """
import resource
from pathlib import Path

import numpy as np
from arrays import dtype_named

from fused_adamw import AdamW

def resident_bytes():
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()

p, g = np.ones((2, 1 << 23), dtype_named({dtype!r}))
before = resident_bytes()
opt = AdamW(p, **{options!r})
constructed = resident_bytes() - before
opt.step(g)
stepped = resident_bytes() - before
assert constructed < opt.state_nbytes / 10, constructed
assert stepped > opt.state_nbytes / 2, stepped
"""

FIRST_STEP = """
import ctypes
import resource

import numpy as np
from arrays import dtype_named

from fused_adamw import AdamW

def page_faults(call):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

SET_THP_DISABLE = 41
assert ctypes.CDLL(None).prctl(SET_THP_DISABLE, 1, 0, 0, 0) == 0
p, g = np.ones((2, 1 << 23), dtype_named({dtype!r}))
AdamW(p, **{options!r}).step(g)  # what is not of the state has its pages then
opt = AdamW(p, **{options!r})
pages = opt.state_nbytes / resource.getpagesize()
first, second = (page_faults(lambda: opt.step(g)) for _ in range(2))
# AddressSanitizer has a byte of its own for every 8.
assert 0.9 * pages < first < 1.5 * pages, (first, pages)
assert second < 0.1 * pages, second
"""
needs_ml_dtypes = pytest.mark.skipif(find_spec("ml_dtypes") is None, reason="needs ml_dtypes")
MIXES = [
    ("float32", {}),
    ("float64", {"amsgrad": True}),
    ("float32", {"state_dtype": "8bit"}),
    pytest.param("bfloat16", {"master_weights": True}, marks=needs_ml_dtypes),
]


@needs_linux
@pytest.mark.parametrize(("dtype", "options"), MIXES)
def test_construction_does_not_write_to_state(dtype, options):
    """In a process of its own, where nothing else allocates or frees."""
    result = run_python(CONSTRUCTION.format(dtype=dtype, options=options), ["support"])
    assert result.returncode == 0, result.stderr


@needs_linux
@pytest.mark.parametrize(("dtype", "options"), MIXES)
def test_the_first_step_has_one_page_fault_for_each_small_page(dtype, options):
    """And not one to read and one to write. No large array has memory that was freed before."""
    program = FIRST_STEP.format(dtype=dtype, options=options)
    result = run_python(program, ["support"], MALLOC_MMAP_THRESHOLD_="1000000")
    assert result.returncode == 0, result.stderr
