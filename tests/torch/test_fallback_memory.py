"""Shared memory, and state that the kernels do not support: the result is that of
``torch.optim.AdamW``, to the last bit, or the same error."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import assert_as_torch, in_training, parameter  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


def two_of_one_storage():
    memory = torch.arange(10.0)
    params = [torch.nn.Parameter(memory[:6]), torch.nn.Parameter(memory[4:])]
    for p in params:
        p.grad = parameter((6,)).grad
    return params


def gradient_is_the_parameter():
    p = parameter()
    p.grad = p.detach()
    return [p]


def gradient_is_another_parameter():
    params = [parameter(), parameter()]
    params[1].grad = params[0].detach()
    return params


def beside_one_with_gaps():
    """The second is PyTorch's, and the gradient of the first is read before it is stepped."""
    memory = parameter((8,)).detach()
    params = [parameter((4,)), torch.nn.Parameter(memory[::2])]
    params[0].grad, params[1].grad = memory[:4], torch.ones(4)
    return params


@pytest.mark.parametrize(
    "make",
    [
        two_of_one_storage,
        gradient_is_the_parameter,
        gradient_is_another_parameter,
        beside_one_with_gaps,
    ],
)
def test_shared_memory(make):
    """The loop goes in the order of the parameters, and so must what shares memory."""
    assert_as_torch(make)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_twice():
    assert_as_torch(lambda: [parameter()] * 2)


def test_a_counter_of_two_parameters():
    """PyTorch counts it up once for each of them."""
    counts = []
    for kind in (AdamW, torch.optim.AdamW):
        params = [parameter(), parameter()]
        opt = kind(params)
        opt.step()
        opt.state[params[1]]["step"] = opt.state[params[0]]["step"]
        opt.step()
        counts.append(opt.state[params[0]]["step"].item())
    assert counts == [3, 3]


def test_a_lazy_copy_is_not_written_through():
    original = torch.ones(4)
    p = torch.nn.Parameter(torch._lazy_clone(original))
    p.grad = torch.ones(4)
    opt = AdamW([p])
    opt.step()
    assert original.equal(torch.ones(4))
    assert not p.equal(original)


# ---- state that is not ours


def whole_steps(opt, params):
    for state in opt.state.values():
        state["step"] = state["step"].long()


def state_of_another_layout(opt, params):
    for state in opt.state.values():
        state["exp_avg"] = state["exp_avg"].t().contiguous().t()


def half_steps(opt, params):
    for state in opt.state.values():
        state["step"] += 0.5


def amsgrad_from_now_on(opt, params):
    opt.param_groups[0]["amsgrad"] = bool(opt.state)


def parameter_is_double(opt, params):
    if opt.state:
        params[0].data, params[0].grad = params[0].data.double(), None
        params[0].grad = torch.ones_like(params[0])


@pytest.mark.parametrize(
    "change",
    [
        whole_steps,
        state_of_another_layout,
        half_steps,
        parameter_is_double,
        amsgrad_from_now_on,
    ],
)
def test_state_that_is_not_ours(change):
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        p = parameter()
        opt = in_training(kind, p)
        change(opt, [p])
        try:
            opt.step()
            results.append([p.detach(), *opt.state[p].values()])
        except (RuntimeError, KeyError) as error:
            results.append([type(error), str(error).splitlines()[0]])
    if isinstance(results[1][0], torch.Tensor):
        assert all(map(torch.equal, *results))
    else:
        assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_tensors_of_a_transform():
    """They have no memory of their own, though their class exports it."""

    def stepped(kind):
        def step(p, grad):
            p.grad = grad
            kind([p], lr=0.1).step()
            return p

        return torch.func.vmap(step)(torch.ones(2, 3), torch.full((2, 3), 0.5))

    assert stepped(AdamW).equal(stepped(torch.optim.AdamW))
