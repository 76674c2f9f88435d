"""Conversions that are refused change nothing, neither the optimizer nor what was saved."""

import copy
import warnings

import pytest
from torch_conversion import assert_unchanged, contents, of_pytorch
from torch_state import assert_equal_tensors, parameters, train, trained

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw.torch import AdamW  # noqa: E402


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
