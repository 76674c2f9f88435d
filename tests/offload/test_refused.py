"""What is refused, with nothing changed."""

import re

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import (  # noqa: E402
    on_device,
    parameter,
    set_gradient,
    steps,
)


def assert_refused(opt, good, error, match):
    """A step raises, and neither the good parameter nor the state is changed."""
    before = good.detach().clone()
    with pytest.raises(error, match=match):
        opt.step()
    assert torch.equal(good, before)
    assert not opt.state


def complex_parameter():
    return torch.nn.Parameter(torch.zeros(4, dtype=torch.complex64))


def with_gaps():
    return torch.nn.Parameter(torch.zeros(4, 8)[:, ::2])


def expanded():
    return torch.nn.Parameter(torch.zeros(1).expand(4))


def sparse():
    return torch.nn.Parameter(torch.eye(4).to_sparse())


def sparse_rows():
    return torch.nn.Parameter(torch.eye(4).to_sparse_csr())


def negated():
    return torch.nn.Parameter(torch._neg_view(torch.zeros(4)))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("make", "strides"),
    [
        (sparse_rows, None),
        *((complex_parameter, (1,)), (with_gaps, (8, 2)), (expanded, (0,)), (sparse, None)),
        (negated, (1,)),
    ],
)
def test_parameters_that_are_refused(make, strides):
    good, bad = parameter(shape=(9,)), make()
    opt = on_device([good, bad], lr=1e-2)
    set_gradient(good, 0)
    bad.grad = torch.zeros_like(bad)
    got = f"Parameter, {bad.dtype}, {bad.layout}, shape .*, strides {re.escape(str(strides))}"
    got += ", a negated view" if bad.is_neg() else ""
    match = f"parameter 1 must be dense .*; got {got}$"
    assert_refused(opt, good, TypeError, match)


def test_gradients_that_are_refused():
    good, bad = parameter(shape=(9,)), parameter(torch.float32, shape=(3, 3))
    opt = on_device([good, bad], lr=1e-2)
    set_gradient(good, 0)
    bad.grad = torch.eye(3).to_sparse()
    assert_refused(opt, good, TypeError, "the gradient of parameter 1 must be dense")
    bad.grad = torch._neg_view(torch.ones(3, 3))
    assert_refused(opt, good, TypeError, r"the gradient .* 1 must be dense .*, a negated view$")
    bad.grad = torch.ones(3, 3)
    bad.data = torch.ones(5)
    assert_refused(opt, good, TypeError, r"the gradient of parameter 1 must be .*, \(3, 3\)")


