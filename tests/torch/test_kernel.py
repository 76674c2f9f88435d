"""``fused_adamw.torch.AdamW`` takes the steps of tests/oracles/twin.py to the last bit, and those
of ``torch.optim.AdamW`` up to roundings."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torch_bounds import FIRST, SECOND, STEPS, gradients

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import (  # noqa: E402
    Pair,
    assert_steps,
    draw_grads,
    parameter,
)

from fused_adamw import runtime_info  # noqa: E402
from fused_adamw._core import MIN_ELEMENTS_PER_THREAD  # noqa: E402
from fused_adamw._torch import dispatch, step  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


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
    prepared, real = [], dispatch.PreparedStep

    def prepare(*args, **options):
        prepared.append(real(*args, **options))
        return prepared[-1]

    monkeypatch.setattr(dispatch, "PreparedStep", prepare)
    monkeypatch.setattr(dispatch, "step_with_torch", None)
    params = [parameter(shape, layout=place) for shape, place in LAYOUTS.values()]
    kernel = parameter((4, 3, 1, 1))  # the strides of a dimension of one element have no meaning
    kernel.grad = kernel.grad.as_strided(kernel.shape, (3, 1, 9, 9))
    params.append(kernel)
    groups = [{"params": params}, {"params": [parameter()]}, {"params": [parameter()]}]
    opt = AdamW(groups, fused=fused)
    opt.step()
    opt.step()  # in the same way
    assert [step.unsupported for step in prepared] == [[]] * 3


def test_threads(dtype, monkeypatch):
    """As many as PyTorch has; the bits are the twin's, however many they are.

    In a build for one thread it is one, and later steps do not ask.
    """
    found, expected, real = [], [], dispatch.num_threads

    def num_threads():
        found.append(real())
        return found[-1]

    for module in (dispatch, step):
        monkeypatch.setattr(module, "num_threads", num_threads)
    most = torch.get_num_threads()
    opt = AdamW(
        [
            parameter((3 * MIN_ELEMENTS_PER_THREAD + 17,), dtype),
            parameter((MIN_ELEMENTS_PER_THREAD,), dtype),
        ]
    )
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            expected.append(min(threads, runtime_info()["num_threads"]))
            assert_steps(opt)
    finally:
        torch.set_num_threads(most)
    assert found == (expected if runtime_info()["threading"] else [1])


def test_two_optimizers_in_two_threads(dtype):
    def train(seed):
        opt = AdamW(
            [parameter((MIN_ELEMENTS_PER_THREAD,), dtype, seed), parameter((7,), dtype, seed)]
        )
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
    for _ in range(2):  # they have no version to be counted
        assert_steps(opt)


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
    with pytest.raises((ValueError, TypeError), match=f"^{name}.* must be "):
        opt.step()
    assert all(map(torch.equal, tensors, before))


# ---- PyTorch's own steps, up to roundings


@pytest.mark.slow
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
