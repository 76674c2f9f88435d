"""``AdamW``: train on an accelerator with the optimizer's state and work in host memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Self, overload

from ._torch import requirement  # noqa: F401

# isort: split

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim.optimizer import ParamsT

from ._core import DeferredSignals
from ._offload import overlap
from ._offload.cpu_lane import CpuLane
from ._offload.engine import Engine
from ._offload.host_state import Address, host_target
from ._offload.modules import UseOrder, require_whole, require_whole_norm
from ._offload.simulation import new_engine, simulated
from ._offload.step import require_used_in_order, take_step
from ._optim.options import OPTIONS
from ._optim.state_formats import StateDtype
from ._torch.hooks import hook_step, outside_of_graphs_if_any
from ._torch.paths import GroupPath
from ._torch.state import states_of
from ._torch.stored import Target
from .torch import AdamW as HostAdamW

__all__ = ["AdamW", "CpuLane", "simulated"]


class AdamW(HostAdamW):
    """``fused_adamw.torch.AdamW`` for parameters on an accelerator: their moments and master
    weights are in host memory, and are updated there.

    A step copies gradients and parameters to pinned memory, updates them there and copies the
    parameters back, piece by piece; copies and updates run concurrently. On the same gradients the
    parameters are bit-identical to those of the class for the CPU, whatever the device, the pieces
    and the order of arrival. Parameters on the CPU are updated as by ``fused_adamw.torch.AdamW``
    with these options.

    Gradients stay on the device until ``step``, so accumulation, clipping, ``GradScaler``,
    schedulers and hooks are PyTorch's. To hide more of the work::

        opt = AdamW(model.parameters(), lr=1e-4, max_grad_norm=1.0, module=model)
        for batch in data:
            with opt.overlapped():      # around the last backward of a step
                model(batch).backward()
            opt.step()
            opt.zero_grad()

    Host memory: ``state`` as in ``fused_adamw.torch.AdamW``, by default 10 bytes for each bfloat16
    parameter; and 128 MiB that are pinned, at most.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, seed, ema_decay: As in
            ``fused_adamw.torch.AdamW``.
        foreach, capturable, differentiable, fused: As there, for parameters on the CPU; others need
            their defaults, or ``fused=True``.
        state_dtype: As there; None for moments in the dtype of the parameters, which float64 needs.
        master_weights: As there.
        max_grad_norm: Clip the gradients to this global norm, as ``fused_adamw.AdamW`` does;
            ``grad_norm`` is the norm in the last step. Do not clip them elsewhere as well.
        module: The model. ``step`` then returns before the parameters are updated: the forward of
            each module in it waits for its own, and that of the model for those that are used
            without the forward of their module. For parameters that are not in it ``step`` waits.
            ``step`` takes the gradients: they are None afterwards. Call ``synchronize`` before
            other code reads or writes parameters. What ``torch.compile`` has compiled before would
            not wait: the constructor resets PyTorch's compiler. Deep copies and unpickled
            optimizers have no module: their ``step`` waits, and leaves the gradients.

    Raises:
        TypeError, ValueError: Also from ``step``, with nothing changed, where a parameter, a
            gradient or an option is not supported.
    """

    max_grad_norm: float | None
    grad_norm: float | None
    _use_order: UseOrder | None
    _step_supports_amp_scaling = True  # GradScaler leaves unscaling to the kernels

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
        state_dtype: StateDtype | None = "float32",
        master_weights: bool = True,
        seed: int | None = 0,
        ema_decay: float | None = None,
        max_grad_norm: float | None = None,
        module: Module | None = None,
    ) -> None:
        self.max_grad_norm = OPTIONS["max_grad_norm"].check("max_grad_norm", max_grad_norm)
        self.grad_norm = None
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
            state_dtype=state_dtype,
            master_weights=master_weights,
            seed=seed,
            ema_decay=ema_decay,
        )
        require_whole(self.param_groups, max_grad_norm, module)
        engine = self._engine()
        engine.prepare(self.param_groups)
        self._use_order = None if module is None else UseOrder(module, engine)

    def overlapped(self) -> AbstractContextManager[None]:
        """A block around the last backward of a step, in which each update begins when its gradient
        is final. ``step`` then does what is left. The bits are the same.

        With ``max_grad_norm`` only the norm is computed during backward.

        Raises:
            RuntimeError: a parameter gets a second gradient in the block, as one does that several
                reentrant checkpoints use; gradients are averaged over processes afterwards; from
                ``step``, where ``GradScaler`` is used, or gradients or options have changed since.
                After any error in the block the next ``step`` updates the other parameters.
        """
        return outside_of_graphs_if_any(self._overlapped)()

    def _overlapped(self) -> AbstractContextManager[None]:
        self.exclusive().require_between("overlapped")
        engine = self._engine()
        overlap.require_whole_step(engine)
        overlap.require_final_gradients(self.param_groups)
        require_whole_norm(self.param_groups, self.max_grad_norm)
        sums_only = self.max_grad_norm is not None
        hooks = overlap.Overlap(
            engine,
            self.param_groups,
            self.state,
            sums_only,
            lambda update: require_used_in_order(self, [update]),
        )
        return hooks.hooks()

    def synchronize(self) -> None:
        """Wait until the parameters and the state are those after the last step."""
        with self.exclusive():
            self._engine().synchronize()

    @property
    def pinned_nbytes(self) -> int:
        """The size of the pinned memory in bytes; it is allocated once."""
        return self._engine().ring_nbytes

    def refresh(self) -> None:
        """Restart the master weights from the parameters at the next step. This happens
        automatically after writes that PyTorch counts, such as ``load_state_dict`` and ``copy_``;
        call it after writes to ``p.data``."""
        with self.exclusive():
            self._engine().refresh(self.param_groups, self.state)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """As in ``fused_adamw.torch.AdamW``. With ``module`` it returns before all is updated.

        Raises:
            TypeError, ValueError, KeyError: As there.
            RuntimeError: As there; gradients or options are not those of ``overlapped``; the
                parameters of ``module`` were replaced, or used without waiting for their update; an
                earlier update failed; the process was forked during updates.
        """
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        take_step(self)
        return loss

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """As in ``fused_adamw.torch.AdamW``."""
        if func is AdamW.step:
            return hook_step(func, take_step)
        return HostAdamW.profile_hook_step(func)

    @property
    def last_path(self) -> list[GroupPath]:
        """As in ``fused_adamw.torch.AdamW``. What is off-loaded is always updated by the kernels,
        as are all parameters with ``max_grad_norm``; PyTorch may update others on the CPU."""
        updated = self._engine().updated
        kernels = [any(p in updated for p in group["params"]) for group in self.param_groups]
        return [
            path._replace(path="both" if path.reason else "kernels") if flag else path
            for path, flag in zip(super().last_path, kernels, strict=False)
        ]

    # ---- state

    def state_dict(self, *, format: Literal["torch"] | None = None) -> dict[str, Any]:
        """As in ``fused_adamw.torch.AdamW``; the tensors are in host memory."""
        with self.exclusive():
            self.synchronize()
            return super().state_dict(format=format)

    def load_state_dict(self, state_dict: dict[str, Any], convert: bool = True) -> None:
        """As in ``fused_adamw.torch.AdamW``, into host memory. Discards a step that has begun."""
        with self.exclusive():
            self.synchronize()
            with DeferredSignals():
                super().load_state_dict(state_dict, convert)
                self._engine().forget()

    def _target(self, p: Tensor, group: dict[str, Any]) -> Target | None:
        on_device = self._engine().lanes.of(p) is not None
        return host_target(p, group) if on_device else super()._target(p, group)

    def __getstate__(self) -> dict[str, Any]:
        self.synchronize()
        own = {"max_grad_norm": self.max_grad_norm, "grad_norm": self.grad_norm}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if getattr(self, "_own_engine", None) is None:  # a copy, or one that was unpickled
            self._copied = {p: Address.of(p) for p, x in states_of(self) if "master" in x}

    def __copy__(self) -> Self:
        """Shares what is being updated, too."""
        new = super().__copy__()
        del new._copied
        new._own_engine, new._use_order = self._engine(), self._order()
        return new

    # ---- parts

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        order = self._order()  # None in the constructor, which checks them all
        require_whole([group], self.max_grad_norm, None if order is None else order.module)

    def _engine(self) -> Engine:
        # Lightning derives a class from ours whose instances have the attributes of the optimizer
        # that they wrap: a second engine would update parameters a second time.
        engine: Engine | None = getattr(self, "_own_engine", None)
        if engine is None:  # also of a copy, or of one that was unpickled
            engine = self.__dict__.setdefault("_own_engine", new_engine())
            engine.copied |= self.__dict__.pop("_copied", {})
        return engine

    def _order(self) -> UseOrder | None:
        return getattr(self, "_use_order", None)
