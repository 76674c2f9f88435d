"""``fused_adamw.torch.AdamW`` takes the steps of tests/twin.py, to the last bit, and those of
``torch.optim.AdamW`` up to roundings."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from arrays import PER_THREAD
from test_optimizer_torch import FIRST, SECOND, STEPS, bounds, gradients
from twin import adamw_twin

torch = pytest.importorskip("torch", minversion="2.10")

import fused_adamw.torch as module  # noqa: E402
from fused_adamw import runtime_info  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=[None, True], ids=["fused=None", "fused=True"])
def fused(request):
    return request.param


def parameter(shape=(4, 3), dtype=torch.float32, seed=0, layout=lambda x: x):
    """With a gradient, as after some training. A seed for each tensor of a test."""
    random = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(layout(torch.randn(shape, generator=random, dtype=dtype)))
    p.grad = layout(torch.randn(shape, generator=random, dtype=dtype))
    return p


def draw_grads(opt, seed):
    random = torch.Generator().manual_seed(seed)
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.empty_like(p).normal_(generator=random)


def number(x):
    return x.item() if isinstance(x, torch.Tensor) else x


def twin_of(group, p, grad, state):
    """The new parameter and moments of one parameter, and the number of its step."""
    zeros = np.zeros(p.shape, p.detach().numpy().dtype)
    arrays = [state[key].numpy() if key in state else zeros for key in STATE]
    t = int(state["step"]) + 1 if state else 1
    result = adamw_twin(
        p.detach().numpy(),
        grad,
        *arrays[:2],
        t,
        number(group["lr"]),
        tuple(map(number, group["betas"])),
        group["eps"],
        group["weight_decay"],
        scale=-1.0 if group["maximize"] else 1.0,
        v_max=arrays[2] if group["amsgrad"] else None,
    )
    return [*result, t]


def after_step(opt, grads):
    """What one step should make of every parameter. ``grads``: instead of those that they have."""
    expected = []
    for group in opt.param_groups:
        for p in group["params"]:
            grad = p.grad if grads is None else grads[p]
            state = opt.state.get(p, {})
            if grad is None:
                arrays = [p.detach().numpy(), *(state[k].numpy() for k in STATE if k in state)]
                expected.append((p, [a.copy() for a in arrays], number(state.get("step"))))
            else:
                *arrays, t = twin_of(group, p, grad.numpy().copy(), state)
                expected.append((p, arrays, t))
    return expected


def assert_steps(opt, step=None, grads=None):
    """That a step, ``opt.step()`` or another way to take it, gives the bits of the twin."""
    expected = after_step(opt, grads)
    (step or opt.step)()
    for p, arrays, t in expected:
        state = opt.state.get(p, {})
        tensors = [p.detach(), *(state[key] for key in STATE if key in state)]
        for tensor, array in zip(tensors, arrays, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
        assert state.get("step") == t


LAYOUTS = {
    "contiguous": ((4, 3), lambda x: x),
    "0-d": ((), lambda x: x),
    "one element": ((1, 1), lambda x: x),
    "empty": ((0, 3), lambda x: x),
    "transposed": ((5, 7), lambda x: x.t()),
    "permuted": ((2, 3, 4), lambda x: x.permute(1, 2, 0)),
    "channels_last": ((2, 3, 4, 5), lambda x: x.contiguous(memory_format=torch.channels_last)),
    "1x1 channels_last": ((4, 3, 1, 1), lambda x: x.to(memory_format=torch.channels_last)),
    "within another": ((30,), lambda x: torch.cat([x, x, x])[7:37]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, fused):
    """Memory order is the parameter's, whatever it is, and the state's is the same."""
    shape, place = LAYOUTS[layout]
    p = parameter(shape, dtype, layout=place)
    strides, address = p.stride(), p.data_ptr()
    opt = AdamW([p], lr=0.1, fused=fused)
    for _ in range(3):
        assert_steps(opt)
    assert (p.stride(), p.data_ptr()) == (strides, address)
    assert opt.state[p]["exp_avg"].stride() == torch.empty_like(p).stride()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_groups(amsgrad, maximize, dtype, fused):
    """Groups with numbers of their own; each tensor counts the steps that it took."""
    params = [parameter((4, 3), dtype, seed) for seed in range(5)]
    frozen = torch.nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
    groups = [{"params": [*params[:2], frozen], **FIRST}, {"params": params[2:], **SECOND}]
    opt = AdamW(groups, amsgrad=amsgrad, maximize=maximize, fused=fused)
    for t in range(8):
        draw_grads(opt, seed=t)
        frozen.grad = None
        params[t % 5].grad = None
        if t == 4:
            params[2].grad = params[3].grad = params[4].grad = None  # nothing in the group
        assert_steps(opt)
    assert sorted(opt.state[p]["step"].item() for p in params) == [5, 6, 6, 6, 7]
    assert not opt.state[frozen]
    assert torch.equal(frozen, torch.ones(2, dtype=dtype))


def test_both_dtypes_in_a_group(fused):
    opt = AdamW([parameter(dtype=torch.float32), parameter(dtype=torch.float64)], fused=fused)
    for _ in range(3):
        assert_steps(opt)


def test_a_group_goes_down_in_one_call(monkeypatch, fused):
    """And nothing of it is left to PyTorch, whatever the layout."""
    loans = []
    real = module.Loan
    monkeypatch.setattr(module, "Loan", lambda *args: loans.append(real(*args)) or loans[-1])
    params = [parameter(shape, layout=place) for shape, place in LAYOUTS.values()]
    kernel = parameter((4, 3, 1, 1))  # the strides of a dimension of one element have no meaning
    kernel.grad = kernel.grad.as_strided(kernel.shape, (3, 1, 9, 9))
    params.append(kernel)
    groups = [{"params": params}, {"params": [parameter()]}, {"params": [parameter()]}]
    opt = AdamW(groups, fused=fused)
    opt.step()
    opt.step()
    assert [loan.refused for loan in loans] == [[]] * 6


def test_threads(dtype, monkeypatch):
    """As many as PyTorch has; the bits are the twin's, however many they are."""
    asked, expected = [], []
    real = module.Loan
    monkeypatch.setattr(module, "Loan", lambda *args: asked.append(args[-1]) or real(*args))
    most = torch.get_num_threads()
    opt = AdamW([parameter((3 * PER_THREAD + 17,), dtype), parameter((PER_THREAD,), dtype)])
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            expected.append(min(threads, runtime_info()["num_threads"]))
            assert_steps(opt)
    finally:
        torch.set_num_threads(most)
    assert asked == expected


