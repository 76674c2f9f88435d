"""The inputs of PyTorch's own tests of AdamW, with this class in place of theirs: what these
tests check of each input, and that results are near those of PyTorch's loop."""

import copy
import pickle
from itertools import product

import pytest

torch = pytest.importorskip("torch", minversion="2.10")
pytest.importorskip("expecttest", reason="PyTorch's own test inputs need expecttest")

from torch.testing._internal.common_optimizers import optim_db  # noqa: E402
from torch_optimizers import LOOP  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

INFO = next(info for info in optim_db if info.optim_cls is torch.optim.AdamW)
SHAPES = [(10, 5), (10,), (), (0, 3), (2, 1, 3)]
FLAGS = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
REAL = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
COMPLEX = [torch.complex64, torch.complex128]
NARROW = [torch.bfloat16, torch.float16]
LOOSE = {"rtol": 5e-2, "atol": 1e-2}  # the loop rounds each operation to 16 bits
pytestmark = pytest.mark.slow


def inputs(dtype=torch.float32):
    return [(case.desc, case.kwargs) for case in INFO.optim_inputs_func("cpu", dtype)]


DESCRIPTIONS = [name for name, _ in inputs()]


def options_of(name, dtype=torch.float32):
    return dict(dict(inputs(dtype))[name])


def parameters(dtype=torch.float32, transposed=False):
    random = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, dtype=torch.float64, generator=random) for shape in SHAPES)
    tensors = [x.to(dtype) for x in drawn]
    if transposed:
        tensors = [x.T.contiguous().T if x.ndim == 2 else x for x in tensors]
    return [torch.nn.Parameter(x) for x in tensors]


def set_gradients(params, step):
    random = torch.Generator().manual_seed(step + 1)
    for p in params:
        p.grad = torch.empty_like(p)
        real = torch.view_as_real(p.grad) if p.is_complex() else p.grad
        magnitude = torch.empty(real.shape, dtype=torch.float64).uniform_(
            0.5, 1.5, generator=random
        )
        sign = torch.empty(real.shape, dtype=torch.float64).uniform_(-1, 1, generator=random).sign()
        real.copy_(magnitude * sign)


def train(opt, params, steps, first=0):
    for step in range(first, first + steps):
        set_gradients(params, step)
        opt.step()


def leaves(opt, params):
    """Parameters and state, in one order."""
    found = [p.detach() for p in params]
    for p in params:
        found += [opt.state[p][name] for name in sorted(opt.state[p])]
    return found


def assert_same(these, those):
    for a, b in zip(these, those, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_complex_parameters_are_refused_as_fused(dtype):
    params = parameters(dtype)
    with pytest.raises(RuntimeError, match="requires all the params to be floating point"):
        train(AdamW(params, fused=True), params, 1)


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        (flags, dtype)
        for flags, dtype in product(FLAGS, [*REAL, *COMPLEX])
        if not ("fused" in flags and dtype.is_complex)
    ],
    ids=str,
)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_near_the_loop(name, flags, dtype):
    options = options_of(name, dtype)
    ours, theirs = parameters(dtype), parameters(dtype)
    opt, loop = AdamW(ours, **options, **flags), torch.optim.AdamW(theirs, **options, **LOOP)
    for step in range(7):
        train(opt, ours, 1, step)
        train(loop, theirs, 1, step)
        for a, b in zip(leaves(opt, ours), leaves(loop, theirs), strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, **(LOOSE if dtype in NARROW else {}))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "state_dict", "after_training"])
def test_a_copy_continues_alike(name, flags, copied, transposed):
    options = options_of(name) | flags
    params = parameters(transposed=transposed)
    opt = AdamW(params, **options)
    train(opt, params, 4)
    if copied in ("deepcopy", "pickle"):
        both = opt, params
        other, twins = copy.deepcopy(both) if copied == "deepcopy" else through_pickle(both)
    else:
        twins = parameters(transposed=transposed)
        other = AdamW(twins, **options)
        if copied == "after_training":  # the state that it has is replaced
            train(other, twins, 2, first=50)
        with torch.no_grad():
            for p, q in zip(params, twins, strict=True):
                q.copy_(p)
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(opt, params, 3, first=4)
    train(other, twins, 3, first=4)
    assert_same(leaves(opt, params), leaves(other, twins))


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_groups(name, flags):
    """The options of a group are its own; a rate of 0 leaves its parameters alone."""
    options = options_of(name) | flags
    params, alone = parameters(), parameters()
    rate = options.pop("lr", 1e-3)
    opt = AdamW([{"params": params[:2], "lr": 0.0}, {"params": params[2:]}], lr=rate, **options)
    other = AdamW(alone[2:], lr=rate, **options)
    before = [p.detach().clone() for p in params[:2]]
    for step in range(4):
        train(opt, params, 1, step)
        set_gradients(alone, step)
        other.step()
    assert_same(before, [p.detach() for p in params[:2]])
    assert_same([p.detach() for p in params[2:]], [p.detach() for p in alone[2:]])


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("index", range(len(INFO.scheduler_inputs[0])))
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_schedulers(name, index, flags):
    options = options_of(name)
    histories = []
    for kind in (AdamW, torch.optim.AdamW):
        params = parameters(torch.float64)
        opt = kind(params, **options, **(flags if kind is AdamW else LOOP))
        scheduler = INFO.scheduler_inputs[0][index](opt)
        for step in range(6):
            train(opt, params, 1, step)
            is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(1.0) if is_plateau else scheduler.step()
        histories.append((params, float(opt.param_groups[0]["lr"])))
    (ours, rate), (theirs, other) = histories
    assert rate == other
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_missing_gradient_leaves_its_parameter_alone(name, flags):
    params = parameters()
    opt = AdamW(params, **options_of(name), **flags)
    for step in range(3):
        set_gradients(params, step)
        params[1].grad = None
        before = params[1].detach().clone()
        opt.step()
        assert_same([before], [params[1].detach()])
        assert params[1] not in opt.state
    assert all(float(opt.state[p]["step"]) == 3 for p in params if p is not params[1])


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_the_loss_of_a_closure(name, flags):
    params = parameters()
    opt = AdamW(params, **options_of(name), **flags)

    def closure():
        opt.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(20)]
    ascends = options_of(name).get("maximize", False)
    assert sorted(losses, reverse=not ascends) == losses
    assert losses[0] != losses[-1]


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_saved_groups_have_the_options_of_pytorch(name):
    options = options_of(name)
    opt, theirs = AdamW(parameters(), **options), torch.optim.AdamW(parameters(), **options)
    ours, expected = opt.state_dict()["param_groups"], theirs.state_dict()["param_groups"]
    assert ours == expected
    theirs.load_state_dict(opt.state_dict())
    opt.load_state_dict(theirs.state_dict())


def test_hooks_run_around_each_step():
    params, seen = parameters(), []
    opt = AdamW(params)
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    train(opt, params, 2)
    assert seen == ["before", "after"] * 2
