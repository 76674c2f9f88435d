"""Steps of optimizers for PyTorch, compared with those of tests/oracles/twin.py and of PyTorch."""

import numpy as np
import pytest
from torch_bounds import bounds
from twin import adamw_twin

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw.torch import AdamW  # noqa: E402

STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
LOOP = {"foreach": False, "fused": False}


def parameter(shape=(4, 3), dtype=torch.float32, seed=0, layout=lambda x: x):
    """With a gradient, as after some training. A seed for each tensor of a test."""
    random = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(layout(torch.randn(shape, generator=random, dtype=dtype)))
    p.grad = layout(torch.randn(shape, generator=random, dtype=dtype))
    return p


def draw_grads(opt, seed):
    random = torch.Generator().manual_seed(seed)
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.empty_like(p).normal_(generator=random)


def number(x):
    return x.item() if isinstance(x, torch.Tensor) else x


def twin_of(group, p, grad, state):
    """The new parameter and moments of one parameter, and the number of its step."""
    zeros = np.zeros(p.shape, p.detach().numpy().dtype)
    arrays = [state[key].numpy() if key in state else zeros for key in STATE]
    t = int(state["step"]) + 1 if state else 1
    result = adamw_twin(
        p.detach().numpy(),
        grad,
        *arrays[:2],
        t,
        number(group["lr"]),
        tuple(map(number, group["betas"])),
        group["eps"],
        group["weight_decay"],
        scale=-1.0 if group["maximize"] else 1.0,
        v_max=arrays[2] if group["amsgrad"] else None,
    )
    return [*result, t]


def after_step(opt, grads):
    """What one step should make of every parameter. ``grads``: instead of those that they have."""
    expected = []
    for group in opt.param_groups:
        for p in group["params"]:
            grad = p.grad if grads is None else grads[p]
            state = opt.state.get(p, {})
            if grad is None:
                arrays = [p.detach().numpy(), *(state[k].numpy() for k in STATE if k in state)]
                expected.append((p, [a.copy() for a in arrays], number(state.get("step"))))
            else:
                *arrays, t = twin_of(group, p, grad.numpy().copy(), state)
                expected.append((p, arrays, t))
    return expected


def assert_steps(opt, step=None, grads=None):
    """That a step, ``opt.step()`` or another way to take it, gives the bits of the twin."""
    expected = after_step(opt, grads)
    (step or opt.step)()
    for p, arrays, t in expected:
        state = opt.state.get(p, {})
        tensors = [p.detach(), *(state[key] for key in STATE if key in state)]
        for tensor, array in zip(tensors, arrays, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
        assert state.get("step") == t


class Pair:
    """Two optimizers over equal parameters: ours, and PyTorch's loop."""

    def __init__(self, params, hypers, **options):
        self.optimizers = []
        for kind, how in ((AdamW, {}), (torch.optim.AdamW, {"foreach": False, "fused": False})):
            own = [torch.nn.Parameter(torch.tensor(p)) for p in params]
            parts = [own[:2], own[2:]] if len(hypers) == 2 else [own]
            groups = [{"params": part, **h} for part, h in zip(parts, hypers, strict=True)]
            self.optimizers.append(kind(groups, **options, **how))

    def params(self):
        return [[p for g in opt.param_groups for p in g["params"]] for opt in self.optimizers]

    def step(self, grads, **changes):
        for opt, params in zip(self.optimizers, self.params(), strict=True):
            opt.param_groups[-1].update(changes)
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if grad is None else torch.tensor(grad)
            opt.step()

    def assert_near(self, real, t, largest):
        """The bounds are derived in torch_bounds.py: 1.5 is the largest gradient."""
        p_bound, m_bound, v_bound = bounds(real, (), t, largest)
        ours, theirs = self.optimizers
        for p, other in zip(*self.params(), strict=True):
            assert (p - other).abs().max() <= p_bound
            own, others = ours.state[p], theirs.state[other]
            assert list(own) == list(others)
            assert own["step"].equal(others["step"])
            assert (own["exp_avg"] - others["exp_avg"]).abs().max() <= m_bound * 1.5
            for key in list(own)[2:]:
                assert ((own[key] - others[key]).abs() <= v_bound * others[key]).all()


def outcome(kind, make, steps, options, between=None):
    """The tensors after some steps, or the error that ended them. ``between`` sees each step."""
    params = make()
    opt = kind(params, lr=0.1, **options)
    try:
        for _ in range(steps):
            if between:
                between(opt, params)
            opt.step()
    except (RuntimeError, AssertionError, KeyError) as error:
        return type(error), str(error).splitlines()[0]
    state = [value.detach() for p in params for value in opt.state[p].values()]
    return [p.detach() for p in params] + state


def assert_as_torch(make, *, steps=3, between=None, theirs=None, **options):
    """``theirs``: options of PyTorch's optimizer, where they are not the same."""
    ours = outcome(AdamW, make, steps, options, between)
    other = outcome(torch.optim.AdamW, make, steps, options | (theirs or {}), between)
    if isinstance(other, tuple):
        assert ours == other
    else:
        assert not isinstance(ours, tuple), ours
        assert len(ours) == len(other)
        assert all(map(same, ours, other))


def in_training(kind, p, **options):
    """An optimizer with a state, without a step that was its own."""
    opt = kind([p], lr=0.1, **options)
    opt.state[p] = {"step": torch.tensor(1.0)}
    for seed, key in enumerate(STATE if opt.param_groups[0]["amsgrad"] else STATE[:2]):
        opt.state[p][key] = parameter(p.shape, p.dtype, seed).detach().square()
    return opt


def same(a, b):
    if (a.dtype, a.shape, a.device, type(a)) != (b.dtype, b.shape, b.device, type(b)):
        return False
    return a.is_meta or torch.equal(a, b)


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def assert_same_state(state, other):
    assert state["param_groups"] == other["param_groups"]
    assert list(state["state"]) == list(other["state"])
    for entry, others in zip(state["state"].values(), other["state"].values(), strict=True):
        assert list(entry) == list(others)
        for key, value in entry.items():
            assert value.equal(others[key])
            assert (value.dtype, value.stride()) == (others[key].dtype, others[key].stride())
