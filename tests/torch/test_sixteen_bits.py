"""Parameters of 16 bits without a state_dtype: the kernels, with moments of the parameter's dtype,
rounded to the nearest. The bits are the twin's; the values, those of PyTorch's fused update."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_state import (  # noqa: E402
    DTYPES,
    as_array,
    assert_equal_tensors,
    draw,
    parameters,
    set_gradients,
    train,
    trained,
)
from twin_state import TensorTwin, encode, raw  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

NARROW = ["float16", "bfloat16"]
OPTIONS = [{}, {"amsgrad": True}, {"ema_decay": 0.5}, {"amsgrad": True, "ema_decay": 0.5}]
NAMES = {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq", "ema": "ema"}


def bits_of(tensor):
    return raw(as_array(tensor)).tobytes()


def assert_bits_of_the_twin(params, opt, dtype, options, hyper, scale=1.0):
    twins = [
        TensorTwin(as_array(p), i, state_dtype=dtype, seed=None, **options)
        for i, p in enumerate(params)
    ]
    for step in range(1, 5):
        set_gradients(params, step)
        opt.step()
        for twin, p in zip(twins, params, strict=True):
            twin.step(as_array(p.grad), scale=scale, **hyper)
    for twin, p in zip(twins, params, strict=True):
        assert bits_of(p) == twin.params.tobytes()
        assert list(opt.state[p]) == ["step", *map(NAMES.get, twin.state)]
        for role, array in twin.state.items():
            assert bits_of(opt.state[p][NAMES[role]]) == array.tobytes(), role


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", NARROW)
def test_the_bits_of_the_twin(dtype, options, fused):
    params = parameters(DTYPES[dtype])
    opt = AdamW(params, lr=1e-2, eps=1e-4, fused=fused, **options)
    assert_bits_of_the_twin(params, opt, dtype, options, {"lr": 1e-2, "eps": 1e-4})
    for p in params:
        moments = [opt.state[p][name] for name in ("exp_avg", "exp_avg_sq")]
        assert {(x.dtype, x.shape) for x in moments} == {(p.dtype, p.shape)}


@pytest.mark.parametrize("dtype", NARROW)
def test_a_seed_alone_rounds_nothing_stochastically(dtype):
    """That is asked for with a state_dtype."""
    params = parameters(DTYPES[dtype])
    opt = AdamW(params, lr=1e-2, eps=1e-4, seed=7)
    assert_bits_of_the_twin(params, opt, dtype, {}, {"lr": 1e-2, "eps": 1e-4})


@pytest.mark.parametrize("dtype", NARROW)
def test_maximize(dtype):
    params = parameters(DTYPES[dtype])
    opt = AdamW(params, lr=1e-2, eps=1e-4, maximize=True)
    assert_bits_of_the_twin(params, opt, dtype, {}, {"lr": 1e-2, "eps": 1e-4}, scale=-1.0)


def spacing(x):
    """Of the numbers of a tensor's dtype, around its elements."""
    info = torch.finfo(x.dtype)
    exponent = torch.frexp(x.abs().float().clamp(min=info.tiny)).exponent - 1
    return info.eps * 2.0**exponent


def assert_near(x, y, term):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert ((x - y).float().abs() <= spacing(torch.maximum(x.abs(), term.abs()))).all()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_one_step_is_near_pytorch_s(dtype, amsgrad, maximize):
    """Within one ulp; where p or m is a difference, one of its larger term. PyTorch's loop over
    vectors, that is: what remains of 4,096 elements it rounds three times."""
    options = {"lr": 1e-2, "eps": 1e-4, "amsgrad": amsgrad, "maximize": maximize}
    random = torch.Generator().manual_seed(0)
    x, *grads = torch.randn(5, 64, 64, generator=random).to(DTYPES[dtype])
    p, q = torch.nn.Parameter(x.clone()), torch.nn.Parameter(x.clone())
    opt, theirs = AdamW([p], **options), torch.optim.AdamW([q], fused=True, **options)
    for grad in grads:
        p.grad, q.grad = 0.1 * grad, 0.1 * grad
        p_before = q.detach().clone()
        m_before = theirs.state[q]["exp_avg"].clone() if theirs.state else 0 * x
        opt.step()
        theirs.step()
        assert_near(p.detach(), q.detach(), p_before)
        for name, value in opt.state[p].items():
            if name == "step":
                assert value.equal(theirs.state[q][name])
            else:
                term = m_before if name == "exp_avg" else value
                assert_near(value, theirs.state[q][name], term)
        q.data.copy_(p)
        for name, value in theirs.state[q].items():
            value.copy_(opt.state[p][name])


def test_beside_other_dtypes():
    """In one group, which is stepped as if each were alone."""
    kinds = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
    start = [x.to(dtype) for x, dtype in zip(draw(0), kinds, strict=False)]
    together = [torch.nn.Parameter(x.clone()) for x in start]
    alone = [torch.nn.Parameter(x.clone()) for x in start]
    optimizers = [AdamW(together, lr=1e-2), *(AdamW([p], lr=1e-2) for p in alone)]
    for step in range(3):
        for params in (together, alone):
            for p, g in zip(params, draw(step + 1), strict=False):
                p.grad = g.to(p.dtype)
        for opt in optimizers:
            opt.step()
    assert_equal_tensors(together, alone)


@pytest.mark.parametrize("dtype", NARROW)
def test_unscaled_in_float32(dtype):
    """1e-3 / 2^18 is 0 in float16. The gradients are unscaled, as by PyTorch's fused update."""
    p = torch.nn.Parameter(torch.ones(4, dtype=DTYPES[dtype]))
    opt = AdamW([p], lr=0.1, weight_decay=0.0, eps=1e-12, fused=True)
    p.grad = torch.full_like(p, 1e-3)
    twin = TensorTwin(as_array(p), 0, state_dtype=dtype, seed=None)
    twin.step(as_array(p.grad), scale=2.0**-18, lr=0.1, weight_decay=0.0, eps=1e-12)
    opt.grad_scale = torch.tensor(2.0**18)
    before = p.grad.clone()
    opt.step()
    assert p.grad.equal(before / 2.0**18)
    assert bits_of(p) == twin.params.tobytes()
    assert (p < 0.95).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", NARROW)
def test_resumed_from_a_state_dict(dtype, options):
    params, opt = trained(DTYPES[dtype], eps=1e-4, **options)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = AdamW(resumed)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for p, q in zip(params, resumed, strict=True):
        assert_equal_tensors(opt.state[p].values(), other.state[q].values())
    train(params, opt, 2, first=9)
    train(resumed, other, 2, first=9)
    assert_equal_tensors(params, resumed)


@pytest.mark.parametrize("value", [1e-6, 3e-8, 0.0])
def test_a_v_below_float16_becomes_0(value):
    """As in PyTorch's class, which has no other format; the twin's rounding is NumPy's."""
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    p.grad = torch.full_like(p, value)
    opt = AdamW([p], lr=0.0)
    opt.step()
    expected = encode(
        np.float32(0.001) * np.square(as_array(p.grad).astype(np.float32)), "float16", None
    )
    assert np.array_equal(as_array(opt.state[p]["exp_avg_sq"]), expected)
    assert not opt.state[p]["exp_avg_sq"].any()
