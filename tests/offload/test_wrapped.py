"""Optimizers inside an object whose class is derived from theirs, as Lightning wraps them."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Net, on_device  # noqa: E402

from fused_adamw.torch import AdamW, GroupPath  # noqa: E402


class Wrapper:
    """Has the attributes of the optimizer, and methods of the optimizer's class of its own."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Wrapped", (Wrapper, type(optimizer)), {})

    def step(self):
        return self._optimizer.step()

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def lightning_wrapper(optimizer):
    core = pytest.importorskip("lightning.pytorch.core.optimizer")
    return core.LightningOptimizer(optimizer)


WRAPPERS = [Wrapper, pytest.param(lightning_wrapper, marks=pytest.mark.slow)]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_what_a_wrapped_optimizer_shows(wrap):
    p = torch.nn.Parameter(torch.ones(300))
    opt = AdamW([p], state_dtype="8bit")
    wrapped = wrap(opt)
    assert wrapped.last_path == []
    p.grad = torch.ones(300)
    opt.step()
    assert wrapped.last_path == [GroupPath("kernels")]
    assert wrapped.state_nbytes == opt.state_nbytes > 600
    assert wrapped.exclusive() is opt.exclusive()
    saved = wrapped.state_dict(format="torch")["state"][0]
    assert saved.keys() == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_optimizer_updates_once_in_overlapped(wrap):
    nets = Net(torch.float32), Net(torch.float32)
    opts = [on_device(net.parameters(), lr=1e-2) for net in nets]
    wrapped = wrap(opts[1])
    for step in range(3):
        for net, blocks in zip(nets, (opts[0], wrapped), strict=True):
            with blocks.overlapped():
                net.loss(step).backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
    wrapped.synchronize()
    assert wrapped.last_path == opts[0].last_path
    assert wrapped.pinned_nbytes == opts[1].pinned_nbytes
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_optimizer_waits_for_its_module(wrap):
    nets = Net(torch.float32), Net(torch.float32)
    opts = [on_device(net.parameters(), lr=1e-2, module=net, max_grad_norm=0.5) for net in nets]
    wrapped = wrap(opts[1])
    for step in range(3):
        for net, opt in zip(nets, opts, strict=True):
            net.loss(step).backward()
            opt.step()
    opts[0].synchronize()
    wrapped.synchronize()
    assert wrapped.grad_norm == opts[0].grad_norm
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(p, q)
