"""``ema_decay``: an exponential moving average of the weights, updated in the same pass."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import STATE, assert_steps, draw_grads, parameter  # noqa: E402
from torch_state import (  # noqa: E402
    DTYPES,
    assert_equal_tensors,
    draw,
    parameters,
    resumed,
    train,
    trained,
    trained_beside_numpy,
)

from fused_adamw.torch import AdamW  # noqa: E402

DECAY = 0.9


def averaged(ema, p, decay=DECAY):
    """The formula: the decay is rounded to the dtype, and 1 - d once more."""
    d = p.dtype.type(decay)
    return d * ema + p.dtype.type(1 - float(d)) * p


# ---- the numbers


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_formula(dtype, options, fused):
    """And the parameters and moments are what they are without it."""
    p = parameter((4, 3), dtype)
    opt = AdamW([p], lr=0.1, ema_decay=DECAY, fused=fused, **options)
    expected = p.detach().numpy().copy()
    for seed in range(5):
        draw_grads(opt, seed)
        assert_steps(opt)
        expected = averaged(expected, p.detach().numpy())
        ema = opt.state[p]["ema"]
        assert (ema.dtype, ema.stride()) == (p.dtype, p.stride())
        np.testing.assert_array_equal(ema.numpy(), expected)


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_class_for_numpy(dtype, state_dtype):
    if state_dtype is None and dtype != "float32":
        pytest.skip("needs a state_dtype")
    options = {"lr": 1e-2, "state_dtype": state_dtype, "seed": 3, "ema_decay": DECAY}
    params, opt, other = trained_beside_numpy(DTYPES[dtype], **options)
    for p, ema in zip(params, other.ema, strict=True):
        own = opt.state[p]["ema"]
        assert own.dtype == torch.float32
        np.testing.assert_array_equal(own.numpy(), np.reshape(ema, own.shape))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_it_starts_as_the_parameter(dtype, state_dtype):
    """In float32, to the bit, where the learning rate is 0."""
    params = parameters(DTYPES[dtype])
    opt = AdamW(params, lr=0.0, state_dtype=state_dtype, ema_decay=0.5)
    train(params, opt, 1)
    for p, start in zip(params, draw(0, DTYPES[dtype]), strict=True):
        assert torch.equal(opt.state[p]["ema"], start.float())


def test_the_memory_order_is_the_parameter_s():
    p = parameter((5, 7), layout=lambda x: x.t())
    opt = AdamW([p], ema_decay=DECAY)
    expected = p.detach().numpy().copy()
    for _ in range(3):
        opt.step()
        expected = averaged(expected, p.detach().numpy())
    assert opt.state[p]["ema"].stride() == p.stride()
    np.testing.assert_array_equal(opt.state[p]["ema"].numpy(), expected)


def test_a_parameter_without_a_gradient_keeps_its_average():
    params = parameters()
    opt = AdamW(params, ema_decay=DECAY)
    train(params, opt, 2)
    before = opt.state[params[0]]["ema"].clone()
    params[0].grad = None
    opt.step()
    assert torch.equal(opt.state[params[0]]["ema"], before)


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_unscaling_comes_before(state_dtype):
    params, opt = trained(state_dtype=state_dtype, ema_decay=DECAY)
    for p in params:
        p.grad = p.grad * 1024
    opt.grad_scale = torch.tensor(1024.0)
    opt.step()
    expected, other = trained(state_dtype=state_dtype, ema_decay=DECAY)
    other.step()
    assert_equal_tensors(params, expected)
    assert_equal_tensors(averages(params, opt), averages(expected, other))
    assert_equal_tensors([p.grad for p in params], [p.grad for p in expected])


def averages(params, opt):
    return [opt.state[p]["ema"] for p in params]


# ---- groups and state


def test_a_group_has_its_own():
    params = parameters()
    groups = [{"params": params[:2], "ema_decay": 0.5}, {"params": params[2:]}]
    opt = AdamW(groups, lr=1e-2)
    start = params[0].detach().numpy().copy()
    train(params, opt, 1)
    assert ["ema" in opt.state[p] for p in params] == [True] * 2 + [False] * 4
    np.testing.assert_array_equal(
        opt.state[params[0]]["ema"].numpy(), averaged(start, params[0].detach().numpy(), 0.5)
    )
    plain, _ = trained(steps=1)
    assert_equal_tensors(params, plain)


def test_without_it_groups_and_state_are_those_of_pytorch():
    params, opt = trained()
    assert list(opt.state[params[0]]) == ["step", *STATE[:2]]
    assert "ema_decay" not in opt.state_dict()["param_groups"][0]


@pytest.mark.parametrize("through", ["state_dict", "file", "deepcopy"])
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed(dtype, state_dtype, through):
    if state_dtype is None and dtype != "float32":
        pytest.skip("needs a state_dtype")
    params, opt = trained(DTYPES[dtype], state_dtype=state_dtype, ema_decay=DECAY)
    again, other = resumed(params, opt, through, state_dtype=state_dtype)
    assert other.param_groups[0]["ema_decay"] == DECAY
    assert_equal_tensors(averages(params, opt), averages(again, other))
    train(params, opt, 2, first=9)
    train(again, other, 2, first=9)
    assert_equal_tensors(params, again)
    assert_equal_tensors(averages(params, opt), averages(again, other))


@pytest.mark.parametrize("kind", [AdamW, torch.optim.AdamW])
def test_it_starts_when_a_state_without_it_is_loaded(kind):
    """An average that silently ended would be noticed too late."""
    params = parameters()
    without = kind(params, lr=1e-2)
    train(params, without, 2)
    opt = AdamW(params, ema_decay=DECAY)
    opt.load_state_dict(copy.deepcopy(without.state_dict()))
    assert (opt.param_groups[0]["lr"], opt.param_groups[0]["ema_decay"]) == (1e-2, DECAY)
    start = params[0].detach().numpy().copy()
    train(params, opt, 1, first=3)
    assert opt.state[params[0]]["step"] == 3
    np.testing.assert_array_equal(
        opt.state[params[0]]["ema"].numpy(), averaged(start, params[0].detach().numpy())
    )


def test_pytorch_continues_without_it():
    params, opt = trained(ema_decay=DECAY)
    other = torch.optim.AdamW(params)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.step()
    assert other.state[params[0]]["step"] == 4


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and less than 1; got 1.0"),
        ({"ema_decay": -0.1}, "ema_decay must be at least 0 and less than 1; got -0.1"),
        ({"ema_decay": float("nan")}, "ema_decay must be at least 0 and less than 1; got nan"),
        (
            {"ema_decay": 0.9, "foreach": True},
            "foreach must be None or False with ema_decay=0.9; got True",
        ),
        (
            {"ema_decay": 0.9, "fused": False},
            "fused must be None or True with ema_decay=0.9; got False",
        ),
        (
            {"ema_decay": 0.9, "capturable": True},
            "capturable must be False with ema_decay=0.9; got True",
        ),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        AdamW(parameters(), **options)


def test_what_is_no_number():
    with pytest.raises(TypeError, match=r"^ema_decay must be a real number; got 'slow' \(str\)$"):
        AdamW(parameters(), ema_decay="slow")


@pytest.mark.parametrize("decay", [1.5, 1 - 1e-12])
def test_a_decay_that_is_changed_afterwards(decay):
    params, opt = trained(ema_decay=DECAY)
    before = [p.detach().clone() for p in params]
    opt.param_groups[0]["ema_decay"] = decay
    with pytest.raises(ValueError, match=r"^ema_decay must be "):
        opt.step()
    assert_equal_tensors(params, before)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            lambda: parameter(dtype=torch.bfloat16, layout=lambda x: x[:, ::2]),
            "with gaps or overlaps in memory",
        ),
        (lambda: parameter((4, 6), layout=lambda x: x[:, ::2]), "with gaps or overlaps in memory"),
        (lambda: parameter(dtype=torch.complex64), "of dtype torch.complex64"),
    ],
)
def test_nothing_is_left_to_pytorch(other, reason):
    """Which would not update the average."""
    params = [parameter(), other()]
    opt = AdamW(params, ema_decay=DECAY)
    before = [p.detach().clone() for p in params]
    message = (
        r"^ema_decay=0.9 requires dense float32, float64, bfloat16 or float16 CPU parameters with "
        rf"gradients and state that match; unsupported: parameters \[1\] \({reason}\)$"
    )
    with pytest.raises(TypeError, match=message):
        opt.step()
    assert_equal_tensors(params, before)
    assert not opt.state


def test_an_average_that_shares_memory():
    params, opt = trained(ema_decay=DECAY)
    opt.state[params[0]]["ema"] = params[0].detach()
    before = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match="unsupported: parameters"):
        opt.step()
    assert_equal_tensors(params, before)


def test_an_average_that_no_option_asks_for_is_kept_and_nothing_is_converted():
    p = parameter()
    opt = AdamW([p], ema_decay=DECAY)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0]["ema_decay"] = None
    q = parameter()
    other = AdamW([q])
    other.load_state_dict(saved, convert=False)
    assert torch.equal(other.state[q]["ema"], opt.state[p]["ema"])


def test_a_seed_of_none_is_loaded_and_a_decay_of_none_is_not():
    """An average that silently ended would be noticed too late."""
    p = parameter()
    opt = AdamW([p], ema_decay=DECAY, seed=3)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0] |= {"ema_decay": None, "seed": None}
    opt.load_state_dict(saved)
    group = opt.param_groups[0]
    assert (group["ema_decay"], group["seed"]) == (DECAY, None)