def test_two_optimizers_in_two_threads(dtype):
    def train(seed):
        opt = AdamW([parameter((PER_THREAD,), dtype, seed), parameter((7,), dtype, seed)])
        for t in range(20):
            draw_grads(opt, seed=t)
            assert_steps(opt)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(train, seed) for seed in range(2)]:
            done.result()


@pytest.mark.parametrize("lr", [torch.tensor(0.01), torch.tensor([0.01])], ids=["0-d", "1-d"])
def test_tensors_as_numbers(lr, dtype, fused):
    betas = (torch.tensor([[0.8]]), torch.tensor(0.9))
    opt = AdamW([parameter(dtype=dtype)], lr=lr, betas=betas, fused=fused)
    assert_steps(opt)
    lr.fill_(0.02)
    assert_steps(opt)


def test_a_stale_backward_raises(fused):
    """Its graph has kept the parameter, which is no longer what it was."""
    p, other = parameter(), parameter()
    stale = (p * p).sum()
    opt = AdamW([p, other], fused=fused)
    version = other._version
    opt.step()
    assert other._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_it_steps_while_autograd_is_on_or_off(fused):
    p = parameter()
    opt = AdamW([p], fused=fused)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            assert_steps(opt)
    assert p.is_leaf
    assert not opt.state[p]["exp_avg"].requires_grad


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        p = torch.ones(4)
        p.grad = torch.full((4,), 0.5)
        opt = AdamW([p])
        assert_steps(opt)
        assert_steps(opt)


# ---- what users do to parameters and state between steps


def swap_data(p, opt):
    p.data = torch.full_like(p, 2.0)


def swap_data_for_another_layout(p, opt):
    """PyTorch keeps the state's layout, which is no longer the parameter's."""
    p.data, p.grad = p.detach().t().contiguous().t(), p.grad.t().contiguous().t()
    opt.state[p].update({key: opt.state[p][key].t().contiguous().t() for key in STATE[:2]})


def replace_state(p, opt):
    opt.state[p] = {key: value.clone() * 2 for key, value in opt.state[p].items()}


def set_step(p, opt):
    opt.state[p]["step"].fill_(100)


def step_of_one_element(p, opt):
    opt.state[p]["step"] = torch.tensor([3.0], dtype=torch.float64)


def to_double(p, opt):
    p.data, p.grad = p.data.double(), None
    p.grad = torch.ones_like(p)
    for key in STATE[:2]:
        opt.state[p][key] = opt.state[p][key].double()


def forget(p, opt):
    opt.state.clear()


def load_own_state(p, opt):
    opt.load_state_dict(opt.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        swap_data,
        swap_data_for_another_layout,
        replace_state,
        set_step,
        step_of_one_element,
        to_double,
        forget,
        load_own_state,
    ],
)
def test_nothing_is_held_between_steps(change, fused):
    p = parameter()
    opt = AdamW([p], fused=fused)
    opt.step()
    change(p, opt)
    assert_steps(opt)
    assert_steps(opt)


def test_counters(fused):
    """PyTorch's own dtypes, where float32 stays at 2^24; the bias corrections are 1 by then."""
    default = torch.get_default_dtype()
    try:
        for dtype, end in ((torch.float32, 2**24), (torch.float64, 2**24 + 2)):
            torch.set_default_dtype(dtype)
            p = parameter()
            opt = AdamW([p])
            opt.step()
            assert opt.state[p]["step"].dtype == dtype
            opt.state[p]["step"].fill_(2**24 - 1)
            for _ in range(3):
                opt.step()
            assert opt.state[p]["step"].item() == end
            draw_grads(opt, seed=1)
            *arrays, _ = twin_of(opt.param_groups[0], p, p.grad.numpy(), opt.state[p])
            opt.step()
            np.testing.assert_array_equal(p.detach().numpy(), arrays[0])
    finally:
        torch.set_default_dtype(default)
    opt = AdamW([parameter(dtype=torch.float64)], fused=True)
    opt.step()
    assert opt.state[opt.param_groups[0]["params"][0]]["step"].dtype == torch.float32