class Wrapper(torch.Tensor):
    """Without memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrapped(x):
            return x.inner if isinstance(x, Wrapper) else x

        found = function(*map(unwrapped, args), **(kwargs or {}))
        return cls(found) if isinstance(found, torch.Tensor) else found


def test_tensors_whose_class_decides_what_operations_do():
    good, bad = parameter(shape=(9,)), torch.nn.Parameter(Wrapper(torch.ones(3)))
    opt = on_device([good, bad], lr=1e-2)
    set_gradient(good, 0)
    bad.grad = Wrapper(torch.ones(3))
    assert_refused(opt, good, TypeError, "parameter 1 must be dense .*; got Wrapper, torch.float32")
    plain = parameter(torch.float32, shape=(3,))
    opt = on_device([good, plain], lr=1e-2)
    plain.grad = Wrapper(torch.ones(3))
    match = "the gradient of parameter 1 must be dense .*; got Wrapper, torch.strided"
    assert_refused(opt, good, TypeError, match)


def test_gradients_in_the_memory_of_parameters():
    memory = torch.ones(12)
    params = [torch.nn.Parameter(memory[i : i + 3]) for i in (6, 0, 3)]
    opt = on_device(params, lr=1e-2)
    for p in params:
        p.grad = memory[9:]  # the same one for all
    opt.step()
    params[0].grad = memory[2:5]
    before, steps_before = memory.clone(), opt.state[params[0]]["step"].clone()
    match = "the gradient of parameter 0 must not share memory with parameter 2"
    with pytest.raises(ValueError, match=match):
        opt.step()
    assert torch.equal(memory, before)
    assert opt.state[params[0]]["step"] == steps_before


def test_expanded_gradients_beside_parameters():
    """Of such a gradient only one element is in memory."""
    memory = torch.ones(301)
    p = torch.nn.Parameter(memory[1:])
    opt = on_device([p], lr=1e-2)
    p.grad = memory[:1].expand(300)
    opt.step()
    assert opt.state[p]["step"] == 1
    for begin in (1, 150, 300):
        p.grad = memory[begin : begin + 1].expand(300)
        with pytest.raises(ValueError, match="must not share memory with parameter 0"):
            opt.step()


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e9])
def test_a_norm_that_is_set_after_updates_have_begun(max_grad_norm):
    p = parameter(torch.float32, shape=(30,))
    opt = on_device([p], lr=1e-2)
    with opt.overlapped():
        (p * p).sum().backward()
    opt.max_grad_norm = max_grad_norm
    with pytest.raises(RuntimeError, match=r"max_grad_norm must be set before overlapped\(\)"):
        opt.step()
    opt.max_grad_norm = None
    opt.step()
    assert opt.state[p]["step"] == 1


def test_dtypes_that_a_format_does_not_support():
    good, bad = parameter(shape=(9,)), parameter(torch.float64, shape=(9,))
    opt = on_device([good, bad], lr=1e-2, state_dtype="8bit")
    for p in (good, bad):
        set_gradient(p, 0)
    match = (
        "parameter 1 must be dense and of .* with state_dtype='8bit'; "
        r"got Parameter, torch.float64 \(needs state_dtype=None\), torch.strided"
    )
    assert_refused(opt, good, TypeError, match)


def test_shared_memory_is_refused():
    memory = torch.zeros(10)
    params = [torch.nn.Parameter(memory[:6]), torch.nn.Parameter(memory[5:])]
    opt = on_device(params, lr=1e-2)
    for p in params:
        set_gradient(p, 0)
    refused = "parameter 0 must not share memory with parameter 1"
    with pytest.raises(ValueError, match=refused):
        opt.step()
    with pytest.raises(ValueError, match=refused), opt.overlapped():
        pass
    assert not memory.any()


def test_parameters_may_lie_side_by_side():
    memory = torch.zeros(10)
    params = [torch.nn.Parameter(memory[:6]), torch.nn.Parameter(memory[6:])]
    opt = on_device(params, lr=1e-2)
    with opt.overlapped():
        sum(p.sum() for p in params).backward()
    opt.step()
    opt.synchronize()
    assert memory.all()


def test_state_that_shares_memory_is_refused():
    params = [parameter(shape=(9,)) for _ in range(3)]
    opt = on_device(params, lr=1e-2)
    steps(opt, *params)
    opt.state[params[2]]["exp_avg"] = opt.state[params[0]]["exp_avg_sq"]
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        with pytest.raises(ValueError, match="the m of parameter 2 must not share memory with"):
            opt.step()
    opt.zero_grad()
    with pytest.raises(ValueError, match="must not share memory with"), opt.overlapped():
        params[2].sum().backward()
    assert all(map(torch.equal, params, before))
    opt.state[params[2]]["exp_avg"] = torch.zeros(9)
    opt.step()


@pytest.mark.parametrize("name", ["foreach", "capturable", "differentiable"])
def test_options_of_pytorchs_updates_are_refused(name):
    p = parameter(torch.float32, shape=(9,))
    opt = on_device([p], state_dtype=None, master_weights=False, **{name: True})
    set_gradient(p, 0)
    with pytest.raises(ValueError, match=f"^{name} must be .*False with off-loading; got True$"):
        opt.step()
    assert not opt.state


@pytest.mark.parametrize("lr", [-1.0, float("nan"), "1"])
def test_a_learning_rate_that_is_refused(lr):
    good, bad = parameter(shape=(9,)), parameter(shape=(9,))
    opt = on_device([{"params": [good]}, {"params": [bad]}], lr=1e-2)
    opt.param_groups[1]["lr"] = lr
    for p in (good, bad):
        set_gradient(p, 0)
    assert_refused(opt, good, (TypeError, ValueError), "lr must be")


def test_state_that_is_refused():
    p = parameter(shape=(9,))
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    for broken, match in (
        ({"exp_avg": torch.zeros(8)}, "the m of parameter 0 must be float32 of 9 elements"),
        ({"exp_avg": torch.zeros(9, dtype=torch.float64)}, "the m of parameter 0 must be float32"),
        ({"exp_avg": torch.zeros(3, 3)}, "the m of parameter 0 must be float32 of 9 elements"),
        ({"step": torch.tensor(-1.0)}, "whole number; got -1.0"),
        ({"step": torch.tensor(0.5)}, "whole number; got 0.5"),
        ({"step": torch.tensor(torch.inf)}, "whole number; got inf"),
        ({"exp_avg": torch._neg_view(torch.zeros(9))}, "the m of parameter 0 must be float32"),
        ({"exp_avg": torch.zeros(9, device="meta")}, "the m .* in host memory .* on meta$"),
    ):
        kept = dict(opt.state[p])
        opt.state[p].update(broken)
        before = p.detach().clone()
        with pytest.raises(TypeError, match=match):
            opt.step()
        assert torch.equal(p, before)
        opt.state[p].update(kept)
    for name in ("exp_avg", "step"):
        kept = opt.state[p].pop(name)
        with pytest.raises(KeyError, match="parameter 0 must have step, exp_avg"):
            opt.step()
        opt.state[p][name] = kept
    opt.step()


def test_state_in_another_order_than_its_parameter_is_refused():
    p = parameter(shape=(3, 4))
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    before = p.detach().clone()
    for other in (torch.zeros(4, 3).t(), torch.zeros(4, 3), torch.zeros(24)[::2]):
        opt.state[p]["exp_avg"] = other
        with pytest.raises(TypeError, match="the m of parameter 0 must be float32 of 12 elements"):
            opt.step()
        assert torch.equal(p, before)


@pytest.mark.parametrize("stride", [12, 7, 1])
def test_strides_of_dimensions_of_one_element_have_no_order(stride):
    p = torch.nn.Parameter(parameter(shape=(12,)).detach().as_strided((1, 12), (stride, 1)))
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    opt.state[p]["exp_avg"] = torch.zeros(12, 1).t()
    opt.step()
    assert opt.state[p]["step"] == 3


@pytest.mark.parametrize(
    ("options", "change", "error", "message"),
    [
        ({}, {"state_dtype": "fp8"}, ValueError, "state_dtype must be None, .*; got 'fp8'"),
        ({"state_dtype": "8bit"}, {"amsgrad": True}, ValueError, "amsgrad must be False with"),
        ({}, {"master_weights": None}, TypeError, "master_weights must be a bool; got None"),
        ({}, {"ema_decay": 2.0}, ValueError, "ema_decay must be"),
    ],
)
def test_options_that_were_set_between_steps(options, change, error, message):
    p = parameter(torch.float32, (9,))
    opt = on_device([p], lr=1e-2, **options)
    set_gradient(p, 1)
    opt.param_groups[0].update(change)
    assert_refused(opt, p, error, f"^{message}")
