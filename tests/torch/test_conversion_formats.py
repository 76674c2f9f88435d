"""Loading state that was saved in another format: it is rounded to the nearest."""

import warnings

import numpy as np
import pytest
from torch_conversion import (
    FORMATS,
    MOMENTS,
    assert_stored,
    assert_unchanged,
    contents,
    decoded,
    dims_in_memory,
    in_memory_order,
    of_pytorch,
)
from torch_state import DTYPES, assert_equal_tensors, parameters, train, trained
from twin_state import to_bfloat16

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw.torch import AdamW  # noqa: E402


@pytest.mark.parametrize("kind", ["pytorch", *FORMATS], ids=str)
@pytest.mark.parametrize("state_dtype", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_is_converted_to_the_nearest(dtype, state_dtype, kind):
    if dtype == "bfloat16" and kind is None:
        pytest.skip("the same as of PyTorch")
    source = of_pytorch if kind == "pytorch" else trained
    _, saving = source(DTYPES[dtype], **({} if kind == "pytorch" else {"state_dtype": kind}))
    saved = contents(saving)
    params, opt = trained(DTYPES[dtype], steps=1, state_dtype=state_dtype)
    before = contents(opt)
    kept = dtype if kind in ("pytorch", None) else kind
    if kept != (state_dtype or dtype):
        formats = f"holds '{kept}' moments, this optimizer stores '{state_dtype or dtype}'"
        with pytest.raises(ValueError, match=rf"state_dict\['state'\]\[0\] {formats}; pass"):
            opt.load_state_dict(saved, convert=False)
        assert_unchanged(opt, before)
        with pytest.warns(UserWarning, match=f"the state of 6 tensors {formats}") as caught:
            opt.load_state_dict(saved)
        assert [warning.filename for warning in caught] == [__file__]
        assert_stored(opt, params, saved["state"].values(), state_dtype or dtype)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opt.load_state_dict(saved, convert=False)
            opt.load_state_dict(saved)
        for p, entry in zip(params, saved["state"].values(), strict=True):
            assert_equal_tensors(opt.state[p].values(), entry.values())
    assert opt.param_groups[0].get("state_dtype") == state_dtype
    assert opt.param_groups[0]["lr"] == 1e-2
    train(params, opt, 2, first=7)
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("state_dtype", [None, "float32", "8bit"], ids=str)
def test_moments_of_float16(state_dtype):
    """Which PyTorch's class keeps for such parameters."""
    _, saving = of_pytorch(torch.float16)
    saved = contents(saving)
    for entry in saved["state"].values():
        assert entry["exp_avg"].dtype == torch.float16
    params = parameters(torch.float16)
    opt = AdamW(params, state_dtype=state_dtype, master_weights=True)
    with pytest.warns(UserWarning, match="holds 'float16' moments without master, this .* with"):
        opt.load_state_dict(saved)
    wide = [
        {k: x.float() if k != "step" else x for k, x in entry.items()}
        for entry in saved["state"].values()
    ]
    assert_stored(opt, params, wide, state_dtype or "float32")
    train(params, opt, 1, first=7)


def test_float32_moments_of_float16_parameters():
    """Become float16 without a ``state_dtype``, as PyTorch's class keeps them."""
    _, saving = of_pytorch(torch.float16)
    saved = contents(saving)
    plain = AdamW(parameters(torch.float16))
    wide = [
        {k: x.float() if k != "step" else x for k, x in entry.items()}
        for entry in saved["state"].values()
    ]
    wide_saved = {**saved, "state": dict(enumerate(wide))}
    with pytest.warns(UserWarning, match="holds 'float32' moments, this .* stores 'float16'"):
        plain.load_state_dict(wide_saved)
    for p, entry in zip(plain.param_groups[0]["params"], saved["state"].values(), strict=True):
        assert_equal_tensors(plain.state[p].values(), entry.values())


@pytest.mark.parametrize("kind", ["pytorch", "8bit"])
def test_float64(kind):
    """Which goes with no other format, so that moments pass through it."""
    _, saving = of_pytorch() if kind == "pytorch" else trained(state_dtype=kind)
    saved = contents(saving)
    params = parameters(torch.float64)
    opt = AdamW(params)
    kept = "float32" if kind == "pytorch" else kind
    with pytest.warns(UserWarning, match=f"holds '{kept}' moments, .* stores 'float64'"):
        opt.load_state_dict(saved)
    for p, entry in zip(params, saved["state"].values(), strict=True):
        for name, values in zip(MOMENTS.values(), decoded(entry, dims_in_memory(p)), strict=True):
            found = opt.state[p][name]
            assert (found.dtype, found.stride()) == (torch.float64, p.stride())
            np.testing.assert_array_equal(found.numpy().ravel(), values.astype(np.float64))
    other = AdamW(parameters(), state_dtype="8bit")
    with pytest.warns(UserWarning, match="holds 'float64' moments, .* stores '8bit'"):
        other.load_state_dict(contents(opt))
    wide = [
        {k: x.float() for k, x in entry.items()} for entry in opt.state_dict()["state"].values()
    ]
    assert_stored(other, other.param_groups[0]["params"], wide, "8bit")


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "8bit"], ids=str)
@pytest.mark.parametrize("kind", [None, "bfloat16", "8bit"], ids=str)
@pytest.mark.parametrize("back", [False, True])
def test_memory_orders(kind, state_dtype, back):
    """Blocks are of elements that lie next to each other in memory."""
    layouts = [torch.contiguous_format, torch.channels_last]
    start = [torch.randn(8, 5, 7, 3), torch.randn(4, 1, 3, 3)]

    def made(layout, state_dtype):
        params = [torch.nn.Parameter(x.clone(memory_format=layout)) for x in start]
        return params, AdamW(params, state_dtype=state_dtype)

    params, saving = made(layouts[back], kind)
    for seed in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            p.grad = p.grad.to(memory_format=layouts[back])
        saving.step()
    saved = contents(saving)
    resumed, opt = made(layouts[not back], state_dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(saved)
    assert len(caught) == (kind != state_dtype or kind == "8bit")
    if kind == state_dtype is None:
        return  # PyTorch loads the strides too
    if kind == state_dtype == "bfloat16":
        for p, q in zip(params, resumed, strict=True):
            assert opt.state[q]["exp_avg"].stride() == q.stride()
            assert_equal_tensors(opt.state[q].values(), saving.state[p].values())
        return
    if kind == state_dtype == "8bit":  # the second parameter has the same order in both
        assert "the state of 1 tensor is" in str(caught[0].message)
        same = saving.state[params[1]].values()
        assert_equal_tensors(opt.state[resumed[1]].values(), same)
        assert_stored(opt, resumed[:1], [saved["state"][0]], state_dtype)
    else:
        assert_stored(opt, resumed, saved["state"].values(), state_dtype or "float32")
    for p in resumed:
        p.grad = torch.ones_like(p)
    opt.step()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_largest_second_moment(amsgrad):
    """``amsgrad`` is that of the saved group, as in PyTorch."""
    _, saving = of_pytorch(amsgrad=amsgrad)
    saved = contents(saving)
    params = parameters()
    opt = AdamW(params, state_dtype="bfloat16", amsgrad=not amsgrad)
    with pytest.warns(UserWarning, match="'bfloat16'"):
        opt.load_state_dict(saved)
    for p, entry in zip(params, saved["state"].values(), strict=True):
        assert ("max_exp_avg_sq" in opt.state[p]) == amsgrad
        if amsgrad:
            flat = in_memory_order(opt.state[p]["max_exp_avg_sq"], dims_in_memory(p))
            expected = to_bfloat16(entry["max_exp_avg_sq"].numpy().ravel(), None, True)
            np.testing.assert_array_equal(flat, expected)
    train(params, opt, 1)
    narrow = AdamW(parameters(), state_dtype="8bit")
    before = contents(narrow)
    if amsgrad:
        expected = "^amsgrad must be False with state_dtype='8bit'; got True$"
        with pytest.raises(ValueError, match=expected):
            narrow.load_state_dict(saved)
        assert_unchanged(narrow, before)


def test_one_warning_of_several_formats():
    """Two groups, of which one needs a conversion of another kind, and one parameter has none."""
    params = [torch.nn.Parameter(torch.ones(300, dtype=t)) for t in (torch.float32, torch.bfloat16)]
    params.append(torch.nn.Parameter(torch.ones(4)))
    saving = torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}])
    for p in params[:2]:
        p.grad = torch.ones_like(p)
    saving.step()
    opt = AdamW([{"params": params[:1], "state_dtype": "8bit"}, {"params": params[1:]}])
    opt.param_groups[1]["state_dtype"] = "float32"
    with pytest.warns(UserWarning, match="was converted") as caught:
        opt.load_state_dict(contents(saving))
    assert [str(x.message) for x in caught] == [
        "state_dict was converted: the state of 1 tensor holds 'float32' moments, this optimizer "
        "stores '8bit'; the state of 1 tensor holds 'bfloat16' moments, this optimizer stores "
        "'float32'; convert=False refuses that"
    ]
    assert opt.state[params[1]]["exp_avg"].dtype == torch.float32
    assert params[2] not in opt.state


@pytest.mark.parametrize("state_dtype", [None, "8bit"], ids=str)
def test_both_own_and_saved_moments(state_dtype):
    """As PyTorch's gathered state dicts have them, which add what was saved to what there is."""
    params, opt = trained(state_dtype=state_dtype, steps=1)
    _, saving = trained() if state_dtype else trained(state_dtype="8bit")
    saved = contents(saving)
    both = contents(opt)
    for i, entry in saved["state"].items():
        both["state"][i] |= entry
    with pytest.warns(UserWarning, match="the state of 6 tensors"):
        opt.load_state_dict(both)
    assert_stored(opt, params, saved["state"].values(), state_dtype or "float32")
