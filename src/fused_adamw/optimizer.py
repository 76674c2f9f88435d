"""``AdamW``: the optimizer that a training loop holds."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ._core import Structure, Tensors, resolve_threads
from ._optim.state_formats import (
    converted,
    decoded,
    like,
    order_of,
    packed_state,
    require_state_dtype,
)

Schedule: TypeAlias = Callable[[int], float]
"""The learning rate of step t = 1, 2, ...; see ``schedules.py``."""

Hyper: TypeAlias = tuple[float, tuple[float, float], float, float]
"""lr, betas, eps and weight_decay of one step."""

DecayMask: TypeAlias = Callable[[str, Any], bool] | Any

HYPER_PARAMETERS = ("lr", "betas", "eps", "weight_decay")
OPTIONS = ("maximize", "max_grad_norm", "skip_nonfinite")


def matrices_only(name: str, array: Any) -> bool:
    """A ``decay_mask`` that exempts biases and the scales and shifts of norms from weight decay:
    it decays arrays of two or more dimensions, as is usual for transformers."""
    return bool(np.ndim(array) >= 2)


class AdamW:
    """AdamW (Loshchilov & Hutter 2019), in the manner of ``torch.optim.AdamW``, on NumPy arrays.

    Each step updates all parameters in place, in one pass over memory::

        g <- grad_scale * clip * gradient               (minus that with maximize)
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2                        (AMSGrad: v_max <- max(v_max, v))
        p <- p - lr (weight_decay p + m_hat / (sqrt(v_hat) + eps))
        where m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)   (AMSGrad: v_max for v)

    Args:
        params: one array, a sequence or a mapping of arrays; or a list of groups, each a dict with
            such a structure under ``"params"`` and its own values of ``lr``, ``betas``, ``eps`` and
            ``weight_decay`` where they differ. Arrays as ``fused_adamw`` takes them. They are held:
            the same arrays have to be used for as long as the optimizer is.
        lr: learning rate, 0 or more, or a function of t that gives the one of step t = 1, 2, ...
        betas, eps, weight_decay: as of ``fused_adamw``.
        amsgrad: divide by the root of the largest second moment so far (Reddi, Kale & Kumar 2018).
        maximize: ascend.
        max_grad_norm: scale the gradients of a step by min(1, max_grad_norm / (norm + 1e-6)) where
            norm is their global Euclidean norm (Pascanu, Mikolov & Bengio 2013), as
            ``torch.nn.utils.clip_grad_norm_`` does. The gradients themselves are not changed. A NaN
            among them reaches all parameters this way, an infinity makes the factor 0.
        skip_nonfinite: a step with a NaN or an infinity in its gradients, or with a norm beyond
            float64, changes nothing.
        state_dtype: what the moments are kept in. None: the dtype of their parameters, or float32
            where that is float16. "bfloat16": 4 bytes a parameter. "8bit": 2 bytes, and 8 a block
            of 256 (``state.py`` has the format). The arithmetic is float32 all the same; only what
            is stored is rounded. For parameters of 16 or 32 bits, without amsgrad in "8bit".
        master_weights: keep parameters of 16 bits in float32 too, as part of the state, and step
            those; the parameters are them, rounded to the nearest.
        seed: of the stochastic rounding of moments in 8 or 16 bits, and of bfloat16 parameters
            without master weights: up with the probability of what lies above, so that steps that
            are small beside the rounding add up. Random numbers follow from the seed, the place of
            the tensor, the index and the step: the result does not depend on threads or machine.
            None: round to the nearest, where changes of less than half a code are lost: v stalls.
        num_threads: at most this many threads. None: as many as ``fused_adamw`` would use, or one;
            the first steps, and a few in each thousand, are taken both ways, and the way that was
            faster is kept. (NumPy's own threads spin after a matrix product and can delay others.)
        decay_mask: which tensors weight decay applies to: a predicate of a name and an array, such
            as ``matrices_only``, or booleans in the structure of ``params``. None: all.

    Attributes:
        t: the number of steps taken. Each tensor also has its own count, which bias correction
            goes by: a tensor whose gradient is None is left out of a step.
        m, v, v_max: the moments, in the structure of ``params``; ``v_max`` is None without amsgrad.
            With a ``state_dtype``, or of parameters of 16 bits, they are copies in float32.
        param_groups: a list of dicts, whose ``lr``, ``betas``, ``eps`` and ``weight_decay`` may be
            changed between steps.
        max_grad_norm, skip_nonfinite, maximize, num_threads: may be changed between steps.

    Raises TypeError or ValueError, naming the argument, as ``fused_adamw`` does. Two threads may
    step two optimizers at once, but not one.

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
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: str | None = None,
        num_threads: int | None = None,
        decay_mask: DecayMask | None = None,
        master_weights: bool = False,
        seed: int | None = 0,
    ) -> None:
        require_state_dtype(state_dtype, amsgrad)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.maximize = bool(maximize)
        self.max_grad_norm = max_grad_norm
        self.skip_nonfinite = bool(skip_nonfinite)
        self.num_threads = num_threads
        self._state_dtype, self._master_weights = state_dtype, bool(master_weights)
        self._seed = seed
        self._grouped = is_grouped(params)
        self.param_groups, self._structure, arrays = arranged(params, defaults)
        refuse_float64(self.names, arrays, state_dtype, "float32, float16 or bfloat16")
        roles = ("m", "v", "v_max") if amsgrad else ("m", "v")
        self._packed = [packed_state(a, state_dtype, amsgrad, bool(master_weights)) for a in arrays]
        self._state = {
            role: [
                np.zeros_like(a, subok=False) if packed is None else None
                for a, packed in zip(arrays, self._packed, strict=True)
            ]
            for role in roles
        }
        self._decays = [True] * len(arrays)
        self._hold()
        if decay_mask is not None:  # asked behind the checks of the arrays
            self._decays = asked_decays(self._structure, decay_mask, arrays)
            self._hold()
        self._tensors.check(hypers_of(self.param_groups, 1), max_grad_norm, [0] * len(arrays))
        resolve_threads(num_threads)

    def step(self, grads: Any, grad_scale: float = 1.0) -> float | None:
        """Update all parameters, in place.

        Args:
            grads: the gradients, in the structure of ``params`` (for groups: a list with one such
                structure for each), of the shapes and dtypes of the parameters, in any memory
                order; only read. None for a tensor leaves it, its moments and its count alone.
            grad_scale: a factor of all gradients, such as 1 / loss scale, or 1 / number of
                accumulated batches. It counts as a part of the gradient for ``max_grad_norm``.

        Returns the global norm of the gradients, times ``grad_scale``, where it was needed (for
        ``max_grad_norm`` or ``skip_nonfinite``), else None.

        Raises TypeError or ValueError, naming the argument, with nothing changed, ``t`` included.
        An interrupt (Ctrl-C) is raised behind the step that it arrives in.
        """
        tensors = self._tensors
        return tensors.take_step(
            grads,
            hypers_of(self.param_groups, tensors.t + 1),
            0,
            grad_scale,
            self.max_grad_norm,
            self.skip_nonfinite,
            self.maximize,
            self.num_threads,
            None,
        )

    # ---- state

    @property
    def t(self) -> int:
        return self._tensors.t

    @property
    def m(self) -> Any:
        return self._structure.unflatten(self._moments("m"))

    @property
    def v(self) -> Any:
        return self._structure.unflatten(self._moments("v"))

    @property
    def v_max(self) -> Any:
        return self._structure.unflatten(self._moments("v_max")) if self.amsgrad else None

    @property
    def state_dtype(self) -> str | None:
        return self._state_dtype

    @property
    def master_weights(self) -> bool:
        return self._master_weights

    @property
    def seed(self) -> int | None:
        return self._seed

    @property
    def amsgrad(self) -> bool:
        return "v_max" in self._state

    @property
    def state_nbytes(self) -> int:
        """The memory of the moments, their scales and the master weights, in bytes."""
        return sum(x.nbytes for i in range(len(self.names)) for x in self._state_of(i).values())

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of everything but the parameters, which shares no memory with the optimizer.

        ``t``; ``param_groups`` without their parameters; the options; and under ``state``, for each
        tensor by name, its ``step`` count and copies of its moments, as they are kept: those of
        state.py flat, in the ``order`` in which the parameters lie in memory, "C" or "F".
        """
        return {
            "t": self.t,
            "param_groups": described_groups(self.param_groups),
            "maximize": bool(self.maximize),
            "max_grad_norm": self.max_grad_norm,
            "skip_nonfinite": bool(self.skip_nonfinite),
            "seed": self.seed,
            "state": {
                name: {
                    "step": step,
                    **self._order_of(i),
                    **{role: a.copy("K") for role, a in self._state_of(i).items()},
                }
                for i, (name, step) in enumerate(
                    zip(self.names, self._tensors.get_steps(), strict=True)
                )
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], convert: bool = False) -> None:
        """Return to a snapshot, taken over parameters of the same names, shapes and dtypes.

        ``convert``: where the snapshot's moments are kept in another way than by this optimizer,
        convert them: from any ``state_dtype`` and memory order to any other, rounded to the
        nearest. Master weights that it has not are then made from the parameters as they are now.

        Raises TypeError or ValueError, naming the entry, with nothing changed.
        """
        if isinstance(state_dict, Mapping):  # which has no seed if it is older
            state_dict = {"seed": self.seed, **state_dict}
        if convert:
            state_dict = self._converted(state_dict)
        groups, steps = self._checked_state(state_dict)
        self._tensors.set_seed(state_dict["seed"])  # which checks it
        self._seed = state_dict["seed"]
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update(saved)
        for option in OPTIONS:
            setattr(self, option, state_dict[option])
        self._tensors.t = state_dict["t"]
        self._tensors.set_steps(steps)
        for i, name in enumerate(self.names):
            for role, array in self._state_of(i).items():
                array[...] = state_dict["state"][name][role]

    @property
    def names(self) -> list[str]:
        """A name for each tensor: its key or index, behind the index of its group."""
        return names_of(self._structure)

    def __getstate__(self) -> dict[str, Any]:
        attributes = {name: x for name, x in vars(self).items() if name not in _REBUILT}
        counts = {"t": self.t, "steps": self._tensors.get_steps(), "grouped": self._grouped}
        return attributes | counts

    def __setstate__(self, state: dict[str, Any]) -> None:
        t, steps, grouped = (state.pop(name) for name in ("t", "steps", "grouped"))
        vars(self).update(state)
        self._grouped = grouped
        self._structure = Structure(self._params(), grouped)
        self._hold()
        self._tensors.t = t
        self._tensors.set_steps(steps)

    def __repr__(self) -> str:
        size = sum(next(iter(self._state_of(i).values())).size for i in range(len(self.names)))
        kept = ("state_dtype", "master_weights", "seed") if any(self._packed) else ()
        options = "".join(
            f", {name}={getattr(self, name)!r}" for name in ("amsgrad", *OPTIONS, *kept)
        )
        groups = (
            ", ".join(f"{name}={group[name]!r}" for name in HYPER_PARAMETERS)
            for group in self.param_groups
        )
        lines = "".join(f"\n    group {g}: {text}" for g, text in enumerate(groups))
        return (
            f"AdamW({len(self.names)} tensors, {size:,} parameters, t={self.t}{options}{lines}\n)"
        )

    # ---- inner parts

    def _params(self) -> Any:
        groups = [group["params"] for group in self.param_groups]
        return groups if self._grouped else groups[0]

    def _hold(self) -> None:
        state = {role: self._structure.unflatten(arrays) for role, arrays in self._state.items()}
        self._tensors = Tensors(
            self._structure,
            self._params(),
            **state,
            decays=self._decays,
            packed=self._packed,
            seed=self._seed,
        )

    def state_layout(self) -> dict[str, tuple[str, ...]]:
        """The names of the arrays that are kept for each tensor, such as ("m", "v")."""
        return {name: tuple(self._state_of(i)) for i, name in enumerate(self.names)}

    def _state_of(self, i: int) -> dict[str, Any]:
        """The arrays that are kept for tensor i, by name."""
        packed = self._packed[i]
        if packed is not None:
            return dict(packed.arrays())
        return {role: arrays[i] for role, arrays in self._state.items()}

    def _order_of(self, i: int) -> dict[str, str]:
        """The ``order`` of the flat arrays that are kept for tensor i."""
        return {} if self._packed[i] is None else {"order": order_of(self._arrays()[i])}

    def _moments(self, role: str) -> list[Any]:
        return [
            array if packed is None else like(p, decoded(packed)[role])
            for p, array, packed in zip(
                self._arrays(), self._state[role], self._packed, strict=True
            )
        ]

    def _arrays(self) -> tuple[Any, ...]:
        return self._structure.flatten("params", self._params())

    def _checked_state(self, saved: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
        groups, steps = checked_numbers(saved, len(self.param_groups), self.names)
        for i, name in enumerate(self.names):
            self._require_entry(f"state_dict['state'][{name!r}]", saved["state"][name], i)
        self._tensors.check(hypers_of(groups, saved["t"] + 1), saved["max_grad_norm"], steps)
        return groups, steps

    def _require_entry(self, where: str, entry: Mapping[str, Any], i: int) -> None:
        state, order = self._state_of(i), self._order_of(i)
        _require_keys(where, entry, {"step", *order, *state})
        if order and entry["order"] != order["order"]:
            raise ValueError(
                f"{where}['order'] is {entry['order']!r}; expected {order['order']!r}, that of the "
                "parameters, or convert=True"
            )
        for role, own in state.items():
            array = entry[role]
            if not isinstance(array, np.ndarray) or array.dtype != own.dtype:
                found = getattr(array, "dtype", type(array).__name__)
                raise TypeError(f"{where}[{role!r}] is {found}; expected an array of {own.dtype}")
            if array.shape != own.shape:
                raise ValueError(f"{where}[{role!r}] has shape {array.shape}; expected {own.shape}")

    def _converted(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """The snapshot with its moments kept as this optimizer keeps them."""
        _require_state(saved, self.names)
        state = {}
        for name, array, packed in zip(self.names, self._arrays(), self._packed, strict=True):
            where, entry = f"state_dict['state'][{name!r}]", saved["state"][name]
            _require_mapping(where, entry)
            state[name] = converted(where, entry, array, packed)
        return {**saved, "state": state}


_REBUILT = {"_structure", "_tensors", "_grouped"}


def names_of(structure: Structure) -> list[str]:
    """A name for each tensor: its key or index, behind the index of its group."""
    return [".".join(map(str, path)) or "params" for path in structure.paths()]


def arranged(
    params: Any, defaults: dict[str, Any]
) -> tuple[list[dict[str, Any]], Structure, tuple[Any, ...]]:
    """The groups of ``params``, which has one or is one; its structure; and its arrays."""
    grouped = is_grouped(params)
    groups = checked_groups(params if grouped else [{"params": params}], defaults)
    held = [group["params"] for group in groups] if grouped else groups[0]["params"]
    structure = Structure(held, grouped)
    arrays = checked_arrays(structure, held)
    # Our own arrangement of the arrays: a dict of the caller's may change.
    own = structure.unflatten(arrays)
    for group, of_group in zip(groups, own if grouped else [own], strict=True):
        group["params"] = of_group
    return groups, structure, arrays


def refuse_float64(
    names: list[str], arrays: tuple[Any, ...], state_dtype: str | None, expected: str
) -> None:
    """There is no ``state_dtype`` for it."""
    for name, array in zip(names, arrays, strict=True):
        if state_dtype is not None and np.asarray(array).dtype == np.float64:
            raise TypeError(
                f"state_dtype is {state_dtype!r}, but params[{name!r}] has dtype float64; "
                f"expected {expected}"
            )


def checked_arrays(structure: Structure, params: Any) -> tuple[Any, ...]:
    """The arrays of ``params``, one at least, each with a name of its own."""
    arrays = structure.flatten("params", params)
    if not arrays:
        raise ValueError("params holds no array")
    for path, array in zip(structure.paths(), arrays, strict=True):
        _require_array("params" + "".join(f"[{key!r}]" for key in path), array)
    twice = [name for name, count in Counter(names_of(structure)).items() if count > 1]
    if twice:
        raise ValueError(f"params has several arrays with one name: {twice}")
    return arrays


def asked_decays(structure: Structure, mask: DecayMask, arrays: tuple[Any, ...]) -> list[bool]:
    """For each tensor, whether a ``decay_mask`` lets weight decay apply to it."""
    if callable(mask):
        return [bool(mask(name, a)) for name, a in zip(names_of(structure), arrays, strict=True)]
    return [bool(decays) for decays in structure.flatten("decay_mask", mask)]


def _require_array(name: str, array: Any) -> None:
    try:
        isinstance(array, np.ndarray) or memoryview(array)
    except TypeError:
        hint = "; for PyTorch there is fused_adamw.torch" if hasattr(array, "requires_grad") else ""
        raise TypeError(
            f"{name} is of type {type(array).__name__}; expected a NumPy array{hint}"
        ) from None


def is_grouped(params: Any) -> bool:
    if not isinstance(params, (list, tuple)):
        return False
    groups = [isinstance(item, Mapping) for item in params]
    if any(groups) and not all(groups):
        raise TypeError("params holds groups and arrays; expected a list of one or the other")
    return any(groups)


def checked_groups(groups: Any, defaults: dict[str, Any]) -> list[dict[str, Any]]:
    for g, group in enumerate(groups):
        unknown = sorted(set(map(str, group)) - {"params", *HYPER_PARAMETERS})
        if "params" not in group or unknown:
            raise ValueError(
                f"params[{g}] has the keys {list(group)}; expected 'params', and of "
                f"{', '.join(HYPER_PARAMETERS)} what differs"
            )
    return [{"params": group["params"], **defaults, **group} for group in groups]


def hypers_of(groups: list[dict[str, Any]], t: int) -> list[Hyper]:
    """The hyper-parameters of step t, by group."""
    hypers = []
    for group in groups:
        lr = group["lr"]
        rate = lr(t) if callable(lr) else lr
        hypers.append((rate, group["betas"], group["eps"], group["weight_decay"]))
    return hypers


def checked_numbers(
    saved: Mapping[str, Any], groups: int, names: list[str]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Check a state dict but for its arrays and the values of its hyper-parameters; return its
    groups and the steps of its tensors."""
    _require_state(saved, names)
    _require_count("state_dict['t']", saved["t"])
    for option in ("maximize", "skip_nonfinite"):
        if not isinstance(saved[option], bool):
            raise TypeError(f"state_dict[{option!r}] is {saved[option]!r}; expected a bool")
    found = saved["param_groups"]
    if not isinstance(found, list):
        raise TypeError(f"state_dict['param_groups'] is {found!r}; expected a list")
    if len(found) != groups:
        raise ValueError(f"state_dict['param_groups'] has {len(found)} groups; expected {groups}")
    for g, group in enumerate(found):
        _require_keys(f"state_dict['param_groups'][{g}]", group, set(HYPER_PARAMETERS))
    steps = []
    for name in names:
        where, entry = f"state_dict['state'][{name!r}]", saved["state"][name]
        _require_mapping(where, entry)
        _require_keys(where, entry, {"step", *entry})
        _require_count(f"{where}['step']", entry["step"])
        steps.append(entry["step"])
    return found, steps


def _require_state(saved: Mapping[str, Any], names: list[str]) -> None:
    _require_keys("state_dict", saved, {"t", "param_groups", "state", "seed", *OPTIONS})
    _require_keys("state_dict['state']", saved["state"], set(names))


def described_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups of a state dict: without their parameters."""
    return [
        {**{name: group[name] for name in HYPER_PARAMETERS}, "betas": tuple(group["betas"])}
        for group in groups
    ]


def _require_mapping(where: str, mapping: Any) -> None:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{where} is of type {type(mapping).__name__}; expected a mapping")


def _require_keys(where: str, mapping: Any, keys: set[str]) -> None:
    _require_mapping(where, mapping)
    if set(mapping) != keys:
        missing, extra = sorted(keys - set(mapping)), sorted(map(str, set(mapping) - keys))
        raise ValueError(f"{where} is of another optimizer: missing {missing}, unexpected {extra}")


def _require_count(where: str, count: Any) -> None:
    if not isinstance(count, int) or not 0 <= count < 2**63 - 2**32:  # with room to count on
        raise ValueError(f"{where} is {count!r}; expected a number of steps, 0 or more")
