"""Steps of PyTorch's tensors while threads are not scheduled."""

import numpy as np
import pytest
from arrays import PER_THREAD
from stalls import FEWEST, SIZE, assert_serial_for_a_while, serial_steps

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import assert_steps  # noqa: E402

from fused_adamw import fused_adamw, runtime_info  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

pytestmark = pytest.mark.skipif(
    min(runtime_info()["num_threads"], torch.get_num_threads()) < 2,
    reason="there is but one thread to choose",
)


def stepper(**options):
    halves = [torch.nn.Parameter(torch.full((SIZE // 2,), 0.5)) for _ in range(2)]
    for p in halves:
        p.grad = torch.full_like(p, 0.1)
    return AdamW(halves, **options)


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}], ids=str)
def test_after_a_stall_steps_run_on_one_thread_for_a_while(clock, options):
    assert_serial_for_a_while(clock, stepper(**options).step)


def test_stalls_that_go_on_cost_less_and_less(clock):
    step = stepper().step
    clock.seconds = 1.0
    step()
    assert [serial_steps(clock, step) for _ in range(4)] == [FEWEST << k for k in range(4)]


def test_a_stall_of_one_optimizer_is_known_to_all_others(clock):
    """Of the process, the function included."""
    arrays = [np.full(SIZE, 0.5, np.float32) for _ in range(4)]
    clock.seconds = 1.0
    stepper().step()
    assert serial_steps(clock, lambda: fused_adamw(*arrays, 1)) == FEWEST
    assert serial_steps(clock, stepper().step) == 2 * FEWEST


def test_the_bits_do_not_depend_on_it(clock):
    opt = stepper()
    clock.seconds = 1.0
    for _ in range(3):
        assert_steps(opt)
    assert clock.calls == 2


def test_steps_that_use_one_thread_do_not_look_at_the_clock(clock):
    p = torch.nn.Parameter(torch.ones(PER_THREAD))
    p.grad = torch.ones_like(p)
    AdamW([p]).step()
    assert clock.calls == 0