# ---- numbers that the formula does not take

BAD = {
    "lr": [-1e-3, math.nan, math.inf, "fast", None],
    "betas": [(1.0, 0.999), (0.9, -0.1), (0.9, math.nan), 0.9],
    "eps": [-1e-8, math.nan],
    "weight_decay": [-0.1, math.inf],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k in BAD for v in BAD[k]])
def test_bad_numbers_change_nothing(name, value):
    """Neither what is ours in the group, nor what is PyTorch's, nor a gradient to be unscaled."""
    params = [parameter(), parameter(dtype=torch.bfloat16), parameter((3,), torch.float64)]
    opt = AdamW(params, fused=True)
    opt.step()
    tensors = [*params, *(p.grad for p in params)]
    tensors += [tensor for p in params for tensor in opt.state[p].values()]
    before = [tensor.detach().clone() for tensor in tensors]
    opt.param_groups[0][name] = value
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    with pytest.raises((ValueError, TypeError), match=f"^{name}.* is "):
        opt.step()
    assert all(map(torch.equal, tensors, before))


# ---- PyTorch's own steps, up to roundings


class Pair:
    """Two optimizers over equal parameters: ours, and PyTorch's loop."""

    def __init__(self, params, hypers, **options):
        self.optimizers = []
        for kind, how in ((AdamW, {}), (torch.optim.AdamW, {"foreach": False, "fused": False})):
            own = [torch.nn.Parameter(torch.tensor(p)) for p in params]
            parts = [own[:2], own[2:]] if len(hypers) == 2 else [own]
            groups = [{"params": part, **h} for part, h in zip(parts, hypers, strict=True)]
            self.optimizers.append(kind(groups, **options, **how))

    def params(self):
        return [[p for g in opt.param_groups for p in g["params"]] for opt in self.optimizers]

    def step(self, grads, **changes):
        for opt, params in zip(self.optimizers, self.params(), strict=True):
            opt.param_groups[-1].update(changes)
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if grad is None else torch.tensor(grad)
            opt.step()

    def assert_near(self, real, t, largest):
        """The bounds are derived in test_optimizer_torch.py: 1.5 is the largest gradient."""
        p_bound, m_bound, v_bound = bounds(real, (), t, largest)
        ours, theirs = self.optimizers
        for p, other in zip(*self.params(), strict=True):
            assert (p - other).abs().max() <= p_bound
            own, others = ours.state[p], theirs.state[other]
            assert list(own) == list(others)
            assert own["step"].equal(others["step"])
            assert (own["exp_avg"] - others["exp_avg"]).abs().max() <= m_bound * 1.5
            for key in list(own)[2:]:
                assert ((own[key] - others[key]).abs() <= v_bound * others[key]).all()


@pytest.mark.parametrize("options", [(), ("groups", "none_grads", "changing_lr")], ids=len)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_parity_with_the_loop_of_torch(amsgrad, maximize, options, dtype):
    real = np.float32 if dtype == torch.float32 else np.float64
    rng = np.random.default_rng(3)
    params = gradients(rng, 1, real, ())
    hypers = [FIRST, SECOND] if "groups" in options else [FIRST]
    pair = Pair(params, hypers, amsgrad=amsgrad, maximize=maximize)
    largest = 0.0
    for t in range(1, STEPS + 1):
        changes = {"lr": 1e-2 * (1 + 0.5 * math.sin(t)), "weight_decay": 0.1 * (t % 3)}
        pair.step(gradients(rng, t, real, options), **(changes if len(options) else {}))
        largest = max(largest, *(p.abs().max().item() for p in pair.params()[0]))
        if t in (1, 2, 10, 50, STEPS):
            pair.assert_near(real, t, largest)


def test_a_model_is_trained_to_the_same_loss():
    """A start that is moved by 1e-12, some thousand roundings, is what moves the losses of PyTorch
    further than our roundings do."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=random, dtype=torch.float64)
    y = torch.sin(x.sum(1, keepdim=True))

    def train(kind, move, **options):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        ).double()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + move)
        opt = kind(model.parameters(), lr=1e-2, **options)
        losses = []
        for _ in range(60):
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            opt.step()
            losses.append(loss.item())
        return np.array(losses)

    theirs = train(torch.optim.AdamW, 0.0, foreach=False, fused=False)
    moved = train(torch.optim.AdamW, 1e-12, foreach=False, fused=False)
    for fused in (None, True):
        ours = train(AdamW, 0.0, fused=fused)
        assert np.abs(ours - theirs).max() <= np.abs(moved - theirs).max()
    assert theirs[-1] < theirs[0] / 2
