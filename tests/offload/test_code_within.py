"""Code of the user that an operation of the off-loading class calls."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import as_bytes, on_device, parameter, set_gradient, steps  # noqa: E402


class Number(int):
    """0, which calls a function at its n-th conversion."""

    def __new__(cls, call, n=1):
        number = super().__new__(cls, 0)
        number.call, number.left = call, n
        return number

    def __float__(self):
        self.left -= 1
        if self.left == 0:
            self.call()
        return 0.0


def contents(opt, params):
    opt.synchronize()
    state = [x for p in params for x in opt.state[p].values()]
    return [as_bytes(x).tobytes() for x in (*params, *state)]


def started(count=3):
    params = [parameter(seed=seed) for seed in range(count)]  # of several bundles
    opt = on_device([{"params": [p]} for p in params])
    steps(opt, *params, count=1)
    for p in params:
        set_gradient(p, 5)
    return opt, params


def fail():
    raise OverflowError


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
def test_a_number_that_fails_changes_nothing(name):
    """Whichever use fails: it must not be one by the thread that updates."""
    for n in range(1, 20):
        opt, params = started()
        before, number = contents(opt, params), Number(fail, n)
        opt.param_groups[1][name] = number
        try:
            opt.step()
        except ValueError:
            assert contents(opt, params) == before
        else:
            break
    assert n < 19
    assert [opt.state[p]["step"].item() for p in params] == [2, 2, 2]


def test_code_within_a_step_must_not_change_the_optimizer():
    opt, params = started()
    before, saved = contents(opt, params), opt.state_dict()

    def overlap():
        with opt.overlapped():
            params[0].sum().backward()

    changes = {
        "step": opt.step,
        "load_state_dict": lambda: opt.load_state_dict(saved),
        "overlapped": overlap,
    }
    for name, change in changes.items():
        opt.param_groups[2]["eps"] = Number(change)
        with pytest.raises(RuntimeError, match=f"^{name} must be called between other operations"):
            opt.step()
        assert contents(opt, params) == before
    opt.param_groups[2]["eps"] = Number(opt.state_dict)
    opt.step()
    assert [opt.state[p]["step"].item() for p in params] == [2, 2, 2]


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_gradient_that_a_hook_takes(max_grad_norm):
    """As without overlapped(): a parameter without a gradient is not updated."""
    params = [parameter(seed=seed) for seed in range(2)]
    opt, other = (on_device(x, max_grad_norm=max_grad_norm) for x in (params, [parameter(seed=1)]))
    params[0].register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    before = as_bytes(params[0]).tobytes()
    with opt.overlapped():
        sum((0.5 * p.float()).sum() for p in params).backward()
    opt.step()
    (q,) = other.param_groups[0]["params"]
    q.grad = torch.full_like(q, 0.5)
    other.step()
    assert as_bytes(params[0]).tobytes() == before
    assert as_bytes(params[1]).tobytes() == as_bytes(q).tobytes()
