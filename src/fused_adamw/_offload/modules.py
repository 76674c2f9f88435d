"""Hooks with which a module waits for the updates of its own parameters only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from .._torch.dtensors import has_dtensors
from .._torch.hooks import compiler_is_loaded
from .engine import Engine

WHY_UNCOMPILED = (
    "fused_adamw waits for updates before the forward of a module, between two graphs; compile "
    "without fullgraph=True, or construct the optimizer without module="
)


class _Hook:
    """Calls a function, not in compiled code. Copies of a module have nothing to wait for."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call: Callable[..., None] = torch.compiler.disable(call, reason=WHY_UNCOMPILED)

    def __call__(self, *arguments: Any) -> None:
        self._call(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_no_wait,)


def _no_wait(*_: Any) -> None:
    pass


class UseOrder:
    """Makes modules wait for the updates of their parameters, and notes in which order they do.

    A parameter that had a gradient although its module did not run, such as a weight that another
    module reads, is waited for by the forward of the whole model. In validation, after ``eval`` or
    without gradients, a forward may read others in this way, and no gradient would show it: it
    waits for all parameters of the module, also of one without parameters of its own.

    Args:
        module: the model.
        engine: begins the updates. The hooks keep it alive until those of a step are complete, as a
            program may drop its optimizer before it uses the model again.
    """

    def __init__(self, module: Module, engine: Engine) -> None:
        self.params = frozenset(module.parameters())
        self._early: dict[Tensor, None] = {}  # those that the whole model waits for, in order
        self._order: dict[Tensor, int] = {p: i for i, p in enumerate(module.parameters())}
        self._seen: dict[Tensor, int] = {}  # since the last step
        self._root, self._engine = ref(module), ref(engine)
        self._busy: Engine | None = None
        before_forward = _Hook(self._before_forward)
        before_state_dict = _Hook(self._before_state_dict)
        for found in module.modules():
            if found is module or next(found.parameters(), None) is not None:
                found.register_forward_pre_hook(before_forward, prepend=True)
                found.register_state_dict_pre_hook(before_state_dict)
                found.register_load_state_dict_pre_hook(before_state_dict)
        _forget_compiled()

    @property
    def module(self) -> Module | None:
        """The model; None where it has been freed."""
        return self._root()

    def require_same_params(self) -> None:
        """Raise RuntimeError where parameters of the model have been replaced."""
        module = self.module
        others = [] if module is None else [p for p in module.parameters() if p not in self.params]
        if others:
            raise RuntimeError(
                f"module must keep the parameters that it had; got {len(others)} new ones, as "
                "after load_state_dict(assign=True). Construct a new optimizer"
            )

    def sort_key(self, p: Tensor) -> int:
        """The place of a parameter in the last forward."""
        return -1 if p in self._early else self._order.get(p, len(self._order))

    def start(self, used: Iterable[Tensor]) -> None:
        """A step was taken of these parameters: the next forward begins."""
        self._early |= {p: None for p in used if p in self.params and p not in self._seen}
        others = [p for p in self._order if p not in self._seen]
        self._order = {p: i for i, p in enumerate([*self._seen, *others])}
        self._seen = {}
        self._busy = self._engine()

    def _before_forward(self, module: Module, _: Any) -> None:
        params = [p for p in module._parameters.values() if p is not None]
        for p in params:
            self._seen.setdefault(p, len(self._seen))
        if module is self.module:
            params += self._early
        trains = module.training and torch.is_grad_enabled()
        self._wait(params if trains else module.parameters())

    def _before_state_dict(self, module: Module, *_: Any) -> None:
        """Updates are in what ``state_dict`` returns, and do not overwrite what is loaded."""
        self._wait(module.parameters())

    def _wait(self, params: Iterable[Tensor]) -> None:
        engine = self._busy or self._engine()
        if engine is None:
            return
        if engine.pending:
            engine.wait_for(params)
        if not engine.pending:
            self._busy = None


def _forget_compiled() -> None:
    """Let PyTorch compile again what it has compiled: that would not call new hooks."""
    if compiler_is_loaded():
        torch.compiler.reset()


def require_whole(
    groups: Sequence[Mapping[str, Any]], max_grad_norm: float | None, module: Any
) -> None:
    """Raise for arguments that do not support parameters or gradients divided over processes."""
    if not (module is None or isinstance(module, Module)):
        raise TypeError(f"module must be None or a torch.nn.Module; got {type(module).__name__}")
    if isinstance(module, DistributedDataParallel) and module.gradient_as_bucket_view:
        raise ValueError("gradient_as_bucket_view of module must be False; got True")
    if module is not None and any(has_dtensors(group["params"]) for group in groups):
        raise ValueError(
            f"module must be None for parameters of FSDP, which gathers them early; got "
            f"{type(module).__name__}"
        )
    require_whole_norm(groups, max_grad_norm)


def require_whole_norm(groups: Sequence[Mapping[str, Any]], max_grad_norm: float | None) -> None:
    """Raise where each process would clip by the norm of its own part of the gradients; whenever
    one is used, as the number and the parameters may change between steps."""
    if max_grad_norm is not None and any(has_dtensors(group["params"]) for group in groups):
        raise ValueError(
            f"max_grad_norm must be None for parameters of FSDP; got {max_grad_norm}. Use "
            "torch.nn.utils.clip_grad_norm_"
        )


def require_waited(
    new_gradients: Iterable[Tensor], pending: Mapping[Tensor, Any], indices: Mapping[Tensor, int]
) -> None:
    """Raise RuntimeError where a parameter has a gradient from a forward that did not wait for
    its update."""
    used = [indices[p] for p in new_gradients if p in pending]
    if used:
        raise RuntimeError(
            f"parameters {used} must be used by the forward of the module that has them, which "
            "waits for their update; got a gradient from other code. Call synchronize() before it, "
            "or make the optimizer without module="
        )
