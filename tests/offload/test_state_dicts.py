"""State dicts: training goes on from them, and from those of the other classes."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import on_device, parameter, steps  # noqa: E402

from fused_adamw.torch import AdamW as ForHost  # noqa: E402


@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_training_goes_on_from_a_state_dict(state_dtype):
    p, q = parameter(), parameter()
    opt = on_device([p], lr=1e-2, state_dtype=state_dtype)
    steps(opt, p)
    with torch.no_grad():
        q.copy_(p)
    resumed = on_device([q], lr=5.0, state_dtype=state_dtype)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    steps(opt, p, first=2)
    steps(resumed, q, first=2)
    assert torch.equal(p, q)


def test_state_dicts_go_to_and_from_the_other_classes():
    for kind in (ForHost, torch.optim.AdamW):
        p, q = parameter(torch.float32), parameter(torch.float32)
        opt, other = on_device([p], lr=1e-2), kind([q], lr=1e-2)
        steps(opt, p)
        steps(other, q)
        saved, others = copy.deepcopy((opt.state_dict(), other.state_dict()))
        with torch.no_grad():
            q.copy_(p)
        opt.load_state_dict(others)
        other.load_state_dict(saved)
        steps(opt, p, first=2)
        steps(other, q, first=2)
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert opt.state[p]["step"] == other.state[q]["step"] == 4


def test_loaded_state_is_a_copy_in_the_order_of_the_parameter():
    p = torch.nn.Parameter(parameter(torch.float32).detach().t())
    opt = on_device([p], lr=1e-2)
    moments = torch.rand(p.shape)
    saved = {"step": torch.tensor(3.0), "exp_avg": moments, "exp_avg_sq": moments.clone()}
    opt.load_state_dict({"state": {0: saved}, "param_groups": opt.state_dict()["param_groups"]})
    assert opt.state[p]["exp_avg"].stride() == p.stride()
    assert torch.equal(opt.state[p]["exp_avg"], moments)
    steps(opt, p, count=1)
    assert torch.equal(saved["exp_avg"], saved["exp_avg_sq"])


def test_loading_gives_pytorch_no_state_to_move_to_the_device(monkeypatch):
    p = parameter()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)

    def refuse(*_, **__):
        raise AssertionError("PyTorch would allocate state on the device")

    optimizer = torch.optim.Optimizer
    monkeypatch.setattr(optimizer, "_process_value_according_to_param_policy", refuse)
    opt.load_state_dict(opt.state_dict())
    assert opt.state[p]["exp_avg"].any()


def test_weights_that_are_loaded_after_the_state_stay():
    """The updates of the step that is discarded are complete by then."""
    p = parameter()
    opt = on_device([p], lr=1e-2, delay=0.05)
    steps(opt, p, count=1)
    saved, weights = copy.deepcopy(opt.state_dict()), p.detach().clone()
    with opt.overlapped():
        (p * 2).sum().backward()
    opt.load_state_dict(saved)
    with torch.no_grad():
        p.copy_(weights)
    opt.synchronize()
    assert torch.equal(p, weights)
    assert opt.state[p]["step"] == 1


def test_hooks_of_the_user_see_the_whole_state_dict():
    p = parameter()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    seen = []
    opt.register_load_state_dict_pre_hook(lambda _, saved: seen.append(len(saved["state"])))
    opt.register_load_state_dict_post_hook(lambda opt: seen.append(len(opt.state[p])))
    opt.load_state_dict(opt.state_dict())
    assert seen == [1, 4]


def test_parameters_without_state_get_none_by_loading():
    p, q = parameter(), parameter()
    opt = on_device([p, q], lr=1e-2)
    steps(opt, p)
    opt.load_state_dict(opt.state_dict())
    assert list(opt.state) == [p]


@pytest.mark.parametrize("kind", [int, float])
def test_counts_of_steps_that_are_numbers(kind):
    """As older versions of PyTorch saved them."""
    p, q = parameter(), parameter()
    opt, other = on_device([p], lr=1e-2), on_device([q], lr=1e-2)
    steps(opt, p)
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["step"] = kind(saved["state"][0]["step"])
    with torch.no_grad():
        q.copy_(p)
    other.load_state_dict(saved)
    steps(opt, p, first=2)
    steps(other, q, first=2)
    assert torch.equal(p, q)
    assert other.state[q]["step"] == opt.state[p]["step"] == 4
