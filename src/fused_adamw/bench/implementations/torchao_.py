"""``AdamW8bit`` of torchao."""

from functools import partial

from ..harness import Prepare
from .base import ADAMW_ARGUMENTS, Implementation
from .storage import THEIR_MOMENTS_8BIT
from .torch_ import adapt_optimizer_with_own_state, torch_threads


def load_adamw8bit() -> Prepare:
    """As its users have it: the first step compiles itself, which takes half a minute."""
    from torchao.optim import AdamW8bit

    return adapt_optimizer_with_own_state(partial(AdamW8bit, **ADAMW_ARGUMENTS))


TORCHAO_8BIT = Implementation(
    "torchao-8bit",
    load_adamw8bit,
    ("torch", "torchao"),
    setup=torch_threads,
    **THEIR_MOMENTS_8BIT,
)
