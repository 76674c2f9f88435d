"""Groups, and what PyTorch has around an optimizer: scalers, closures, checkpoints."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import (  # noqa: E402
    Beside,
    Net,
    as_bytes,
    on_device,
    parameter,
    set_gradient,
)

from fused_adamw.torch import AdamW as ForHost  # noqa: E402


def test_a_group_that_is_added_later():
    first, second = parameter(), parameter(seed=1)
    opt = on_device([first], lr=1e-2)
    other = Beside([first], lr=1e-2)
    set_gradient(first, 0)
    other.step()
    opt.step()
    opt.add_param_group({"params": [second], "lr": 1e-3})
    later = Beside([second], lr=1e-3)
    for p in (first, second):
        set_gradient(p, 1)
    other.step([first.grad])
    later.step([second.grad])
    opt.step()
    other.assert_equal(opt)
    np.testing.assert_array_equal(as_bytes(second), as_bytes(later.arrays[0]))


@pytest.mark.parametrize("lacks_seed", [False, True])
def test_parameters_on_the_host_take_their_own_way(lacks_seed):
    """Beside those of a device, with the numbers that they have among all, and the same seed."""
    params = [parameter(seed=i, shape=(70,)) for i in range(4)]
    same = [torch.nn.Parameter(p.detach().clone()) for p in params]
    options = {"lr": 1e-2, "state_dtype": "8bit", "master_weights": False, "seed": 5}
    opt, other = on_device(params, **options), ForHost(same, **options)
    for group in (*opt.param_groups, *other.param_groups):
        if lacks_seed:
            del group["seed"]
    lanes, simulated = opt._engine().lanes, opt._engine().lanes.simulated
    lanes.of = lambda p: None if p in set(params[1::2]) else simulated
    for seed in range(3):
        for p, q in zip(params, same, strict=True):
            set_gradient(p, seed)
            q.grad = p.grad.clone()
        opt.step()
        other.step()
    for p, q in zip(params, same, strict=True):
        assert torch.equal(p, q)


def test_a_parameter_that_is_taken_out_of_a_group():
    """The others have smaller numbers then, and other random ones."""
    params = [parameter(seed=i, shape=(70,)) for i in range(3)]
    same = [torch.nn.Parameter(p.detach().clone()) for p in params]
    options = {"lr": 1e-2, "state_dtype": "8bit", "master_weights": False, "seed": 5}
    opt, other = on_device(params, **options), ForHost(same, **options)
    for taken_out in (False, True):
        if taken_out:
            del opt.param_groups[0]["params"][0], other.param_groups[0]["params"][0]
        for p, q in zip(params, same, strict=True):
            set_gradient(p, 0)
            q.grad = p.grad.clone()
        opt.step()
        other.step()
    assert all(map(torch.equal, params, same))


def test_grad_scaler():
    """It leaves unscaling to the kernels, and a step with infinite gradients is not taken."""
    p, q = parameter(torch.float16), parameter(torch.float16)
    opt = on_device([p], lr=1e-2)
    other = Beside([q], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    set_gradient(p, 0)
    scaled = p.grad.clone()
    q.grad = scaled
    other.opt.step([[np.asarray(scaled)]], grad_scale=0.25)
    scaler.step(opt)
    scaler.update()
    np.testing.assert_array_equal(as_bytes(p), as_bytes(other.arrays[0]))
    assert torch.equal(p.grad, scaled / 4)
    before = p.detach().clone()
    p.grad[0, 0] = float("inf")
    scaler.step(opt)
    assert torch.equal(p, before)


def test_a_closure():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2)

    def closure():
        opt.zero_grad()
        loss = net.loss(0)
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(3)]
    assert losses[-1] < losses[0]


def test_distributed_checkpoints_of_pytorch():
    pytest.importorskip("torch.distributed.checkpoint")
    if not torch.distributed.is_available():
        pytest.skip("needs torch.distributed")
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    net, other = Net(), Net()
    opt, resumed = on_device(net.parameters(), lr=1e-2), on_device(other.parameters(), lr=1e-2)
    net.loss(0).backward()
    net.unused.grad = torch.ones_like(net.unused)  # PyTorch wants state of all
    opt.step()
    saved = copy.deepcopy(get_optimizer_state_dict(net, opt))
    other.load_state_dict(net.state_dict())
    set_optimizer_state_dict(other, resumed, saved)
    other.zero_grad()
    opt.zero_grad()
    for model, optimizer in ((net, opt), (other, resumed)):
        model.loss(1).backward()
        optimizer.step()
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        if p in opt.state:
            for key, value in opt.state[p].items():
                assert torch.equal(value, resumed.state[q][key]), (name, key)
