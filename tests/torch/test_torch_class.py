"""``fused_adamw.torch.AdamW`` is a ``torch.optim.AdamW`` to the code around it."""

import copy
import importlib.util
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from test_torch_kernel import Pair, assert_steps, parameter  # noqa: E402
from torch.optim import lr_scheduler, optimizer, swa_utils  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


@pytest.fixture(params=[None, True], ids=["fused=None", "fused=True"])
def fused(request):
    return request.param


# ---- what it is


def test_it_is_one():
    opt = AdamW([parameter()])
    assert isinstance(opt, torch.optim.AdamW)
    ours, theirs = (
        list(inspect.signature(kind).parameters.values()) for kind in (AdamW, torch.optim.AdamW)
    )
    assert ours[: len(theirs)] == theirs
    assert [p.name for p in ours[len(theirs) :]] == ["state_dtype", "seed"]
    theirs = inspect.signature(torch.optim.AdamW([parameter()]).step)
    assert list(inspect.signature(opt.step).parameters) == list(theirs.parameters)


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "amsgrad": True, "fused": True}], ids=str)
def test_repr_and_groups(options):
    ours, theirs = (kind([parameter()], **options) for kind in (AdamW, torch.optim.AdamW))
    assert repr(ours) == repr(theirs)
    assert ours.defaults == theirs.defaults
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])


@pytest.fixture
def common_optimizers():
    pytest.importorskip("expecttest", reason="PyTorch's own test inputs need expecttest")
    from torch.testing._internal import common_optimizers

    return common_optimizers


def test_inputs_of_the_tests_of_torch(common_optimizers):
    rng = np.random.default_rng(5)
    params = [rng.standard_normal(shape) for shape in ((4, 3), (5,), ())]
    inputs = common_optimizers.optim_inputs_func_adamw(device="cpu")
    assert inputs
    for case in inputs:
        pair = Pair(params, [{}], **case.kwargs)
        for t in range(1, 21):
            signs = [rng.choice([-1, 1], p.shape) for p in params]
            grads = [np.asarray(rng.uniform(0.5, 1.5, s.shape) * s) for s in signs]
            pair.step(grads)
            largest = max(p.abs().max().item() for p in pair.params()[0])
            pair.assert_near(np.float64, t, largest)


def test_error_inputs_of_the_tests_of_torch(common_optimizers):
    inputs = common_optimizers.optim_error_inputs_func_adamw("cpu", torch.float32)
    assert len(inputs) >= 12
    for case in inputs:
        given = case.optimizer_error_input
        params = given.params if given.params is not None else [parameter()]
        warns = issubclass(case.error_type, Warning)
        expected = pytest.warns if warns else pytest.raises
        with expected(case.error_type, match=case.error_regex):
            AdamW(params, **given.kwargs)


def test_too_old_a_pytorch(monkeypatch):
    """PyTorch 2.9 has no exchange API."""
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    spec = importlib.util.find_spec("fused_adamw.torch")
    with pytest.raises(ImportError, match=r"needs PyTorch 2\.10 or later .*exchange API"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_derived_class(fused):
    class Halved(AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad *= 0.5
            return super().step(closure)

    p = parameter()
    opt = Halved([p], fused=fused)
    assert_steps(opt, grads={p: p.grad * 0.5})
    assert repr(opt).startswith("Halved (")


# ---- hooks


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


# ---- groups and gradients


def test_add_param_group(fused):
    opt = AdamW([parameter()], lr=0.1, fused=fused)
    assert_steps(opt)
    opt.add_param_group({"params": [parameter((5,))], "lr": 0.5, "betas": (0.5, 0.6)})
    assert_steps(opt)
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": opt.param_groups[0]["params"]})


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    opt = AdamW(model.named_parameters())
    model(torch.ones(3)).sum().backward()
    assert_steps(opt)
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none, fused):
    """A gradient that is None leaves its parameter alone; one that is zero does not."""
    p = parameter()
    opt = AdamW([p], fused=fused)
    assert_steps(opt)
    opt.zero_grad(set_to_none)
    assert_steps(opt)
    assert opt.state[p]["step"] == (1 if set_to_none else 2)


def test_clipped_gradients(fused):
    params = [parameter(), parameter((5,))]
    opt = AdamW(params, fused=fused)
    for _ in range(3):
        torch.nn.utils.clip_grad_norm_(params, 0.5)
        assert torch.nn.utils.get_total_norm([p.grad for p in params]) < 0.51
        assert_steps(opt)


# ---- schedulers

SCHEDULERS = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=12),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 3, cycle_momentum=True),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, 0.1, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.5)],
        [3],
    ),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.5, anneal_epochs=3),
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "Tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name, tensor_lr, fused):
    """Every step is taken with the numbers of the moment, which are those that PyTorch's own
    optimizer gets; and no scheduler warns of steps that it has not seen."""
    lr = torch.tensor(0.05) if tensor_lr else 0.05
    ours = AdamW([parameter()], lr=lr, fused=fused)
    theirs = torch.optim.AdamW([parameter()], lr=copy.deepcopy(lr))
    metrics = (1,) if name == "ReduceLROnPlateau" else ()
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours_scheduled, theirs_scheduled = SCHEDULERS[name](ours), SCHEDULERS[name](theirs)
        for _ in range(8):
            assert_steps(ours)
            theirs.step()
            ours_scheduled.step(*metrics)
            theirs_scheduled.step(*metrics)
            group, other = ours.param_groups[0], theirs.param_groups[0]
            assert (group["lr"], group["betas"]) == (other["lr"], other["betas"])
            seen.add((float(group["lr"]), group["betas"]))
    assert len(seen) > 1
    if name in ("OneCycleLR", "CyclicLR"):
        assert len({betas for _, betas in seen}) > 1


