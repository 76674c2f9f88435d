"""An optimizer that may choose finds out whether several threads pay."""

import numpy as np
import pytest
from arrays import PER_THREAD
from twin import adamw_twin

from fused_adamw import AdamW, _core, runtime_info

TRIALS, PERIOD = 12, 1000  # steps that are tried, both ways together, and how often

pytestmark = pytest.mark.skipif(
    runtime_info()["num_threads"] < 2, reason="there is but one thread to choose"
)


class Clock:
    """A clock that only steps move: by as much as their number of threads is said to take."""

    def __init__(self, optimizer, seconds):
        self.now, self.calls = 0.0, 0
        self.tensors, self.seconds = optimizer._bound, seconds

    def __call__(self):
        self.calls += 1
        if self.calls % 2 == 0:  # the second look, after the step
            self.now += self.seconds["one" if self.tensors.threads == 1 else "many"]
        return self.now


@pytest.fixture
def optimizer(tensor):
    return AdamW(tensor(4 * PER_THREAD, np.float32).p)


def threads_of_steps(optimizer, count):
    gradient = np.full(4 * PER_THREAD, 0.1, np.float32)
    used = []
    for _ in range(count):
        optimizer.step(gradient)
        used.append(optimizer._bound.threads)
    return used


@pytest.mark.parametrize(("one", "many"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_the_faster_way_is_kept(optimizer, monkeypatch, one, many):
    clock = Clock(optimizer, {"one": one, "many": many})
    monkeypatch.setattr(_core, "perf_counter", clock)
    tried = threads_of_steps(optimizer, TRIALS)
    assert tried[1::2] == [1] * (TRIALS // 2)
    assert min(tried[::2]) > 1
    kept = threads_of_steps(optimizer, 50)
    assert set(kept) == ({1} if one < many else {tried[0]})
    assert clock.calls == 2 * TRIALS  # steps that are not tried do not look at the clock


def test_one_slow_trial_does_not_decide(optimizer, monkeypatch):
    clock = Clock(optimizer, {"one": 2.0, "many": 1.0})
    monkeypatch.setattr(_core, "perf_counter", clock)
    threads_of_steps(optimizer, 4)
    clock.seconds["many"] = 100.0
    threads_of_steps(optimizer, 1)
    clock.seconds["many"] = 1.0
    threads_of_steps(optimizer, TRIALS - 5)
    assert min(threads_of_steps(optimizer, 5)) > 1


def test_it_is_tried_again(optimizer, monkeypatch):
    clock = Clock(optimizer, {"one": 1.0, "many": 2.0})
    monkeypatch.setattr(_core, "perf_counter", clock)
    assert threads_of_steps(optimizer, PERIOD)[-1] == 1
    clock.seconds["one"] = 3.0
    threads_of_steps(optimizer, TRIALS)
    assert min(threads_of_steps(optimizer, 5)) > 1


@pytest.mark.parametrize(("size", "options"), [(100, {}), (4 * PER_THREAD, {"num_threads": 2})])
def test_nothing_is_tried_where_there_is_no_choice(tensor, monkeypatch, size, options):
    x = tensor(size, np.float32)
    optimizer = AdamW(x.p, **options)
    clock = Clock(optimizer, {"one": 1.0, "many": 1.0})
    monkeypatch.setattr(_core, "perf_counter", clock)
    for _ in range(20):
        optimizer.step(x.g)
    assert clock.calls == 0


def test_trials_do_not_change_the_result(tensor):
    x = tensor(4 * PER_THREAD + 3, np.float32)
    p, m, v = x.p.copy(), np.zeros_like(x.p), np.zeros_like(x.p)
    optimizer = AdamW(x.p)
    for t in range(1, TRIALS + 4):
        optimizer.step(x.g)
        p, m, v = adamw_twin(p, x.g, m, v, t)
    np.testing.assert_array_equal(x.p, p)
    np.testing.assert_array_equal(optimizer.v, v)
