"""The AdamW step in host memory: NumPy arrays, one pass, every core, exact to the last bit."""

from ._core import fused_adamw
from .optimizer import AdamW, matrices_only
from .runtime import __version__, runtime_info

__all__ = ["AdamW", "__version__", "fused_adamw", "matrices_only", "runtime_info"]
