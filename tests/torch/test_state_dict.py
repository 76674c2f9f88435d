"""State dicts, deepcopy and pickle, as in ``torch.optim.AdamW``."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import assert_same_state, assert_steps, parameter, params_of  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


def trained(kind, steps=3, **options):
    """Of two groups, one of them without a gradient for one of its parameters."""
    params = [parameter((4, 3), seed=1), parameter((5,), seed=2), parameter((), seed=3)]
    params[1].grad = None
    opt = kind([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], **options)
    for _ in range(steps):
        opt.step()
    return opt


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"amsgrad": True}], ids=str)
@pytest.mark.parametrize(
    ("kind", "other"), [(AdamW, torch.optim.AdamW), (torch.optim.AdamW, AdamW), (AdamW, AdamW)]
)
def test_checkpoints_go_both_ways(kind, other, options):
    state = trained(kind, **options).state_dict()
    keys = ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"][: 4 if "amsgrad" in options else 3]
    assert [list(entry) for entry in state["state"].values()] == [keys, keys]
    opt = trained(other, steps=0, **options)
    opt.load_state_dict(through_a_file(state))
    assert_same_state(opt.state_dict(), state)
    if other is AdamW:
        assert_steps(opt)
        return
    again = trained(torch.optim.AdamW, steps=0, **options)  # with the same numbers, by hand
    for p, q in zip(params_of(opt), params_of(again), strict=True):
        again.state[q] = {key: value.clone() for key, value in opt.state[p].items()}
    opt.step()
    again.step()
    assert all(map(torch.equal, params_of(opt), params_of(again)))


def test_the_state_of_another_kind_of_run():
    """A checkpoint of steps counted as numbers, as PyTorch wrote them before 1.12."""
    opt = trained(AdamW)
    state = copy.deepcopy(opt.state_dict())
    for entry in state["state"].values():
        entry["step"] = int(entry["step"])
    opt.load_state_dict(state)
    assert_steps(opt)


def test_a_state_that_does_not_fit():
    opt = trained(AdamW)
    other = AdamW([{"params": [parameter()]}, {"params": [parameter()]}])
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.load_state_dict(other.state_dict())
    assert_steps(opt)


def test_deepcopy(fused):
    """Of a model and its optimizer together."""
    p = parameter()
    opt = AdamW([p], fused=fused)
    assert_steps(opt)
    q, twin = copy.deepcopy((p, opt))
    q.grad = p.grad * 2
    assert twin.param_groups[0]["params"][0] is q
    assert_steps(opt)
    assert_steps(twin)
    assert twin.state[q]["step"] == 2
    assert not torch.equal(p, q)


def test_pickle(fused):
    opt = AdamW([parameter()], lr=0.1, fused=fused)
    assert_steps(opt)
    again = pickle.loads(pickle.dumps(opt))
    assert type(again) is AdamW
    assert_same_state(again.state_dict(), opt.state_dict())
    params_of(again)[0].grad = params_of(opt)[0].grad
    assert_steps(again)
