"""``AdamW`` for NumPy arrays."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ._core import BoundTensors, DeferredSignals, ReentrantLock
from ._optim.allocation import Allocate
from ._optim.arrays import Array, ArrayTree, GradientTree, ShardSlice, order_of, ravel_like
from ._optim.conversion import convert_state
from ._optim.decoded_state import DecodedState
from ._optim.options import check_flag
from ._optim.param_groups import DecayMask, groups_repr, matrices_only
from ._optim.snapshots import read_once
from ._optim.state_dict import (
    SavedState,
    read_entry,
    require_saved_roles,
    warn_of_conversion,
)
from ._optim.state_formats import StateDtype, allocate_state
from .schedules import Schedule

__all__ = ["AdamW", "DecayMask", "matrices_only"]


class AdamW(DecodedState):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) for NumPy arrays.

    The interface is that of ``torch.optim.AdamW`` without ``add_param_group``, ``zero_grad``,
    ``state`` and ``defaults``, and gradients are passed to ``step``. Each step updates all
    parameters in place, in one pass over memory::

        g <- grad_scale * clip * gradient               (negated with maximize)
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2                        (AMSGrad: v_max <- max(v_max, v))
        p <- p - lr (weight_decay p + m_hat / (sqrt(v_hat) + eps))
        where m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)   (AMSGrad: v_max for v)

    Threads may share an optimizer: steps, state dicts, copies, loads, saves wait for one another.

    Args:
        params: one array; or lists, tuples and mappings of arrays, nested at most 100 deep; or a
            list of parameter groups: dicts with such a structure under ``"params"``, and their own
            ``lr``, ``betas``, ``eps`` and ``weight_decay`` where these differ. Arrays of float32,
            float64, float16 or bfloat16 (``ml_dtypes``), contiguous in C or Fortran order,
            writable, with memory of their own. They are updated in place. The optimizer keeps
            references to them and their containers; a step refuses arrays that were replaced.
        lr: learning rate, at least 0 (down to -1e-12, as a rounding error of a schedule's end); or
            a schedule, a function of the step t = 1, 2, ..., which may be called twice for a step.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the denominator, at least 0; or a function of the step. With
            ``lambda t: e / sqrt(1 - b2**t)`` a step is that of libraries which add e to the root of
            v before bias correction ("epsilon hat" in the paper of Adam).
        weight_decay: coefficient of decoupled weight decay, at least 0.
        amsgrad: divide by the root of the largest second moment so far (Reddi, Kale & Kumar 2018,
            "On the Convergence of Adam and Beyond").
        maximize: maximize the objective instead of minimizing it.
        max_grad_norm: scale the gradients of a step by min(1, max_grad_norm / (norm + 1e-6)) where
            norm is their global Euclidean norm (Pascanu, Mikolov & Bengio 2013), as
            ``torch.nn.utils.clip_grad_norm_`` does. The gradients themselves are not changed. A NaN
            in any gradient makes all parameters NaN this way; an infinity makes the factor 0.
        skip_nonfinite: a step with a NaN or an infinity in its gradients, or with float64 gradients
            whose sum of squares is beyond float64, changes nothing.
        state_dtype: storage format of the moments. None: the dtype of the parameters (float32 for
            float16 parameters). "float32": 8 bytes per parameter. "bfloat16": 4. "8bit": 2, plus 8
            per block of 256; not with amsgrad. docs/state-formats.md describes them. The arithmetic
            is float32 all the same. Not for float64 parameters.
        num_threads: the largest number of threads. None: the first steps, and a few in each
            thousand, are timed with one and with all threads, and the faster setting is kept.
            (NumPy's own threads spin after a matrix product and can delay others.)
        decay_mask: which tensors weight decay applies to: a predicate of a name and an array, such
            as ``matrices_only``, or booleans in the structure of ``params``. None: all.
        master_weights: keep 16-bit parameters in float32 too, as part of the state, and update
            those; the parameters are their values, rounded to the nearest. ``master`` reads them.
            bfloat16: 2 bytes a parameter, the low 16 bits, which the parameter completes; ties
            round away from zero. If other code has written a parameter, the next step starts from
            that value, to within half a unit in its last place, since the low bits remain.
            float16: 4 bytes; the next step overwrites parameters that other code has written.
        seed: 0 to 2^32 - 1, the seed of the stochastic rounding of 8-bit and 16-bit moments, and of
            bfloat16 parameters without master weights: a number rounds up with probability equal to
            the discarded fraction, so that updates below one quantum accumulate. The random numbers
            depend on the seed, the tensor's index, the element's index and the step alone, not on
            threads or machine. None: round to the nearest; small updates are lost, and v stalls.
        ema_decay: keep an exponential moving average of the weights, ``ema``, updated in the same
            pass: ema <- ema_decay ema + (1 - ema_decay) p (Polyak & Juditsky 1992; Izmailov et al.
            2018, arXiv:1803.05407). In [0, 1). It starts as the parameters. None: none is kept.
        allocate: called as ``np.zeros(size, dtype)`` for each array of the state, and returns as
            that does; for state that exceeds memory, an ``np.memmap`` of a file whose space on the
            disk is reserved (docs/faq.md has one). Copies are in ordinary memory.

    Attributes:
        t: the number of steps taken. Each tensor also has its own count, which bias correction
            uses: a tensor whose gradient is None is left out of a step.
        param_groups: a list of dicts, whose ``lr``, ``betas``, ``eps`` and ``weight_decay`` may be
            changed between steps.
        amsgrad: whether AMSGrad is used. ``maximize``, ``max_grad_norm``, ``skip_nonfinite``,
            ``state_dtype``, ``num_threads``, ``master_weights``, ``seed`` and ``ema_decay`` are
            attributes, too. All but ``amsgrad``, ``state_dtype``, ``master_weights`` and ``seed``
            may be changed between steps; ``ema_decay`` neither from None nor to None.

    Raises:
        TypeError: an argument is of a wrong kind or dtype.
        ValueError: an argument has a wrong value. The message names the argument.

    Example:
        >>> import numpy as np
        >>> w = np.ones(3)
        >>> opt = AdamW({"w": w}, lr=0.1, weight_decay=0.0)
        >>> opt.step({"w": np.array([0.1, -2.0, 0.0])})
        >>> w
        array([0.90000001, 1.1       , 1.        ])
    """

    def __init__(
        self,
        params: ArrayTree | list[dict[str, Any]],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | Schedule = 1e-8,
        weight_decay: float = 0.01,
        *,
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
        self._lock = ReentrantLock()
        self._arrange(params, locals())
        self._state = [allocate_state(x, self._state_options, allocate) for x in self._arrays]
        self._bind()
        self._finish(decay_mask)

    def step(self, grads: GradientTree, grad_scale: float = 1.0) -> float | None:
        """Update all parameters in place.

        Args:
            grads: the gradients, in the structure of ``params`` (for groups: a list with one such
                structure for each), of the shapes and dtypes of the parameters, in any memory
                order; only read. None for a tensor leaves it, its state and its count unchanged.
            grad_scale: a factor of all gradients, such as 1 / loss scale, or 1 / number of
                accumulated batches. It counts as a part of the gradient for ``max_grad_norm``.

        Returns:
            The global norm of the gradients, times ``grad_scale``, where it was needed (for
            ``max_grad_norm`` or ``skip_nonfinite``), else None.

        Raises:
            TypeError, ValueError: naming the argument, with nothing changed, ``t`` included.
            RuntimeError: called by code that an operation of this optimizer runs, as a schedule is.
            KeyboardInterrupt, other exceptions of signal handlers: before the step or after it.
        """
        return self._bound.step_in_turn(
            self._lock,
            self._hypers_at,
            grads,
            grad_scale,  # by position: names would take a twentieth of a small model's step
            self.max_grad_norm,
            self.skip_nonfinite,
            self.maximize,
            self.num_threads,
        )

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of everything but the parameters, which shares no memory with the optimizer.

        Returns:
            ``t``; ``param_groups`` without their parameters; the options that are saved; and under
            ``state``, for each tensor by name, its ``step`` count and copies of its arrays as they
            are stored. Arrays that do not have the shape of the parameter are flat, in the memory
            ``order`` of the parameter, "C" or "F"; those of bfloat16 are of uint16.
        """
        with self._exclusive("state_dict", changes=False):
            numbers = self._state_numbers()
            for entry, state in zip(numbers["state"].values(), self._state, strict=True):
                entry |= state.copy().arrays
            return numbers

    def load_state_dict(self, state_dict: Mapping[str, Any], convert: bool = True) -> None:
        """Return to a snapshot, taken over parameters of the same names, shapes and dtypes.

        Args:
            state_dict: from ``state_dict()``; its arrays are copied, and its hyper-parameters
                (schedules, too) and options replace those of the optimizer.
            convert: where the snapshot stores state in another format or memory order than this
                optimizer, convert it, rounding to the nearest, with one UserWarning that names the
                formats. Missing master weights and averages are initialized from the current
                parameters. False refuses such a snapshot.

        Raises:
            TypeError, ValueError: naming the entry, with nothing changed.
            RuntimeError: called by code that an operation of this optimizer runs.
            KeyboardInterrupt, other exceptions of signal handlers: before all is loaded, or after.
        """
        with self._exclusive("load_state_dict"):
            state_dict = read_once(state_dict)
            entries = self._checked_entries(state_dict, check_flag("convert", convert))
            warn_of_conversion("state_dict", (entry.difference for entry in entries))
            self._check_params()  # again, after what shows a warning
            with DeferredSignals():
                self._load_numbers(state_dict)
                for saved, own, param in zip(entries, self._state, self._arrays, strict=True):
                    convert_state(saved.state, saved.order, own, param)

    def _checked_entries(self, saved: Mapping[str, Any], convert: bool) -> list[SavedState]:
        self._check_params()
        self._check_values(saved)
        entries, options = [], self._state_options
        for name, param in zip(self.names, self._arrays, strict=True):
            where, entry = f"state_dict['state'][{name!r}]", saved["state"][name]
            require_saved_roles(where, saved, entry)
            entries.append(read_entry(where, entry, options, param, convert, self._bound))
        return entries

    # ---- checkpoints

    def exclusive(self) -> AbstractContextManager[Any]:
        """A block in which no other thread steps, saves or loads this optimizer. The same thread
        may enter it again.

        Example: ``with opt.exclusive(): pid = os.fork()`` while another thread trains."""
        return self._lock

    def _exclusive(self, operation: str, changes: bool = True) -> AbstractContextManager[Any]:
        """``exclusive()``, in which no other operation of this thread changes the optimizer."""
        return self._lock.during(operation, changes=changes)

    def _collective_call(self, operation: str, **numbers: int) -> dict[str, Any]:
        """Nothing: a single process."""
        return {}

    def _shards(self, tensor: int) -> list[ShardSlice]:
        """One, which is the tensor as a whole."""
        return [ShardSlice(tensor, 0, self._param_array(tensor).size, rank=0)]

    def _own_state(self, shard: ShardSlice, role: str) -> Array:
        """The array of a role of a tensor, in one dimension, in the parameter's memory order."""
        array = self._state[shard.tensor].arrays[role]
        return ravel_like(array, order_of(array))

    def _gather_params(self) -> None:
        """Nothing: a single process has all parameters."""

    # ---- copies

    def __getstate__(self) -> dict[str, Any]:
        with self._exclusive("a copy", changes=False):
            self._sources.check_unchanged(self.param_groups, False)
            # Copies, as arrays are pickled later. (The parameters too, which a model may share.)
            return {name: x for name, x in vars(self).items() if name not in _REBUILT} | {
                "param_groups": self._own_groups(),
                "_state": [x.copy() for x in self._state],
                _COPIED: ([x.copy("K") for x in self._arrays], self.t, self._bound.get_steps()),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        values, t, steps = state.pop(_COPIED)
        vars(self).update(state)
        self._lock = ReentrantLock()
        self._find_params()
        # Pickles of protocol 5 keep arrays read-only, and so do buffers that come beside a pickle.
        self._state = [x if x.is_writable() else x.copy() for x in self._state]
        self._bind(readonly=True)
        for array, value in zip(self._arrays, values, strict=True):
            if array.flags.writeable or array.tobytes() != value.tobytes():
                array[...] = value
        self._bound.t = t
        self._bound.set_steps(steps)

    def __repr__(self) -> str:
        parts = self._contents_repr(), self._options_repr(), groups_repr(self.param_groups)
        return f"AdamW({''.join(parts)}\n)"

    # ---- inner parts

    def _bind(self, *, readonly: bool = False) -> None:
        """Bind parameters and state; ``readonly``: the parameters may be, until a step."""
        seed, roles = self.seed, self._state_options.roles
        self._bound = BoundTensors(
            self._spec, self._params(), self._state, seed=seed, roles=roles, readonly=readonly
        )
        self._bound.sources = self._sources
        self._bound.set_decays(self._decays)


_REBUILT = {"_spec", "_sources", "_views", "_bound", "_lock"}
_COPIED = "_copied"  # of a copy: the parameters, t and the counts of steps
