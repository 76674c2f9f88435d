"""``state_dtype``: the bits of the class for NumPy, which tests/state compares with its oracle."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_state import (  # noqa: E402
    DTYPES,
    STATE_DTYPES,
    as_array,
    assert_equal_tensors,
    draw,
    parameters,
    resumed,
    train,
    trained,
    trained_beside_numpy,
)

from fused_adamw import AdamW as ForNumPy  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

# ---------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("seed", [0, 7, None])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_class_for_numpy(dtype, state_dtype, seed):
    options = {"lr": 1e-2, "maximize": True, "state_dtype": state_dtype, "seed": seed}
    params, opt, _ = trained_beside_numpy(DTYPES[dtype], **options)
    assert opt.state[params[1]]["step"] == 4


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_channels_last(state_dtype):
    """A block is 256 elements that follow one another in memory."""
    plain = torch.nn.Parameter(torch.randn(3, 10, 4, 5))
    last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    flat = torch.nn.Parameter(plain.detach().permute(0, 2, 3, 1).reshape(-1).clone())
    for p in (last, flat):
        opt = AdamW([p], state_dtype=state_dtype)
        for seed in range(3):
            g = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed))
            in_memory_order = g.permute(0, 2, 3, 1).reshape(-1).clone()
            p.grad = in_memory_order if p is flat else g.to(memory_format=torch.channels_last)
            opt.step()
    assert last.detach().permute(0, 2, 3, 1).reshape(-1).equal(flat.detach())


def test_amsgrad_in_bfloat16():
    params, _ = trained(amsgrad=True, state_dtype="bfloat16")
    arrays = [as_array(p) for p in parameters()]
    other = ForNumPy(arrays, lr=1e-2, amsgrad=True, state_dtype="bfloat16")
    for seed in (1, 2, 3):
        other.step([as_array(g) for g in draw(seed, scale=0.1)])
    for p, array in zip(params, arrays, strict=True):
        np.testing.assert_array_equal(as_array(p), array)


def test_groups_of_their_own_kind():
    """The place of a parameter among all decides its random numbers, whatever group it is in."""
    params = parameters()
    opt = AdamW(
        [{"params": params[:2], "state_dtype": None}, {"params": params[2:], "seed": 3}],
        lr=1e-2,
        state_dtype="8bit",
    )
    train(params, opt, 3)
    assert opt.state[params[0]]["exp_avg"].dtype == torch.float32
    assert opt.state[params[4]]["exp_avg_code"].dtype == torch.int8
    plain, _ = trained()
    assert_equal_tensors(params[:2], plain[:2])
    arrays = [as_array(p) for p in parameters()]
    other = ForNumPy(arrays, lr=1e-2, state_dtype="8bit", seed=3)
    for seed in (1, 2, 3):
        other.step([as_array(g) for g in draw(seed, scale=0.1)])
    for p, array in zip(params[2:], arrays[2:], strict=True):
        np.testing.assert_array_equal(as_array(p), array)


def test_unscaling_comes_before():
    params, opt = trained(state_dtype="8bit")
    for p in params:
        p.grad = p.grad * 1024
    opt.grad_scale = torch.tensor(1024.0)
    opt.step()
    expected, other = trained(state_dtype="8bit")
    other.step()
    assert_equal_tensors(params, expected)
    opt.found_inf = torch.tensor(1.0)
    opt.step()
    assert_equal_tensors(params, expected)


def test_float16_is_unscaled_in_float32():
    """In float16 the unscaled gradient would be 0."""
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    opt = AdamW([p], lr=1e-2, eps=1e-12, fused=True, state_dtype="8bit")
    p.grad = torch.full_like(p, 1e-3)
    opt.grad_scale = torch.tensor(2.0**18)
    opt.step()
    assert (p < -0.009).all()
    assert (p.grad == 0).all()  # as PyTorch's fused update leaves it


# ---------------------------------------------------------------------------- state


@pytest.mark.parametrize(
    ("make", "seed"),
    [
        (lambda p: AdamW([{"params": p, "state_dtype": "8bit"}]), 0),
        (lambda p: AdamW([{"params": p, "state_dtype": "8bit"}], seed=5), 5),
        (lambda p: AdamW([{"params": p, "state_dtype": "8bit"}], state_dtype="bfloat16"), 0),
        (lambda p: AdamW([{"params": p, "seed": None}], state_dtype="8bit"), None),
    ],
)
def test_a_group_has_its_own(make, seed):
    params = parameters()
    opt = make(params)
    train(params, opt, 1)
    assert opt.param_groups[0]["seed"] == seed
    assert opt.state[params[0]]["exp_avg_code"].dtype == torch.int8


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_a_group_that_comes_later(state_dtype):
    opt = AdamW(parameters(), state_dtype=state_dtype)
    opt.add_param_group({"params": parameters(), "state_dtype": "8bit"})
    opt.add_param_group({"params": parameters()})
    kinds = [group.get("state_dtype") for group in opt.param_groups]
    assert kinds == [state_dtype, "8bit", state_dtype]
    train(opt.param_groups[1]["params"], opt, 1)


def test_pytorch_takes_no_codes_for_moments():
    params, opt = trained(state_dtype="8bit")
    theirs = torch.optim.AdamW(params)
    theirs.load_state_dict(copy.deepcopy(opt.state_dict()))
    with pytest.raises(KeyError, match="exp_avg"):
        theirs.step()


def test_hooks_of_loading_have_their_say():
    params, opt = trained(state_dtype="8bit")
    saved = copy.deepcopy(opt.state_dict())
    resumed = parameters()
    other, seen = AdamW(resumed, state_dtype="8bit"), []

    def zero_scale(_, state_dict):
        changed = copy.deepcopy(state_dict)
        changed["state"][0]["exp_avg_scale"].zero_()
        return changed

    other.register_load_state_dict_pre_hook(zero_scale)
    other.register_load_state_dict_post_hook(
        lambda opt: seen.append(opt.state[resumed[0]]["exp_avg_code"].dtype)
    )
    other.load_state_dict(saved)
    assert (other.state[resumed[0]]["exp_avg_scale"] == 0).all()
    assert (opt.state[params[0]]["exp_avg_scale"] != 0).any()
    assert seen == [torch.int8]


def test_what_is_no_state_dtype_is_not_loaded():
    _, opt = trained(state_dtype="8bit")
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0]["state_dtype"] = "int4"
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=r"state_dtype must be None.*; got 'int4'"):
        opt.load_state_dict(saved)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, entry in before["state"].items():
        assert_equal_tensors(after["state"][i].values(), entry.values())


def test_bytes():
    params, opt = trained(state_dtype="8bit")
    for p in params:
        state = opt.state[p]
        nbytes = sum(x.nbytes for name, x in state.items() if name != "step")
        assert nbytes == 2 * p.numel() + 8 * -(-p.numel() // 256)


@pytest.mark.parametrize("through", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed(dtype, state_dtype, through):
    params, opt = trained(DTYPES[dtype], state_dtype=state_dtype)
    again, other = resumed(params, opt, through, state_dtype=state_dtype)
    for p, q in zip(params, again, strict=True):
        for name, value in opt.state[p].items():
            assert other.state[q][name].dtype == value.dtype
            assert torch.equal(other.state[q][name], value)
    train(params, opt, 2, first=9)
    train(again, other, 2, first=9)
    assert_equal_tensors(params, again)


def test_state_shares_no_memory_with_what_was_loaded():
    _, opt = trained(state_dtype="8bit")
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    resumed = parameters()
    other = AdamW(resumed, state_dtype="8bit")
    other.load_state_dict(saved)
    train(resumed, other, 1)
    for i, entry in before["state"].items():
        for name in set(entry) - {"step"}:
            assert torch.equal(saved["state"][i][name], entry[name])
