"""``AdamW8bit`` of bitsandbytes, which keeps 8-bit moments on a CPU too."""

from functools import partial

from ..harness import Prepare
from .base import ADAMW_ARGUMENTS, Implementation
from .storage import THEIR_MOMENTS_8BIT
from .torch_ import adapt_optimizer_with_own_state, torch_threads


def load_adamw8bit() -> Prepare:
    from bitsandbytes.optim import AdamW8bit

    return adapt_optimizer_with_own_state(partial(AdamW8bit, **ADAMW_ARGUMENTS))


BITSANDBYTES_8BIT = Implementation(
    "bitsandbytes-8bit",
    load_adamw8bit,
    ("torch", "bitsandbytes"),
    setup=torch_threads,
    **THEIR_MOMENTS_8BIT,
)