def test_a_scheduler_that_steps_first_warns():
    """Detection works: it is not only silent."""
    opt = AdamW([parameter()])
    scheduler = lr_scheduler.StepLR(opt, 1)
    with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before `optimizer.step\(\)"):
        scheduler.step()


def test_averaged_model():
    model = torch.nn.Linear(3, 2)
    averaged = swa_utils.AveragedModel(model)
    opt = AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    assert_steps(opt)
    averaged.update_parameters(model)
    kept = [p.detach().clone() for p in averaged.parameters()]
    assert all(map(torch.equal, kept, model.parameters()))
    assert_steps(opt)
    assert all(map(torch.equal, kept, averaged.parameters()))


# ---- state


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


def assert_same_state(state, other):
    assert state["param_groups"] == other["param_groups"]
    assert list(state["state"]) == list(other["state"])
    for entry, others in zip(state["state"].values(), other["state"].values(), strict=True):
        assert list(entry) == list(others)
        for key, value in entry.items():
            assert value.equal(others[key])
            assert (value.dtype, value.stride()) == (others[key].dtype, others[key].stride())


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


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


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


# ---- loss scaling


def backward(opt, scaler, grads):
    """Leave ``grads``, times the scale, as the gradients."""
    opt.zero_grad()
    loss = sum((p * grad).sum() for p, grad in grads.items())
    scaler.scale(loss).backward()


def scaled_step(opt, scaler):
    scaler.step(opt)
    scaler.update()


@pytest.fixture
def grads():
    params = [parameter((4, 3), seed=1), parameter((5,), torch.float64, seed=2)]
    return {p: p.grad for p in params}


@pytest.mark.filterwarnings("error")
def test_grad_scaler(grads, fused):
    """Scales are powers of two, so that unscaling is exact."""
    opt = AdamW(list(grads), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for _ in range(4):
        backward(opt, scaler, grads)
        assert_steps(opt, lambda: scaled_step(opt, scaler), grads)
        assert all(p.grad.equal(grad) for p, grad in grads.items())  # unscaled
    assert scaler.get_scale() == 2.0**12
    assert not hasattr(opt, "found_inf")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("first", [True, False])
def test_an_overflow_makes_a_step_do_nothing(grads, first, value, fused):
    opt = AdamW(list(grads), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    if not first:
        backward(opt, scaler, grads)
        assert_steps(opt, lambda: scaled_step(opt, scaler), grads)
    before = [p.detach().clone() for p in grads]
    state = copy.deepcopy(opt.state_dict())
    p, _ = grads
    bad = {**grads, p: torch.where(torch.arange(12).reshape(4, 3) == 5, value, grads[p])}
    backward(opt, scaler, bad)
    scaled_step(opt, scaler)
    assert scaler.get_scale() == 2.0**9
    assert all(map(torch.equal, grads, before))
    if not first:
        assert_same_state(opt.state_dict(), state)
    backward(opt, scaler, grads)
    assert_steps(opt, lambda: scaled_step(opt, scaler), grads)


def test_unscaled_and_clipped(grads, fused):
    opt = AdamW(list(grads), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        backward(opt, scaler, grads)
        scaler.unscale_(opt)
        assert torch.nn.utils.clip_grad_norm_(list(grads), 0.5) > 0.5
        assert_steps(opt, lambda: scaled_step(opt, scaler))


def test_a_scale_of_any_size(grads):
    """What PyTorch's fused update leaves in the gradients, it steps with: a quotient, rounded."""
    opt = AdamW(list(grads), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    backward(opt, scaler, grads)
    quotients = {p: p.grad / 1000.0 for p in grads}
    assert_steps(opt, lambda: scaled_step(opt, scaler), quotients)
    assert all(p.grad.equal(grad) for p, grad in quotients.items())


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_unscaling_is_not_recorded():
    """Of a gradient that has a graph of its own."""
    p = parameter()
    (p**3).sum().backward(create_graph=True)
    opt = AdamW([p], fused=True)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    before = p.grad.grad_fn.name()
    opt.step()
    assert p.grad.grad_fn.name() == before
