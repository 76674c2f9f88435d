"""State dicts, deepcopy and pickle, as in ``torch.optim.AdamW``."""

import copy
import io
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import assert_same_state, assert_steps, parameter, params_of  # noqa: E402

from fused_adamw.torch import AdamW, GroupPath  # noqa: E402


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


# ---- groups that lack an option

FILLED_IN = {  # by PyTorch, whatever the options of the optimizer are
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
OWN = {"state_dtype": "8bit", "seed": 3, "ema_decay": 0.9}


def without(state, *names):
    state = copy.deepcopy(state)
    for group in state["param_groups"]:
        for name in names:
            del group[name]
    return state


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}, OWN], ids=str)
@pytest.mark.parametrize("name", FILLED_IN)
def test_what_a_group_lacks_is_filled_in(name, options):
    opt = trained(AdamW, **options)
    opt.load_state_dict(without(opt.state_dict(), name))
    assert [group[name] for group in opt.param_groups] == [FILLED_IN[name]] * 2
    opt.step()
    assert opt.state[params_of(opt)[0]]["step"] == 4


@pytest.mark.parametrize("names", [("state_dtype",), ("seed",), ("ema_decay",), tuple(OWN)])
@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16"])
def test_own_options_that_a_group_lacks_stay(names, state_dtype):
    own = OWN | {"state_dtype": state_dtype}
    opt, expected = trained(AdamW, **own), trained(AdamW, **own)
    opt.load_state_dict(without(opt.state_dict(), *names))
    for group in opt.param_groups:
        assert {name: group[name] for name in own} == own
    opt.step()
    expected.step()
    assert all(map(torch.equal, params_of(opt), params_of(expected)))


def test_a_state_of_pytorch_does_not_change_own_options():
    opt = trained(AdamW, steps=0, **OWN)
    with pytest.warns(
        UserWarning, match="holds 'float32' moments .*, this optimizer stores '8bit'"
    ):
        opt.load_state_dict(copy.deepcopy(trained(torch.optim.AdamW).state_dict()))
    for group in opt.param_groups:
        assert {name: group[name] for name in OWN} == OWN
    opt.step()
    assert opt.state[params_of(opt)[0]]["exp_avg_code"].dtype == torch.int8


@pytest.mark.parametrize(
    "theirs",
    [{"foreach": True}, {"fused": False}, {"fused": True}, {"differentiable": True}],
    ids=str,
)
@pytest.mark.parametrize("own", [{"state_dtype": "8bit"}, {"ema_decay": 0.9}], ids=str)
def test_the_update_that_pytorch_was_asked_for_is_no_option_here(own, theirs):
    """Where only the kernels can update a group; without such an option it is loaded."""
    saved = copy.deepcopy(trained(torch.optim.AdamW).state_dict())
    for group in saved["param_groups"]:
        group.update(theirs)
    for options, expected in (own, {"foreach": None, "fused": None}), ({}, theirs):
        opt = trained(AdamW, steps=0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.load_state_dict(copy.deepcopy(saved))
        for group in opt.param_groups:
            assert {name: group[name] for name in expected} == expected
        if options:
            opt.step()
            assert opt.last_path == [GroupPath("kernels")] * 2


def test_a_group_that_has_some_own_options_gets_the_others():
    opt = trained(AdamW)
    saved = without(trained(AdamW, **OWN).state_dict(), "seed")
    with pytest.warns(UserWarning, match="holds '8bit' moments"):
        opt.load_state_dict(saved)
    own = OWN | {"seed": 0, "state_dtype": None}
    assert {name: opt.param_groups[0][name] for name in OWN} == own


# ---- default devices


@pytest.fixture(params=["context", "default"])
def default_device(request):
    """The device "meta" stands for any device that is not the parameters'."""
    if request.param == "context":
        with torch.device("meta"):
            yield
    else:
        torch.set_default_device("meta")
        yield
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "options",
    [{}, {"fused": True}, {"amsgrad": True}, {"state_dtype": "bfloat16"}, OWN],
    ids=str,
)
def test_state_is_made_where_the_parameter_is(options, default_device):
    with torch.device("cpu"):
        opt = trained(AdamW, steps=0, **options)
        expected = trained(AdamW, steps=6, **options)
    for _ in range(3):
        opt.step()
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])  # as PyTorch wrote them before 1.12
    for state in (saved, copy.deepcopy(opt.state_dict())):
        opt.load_state_dict(state)
        assert {x.device.type for p in params_of(opt) for x in opt.state[p].values()} <= {"cpu"}
    with torch.device("cpu"):
        other = copy.deepcopy(opt)
    for _ in range(3):
        opt.step()
    assert all(map(torch.equal, params_of(opt), params_of(expected)))
    assert len(other.state) == len(opt.state)
