"""The contenders: each does one AdamW step, with the same hyper-parameters, on the same arrays.

A contender has a name and, once loaded, a function that takes (params, grads, m, v), lists of NumPy
arrays, and returns a function without arguments that does one complete step on them. The arrays are
used as they are wherever the library can. Where it cannot (jax, which owns its buffers and gives
them back to itself by donation; pure Python, which has lists) the step returns the parameters.

Those with a state in fewer bits keep it themselves and leave m and v alone; it starts as zeros. If
parameters and gradients have fewer bits too, they are copies, and the step returns the former.

All run on as many threads as `fused_adamw` takes by default; our class too, which would otherwise
spend its first steps on finding out how many pay. XLA alone cannot be told, and takes all
processors that the process may use. A peer that cannot be loaded is in MISSING.
"""

import ctypes
import functools
import itertools
import math
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._core import fused_adamw
from ..optimizer import AdamW
from ..reference import adamw_update_list
from ..runtime import runtime_info
from .environment import compiler_command
from .harness import Prepare, Step
from .suppress_output import silence
from .workloads import Array, aligned

Arrays: TypeAlias = list[Array]

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
HYPER: dict[str, Any] = {  # the defaults of fused_adamw and of its reference
    "lr": LR,
    "betas": BETAS,
    "eps": EPS,
    "weight_decay": WEIGHT_DECAY,
}

OURS, OURS_FOR_TORCH = "fused_adamw", "fused_adamw.torch"
OURS_8BIT, OURS_BFLOAT16 = "AdamW-8bit", "AdamW-bfloat16"
OURS_ALL_BFLOAT16 = "AdamW-all-bfloat16"
LIMIT = "limit"
MISSING: dict[str, str] = {}  # contender: how to get it


class Contender(NamedTuple):
    name: str
    load: Callable[[], Prepare]
    packages: tuple[str, ...] = ()
    remedy: str = ""
    smallest: int = 0  # where it says something, in a bearable time: numbers of parameters
    too_small: str = "means nothing where the call, not memory, takes the time"
    largest: float = math.inf
    arrays: float = 4  # as large as the parameters: how many it needs room for, the four included
    kept: float = 0  # how many of these stay beside the four as long as a contest does
    bytes_moved: float | None = None  # a parameter; None: by all seven reads and writes
    dtypes: tuple[str, ...] = ("float32", "float64")

    def suits(self, parameters: int, dtype: str) -> bool:
        return self.smallest <= parameters <= self.largest and dtype in self.dtypes


@functools.cache
def loaded(contender: Contender) -> Prepare | None:
    """What prepares its steps; None where it cannot be had, for the reason that MISSING names.
    Whatever is wrong with one contender, the others race without it."""
    try:
        with silence():
            return contender.load()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        remedy = contender.remedy or f"pip install {' '.join(contender.packages)}"
        MISSING[contender.name] = f"{remedy} ({reason})"
        return None


def threads() -> int:
    return runtime_info()["num_threads"]


# ---------------------------------------------------------------------------- ours


def ours(**how: Any) -> Prepare:
    def prepare(*arrays: Arrays) -> Step:
        # As a user would: one array as such, and HYPER, being the defaults, left out.
        p, g, m, v = (role[0] if len(role) == 1 else role for role in arrays)
        step: Callable[..., None] = partial(fused_adamw, **how) if how else fused_adamw
        count = itertools.count(1)
        return lambda: step(p, g, m, v, next(count))

    return prepare


def our_variants() -> Iterator[Contender]:
    """The function on one thread, and with the instruction sets that it would not choose."""
    runtime = runtime_info()
    if runtime["num_threads"] > 1:
        yield Contender(f"{OURS}-1-thread", partial(ours, num_threads=1))
    for isa in runtime["available_isas"]:
        if isa != runtime["isa"]:
            yield Contender(f"{OURS}-{isa}", partial(ours, isa=isa))


def ours_with_state(state_dtype: str, **how: Any) -> Prepare:
    """The class, with a state of its own."""

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        optimizer = AdamW(params, state_dtype=state_dtype, num_threads=threads(), **how)
        return lambda: optimizer.step(grads)

    return prepare


def in_bfloat16(arrays: Arrays) -> Arrays:
    """Copies; or the arrays themselves, where they are in bfloat16."""
    import ml_dtypes

    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return [a if a.dtype == bfloat16 else aligned(a.astype(bfloat16)) for a in arrays]


def ours_in_bfloat16(**how: Any) -> Prepare:
    """The class with parameters, gradients and state in 16 bits."""
    in_bfloat16([])  # is what it takes there?

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        own, own_grads = in_bfloat16(params), in_bfloat16(grads)
        optimizer = AdamW(own, num_threads=threads(), **how)

        def step() -> object:
            optimizer.step(own_grads)
            return own

        return step

    return prepare


# ---------------------------------------------------------------------------- NumPy and Python


