"""Loading state that was saved in another format, and state for PyTorch's class."""

import copy
import warnings

import numpy as np
import pytest
from torch_state import (
    DTYPES,
    assert_equal_tensors,
    parameters,
    set_gradients,
    train,
    trained,
)
from twin_state import decode_8bit, encode_8bit, from_bfloat16, to_bfloat16

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw.torch import AdamW  # noqa: E402

FORMATS = [None, "float32", "bfloat16", "8bit"]
NEAREST = {"m": None, "v": None}
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def of_pytorch(dtype=torch.float32, steps=3, **options):
    params = parameters(dtype)
    opt = torch.optim.AdamW(params, lr=1e-2, **options)
    train(params, opt, steps)
    return params, opt


def in_memory_order(tensor, order):
    tensor = tensor.detach().permute(order).reshape(-1)
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def dims_in_memory(tensor):
    return sorted(range(tensor.dim()), key=lambda d: -tensor.stride()[d])


def decoded(entry, order):
    """The moments in float32 (or float64), flat, in an order of the dimensions."""
    if "exp_avg_code" in entry:
        arrays = {role: entry[f"{name}_code"] for role, name in MOMENTS.items()}
        own = dims_in_memory(arrays["m"])
        arrays = {role: in_memory_order(x, own) for role, x in arrays.items()}
        for role, name in MOMENTS.items():
            arrays[f"{role}_scale"] = entry[f"{name}_scale"].numpy()
        arrays["v_scale"] = arrays["v_scale"].view(np.uint32)
        shape = [entry["exp_avg_code"].shape[d] for d in own]
        back = np.argsort(own).astype(int)
        return [
            np.transpose(np.transpose(x.reshape(shape), back), order).ravel()
            for x in decode_8bit(arrays)[:2]
        ]
    return [
        from_bfloat16(flat) if flat.dtype == np.uint16 else flat
        for flat in (in_memory_order(entry[name], order) for name in MOMENTS.values())
    ]


def encoded(m, v, state_dtype):
    """By name, flat."""
    if state_dtype == "8bit":
        arrays = encode_8bit(m, v, NEAREST)
        return {
            "exp_avg_code": arrays["m"],
            "exp_avg_sq_code": arrays["v"],
            "exp_avg_scale": arrays["m_scale"],
            "exp_avg_sq_scale": arrays["v_scale"].view(np.int32),
        }
    if state_dtype == "bfloat16":
        m, v = to_bfloat16(m, None), to_bfloat16(v, None, True)
    return {"exp_avg": m.astype(m.dtype), "exp_avg_sq": v}


def stored_dtype(dtype, state_dtype):
    """The format of moments, in words of the warning."""
    return state_dtype or dtype


def assert_stored(opt, params, entries, state_dtype):
    """The state is that of ``entries``, rounded to the nearest."""
    for p, entry in zip(params, entries, strict=True):
        state, order = opt.state[p], dims_in_memory(p)
        expected = encoded(*decoded(entry, order), state_dtype)
        assert set(expected) <= set(state)
        for name, values in expected.items():
            found = state[name]
            assert found.requires_grad is False
            if not name.endswith("_scale"):
                assert (found.shape, found.stride()) == (p.shape, p.stride())
            flat = found.numpy() if name.endswith("_scale") else in_memory_order(found, order)
            np.testing.assert_array_equal(flat, values, strict=True)
        assert state["step"] == entry["step"]


def contents(opt):
    return copy.deepcopy(opt.state_dict())


def assert_unchanged(opt, before):
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for i, entry in before["state"].items():
        assert list(after["state"][i]) == list(entry)
        assert_equal_tensors(after["state"][i].values(), entry.values())


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
        with pytest.raises(ValueError, match="amsgrad=True is not supported with state_dtype"):
            narrow.load_state_dict(saved)
        assert_unchanged(narrow, before)


# ---- master weights


@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_masters_that_were_not_saved_start_from_the_parameters(state_dtype):
    _, saving = trained(torch.bfloat16, state_dtype=state_dtype)
    saved = contents(saving)
    params = parameters(torch.bfloat16)
    opt = AdamW(params, state_dtype=state_dtype, master_weights=True)
    with pytest.raises(ValueError, match=r"'master'.*convert=True"):
        opt.load_state_dict(saved, convert=False)
    with pytest.warns(UserWarning, match=r"has \['exp_.*\], this optimizer stores \[.*'master'\]"):
        opt.load_state_dict(saved)
    assert opt.param_groups[0]["master_weights"] is True
    for p, entry in zip(params, saved["state"].values(), strict=True):
        assert_equal_tensors(opt.state[p].values(), entry.values())
    train(params, opt, 1)
    assert all(opt.state[p]["master"].dtype == torch.int16 for p in params)


