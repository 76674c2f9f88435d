"""Steps that are taken like the last one: whatever changes between two of them takes effect, as in
PyTorch's class."""

import copy
import weakref

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import draw_grads, params_of  # noqa: E402

from fused_adamw._torch import step as module  # noqa: E402
from fused_adamw._torch.negation import address_of_is_neg  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

SHAPES = [(4, 3), (7,), (2, 2, 5), ()]


def made(kind=AdamW, **options):
    random = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]
    return kind([{"params": params[:3]}, {"params": params[3:], "lr": 0.05}], lr=0.1, **options)


def setting(**values):
    def change(opt):
        opt.param_groups[0].update(values)

    return change


def first(opt):
    return opt.param_groups[0]["params"][0]


def new_gradient(make):
    def change(opt):
        first(opt).grad = make(first(opt).grad)

    return change


def new_data(make):
    def change(opt):
        first(opt).data = make(first(opt).data)

    return change


def new_moment(make, name="exp_avg"):
    def change(opt):
        opt.state[first(opt)][name] = make(opt.state[first(opt)][name])

    return change


def moment_in_place(change_it):
    def change(opt):
        change_it(opt.state[first(opt)]["exp_avg"])

    return change


def transposed(x):
    return x.t().contiguous().t()


def replaced_parameter(opt):
    opt.param_groups[0]["params"][1] = torch.nn.Parameter(torch.ones(6))


def another_group(opt):
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "weight_decay": 0.5})


def one_more_in_a_group(opt):
    opt.param_groups[1]["params"].append(torch.nn.Parameter(torch.ones(2)))


def fewer_groups(opt):
    opt.param_groups.pop()


def groups_in_another_order(opt):
    opt.param_groups.reverse()


def frozen(opt):
    first(opt).requires_grad_(False)
    first(opt).grad = None


def forgotten(opt):
    del opt.state[first(opt)]


def another_state(opt):
    opt.state[first(opt)] = {k: 0.5 * x for k, x in opt.state[first(opt)].items()}


def counted_on(opt):
    opt.state[first(opt)]["step"] += 10


def loaded(opt):
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def loaded_from_later(opt):
    state = copy.deepcopy(opt.state_dict())
    for entry in state["state"].values():
        entry["step"] += 5
        entry["exp_avg"] *= -1
    state["param_groups"][0]["lr"] = 0.3
    opt.load_state_dict(state)


def one_memory(opt):
    """The order of the parameters counts."""
    memory = torch.arange(1.0, 20.0)
    p, q = opt.param_groups[0]["params"][:2]
    p.data, q.data = memory[:12].view(4, 3), memory[8:15]


def a_gradient_that_is_a_parameter(opt):
    first(opt).grad = first(opt).detach()


def a_gradient_in_the_moments(opt):
    first(opt).grad = opt.state[first(opt)]["exp_avg_sq"]


CHANGES = {
    "lr": setting(lr=0.3),
    "lr as a tensor": setting(lr=torch.tensor(0.3)),
    "lr as an int": setting(lr=1),
    "betas": setting(betas=(0.5, 0.6)),
    "eps": setting(eps=1.0),
    "weight_decay": setting(weight_decay=0.7),
    "maximize": setting(maximize=True),
    "fused=False": setting(fused=False),
    "fused": setting(fused=True),
    "foreach": setting(foreach=True),
    "not decoupled": setting(decoupled_weight_decay=False),
    "an unknown option": setting(name="layer"),
    "gradient": new_gradient(lambda g: 3 * g),
    "no gradient": new_gradient(lambda g: None),
    "gradient, negated in place": new_gradient(torch._neg_view),
    "gradient of another layout": new_gradient(transposed),
    "gradient of one element": new_gradient(lambda g: g[:1, :1].expand(4, 3)),
    "data": new_data(lambda x: 2 * x),
    "data, negated in place": new_data(torch._neg_view),
    "data of another layout": new_data(transposed),
    "data with gaps": new_data(lambda x: torch.cat([x, x], 1)[:, ::2]),
    "moment": new_moment(lambda x: 2 * x),
    "moment of another layout": new_moment(transposed),
    "moment with gaps": new_moment(lambda x: torch.cat([x, x], 1)[:, ::2]),
    "moment, new memory": moment_in_place(lambda x: x.set_(torch.ones(4, 3))),
    "moment, new data": moment_in_place(lambda x: setattr(x, "data", torch.ones(4, 3))),
    "moment, strides": moment_in_place(lambda x: x.as_strided_((4, 3), (1, 4))),
    "float64 counter": new_moment(torch.Tensor.double, "step"),
    "replaced parameter": replaced_parameter,
    "another group": another_group,
    "one more in a group": one_more_in_a_group,
    "fewer groups": fewer_groups,
    "groups in another order": groups_in_another_order,
    "frozen": frozen,
    "forgotten": forgotten,
    "another state": another_state,
    "counted on": counted_on,
    "loaded": loaded,
    "loaded from later": loaded_from_later,
    "one memory": one_memory,
    "a gradient that is a parameter": a_gradient_that_is_a_parameter,
    "a gradient in the moments": a_gradient_in_the_moments,
}


