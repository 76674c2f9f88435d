"""What other code does to parameters, gradients and optimizers between steps."""

import copy
import gc
import os
import pickle
import signal
import threading
import time

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import (  # noqa: E402
    SMALLEST,
    Beside,
    Net,
    as_bytes,
    on_device,
    parameter,
    set_gradient,
    steps,
)

from fused_adamw import offload  # noqa: E402
from fused_adamw._offload import engine, pump, ring  # noqa: E402
from fused_adamw.torch import AdamW as ForHost  # noqa: E402

# ---- weights written by other code


def write_by_copy(p, new):
    with torch.no_grad():
        p.copy_(new)


def write_by_loading(p, new):
    holder = torch.nn.Module()
    holder.p = p
    holder.load_state_dict({"p": new})


def replace_data(p, new):
    p.data = new.clone()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("write", [write_by_copy, write_by_loading, replace_data])
def test_weights_that_other_code_writes_are_noticed(write, dtype):
    """The master weights start from them, as in a new optimizer with these moments."""
    p, new = parameter(dtype), parameter(dtype, seed=5).detach()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    write(p, new)
    fresh = torch.nn.Parameter(new.clone())
    other = ForHost([fresh], lr=1e-2, state_dtype="float32", master_weights=True)
    saved = copy.deepcopy(opt.state_dict())
    del saved["state"][0]["master"]
    other.load_state_dict(saved)
    steps(opt, p, count=1, first=7)
    steps(other, fresh, count=1, first=7)
    assert torch.equal(p, fresh)
    assert torch.equal(opt.state[p]["master"], other.state[fresh]["master"])


@pytest.mark.parametrize("refresh", [False, True])
def test_refresh_after_writes_that_pytorch_does_not_count(refresh):
    p, new = parameter(torch.float16), parameter(torch.float16, seed=5).detach()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    p.data.copy_(new)
    if refresh:
        opt.refresh()
    steps(opt, p, count=1)
    assert ((p - new).abs().max() < 0.1) == refresh


def test_refresh_before_the_first_step_after_loading():
    p, new = parameter(torch.float16), parameter(torch.float16, seed=5).detach()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    opt.load_state_dict(opt.state_dict())
    p.data.copy_(new)
    opt.refresh()
    steps(opt, p, count=1)
    assert (p - new).abs().max() < 0.1


def test_two_optimizers_of_one_parameter():
    """Each notices what the other has written."""
    p, q = parameter(torch.float16), parameter(torch.float16)
    pair = on_device([p], lr=1e-2), on_device([p], lr=1e-2)
    for opt in pair:
        steps(opt, p)
    third = on_device([q], lr=1e-2)
    steps(third, q)
    before = p.detach().clone()
    steps(pair[0], p, count=1)
    assert 0 < (p - before).abs().max() < 0.1


# ---- state dicts


@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_training_goes_on_from_a_state_dict(state_dtype):
    p, q = parameter(), parameter()
    opt = on_device([p], lr=1e-2, state_dtype=state_dtype)
    steps(opt, p)
    with torch.no_grad():
        q.copy_(p)
    resumed = on_device([q], lr=5.0, state_dtype=state_dtype)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    steps(opt, p, first=2)
    steps(resumed, q, first=2)
    assert torch.equal(p, q)


def test_state_dicts_go_to_and_from_the_other_classes():
    for kind in (ForHost, torch.optim.AdamW):
        p, q = parameter(torch.float32), parameter(torch.float32)
        opt, other = on_device([p], lr=1e-2), kind([q], lr=1e-2)
        steps(opt, p)
        steps(other, q)
        saved, others = copy.deepcopy((opt.state_dict(), other.state_dict()))
        with torch.no_grad():
            q.copy_(p)
        opt.load_state_dict(others)
        other.load_state_dict(saved)
        steps(opt, p, first=2)
        steps(other, q, first=2)
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert opt.state[p]["step"] == other.state[q]["step"] == 4


def test_loaded_state_is_a_copy_in_the_order_of_the_parameter():
    p = torch.nn.Parameter(parameter(torch.float32).detach().t())
    opt = on_device([p], lr=1e-2)
    moments = torch.rand(p.shape)
    saved = {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments.clone()}
    opt.load_state_dict({"state": {0: saved}, "param_groups": opt.state_dict()["param_groups"]})
    assert opt.state[p]["exp_avg"].stride() == p.stride()
    assert torch.equal(opt.state[p]["exp_avg"], moments)
    steps(opt, p, count=1)
    assert torch.equal(saved["exp_avg"], saved["exp_avg_sq"])


def test_loading_gives_pytorch_no_state_to_move_to_the_device(monkeypatch):
    p = parameter()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)

    def refuse(*_, **__):
        raise AssertionError("PyTorch would allocate state on the device")

    optimizer = torch.optim.Optimizer
    monkeypatch.setattr(optimizer, "_process_value_according_to_param_policy", refuse)
    opt.load_state_dict(opt.state_dict())
    assert opt.state[p]["exp_avg"].any()


def test_hooks_of_the_user_see_the_whole_state_dict():
    p = parameter()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    seen = []
    opt.register_load_state_dict_pre_hook(lambda _, saved: seen.append(len(saved["state"])))
    opt.register_load_state_dict_post_hook(lambda opt: seen.append(len(opt.state[p])))
    opt.load_state_dict(opt.state_dict())
    assert seen == [1, 4]


def test_parameters_without_state_get_none_by_loading():
    p, q = parameter(), parameter()
    opt = on_device([p, q], lr=1e-2)
    steps(opt, p)
    opt.load_state_dict(opt.state_dict())
    assert list(opt.state) == [p]


# ---- copies, processes, threads


def test_copies_and_pickles_go_on_by_themselves():
    p = parameter()
    with offload.simulated(slots=1, slot_bytes=SMALLEST):
        opt = offload.AdamW([p], lr=1e-2, max_grad_norm=0.5)
        steps(opt, p)
        copies = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
        for other in copies:
            steps(other, *other.param_groups[0]["params"], first=2)
            assert other.max_grad_norm == 0.5
    steps(opt, p, first=2)
    for other in copies:
        (q,) = other.param_groups[0]["params"]
        assert torch.equal(p, q)
        assert other.grad_norm == opt.grad_norm


@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_have_no_module(through):
    """Their step waits, and leaves the gradients."""
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, delay=1e-2, module=net)
    other = through(opt)
    with offload.simulated(offload.CpuLane(delay=1e-2), slots=1, slot_bytes=SMALLEST):
        (q, *_) = other.param_groups[0]["params"]
        steps(other, q, count=1)
    assert q.grad is not None
    assert not other._engine().pending
    net.loss(0).backward()
    opt.step()
    assert all(p.grad is None for p in net.parameters())
    assert opt._engine().pending
    opt.synchronize()


def test_models_with_hooks_can_be_copied_and_pickled():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, delay=1e-2, module=net)
    net.loss(0).backward()
    opt.step()
    opt.synchronize()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.loss(1), net.loss(1))


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


# ---- memory


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
