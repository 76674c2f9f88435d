"""Code that runs while a step looks at its tensors: what it frees, the kernels do not write to."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch.overrides import TorchFunctionMode  # noqa: E402

from fused_adamw._torch import arguments  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402


class Calling(TorchFunctionMode):
    """Calls a function when PyTorch's functions have been called so many times."""

    def __init__(self, calls, function):
        self.calls, self.function = calls, function

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls -= 1
        if self.calls == 0:
            with torch._C.DisableTorchFunction():
                self.function()
        return func(*args, **(kwargs or {}))


def step_under_a_mode(opt, calls, function, monkeypatch):
    with Calling(calls, function):
        opt.step()


def step_where_state_is_looked_up(opt, calls, function, monkeypatch):
    """``Tensor.__hash__`` is in Python, where a signal handler may run."""
    entries = list(opt.state.items())
    opt.state.clear()
    opt.state.update(reversed(entries))
    left = [calls]

    def look_up(tensor):
        left[0] -= 1
        if left[0] == 0:
            function()
        return id(tensor)

    monkeypatch.setattr(torch.Tensor, "__hash__", look_up)
    opt.step()


@pytest.mark.parametrize("step", [step_under_a_mode, step_where_state_is_looked_up])
@pytest.mark.parametrize("calls", [1, 8, 9, 15, 19])
def test_code_within_a_step_frees_no_memory_of_it(monkeypatch, step, calls):
    params = [torch.nn.Parameter(torch.ones(30)) for _ in range(20)]
    opt, ran = AdamW(params), []
    for p in params:
        p.grad = torch.ones(30)
    opt.step()
    opt.step()
    memory = [p.data for p in params]
    before = [x.clone() for x in memory]

    def replace():
        ran.append(1)
        for p in params:
            p.data = torch.full((30,), 7.0)

    error = None
    try:
        step(opt, calls, replace, monkeypatch)
    except RuntimeError as found:
        error = str(found)
    # Without an error all were replaced before the step has looked at them.
    expected = params[0].detach().clone() if error is None else torch.full((30,), 7.0)
    assert error is None or "must have the same memory" in error
    assert (error is None) == (not (expected == 7).any())
    assert ran
    assert all(map(torch.equal, memory, before))
    assert all(torch.equal(p.data, expected) for p in params)


def interrupt():
    raise KeyboardInterrupt


def test_a_count_that_is_shared_since_an_interrupted_step(monkeypatch):
    """The interrupted step has seen that the count of one group has moved, but not where to."""
    p, q = (torch.nn.Parameter(torch.ones(n)) for n in (1 << 20, 3))
    opt = AdamW([{"params": [p]}, {"params": [q], "maximize": True}])
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    for _ in range(3):
        opt.step()
    opt.state[p]["step"] = opt.state[q]["step"]
    with monkeypatch.context() as patch:
        patch.setattr(arguments, "default_num_threads", interrupt)
        with pytest.raises(KeyboardInterrupt):
            opt.step()
    with pytest.raises(ValueError, match=r"own counts of steps|must not share memory"):
        opt.step()
    assert opt.state[q]["step"] == 3