def after(kind, change, **options):
    """Three steps, the change, and two more, of which the first has the gradients of before."""
    opt = made(kind, **options)
    for seed in range(3):
        draw_grads(opt, seed)
        opt.step()
    change(opt)
    for p in params_of(opt):
        if p.grad is None and p.requires_grad and change is not CHANGES["no gradient"]:
            p.grad = torch.full_like(p, 0.25)
    opt.step()
    second = [p.detach().clone() for p in params_of(opt)]
    opt.step()
    state = [x for p in params_of(opt) for x in opt.state[p].values()]
    return [*second, *params_of(opt), *state]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_effect(name):
    ours = after(AdamW, CHANGES[name])
    theirs = after(torch.optim.AdamW, CHANGES[name])
    for x, y in zip(ours, theirs, strict=True):
        # Five steps: some dozen roundings of numbers up to 20, and of m / sqrt(v) where v is small.
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_amsgrad_begins_as_in_pytorch_s_class():
    errors = []
    for kind in (AdamW, torch.optim.AdamW):
        with pytest.raises(KeyError) as raised:
            after(kind, setting(amsgrad=True))
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def planned(**options):
    """Whose next step will be as the last one."""
    opt = made(**options)
    for seed in range(2):
        draw_grads(opt, seed)
        opt.step()
    draw_grads(opt, 2)
    return opt


def contents(opt):
    state = [x for p in params_of(opt) for x in opt.state[p].values()]
    return [x.detach().clone() for x in (*params_of(opt), *state)]


OWN = {
    "state_dtype": ({"state_dtype": "bfloat16"}, {"seed": 5}),
    "seed": ({"state_dtype": "8bit"}, {"seed": None}),
    "an average that ends": ({"ema_decay": 0.5}, {"ema_decay": None}),
    "an average that begins": ({}, {"ema_decay": 0.5}),
    "another average": ({"ema_decay": 0.5}, {"ema_decay": 0.25}),
    "masters": ({"state_dtype": "float32"}, {"master_weights": True}),
}


@pytest.mark.parametrize("name", OWN)
def test_an_option_of_our_own_takes_effect(name):
    """As in an optimizer that has made no plan: a copy."""
    options, change = OWN[name]
    opt = planned(**options)
    other = copy.deepcopy(opt)
    for p, q in zip(params_of(opt), params_of(other), strict=True):
        q.grad = p.grad.clone()
    unchanged = copy.deepcopy(other)
    for each in (opt, other):
        each.param_groups[0].update(change)
        each.step()
    assert all(map(torch.equal, contents(opt), contents(other)))
    for p, q in zip(params_of(other), params_of(unchanged), strict=True):
        q.grad = p.grad
    unchanged.step()
    same = [torch.equal(x, y) for x, y in zip(contents(opt), contents(unchanged), strict=False)]
    assert all(same) == (name == "masters")  # float32 parameters are their own


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("betas", (0.9, 1.0)), ("eps", "small"), ("lr", None)]
)
def test_a_bad_number_in_the_last_group_changes_nothing(name, value):
    opt = planned()
    before = contents(opt)
    opt.param_groups[1][name] = value
    with pytest.raises((ValueError, TypeError), match=rf"^{name}.* must be "):
        opt.step()
    assert all(map(torch.equal, contents(opt), before))
    opt.param_groups[1].update(lr=0.05, betas=(0.9, 0.999), eps=1e-8)
    opt.step()
    assert opt.state[first(opt)]["step"] == 3


def test_a_sparse_gradient_in_the_last_group_changes_nothing():
    opt = planned()
    before = contents(opt)
    p = opt.param_groups[1]["params"][0]
    p.grad = torch.ones(()).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert all(map(torch.equal, contents(opt), before))


def test_versions_are_counted():
    """So that autograd notices what a step changes."""
    opt = planned()
    before = [p._version for p in params_of(opt)]
    opt.param_groups[0]["params"][1].grad = None
    opt.step()
    changed = [p._version > version for p, version in zip(params_of(opt), before, strict=True)]
    assert changed == [True, False, True, True]


@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}, {"amsgrad": True}], ids=str
)
def test_a_plan_is_used_and_made_once(options, monkeypatch):
    opt = planned(**options)
    monkeypatch.setattr(module, "dispatch", None)  # fails where it is called
    for seed in range(3):
        opt.zero_grad()
        draw_grads(opt, seed)
        opt.param_groups[0]["lr"] = 0.1 / (1 + seed)
        opt.step()
    opt.param_groups[0]["params"][1].grad = None
    opt.step()
    assert opt.state[first(opt)]["step"] == 6


def test_groups_are_found_in_one_walk_over_the_state(monkeypatch):
    """Looking each parameter up, past the state of all others, would take the square of groups."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(50)]
    opt = AdamW([{"params": [p]} for p in params], state_dtype="bfloat16")
    for p in params:
        p.grad = torch.ones(2)
    opt.step()
    monkeypatch.setattr(torch.Tensor, "__hash__", None)  # fails where it is called
    opt.step()
    monkeypatch.undo()
    assert {opt.state[p]["step"].item() for p in params} == {2}


def test_whether_memory_is_negated_is_asked_in_c():
    """Or, where PyTorch has no such function, of the tensor; here it has."""
    assert address_of_is_neg() > 0


def test_a_plan_keeps_no_tensor():
    opt = planned()
    opt.step()
    p = first(opt)
    kept = [weakref.ref(x) for x in (p.grad, *opt.state[p].values())]
    p.grad = None
    opt.state[p] = {}
    assert [x() for x in kept] == [None] * 4
