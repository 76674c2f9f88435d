"""State that is 0 is not written to before the first step, whose threads place its pages."""

import resource
from pathlib import Path

import numpy as np
import pytest
from arrays import dtype_named

from fused_adamw import AdamW

STATM = Path("/proc/self/statm")


def resident_bytes():
    return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux")
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
    p, g = np.ones((2, 1 << 23), dtype_named(dtype))
    before = resident_bytes()
    opt = AdamW(p, **options)
    assert resident_bytes() - before < opt.state_nbytes / 10
    opt.step(g)
    assert resident_bytes() - before > opt.state_nbytes / 2
