"""Copies and pickles of optimizers and models go on by themselves."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import SMALLEST, Net, on_device, parameter, steps  # noqa: E402

from fused_adamw import offload  # noqa: E402


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