def pure_python(*arrays: Arrays) -> Step:
    lists: Any = [[array.ravel().tolist() for array in role] for role in arrays]
    steps = itertools.count(1)

    def step() -> object:
        t = next(steps)
        for i, (p, g, m, v) in enumerate(zip(*lists, strict=True)):
            lists[0][i], lists[2][i], lists[3][i] = adamw_update_list(p, g, m, v, t)
        return lists[0]

    return step


def numpy_expression(
    params: Arrays, grads: Arrays, m: Arrays, v: Arrays, betas: tuple[float, float] = BETAS
) -> Step:
    """In place as far as NumPy goes; it allocates what stands between its operations."""
    b1, b2 = betas
    steps = itertools.count(1)

    def step() -> None:
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


# ---------------------------------------------------------------------------- torch


def on_tensors(first_step: Callable[[], object], make: Callable[..., Any]) -> Prepare:
    """A step of the torch optimizer that `make(parameters)` gives, on the arrays themselves."""
    import torch

    torch.set_num_threads(threads())

    def prepare(params: Arrays, grads: Arrays, m: Arrays, v: Arrays) -> Step:
        leaves = [torch.from_numpy(p).requires_grad_() for p in params]
        optimizer = make(leaves)
        for leaf, g, m_i, v_i in zip(leaves, grads, m, v, strict=True):
            leaf.grad = torch.from_numpy(g)
            optimizer.state[leaf] = {
                "step": first_step(),
                "exp_avg": torch.from_numpy(m_i),
                "exp_avg_sq": torch.from_numpy(v_i),
            }
        step: Step = optimizer.step
        return step

    return prepare


def torch_adamw(**how: bool) -> Prepare:
    import torch

    make = partial(torch.optim.AdamW, **HYPER, **how)
    return on_tensors(lambda: torch.tensor(0.0), make)


def on_own_state(make: Callable[..., Any]) -> Prepare:
    """A step of the torch optimizer that `make(parameters)` gives, which makes its own state."""
    import torch

    torch.set_num_threads(threads())

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        leaves = [torch.from_numpy(p).requires_grad_() for p in params]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = torch.from_numpy(g)
        return silent_at_first(make(leaves).step)

    return prepare


def silent_at_first(step: Step) -> Step:
    """The same step; at its first call, where it may compile itself, it prints nothing."""
    called = False

    def step_of_contest() -> object:
        nonlocal called
        if called:
            return step()
        called = True
        with silence():
            return step()

    return step_of_contest


def bitsandbytes_adamw() -> Prepare:
    """For processors too it keeps 8 bits, of tensors of 4,096 elements or more."""
    from bitsandbytes.optim import AdamW8bit

    return on_own_state(partial(AdamW8bit, **HYPER))


def torchao_adamw() -> Prepare:
    """As its users have it: the step is compiled at the first call, which takes half a minute."""
    from torchao.optim import AdamW8bit

    return on_own_state(partial(AdamW8bit, **HYPER))


def torch_in_bfloat16() -> Prepare:
    """The fused step with parameters, gradients and state in bfloat16."""
    import torch

    torch.set_num_threads(threads())
    in_bfloat16([])  # is what it takes there?

    def tensor(array: Array) -> Any:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        own = in_bfloat16(params)
        leaves = [tensor(p).requires_grad_() for p in own]
        for leaf, g in zip(leaves, in_bfloat16(grads), strict=True):
            leaf.grad = tensor(g)
        optimizer = torch.optim.AdamW(leaves, **HYPER, fused=True)

        def step() -> object:
            optimizer.step()
            return own

        return step

    return prepare


def our_torch_adamw() -> Prepare:
    import torch

    from ..torch import AdamW

    make = partial(AdamW, **HYPER, fused=True)
    return on_tensors(lambda: torch.tensor(0.0), make)


def deepspeed_adamw() -> Prepare:
    """It compiles itself when it is first used, which takes about a minute."""
    scripts = sysconfig.get_path("scripts")  # where ninja is, also for a Python called by its path
    os.environ["PATH"] = os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder
    from deepspeed.utils import logger

    logger.disabled = True
    CPUAdamBuilder().load()

    def make(leaves: list[Any]) -> Any:
        with silence():
            return DeepSpeedCPUAdam(leaves, **HYPER, adamw_mode=True)

    return on_tensors(int, make)


# ---------------------------------------------------------------------------- numba and jax


def numba_loop() -> Prepare:
    import numba

    numba.set_num_threads(threads())

    @numba.njit(parallel=True, fastmath=True)  # type: ignore[untyped-decorator, unused-ignore]
    def update(p, g, m, v, b1, c1, b2, c2, step_size, root, decay, eps):  # type: ignore[no-untyped-def]
        for i in numba.prange(p.size):
            m_i = b1 * m[i] + c1 * g[i]
            v_i = b2 * v[i] + c2 * g[i] * g[i]
            m[i] = m_i
            v[i] = v_i
            p[i] = p[i] * decay - step_size * m_i / (np.sqrt(v_i) * root + eps)

    def prepare(params: Arrays, grads: Arrays, m: Arrays, v: Arrays) -> Step:
        flat = ([array.reshape(-1) for array in role] for role in (params, grads, m, v))
        tensors = list(zip(*flat, strict=True))
        real = params[0].dtype.type
        b1, b2 = BETAS
        constants = [real(x) for x in (b1, 1 - b1, b2, 1 - b2)]
        decay, eps = real(1 - LR * WEIGHT_DECAY), real(EPS)
        steps = itertools.count(1)

        def step() -> None:
            t = next(steps)
            step_size, root = real(LR / (1 - b1**t)), real(1 / math.sqrt(1 - b2**t))
            for tensor in tensors:
                update(*tensor, *constants, step_size, root, decay, eps)

        return step

    return prepare


