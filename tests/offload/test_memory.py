"""Bytes of state and of pinned memory; memory that is refused changes nothing; memory of a device
that is still written to."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Beside, Net, on_device, parameter, set_gradient, steps  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from fused_adamw import offload  # noqa: E402
from fused_adamw._offload import engine, pump, ring  # noqa: E402
from fused_adamw._offload.lanes import Done, Way  # noqa: E402


def refuse(*_, **__):
    raise MemoryError("here")


def test_pinned_memory_is_of_a_fixed_size(monkeypatch):
    made = []
    real = torch.empty

    def empty(*args, **kwargs):
        made.append(args[0])
        return real(*args, **kwargs)

    monkeypatch.setattr(ring.torch, "empty", empty)
    with offload.simulated():
        large = offload.AdamW([torch.nn.Parameter(torch.zeros(40_000_000).bfloat16())])
        pinned, made = made, []
        assert sum(pinned) == 128 << 20
        offload.AdamW([torch.nn.Parameter(torch.zeros(100))])
        assert all(size & (size - 1) == 0 for size in [*pinned, *made])
        assert sum(made) <= 2 << 20
    del large


def test_no_memory_at_construction(monkeypatch):
    """Nothing has changed: neither the module nor the parameters have hooks."""
    monkeypatch.setattr(engine, "Ring", refuse)
    net = Net()
    with pytest.raises(MemoryError, match="here"):
        on_device(net.parameters(), module=net)
    assert not any(m._forward_pre_hooks for m in net.modules())
    monkeypatch.undo()
    on_device(net.parameters(), module=net)


@pytest.mark.parametrize("refused", ["pieces", "gradient"])
def test_no_memory_for_the_jobs_of_a_step(refused, monkeypatch):
    """Nothing has changed, on the CPU neither; the next step is taken."""
    params = on_host, p = [parameter(shape=(9,)), parameter()]
    opt, other = on_device(params, lr=1e-2), Beside(params, lr=1e-2)
    lanes, simulated = opt._engine().lanes, opt._engine().lanes.simulated
    lanes.of = lambda x: None if x is on_host else simulated
    steps(opt, *params, count=1)
    other.step()
    set_gradient(on_host, 1)
    p.grad = torch.randn(200, 300).bfloat16().t()  # whose memory is in another order
    place = (pump, "cut") if refused == "pieces" else (engine.torch, "empty_like")
    monkeypatch.setattr(*place, refuse)
    with pytest.raises(MemoryError, match="here"):
        opt.step()
    monkeypatch.undo()
    assert [opt.state[x]["step"] for x in params] == [1, 1]
    other.assert_equal(opt)
    other.step()
    opt.step()
    other.assert_equal(opt)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_no_memory_for_a_job_during_backward(max_grad_norm, monkeypatch):
    p = parameter()
    opt = on_device([p], lr=1e-2, max_grad_norm=max_grad_norm)
    other = Beside([p], lr=1e-2, own={"max_grad_norm": max_grad_norm})
    monkeypatch.setattr(pump, "cut", refuse)
    with pytest.raises(MemoryError, match="here"), opt.overlapped():
        p.square().sum().backward()
    monkeypatch.undo()
    assert not opt.state
    other.step()
    opt.step()
    other.assert_equal(opt)


def test_bytes_of_state():
    p = parameter(shape=(1 << 16,))
    expected = {"float32": 10.0, "bfloat16": 6.0, "8bit": 4.04}
    for state_dtype, most in expected.items():
        opt = on_device([p], lr=1e-2, state_dtype=state_dtype)
        steps(opt, p, count=1)
        nbytes = sum(x.nbytes for name, x in opt.state[p].items() if name != "step")
        assert nbytes / p.numel() <= most


class Gate:
    """A copy that is not done until it is opened."""

    def __init__(self):
        self.begun, self.opened = threading.Event(), threading.Event()
        self.query, self.synchronize = self.opened.is_set, self.opened.wait


class HeldLane(offload.CpuLane):
    """A lane whose copies to the device end when a gate is opened; keeps no tensors."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def copy(self, pairs, way, after):
        if way is Way.TO_DEVICE:
            self.gate.begun.set()
            return self.gate
        for target, source in pairs:
            target.copy_(source)
        return Done()


def test_the_memory_of_a_model_that_is_gone_is_kept_until_it_is_written():
    """Else it would be given to other tensors, which the last copies would overwrite."""
    lane, array = HeldLane(), np.ones(100, np.float32)
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight = torch.nn.Parameter(torch.from_numpy(array))
    freed = threading.Event()
    weakref.finalize(array, freed.set)
    with offload.simulated(lane):
        opt = offload.AdamW(model.parameters(), module=model)
    model.weight.grad = torch.ones(100)
    opt.step()
    assert lane.gate.begun.wait(10)
    del opt, model, array
    gc.collect()
    assert not freed.wait(0.3)
    lane.gate.opened.set()
    assert freed.wait(10)


def test_memory_of_the_device_is_not_kept_when_parameters_have_other():
    """As after ``model.cpu()``, without another step."""
    p = parameter()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    old = StorageWeakRef(p.untyped_storage())
    p.grad = None
    p.data = p.data.clone()
    end = time.monotonic() + 10
    while not old.expired() and time.monotonic() < end:
        time.sleep(1e-3)  # the copies of the step have been waited for, but not by all threads
    assert old.expired()
