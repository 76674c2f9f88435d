"""Options that the kernels do not implement: the result is that of ``torch.optim.AdamW``, to the
last bit, or the same error."""

import types

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import assert_as_torch, assert_steps, parameter  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


@pytest.mark.parametrize(
    "options",
    [{"foreach": True}, {"fused": False}, {"foreach": True, "amsgrad": True, "maximize": True}],
    ids=str,
)
def test_options_that_ask_for_torch(options):
    assert_as_torch(lambda: [parameter(), parameter((5,), torch.float64)], **options)


def test_foreach_with_complex_parameters():
    """PyTorch's update needs ``has_complex``."""
    assert_as_torch(lambda: [parameter(dtype=torch.complex64), parameter()], foreach=True)


def test_options_that_are_changed_later():
    p = parameter()
    opt = AdamW([p])
    assert_steps(opt)
    opt.param_groups[0]["fused"] = False
    other = torch.optim.AdamW([torch.nn.Parameter(p.detach().clone())])
    other.load_state_dict(opt.state_dict())
    q = other.param_groups[0]["params"][0]
    q.grad = p.grad
    opt.step()
    other.step()
    assert p.equal(q)
    opt.param_groups[0]["fused"] = True
    assert_steps(opt)


def test_capturable_is_refused():
    with pytest.raises(AssertionError, match="If capturable=True"):
        AdamW([parameter()], capturable=True).step()
    assert_as_torch(lambda: [parameter()], capturable=True)


def test_a_graph_is_not_captured_by_accident(monkeypatch):
    """What is left to PyTorch may be on a device whose work is being recorded."""
    if not hasattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check"):
        pytest.skip("an older version asks in another way")
    opt = AdamW([parameter(dtype=torch.complex64)])
    stream = types.SimpleNamespace(is_capturing=lambda: True)
    device = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    with pytest.raises(RuntimeError, match="graph capture of step"):
        opt.step()


def test_differentiable():
    """The derivative of a first step by the lr, as the formula has it, where m_hat is the gradient
    and sqrt(v_hat) its magnitude. In float64 a dozen roundings come to less than 1e-12; PyTorch
    corrects the bias in the float32 of the step, which is exact for 1 - 1/2 and sqrt(1 - 3/4)."""
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start = parameter(dtype=torch.float64)
    p = start.clone()
    p.retain_grad()
    p.grad = start.grad
    AdamW([p], lr, (0.5, 0.75), differentiable=True, weight_decay=0.5).step()
    (slope,) = torch.autograd.grad(p.sum(), lr)
    expected = -(0.5 * start + start.grad / (start.grad.abs() + 1e-8)).sum()
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-12, atol=0)


def test_differentiable_as_torch():
    def make():
        p = parameter().detach().requires_grad_().clone()
        p.retain_grad()
        p.grad = parameter().grad
        return [p]

    assert_as_torch(make, differentiable=True, amsgrad=True)


def test_differentiable_in_a_group_only():
    """PyTorch goes by the optimizer's option when it turns autograd off."""

    def groups():
        return [{"params": [p], "differentiable": True} for p in (parameter(), parameter((5,)))]

    outcomes = []
    for kind in (AdamW, torch.optim.AdamW):
        opt = kind(groups())
        opt.step()
        outcomes.append([group["params"][0] for group in opt.param_groups])
    assert all(map(torch.equal, *outcomes))


def test_decay_that_is_not_decoupled():
    """An option of PyTorch's groups, which makes them those of Adam."""
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        p, q = parameter(), parameter()
        groups = [{"params": [p], "decoupled_weight_decay": False}, {"params": [q]}]
        opt = kind(groups, weight_decay=0.5)
        opt.step()
        opt.step()
        results.append(p)
    assert torch.equal(*results)
    assert not torch.equal(p, q)
