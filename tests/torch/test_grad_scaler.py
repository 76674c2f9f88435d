"""Loss scaling: ``torch.amp.GradScaler``."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import assert_same_state, assert_steps, parameter  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


def backward(opt, scaler, grads):
    """Leave ``grads``, times the scale, as the gradients."""
    opt.zero_grad()
    loss = sum((p * grad).sum() for p, grad in grads.items())
    scaler.scale(loss).backward()


def scaled_step(opt, scaler):
    scaler.step(opt)
    scaler.update()


@pytest.fixture
def grads():
    params = [parameter((4, 3), seed=1), parameter((5,), torch.float64, seed=2)]
    return {p: p.grad for p in params}


@pytest.mark.filterwarnings("error")
def test_grad_scaler(grads, fused):
    """Scales are powers of two, so that unscaling is exact."""
    opt = AdamW(list(grads), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for _ in range(4):
        backward(opt, scaler, grads)
        assert_steps(opt, lambda: scaled_step(opt, scaler), grads)
        assert all(p.grad.equal(grad) for p, grad in grads.items())  # unscaled
    assert scaler.get_scale() == 2.0**12
    assert not hasattr(opt, "found_inf")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("first", [True, False])
def test_an_overflow_makes_a_step_do_nothing(grads, first, value, fused):
    opt = AdamW(list(grads), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    if not first:
        backward(opt, scaler, grads)
        assert_steps(opt, lambda: scaled_step(opt, scaler), grads)
    before = [p.detach().clone() for p in grads]
    state = copy.deepcopy(opt.state_dict())
    p, _ = grads
    bad = {**grads, p: torch.where(torch.arange(12).reshape(4, 3) == 5, value, grads[p])}
    backward(opt, scaler, bad)
    scaled_step(opt, scaler)
    assert scaler.get_scale() == 2.0**9
    assert all(map(torch.equal, grads, before))
    if not first:
        assert_same_state(opt.state_dict(), state)
    backward(opt, scaler, grads)
    assert_steps(opt, lambda: scaled_step(opt, scaler), grads)


def test_unscaled_and_clipped(grads, fused):
    opt = AdamW(list(grads), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        backward(opt, scaler, grads)
        scaler.unscale_(opt)
        assert torch.nn.utils.clip_grad_norm_(list(grads), 0.5) > 0.5
        assert_steps(opt, lambda: scaled_step(opt, scaler))


def test_a_scale_of_any_size(grads):
    """What PyTorch's fused update leaves in the gradients, it steps with: a quotient, rounded."""
    opt = AdamW(list(grads), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    backward(opt, scaler, grads)
    quotients = {p: p.grad / 1000.0 for p in grads}
    assert_steps(opt, lambda: scaled_step(opt, scaler), quotients)
    assert all(p.grad.equal(grad) for p, grad in quotients.items())


@pytest.mark.filterwarnings("ignore:PyTorch, not fused_adamw:UserWarning")
def test_gradients_of_a_dtype_that_no_kernel_supports():
    scaled, unscaled = ([parameter((4, 3)), parameter((4, 3), torch.complex64)] for _ in range(2))
    opt, other = AdamW(scaled, lr=0.1), AdamW(unscaled, lr=0.1)
    for p in unscaled:
        p.grad /= 4
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    opt.step()
    other.step()
    assert all(map(torch.equal, scaled, unscaled))


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_unscaling_is_not_recorded():
    """Of a gradient that has a graph of its own."""
    p = parameter()
    (p**3).sum().backward(create_graph=True)
    opt = AdamW([p], fused=True)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    before = p.grad.grad_fn.name()
    opt.step()
    assert p.grad.grad_fn.name() == before
