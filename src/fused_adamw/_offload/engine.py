"""The step of an optimizer whose parameters are on a device."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from .._core import DeferredSignals, norm_of_chunks
from .._torch.dtensors import local_of, redistributed
from .._torch.flat_memory import flat_view, in_order_of
from .._torch.local_shards import increment_version, versions_of
from .._torch.options import numbered
from .._torch.portable_state import restore_masters
from .._torch.state import is_lazy
from .checks import check_apart, check_gradient, check_parameter, check_ranges
from .host_state import NOWHERE, Address, HostState
from .jobs import Piece, SumJob, UpdateJob
from .lanes import Lane, Lanes, Ticket
from .pump import Pump
from .recipe import Recipe, Recipes
from .ring import SLOT_BYTES, SLOTS, SMALLEST_SLOT, Ring
from .stepper import rehearse

Groups = Sequence[Mapping[str, Any]]
OptimizerState = Mapping[Tensor, dict[str, Tensor]]


class CheckedUpdate(NamedTuple):
    """The update of a parameter, checked, with nothing changed yet."""

    p: Tensor
    grad: Tensor
    lane: Lane
    host_state: HostState
    recipe: Recipe

    @property
    def sample(self) -> tuple[torch.dtype, Recipe, float]:
        """What ``rehearse`` takes; equal for updates that are refused for the same numbers."""
        return self.p.dtype, self.recipe, float(self.host_state.step.item())


class ReadyUpdate(NamedTuple):
    """A checked update for which all that could be refused, such as memory, is there."""

    p: Tensor
    job: UpdateJob
    pieces: list[Piece]


class Gradient:
    """The gradient that was used, to detect a replacement or a change."""

    def __init__(self, grad: Tensor) -> None:
        self._grad, self._versions = TensorWeakRef(grad), versions_of(grad)

    def is_still(self, grad: Tensor) -> bool:
        return grad is self._grad() and versions_of(grad) == self._versions


class Begun(NamedTuple):
    """An update that began before the step."""

    recipe: Recipe
    gradient: Gradient


class Engine:
    """Checks and begins updates, and waits for them.

    Attributes:
        begun: updates of the step that is to be taken, which began during backward.
        pending: updates that a step has begun, whose parameters nobody has waited for.
        updated: the parameters of the last step.
        copied: where the parameters of a copy were when it was made.
    """

    def __init__(self, lanes: Lanes, ring: tuple[int, int] | None = None) -> None:
        self.lanes = lanes
        self.begun: dict[Tensor, Begun] = {}
        self.pending: dict[Tensor, UpdateJob] = {}
        self.updated: set[Tensor] = set()
        self.copied: dict[Tensor, Address] = {}
        self._summed: dict[Tensor, tuple[SumJob, Gradient]] = {}
        self._host_states: dict[Tensor, HostState] = {}
        self._is_checked = True  # whether their state is known to be apart
        self._ring, self._nbytes = ring, SLOT_BYTES
        self._own_pump: Pump | None = None

    # ---- construction

    def prepare(self, groups: Groups) -> None:
        """Allocate the pinned memory, once there is a parameter on a device."""
        params = [p for _, group in numbered(groups) for p in group["params"] if not is_lazy(p)]
        if self._own_pump is None and any(self.lanes.of(p) is not None for p in params):
            # Not nbytes, which sparse tensors lack: a step refuses these.
            self._nbytes = sum(local_of(p).numel() * p.element_size() for p in params)
            self._pump()

    @property
    def ring_nbytes(self) -> int:
        """The pinned memory."""
        return 0 if self._own_pump is None else self._own_pump.ring_nbytes

    def _pump(self) -> Pump:
        pump = self._own_pump
        if pump is not None and pump.process != os.getpid():  # a fork has no copy of the thread
            if pump.is_busy() or not all(job.written.query() for job in self.pending.values()):
                raise RuntimeError(
                    "an optimizer must not be used in a process that was forked during its updates"
                )
            pump = None
        if pump is None:
            fitting = max(1 << (self._nbytes - 1).bit_length(), SMALLEST_SLOT)
            slots, slot_bytes = self._ring or (SLOTS, min(SLOT_BYTES, fitting))
            pinned = self.lanes.simulated is None and torch.accelerator.is_available()
            pump = self._own_pump = Pump(Ring(slots, slot_bytes, pinned))
            finalize(self, pump.stop).atexit = False
        return pump

    # ---- checks

    def check(
        self, groups: Groups, state: OptimizerState, *, with_host: bool, grad_scale: float = 1.0
    ) -> list[CheckedUpdate]:
        """The updates of a step that have not begun.

        Args:
            with_host: check those of parameters on the CPU too.
            grad_scale: a factor of the gradients.

        Raises:
            TypeError, ValueError, KeyError: something cannot be updated.
        """
        updates: list[CheckedUpdate] = []
        for first, group in numbered(groups):
            recipes = None
            for index, p in enumerate(group["params"], first):
                if p.grad is None or p in self.begun:
                    continue
                lane = self.lanes.or_host(p) if with_host else self.lanes.of(p)
                if lane is not None:
                    recipes = recipes or Recipes(group, grad_scale)
                    updates.append(self.check_one(p, index, recipes, state.get(p, {})))
        indices = [update.host_state.index for update in updates]
        check_apart(
            zip(indices, (update.p for update in updates), strict=True),
            zip(indices, (update.grad for update in updates), strict=True),
        )
        self.check_state()
        for sample in {update.sample for update in updates}:
            rehearse(*sample)
        return updates

    def check_one(
        self, p: Tensor, index: int, recipes: Recipes, entry: dict[str, Tensor]
    ) -> CheckedUpdate:
        """The update of one parameter; its recipe is still to be rehearsed."""
        grad: Tensor = redistributed(p.grad, p)
        host_state = self._host_state(p, index, recipes, entry)
        check_gradient(p, grad, index)
        return CheckedUpdate(p, grad, self.lanes.or_host(p), host_state, recipes.of(p))

    def _host_state(
        self, p: Tensor, index: int, recipes: Recipes, entry: dict[str, Tensor]
    ) -> HostState:
        old = host_state = self._host_states.get(p)
        if host_state is None or not host_state.is_like(p):
            check_parameter(p, index, recipes.group)
            host_state = None
        kind = recipes.of(p).kind
        if host_state is None or host_state.index != index or not host_state.is_of(kind, entry):
            restore_masters({p: entry}, [p])
            host_state = HostState(p, index, kind, entry)
            if old is None:
                host_state.written = self.copied.pop(p, None)
            elif old.has_state(entry):
                host_state.written = old.written
            self._host_states[p] = host_state
            self._is_checked &= not entry  # new state has memory of its own
        host_state.note_writes(p)
        return host_state

    def check_state(self) -> None:
        """Raise ValueError where state that was not made here shares memory."""
        if not self._is_checked:
            check_ranges(x for state in self._host_states.values() for x in state.memory())
            self._is_checked = True

    # ---- the norm

    def begin_sum(self, update: CheckedUpdate) -> SumJob:
        """Begin to sum the squares of a gradient, unless that has been done."""
        known = self._summed.get(update.p)
        if known is not None and known[1].is_still(update.grad):
            return known[0]
        arguments = self._job_arguments(update, update.lane.ticket())
        job = SumJob(*arguments, update.recipe.num_threads)
        pump = self._pump()
        pieces = pump.cut(job)
        pump.start()
        self._summed[update.p] = job, Gradient(update.grad)
        pump.put([pieces])
        return job

    def norm(self, updates: Sequence[CheckedUpdate]) -> float:
        """The norm of all gradients, with the bits of ``AdamW``."""
        with DeferredSignals():  # or a thread, or a job, could be begun and not known
            jobs = [self.begin_sum(update) for update in updates]
        for job in jobs:
            self._pump().wait(job)
        self._summed.clear()
        scale = updates[0].recipe.grad_scale if updates else 1.0
        return norm_of_chunks(np.concatenate([np.zeros(0), *(job.sums for job in jobs)]), scale)

    # ---- updates

    def make_ready(self, updates: Sequence[CheckedUpdate], clip: float = 1.0) -> list[ReadyUpdate]:
        """Make the jobs of updates, and the thread that does them. Nothing changes yet.

        Raises:
            RuntimeError, MemoryError: memory or the thread is refused.
        """
        if not updates:
            return []
        pump = self._pump()
        lanes = {id(update.lane): update.lane for update in updates}
        tickets = {i: lane.ticket() for i, lane in lanes.items()}
        ready: list[ReadyUpdate] = []
        for update in updates:
            arguments = self._job_arguments(update, tickets[id(update.lane)])
            job = UpdateJob(*arguments, update.host_state, update.recipe, clip)
            ready.append(ReadyUpdate(update.p, job, pump.cut(job)))
        pump.start()
        return ready

    def begin(self, updates: Sequence[ReadyUpdate], state: OptimizerState) -> None:
        """Begin updates; from here on they count as steps. Nothing is raised."""
        if not updates:
            return
        with torch.inference_mode():  # which may count in all tensors
            for p, job, _ in updates:
                job.host_state.count_step(state[p])
                self.pending[p] = job
        increment_version([update.p for update in updates])
        for p, job, _ in updates:
            job.host_state.written = Address.of(p)
        self._pump().put(update.pieces for update in updates)

    def _job_arguments(
        self, update: CheckedUpdate, ready: Ticket
    ) -> tuple[Lane, Ticket, Tensor, Tensor]:
        p, grad = update.p, local_of(update.grad)
        ordered = in_order_of(local_of(p), grad)
        if ordered is not grad:
            ready = update.lane.ticket()
        return update.lane, ready, flat_view(ordered), flat_view(local_of(p))

    # ---- waiting

    def wait_for(self, params: Iterable[Tensor]) -> None:
        """What this thread does from now on sees these parameters updated."""
        for p in params:
            job = self.pending.get(p)
            if job is not None:
                self._pump().wait(job)
                job.lane.order(job.written)
                if self.pending.get(p) is job:  # not of a step that another thread has taken since
                    self.pending.pop(p, None)

    def synchronize(self) -> None:
        """``wait_for`` all parameters; their state is complete, too."""
        self.wait_for(list(self.pending))

    # ---- other code

    def forget_sums(self) -> None:
        """The gradients may have changed since they were summed."""
        self._summed.clear()

    def forget(self) -> None:
        """The optimizer has other state, and no step has begun."""
        self._host_states.clear()
        self.forget_sums()
        self.begun.clear()
        self.copied.clear()

    def refresh(self, groups: Groups, state: OptimizerState) -> None:
        """Master weights start again from the parameters."""
        for first, group in numbered(groups):
            for index, p in enumerate(group["params"], first):
                if state.get(p) and self.lanes.of(p) is not None:
                    host_state = self._host_state(p, index, Recipes(group), state[p])
                    host_state.written = NOWHERE
