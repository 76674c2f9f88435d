"""What an optimizer for PyTorch shows of itself."""

from typing import Any

from torch import Tensor

from .dtensors import local_of
from .paths import GroupPath, last_paths
from .state import states_of


class Inspected:
    """Properties of an optimizer that only read."""

    state: dict[Tensor, dict[str, Any]]

    @property
    def state_nbytes(self) -> int:
        """The memory of the state on this rank, in bytes, without the counts of steps."""
        return sum(
            local_of(x).nbytes
            for _, entry in states_of(self)
            for name, x in entry.items()
            if name != "step" and isinstance(x, Tensor)
        )

    @property
    def last_path(self) -> list[GroupPath]:
        """For each group, whether the kernels or PyTorch updated it in the last step, and why.

        A list of ``GroupPath``, empty before the first step. The reasons are found from the tensors
        as they are now.

        Example:
            >>> p = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
            >>> opt = AdamW([p])
            >>> p.grad = torch.ones_like(p)
            >>> opt.step()  # UserWarning: PyTorch, not fused_adamw, updates 1 of 1 tensors ...
            >>> opt.last_path
            [GroupPath(path='PyTorch', reason='of dtype torch.complex64 (1)')]
        """
        return last_paths(self)
