"""Tensors that the kernels do not support: the result is that of ``torch.optim.AdamW``, to the
last bit, or the same error."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import (  # noqa: E402
    LOOP,
    STATE,
    assert_as_torch,
    assert_steps,
    in_training,
    outcome,
    parameter,
)

from fused_adamw.torch import AdamW  # noqa: E402


class Special(torch.nn.Parameter):
    pass


def special(dtype=torch.float32):
    like = parameter(dtype=dtype)
    p = Special(like.detach())
    p.grad = like.grad
    return p


def on_meta():
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    p.grad = torch.empty(3, device="meta")
    return p


def sparse():
    p = parameter()
    p.grad = p.grad.to_sparse()
    return p


def negated(which, gaps=False):
    def make():
        p = parameter((12,))
        view = torch._neg_view(parameter((12,), seed=1).detach())
        if gaps:
            view = parameter((12,), torch.complex64).detach().conj().imag
        assert view.is_neg()
        if which == "param":
            p, grad = view.requires_grad_(), p.grad
            p.grad = grad
        else:
            p.grad = view
        return p

    return make


def zero_gradient():
    p = parameter()
    p.grad = torch._efficientzerotensor(p.shape)
    return p


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def with_gaps(dtype=torch.float32):
    return parameter((4, 6), dtype, layout=lambda x: x[:, ::2])


def expanded():
    p = torch.nn.Parameter(torch.ones(3, 1).expand(3, 4))
    p.grad = torch.ones(3, 4)
    return p


def gradient_of_another_layout(dtype=torch.float32):
    p = parameter((4, 3), dtype)
    p.grad = p.grad.t().contiguous().t()
    return p


ALONE = {
    "complex": lambda: parameter(dtype=torch.complex64),
    "class": special,
    "class, bfloat16": lambda: special(torch.bfloat16),
    "class, float16": lambda: special(torch.float16),
    "with gaps": with_gaps,
    "gradient of another layout": gradient_of_another_layout,
    "gradient that negates": negated("grad"),
    "parameter that negates": negated("param"),
    "gradient that negates, with gaps": negated("grad", gaps=True),
    "parameter that negates, with gaps": negated("param", gaps=True),
    "gradient of no memory": zero_gradient,
    "expanded": expanded,
    "sparse": sparse,
    "meta": on_meta,
}


@pytest.mark.parametrize("name", ALONE)
def test_tensors_that_are_not_ours(name):
    assert_as_torch(lambda: [ALONE[name]()])


@pytest.mark.parametrize(
    "name", ["complex", "sparse", "meta", "gradient that negates", "parameter that negates"]
)
def test_what_fused_refuses(name):
    assert_as_torch(lambda: [ALONE[name]()], fused=True)


@pytest.mark.parametrize("name", ["class", "class, bfloat16", "class, float16"])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}], ids=str)
def test_what_fused_serves(name, options):
    """PyTorch's fused update, to the bit."""
    assert_as_torch(lambda: [ALONE[name](), ALONE[name]()], fused=True, **options)


@pytest.mark.parametrize(
    "make",
    [
        with_gaps,
        gradient_of_another_layout,
        lambda: with_gaps(torch.bfloat16),
        lambda: gradient_of_another_layout(torch.bfloat16),
        negated("grad", gaps=True),
        negated("param", gaps=True),
        expanded,
    ],
)
def test_what_fused_would_get_wrong(make):
    """PyTorch's fused update disregards strides, and writes beyond an expanded parameter; its loop
    is right."""
    in_the_loop = {"fused": False}
    if make is expanded:
        with pytest.raises(RuntimeError, match="single memory location"):
            AdamW([make()], fused=True).step()
        return
    assert_as_torch(lambda: [make()], fused=True, theirs=in_the_loop)


@pytest.mark.parametrize("key", STATE)
def test_fused_and_a_state_of_another_layout(key):
    params = []
    for kind, how in ((AdamW, {"fused": True}), (torch.optim.AdamW, LOOP)):
        p = special(torch.bfloat16)
        opt = in_training(kind, p, amsgrad=True, **how)
        opt.state[p][key] = opt.state[p][key].t().contiguous().t()
        opt.step()
        params.append(p)
    assert torch.equal(*params)


def test_gaps_that_all_tensors_have(fused):
    """Strides agree, and there is other memory between the elements."""
    params = []
    for kind, how in ((AdamW, {"fused": fused}), (torch.optim.AdamW, LOOP)):
        p = with_gaps()
        opt = in_training(kind, p, **how)
        for key in STATE[:2]:
            opt.state[p][key] = torch.ones(4, 6)[:, ::2]
        assert opt.state[p]["exp_avg"].stride() == p.stride() == p.grad.stride()
        opt.step()
        params.append(p)
    assert torch.equal(*params)


