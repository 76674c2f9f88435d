"""State for PyTorch's class: ``state_dict(format="torch")``."""

import numpy as np
import pytest
from torch_conversion import (
    MOMENTS,
    assert_stored,
    assert_unchanged,
    contents,
    decoded,
    dims_in_memory,
    in_memory_order,
)
from torch_state import DTYPES, parameters, set_gradients, train, trained
from twin_state import from_bfloat16

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw._torch import fill_ins  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402


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


def test_parameters_without_state_and_without_a_kernel():
    dtypes = [torch.float32, torch.float32, torch.complex64]
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    opt = AdamW(params)
    params[0].grad, params[2].grad = torch.ones(3), torch.ones(3, dtype=torch.complex64)
    opt.step()
    saved = opt.state_dict(format="torch")["state"]
    assert saved.keys() == {0, 2}
    for i, entry in saved.items():
        assert all(entry[name] is x for name, x in opt.state[params[i]].items())


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


def test_state_of_which_all_was_saved_is_kept_whatever_it_is():
    """Where PyTorch fills in a state dict; the step refuses what it cannot use."""
    entry = {"step": torch.tensor(1.0), "other": torch.ones(3)}
    assert fill_ins._without("state", entry, {}) == entry
