"""Steps that are taken like the last one: whatever changes between two of them takes effect, as in
PyTorch's class."""

import collections
import copy
import weakref

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from garbage import collect_after  # noqa: E402
from torch_changes import CHANGES, first, made, setting  # noqa: E402
from torch_optimizers import draw_grads, params_of  # noqa: E402

from fused_adamw import runtime_info  # noqa: E402
from fused_adamw._torch import step as module  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402


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


def test_a_plan_keeps_no_tensor():
    opt = planned()
    opt.step()
    p = first(opt)
    kept = [weakref.ref(x) for x in (p.grad, *opt.state[p].values())]
    p.grad = None
    opt.state[p] = {}
    assert [x() for x in kept] == [None] * 4


def test_a_plan_keeps_no_parameter():
    opt = planned()
    opt.step()
    kept = weakref.ref(first(opt))
    del opt.state[kept()]
    opt.param_groups[0]["params"] = opt.param_groups[0]["params"][1:]
    assert kept() is None


def test_a_step_within_a_step_changes_nothing():
    opt = planned()

    class Stepping(collections.defaultdict):
        def get(self, p, default=None):
            opt.step()
            return super().get(p, default)

    before, state = contents(opt), opt.state
    opt.state = Stepping(dict, state)
    with pytest.raises(RuntimeError, match="step must be called between other operations"):
        opt.step()
    assert all(map(torch.equal, contents(opt), before))
    opt.state = state
    opt.step()
    assert state[first(opt)]["step"] == 3


class Epsilon(int):
    """A number whose method calls a function."""

    def __float__(self):
        self.call()
        return 0.0


@pytest.mark.parametrize("steps", [0, 1, 3])  # before: without a plan, and with one
@pytest.mark.parametrize("which", ["parameter", "gradient", "state", "count"])
def test_a_tensor_that_code_within_a_step_changes_is_not_written_to(steps, which):
    p = torch.nn.Parameter(torch.ones(1000))
    opt = AdamW([p])
    p.grad = torch.ones(1000)
    for _ in range(max(steps, 1)):
        opt.step()
    if steps == 0:
        opt.__dict__.pop("_plan", None)
    replaced = {
        "parameter": lambda: setattr(p, "data", torch.ones(3)),
        "gradient": lambda: p.grad.set_(torch.ones(3)),
        "state": lambda: opt.state[p]["exp_avg"].set_(torch.ones(3)),
        "count": lambda: opt.state[p]["step"].add_(1),
    }
    before = p.detach().clone()
    opt.param_groups[0]["eps"] = Epsilon()
    opt.param_groups[0]["eps"].call = replaced[which]
    with pytest.raises(RuntimeError, match=r"^params must have the same memory"):
        opt.step()
    if which != "parameter":
        assert torch.equal(p, before)


def test_code_within_a_step_may_copy_the_optimizer():
    opt, copies = planned(), []
    opt.param_groups[0]["eps"] = Epsilon()
    opt.param_groups[0]["eps"].call = lambda: copies.append(copy.deepcopy(opt))
    before = contents(opt)
    opt.step()
    assert all(map(torch.equal, contents(copies[0]), before))
    assert not any(map(torch.equal, contents(opt), before))


def with_lazy_gradients(size):
    """Whose next step is as the last one, with gradients of which Python has no object yet."""
    params = [torch.nn.Parameter(torch.ones(size)) for _ in range(20)]
    opt = AdamW(params)
    for steps in range(3):
        for p in params:
            p.grad = None
        sum((p * 0.5).sum() for p in params).backward()
        if steps < 2:
            opt.step()
    return opt


def test_finalizers_within_a_step_change_no_memory_of_it():
    """They could free what the kernels are about to write to."""
    for allocations in range(1, 45):
        opt, ran = with_lazy_gradients(3), []
        params = list(params_of(opt))
        memory = [p.data for p in params]
        before = [x.clone() for x in memory]

        class Replacing:
            def __del__(self, params=params, ran=ran):
                ran.append(1)
                for p in params:
                    p.data = torch.full((3,), 7.0)

        collect_after(allocations, Replacing, opt.step)
        assert ran
        stepped = {torch.equal(x, y) for x, y in zip(memory, before, strict=True)}
        assert len(stepped) == 1  # all, or none
        seven = {torch.equal(p.data, torch.full((3,), 7.0)) for p in params}
        assert seven == {not stepped.pop()}


@pytest.mark.skipif(runtime_info()["threading"] is None, reason="no number of threads is read")
def test_signal_handlers_within_a_step_change_no_memory_of_it(monkeypatch):
    """They may run while the number of threads is read."""
    p = torch.nn.Parameter(torch.ones(1 << 20))
    opt, replaced = AdamW([p]), []
    memory = p.data

    def num_threads():
        for data in replaced:
            p.data = data
        return 2

    monkeypatch.setattr(module, "num_threads", num_threads)
    p.grad = torch.ones(1 << 20)
    opt.step()
    opt.step()
    before = memory.clone()
    replaced.append(torch.ones(3))
    with pytest.raises(RuntimeError, match=r"^params must have the same memory"):
        opt.step()
    assert torch.equal(memory, before)
