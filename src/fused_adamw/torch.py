"""``AdamW``: ``torch.optim.AdamW`` with the kernels of this package, for tensors in host memory."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal, Self, cast, overload

from ._torch import requirement  # noqa: F401

# isort: split

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ._core import DeferredSignals, ReentrantLock, shown
from ._optim.options import check_flag
from ._optim.state_formats import StateDtype
from ._torch import options
from ._torch.hooks import hook_step
from ._torch.inspection import Inspected
from ._torch.loading import prepared_load
from ._torch.paths import GroupPath
from ._torch.portable_state import portable_state
from ._torch.state_dict import as_of_pytorch
from ._torch.step import take_step, take_unprofiled_step
from ._torch.stored import Target, target_of

__all__ = ["AdamW", "GroupPath"]


class AdamW(Inspected, torch.optim.AdamW):
    """Drop-in replacement for ``torch.optim.AdamW`` (Loshchilov & Hutter 2019).

    Arguments, errors, hooks, ``param_groups`` and state are PyTorch's, under the same names, so
    checkpoints load in both directions. With ``fused=None`` (the default) or ``fused=True``, the
    dense float32, float64, bfloat16 and float16 CPU parameters of a group are updated in one call,
    in one pass, in place, without copies::

        m <- b1 m + (1 - b1) g                  (exp_avg; g is the negated gradient with maximize)
        v <- b2 v + (1 - b2) g^2                (exp_avg_sq; v_hat uses its maximum with amsgrad)
        p <- p - lr (weight_decay p + m_hat / (sqrt(v_hat) + eps))
        where m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    The result is bit-identical to that of ``fused_adamw.fused_adamw``, for any number of threads:
    ``torch.get_num_threads()``, or what affinity and cgroup allow if that is less. Parameters of 16
    bits are computed in float32, and rounded to nearest; their gradients may be float32
    (``grad_dtype``), which PyTorch's class does not support. Gradients and state must have the
    memory layout of their parameter, which can be any permutation of its dimensions, such as
    channels_last.

    Of DTensors in host memory (FSDP2, tensor parallelism) each rank updates its shard in the same
    way. Their state consists of DTensors, which PyTorch's distributed checkpoints load on any
    number of ranks.

    Everything else falls back to PyTorch's own update, or is rejected as PyTorch rejects it:
    ``foreach=True``, ``fused=False``, ``capturable`` and ``differentiable``; groups whose weight
    decay is not decoupled; other dtypes, layouts and devices; tensors with gaps or shared memory;
    and subclasses of ``Parameter``. PyTorch's fused update ignores strides on the CPU, so tensors
    that differ in strides from their state or gradient, or have gaps, use PyTorch's loop instead.
    ``last_path`` reports which groups fell back, and why; one UserWarning per optimizer says so the
    first time, unless the user asked for it: by an option, or by parameters on another device than
    the CPU.

    Args:
        params: Parameters, named parameters or parameter groups. A group may override every
            option below.
        lr: Learning rate; at least 0.
        betas: Decay rates of the moments, each at least 0 and less than 1.
        eps: Added to the denominator; at least 0.
        weight_decay: Decoupled weight decay; at least 0.
        amsgrad: Use the maximum of all v so far (Reddi et al. 2018).
        maximize: Maximize the objective.
        foreach: True selects PyTorch's foreach update.
        capturable, differentiable: As in PyTorch, whose update is used.
        fused: False selects PyTorch's update. True selects PyTorch's fused update for what the
            kernels do not support.
        state_dtype: Storage format of the moments. None: the dtype of the parameter. "float32",
            "bfloat16" and "8bit" take 8, 4 and 2 bytes per parameter, for dense float32, bfloat16
            and float16 CPU parameters; the arithmetic is float32. The state of "8bit" is
            ``exp_avg_code`` and ``exp_avg_scale``, and the same of ``exp_avg_sq``. It does not
            support amsgrad, and PyTorch's class cannot use it.
        master_weights: Keep 16-bit parameters in float32 too, and update those; the parameters are
            their values, rounded to nearest. They start as the parameter before its first step. The
            state has them as ``master``: for float16 the float32 values, for bfloat16 their low 16
            bits, in int16, which the parameter completes. What other code writes to bfloat16
            parameters they take over; float16 parameters are overwritten by the next step. Without
            ``state_dtype`` the moments of float16 parameters are float32.
        seed: Of stochastic rounding, which requires ``state_dtype`` or ``master_weights``: of
            moments in 16 and 8 bits, and of bfloat16 parameters without master weights. None rounds
            to nearest, as PyTorch does without either option, where small updates are lost.
        ema_decay: Decay rate of an exponential moving average of the weights, at least 0 and less
            than 1; None keeps no average. It is updated in the same pass, ema <- ema_decay ema +
            (1 - ema_decay) p, and stored in the state as ``ema``, in the dtype of the parameter, or
            in float32 for 16-bit parameters. It starts as the parameter before its first step.

    In code that ``torch.compile`` compiles, a step is a graph break: it runs uncompiled between two
    graphs. With ``fullgraph=True`` it is an error. Profilers see the kernels, with their
    preparation, as ``fused_adamw::adamw``.

    Threads may share an optimizer: ``step``, ``state_dict``, ``load_state_dict``,
    ``add_param_group`` and ``copy.deepcopy`` wait for one another, and see whole steps. State dicts
    and pickles refer to tensors that later steps change: use ``exclusive`` to keep steps from
    running while they are written. ``copy.copy`` shares everything, as in PyTorch.

    With ``state_dtype``, ``master_weights`` or the decay rate of an average nothing falls back to
    PyTorch: ``step`` raises TypeError, with nothing changed, for what the kernels do not support.

    Raises:
        TypeError, ValueError: As ``torch.optim.AdamW``; and from ``step``, with nothing changed,
            where an option has been set to a value that the formula does not allow, such as a
            negative ``lr``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: StateDtype | None = None,
        master_weights: bool = False,
        seed: int | None = 0,
        ema_decay: float | None = None,
    ) -> None:
        own = options.select(locals())
        options.check(own)
        options.require_in_range(locals())
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        if own != options.DEFAULTS:
            self.defaults |= own
        for group in self.param_groups:
            if own != options.DEFAULTS or not own.keys().isdisjoint(group):
                group |= own | group
            options.check_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As ``torch.optim.AdamW``.

        Raises:
            TypeError, ValueError: A parameter or an option is invalid. The group is not added.
        """
        with self.exclusive().during("add_param_group"), DeferredSignals():
            super().add_param_group(param_group)
            try:
                self._check_group(self.param_groups[-1])
            except Exception:
                self.param_groups.pop()
                raise

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise what is wrong with a group that has been added."""
        options.check_group(group)

    def load_state_dict(self, state_dict: dict[str, Any], convert: bool = True) -> None:
        """As ``torch.optim.AdamW``; ``state_dtype`` and ``master_weights`` stay as they are.

        ``foreach=True`` and ``fused=False`` of a saved group select PyTorch's update here, too,
        unless an option of this optimizer needs the kernels. What a saved group lacks is filled in:
        PyTorch's options as PyTorch does; ``seed`` and the decay rate of an average as they are in
        this optimizer. An average that was saved is continued, also where this optimizer kept none.
        Master weights and averages that were not saved, and master weights that PyTorch's class has
        loaded and saved, start from the parameters at the next step. Signal handlers of Python are
        deferred to the end.

        Args:
            state_dict: Of this class or of PyTorch's, with ``state_dtype`` or without.
            convert: Where state was saved in another format, with master weights or without,
                convert it, rounding to the nearest, with one UserWarning that names the formats.
                False refuses it.

        Raises:
            TypeError, ValueError: As ``torch.optim.AdamW``; and for state that cannot be converted,
                or must not be. Nothing is changed.
        """
        check_flag("convert", convert)
        # PyTorch replaces groups and state in several places.
        with self.exclusive() as lock, DeferredSignals():
            lock.require_between("load_state_dict")
            with prepared_load(self, convert):
                super().load_state_dict(state_dict)

    def state_dict(self, *, format: Literal["torch"] | None = None) -> dict[str, Any]:
        """As ``torch.optim.AdamW``, between two steps of other threads, which change its tensors
        later: to save or copy them meanwhile, use ``exclusive``.

        Args:
            format: None: state as it is stored. "torch": what ``torch.optim.AdamW`` loads and
                continues: moments in float32 (float64 for float64 parameters; in the dtype of the
                parameter where they are stored so), without master weights, averages and the
                options that PyTorch lacks.

        Raises:
            ValueError: ``format`` is another value.
        """
        if format not in (None, "torch"):
            raise ValueError(f"format must be None or 'torch'; got {shown(format)}")
        with self.exclusive():
            state: dict[str, Any] = super().state_dict()
            if format is None:
                return portable_state(self, state)
            return as_of_pytorch(self.param_groups, state, self._target)

    def _target(self, p: Tensor, group: dict[str, Any]) -> Target | None:
        """How the state of a parameter is kept; None for a dtype that no kernel supports."""
        return target_of(p, group)

    def exclusive(self) -> ReentrantLock:
        """A block in which no other thread steps or loads this optimizer; the same thread may enter
        it again.

        Example::

            with opt.exclusive():  # while another thread trains
                torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, path)
        """
        # Derived classes need not call this constructor; wrappers have the lock of what they wrap.
        lock: ReentrantLock | None = getattr(self, "_lock", None)
        if lock is None:
            lock = self.__dict__.setdefault("_lock", ReentrantLock())
        return lock

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps ``step`` once per class; the ``step`` of a derived class as PyTorch does."""
        if func is AdamW.step:
            return hook_step(func, take_unprofiled_step)
        return cast(Callable[..., Any], Optimizer.profile_hook_step(func))

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient, and their state, in place.

        Where GradScaler found an infinity (``found_inf``) nothing changes; where it leaves
        unscaling to the optimizer (``grad_scale``), the gradients are unscaled in place.

        Args:
            closure: Evaluates the model again and returns the loss.

        Returns:
            The loss, or None without ``closure``.

        Raises:
            TypeError: A parameter, its gradient or its state is not supported, where PyTorch cannot
                update it instead.
            ValueError: An option has a value that the formula does not allow, or a parameter is in
                two groups.
            KeyError: The state of a parameter lacks a part.
            RuntimeError: Called by code that another step of this optimizer runs.
        """
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        take_step(self)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        with torch.device("cpu"):  # counters of steps that were saved as numbers
            super().__setstate__(state)

    def __copy__(self) -> Self:
        """Shares parameters, groups and state, as PyTorch's does; and the lock for them."""
        new = type(self).__new__(type(self))
        new._lock = self.exclusive()
        new.__setstate__(cast(dict[str, Any], self.__getstate__()))
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = memo[id(self)] = type(self).__new__(type(self))
        with self.exclusive().during("a copy", changes=False):
            state = deepcopy(self.__getstate__(), memo)
        new.__setstate__(cast(dict[str, Any], state))
        return new
