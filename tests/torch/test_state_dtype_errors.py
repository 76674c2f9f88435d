"""What cannot be combined with ``state_dtype``, and what it does not support."""

import copy
import os
import pickle
import re
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_state import STATE_DTYPES, assert_equal_tensors, parameters, trained  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"state_dtype": "int4"},
            "state_dtype must be None, 'float32', 'bfloat16' or '8bit'; got 'int4'",
        ),
        (
            {"state_dtype": "8bit", "amsgrad": True},
            "amsgrad must be False with state_dtype='8bit'; got True",
        ),
        (
            {"state_dtype": "8bit", "foreach": True},
            "foreach must be None or False with state_dtype='8bit'; got True",
        ),
        (
            {"state_dtype": "8bit", "capturable": True},
            "capturable must be False with state_dtype='8bit'; got True",
        ),
        (
            {"state_dtype": "8bit", "differentiable": True},
            "differentiable must be False with state_dtype='8bit'; got True",
        ),
        (
            {"state_dtype": "8bit", "fused": False},
            "fused must be None or True with state_dtype='8bit'; got False",
        ),
        ({"state_dtype": "8bit", "seed": -1}, "^seed .*-1"),
        ({"state_dtype": "8bit", "seed": 2**32}, "^seed .*4294967296"),
        ({"seed": -1}, "^seed .*-1"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        AdamW(parameters(), **options)


@pytest.mark.parametrize("wrong", [{"state_dtype": "int4"}, {"seed": "x"}, {"seed": False}])
def test_a_group_that_is_refused_is_not_there(wrong):
    opt = AdamW(parameters(), state_dtype="8bit")
    with pytest.raises((ValueError, TypeError), match=f"^{next(iter(wrong))} "):
        opt.add_param_group({"params": parameters(), **wrong})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("amsgrad", True), ("foreach", True), ("decoupled_weight_decay", False)]
)
def test_options_that_are_changed_afterwards(name, value):
    _, opt = trained(state_dtype="8bit")
    opt.param_groups[0][name] = value
    expected = f"^{name} must be .* with state_dtype='8bit'; got {value}$"
    with pytest.raises(ValueError, match=expected):
        opt.step()


UNSUPPORTED = (
    "state_dtype={!r} requires dense float32, bfloat16 or float16 CPU parameters with gradients "
    "and state that match; unsupported: parameters [6] ({})"
)


def with_gaps():
    return torch.nn.Parameter(torch.randn(8, 8)[:, ::2])


def double():
    return torch.nn.Parameter(torch.randn(8, dtype=torch.float64))


def complex_one():
    return torch.nn.Parameter(torch.randn(8, dtype=torch.complex64))


def elsewhere():
    return torch.nn.Parameter(torch.empty(8, device="meta"))


def rows_of_different_lengths():
    rows = [torch.randn(2, 3), torch.randn(4, 3)]
    return torch.nn.Parameter(torch.nested.nested_tensor(rows, layout=torch.jagged))


class Derived(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_gaps, "with gaps or overlaps in memory"),
        (double, "of dtype torch.float64, which needs state_dtype=None"),
        (complex_one, "of dtype torch.complex64"),
        (elsewhere, "on device meta"),
        (rows_of_different_lengths, "of class NestedTensor"),
    ],
)
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_what_has_no_kernel_is_refused(make, reason, state_dtype):
    params = [*parameters(), make()]
    opt = AdamW(params, state_dtype=state_dtype)
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params[:-1]]
    with pytest.raises(TypeError, match=re.escape(UNSUPPORTED.format(state_dtype, reason))):
        opt.step()
    assert_equal_tensors(params[:-1], before)
    assert not opt.state


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (torch._neg_view, "that is a negated view"),
        (lambda grad: grad.as_subclass(Derived), "of class Derived"),
    ],
)
def test_gradients_of_another_kind_are_refused(change, reason):
    params, opt = trained(state_dtype="8bit")
    before = params[1].detach().clone()
    params[1].grad = change(params[1].grad)
    reason = rf"parameters \[1\] \(with gradient {reason}\)$"
    with pytest.raises(TypeError, match=f"unsupported: {reason}"):
        opt.step()
    assert torch.equal(params[1], before)


def test_no_group_is_stepped_where_another_is_refused():
    params = [*parameters(), double()]
    opt = AdamW([{"params": params[:-1]}, {"params": params[-1:]}], state_dtype="8bit")
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match=r"\[6\]"):
        opt.step()
    assert_equal_tensors(params, before)
    assert not opt.state


@pytest.mark.parametrize("name", ["exp_avg_scale", "exp_avg_sq_scale"])
def test_scales_have_memory_of_their_own(name):
    params, opt = trained(state_dtype="8bit")
    opt.state[params[1]][name] = torch.cat([opt.state[params[1]][name]] * 2)[:2]
    opt.state[params[4]][name] = opt.state[params[1]][name]
    reason = r"parameters \[0, 1, 2, 3, 4, 5\] \(sharing memory with other tensors"
    with pytest.raises(TypeError, match=f"unsupported: {reason}"):
        opt.step()