def test_fused_takes_any_dense_layout():
    """The strides of a dimension of one element have no meaning."""

    def make():
        kernel = torch.ones(64, 3, 1, 1, dtype=torch.bfloat16)
        kernel = Special(kernel.as_strided(kernel.shape, (3, 1, 9, 9)))
        kernel.grad = parameter((64, 3, 1, 1), torch.bfloat16).grad
        assert kernel.stride() != kernel.grad.stride()
        last = parameter((2, 3, 4, 5), torch.bfloat16, layout=channels_last)
        special_last = Special(last.detach())
        special_last.grad = last.grad
        return [kernel, special_last]

    assert_as_torch(make, fused=True)


def test_a_mixed_group(fused):
    """Each part ends up as if it were alone; what is ours, as the twin has it."""
    others = ["class, bfloat16", "class", "with gaps", "gradient of another layout"]
    if not fused:
        others += ["complex", "gradient of no memory"]
        others += ["gradient that negates", "parameter that negates"]
    ours = [parameter((7,)), parameter((3, 4), torch.float64)]
    beside = [ALONE[name]() for name in others]
    opt = AdamW([beside[0], ours[0], *beside[1:], ours[1]], lr=0.1, fused=fused)
    alone = AdamW(ours_again := [parameter((7,)), parameter((3, 4), torch.float64)], lr=0.1)
    for _ in range(3):
        opt.step()
        assert_steps(alone)
    assert all(map(torch.equal, ours, ours_again))
    for name, p in zip(others, beside, strict=True):
        how = {"fused": True} if fused and name in ("class, bfloat16", "class") else LOOP
        reference = torch.optim.AdamW([ALONE[name]()], lr=0.1, **how)
        for _ in range(3):
            reference.step()
        assert torch.equal(p, reference.param_groups[0]["params"][0]), name
        assert opt.state[p]["step"] == 3


@pytest.mark.parametrize("shared", [False, True])
def test_a_gradient_that_becomes_sparse_changes_nothing(shared):
    """In the group: what is ours in it waits for what PyTorch refuses."""
    ours, other = parameter(), parameter((3, 4))
    if shared:  # so that PyTorch is to update both, in their order
        ours.data = other.data[0]
        ours.grad = torch.ones(4)
    opt = AdamW([ours, other])
    opt.step()
    other.grad = other.grad.to_sparse()
    before = [t.detach().clone() for t in (ours, other, *opt.state[ours].values())]
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        opt.step()
    assert all(map(torch.equal, (ours, other, *opt.state[ours].values()), before))


def test_fused_unscales_in_more_precision():
    """1e-3 / 65536 is 0 in float16; PyTorch's fused update divides in float32."""

    def make():
        p = Special(torch.ones(4, dtype=torch.float16))
        p.grad = torch.full((4,), 1e-3, dtype=torch.float16)
        return [p]

    def scale(opt, params):
        opt.grad_scale, opt.found_inf = torch.tensor(65536.0), torch.tensor(0.0)

    options = {"fused": True, "eps": 1e-6}
    assert_as_torch(make, steps=1, between=scale, **options)
    stepped, *_ = outcome(AdamW, make, 1, options, scale)
    assert stepped.max() < 0.998  # decay alone, lr 0.1 and 0.01 of the weights, makes it 0.999


def test_what_fused_may_not_have_is_unscaled_once():
    """Where one group has all three: ours, PyTorch's fused update, and its loop."""
    params = [parameter(), special(torch.bfloat16), with_gaps()]
    opt = AdamW(params, fused=True)
    before = [p.grad.clone() for p in params]
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    opt.step()
    assert all(p.grad.equal(grad / 4) for p, grad in zip(params, before, strict=True))


def test_transposed_gradients_of_a_group_that_only_pytorch_can_step():
    """PyTorch's fused update on the CPU ignores strides: it gets the other parameters only."""

    def made(kind, **options):
        params = [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
        return params, kind(params, lr=0.1, weight_decay=0.01, **options)

    params, opt = made(AdamW, fused=True)
    opt.param_groups[0]["decoupled_weight_decay"] = False
    expected, adam = made(torch.optim.Adam, foreach=False)
    for seed in range(3):
        grads = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
        for found in (params, expected):
            found[0].grad, found[1].grad = grads[0].t(), grads[1].t().contiguous()
        opt.step()
        adam.step()
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q)  # the fused update rounds in another way
