"""Nothing is cached between steps: whatever users do to parameters and state takes effect."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import STATE, assert_steps, draw_grads, parameter, twin_of  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


def swap_data(p, opt):
    p.data = torch.full_like(p, 2.0)


def swap_data_for_another_layout(p, opt):
    """PyTorch keeps the state's layout, which is no longer the parameter's."""
    p.data, p.grad = p.detach().t().contiguous().t(), p.grad.t().contiguous().t()
    opt.state[p].update({key: opt.state[p][key].t().contiguous().t() for key in STATE[:2]})


def replace_state(p, opt):
    opt.state[p] = {key: value.clone() * 2 for key, value in opt.state[p].items()}


def set_step(p, opt):
    opt.state[p]["step"].fill_(100)


def step_of_one_element(p, opt):
    opt.state[p]["step"] = torch.tensor([3.0], dtype=torch.float64)


def to_double(p, opt):
    p.data, p.grad = p.data.double(), None
    p.grad = torch.ones_like(p)
    for key in STATE[:2]:
        opt.state[p][key] = opt.state[p][key].double()


def forget(p, opt):
    opt.state.clear()


def load_own_state(p, opt):
    opt.load_state_dict(opt.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        swap_data,
        swap_data_for_another_layout,
        replace_state,
        set_step,
        step_of_one_element,
        to_double,
        forget,
        load_own_state,
    ],
)
def test_changes_between_steps(change, fused):
    p = parameter()
    opt = AdamW([p], fused=fused)
    opt.step()
    change(p, opt)
    assert_steps(opt)
    assert_steps(opt)


def shuffled(state):
    return {p: state[p] for p in [*state][::-1]}


def without_some(state):
    """The next step of these is their first."""
    return {p: state[p] for p in [*state][2::2]}


def with_others(state):
    """More than there are parameters, before them."""
    return {**{parameter((k,)): {} for k in range(1, 99)}, **state}


@pytest.mark.parametrize("change", [shuffled, without_some, with_others])
def test_the_order_of_the_state(change):
    """State is found by its parameter, wherever it is, and some have no gradient."""
    params = [parameter((3, k), seed=k) for k in range(1, 12)]
    opt = AdamW([{"params": params[:8]}, {"params": params[8:], "lr": 0.1}])
    assert_steps(opt)
    params[0].grad = params[4].grad = params[9].grad = None
    assert_steps(opt)
    entries = change(dict(opt.state))
    opt.state.clear()
    opt.state.update(entries)
    assert_steps(opt)
    draw_grads(opt, seed=1)
    params[7].grad = None
    assert_steps(opt)


def test_counters(fused):
    """PyTorch's own dtypes, where float32 stays at 2^24; the bias corrections are 1 by then."""
    default = torch.get_default_dtype()
    try:
        for dtype, end in ((torch.float32, 2**24), (torch.float64, 2**24 + 2)):
            torch.set_default_dtype(dtype)
            p = parameter()
            opt = AdamW([p])
            opt.step()
            assert opt.state[p]["step"].dtype == dtype
            opt.state[p]["step"].fill_(2**24 - 1)
            for _ in range(3):
                opt.step()
            assert opt.state[p]["step"].item() == end
            draw_grads(opt, seed=1)
            *arrays, _ = twin_of(opt.param_groups[0], p, p.grad.numpy(), opt.state[p])
            opt.step()
            np.testing.assert_array_equal(p.detach().numpy(), arrays[0])
    finally:
        torch.set_default_dtype(default)
    opt = AdamW([parameter(dtype=torch.float64)], fused=True)
    opt.step()
    assert opt.state[opt.param_groups[0]["params"][0]]["step"].dtype == torch.float32


@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_master_weights_that_were_not_in_use_for_a_while(dtype, state_dtype):
    """They start again from the parameter, which has gone on without them."""
    p = torch.nn.Parameter(torch.linspace(1, 2, 300).to(dtype))
    opt = AdamW([p], lr=1e-2, state_dtype=state_dtype, master_weights=True)
    group = opt.param_groups[0]
    for step in range(60):
        group["master_weights"] = step in (0, 1, 59)
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        opt.step()
    assert 0 < (p - before).abs().max() < 0.05
    assert (opt.state[p]["step"], "master" in opt.state[p]) == (60, True)


@pytest.mark.parametrize("steps_without", [1, 3])
def test_master_weights_that_an_option_has_stopped_are_not_used_later(steps_without):
    """Also of a parameter that had no gradient when the option was changed."""
    params = [torch.nn.Parameter(torch.ones(2, dtype=torch.float16)) for _ in range(2)]
    opt = AdamW(params, lr=0.1, weight_decay=0, state_dtype="float32", master_weights=True)
    group = opt.param_groups[0]

    def step(*chosen):
        for i, p in enumerate(params):
            p.grad = torch.ones_like(p) if i in chosen else None
        opt.step()

    step(0, 1)
    group["master_weights"] = False
    step(1)
    assert "master" in opt.state[params[0]]  # is still what the parameter is
    for _ in range(steps_without):
        step(0, 1)
        assert "master" not in opt.state[params[0]]
    group["master_weights"] = True
    before = params[0].detach().clone()
    step(0, 1)
    assert torch.all(params[0] < before)
    assert torch.equal(opt.state[params[0]]["master"].half(), params[0])