def test_memory_that_is_shared_before_the_first_step():
    memory = torch.zeros(6)
    params = [torch.nn.Parameter(memory[i : i + 4]) for i in (0, 2)]
    opt = AdamW(params, state_dtype="8bit")
    for p in params:
        p.grad = torch.ones(4)
    with pytest.raises(TypeError, match=r"\[0, 1\] \(sharing memory with other tensors"):
        opt.step()


def test_every_reason_is_named_with_its_parameters():
    params, opt = trained(state_dtype="8bit")
    opt.state[params[4]]["exp_avg_code"] = opt.state[params[4]]["exp_avg_code"].float()
    scale = opt.state[params[1]]["exp_avg_scale"]
    opt.state[params[1]]["exp_avg_scale"] = torch.cat([scale, scale])
    for i in (0, 2):
        params[i].grad = torch._neg_view(params[i].grad)
    before = [p.detach().clone() for p in params]
    reasons = (
        "[0, 2] (with gradient that is a negated view), "
        f"[1] (with exp_avg_scale of shape ({2 * len(scale)},)), "
        "[4] (with exp_avg_code of dtype torch.float32)"
    )
    with pytest.raises(TypeError, match=re.escape(f"unsupported: parameters {reasons}") + "$"):
        opt.step()
    assert_equal_tensors(params, before)


@pytest.mark.slow
def test_an_unknown_instruction_set_stops_a_mixed_group():
    """Before PyTorch has stepped its part."""
    script = """
import torch
from fused_adamw.torch import AdamW
params = [torch.nn.Parameter(torch.ones(4, dtype=d)) for d in (torch.bfloat16, torch.float32)]
for p in params:
    p.grad = torch.ones_like(p)
opt = AdamW(params, lr=0.1)
try:
    opt.step()
except ValueError as error:
    print([float(p[0]) for p in params], "FUSED_ADAMW_ISA" in str(error))
"""
    environment = {**os.environ, "FUSED_ADAMW_ISA": "foo"}
    finished = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert finished.stdout.strip() == "[1.0, 1.0] True", finished.stderr


def test_a_stale_backward_is_noticed():
    p = torch.nn.Parameter(torch.randn(5))
    opt = AdamW([p], state_dtype="8bit")
    loss = p.square().sum()
    p.grad = torch.ones(5)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "options", [{"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}, {"ema_decay": 0.9}]
)
def test_an_expanded_parameter_is_refused_before_its_state_is_made(options):
    """The state would be larger than any memory."""
    p = torch.ones(1).expand(10**12).requires_grad_()
    p.grad = torch.ones(1).expand(10**12)
    opt = AdamW([p], **options)
    with pytest.raises(TypeError, match=r"dense.*unsupported: parameters \[0\]"):
        opt.step()
    assert not opt.state


# ---- sizes that no longer fit


def larger_data(p, opt):
    p.data, p.grad = torch.zeros(4000), torch.ones(4000)


def state_of_a_smaller_one(p, opt):
    other = torch.nn.Parameter(torch.zeros(2))
    other.grad = torch.ones(2)
    smaller = AdamW([other], **{k: opt.param_groups[0][k] for k in ("state_dtype", "ema_decay")})
    smaller.step()
    opt.load_state_dict(smaller.state_dict())


@pytest.mark.parametrize("through", ["step", "deepcopy", "pickle", "copy"])
@pytest.mark.parametrize("change", [larger_data, state_of_a_smaller_one])
@pytest.mark.parametrize(
    "options", [{"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}, {"ema_decay": 0.5}], ids=str
)
def test_state_of_another_size_is_refused(options, change, through):
    p = torch.nn.Parameter(torch.zeros(300))
    p.grad = torch.ones(300)
    opt = AdamW([p], **{"state_dtype": None, "ema_decay": None} | options)
    opt.step()
    change(p, opt)
    make = {
        "step": lambda x: x,
        "deepcopy": copy.deepcopy,
        "pickle": lambda x: pickle.loads(pickle.dumps(x)),
        "copy": copy.copy,
    }
    again = make[through](opt)
    (q,) = again.param_groups[0]["params"]
    q.grad, before = p.grad, q.detach().clone()
    with pytest.raises(TypeError, match=r"unsupported: parameters \[0\]"):
        again.step()
    assert torch.equal(q, before)


def test_a_parameter_that_is_replaced_starts_with_a_state_of_its_own():
    params, opt = trained(state_dtype="8bit")
    p = torch.nn.Parameter(torch.zeros(4000))
    p.grad = torch.ones(4000)
    opt.param_groups[0]["params"][0] = p
    opt.step()
    assert opt.state[p]["step"] == 1
    assert opt.state[params[1]]["step"] == 4


def test_a_state_format_that_the_state_does_not_have():
    params, opt = trained()
    before = [p.detach().clone() for p in params]
    opt.param_groups[0]["state_dtype"] = "8bit"
    with pytest.raises(
        KeyError, match=r"the state of each parameter must have step, exp_avg_code, .*'8bit'"
    ):
        opt.step()
    assert_equal_tensors(params, before)
