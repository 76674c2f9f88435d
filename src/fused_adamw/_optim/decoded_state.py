"""The state of ``AdamW`` as users read it: in the structure and the shapes of the parameters.

Where another thread steps, copies are of one step; arrays that are returned themselves are read
within ``exclusive()``.
"""

from .arrays import ArrayTree
from .base import BaseOptimizer
from .state_formats import moment


class DecodedState(BaseOptimizer):
    """An optimizer that keeps the whole state of each tensor, one slot per tensor."""

    @property
    def m(self) -> ArrayTree:
        """The first moments, in the structure of ``params``; copies in float32 where they are
        stored in 16 or 8 bits, and for 16-bit parameters."""
        return self._moments("m")

    @property
    def v(self) -> ArrayTree:
        """The second moments, as ``m``."""
        return self._moments("v")

    @property
    def v_max(self) -> ArrayTree | None:
        """The largest second moments, as ``m``; None without amsgrad."""
        return self._optional("v_max")

    @property
    def master(self) -> ArrayTree | None:
        """The master weights in float32, in the structure of ``params``; copies for bfloat16
        parameters, of which only the low 16 bits are stored, and float32 and float64 parameters
        themselves; None without master_weights."""
        return self._optional("master")

    @property
    def ema(self) -> ArrayTree | None:
        """The averages of the weights, in the structure of ``params``, in their dtype, or in
        float32 for 16-bit parameters; None without ema_decay."""
        return self._optional("ema")

    def _moments(self, role: str) -> ArrayTree:
        with self._exclusive(role, changes=False):
            arrays = zip(self._state, self._arrays, strict=True)
            tree: ArrayTree = self._spec.unflatten(moment(state, role, p) for state, p in arrays)
            return tree

    def _optional(self, role: str) -> ArrayTree | None:
        return self._moments(role) if role in self._state_options.roles else None
