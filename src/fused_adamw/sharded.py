"""``ShardedAdamW``: AdamW over MPI, each process with its part of the state (ZeRO stage 1).

Every rank has all parameters and the gradients of its own data. In each step a reduce-scatter gives
it the mean gradients of its shard, it updates its shard, and an all-gather gives it the rest
(Rajbhandari et al. 2020, arXiv:1910.02054). The algorithms and the network are those of the MPI
that mpi4py was built for.

If one rank dies or raises, the others must be terminated, or they wait forever. MPI does that for a
process that is killed; for an exception, start Python as

    mpiexec -n 4 python -m mpi4py train.py
"""

from contextlib import AbstractContextManager
from typing import Any, NoReturn

import numpy as np

from ._core import BoundTensors
from ._distributed.agreement import raise_on_all_ranks
from ._distributed.bucket_comm import BucketCommunicator
from ._distributed.collective_step import CollectiveStep, needs_norm, numbers_of_step
from ._distributed.fingerprints import of_construction, of_step
from ._distributed.mpi import Comm, operations_of, private_duplicate, threads_of_rank, world
from ._distributed.partition import (
    BUCKET_BYTES,
    MAX_COLLECTIVE_BYTES,
    MIN_BUCKET_BYTES,
    check_bucket_bytes,
    partition,
    slices_by_tensor,
    sum_itemsize,
)
from ._optim.allocation import Allocate
from ._optim.arrays import (
    Array,
    ArrayTree,
    GradientTree,
    ShardSlice,
    order_of,
    ravel_like,
    reshape_like,
)
from ._optim.base import BaseOptimizer
from ._optim.param_groups import DecayMask
from ._optim.state_formats import ELEMENT_TYPES, StateDtype, allocate_state, moment
from .schedules import Schedule

__all__ = ["ShardedAdamW"]


