"""The AdamW step in host memory: NumPy arrays, one pass, every core, exact to the last bit."""

# Before _core, which imports it too: as of Cython 3.3 a module of the limited API does so without a
# check (__Pyx_init_co_variables), and would crash where Ctrl-C arrives during that import.
import inspect  # noqa: F401

from ._core import fused_adamw
from .optimizer import AdamW, matrices_only
from .runtime import __version__, runtime_info

__all__ = ["AdamW", "__version__", "fused_adamw", "matrices_only", "runtime_info"]
