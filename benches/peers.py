"""The contenders: each does one AdamW step, with the same hyper-parameters, on the same arrays.

A contender has a name and a function that takes (params, grads, m, v), lists of NumPy arrays, and
returns a function without arguments that does one complete step on them. The arrays are used as
they are wherever the library can (all but jax, which owns its buffers and gives them back to itself
by donation, and pure Python, which has lists).

All run on as many threads as `fused_adamw` takes by default; XLA alone cannot be told, and takes
all processors that the process may use. A peer that is not installed is in MISSING.
"""

import ctypes
import functools
import itertools
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fused_adamw import fused_adamw, runtime_info
from fused_adamw.reference import adamw_update_list

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
HYPER = {  # the defaults of fused_adamw and of its reference
    "lr": LR,
    "betas": BETAS,
    "eps": EPS,
    "weight_decay": WEIGHT_DECAY,
}

RUNTIME = runtime_info()
THREADS = RUNTIME["num_threads"]

OURS = "fused_adamw"
LIMIT = "limit"
REQUIREMENTS = "pip install -r benches/requirements.txt"
MISSING = {}  # contender: how to get it


class Contender(NamedTuple):
    name: str
    prepare: object
    smallest: int = 0  # where it says something: numbers of parameters
    largest: float = math.inf

    def suits(self, parameters):
        return self.smallest <= parameters <= self.largest


def ours(**how):
    def prepare(*arrays):
        # As a user would: one array as such, and HYPER, being the defaults, left out.
        p, g, m, v = (role[0] if len(role) == 1 else role for role in arrays)
        step, count = (
            functools.partial(fused_adamw, **how) if how else fused_adamw,
            itertools.count(1),
        )
        return lambda: step(p, g, m, v, next(count))

    return prepare


def our_contenders():
    yield Contender(OURS, ours())
    if THREADS > 1:
        yield Contender(f"{OURS}-1-thread", ours(num_threads=1))
    for isa in RUNTIME["available_isas"]:
        if isa != RUNTIME["isa"]:
            yield Contender(f"{OURS}-{isa}", ours(isa=isa))


# ---------------------------------------------------------------------------- NumPy and Python


def pure_python(*arrays):
    lists = [[array.ravel().tolist() for array in role] for role in arrays]
    steps = itertools.count(1)

    def step():
        t = next(steps)
        for i, tensor in enumerate(zip(*lists, strict=True)):
            lists[0][i], lists[2][i], lists[3][i] = adamw_update_list(*tensor, t)

    return step


def numpy_expression(params, grads, m, v, betas=BETAS):
    """In place as far as NumPy goes; it allocates what stands between its operations."""
    b1, b2 = betas
    steps = itertools.count(1)

    def step():
        t = next(steps)
        step_size, root = LR / (1 - b1**t), math.sqrt(1 - b2**t)
        for p, g, m_i, v_i in zip(params, grads, m, v, strict=True):
            m_i *= b1
            m_i += (1 - b1) * g
            v_i *= b2
            v_i += (1 - b2) * np.square(g)
            p *= 1 - LR * WEIGHT_DECAY
            p -= step_size * m_i / (np.sqrt(v_i) / root + EPS)

    return step


# ---------------------------------------------------------------------------- the peers


def torch_contenders():
    import torch

    torch.set_num_threads(THREADS)

    def prepare(params, grads, m, v, **how):
        leaves = [torch.from_numpy(p).requires_grad_() for p in params]
        optimizer = torch.optim.AdamW(leaves, **HYPER, **how)
        for leaf, g, m_i, v_i in zip(leaves, grads, m, v, strict=True):
            leaf.grad = torch.from_numpy(g)
            optimizer.state[leaf] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.from_numpy(m_i),
                "exp_avg_sq": torch.from_numpy(v_i),
            }
        return optimizer.step

    yield Contender("torch-fused", functools.partial(prepare, fused=True))
    yield Contender("torch-foreach", functools.partial(prepare, foreach=True))


def numba_contenders():
    import numba

    numba.set_num_threads(THREADS)

    @numba.njit(parallel=True, fastmath=True)
    def update(p, g, m, v, b1, c1, b2, c2, step_size, root, decay, eps):
        for i in numba.prange(p.size):
            m_i = b1 * m[i] + c1 * g[i]
            v_i = b2 * v[i] + c2 * g[i] * g[i]
            m[i] = m_i
            v[i] = v_i
            p[i] = p[i] * decay - step_size * m_i / (np.sqrt(v_i) * root + eps)

    def prepare(params, grads, m, v):
        flat = ([array.reshape(-1) for array in role] for role in (params, grads, m, v))
        tensors = list(zip(*flat, strict=True))
        real = params[0].dtype.type
        b1, b2 = BETAS
        constants = [real(x) for x in (b1, 1 - b1, b2, 1 - b2)]
        decay, eps = real(1 - LR * WEIGHT_DECAY), real(EPS)
        steps = itertools.count(1)

        def step():
            t = next(steps)
            step_size, root = real(LR / (1 - b1**t)), real(1 / math.sqrt(1 - b2**t))
            for tensor in tensors:
                update(*tensor, *constants, step_size, root, decay, eps)

        return step

    yield Contender("numba", prepare)


def optax_contenders():
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    adamw = optax.adamw(LR, *BETAS, EPS, weight_decay=WEIGHT_DECAY)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, grads):
        updates, state = adamw.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def prepare(*arrays):
        params, grads, m, v = ([jax.numpy.array(array) for array in role] for role in arrays)
        first, *rest = adamw.init(params)
        state = first._replace(mu=m, nu=v), *rest

        def step():
            nonlocal params, state
            params, state = jax.block_until_ready(update(params, state, grads))

        return step

    yield Contender("optax", prepare)


def limit_call(loaded, *arrays):
    size, dtype = arrays[0].size, arrays[0].dtype
    zero = {"float32": ctypes.c_float, "float64": ctypes.c_double}[dtype.name](0)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    loop = getattr(loaded, f"limit_{dtype.name}")
    return functools.partial(loop, *pointers, ctypes.c_ssize_t(size), THREADS, zero)


def limit_contenders():
    """A C loop with the loads and stores of a step and next to no arithmetic: limit.c."""
    source = Path(__file__).with_name("limit.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "limit.so")
        compiler = os.environ.get("CC", "cc").split()
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))

    def prepare(*arrays):
        calls = [limit_call(loaded, *tensor) for tensor in zip(*arrays, strict=True)]

        def step():
            for call in calls:
                call()

        return step

    # A smaller step is bound by the call, not by memory.
    yield Contender(LIMIT, prepare, smallest=2**16)


def peer_contenders(load, names, remedy):
    try:
        return list(load())
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        MISSING[names] = f"{remedy} ({error})"
        return []


@functools.cache
def all_contenders():
    return [
        *our_contenders(),
        Contender("pure-python", pure_python, largest=2**12),
        Contender("numpy", numpy_expression),
        *peer_contenders(torch_contenders, "torch", REQUIREMENTS),
        *peer_contenders(numba_contenders, "numba", REQUIREMENTS),
        *peer_contenders(optax_contenders, "optax", REQUIREMENTS),
        *peer_contenders(limit_contenders, LIMIT, "install a C compiler with OpenMP"),
    ]


def contenders_for(parameters):
    """{name: prepare} of those that suit this number of parameters."""
    return {c.name: c.prepare for c in all_contenders() if c.suits(parameters)}
