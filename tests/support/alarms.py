"""Signal handlers that raise, at random moments of a call."""

import gc
import random
import signal
import threading
import time
import warnings
from contextlib import contextmanager

import pytest


class AlarmError(Exception):
    pass


@contextmanager
def alarm_handler():
    """SIGALRM raises ``AlarmError``; gives a list to which each alarm adds itself before.

    Python ignores what is raised in a callback of its garbage collector. Hypothesis has one;
    so there is none in the block. A file that an alarm has kept from its name is closed by the
    collector, which is no fault.
    """
    if not hasattr(signal, "SIGALRM"):
        pytest.skip("needs a timer that signals")
    alarms = []

    def raise_alarm(number, frame):
        alarms.append(number)
        raise AlarmError

    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    previous = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield alarms
            gc.collect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.callbacks[:] = callbacks


def attack(calls, check, at_least):
    """Interrupt calls at random moments.

    Args:
        calls: functions, which are called in turn.
        check: called with the index of the call, after each one.
        at_least: how often an alarm has to end a call.
    """
    rng, ended, lost = random.Random(7), 0, 0
    with alarm_handler() as alarms:
        seconds = [1.0] * len(calls)
        for _ in range(3):  # the first are slow
            for i, call in enumerate(calls):
                start = time.perf_counter()
                call()
                seconds[i] = min(seconds[i], time.perf_counter() - start)
        for attempt in range(20 * at_least):
            i, returned = attempt % len(calls), False
            alarms.clear()
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1.3 * seconds[i]))
                calls[i]()
                returned = True
                while not alarms:  # so that it does not arrive in ``check``
                    pass
            except AlarmError:
                ended += not returned
            else:  # Python ignores it in callbacks of weak references and in ``__del__`` too
                lost += 1
                assert lost <= at_least / 50, "what a signal handler raises is lost in the call"
            check(i)
            if ended == at_least:
                return
    raise AssertionError(f"{ended} of {20 * at_least} calls were interrupted")


def assert_unlocked(opt):
    """Other threads can use the optimizer."""
    thread = threading.Thread(target=opt.state_dict, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
