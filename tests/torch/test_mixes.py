"""Parameters of 16 bits with all kinds of moments, with and without master weights: the bits of the
class for NumPy and of the twin."""

import copy
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_state import (  # noqa: E402
    DTYPES,
    as_array,
    assert_equal_tensors,
    draw,
    parameters,
    resumed,
    set_gradients,
    train,
    trained,
    trained_beside_numpy,
)
from twin_state import TensorTwin  # noqa: E402

from fused_adamw import AdamW as ForNumPy  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

NARROW = ["float16", "bfloat16"]
MIXES = [  # without both, the parameters are PyTorch's
    ("float32", False),
    ("bfloat16", False),
    ("8bit", False),
    (None, True),
    ("float32", True),
    ("bfloat16", True),
    ("8bit", True),
]
NAMES = {"m": "exp_avg", "v": "exp_avg_sq"}


def name_of(role, entry):
    if role.endswith("_scale"):
        return NAMES[role[0]] + "_scale"
    return NAMES[role] + ("_code" if "m_scale" in entry else "") if role in NAMES else role


def as_bytes(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same_state(opt, params, other):
    for p, entry in zip(params, other.state_dict()["state"].values(), strict=True):
        arrays = {role: x for role, x in entry.items() if role not in ("step", "order")}
        found = {name: x for name, x in opt.state[p].items() if name != "step"}
        assert set(found) == {name_of(role, arrays) for role in arrays}
        for role, array in arrays.items():
            assert as_bytes(found[name_of(role, arrays)]) == array.tobytes(), role


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize(("state_dtype", "master_weights"), MIXES)
@pytest.mark.parametrize("dtype", NARROW)
def test_the_bits_of_the_class_for_numpy(dtype, state_dtype, master_weights, seed):
    options = {"state_dtype": state_dtype, "master_weights": master_weights, "seed": seed}
    params, opt, other = trained_beside_numpy(DTYPES[dtype], lr=1e-2, ema_decay=0.5, **options)
    assert_same_state(opt, params, other)


@pytest.mark.parametrize(("state_dtype", "master_weights"), MIXES)
@pytest.mark.parametrize("dtype", NARROW)
def test_the_bits_of_the_twin(dtype, state_dtype, master_weights):
    options = {"state_dtype": state_dtype, "master_weights": master_weights}
    params = parameters(DTYPES[dtype])
    twins = [TensorTwin(as_array(p), i, **options) for i, p in enumerate(params)]
    opt = AdamW(params, lr=1e-2, **options)
    for step in range(1, 4):
        set_gradients(params, step)
        opt.step()
        for twin, p in zip(twins, params, strict=True):
            twin.step(as_array(p.grad), lr=1e-2)
    for twin, p in zip(twins, params, strict=True):
        assert as_bytes(p) == twin.params.tobytes()
        for role, array in twin.state.items():
            assert as_bytes(opt.state[p][name_of(role, twin.state)]) == array.tobytes()


@pytest.mark.parametrize("state_dtype", [None, "float32", "8bit"])
def test_a_group_of_all_dtypes(state_dtype):
    """Those that are in the type of the arithmetic are their own masters."""
    kinds = [torch.bfloat16, torch.float32, torch.float16, torch.bfloat16, torch.float32]
    kinds.append(torch.float64 if state_dtype is None else torch.float16)
    params = [torch.nn.Parameter(x.to(d)) for x, d in zip(draw(0), kinds, strict=True)]
    arrays = [as_array(p) for p in params]
    options = {"lr": 1e-2, "state_dtype": state_dtype, "master_weights": True}
    opt, other = AdamW(params, **options), ForNumPy(arrays, **options)
    for step in range(3):
        for p, g in zip(params, draw(step, scale=0.1), strict=True):
            p.grad = g.to(p.dtype)
        opt.step()
        other.step([as_array(p.grad) for p in params])
    for p, array in zip(params, arrays, strict=True):
        assert as_bytes(p) == array.tobytes()
        assert ("master" in opt.state[p]) == (p.dtype in (torch.bfloat16, torch.float16))
    assert_same_state(opt, params, other)


def test_float32_moments_of_float32_parameters_are_the_plain_ones():
    params, opt = trained(state_dtype="float32", master_weights=True)
    plain, other = trained()
    assert_equal_tensors(params, plain)
    for p, q in zip(params, plain, strict=True):
        assert list(opt.state[p]) == list(other.state[q])
        assert_equal_tensors(opt.state[p].values(), other.state[q].values())


@pytest.mark.parametrize("through", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize(("state_dtype", "master_weights"), MIXES)
@pytest.mark.parametrize("dtype", NARROW)
def test_resumed(dtype, state_dtype, master_weights, through):
    options = {"state_dtype": state_dtype, "master_weights": master_weights}
    params, opt = trained(DTYPES[dtype], **options)
    again, other = resumed(params, opt, through, **options)
    assert other.param_groups[0]["master_weights"] is master_weights
    for p, q in zip(params, again, strict=True):
        assert_equal_tensors(opt.state[p].values(), other.state[q].values())
    train(params, opt, 2, first=9)
    train(again, other, 2, first=9)
    assert_equal_tensors(params, again)


# ---- beside PyTorch's class


@pytest.mark.parametrize(("state_dtype", "master_weights"), MIXES)
def test_through_pytorch_s_class_and_back(state_dtype, master_weights):
    """It takes moments that have its names, in the dtype of the parameter. It knows no masters:
    they are made again from the parameters that it has stepped."""
    options = {"state_dtype": state_dtype, "master_weights": master_weights}
    params, opt = trained(torch.bfloat16, **options)
    theirs = torch.optim.AdamW(params, lr=1e-2)
    theirs.load_state_dict(copy.deepcopy(opt.state_dict()))
    set_gradients(params, 7)
    if state_dtype == "8bit":
        with pytest.raises(KeyError, match="exp_avg"):
            theirs.step()
        return
    theirs.step()
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = AdamW(resumed, **options)
    other.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert not any("master" in entry for entry in other.state.values())
    for entry in other.state.values():
        assert entry["exp_avg"].dtype == getattr(torch, state_dtype or "bfloat16")
    set_gradients(resumed, 8)
    other.step()
    for p, q in zip(params, resumed, strict=True):
        assert ("master" in other.state[q]) == master_weights
        assert torch.allclose(q.float(), p.float(), atol=0.1)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_state_of_pytorch_s_class_is_continued_with_masters(dtype):
    params = parameters(DTYPES[dtype])
    theirs = torch.optim.AdamW(params, lr=1e-2, eps=1e-3)  # a smaller one is 0 in float16
    train(params, theirs, 2)
    before = [p.detach().clone() for p in params]
    opt = AdamW(params, lr=1e-2, master_weights=True)
    opt.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert opt.param_groups[0]["master_weights"] is True
    opt.param_groups[0]["lr"] = 0.0
    set_gradients(params, 3)
    opt.step()
    for p, start in zip(params, before, strict=True):
        assert torch.equal(master_of(p, opt.state[p]["master"]), start.float())
        assert opt.state[p]["step"] == 3


def test_masters_that_begin_later():
    params, opt = trained(torch.bfloat16, state_dtype="float32")
    start = [p.detach().float() for p in params]
    opt.param_groups[0] |= {"master_weights": True, "lr": 0.0}
    train(params, opt, 1)
    assert_equal_tensors([master_of(p, opt.state[p]["master"]) for p in params], start)


def test_float16_is_unscaled_in_float32():
    """In float16 the unscaled gradient would be 0."""
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    opt = AdamW([p], lr=1e-2, eps=1e-12, fused=True, master_weights=True)
    p.grad = torch.full_like(p, 1e-3)
    opt.grad_scale = torch.tensor(2.0**18)
    opt.step()
    assert (p < -0.009).all()


def master_of(p, stored):
    """The master weights: docs/state-formats.md."""
    if stored.dtype == torch.float32:
        return stored
    upper = p.detach().view(torch.int16).to(torch.int32) << 16
    return (upper + stored.to(torch.int32)).view(torch.float32)


# ---- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"master_weights": "yes"}, TypeError, "master_weights must be a bool; got 'yes'"),
        ({"master_weights": None}, TypeError, "master_weights must be a bool; got None"),
        (
            {"master_weights": True, "foreach": True},
            ValueError,
            "foreach must be None or False with master_weights=True; got True",
        ),
        (
            {"master_weights": 1, "fused": False},
            ValueError,
            "fused must be None or True with master_weights=1; got False",
        ),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        AdamW(parameters(torch.bfloat16), **options)


def with_gaps():
    return torch.nn.Parameter(torch.randn(8, 8).bfloat16()[:, ::2])


def complex_one():
    return torch.nn.Parameter(torch.randn(8, dtype=torch.complex64))


def elsewhere():
    return torch.nn.Parameter(torch.empty(8, device="meta", dtype=torch.float16))


def float32_with_gaps():
    return torch.nn.Parameter(torch.randn(8, 8)[:, ::2])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_gaps, "with gaps or overlaps in memory"),
        (complex_one, "of dtype torch.complex64"),
        (elsewhere, "on device meta"),
        (float32_with_gaps, "with gaps or overlaps in memory"),
    ],
)
def test_what_has_no_kernel_does_not_fall_back_to_pytorch(make, reason):
    params = [*parameters(torch.bfloat16), make()]
    opt = AdamW(params, master_weights=True)
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params[:-1]]
    message = (
        "master_weights=True requires dense float32, float64, bfloat16 or float16 CPU parameters "
        f"with gradients and state that match; unsupported: parameters [6] ({reason})"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        opt.step()
    assert_equal_tensors(params[:-1], before)
    assert not opt.state


def test_masters_of_a_wrong_dtype_are_not_used():
    params, opt = trained(torch.float16, master_weights=True)
    opt.state[params[1]]["master"] = opt.state[params[1]]["master"].double()
    before = [p.detach().clone() for p in params]
    reason = r"parameters \[1\] \(with master of dtype torch.float64\)$"
    with pytest.raises(TypeError, match=f"unsupported: {reason}"):
        opt.step()
    assert_equal_tensors(params, before)


@pytest.mark.parametrize("value", [False, 0, np.False_])
def test_without_masters_nothing_changes(value):
    params, opt = trained(torch.bfloat16, master_weights=value)
    plain, _ = trained(torch.bfloat16)
    assert_equal_tensors(params, plain)
    assert "master" not in opt.state[params[0]]
