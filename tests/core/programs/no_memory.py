"""Python's allocator refuses the n-th allocation, for every n of a step.

    no_memory.py ONLY

ONLY is "one" (the n-th is refused) or "rest" (and all after it). Prints what came of each n.
"""

import _testcapi
import sys

import numpy as np

from fused_adamw import AdamW

OPTIONS = {"max_grad_norm": 1.0, "ema_decay": 0.9, "state_dtype": "8bit", "num_threads": 1}
SHAPES = [(30, 10), (7,), ()]
MOST = 20_000


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {str(i): np.array(rng.standard_normal(s), np.float32) for i, s in enumerate(SHAPES)}


def groups(params):
    return [{"params": {"0": params["0"]}, "lr": 0.1}, {"params": [params["1"], params["2"]]}]


def gradients(seed):
    grads = arrays(seed)
    return [{"0": grads["0"]}, [grads["1"], None if seed == 2 else grads["2"]]]


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
    finally:
        _testcapi.remove_mem_hooks()
    return done, result


def step(n, only):
    """A step happens as a whole, once, or not at all; the next one is as it should be."""
    params, expected = arrays(0), arrays(0)
    opt, other = (AdamW(groups(x), **OPTIONS) for x in (params, expected))
    for optimizer in (opt, other):
        optimizer.step(gradients(1))
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


def main(only):
    refused = 0
    step(MOST, only)
    in_row = 0  # steps that were done: no allocation is left to refuse
    for n in range(1, MOST):
        done = step(n, only)
        refused += not done
        in_row = in_row + 1 if done else 0
        if in_row == 50:
            break
    print(n, refused)


main(*sys.argv[1:])
