"""``module``: updates run during the next forward, which waits for the parameters that it uses."""

import copy
import weakref
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Net, on_device  # noqa: E402


def test_the_step_returns_before_the_updates_and_takes_the_gradients():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, delay=2e-2, module=net)
    net.loss(0).backward()
    opt.step()
    assert opt._engine().pending
    assert all(p.grad is None for p in net.parameters())
    net.loss(1)  # waits for what it uses
    assert not opt._engine().pending
    opt.synchronize()


def test_each_module_waits_for_its_own_parameters():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, module=net)
    net.loss(0).backward()
    opt.step()
    net.norm(torch.zeros(1, 24, dtype=torch.bfloat16))
    pending = opt._engine().pending
    assert net.norm.weight not in pending
    assert net.inner.weight in pending


@pytest.mark.parametrize("use", ["forward", "state_dict"])
def test_a_model_waits_for_an_optimizer_that_is_gone(use):
    def train(net, **options):
        opt = on_device(net.parameters(), lr=1e-2, **options)
        net.loss(0).backward()
        opt.step()
        return weakref.ref(opt._engine())

    net, same = Net(), Net()
    train(same)
    engine = train(net, module=net, delay=0.1)
    for model in (net, same):
        _ = model.state_dict() if use == "state_dict" else model.eval().loss(1)
    assert all(map(torch.equal, net.parameters(), same.parameters()))
    assert engine() is None  # nor is its state kept
    net.loss(2)


@pytest.mark.parametrize("part", ["", "inner"])
def test_weights_that_are_loaded_are_not_updated_afterwards(part):
    net = Net()
    saved = copy.deepcopy(net.get_submodule(part).state_dict())
    opt = on_device(net.parameters(), lr=1e-2, delay=0.1, module=net)
    net.loss(0).backward()
    opt.step()
    net.get_submodule(part).load_state_dict(saved)
    opt.synchronize()
    for name, value in net.get_submodule(part).state_dict().items():
        assert torch.equal(saved[name], value), name


@pytest.mark.parametrize("part", ["", "inner"])
def test_a_state_dict_of_the_model_waits(part):
    net, same = Net(), Net()
    opt = on_device(net.parameters(), lr=1e-2, delay=1e-2, module=net)
    other = on_device(same.parameters(), lr=1e-2)
    for model, optimizer in ((net, opt), (same, other)):
        model.loss(0).backward()
        optimizer.step()
    saved = copy.deepcopy(net.get_submodule(part).state_dict())
    for name, value in same.get_submodule(part).state_dict().items():
        assert torch.equal(saved[name], value), name


def test_updates_follow_the_order_of_the_forward():
    class Reversed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            for part in reversed(self.parts):
                x = part(x)
            return x.sum()

    net = Reversed()
    opt = on_device(net.parameters(), lr=1e-2, module=net)
    for _ in range(2):
        net(torch.ones(2, 8)).backward()
        opt.step()
    used = [part.weight for part in reversed(net.parts)]
    assert [p for p in opt._engine().pending if p.ndim == 2] == used


class Merged(torch.nn.Module):
    """With ``merges`` it reads the weights of its parts without their forward."""

    merges = False

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(300, 300), torch.nn.Linear(300, 300)

    def forward(self, x):
        if self.merges:
            return x @ (self.second.weight @ self.first.weight).t()
        return self.second(self.first(x)).sum()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("is_part", [False, True])
def test_a_forward_in_validation_waits_for_all_that_it_may_read(is_part, mode):
    net, x = Merged(), torch.ones(2, 300)
    model = torch.nn.Sequential(net) if is_part else net
    opt = on_device(net.parameters(), lr=1e-2, delay=2e-2, module=model)
    net(x).backward()
    opt.step()
    net.merges = True
    net.train(mode is not torch.enable_grad)
    with mode():
        found = net(x)
        opt.synchronize()
        assert torch.equal(found, net(x))


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_use_outside_of_the_forward_of_a_module_is_refused(overlapped):
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, module=net)
    net.loss(0).backward()
    opt.step()
    loss = (net.inner.weight.float() ** 2).sum()

    def train():
        with opt.overlapped() if overlapped else nullcontext():
            loss.backward()
        opt.step()

    with pytest.raises(RuntimeError, match="must be used by the forward of the module"):
        train()


def test_parameters_that_were_replaced_are_noticed():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2, module=net)
    net.loss(0).backward()
    opt.step()
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    net.loss(0).backward()
    with pytest.raises(RuntimeError, match=r"module must keep .*; got \d+ new ones, as after"):
        opt.step()


def test_a_parameter_outside_of_the_module_is_waited_for():
    net, other = Net(), torch.nn.Linear(3, 3)
    opt = on_device([*net.parameters(), *other.parameters()], lr=1e-2, module=net)
    (net.loss(0) + other(torch.ones(3)).sum()).backward()
    before = other.weight.detach().clone()
    opt.step()
    assert not torch.equal(other.weight, before)
    assert other.weight not in opt._engine().pending
