"""Ctrl-C, at any moment of a step: nothing has changed, or all of it, at the latest once what has
begun is waited for. Other failures of the thread."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from copy import deepcopy

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Beside, Net, on_device, parameter, set_gradient  # noqa: E402
from processes import run_python  # noqa: E402

from fused_adamw._offload import pump, stepper, threads  # noqa: E402
from fused_adamw._offload.threads import start_thread  # noqa: E402


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.04])
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_ctrl_c_in_a_step(max_grad_norm, delay):
    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": max_grad_norm})
    opt = on_device(params, lr=1e-2, delay=5e-3, max_grad_norm=max_grad_norm)
    net.loss(0).backward()
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    interrupted = False
    try:
        timer.start()
        try:
            opt.step()
        finally:
            timer.cancel()
            timer.join()
    except KeyboardInterrupt:
        interrupted = True
    steps = {int(entry["step"]) for entry in opt.state_dict()["state"].values()}
    assert steps in (set(), {1})
    assert interrupted or steps == {1}
    if steps:
        other.step()
    opt.zero_grad()
    net.loss(1).backward()
    other.step()
    opt.step()
    other.assert_equal(opt)


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_ctrl_c_when_the_thread_has_just_started(max_grad_norm, monkeypatch):
    """There is one thread all the same."""
    started = []

    def start_and_interrupt(*arguments):
        start_thread(*arguments)
        started.append(arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pump, "start_thread", start_and_interrupt)
    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": max_grad_norm})
    opt = on_device(params, lr=1e-2, max_grad_norm=max_grad_norm)
    net.loss(0).backward()
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    if opt.state_dict()["state"]:
        other.step()
    opt.zero_grad()
    net.loss(1).backward()
    other.step()
    opt.step()
    other.assert_equal(opt)
    assert len(started) == 1


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_a_thread_that_cannot_be_started(max_grad_norm, monkeypatch):
    """The step fails, and the next one starts it."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": max_grad_norm})
    opt = on_device(params, lr=1e-2, max_grad_norm=max_grad_norm)
    net.loss(0).backward()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        opt.step()
    assert not opt.state_dict()["state"]
    monkeypatch.undo()
    assert all(thread.is_alive() for thread, stop in threads._stops.items() if stop is not None)
    other.step()
    opt.step()
    other.assert_equal(opt)


@pytest.mark.slow
@pytest.mark.parametrize("waits_for", ["the update", "the last copy"])
def test_ctrl_c_amid_the_wait_of_a_condition(waits_for):
    """Where its lock is released, and would be released again."""
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, delay=0.05, module=net)
    net.loss(0).backward()
    opt.step()
    (job, *_) = opt._engine().pending.values()
    if waits_for == "the update":
        condition = opt._engine()._pump()._changed
    else:
        opt._engine()._pump().wait(job)
        condition = job.written._done._cond
    release, calls = condition._release_save, []

    def release_with_signal():
        state = release()
        if threading.current_thread() is threading.main_thread() and not calls:
            calls.append(None)
            signal.raise_signal(signal.SIGINT)
        return state

    condition._release_save = release_with_signal
    with pytest.raises(KeyboardInterrupt):
        opt.synchronize()
    assert calls
    opt.synchronize()
    assert not opt._engine().pending


def test_ctrl_c_at_the_end_of_a_load():
    """The state has been loaded, so that the step that had begun with the old one is discarded."""
    net = Net()
    params = list(net.parameters())
    opt = on_device(params, lr=1e-2)
    net.loss(0).backward()
    opt.step()
    saved = deepcopy(opt.state_dict())
    opt.zero_grad()
    with opt.overlapped():
        net.loss(1).backward()
    assert opt._engine().begun
    opt.register_load_state_dict_post_hook(lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        opt.load_state_dict(saved)
    opt.zero_grad()
    net.loss(2).backward()
    opt.step()
    assert {int(entry["step"]) for entry in opt.state_dict()["state"].values()} == {2}


def test_a_process_that_ends_during_updates():
    """It waits for them, and does not abort."""
    program = """
        import torch
        from offloading import Net, on_device
        net = Net()
        opt = on_device(net.parameters(), lr=1e-2, delay=2e-2, module=net)
        for step in range(2):
            net.loss(step).backward()
            opt.step()
        assert opt._engine().pending
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_waits_for_a_thread_that_frees_memory():
    """What frees tensors is inside of PyTorch, which aborts a process that ends meanwhile."""
    program = """
        import threading, time
        from fused_adamw._offload.threads import start_thread
        started, returned = threading.Event(), threading.Event()
        class Run:
            def __call__(self):
                started.wait()
                returned.set()
            def __del__(self):
                time.sleep(0.5)
                print("freed", flush=True)
        start_thread("test", Run(), lambda: None)
        started.set()
        returned.wait()
        time.sleep(0.1)
    """
    result = run_python(textwrap.dedent(program))
    assert (result.returncode, result.stdout) == (0, "freed\n"), result.stderr


def test_threads_that_have_ended_are_forgotten():
    for _ in range(3):
        start_thread("test", lambda: None, lambda: None)
    for thread in [x for x in threads._stops if x.name == "test"]:
        thread.join(60)
    start_thread("test", lambda: None, lambda: None)
    assert sum(x.name == "test" for x in threads._stops) == 1


def test_a_thread_that_is_being_started_is_not_forgotten(monkeypatch):
    start = threading.Thread.start

    def start_another_first(thread):
        if thread.name == "first":
            start_thread("second", lambda: None, lambda: None)
            assert thread in threads._stops
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_another_first)
    start_thread("first", lambda: None, lambda: None)


def test_a_failure_in_the_thread_is_raised_and_ends_the_use(monkeypatch):
    def fail(_):
        raise MemoryError("here")

    p = parameter()
    opt = on_device([p], lr=1e-2)
    monkeypatch.setattr(stepper, "update", fail)
    set_gradient(p, 0)
    with pytest.raises(RuntimeError, match="an update failed") as raised:
        opt.step()
    assert isinstance(raised.value.__cause__, MemoryError)
    monkeypatch.undo()
    count = opt.state[p]["step"].item()
    with pytest.raises(RuntimeError, match="cannot be used again"):
        opt.step()
    with pytest.raises(RuntimeError, match="cannot be used again"), opt.overlapped():
        p.sum().backward()
    assert opt.state[p]["step"] == count
