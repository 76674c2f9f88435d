"""Steps of PyTorch's tensors while threads are not scheduled."""

import numpy as np
import pytest
from arrays import PER_THREAD

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import assert_steps  # noqa: E402

from fused_adamw import _core, fused_adamw, runtime_info  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

SLOWEST, FEWEST, MOST = 16e-9, 32, 4096  # seconds per element; steps on one thread
SIZE = 2 * PER_THREAD

pytestmark = pytest.mark.skipif(
    min(runtime_info()["num_threads"], torch.get_num_threads()) < 2,
    reason="there is but one thread to choose",
)


class Clock:
    """A clock by which a step on several threads takes ``seconds``."""

    def __init__(self):
        self.now, self.seconds, self.calls = 0.0, 0.0, 0

    def __call__(self):
        self.calls += 1
        self.now += self.seconds * (self.calls % 2 == 0)
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_core, "perf_counter", clock)
    _core._forget_stalls()
    yield clock
    _core._forget_stalls()


def stepper(**options):
    halves = [torch.nn.Parameter(torch.full((SIZE // 2,), 0.5)) for _ in range(2)]
    for p in halves:
        p.grad = torch.full_like(p, 0.1)
    return AdamW(halves, **options)


def serial_steps(clock, step):
    """How many steps do not look at the clock, until one does."""
    for count in range(3 * MOST):
        before = clock.calls
        step()
        if clock.calls > before:
            return count
    raise AssertionError("the clock is no longer looked at")


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}], ids=str)
def test_after_a_stall_steps_run_on_one_thread_for_a_while(clock, options):
    step = stepper(**options).step
    assert serial_steps(clock, step) == 0
    clock.seconds = SLOWEST * SIZE * 1.01
    step()
    clock.seconds = SLOWEST * SIZE * 0.99
    assert serial_steps(clock, step) == FEWEST
    assert serial_steps(clock, step) == 0


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
