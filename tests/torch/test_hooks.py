"""Hooks and closures, as in ``torch.optim.AdamW``."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch.optim import optimizer  # noqa: E402
from torch_optimizers import assert_steps, parameter  # noqa: E402

from fused_adamw import offload  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402


def events_of(kind):
    """What hooks, local and global, see of two steps, one of them with a closure."""
    events = []

    def hook(name):
        return lambda opt, args, kwargs: events.append((name, args, list(kwargs)))

    p = parameter()
    opt = kind([p])
    kind([parameter()])  # the class is patched once
    handles = [
        optimizer.register_optimizer_step_pre_hook(hook("all before")),
        optimizer.register_optimizer_step_post_hook(hook("all after")),
        opt.register_step_post_hook(hook("after")),
        opt.register_step_pre_hook(hook("before")),
        opt.register_step_pre_hook(hook("before, too")),
    ]
    try:
        opt.step()
        opt.step(closure=lambda: events.append("closure"))
    finally:
        for handle in handles:
            handle.remove()
    opt.step()
    return [event if isinstance(event, str) else (event[0], event[2]) for event in events]


def test_hooks_and_their_order():
    theirs = events_of(torch.optim.AdamW)
    assert len(theirs) == 11
    assert events_of(AdamW) == theirs


def test_hooks_see_the_step_before_and_after():
    p = parameter()
    opt = AdamW([p])
    before, after = [], []
    opt.register_step_pre_hook(lambda *_: before.append(p.detach().clone()))
    opt.register_step_post_hook(lambda *_: after.append(p.detach().clone()))
    start = p.detach().clone()
    opt.step()
    assert before[0].equal(start)
    assert after[0].equal(p)
    assert not after[0].equal(start)


def test_a_hook_changes_the_arguments():
    opt = AdamW([parameter()])
    opt.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: "changed"), {}))
    assert opt.step(lambda: "given") == "changed"


def test_hooks_that_come_and_go():
    """Between steps of one optimizer; for all optimizers; and where a class has its own step."""

    class Derived(AdamW):
        def step(self, closure=None):
            self.register_step_post_hook(lambda *_: events.append("registered in the step"))
            return super().step(closure)

    events = []
    opt = AdamW([parameter()])
    opt.step()
    for register in (
        opt.register_step_pre_hook,
        opt.register_step_post_hook,
        optimizer.register_optimizer_step_pre_hook,
        optimizer.register_optimizer_step_post_hook,
    ):
        handle = register(lambda *_: events.append("hook"))
        opt.step()
        handle.remove()
        opt.step()
        assert events.pop() == "hook"
        assert not events
    Derived([parameter()]).step()
    assert "registered in the step" in events


def test_profilers_see_a_step(monkeypatch):
    """The entry for them is skipped only where there is none."""
    opt = AdamW([parameter()])
    with torch.autograd.profiler.profile() as profile:
        assert_steps(opt)
    names = [event.name for event in profile.function_events]
    assert "Optimizer.step#AdamW.step" in names
    assert "fused_adamw::adamw" in names  # what the kernels take, with their preparation
    monkeypatch.setattr(torch.autograd.profiler, "record_function", None)  # fails where it is used
    assert_steps(opt)


def test_hooks_of_the_state():
    opt = AdamW([parameter()])
    seen = []
    opt.register_state_dict_pre_hook(lambda opt: seen.append("save"))
    opt.register_state_dict_post_hook(lambda opt, state: {**state, "extra": 1})
    opt.register_load_state_dict_pre_hook(lambda opt, state: seen.append(state.pop("extra")))
    opt.register_load_state_dict_post_hook(lambda opt: seen.append("loaded"))
    opt.step()
    opt.load_state_dict(opt.state_dict())
    assert seen == ["save", 1, "loaded"]
    assert_steps(opt)


def test_a_closure(fused):
    p = parameter()
    opt = AdamW([p], fused=fused)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = (p * 3).sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        assert_steps(
            opt, lambda: calls.append(opt.step(closure)), grads={p: torch.full_like(p, 3.0)}
        )
        assert not torch.is_grad_enabled()
    assert len(calls) == 2
    assert calls[0] is calls[1]


def trained(kind, steps, **options):
    p = parameter()
    opt = kind([p], **options)
    for k in range(steps):
        p.grad = torch.full_like(p, 0.1 * (k + 1))
        opt.step()
    return opt


def contents(opt):
    return {name: x.clone() for state in opt.state.values() for name, x in state.items()}


@pytest.mark.parametrize("kind", [AdamW, offload.AdamW])
@pytest.mark.parametrize("moment", ["pre", "post"])
@pytest.mark.parametrize("state_dtype", [None, "float32", "8bit"])
@pytest.mark.filterwarnings("ignore:state_dict.*converted")
def test_a_hook_of_a_load_that_loads_itself(kind, moment, state_dtype):
    """The load that ends last is what remains, as in PyTorch's class."""
    dicts = [trained(torch.optim.AdamW, steps).state_dict() for steps in (1, 2)]
    opt, seen = trained(kind, 3, state_dtype=state_dtype), []

    def hook(opt, *_):
        if not seen:
            seen.append(None)
            opt.load_state_dict(dicts[1])
            seen.append(contents(opt))

    getattr(opt, f"register_load_state_dict_{moment}_hook")(hook)
    opt.load_state_dict(dicts[0])
    found = []
    for saved in dicts:
        expected = trained(kind, 0, state_dtype=state_dtype)
        expected.load_state_dict(saved)
        found.append(contents(expected))
    for ours, theirs in ((seen[1], found[1]), (contents(opt), found[moment == "post"])):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = trained(kind, 0, state_dtype=state_dtype)
    again.load_state_dict(opt.state_dict())  # with no hook of the loads before
    assert contents(again).keys() == ours.keys()


def test_a_load_within_a_load_has_its_own_arguments():
    saved = trained(torch.optim.AdamW, 2).state_dict()
    opt, seen = trained(AdamW, 1, state_dtype="bfloat16"), []

    def hook(opt, _):
        if not seen:
            seen.append(None)
            with pytest.raises(ValueError, match="convert"):
                opt.load_state_dict(saved, convert=False)

    opt.register_load_state_dict_pre_hook(hook)
    with pytest.warns(UserWarning, match="converted"):
        opt.load_state_dict(saved)
    assert [x.dtype for x in contents(opt).values()].count(torch.bfloat16) == 2