@pytest.mark.parametrize("before", ["float32", "8bit"])
@pytest.mark.parametrize("after", [None, "float32", "8bit"], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_saved_masters(before, after, keep):
    """Are kept in any format, or dropped by an optimizer without."""
    _, saving = trained(torch.bfloat16, state_dtype=before, master_weights=True)
    saved = contents(saving)
    params = parameters(torch.bfloat16)
    opt = AdamW(params, state_dtype=after, master_weights=keep)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(saved)
    assert len(caught) == (before != after or not keep)
    for p, entry in zip(params, saved["state"].values(), strict=True):
        assert ("master" in opt.state[p]) == keep
        if keep:
            assert_equal_tensors([opt.state[p]["master"]], [entry["master"]])
    train(params, opt, 1)


# ---- nothing changes


def test_what_is_no_such_state_changes_nothing():
    _, saving = of_pytorch()
    saved = contents(saving)
    for entry in saved["state"].values():
        entry["exp_avg"] = torch.zeros(17)
    _, opt = trained(state_dtype="8bit")
    before = contents(opt)
    with pytest.raises(ValueError, match=r"\['state'\]\[0\] must be that of a float32 parameter"):
        opt.load_state_dict(saved)
    assert_unchanged(opt, before)


def test_a_warning_that_is_an_error_changes_nothing():
    _, saving = of_pytorch()
    _, opt = trained(state_dtype="8bit")
    before = contents(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="was converted"):
            opt.load_state_dict(contents(saving))
    assert_unchanged(opt, before)


@pytest.mark.parametrize("convert", [None, "yes", 2])
def test_convert_is_a_flag(convert):
    _, opt = trained()
    with pytest.raises(TypeError, match="convert must be a bool; got"):
        opt.load_state_dict(opt.state_dict(), convert=convert)


def test_what_was_saved_is_not_changed():
    _, saving = of_pytorch()
    saved = saving.state_dict()
    before = copy.deepcopy(saved)
    params = parameters()
    opt = AdamW(params, state_dtype="8bit")
    with pytest.warns(UserWarning, match="was converted"):
        opt.load_state_dict(saved)
    train(params, opt, 1)
    for i, entry in before["state"].items():
        assert_equal_tensors(saved["state"][i].values(), entry.values())


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


# ---- for PyTorch's class


@pytest.mark.parametrize("ema_decay", [None, 0.5])
@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_state_for_pytorch(dtype, state_dtype, master_weights, ema_decay):
    options = {"master_weights": master_weights, "ema_decay": ema_decay}
    params, opt = trained(DTYPES[dtype], state_dtype=state_dtype, **options)
    before = contents(opt)
    saved = opt.state_dict(format="torch")
    assert_unchanged(opt, before)
    theirs = torch.optim.AdamW(parameters(DTYPES[dtype]), lr=1.0)
    assert saved["param_groups"][0].keys() == theirs.param_groups[0].keys()
    for p, entry in zip(params, saved["state"].values(), strict=True):
        assert set(entry) == {"step", "exp_avg", "exp_avg_sq"}
        own = {k: x for k, x in opt.state[p].items() if k not in ("master", "ema")}
        for name, values in zip(MOMENTS.values(), decoded(own, dims_in_memory(p)), strict=True):
            kept = (
                from_bfloat16(in_memory_order(entry[name], dims_in_memory(p)))
                if (entry[name].dtype == torch.bfloat16)
                else entry[name].numpy().ravel()
            )
            assert entry[name].dtype == torch.float32 or dtype == state_dtype == "bfloat16"
            np.testing.assert_array_equal(kept, values)
    theirs.load_state_dict(saved)
    train(theirs.param_groups[0]["params"], theirs, 1, first=7)
    assert theirs.state[theirs.param_groups[0]["params"][0]]["step"] == 4
    assert theirs.param_groups[0]["lr"] == 1e-2


def test_state_for_pytorch_is_its_own_where_it_is():
    """The tensors themselves, as in ``state_dict()``."""
    params, opt = trained()
    saved = opt.state_dict(format="torch")
    assert saved["param_groups"] == opt.state_dict()["param_groups"]
    for i, p in enumerate(params):
        assert all(saved["state"][i][name] is x for name, x in opt.state[p].items())


@pytest.mark.parametrize("name", ["float32", "pytorch", True, 0])
def test_other_formats_are_refused(name):
    _, opt = trained()
    with pytest.raises(ValueError, match="format must be None or 'torch'; got"):
        opt.state_dict(format=name)


def test_to_pytorch_and_back():
    """An 8-bit run that is continued by PyTorch, and comes back."""
    params, opt = trained(state_dtype="8bit")
    theirs = torch.optim.AdamW(params)
    theirs.load_state_dict(opt.state_dict(format="torch"))
    train(params, theirs, 2, first=5)
    assert opt.state[params[0]]["step"] == 3
    again = AdamW(params, state_dtype="8bit", seed=7)
    with pytest.warns(UserWarning, match="'8bit'"):
        again.load_state_dict(contents(theirs))
    assert (again.param_groups[0]["seed"], again.param_groups[0]["lr"]) == (7, 1e-2)
    assert_stored(again, params, theirs.state_dict()["state"].values(), "8bit")
    set_gradients(params, 8)
    again.step()
    assert again.state[params[0]]["step"] == 6


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
