"""The AdamW step in host memory: NumPy arrays, one pass, every core, exact to the last bit."""

from .functional import fused_adamw
from .runtime import __version__, runtime_info

__all__ = ["__version__", "fused_adamw", "runtime_info"]
