"""Threads that share an optimizer: what one of them reads is of one step."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fused_adamw import AdamW

bfloat16 = pytest.importorskip("ml_dtypes").bfloat16

OPTIONS = [
    ("m", np.float32, {"state_dtype": "8bit"}),
    ("v", np.float32, {"state_dtype": "bfloat16"}),
    ("v_max", np.float32, {"state_dtype": "bfloat16", "amsgrad": True}),
    ("master", bfloat16, {"master_weights": True}),
    ("ema", bfloat16, {"ema_decay": 0.5}),
]


@pytest.mark.parametrize(("name", "dtype", "options"), OPTIONS, ids=[x[0] for x in OPTIONS])
def test_a_copy_of_the_state_waits_for_a_step(name, dtype, options):
    """The schedule lets the other thread begin to read in the middle of a step."""
    entered, may_go_on = threading.Event(), threading.Event()

    def schedule(t):
        entered.set()
        may_go_on.wait(0.2 if t > 1 else 0)
        return 0.1

    w = np.ones(1000, dtype)
    opt = AdamW(w, lr=schedule, seed=None, **options)
    opt.step(np.ones_like(w))
    entered.clear()
    with ThreadPoolExecutor(2) as threads:
        step = threads.submit(opt.step, np.full_like(w, 2))
        entered.wait(30)
        found = threads.submit(lambda: np.array(getattr(opt, name))).result()
        assert step.done() or opt.t == 2
        may_go_on.set()
        step.result()
    np.testing.assert_array_equal(found, getattr(opt, name))


def test_a_schedule_may_read_the_state():
    found = []
    w = np.ones(300, np.float32)
    opt = AdamW(w, lr=lambda t: found.append(opt.m[0]) or 0.1 if t > 1 else 0.1, state_dtype="8bit")
    opt.step(np.ones_like(w))
    opt.step(np.ones_like(w))
    assert len(found) == 1
    assert found[0] > 0
