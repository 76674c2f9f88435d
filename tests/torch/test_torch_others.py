"""What ``fused_adamw.torch.AdamW`` leaves to PyTorch ends up as with ``torch.optim.AdamW``: to the
last bit, or with the same error."""

import types

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from test_torch_kernel import STATE, assert_steps, parameter  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

LOOP = {"foreach": False, "fused": False}


@pytest.fixture(params=[None, True], ids=["fused=None", "fused=True"])
def fused(request):
    return request.param


def outcome(kind, make, steps, options, between=None):
    """The tensors after some steps, or the error that ended them. ``between`` sees each step."""
    params = make()
    opt = kind(params, lr=0.1, **options)
    try:
        for _ in range(steps):
            if between:
                between(opt, params)
            opt.step()
    except (RuntimeError, AssertionError, KeyError) as error:
        return type(error), str(error).splitlines()[0]
    state = [value.detach() for p in params for value in opt.state[p].values()]
    return [p.detach() for p in params] + state


def assert_as_torch(make, *, steps=3, between=None, theirs=None, **options):
    """``theirs``: options of PyTorch's optimizer, where they are not the same."""
    ours = outcome(AdamW, make, steps, options, between)
    other = outcome(torch.optim.AdamW, make, steps, options | (theirs or {}), between)
    if isinstance(other, tuple):
        assert ours == other
    else:
        assert not isinstance(ours, tuple), ours
        assert len(ours) == len(other)
        assert all(map(same, ours, other))


def in_training(kind, p, **options):
    """An optimizer with a state, without a step that was its own."""
    opt = kind([p], lr=0.1, **options)
    opt.state[p] = {"step": torch.tensor(1.0)}
    for seed, key in enumerate(STATE if opt.param_groups[0]["amsgrad"] else STATE[:2]):
        opt.state[p][key] = parameter(p.shape, p.dtype, seed).detach().square()
    return opt


def same(a, b):
    if (a.dtype, a.shape, a.device, type(a)) != (b.dtype, b.shape, b.device, type(b)):
        return False
    return a.is_meta or torch.equal(a, b)


# ---- options


@pytest.mark.parametrize(
    "options",
    [{"foreach": True}, {"fused": False}, {"foreach": True, "amsgrad": True, "maximize": True}],
    ids=str,
)
def test_options_that_ask_for_torch(options):
    assert_as_torch(lambda: [parameter(), parameter((5,), torch.float64)], **options)


def test_foreach_with_complex_parameters():
    """It has to be told of them."""
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
    opt = AdamW([parameter(dtype=torch.bfloat16)])
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


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"fused": False}], ids=str)
def test_a_compiled_step(options):
    """It is PyTorch's, with the options as they are; the state is there for the next step."""
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        torch.compiler.reset()
        params = [parameter(), parameter((5,))]
        opt = kind(params, lr=0.1, **options)
        step = torch.compile(opt.step, backend="eager")
        for _ in range(3):
            step()
        results.append([*params, *(opt.state[p][key] for p in params for key in opt.state[p])])
        assert [opt.state[p]["step"].item() for p in params] == [3, 3]
    assert all(map(torch.equal, *results))
    assert len(results[0]) == 8


# ---- tensors


class Special(torch.nn.Parameter):
    pass


def special():
    p = Special(parameter().detach())
    p.grad = parameter().grad
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
    "bfloat16": lambda: parameter(dtype=torch.bfloat16),
    "float16": lambda: parameter(dtype=torch.float16),
    "class": special,
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


@pytest.mark.parametrize("name", ["bfloat16", "float16", "class"])
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
        p = parameter(dtype=torch.bfloat16)
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
        kernel = torch.nn.Parameter(kernel.as_strided(kernel.shape, (3, 1, 9, 9)))
        kernel.grad = parameter((64, 3, 1, 1), torch.bfloat16).grad
        assert kernel.stride() != kernel.grad.stride()
        last = parameter((2, 3, 4, 5), torch.bfloat16, layout=channels_last)
        return [kernel, last]

    assert_as_torch(make, fused=True)


def test_a_mixed_group(fused):
    """Each part ends up as if it were alone; what is ours, as the twin has it."""
    others = ["bfloat16", "class", "with gaps", "gradient of another layout"]
    if not fused:
        others += ["complex", "gradient of no memory"]
    ours = [parameter((7,)), parameter((3, 4), torch.float64)]
    beside = [ALONE[name]() for name in others]
    opt = AdamW([beside[0], ours[0], *beside[1:], ours[1]], lr=0.1, fused=fused)
    alone = AdamW(ours_again := [parameter((7,)), parameter((3, 4), torch.float64)], lr=0.1)
    for _ in range(3):
        opt.step()
        assert_steps(alone)
    assert all(map(torch.equal, ours, ours_again))
    for name, p in zip(others, beside, strict=True):
        how = {"fused": True} if fused and name in ("bfloat16", "class") else LOOP
        reference = torch.optim.AdamW([ALONE[name]()], lr=0.1, **how)
        for _ in range(3):
            reference.step()
        assert torch.equal(p, reference.param_groups[0]["params"][0]), name
        assert opt.state[p]["step"] == 3


def test_a_gradient_that_becomes_sparse_changes_nothing():
    """In the group: what is ours in it waits for what PyTorch refuses."""
    ours, other = parameter(), parameter((3, 4))
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
        p = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
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
    params = [parameter(), parameter(dtype=torch.bfloat16), with_gaps()]
    opt = AdamW(params, fused=True)
    before = [p.grad.clone() for p in params]
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    opt.step()
    assert all(p.grad.equal(grad / 4) for p, grad in zip(params, before, strict=True))


# ---- memory that is shared


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
    """They have no memory of their own, though they are of the class that lends it."""

    def stepped(kind):
        def step(p, grad):
            p.grad = grad
            kind([p], lr=0.1).step()
            return p

        return torch.func.vmap(step)(torch.ones(2, 3), torch.full((2, 3), 0.5))

    assert stepped(AdamW).equal(stepped(torch.optim.AdamW))
