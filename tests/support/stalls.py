"""A clock by which tests let steps stall."""

from arrays import PER_THREAD

SLOWEST, FEWEST, MOST = 16e-9, 32, 4096  # seconds per element; steps on one thread
SIZE = 2 * PER_THREAD  # elements of a step that may use two threads


class Clock:
    """A clock by which a step on several threads takes ``seconds``."""

    def __init__(self):
        self.now, self.seconds, self.calls = 0.0, 0.0, 0

    def __call__(self):
        self.calls += 1
        self.now += self.seconds * (self.calls % 2 == 0)
        return self.now


def serial_steps(clock, step):
    """How many steps do not look at the clock, until one does."""
    for count in range(3 * MOST):
        before = clock.calls
        step()
        if clock.calls > before:
            return count
    raise AssertionError("the clock is no longer looked at")


def assert_serial_for_a_while(clock, step):
    """After a stall, and only then, the next steps run on one thread."""
    assert serial_steps(clock, step) == 0
    clock.seconds = SLOWEST * SIZE * 1.01
    step()
    clock.seconds = SLOWEST * SIZE * 0.99
    assert serial_steps(clock, step) == FEWEST
    assert serial_steps(clock, step) == 0