def optax_adamw() -> Prepare:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    adamw = optax.adamw(LR, *BETAS, EPS, weight_decay=WEIGHT_DECAY)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = adamw.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def prepare(*arrays: Arrays) -> Step:
        params, grads, m, v = ([jax.numpy.array(array) for array in role] for role in arrays)
        first, *rest = adamw.init(params)
        state = first._replace(mu=m, nu=v), *rest

        def step() -> object:
            nonlocal params, state
            params, state = jax.block_until_ready(update(params, state, grads))
            return params

        return step

    return prepare


# ---------------------------------------------------------------------------- the limit


def limit_call(library: ctypes.CDLL, *arrays: Array) -> Step:
    size, dtype = arrays[0].size, arrays[0].dtype
    zero = {"float32": ctypes.c_float, "float64": ctypes.c_double}[dtype.name](0)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    loop = getattr(library, f"limit_{dtype.name}")
    return partial(loop, *pointers, ctypes.c_ssize_t(size), threads(), zero)


def limit() -> Prepare:
    """A C loop with the loads and stores of a step and next to no arithmetic: bandwidth_bound.c."""
    source = Path(__file__).with_name("bandwidth_bound.c")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "bandwidth_bound.so")
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        command = [*compiler_command(), *flags, str(source), "-o", str(path)]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(path))

    def prepare(*arrays: Arrays) -> Step:
        calls = [limit_call(library, *tensor) for tensor in zip(*arrays, strict=True)]

        def step() -> None:
            for call in calls:
                call()

        return step

    return prepare


# ---------------------------------------------------------------------------- all of them

SLOW = 2**27  # parameters, above GPT-2 Small: beyond, a step takes seconds

# Those with moments in fewer bits, and what one parameter reads and writes: its gradient is read,
# itself and its moments are both.
FLOAT32: dict[str, Any] = {"dtypes": ("float32",)}
OF_8BIT = {"bytes_moved": 4 + 2 * (4 + 1 + 1 + 8 / 256), "kept": 0.5, **FLOAT32}
OF_BFLOAT16 = {"bytes_moved": 4 + 2 * (4 + 2 + 2), "kept": 1, "arrays": 5, **FLOAT32}
OF_ALL_BFLOAT16 = {"bytes_moved": 2 + 2 * (2 + 2 + 2), "kept": 2, "arrays": 6.5, **FLOAT32}
OF_8BIT_PEERS = OF_8BIT | {
    "smallest": 2**16,
    "too_small": "keeps tensors of fewer than 4,096 elements in float32",
    "largest": 2**26,
    "arrays": 10,
}

CONTENDERS = (
    Contender(OURS, ours),
    Contender(OURS_FOR_TORCH, our_torch_adamw, ("torch",)),
    Contender("pure-python", lambda: pure_python, largest=2**12),
    Contender("numpy", lambda: numpy_expression, ("numpy",), largest=SLOW),
    Contender("torch-fused", partial(torch_adamw, fused=True), ("torch",)),
    Contender("torch-foreach", partial(torch_adamw, foreach=True), ("torch",), arrays=5),
    Contender(
        "torch-for-loop",
        partial(torch_adamw, foreach=False, fused=False),
        ("torch",),
        largest=SLOW,
    ),
    Contender(
        "deepspeed",
        deepspeed_adamw,
        ("deepspeed",),
        "pip install deepspeed ninja, and a C++ compiler",
        dtypes=("float32",),
    ),
    Contender("numba", numba_loop, ("numba",)),
    Contender("optax", optax_adamw, ("jax", "optax"), arrays=10, kept=4),
    Contender(OURS_8BIT, partial(ours_with_state, "8bit"), arrays=4.5, **OF_8BIT),
    Contender(OURS_BFLOAT16, partial(ours_with_state, "bfloat16"), **OF_BFLOAT16),
    Contender("bitsandbytes-8bit", bitsandbytes_adamw, ("torch", "bitsandbytes"), **OF_8BIT_PEERS),
    Contender("torchao-8bit", torchao_adamw, ("torch", "torchao"), **OF_8BIT_PEERS),
    Contender(OURS_ALL_BFLOAT16, ours_in_bfloat16, ("ml_dtypes",), **OF_ALL_BFLOAT16),
    Contender(
        "torch-fused-all-bfloat16", torch_in_bfloat16, ("torch", "ml_dtypes"), **OF_ALL_BFLOAT16
    ),
    # A smaller step than 2^16 is bound by the call, not by memory.
    Contender(LIMIT, limit, remedy="install a C compiler with OpenMP", smallest=2**16),
)
