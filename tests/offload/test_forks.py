"""Forked processes, and the threads of an optimizer that has ended."""

import gc
import os
import signal
import threading
import time

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Net, as_bytes, on_device, parameter, steps  # noqa: E402

from fused_adamw import offload  # noqa: E402

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def written_by_fork(call):
    """The bytes that ``call`` returns in a forked child, which has a minute for it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        signal.alarm(60)
        try:
            os.write(write, call())
        finally:
            os._exit(0)
    os.close(write)
    found = b"".join(iter(lambda: os.read(read, 1 << 16), b""))
    os.close(read)
    os.waitpid(child, 0)
    return found


@needs_fork
def test_a_fork_steps_by_itself():
    p = parameter(shape=(50,))
    opt = on_device([p], lr=1e-2)
    steps(opt, p)

    def step():
        steps(opt, p, count=1, first=5)
        return as_bytes(p).tobytes()

    assert written_by_fork(step) == step()


@needs_fork
def test_a_fork_has_pinned_memory_of_the_same_size():
    p = parameter(shape=(50,))
    with offload.simulated():
        opt = offload.AdamW([p], lr=1e-2)
    steps(opt, p)

    def size():
        steps(opt, p, count=1, first=5)
        return str(opt.pinned_nbytes).encode()

    assert written_by_fork(size) == str(opt.pinned_nbytes).encode()


def step(opt, net):
    opt.step()


def forward(opt, net):
    net.loss(0)


def synchronize(opt, net):
    opt.synchronize()


@needs_fork
@pytest.mark.parametrize("copies_only", [False, True])
@pytest.mark.parametrize("use", [step, forward, synchronize])
def test_a_fork_that_is_made_during_updates_is_not_used(use, copies_only):
    """Instead of waiting for threads that only the parent has."""
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, delay=0.1, module=net)
    net.loss(0).backward()
    opt.step()
    while copies_only and opt._engine()._pump().is_busy():
        time.sleep(1e-3)

    def message():
        with pytest.raises(RuntimeError) as raised:
            use(opt, net)
        return str(raised.value).encode()

    found = written_by_fork(message)
    opt.synchronize()
    assert found == (
        b"an optimizer must not be used in a process that was forked during its updates"
    )


def test_the_threads_end_with_the_optimizer():
    p = parameter(shape=(50,))
    before = set(threading.enumerate())
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    del opt
    gc.collect()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