class ShardedAdamW(BaseOptimizer):
    """``AdamW`` with its state and its work divided over the ranks of a communicator.

    With the same mean gradients, parameters and state are bit-identical to those of a single
    process running ``AdamW``, whatever the number of ranks. The constructor, ``step``, gathering,
    saving and loading are collective: all ranks have to call them, in the same order. Ranks that
    begin different ones, or are at different steps, all raise ValueError. Signal handlers of Python
    run after the operation; docs/scaling.md says how to stop and save. One thread at a time may use
    the optimizers of a communicator; another one gets a RuntimeError.

    Args:
        params: as in ``AdamW``; the same values on all ranks. Each step updates all of them on all
            ranks, in place.
        comm: an intracommunicator of mpi4py; None: ``MPI.COMM_WORLD``. Messages go over a
            duplicate, on which an error of MPI ends the job.
        bucket_bytes: the most bytes that one collective moves, by default 8 MiB; at least 131,072;
            values above 2 GiB have no further effect. A rank has two staging buffers, each of at
            most this size and its own part of it; docs/scaling.md lists the rest.
        num_threads: as in ``AdamW``. None: the cores of a rank, shared with the ranks of its
            machine that have the same ones, unless ``OMP_NUM_THREADS`` is a number.

    All other arguments are those of ``AdamW``, and the same on all ranks. So are its attributes
    ``t`` and ``param_groups`` and those of the options: change them on all ranks.

    Attributes:
        state_nbytes: the memory of this rank's part of the state, in bytes.
        buckets: the partition: what one collective moves, and which rank owns what of it.
        comm: the duplicate of the communicator.

    Raises:
        TypeError, ValueError: the same error on every rank if any argument (except ``comm``) is
            invalid on one rank or differs between ranks.

    Example (under ``mpiexec -n 4 python -m mpi4py``)::

        opt = ShardedAdamW(model.parameters, lr=1e-3)
        for tokens, targets in batches_of_this_rank:
            loss, grads = model.loss_and_gradients(tokens, targets)
            opt.step(grads)
    """

    def __init__(
        self,
        params: ArrayTree | list[dict[str, Any]],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | Schedule = 1e-8,
        weight_decay: float = 0.01,
        *,
        comm: Comm | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        amsgrad: bool = False,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: StateDtype | None = None,
        num_threads: int | None = None,
        decay_mask: DecayMask | None = None,
        master_weights: bool = False,
        seed: int | None = 0,
        ema_decay: float | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        arguments = locals()
        self.comm: Comm = private_duplicate(world() if comm is None else comm)
        self._comm = self.comm
        self._operations = operations_of(self.comm)
        fingerprint: dict[str, Any] = {}
        with self._exclusive("ShardedAdamW"):
            with raise_on_all_ranks(self.comm, fingerprint):
                self._number = self._operations.num_optimizers + 1
                fingerprint |= self._collective_call("ShardedAdamW")
                self._arrange(params, arguments)
                check_bucket_bytes(bucket_bytes)
                self._bind(bucket_bytes, allocate)
                self._finish(decay_mask)
                names = self._spec.argument_names("params")
                fingerprint |= of_construction(self, names, self._decays, self._flat)
                fingerprint |= {"bucket_bytes": int(bucket_bytes)}
            self._operations.num_optimizers = self._number
            self.num_threads = threads_of_rank(self.comm, self.num_threads)

    def step(self, local_grads: GradientTree, grad_scale: float = 1.0) -> float | None:
        """Update all parameters, in place, by the mean over the ranks of their gradients.

        Args:
            local_grads: the gradients of this rank, as in ``AdamW.step``. A tensor without one must
                be without one on all ranks. With ``max_grad_norm`` or ``skip_nonfinite`` the parts
                of this rank's shard are overwritten with the mean, to save memory: they must be
                writable, and no two elements may share memory. Else they are only read.
            grad_scale: as in ``AdamW.step``; a factor of the mean.

        Returns:
            The global norm of the mean gradients, times ``grad_scale``, where it was needed (for
            ``max_grad_norm`` or ``skip_nonfinite``), else None.

        Raises:
            TypeError, ValueError: the same error on all ranks, with nothing changed, ``t``
                included, where an argument is invalid on one rank, or differs between ranks.
            KeyboardInterrupt, and what other signal handlers raise: after the current step has
                completed on this rank.

        The sum of the gradients is formed in their dtype (of 16-bit gradients in float32), in an
        order that MPI chooses, divided by the number of ranks, and rounded to their dtype.
        """
        fingerprint: dict[str, Any] = {}
        with self._exclusive("step"):
            with raise_on_all_ranks(self.comm, fingerprint):
                fingerprint |= self._collective_call("step", t=self.t)
                options, max_grad_norm = numbers_of_step(self, grad_scale)
                skip_nonfinite = bool(self.skip_nonfinite)
                grads: tuple[Any, ...] = self._bound.check_collective(
                    local_grads,
                    options["hypers"],
                    grad_scale=options["grad_scale"],
                    max_grad_norm=max_grad_norm,
                    num_threads=options["num_threads"],
                    overwritten=self.comm.size > 1 and needs_norm(max_grad_norm, skip_nonfinite),
                )
                fingerprint |= of_step(self, grads, options["grad_scale"], options["hypers"])
                raveled = self._raveled(grads)  # asks the gradients for their memory once more
                self._sources.check(self.param_groups, True)  # the code of arguments has run
            with np.errstate(all="ignore"):
                norm, updated = self._collective_step.run(
                    raveled, options, max_grad_norm, skip_nonfinite
                )
            if updated:
                self._bound.count_step(grads)
            return norm

    # ---- state

    def gather_ema(self) -> ArrayTree | None:
        """Gather the averages of the weights from the ranks that keep them. Collective.

        Returns:
            New arrays in the structure of ``params``, each of the shape, memory order ("C" or "F")
            and dtype of its parameter, or float32 where that has 16 bits; None without ema_decay.
        """
        return self._gather_role("ema")

    def gather_master(self) -> ArrayTree | None:
        """Gather the master weights, as ``gather_ema``; float32 and float64 parameters are copied.
        None without master_weights. Collective.
        """
        return self._gather_role("master")

    def _gather_role(self, role: str) -> ArrayTree | None:
        fingerprint: dict[str, Any] = {}
        with self._exclusive(f"gather_{role}"):
            with raise_on_all_ranks(self.comm, fingerprint):
                fingerprint |= self._collective_call(f"gather_{role}", t=self.t)
                self._sources.check_unchanged(self.param_groups, False)
                whole = self._own_parts(role)
            if whole is None:
                return None
            self._gather(whole)
        tree: ArrayTree = self._spec.unflatten(map(reshape_like, whole, self._arrays))
        return tree

    def _own_parts(self, role: str) -> list[Array] | None:
        """New arrays that have this rank's parts of a role, decoded, in their places."""
        if role not in self._state_options.roles:
            return None
        whole = [np.empty(x.shape, ELEMENT_TYPES[x.dtype.name].compute) for x in self._flat]
        for s, state in zip(self._own, self._state, strict=True):
            own = slice(s.begin, s.end)
            whole[s.tensor][own] = moment(state, role, self._flat[s.tensor][own])
        return whole

    def __repr__(self) -> str:
        return (
            f"ShardedAdamW({self._contents_repr()}, "
            f"rank {self.comm.rank} of {self.comm.size}{self._options_repr()})"
        )

    # ---- collective operations

    def _exclusive(self, operation: str, changes: bool = True) -> AbstractContextManager[None]:
        return self._operations.run(operation)

    def _collective_call(self, operation: str, **numbers: int) -> dict[str, Any]:
        self._operations.raise_refused()
        which = {"the optimizer (by order of construction)": self._number}
        return {"the operation": operation, **which, **numbers}

    # ---- checkpoints

    def _shards(self, tensor: int) -> list[ShardSlice]:
        return self._slices[tensor]

    def _own_state(self, shard: ShardSlice, role: str) -> Array:
        return self._state[self._slot_of[shard]].arrays[role]

    def _gather_params(self) -> None:
        self._gather(self._flat)

    def _gather(self, arrays: list[Array]) -> None:
        for k, bucket in enumerate(self.buckets):
            self._bucket_comm.start_gather(k, bucket, arrays)
        self._bucket_comm.finish()

    def __getstate__(self) -> NoReturn:
        raise TypeError("ShardedAdamW cannot be copied or pickled; use save_checkpoint")

    # ---- construction

    def _bind(self, bucket_bytes: int, allocate: Allocate | None) -> None:
        """Partition the tensors, and allocate and bind this rank's part of the state."""
        self._flat = [ravel_like(array, order_of(array)) for array in self._arrays]
        capacity = min(bucket_bytes, MAX_COLLECTIVE_BYTES)
        if self.comm.size == 1:  # nothing is moved
            nbytes = sum(flat.size * sum_itemsize(flat.dtype.name) for flat in self._flat)
            capacity = max(MIN_BUCKET_BYTES, nbytes)
        sizes = [flat.size for flat in self._flat]
        dtypes = [flat.dtype.name for flat in self._flat]
        self.buckets = partition(sizes, dtypes, self.comm.size, capacity)
        self._slices = slices_by_tensor(self.buckets, len(sizes))
        # Bucket by bucket, so that a step of a bucket is one of a range of slots.
        self._own = [s for bucket in self.buckets for s in bucket.parts[self.comm.rank]]
        self._slot_of = {s: slot for slot, s in enumerate(self._own)}
        self._state = [
            allocate_state(self._flat[s.tensor][s.begin : s.end], self._state_options, allocate)
            for s in self._own
        ]
        self._bound = BoundTensors(
            self._spec,
            self._params(),
            self._state,
            slices=[(s.tensor, s.begin, s.end) for s in self._own],
            seed=self.seed,
            roles=self._state_options.roles,
        )
        self._bucket_comm = BucketCommunicator(self.comm, self.buckets)
        self._collective_step = CollectiveStep(
            self._bound, self.buckets, self._flat, self._bucket_comm
        )

    # ---- a step

    def _raveled(self, grads: tuple[Any, ...]) -> list[Array | None]:
        """The elements of the gradients in the memory order of the parameters."""
        return [
            None if grad is None else ravel_like(np.asarray(grad), order_of(array))
            for grad, array in zip(grads, self._arrays, strict=True)
        ]
