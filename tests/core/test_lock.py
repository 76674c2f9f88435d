"""The lock of an optimizer: one thread at a time, which may enter again."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from fused_adamw import AdamW
from fused_adamw._core import ReentrantLock

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")


class StopWaitingError(Exception):
    pass


@contextmanager
def taken_by_another_thread(lock):
    entered, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            entered.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(30)
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_block_is_left_by_the_thread_that_entered_it():
    lock = ReentrantLock()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^exclusive\(\) must be left by "):
            lock.__exit__()
        with taken_by_another_thread(lock), pytest.raises(RuntimeError, match="must be left"):
            lock.__exit__()
    with lock:  # as before
        pass


def test_one_thread_at_a_time():
    lock, inside, most = ReentrantLock(), [], []

    def work():
        for _ in range(300):
            with lock, lock:  # again, by the same thread
                inside.append(None)
                most.append(len(inside))
                threading.Event().wait(1e-6)  # lets other threads run
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 1200
    assert max(most) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of signals")
def test_a_signal_handler_may_end_the_waiting():
    lock = ReentrantLock()

    def stop(number, frame):
        raise StopWaitingError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with taken_by_another_thread(lock):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(StopWaitingError), lock:
                pytest.fail("the lock was another thread's")
    finally:
        signal.signal(signal.SIGALRM, before)
    with lock:  # which is free again
        pass


def test_a_schedule_may_use_the_optimizer_that_steps():
    seen = []

    def schedule(t):
        if optimizers:  # not at construction
            seen.append(optimizers[0].state_dict()["t"])
        return 0.1

    optimizers = []
    optimizers.append(AdamW(np.ones(3), lr=schedule))
    for _ in range(2):
        optimizers[0].step(np.ones(3))
    assert seen == [0, 1]


# ---- forks


def forked(work):
    """What a forked child, which runs ``work``, exits with; None where it does not end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)
    status, deadline = (0, 0), time.monotonic() + 120
    while status == (0, 0) and time.monotonic() < deadline:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if status == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status[1])


def started(lock, count=3):
    """Threads that enter several times, and a list of how many were inside each time."""
    inside, seen = [], []

    def work():
        for _ in range(20):
            with lock:
                inside.append(None)
                seen.append(len(inside))
                threading.Event().wait(1e-3)
                inside.pop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, seen


def took_turns(threads, seen):
    """Whether the threads end, and one at a time was inside."""
    for thread in threads:
        thread.join(30)
    return seen == [1] * 60


@needs_fork
def test_a_forked_child_does_not_wait_for_threads_that_it_lacks():
    lock = ReentrantLock()

    def enter_twice():
        with lock, lock:
            return 7

    with taken_by_another_thread(lock):
        assert forked(enter_twice) == 7


@needs_fork
def test_no_thread_of_a_child_is_taken_for_one_that_it_lacks():
    """The system gives new threads the numbers of those that are gone."""
    lock = ReentrantLock()

    def take_turns():
        return 7 if took_turns(*started(lock)) else 2

    with taken_by_another_thread(lock):
        assert forked(take_turns) == 7


@needs_fork
def test_a_thread_that_forks_keeps_the_lock_in_the_child():
    lock = ReentrantLock()

    def keep_and_release():
        threads, seen = started(lock)
        threads[0].join(0.1)
        entered_too_early = bool(seen)
        lock.__exit__()
        return 2 if entered_too_early else 7 if took_turns(threads, seen) else 3

    with lock:
        assert forked(keep_and_release) == 7
