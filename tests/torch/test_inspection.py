"""What ran, how much memory the state takes, and ``repr``."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import parameter  # noqa: E402
from torch_state import parameters, set_gradients, trained  # noqa: E402

from fused_adamw.torch import AdamW, GroupPath  # noqa: E402

KERNELS = GroupPath("kernels", "")


def step(*params, **options):
    opt = AdamW(params, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opt.step()
    return opt


@pytest.mark.parametrize(
    "options", [{}, {"fused": True}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}], ids=str
)
def test_the_kernels(options):
    params = [parameter(seed=1), parameter(seed=2)]
    opt = AdamW([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}], **options)
    assert opt.last_path == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            opt.step()
            assert opt.last_path == [KERNELS, KERNELS]
    params[0].grad = None
    opt.step()
    assert opt.last_path[1] == KERNELS
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other.last_path == []


def test_a_group_that_pytorch_was_asked_for_hides_no_warning_of_another():
    asked, unsupported = parameter(), parameter(dtype=torch.complex64)
    opt = AdamW([{"params": [asked], "fused": False}, {"params": [unsupported]}])
    with pytest.warns(UserWarning, match=r"updates 1 of 1 tensors of param_groups\[1\]"):
        opt.step()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"fused": False}, "fused=False"),
        ({"foreach": True}, "foreach=True"),
        ({"differentiable": True}, "differentiable=True"),
        ({"decoupled_weight_decay": False}, "decoupled_weight_decay=False"),
    ],
)
def test_what_the_user_asked_for(option, reason):
    """Is no reason to warn."""
    p, q = parameter(), parameter()
    opt = AdamW([{"params": [p], **option}, {"params": [q]}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if "differentiable" in option:
            opt.defaults["differentiable"] = False
        with torch.no_grad():
            opt.step()
    assert opt.last_path == [GroupPath("PyTorch", reason), KERNELS]


def complex_parameter():
    return parameter(dtype=torch.complex64)


def gaps():
    p = torch.nn.Parameter(torch.ones(4, 6)[:, ::2])
    p.grad = torch.ones(4, 3)
    return p


def gradient_of_another_layout():
    p = parameter((4, 3))
    p.grad = torch.ones(3, 4).t()
    return p


def negated_gradient():
    p = parameter((4, 3))
    p.grad = torch._neg_view(torch.ones(4, 3))
    return p


class OwnParameter(torch.nn.Parameter):
    pass


def subclass():
    p = OwnParameter(torch.ones(3))
    p.grad = torch.ones(3)
    return p


CASES = {
    complex_parameter: "of dtype torch.complex64",
    gaps: "with gaps or overlaps in memory",
    gradient_of_another_layout: "with gradient in a memory layout of its own (strides (1, 4), not "
    "(3, 1))",
    negated_gradient: "with gradient that is a negated view",
    subclass: "of class OwnParameter",
}


@pytest.mark.parametrize("make", CASES)
def test_one_warning_says_what_falls_back_and_why(make):
    p, q, r = make(), parameter(seed=2), make()
    opt = AdamW([{"params": [parameter(seed=3)]}, {"params": [p, q]}, {"params": [r]}])
    message = f"updates 1 of 2 tensors of param_groups[1]: {CASES[make]} (1)."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.step()
        opt.step()
    own = [x for x in caught if "fused_adamw" in str(x.message)]
    assert len(own) == 1
    assert message in str(own[0].message)
    assert own[0].filename == __file__
    reason = f"{CASES[make]} (1)"
    assert opt.last_path == [KERNELS, GroupPath("both", reason), GroupPath("PyTorch", reason)]


def test_shared_memory():
    base = torch.zeros(8)
    params = [torch.nn.Parameter(base[:5]), torch.nn.Parameter(base[3:])]
    for p in params:
        p.grad = torch.ones(5)
    opt = step(*params)
    assert opt.last_path[0].path == "PyTorch"
    assert opt.last_path[0].reason.startswith("sharing memory")


def test_moments_in_a_layout_of_their_own():
    p = parameter((4, 3))
    opt = step(p)
    opt.state[p]["exp_avg"] = torch.zeros(3, 4).t()
    with pytest.warns(UserWarning, match="with exp_avg in a memory layout of its own"):
        opt.step()
    assert opt.last_path[0].path == "PyTorch"


@pytest.mark.parametrize(
    "moment",
    [torch.zeros(4, 3).to_sparse(), torch.zeros(4, 3, device="meta")],
    ids=["layout", "device"],
)
def test_moments_of_another_layout_or_on_another_device(moment):
    """PyTorch raises; the warning before that says why it is PyTorch that steps."""
    p = parameter((4, 3))
    opt = step(p)
    opt.state[p]["exp_avg"] = moment
    reason = f"with exp_avg of layout {moment.layout} on device {moment.device}"
    with pytest.warns(UserWarning, match=reason), pytest.raises(RuntimeError):
        opt.step()


def test_parameters_on_a_device_are_no_reason_to_warn():
    """The user asked for it. (The device "meta" stands for any.)"""
    p = torch.nn.Parameter(torch.zeros(3, device="meta"))
    p.grad = torch.zeros_like(p)
    opt = AdamW([p])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()
    assert opt.last_path == [GroupPath("PyTorch", "on device meta (1)")]


def test_a_warning_that_is_an_error_changes_nothing():
    p, q = complex_parameter(), parameter()
    opt = AdamW([p, q])
    before = [x.detach().clone() for x in (p, q)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="PyTorch, not fused_adamw"):
            opt.step()
    assert all(map(torch.equal, before, (p, q)))
    assert {float(entry["step"]) for entry in opt.state.values()} == {0.0}


def test_no_gradients():
    p = parameter()
    p.grad = None
    opt = AdamW([p])
    opt.step()
    assert opt.last_path == [GroupPath("none", "")]


def test_gradients_are_not_kept():
    p = complex_parameter()
    opt = step(p, parameter())
    kept = weakref.ref(p.grad)
    opt.zero_grad()
    gc.collect()
    assert kept() is None
    assert opt.last_path[0].path == "both"


# ---- counts of steps that are numbers


@pytest.mark.parametrize(
    "options",
    [{}, {"fused": True}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}, {"state_dtype": "float32"}],
    ids=str,
)
@pytest.mark.parametrize("count", [3, 3.0, None])
def test_a_count_of_steps_that_is_a_number(options, count):
    """Raises as in PyTorch, also where only the kernels could go on."""
    params = [parameter(seed=1), parameter(seed=2)]
    opt = step(*params, **options)
    theirs = torch.optim.AdamW(params)
    theirs.step()
    before = [p.detach().clone() for p in params]
    theirs.state[params[1]]["step"] = opt.state[params[1]]["step"] = count
    with pytest.raises(RuntimeError) as expected:
        theirs.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError) as raised:
            opt.step()
    assert str(raised.value).startswith(str(expected.value))
    if options.keys() & {"state_dtype", "ema_decay"}:
        assert all(map(torch.equal, before, params))


# ---- memory, repr


@pytest.mark.parametrize("state_dtype", [None, "float32", "bfloat16", "8bit"])
def test_state_nbytes(state_dtype):
    opt = AdamW(parameters(), state_dtype=state_dtype)
    assert opt.state_nbytes == 0
    params, opt = trained(state_dtype=state_dtype)
    size, blocks = (sum(f(p.numel()) for p in params) for f in (int, lambda n: -(-n // 256)))
    assert opt.state_nbytes == {"bfloat16": 4, "8bit": 2}.get(state_dtype, 8) * size + (
        8 * blocks if state_dtype == "8bit" else 0
    )
    before = opt.state_nbytes
    opt.state["of a program"] = {"note": torch.ones(3)}
    opt.state[torch.zeros(1)] = "of a program"
    opt.state[params[0]]["note"] = "of a program"
    assert opt.state_nbytes == before


def test_repr_has_the_options_that_pytorch_lacks():
    found = repr(AdamW(parameters(), state_dtype="8bit", seed=None)).split("\n")
    theirs = repr(torch.optim.AdamW(parameters())).split("\n")
    assert [line for line in found if line in theirs] == theirs
    own = [line.strip() for line in found if line not in theirs]
    assert own == ["ema_decay: None", "master_weights: False", "seed: None", "state_dtype: 8bit"]


def test_found_inf_leaves_the_last_path():
    params, opt = trained()
    set_gradients(params, 9)
    opt.found_inf = torch.ones(())
    opt.step()
    assert opt.last_path == [KERNELS]
