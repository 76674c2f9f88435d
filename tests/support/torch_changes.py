"""What may change between two steps of an optimizer of PyTorch, by name."""

import copy

import torch

from fused_adamw.torch import AdamW

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
