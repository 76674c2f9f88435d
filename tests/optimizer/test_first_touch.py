"""State that is 0 is not written to before the first step, whose threads place its pages."""

from pathlib import Path

import pytest
from processes import run_python

PROGRAM = """
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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {}),
        ("float64", {"amsgrad": True}),
        ("float32", {"state_dtype": "8bit"}),
        ("bfloat16", {"master_weights": True}),
    ],
)
def test_construction_does_not_write_to_state(dtype, options):
    """In a process of its own, where nothing else allocates or frees."""
    result = run_python(PROGRAM.format(dtype=dtype, options=options), ["support"])
    assert result.returncode == 0, result.stderr
