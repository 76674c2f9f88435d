"""What updates that begin during backward refuse."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Net, on_device, parameter  # noqa: E402


def test_two_backwards_are_refused():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2)
    with opt.overlapped():
        net.loss(0).backward()
        with pytest.raises(RuntimeError, match="must have one gradient"):
            net.loss(1).backward()


def test_a_weight_that_backward_still_needs():
    """PyTorch notices that it was written."""
    w = torch.nn.Parameter(torch.randn(4, 4))
    v = torch.nn.Parameter(torch.randn(4, 4))
    opt = on_device([w, v], lr=1e-2)
    x = torch.randn(4, 4) @ w.detach().clone().requires_grad_(False)
    loss = ((x @ v) @ w.detach()) @ w  # the gradient of v needs w after that of w
    with pytest.raises(RuntimeError, match="modified by an inplace operation"), opt.overlapped():
        loss.sum().backward()


@pytest.mark.parametrize("what", ["clip", "scale", "lr"])
def test_changes_after_an_update_has_begun_are_refused(what):
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2)
    with opt.overlapped():
        net.loss(0).backward()
    if what == "clip":
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    elif what == "lr":
        opt.param_groups[0]["lr"] = 1e-3
    else:
        opt.grad_scale = torch.tensor(2.0)
    with pytest.raises(RuntimeError, match=r"overlapped\(\)"):
        opt.step()


@pytest.mark.parametrize(
    ("what", "changed", "instead"),
    [
        ("gradients", [1, 3], "Clip with max_grad_norm instead"),
        ("options such as lr", [2, 3], "Change them after step() instead"),
    ],
)
def test_what_has_changed_is_named(what, changed, instead):
    params = [parameter(torch.float32, (9,), seed) for seed in range(4)]
    opt = on_device([{"params": params[:2]}, {"params": params[2:]}], lr=1e-2, delay=0.02)
    with opt.overlapped():
        sum(p.sum() for p in params).backward()
    if what == "gradients":
        params[1].grad.mul_(2)
        params[3].grad = torch.zeros(9)
    else:
        opt.param_groups[1]["lr"] = 1e-3
    with pytest.raises(RuntimeError) as raised:
        opt.step()
    assert str(raised.value) == (
        f"{what} must be the same in overlapped() and in step(); got changes for parameters "
        f"{changed}, which were updated with the old ones; the others are not updated. {instead}"
    )
    found = [p.detach().clone() for p in params]
    opt.synchronize()
    assert all(map(torch.equal, found, params))  # they had been updated when the error was raised
    opt.zero_grad()
    with opt.overlapped():  # the next step
        sum(p.sum() for p in params).backward()
    opt.step()
    assert {int(entry["step"]) for entry in opt.state.values()} == {2}


@pytest.mark.parametrize("error", [ZeroDivisionError, TypeError])
def test_parameters_are_whole_after_an_error(error):
    """Nothing waits for the updates that have begun before a program reads the parameters."""
    params = [parameter(torch.float32, (9,), seed) for seed in range(3)]
    opt = on_device(params, lr=1e-2, delay=0.02)
    before = [p.detach().clone() for p in params]

    def train():
        with opt.overlapped():
            sum(p.sum() for p in params[:2]).backward()
            if error is ZeroDivisionError:
                raise error
        params[2].grad = torch.ones(9).to_sparse()
        opt.step()

    with pytest.raises(error):  # in the block, or in the step
        train()
    found = [p.detach().clone() for p in params]
    opt.synchronize()
    assert all(map(torch.equal, found, params))
    assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [False, False, True]


@pytest.mark.parametrize("step", [-1.0, 0.5])
def test_a_number_of_steps_that_is_refused(step):
    p = parameter(shape=(9,))
    opt = on_device([p], lr=1e-2)
    with opt.overlapped():
        p.sum().backward()
    opt.step()
    opt.state[p]["step"].fill_(step)
    before = p.detach().clone()
    with pytest.raises(TypeError, match=f"must be a whole number; got {step}"), opt.overlapped():
        p.sum().backward()
    assert torch.equal(p, before)


def test_grad_scaler_is_refused():
    net = Net(torch.float32)
    opt = on_device(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    with opt.overlapped():
        scaler.scale(net.loss(0)).backward()
    with pytest.raises(RuntimeError, match=r"overlapped\(\) does not support GradScaler"):
        scaler.step(opt)


def test_gradients_that_processes_average_are_refused(monkeypatch):
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="does not support gradients that are averaged"):
        opt.overlapped()


class GradientInAnotherParameter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, other):
        ctx.other = other
        return (p * other).sum()

    @staticmethod
    def backward(ctx, _):
        return ctx.other.data, None


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_gradient_in_the_memory_of_another_parameter(max_grad_norm):
    p, other, fixed = (parameter(torch.float32, (9,), seed) for seed in range(3))
    fixed.requires_grad_(False)  # no update writes to it
    opt = on_device([p, other, fixed], lr=1e-2, max_grad_norm=max_grad_norm)
    with opt.overlapped():
        (GradientInAnotherParameter.apply(p, fixed) + other.sum()).backward()
    opt.step()
    opt.zero_grad()
    before = p.detach().clone()
    match = "the gradient of parameter 0 must not share memory with parameter 1"
    with pytest.raises(ValueError, match=match), opt.overlapped():
        GradientInAnotherParameter.apply(p, other).backward()
    assert torch.equal(p, before)
    assert opt.state[p]["step"] == 1


def test_gradients_that_ddp_of_one_process_replaces(monkeypatch):
    """The message says what to do; one process alone may have other reasons to be in a group."""
    p = parameter(torch.float32, (9,))
    opt = on_device([p], lr=1e-2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    with opt.overlapped():
        p.sum().backward()
    p.grad = p.grad.clone()
    with pytest.raises(RuntimeError, match=r"; with DistributedDataParallel, use step\(\) alone$"):
        opt.step()
