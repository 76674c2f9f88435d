"""Python's allocator refuses the n-th allocation, for every n of a call.

    no_memory.py CALL ONLY

CALL is one of those in CALLS. ONLY is "one" (the n-th is refused) or "rest" (and all after it). A
refused call raises MemoryError, and then works. Prints how many n were tried, and how many of them
were refused.
"""

import _testcapi
import copy
import pickle
import sys

import numpy as np

from fused_adamw import AdamW, fused_adamw

OPTIONS = {"max_grad_norm": 1.0, "ema_decay": 0.9, "state_dtype": "8bit", "num_threads": 1}
SHAPES = [(30, 10), (7,), ()]
MOST = 20_000
OF_PYTORCH = ("Failed to allocate", "increment_version expect")  # what it says instead


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {str(i): np.array(rng.standard_normal(s), np.float32) for i, s in enumerate(SHAPES)}


def groups(params):
    nested = [{"a": params["1"]}, [params["2"]]]
    return [{"params": {"0": params["0"]}, "lr": 0.1}, {"params": nested}]


def gradients(seed):
    grads = arrays(seed)
    return [{"0": grads["0"]}, [{"a": grads["1"]}, [None if seed == 2 else grads["2"]]]]


def contents(params, opt):
    state = [
        [x if isinstance(x, (int, str)) else x.tobytes() for x in entry.values()]
        for entry in opt.state_dict()["state"].values()
    ]
    return opt.t, [p.tobytes() for p in params.values()], state


def refusing(call, n, only):
    """Whether the call got through, and what it returned."""
    done = result = None
    _testcapi.set_nomemory(n, n + 1 if only == "one" else 0)
    try:
        result = call()
        done = True
    except MemoryError:
        done = False
    except RuntimeError as error:
        if not any(text in str(error) for text in OF_PYTORCH):
            raise
        done = False
    finally:
        _testcapi.remove_mem_hooks()
    return done, result


def stepped(params, *seeds):
    opt = AdamW(groups(params), **OPTIONS)
    for seed in seeds:
        opt.step(gradients(seed))
    return opt


def step(n, only):
    """A step happens as a whole, once, or not at all; the next one is as it should be."""
    params, expected = arrays(0), arrays(0)
    opt, other = stepped(params, 1), stepped(expected, 1)
    before, grads = contents(params, opt), gradients(2)
    done, norm = refusing(lambda: opt.step(grads), n, only)
    assert (contents(params, opt) == before) != done
    if not done:
        norm = opt.step(grads)
    assert norm == other.step(gradients(2))
    assert contents(params, opt) == contents(expected, other)
    opt.step(gradients(3))
    other.step(gradients(3))
    assert contents(params, opt) == contents(expected, other)
    return done


def construct(n, only):
    params, expected = arrays(0), arrays(0)
    given = groups(params)
    done, opt = refusing(lambda: AdamW(given, **OPTIONS), n, only)
    if not done:
        opt = AdamW(given, **OPTIONS)
    other = AdamW(groups(expected), **OPTIONS)
    assert contents(params, opt) == contents(expected, other)
    for optimizer in (opt, other):
        optimizer.step(gradients(2))
    assert contents(params, opt) == contents(expected, other)
    return done


def function(n, only):
    """The function binds its arrays at each call."""
    trees = [gradients(seed) for seed in range(4, 8)]
    trees[3] = [{"0": np.abs(trees[3][0]["0"])}, trees[0][1]]
    trees[3][1] = [{"a": np.abs(trees[2][1][0]["a"])}, [np.zeros((), np.float32)]]
    other = copy.deepcopy(trees)
    before = pickle.dumps(trees)
    done, _ = refusing(lambda: fused_adamw(*trees, t=2, num_threads=1), n, only)
    assert (pickle.dumps(trees) == before) != done
    if not done:
        fused_adamw(*trees, t=2, num_threads=1)
    fused_adamw(*other, t=2, num_threads=1)
    assert pickle.dumps(trees) == pickle.dumps(other)
    return done


def load(n, only):
    """Arrays are copied one after another: a second call completes what the first has begun."""
    params, expected = arrays(0), arrays(0)
    opt, other = stepped(params), stepped(expected, 1, 2)
    saved = other.state_dict()
    done, _ = refusing(lambda: opt.load_state_dict(saved), n, only)
    if not done:
        opt.load_state_dict(saved)
    assert contents(params, opt)[::2] == contents(expected, other)[::2]  # not the parameters
    return done


def copies(n, only):
    params = arrays(0)
    opt = stepped(params, 1)
    done, other = refusing(lambda: copy.deepcopy(opt), n, only)
    if not done:
        other = copy.deepcopy(opt)
    assert contents(params, opt) == contents(params, other)
    return done


def torch_step(n, only, steps_before=0):
    """The first step of the class for PyTorch, which makes the state: of both groups or of none."""
    import torch

    from fused_adamw.torch import AdamW as TorchAdamW

    def made():
        params = [torch.tensor(x, requires_grad=True) for x in arrays(0).values()]
        for p, grad in zip(params, arrays(1).values(), strict=True):
            p.grad = torch.from_numpy(grad)
        groups = [{"params": params[:2]}, {"params": params[2:], "maximize": True}]
        return params, TorchAdamW(groups, state_dtype="8bit")

    (params, opt), (expected, other) = made(), made()
    for _ in range(steps_before):
        opt.step()
        other.step()
    before = [p.detach().clone() for p in params]
    done, _ = refusing(opt.step, n, only)
    # What PyTorch does after the kernels allocates, too, so that an error may follow the step.
    (taken,) = {not torch.equal(p, old) for p, old in zip(params, before, strict=True)}
    assert taken or not done
    for _ in range(2 - taken):
        opt.step()
    for _ in range(2):
        other.step()
    assert all(map(torch.equal, params, expected))
    return done


def torch_next_step(n, only):
    """The second one, which is like the first."""
    return torch_step(n, only, steps_before=1)


CALLS = {
    found.__name__: found
    for found in (step, construct, function, load, copies, torch_step, torch_next_step)
}


def main(name, only):
    call, refused = CALLS[name], 0
    call(MOST, only)
    in_row = 0  # calls that were done: no allocation is left to refuse
    for n in range(1, MOST):
        done = call(n, only)
        refused += not done
        in_row = in_row + 1 if done else 0
        if in_row == 50:
            break
    print(n, refused)


main(*sys.argv[1:])
