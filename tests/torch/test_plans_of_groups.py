"""Steps that are taken like the last one, where groups or dtypes differ: what a step of its own
would do."""

import pytest
from torch_state import assert_equal_tensors, params_and_state

torch = pytest.importorskip("torch", minversion="2.10")

from torch_changes import CHANGES, made  # noqa: E402
from torch_optimizers import draw_grads, params_of  # noqa: E402

from fused_adamw.torch import AdamW, GroupPath  # noqa: E402

KINDS = [None, "float32", "bfloat16", "8bit"]


def step_anew(opt):
    """Without what the last step has prepared."""
    vars(opt).pop("_plan", None)
    opt.step()


# ---- master weights


@pytest.mark.parametrize("state_dtype", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masters_after_a_step_of_float32_alone(dtype, state_dtype):
    """In which nothing shows that the group has parameters of 16 bits."""

    def trained(step):
        a = torch.nn.Parameter(torch.ones(300))
        b = torch.nn.Parameter(torch.ones(300, dtype=dtype))
        opt = AdamW([a, b], lr=1e-4, state_dtype=state_dtype, master_weights=True)
        for i in range(12):
            a.grad = torch.ones(300)
            b.grad = torch.ones_like(b) if i % 3 != 1 else None
            step(opt)
        return opt, b

    (ours, b), (other, _) = trained(AdamW.step), trained(step_anew)
    assert ours.state[b]["step"] == 8
    assert_equal_tensors(params_and_state(ours), params_and_state(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masters_of_a_model_that_becomes_one_of_16_bits(dtype):
    p = torch.nn.Parameter(torch.ones(5))
    opt = AdamW([p], lr=1e-4, weight_decay=0.0, state_dtype="float32", master_weights=True)
    for i in range(40):
        if i == 2:
            p.data = p.data.to(dtype)
        p.grad = torch.ones_like(p)
        opt.step()
    assert "master" in opt.state[p]
    # 40 steps of 1e-4 each, to within half a unit in the last place.
    torch.testing.assert_close(p.detach().float(), torch.full((5,), 0.996), rtol=0, atol=0.002)


# ---- the order of groups


def in_one_memory(kind, **options):
    memory = torch.arange(4.0) + 1
    a, b, c = (torch.nn.Parameter(x) for x in (torch.ones(2), memory, memory))
    groups = [{"params": [a]}, {"params": [b], **options}, {"params": [c]}]
    opt = kind(groups, lr=0.5, weight_decay=0.5)
    for i in range(3):
        for j, p in enumerate((a, b, c)):
            p.grad = torch.full_like(p, j + 1.0 + i)
        opt.step()
    return [p.detach() for p in (a, b, c)]


@pytest.mark.parametrize("options", [{"maximize": True}, {"amsgrad": True}], ids=str)
def test_groups_that_share_memory_are_stepped_in_order(options):
    """Where the first and the last could be stepped together, and the one between cannot."""
    ours, theirs = in_one_memory(AdamW, **options), in_one_memory(torch.optim.AdamW, **options)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_alternating_groups():
    """Each kind of many groups."""

    def trained(step):
        params = [torch.nn.Parameter(torch.full((3,), i + 1.0)) for i in range(40)]
        groups = [{"params": [p], "maximize": i % 2 == 0} for i, p in enumerate(params)]
        opt = AdamW(groups, lr=0.1, state_dtype="8bit")
        for t in range(4):
            for p in params:
                p.grad = p.detach() / (t + 1)
            step(opt)
        return params_and_state(opt)

    assert_equal_tensors(trained(AdamW.step), trained(step_anew))


# ---- a parameter of two groups, which add_param_group refuses


def parameter_of_both(opt, p, q):
    opt.param_groups[1]["params"].append(p)


def count_of_both(opt, p, q):
    opt.state[q]["step"] = opt.state[p]["step"]


@pytest.mark.filterwarnings("ignore:PyTorch, not fused_adamw, updates:UserWarning")
@pytest.mark.parametrize(
    ("change", "before"),
    [
        (parameter_of_both, 0),
        *((change, n) for n in (1, 3) for change in (parameter_of_both, count_of_both)),
    ],
)
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"fused": False}], ids=str)
def test_an_update_that_would_not_be_counted_is_refused(change, before, state_dtype, options):
    """In groups that are stepped as one, by two steps of one plan, and one by PyTorch; before the
    first step, at the first plan, and later."""
    if state_dtype is not None and "fused" in options:
        pytest.skip("PyTorch has no such state")
    p, q = (torch.nn.Parameter(torch.ones(n)) for n in (2, 3))
    groups = [{"params": [p], "lr": 0.01}, {"params": [q], **options}]
    opt = AdamW(groups, lr=0.1, state_dtype=state_dtype)
    p.grad, q.grad = torch.ones(2), torch.ones(3)
    for _ in range(before):
        opt.step()
    change(opt, p, q)
    found = [p.detach().clone(), q.detach().clone()]
    expected = (
        "params must be in one group each and have their own counts of steps; got a parameter"
    )
    with pytest.raises(ValueError, match=expected):
        opt.step()
    assert_equal_tensors([p.detach(), q.detach()], found)
    del opt.param_groups[1]["params"][:]
    opt.step()
    assert opt.state[p]["step"] == before + 1


