"""Weights that other code writes between steps are noticed."""

import copy
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import on_device, parameter, steps  # noqa: E402

from fused_adamw.torch import AdamW as ForHost  # noqa: E402


def write_by_copy(p, new):
    with torch.no_grad():
        p.copy_(new)


def write_by_loading(p, new):
    holder = torch.nn.Module()
    holder.p = p
    holder.load_state_dict({"p": new})


def replace_data(p, new):
    p.data = new.clone()


def replace_data_where_it_was(p, new):
    """As where memory that was freed is allocated again."""
    again = torch.from_numpy(p.data.view(torch.int16).numpy()).view(p.dtype)
    again.copy_(new)
    p.data = again


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "write", [write_by_copy, write_by_loading, replace_data, replace_data_where_it_was]
)
def test_weights_that_other_code_writes_are_noticed(write, dtype):
    """The master weights start from them, as in a new optimizer with these moments."""
    p, new = parameter(dtype), parameter(dtype, seed=5).detach()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    write(p, new)
    fresh = torch.nn.Parameter(new.clone())
    other = ForHost([fresh], lr=1e-2, state_dtype="float32", master_weights=True)
    saved = copy.deepcopy(opt.state_dict())
    del saved["state"][0]["master"]
    other.load_state_dict(saved)
    steps(opt, p, count=1, first=7)
    steps(other, fresh, count=1, first=7)
    assert torch.equal(p, fresh)
    assert torch.equal(opt.state[p]["master"], other.state[fresh]["master"])


@pytest.mark.parametrize("refresh", [False, True])
def test_refresh_after_writes_that_pytorch_does_not_count(refresh):
    p, new = parameter(torch.float16), parameter(torch.float16, seed=5).detach()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    p.data.copy_(new)
    if refresh:
        opt.refresh()
    steps(opt, p, count=1)
    assert ((p - new).abs().max() < 0.1) == refresh


def test_refresh_before_the_first_step_after_loading():
    p, new = parameter(torch.float16), parameter(torch.float16, seed=5).detach()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    opt.load_state_dict(opt.state_dict())
    p.data.copy_(new)
    opt.refresh()
    steps(opt, p, count=1)
    assert (p - new).abs().max() < 0.1


def test_two_optimizers_of_one_parameter():
    """Each notices what the other has written."""
    p, q = parameter(torch.float16), parameter(torch.float16)
    pair = on_device([p], lr=1e-2), on_device([p], lr=1e-2)
    for opt in pair:
        steps(opt, p)
    third = on_device([q], lr=1e-2)
    steps(third, q)
    before = p.detach().clone()
    steps(pair[0], p, count=1)
    assert 0 < (p - before).abs().max() < 0.1


@pytest.mark.parametrize("write", [write_by_copy, write_by_loading, replace_data])
@pytest.mark.parametrize("written_first", [False, True])
def test_weights_that_are_written_before_the_first_step_after_loading(write, written_first):
    p, new = parameter(torch.float16), parameter(torch.float16, seed=5).detach()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    saved = copy.deepcopy(opt.state_dict())
    if written_first:
        write(p, new)
    opt.load_state_dict(saved)
    if not written_first:
        write(p, new)
    steps(opt, p, count=1)
    assert 0 < (p - new).abs().max() < 0.1


def test_master_weights_that_are_loaded_before_their_weights_are_kept():
    """The parts that a float16 cannot hold are used, whichever of the two is loaded first."""
    p, q = parameter(torch.float16), parameter(torch.float16, seed=5)
    opt, resumed = on_device([p], lr=1e-4), on_device([q], lr=1e-4)
    steps(opt, p)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    write_by_loading(q, p.detach())
    steps(opt, p, first=2)
    steps(resumed, q, first=2)
    assert torch.equal(p, q)
    assert torch.equal(opt.state[p]["master"], resumed.state[q]["master"])


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("without", [1, 50])
def test_master_weights_that_were_not_in_use_for_a_while(without, overlapped):
    """They start again from the parameter, also where they still round to it: as on the CPU."""
    pair = [
        (p, cls([p], lr=1e-4, master_weights=True, state_dtype="float32"))
        for cls in (on_device, ForHost)
        for p in [parameter(torch.float16)]
    ]
    for step in range(without + 5):
        for p, opt in pair:
            opt.param_groups[0]["master_weights"] = not 2 <= step < 2 + without
            torch.manual_seed(step)
            opt.zero_grad()
            with opt.overlapped() if overlapped and opt is pair[0][1] else nullcontext():
                (p * torch.randn(p.shape).half()).sum().backward()
            opt.step()
            assert ("master" in opt.state[p]) == opt.param_groups[0]["master_weights"]
        assert torch.equal(pair[0][0], pair[1][0])
