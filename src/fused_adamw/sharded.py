"""``ShardedAdamW``: AdamW over MPI, each process with its part of the state (ZeRO stage 1).

Every rank has all parameters and the gradients of its own data. In each step a reduce-scatter gives
it the mean gradients of its shard, it updates its shard, and an all-gather gives it the rest
(Rajbhandari et al. 2020). The messages, the algorithms and the network are those of the MPI that
mpi4py was built for.

A rank that dies, or that an exception ends, has to end the others too, which else wait for it for
ever. MPI does that for a process that is killed; for an exception, start Python as

    mpiexec -n 4 python -m mpi4py train.py
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, pairwise
from math import isfinite, sqrt
from typing import Any

import numpy as np

from ._core import WholeTensors, require_seed, resolve_threads
from ._distributed.bucket_comm import (
    Exchange,
    agreed,
    default_threads,
    own_duplicate,
    sums_of_all,
    world,
)
from ._distributed.partition import UNIT, Bucket, Strip, make_plan
from ._io.sigint import interrupt_deferred
from ._optim.state_formats import Packed, layout, order_of, packed_dtype
from .optimizer import (
    HYPER_PARAMETERS,
    OPTIONS,
    AdamW,
    DecayMask,
    Hyper,
    Schedule,
    arranged,
    asked_decays,
    checked_numbers,
    described_groups,
    hypers_of,
    is_grouped,
    names_of,
    refuse_float64,
)

BUCKET_BYTES = 1 << 24
FEWEST_BYTES = 8 * UNIT  # a unit of float64


class ShardedAdamW:
    """``AdamW`` with its state and its work divided over the ranks of a communicator.

    With the same mean gradients, parameters and state have the bits of a single process running
    ``AdamW``, whatever the number of ranks. Constructing it, ``step`` and checkpoints
    (``sharded_checkpoint.py``) are collective: all ranks have to call them, in the same order.

    Args:
        params: as of ``AdamW``, of float32 and float64; the same values on all ranks. Each step
            changes all of them on all ranks.
        comm: an intracommunicator of mpi4py; None: ``MPI.COMM_WORLD``. Messages go over a
            duplicate, on which an error of MPI ends the job.
        bucket_bytes: what one collective moves at most; 131,072 or more. Two buffers of that size
            are all that a rank needs beside parameters, gradients and its part of the state.
        num_threads: as of ``AdamW``. None: the processors that a rank has, shared with the ranks of
            its machine that have the same ones; the environment's ``OMP_NUM_THREADS`` goes first.
        lr, betas, eps, weight_decay, amsgrad, maximize, max_grad_norm, skip_nonfinite, state_dtype,
            decay_mask, seed: as of ``AdamW``, and the same on all ranks.

    Attributes:
        t, param_groups, max_grad_norm, skip_nonfinite, maximize, num_threads: as of ``AdamW``. To
            change one, change it on all ranks.
        state_nbytes: the memory of this rank's part of the state.
        plan: the buckets, and who owns what of them (``shards.py``).

    Raises TypeError or ValueError on all ranks alike where an argument but ``comm`` is wrong on
    one, or is another on one.

    Example (under ``mpiexec -n 4 python -m mpi4py``)::

        opt = ShardedAdamW(model.parameters, lr=1e-3)
        for tokens, targets in batches_of_this_rank:
            loss, grads = model.loss_and_gradients(tokens, targets)
            opt.step(grads)
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        comm: Any = None,
        bucket_bytes: int = BUCKET_BYTES,
        amsgrad: bool = False,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: str | None = None,
        num_threads: int | None = None,
        decay_mask: DecayMask | None = None,
        seed: int | None = 0,
    ) -> None:
        self._comm = own_duplicate(world() if comm is None else comm)
        self.max_grad_norm, self.num_threads = max_grad_norm, num_threads
        self.state_dtype, self._seed = state_dtype, seed
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        facts: dict[str, Any] = {}
        with agreed(self._comm, facts):
            self.maximize, self.skip_nonfinite = bool(maximize), bool(skip_nonfinite)
            self._hold_params(params, defaults, decay_mask)
            self._hold_shard(_checked_bytes(bucket_bytes), bool(amsgrad))
            resolve_threads(num_threads)
            self._exchange = Exchange(self._comm, self.plan, self._flat)
            facts |= self._description()
        if num_threads is None:
            self.num_threads = default_threads(self._comm)
        self._first_unit = dict(
            zip(self._own, accumulate(map(_units, self._own), initial=0), strict=False)
        )
        self._units, self._norm_order = _norm_order(self.plan, self._comm.size)

    def step(self, local_grads: Any, grad_scale: float = 1.0) -> float | None:
        """Update all parameters, in place, by the mean over the ranks of their gradients.

        Args:
            local_grads: the gradients of this rank, as of ``AdamW.step``. A tensor without one has
                to be without one on all ranks. With ``max_grad_norm`` or ``skip_nonfinite`` the
                parts of this rank's shard are overwritten with the mean, to save the memory; else
                they are only read.
            grad_scale: as of ``AdamW.step``; a factor of the mean.

        Returns the global norm of the mean gradients, times ``grad_scale``, where it was needed
        (for ``max_grad_norm`` or ``skip_nonfinite``), else None.

        The sum of the gradients is formed in their dtype, in an order that MPI chooses, and divided
        by the number of ranks.

        Raises TypeError or ValueError on all ranks alike, with nothing changed, ``t`` included,
        where a gradient or a number is wrong on one rank, or the numbers differ between ranks.
        """
        grads: tuple[Any, ...] = ()
        hypers: list[Any] = []
        facts: dict[str, Any] = {}
        with interrupt_deferred():  # or one rank would leave the step that the others take
            with agreed(self._comm, facts):
                hypers = hypers_of(self.param_groups, self.t + 1)
                grads = self._whole.check_step(
                    local_grads,
                    hypers,
                    grad_scale,
                    self.max_grad_norm,
                    self.num_threads,
                    self._needs_norm and self._comm.size > 1,
                )
                facts |= self._facts(grads, hypers, grad_scale)
            with np.errstate(all="ignore"):
                return self._take_step(grads, hypers, float(grad_scale))

    # ---- state

    @property
    def t(self) -> int:
        return self._whole.t

    @property
    def seed(self) -> int | None:
        return self._seed

    @property
    def amsgrad(self) -> bool:
        return self._local.amsgrad

    @property
    def names(self) -> list[str]:
        """A name for each tensor, as of ``AdamW``."""
        return names_of(self._structure)

    @property
    def state_nbytes(self) -> int:
        """The memory of this rank's moments and their scales, in bytes."""
        return self._local.state_nbytes

    @property
    def comm(self) -> Any:
        """The duplicate of the communicator that messages go over."""
        return self._comm

    def state_numbers(self) -> dict[str, Any]:
        """A ``state_dict`` of ``AdamW``, without the arrays."""
        steps = zip(self.names, self._whole.get_steps(), self._orders(), strict=True)
        return {
            "t": self.t,
            "param_groups": described_groups(self.param_groups),
            "maximize": bool(self.maximize),
            "max_grad_norm": self.max_grad_norm,
            "skip_nonfinite": bool(self.skip_nonfinite),
            "seed": self.seed,
            "state": {name: {"step": step, **order} for name, step, order in steps},
        }

    def _orders(self) -> list[dict[str, str]]:
        """Of each tensor the ``order`` in which its state is packed, where it is."""
        return [
            {"order": order_of(array)} if packed_dtype(array.dtype.name, self.state_dtype) else {}
            for array in self._arrays
        ]

    def check_numbers(self, saved: Mapping[str, Any]) -> None:
        """Raise what ``load_state_dict`` of ``AdamW`` would raise of all but the arrays."""
        groups, steps = checked_numbers(saved, len(self.param_groups), self.names)
        self._whole.check(hypers_of(groups, saved["t"] + 1), saved["max_grad_norm"], steps)
        require_seed(saved["seed"])
        for name, order in zip(self.names, self._orders(), strict=True):
            found = {k: x for k, x in saved["state"][name].items() if k == "order"}
            if found != order:
                raise ValueError(f"the state of {name!r} is kept in {found}; expected {order}")

    def load_numbers(self, saved: Mapping[str, Any]) -> None:
        """Return to numbers that have been checked."""
        for group, found in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update(found)
        for option in OPTIONS:
            setattr(self, option, saved[option])
        steps = [saved["state"][name]["step"] for name in self.names]
        self._whole.t = self._local._tensors.t = saved["t"]
        self._whole.set_steps(steps)
        self._local._tensors.set_steps([steps[strip.tensor] for strip in self._own])
        self._set_seed(saved["seed"])

    def roles(self, tensor: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype and shape of each array that a single process keeps of a tensor."""
        array = self._arrays[tensor]
        packed = packed_dtype(array.dtype.name, self.state_dtype)
        if packed is None:
            names = ("m", "v", "v_max") if self.amsgrad else ("m", "v")
            return {name: (array.dtype.name, array.shape) for name in names}
        arrays = layout(packed, array.size, self.amsgrad, master=False)
        return {name: (np.dtype(dtype).name, (size,)) for name, (dtype, size) in arrays.items()}

    def owners(self, tensor: int) -> list[tuple[int, Strip]]:
        """The strips of a tensor, in order, each behind the rank that owns it."""
        return self._owners[tensor]

    def own_state(self, strip: Strip, role: str) -> Any:
        """What this rank keeps of a strip of its own: an array in one dimension."""
        return self._local._state_of(self._own_index[strip])[role]

    def gather_params(self) -> None:
        """Let every rank have the parameters of all shards, from those who own them."""
        for k, bucket in enumerate(self.plan):
            self._exchange.start_gather(k, bucket)
        self._exchange.finish()

    def __repr__(self) -> str:
        size = sum(array.size for array in self._flat)
        return (
            f"ShardedAdamW({len(self._flat)} tensors, {size:,} parameters, t={self.t}, "
            f"rank {self._comm.rank} of {self._comm.size})"
        )

    # ---- construction

    def _hold_params(
        self, params: Any, defaults: dict[str, Any], decay_mask: DecayMask | None
    ) -> None:
        self.param_groups, self._structure, arrays = arranged(params, defaults)
        grouped = is_grouped(params)
        self._group = [path[0] if grouped else 0 for path in self._structure.paths()]  # by tensor
        self._decays = [True] * len(arrays)
        self._hold_whole(arrays)
        if decay_mask is not None:  # asked behind the checks of the arrays
            self._decays = asked_decays(self._structure, decay_mask, arrays)
            self._hold_whole(arrays)
        hypers = hypers_of(self.param_groups, 1)
        self._whole.check(hypers, self.max_grad_norm, [0] * len(arrays))
        self._arrays = [np.asarray(array) for array in arrays]
        self._flat = [lined_up(array, order_of(array)) for array in self._arrays]

    def _hold_whole(self, arrays: tuple[Any, ...]) -> None:
        for name, array in zip(self.names, arrays, strict=True):
            dtype = np.asarray(array).dtype
            if dtype.name in ("float16", "bfloat16"):
                raise TypeError(f"params[{name!r}] has dtype {dtype}; expected float32 or float64")
        refuse_float64(self.names, arrays, self.state_dtype, "float32")
        none = self._structure.unflatten([None] * len(arrays))
        held = self._structure.unflatten(arrays)
        packed = [Packed("float32", None, None) for _ in arrays]  # no moments
        self._whole = WholeTensors(
            self._structure, held, none, none, decays=self._decays, packed=packed
        )

    def _hold_shard(self, bucket_bytes: int, amsgrad: bool) -> None:
        """The plan, and an optimizer over this rank's strips."""
        dtypes = [array.dtype.name for array in self._flat]
        sizes = [array.size for array in self._flat]
        self._bucket_bytes = bucket_bytes
        if self._comm.size == 1:  # nothing is moved
            bucket_bytes = max(FEWEST_BYTES, sum(flat.nbytes for flat in self._flat))
        self.plan = make_plan(sizes, dtypes, self._comm.size, bucket_bytes)
        self._owners: list[list[tuple[int, Strip]]] = [[] for _ in self._flat]
        for bucket in self.plan:
            for rank, part in enumerate(bucket.parts):
                for strip in part:
                    self._owners[strip.tensor].append((rank, strip))
        rank = self._comm.rank
        self._own = [s for owners in self._owners for owner, s in owners if owner == rank]
        # An empty strip stands for an empty shard.
        self._own = self._own or [Strip(0, 0, 0)]
        self._own_index = {strip: i for i, strip in enumerate(self._own)}
        strips: list[list[Strip]] = [[] for _ in self.param_groups]
        for strip in self._own:
            strips[self._group[strip.tensor]].append(strip)
        # Where a strip's gradient goes among those of the local optimizer.
        self._seats = {s: (g, k) for g, own in enumerate(strips) for k, s in enumerate(own)}
        self._local_grads: list[list[Any]] = [[None] * len(own) for own in strips]
        groups = [
            {**group, "params": [self._flat[s.tensor][s.begin : s.end] for s in own]}
            for group, own in zip(self.param_groups, strips, strict=True)
        ]
        self._local = AdamW(
            groups,
            amsgrad=amsgrad,
            state_dtype=self.state_dtype,
            decay_mask=[[self._decays[s.tensor] for s in own] for own in strips],
            seed=self._seed,
        )
        self._set_seed(self._seed)

    def _set_seed(self, seed: int | None) -> None:
        self._seed = self._local._seed = seed
        places, firsts = [s.tensor for s in self._own], [s.begin for s in self._own]
        self._local._tensors.set_places(places, firsts, seed)

    def _description(self) -> dict[str, Any]:
        """All that has to be the same on all ranks, by what a message calls it."""
        options = ("state_dtype", "amsgrad", "seed", *OPTIONS)
        facts: dict[str, Any] = {name: getattr(self, name) for name in options}
        facts |= {"bucket_bytes": self._bucket_bytes, "the names in params": self.names}
        for name, array, decays in zip(self.names, self._arrays, self._decays, strict=True):
            order = "C" if array.flags.c_contiguous else "Fortran"
            facts[f"params[{name!r}]"] = f"{array.dtype} {array.shape} in {order} order"
            facts[f"decay_mask of {name!r}"] = decays
        for g, group in enumerate(self.param_groups):
            for name in HYPER_PARAMETERS:
                value = group[name]
                facts[f"{name} of group {g}"] = "a schedule" if callable(value) else value
        for name, flat in zip(self.names, self._flat, strict=True):
            facts[f"the CRC-32 of the values of params[{name!r}]"] = zlib.crc32(flat)
        return facts

    # ---- a step

    @property
    def _needs_norm(self) -> bool:
        return self.max_grad_norm is not None or self.skip_nonfinite

    def _facts(
        self, grads: tuple[Any, ...], hypers: list[Hyper], grad_scale: float
    ) -> dict[str, Any]:
        """What has to be the same on all ranks in a step."""
        facts = {name: getattr(self, name) for name in OPTIONS}
        missing = [i for i, grad in enumerate(grads) if grad is None]
        if missing:
            names = self.names
            facts["the list of tensors without a gradient"] = [names[i] for i in missing]
        return facts | {"t": self.t, "grad_scale": float(grad_scale), "the groups": hypers}

    def _take_step(
        self, grads: tuple[Any, ...], hypers: list[Hyper], grad_scale: float
    ) -> float | None:
        taken = [grad is not None for grad in grads]
        buckets = [b for b in self.plan if any(taken[strip.tensor] for strip in b.strips)]
        lined = [
            None if grad is None else lined_up(np.asarray(grad), order_of(array))
            for grad, array in zip(grads, self._arrays, strict=True)
        ]
        norm = self._mean_and_norm(buckets, lined, grad_scale) if self._needs_norm else None
        if norm is None and self._comm.size > 1:
            self._update_by_sums(buckets, lined, hypers, grad_scale)
        elif norm is None or not (self.skip_nonfinite and not isfinite(norm)):
            self._update_by_means(buckets, lined, hypers, grad_scale, self._clip_factor(norm))
        else:
            return norm
        self._local._tensors.t = self.t + 1
        self._whole.count_step(grads)
        return norm

    def _update_by_sums(
        self, buckets: list[Bucket], grads: list[Any], hypers: list[Hyper], grad_scale: float
    ) -> None:
        """Reduce, update and gather, one bucket behind the other."""
        ranks = self._comm.size
        # A power of two divides as well as a factor of the kernel, unless that is rounded with it.
        folded = grad_scale == 1 and ranks & (ranks - 1) == 0
        for k, bucket, received in self._exchange.reduced(buckets, grads):
            if not folded:
                np.divide(received, ranks, out=received)
            own = self._exchange.own(bucket)
            parts = dict(zip(own, _parts(received, own), strict=True))
            present = {s: part for s, part in parts.items() if grads[s.tensor] is not None}
            self._update(present, hypers, grad_scale, 1 / ranks if folded else 1.0)
            self._exchange.start_gather(k, bucket)
        self._exchange.finish()

    def _update_by_means(
        self,
        buckets: list[Bucket],
        grads: list[Any],
        hypers: list[Hyper],
        grad_scale: float,
        clip: float,
    ) -> None:
        """Update by gradients that hold the mean, and gather."""
        for k, bucket in enumerate(buckets):
            self._update(self._own_grads(bucket, grads), hypers, grad_scale, clip)
            self._exchange.start_gather(k, bucket)
        self._exchange.finish()

    def _update(
        self, grads: dict[Strip, Any], hypers: list[Hyper], grad_scale: float, clip: float
    ) -> None:
        with self._seated(grads):
            self._local._tensors.take_step(
                self._local_grads,
                hypers,
                0,
                grad_scale,
                None,
                False,
                self.maximize,
                self.num_threads,
                None,
                clip,
            )

    def _mean_and_norm(self, buckets: list[Bucket], grads: list[Any], grad_scale: float) -> float:
        """Let this rank's strips of the gradients hold the mean; return the norm of all of it."""
        sums = np.zeros(self._units[self._comm.rank])
        if self._comm.size == 1:
            for bucket in buckets:
                self._add_squares(sums, bucket, grads)
        else:
            for _, bucket, received in self._exchange.reduced(buckets, grads):
                self._keep_mean(bucket, received, grads)
                self._add_squares(sums, bucket, grads)  # while they are in the cache
        of_all = sums_of_all(self._comm, sums, self._units)[self._norm_order]
        # Added up as a single process does; np.sum adds pairwise.
        total = float(np.add.accumulate(of_all)[-1]) if of_all.size else 0.0
        return abs(grad_scale) * sqrt(total)

    def _keep_mean(self, bucket: Bucket, received: Any, grads: list[Any]) -> None:
        own = self._exchange.own(bucket)
        for strip, part in zip(own, _parts(received, own), strict=True):
            grad = grads[strip.tensor]
            if isinstance(grad, np.ndarray):
                np.divide(part, self._comm.size, out=grad[strip.begin : strip.end])
            elif grad is not None:
                np.divide(part, self._comm.size, out=part)
                grad[strip.begin : strip.end] = part

    def _add_squares(self, sums: Any, bucket: Bucket, grads: list[Any]) -> None:
        """Put the sums of squares of this rank's part of a bucket in their places."""
        present = self._own_grads(bucket, grads)
        with self._seated(present):
            found = self._local._tensors.sums_of_squares(self._local_grads, self.num_threads)
        for strip in present:
            start, count = self._first_unit[strip], _units(strip)
            sums[start : start + count], found = found[:count], found[count:]

    def _clip_factor(self, norm: float | None) -> float:
        if norm is None or self.max_grad_norm is None:
            return 1.0
        factor = float(self.max_grad_norm) / (norm + 1e-6)
        return 1.0 if factor > 1 else factor

    def _own_grads(self, bucket: Bucket, grads: list[Any]) -> dict[Strip, Any]:
        """The gradients of this rank's part of a bucket, where there are any."""
        return {
            s: grads[s.tensor][s.begin : s.end]
            for s in self._exchange.own(bucket)
            if grads[s.tensor] is not None
        }

    @contextmanager
    def _seated(self, grads: dict[Strip, Any]) -> Iterator[None]:
        """Have these gradients, and no others, in the structure of the local optimizer."""
        for strip, grad in grads.items():
            group, k = self._seats[strip]
            self._local_grads[group][k] = grad
        try:
            yield
        finally:
            for group, k in (self._seats[strip] for strip in grads):
                self._local_grads[group][k] = None


def lined_up(array: Any, order: str) -> Any:
    """The elements of an array in an order, "C" or "F": a view in one dimension, or an iterator
    that takes and gives slices."""
    if order == "F":
        array = array.T
    return array.reshape(-1) if array.flags.c_contiguous else array.flat


def _parts(received: Any, strips: tuple[Strip, ...]) -> list[Any]:
    ends = list(accumulate(strip.size for strip in strips))
    return [received[end - s.size : end] for s, end in zip(strips, ends, strict=True)]


def _units(strip: Strip) -> int:
    """How many sums of squares a strip has."""
    return -(-strip.size // UNIT)


def _norm_order(plan: list[Bucket], ranks: int) -> tuple[list[int], Any]:
    """How many sums of squares each rank has; and where among these, laid end to end, those that a
    single process adds up are in turn."""
    starts, ends = {}, [0]
    for rank in range(ranks):
        at = ends[-1]
        for strip in sorted(s for bucket in plan for s in bucket.parts[rank]):
            starts[strip] = at
            at += _units(strip)
        ends.append(at)
    ranges = [np.arange(starts[s], starts[s] + _units(s)) for s in sorted(starts)]
    order = np.concatenate(ranges) if ranges else np.zeros(0, np.intp)
    return [end - begin for begin, end in pairwise(ends)], order


def _checked_bytes(bucket_bytes: Any) -> int:
    if not isinstance(bucket_bytes, int):
        raise TypeError(f"bucket_bytes is {bucket_bytes!r}; expected an integer")
    if bucket_bytes < FEWEST_BYTES:
        raise ValueError(f"bucket_bytes is {bucket_bytes}; expected {FEWEST_BYTES} or more")
    return bucket_bytes