# ---- what torch.optim takes, too


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}], ids=str)
def test_params_and_groups_that_are_tuples(options):
    def trained(change):
        p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
        opt = AdamW([{"params": [p]}, {"params": [q]}], lr=0.1, **options)
        for i in range(4):
            if i == 2:
                change(opt)
            p.grad, q.grad = torch.ones(3), torch.full((3,), 2.0)
            opt.step()
        return [x for r in (p, q) for x in (r.detach(), *opt.state[r].values())]

    def to_tuples(opt):
        for group in opt.param_groups:
            group["params"] = tuple(group["params"])

    def to_a_tuple(opt):
        opt.param_groups = tuple(opt.param_groups)

    expected = trained(lambda opt: None)
    assert_equal_tensors(trained(to_tuples), expected)
    assert_equal_tensors(trained(to_a_tuple), expected)


# ---- what is told of it


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}], ids=str)
def test_last_path_is_that_of_the_last_step(options):
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = AdamW([{"params": [p]}, {"params": [q]}], **options)
    kernels, none = GroupPath("kernels"), GroupPath("none")
    for with_p, with_q in [(1, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1)]:
        p.grad = torch.ones(3) if with_p else None
        q.grad = torch.ones(3) if with_q else None
        opt.step()
        assert opt.last_path == [kernels if flag else none for flag in (with_p, with_q)]
    q.data = torch.ones(3, dtype=torch.complex64)
    q.grad = None
    opt.step()
    assert opt.last_path == [kernels, none]


def test_state_that_is_a_negated_view():
    """Its memory has the other sign."""

    def trained(kind):
        p = torch.nn.Parameter(torch.ones(5))
        opt = kind([p], lr=0.1)
        for i in range(4):
            p.grad = torch.ones(5)
            if i == 2:
                opt.state[p]["exp_avg"] = torch._neg_view(torch.full((5,), -0.25))
            opt.step()
        return p.detach()

    with pytest.warns(UserWarning, match="with exp_avg that is a negated view"):
        ours = trained(AdamW)
    torch.testing.assert_close(ours, trained(torch.optim.AdamW))


# ---- parameters that come and go


def without_the_last(params):
    params.pop()


def with_another(params):
    params.append(torch.nn.Parameter(torch.zeros(3)))


@pytest.mark.parametrize("change", [without_the_last, with_another])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_random_numbers_follow_the_place_in_the_optimizer(state_dtype, change):
    """And not the place at the time of an earlier step."""

    def trained(step):
        generator = torch.Generator().manual_seed(0)
        a, b, c = (torch.nn.Parameter(torch.randn(4096, generator=generator)) for _ in range(3))
        opt = AdamW([{"params": [a, b]}, {"params": [c]}], state_dtype=state_dtype)
        for i in range(6):
            if i == 3:
                change(opt.param_groups[0]["params"])
            for p in (a, b, c):
                p.grad = torch.randn(4096, generator=generator)
            step(opt)
        return [x for p in (a, c) for x in (p.detach(), *opt.state[p].values())]

    assert_equal_tensors(trained(AdamW.step), trained(step_anew))


class Growing(torch.Tensor):
    """Its gradient adds parameters to the list."""

    @property
    def grad(self):
        if self.more:
            self.params.extend([self.more.pop()] * 20_000)
        return self.own_grad


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("state_dtype", KINDS)
def test_a_list_of_parameters_that_changes_during_a_step(state_dtype, first):
    """Where references to 20,000 tensors would be written to memory for a few."""
    p, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = AdamW([p, other], state_dtype=state_dtype)
    p.grad = other.grad = torch.ones(3)
    opt.step()
    before = [x.clone() for x in params_and_state(opt)]
    growing = torch.ones(3).as_subclass(Growing)
    params = [growing, p] if first else [p, growing]
    growing.params, growing.more, growing.own_grad = params, [other], torch.ones(3)
    opt.state[growing] = {name: x.clone() for name, x in opt.state[p].items()}
    opt.param_groups[0]["params"] = params
    with pytest.raises(
        RuntimeError,
        match=r"^params must have the same length .*; got 2, then 20002$",
    ):
        opt.step()
    opt.param_groups[0]["params"] = [p, other]
    assert_equal_tensors(params_and_state(opt), before)


@pytest.mark.parametrize(
    ("name", "path"),
    [("one memory", "PyTorch"), ("a gradient that is a parameter", "PyTorch"), ("data", "kernels")],
)
def test_memory_that_is_other_since_a_refused_step(name, path):
    """It is looked at again: the refused step has not compared it with other memory."""
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        opt = made(kind)
        for seed in range(3):
            draw_grads(opt, seed)
            opt.step()
        CHANGES[name](opt)
        if kind is AdamW:
            opt.param_groups[1]["eps"] = -1.0
            with pytest.raises(ValueError, match="eps"):
                opt.step()
            opt.param_groups[1]["eps"] = 1e-8
        opt.step()
        results.append(params_of(opt))
        assert kind is not AdamW or opt.last_path[0].path == path
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
