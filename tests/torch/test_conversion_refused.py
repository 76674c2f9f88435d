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


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("fused", False, "None or True"), ("foreach", True, "None or False")],
)
def test_a_group_that_neither_pytorch_nor_the_kernels_can_update(name, value, allowed):
    saved = contents(trained(ema_decay=0.9)[1])
    saved["param_groups"][0][name] = value
    _, opt = trained()
    before = contents(opt)
    expected = f"{name} must be {allowed} with ema_decay=0.9; got {value}"
    with pytest.raises(ValueError, match=expected):
        opt.load_state_dict(saved)
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


class Own(torch.Tensor):
    pass


WITHOUT_ORDINARY_MEMORY = {
    "strided, meta": lambda x: x.to("meta"),
    "sparse_coo, cpu": lambda x: x.to_sparse(),
    "sparse_csr, cpu": lambda x: x.to_sparse_csr(),
    "strided, cpu": lambda x: x.as_subclass(Own),
}


def saved_with(change, **options):
    """A state dict whose first moment of the first parameter is changed."""
    saved = trained(**options)[1].state_dict()
    name = "exp_avg_code" if options.get("state_dtype") == "8bit" else "exp_avg"
    saved["state"][0] = {**saved["state"][0], name: change(saved["state"][0][name])}
    return saved


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", WITHOUT_ORDINARY_MEMORY)
@pytest.mark.parametrize("state_dtypes", [(None, "8bit"), ("bfloat16", "float32")], ids=str)
def test_tensors_without_ordinary_memory_are_not_converted(kind, state_dtypes):
    saved = saved_with(WITHOUT_ORDINARY_MEMORY[kind], state_dtype=state_dtypes[0])
    _, opt = trained(state_dtype=state_dtypes[1])
    before = contents(opt)
    expected = rf"\['state'\]\[0\] must have ordinary tensors .*; got \w+ \(torch.{kind}\)$"
    with pytest.raises(ValueError, match=expected):
        opt.load_state_dict(saved)
    assert_unchanged(opt, before)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", ["sparse_coo", "sparse_csr"])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_what_a_step_cannot_use_is_named_by_it_if_it_is_not_converted(kind, state_dtype):
    saved = saved_with(WITHOUT_ORDINARY_MEMORY[f"{kind}, cpu"], state_dtype=state_dtype)
    params, opt = trained(state_dtype=state_dtype)
    opt.load_state_dict(saved)
    before = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match=rf"parameter.*\b0\b.* torch.{kind}\b"):
        opt.step()
    assert_equal_tensors(params, before)


@pytest.mark.parametrize("state_dtypes", [(None, "8bit"), ("bfloat16", "float32")], ids=str)
def test_negated_views_are_converted(state_dtypes):
    saved = [
        saved_with(change, state_dtype=state_dtypes[0]) for change in (torch.neg, torch._neg_view)
    ]
    assert saved[1]["state"][0]["exp_avg"].is_neg()
    loaded = []
    for state in saved:
        opt = AdamW(parameters(), state_dtype=state_dtypes[1])
        with pytest.warns(UserWarning, match="was converted"):
            opt.load_state_dict(state)
        loaded.append(contents(opt))
    for i, entry in loaded[0]["state"].items():
        assert_equal_tensors(loaded[1]["state"][i].values(), entry.values())
