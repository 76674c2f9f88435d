"""Updates that begin during backward, as soon as their gradient is final."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .._core import DeferredSignals
from .._torch.dtensors import is_dtensor, is_in_group
from .._torch.grad_scaler import is_scaled
from .._torch.hooks import outside_of_graphs_if_any
from .._torch.options import numbered
from .._torch.state import is_lazy
from .checks import ParameterMemory, check_apart
from .engine import Begun, CheckedUpdate, Engine, Gradient, Groups, OptimizerState
from .recipe import Recipes
from .stepper import rehearse


class Overlap:
    """Hooks that begin an update, or its part of the norm, for each gradient of a backward.

    Args:
        engine: begins them.
        groups, state: of the optimizer.
        sums_only: whether the updates have to wait for the norm.
        check: called with each update before anything changes.
    """

    def __init__(
        self,
        engine: Engine,
        groups: Groups,
        state: OptimizerState,
        sums_only: bool,
        check: Callable[[CheckedUpdate], None],
    ) -> None:
        self._engine, self._groups, self._state = engine, groups, state
        self._sums_only, self._check = sums_only, check
        self._rehearsed: set[Any] = set()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """A block in which they are registered."""
        handles: list[RemovableHandle] = []
        try:
            outside_of_graphs_if_any(self._register)(handles)
            with whole_after_errors(self._engine):
                yield
        except BaseException as error:
            if self._engine.begun:
                error.add_note(
                    "parameters that have begun this step: "
                    f"{len(self._engine.begun)}. The next step() updates the others that have "
                    "gradients, and load_state_dict() discards it"
                )
            raise
        finally:
            for handle in handles:
                handle.remove()

    def _register(self, handles: list[RemovableHandle]) -> None:
        found = [x for x in self._on_devices() if not is_lazy(x[1])]
        strided = [(index, p) for index, p, _ in found if p.layout is torch.strided]
        check_apart(strided)
        memory = ParameterMemory((index, p) for index, p in strided if p.requires_grad)
        on_gradient = outside_of_graphs_if_any(self._on_gradient)
        for index, p, recipes in found:
            if p.requires_grad:
                hook = partial(on_gradient, index, recipes, memory)
                handles.append(p.register_post_accumulate_grad_hook(hook))

    def _on_devices(self) -> Iterator[tuple[int, Tensor, Recipes]]:
        for first, group in numbered(self._groups):
            numbers = enumerate(group["params"], first)
            own = [(index, p) for index, p in numbers if self._engine.lanes.of(p) is not None]
            if own:
                recipes = Recipes(group)
                yield from ((index, p, recipes) for index, p in own)

    def _on_gradient(
        self, index: int, recipes: Recipes, memory: ParameterMemory, p: Tensor
    ) -> None:
        engine = self._engine
        if p in engine.begun:
            raise RuntimeError(
                f"parameter {index} must have one gradient in overlapped(); got a second one after "
                "its update had begun, as from two backward passes, or from several checkpoints "
                "with use_reentrant=True that use it"
            )
        grad = p.grad
        if grad is None:  # another hook has taken it
            return
        update = engine.check_one(p, index, recipes, self._state.get(p, {}))
        memory.require_apart(update.grad, index)
        engine.check_state()
        self._check(update)
        if self._sums_only:
            with DeferredSignals():
                engine.begin_sum(update)
            return
        sample = update.sample
        if sample not in self._rehearsed:
            rehearse(*sample)
            self._rehearsed.add(sample)
        with DeferredSignals():
            engine.begin(engine.make_ready([update]), self._state)
            engine.begun[p] = Begun(update.recipe, Gradient(grad))


@contextmanager
def whole_after_errors(engine: Engine) -> Iterator[None]:
    """A block whose errors are raised when the updates that have begun are complete: what reads the
    parameters after an error does not wait for them."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # of an update that failed; the next step raises it, too
            engine.synchronize()
        raise


def require_whole_step(engine: Engine) -> None:
    """Raise RuntimeError where a step has begun already."""
    if engine.begun:
        raise RuntimeError(
            "overlapped() must be entered between steps; got one that has begun for "
            f"{len(engine.begun)} parameters. Call step() to finish it, or load_state_dict()"
        )


def require_final_gradients(groups: Groups) -> None:
    """Raise RuntimeError where other processes may still add to a gradient after its hooks."""
    if not is_in_group() or torch.distributed.get_world_size() == 1:
        return
    if any(not is_dtensor(p) for group in groups for p in group["params"]):
        raise RuntimeError(
            "overlapped() does not support gradients that are averaged over processes, as by "
            "DistributedDataParallel: they are not final in the hooks. Use step() alone, or FSDP2"
        )


def require_unscaled(engine: Engine, optimizer: Any) -> None:
    """Raise RuntimeError where GradScaler takes part in a step that has begun."""
    if is_scaled(optimizer) and engine.begun:
        raise RuntimeError(
            "overlapped() does not support GradScaler: updates have begun with scaled gradients"
        )


def require_unchanged(engine: Engine, groups: Groups, clips: bool) -> None:
    """Raise RuntimeError if gradients or options have changed since an update began with them."""
    if clips and engine.begun:
        raise RuntimeError(
            "max_grad_norm must be set before overlapped(); got a number after the step had begun "
            "without it. Set it to None for this step"
        )
    other_grads, other_options = [], []
    for first, group in numbered(groups):
        begun = [(i, p) for i, p in enumerate(group["params"], first) if p in engine.begun]
        if not begun:
            continue
        recipes = Recipes(group)
        for index, p in begun:
            recipe, gradient = engine.begun[p]
            if p.grad is not None and not gradient.is_still(p.grad):
                other_grads.append(index)
            if recipes.of(p) != recipe:
                other_options.append(index)
    for indices, what, instead in (
        (other_grads, "gradients", _instead_of_new_gradients()),
        (other_options, "options such as lr", "Change them after step() instead"),
    ):
        if indices:
            engine.begun.clear()
            raise RuntimeError(
                f"{what} must be the same in overlapped() and in step(); got changes for "
                f"parameters {indices}, which were updated with the old ones; the others are not "
                f"updated. {instead}"
            )


def _instead_of_new_gradients() -> str:
    """What to do instead. DistributedDataParallel replaces gradients in one process, too."""
    advice = "Clip with max_grad_norm instead"
    return f"{advice}; with DistributedDataParallel, use step() alone" if is_in_group() else advice
