"""Loading state that was saved with master weights, or without."""

import warnings

import pytest
from torch_conversion import contents
from torch_state import assert_equal_tensors, parameters, train, trained

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw.torch import AdamW  # noqa: E402


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
