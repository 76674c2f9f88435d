"""The implementations that are compared: one file each, one row each.

Each does one AdamW step with the same hyper-parameters on the same arrays, in place wherever the
library can. Where it cannot (jax owns its buffers and donates them to itself; pure Python has
lists), the step returns the parameters.

Implementations with low-precision moments allocate them themselves, start from zeros, and leave
``m`` and ``v`` alone. Where parameters and gradients have low precision too, they are copies, and
the step returns the parameters.

All use as many threads as ``fused_adamw`` does by default, including our class, which would
otherwise spend its first steps on finding the best number. XLA has no such setting and uses all
processors that the process may use.
"""

from . import (
    bandwidth_bound,
    bitsandbytes_,
    deepspeed_,
    numba_,
    numpy_,
    optax_,
    ours,
    reference,
    torch_,
    torchao_,
)
from .base import Implementation, Loader

__all__ = ["IMPLEMENTATIONS", "Implementation", "Loader"]

IMPLEMENTATIONS = {
    implementation.name: implementation
    for implementation in (
        ours.FUNCTION,
        ours.TORCH,
        reference.PURE_PYTHON,
        numpy_.NUMPY,
        torch_.FUSED,
        torch_.FOREACH,
        torch_.FOR_LOOP,
        deepspeed_.DEEPSPEED,
        numba_.NUMBA,
        optax_.OPTAX,
        ours.STATE_8BIT,
        ours.STATE_BFLOAT16,
        bitsandbytes_.BITSANDBYTES_8BIT,
        torchao_.TORCHAO_8BIT,
        ours.ALL_BFLOAT16,
        torch_.FUSED_ALL_BFLOAT16,
        bandwidth_bound.BANDWIDTH_BOUND,
    )
}
"""By name, in the order of the tables."""
