"""The memory of a training run, estimated before it begins: what cannot fit is refused at once."""

import os
import sys
from collections.abc import Mapping

import numpy as np

from .._cgroup import memory_limit


def required_bytes(sizes: Mapping[str, int], batch_size: int, dtype: str) -> int:
    """Return the memory that a model and a step of it take at least.

    Parameters and their gradients, the batch, and what exists at the same time of each layer's
    activations, of their gradients and of what these are computed from.

    Args:
        sizes: keyword arguments of `TinyTransformer`.
        batch_size: number of sequences, each as long as the model allows.
        dtype: of the parameters.
    """
    n, D, d_ff = sizes["max_length"], sizes["d_model"], sizes["d_ff"]
    V, heads = sizes["vocab_size"], sizes["n_heads"]
    parameters = (2 * V + n) * D + 4 * D * D + 2 * d_ff * D
    tokens = batch_size * n
    activations = tokens * max(  # the moments at which the most arrays exist, by their shapes
        9 * D + 4 * d_ff + 3 * V + heads * n,  # cross_entropy_forward
        11 * D + 8 * d_ff + 2 * V + heads * n,  # gelu_backward
        15 * D + 6 * d_ff + 2 * V + 5 * heads * n,  # attention_backward: scores
        (21 + 3 * heads) * D + 6 * d_ff + 2 * V + 4 * heads * n,  # the same: paths
    )
    number, index = np.dtype(dtype).itemsize, np.dtype(np.intp).itemsize
    return number * (2 * parameters + activations + n * n) + index * tokens


def require_memory(options: str, nbytes: int) -> None:
    """Raise ValueError where this process cannot have so much memory."""
    available = memory_bound()
    if nbytes > available:
        raise ValueError(
            f"{options} must be smaller: a step needs at least {_gigabytes(nbytes)} of memory; got "
            f"{_gigabytes(available)}"
        )


def memory_bound() -> int:
    """Return the most memory that this process can have, in bytes: of the machine, its cgroup, its
    RLIMITs and its addresses."""
    bounds = [sys.maxsize, memory_limit(), _physical_bytes(), *_rlimits()]
    return min(bound for bound in bounds if bound is not None)


def _physical_bytes() -> int | None:
    if sys.platform == "win32":
        import ctypes

        status = (ctypes.c_uint64 * 8)(64)  # a MEMORYSTATUSEX: its size, then the memory in bytes
        is_known = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status[1] if is_known else None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system without it
        return None


def _rlimits() -> list[int]:
    if sys.platform == "win32":
        return []
    import resource

    bounds = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return [bound for bound in bounds if bound != resource.RLIM_INFINITY]


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes < 10**15 else "1,000,000 GB"
