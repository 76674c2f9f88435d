"""The base of ``AdamW`` and ``ShardedAdamW``: parameters, options, numbers of the state."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from .._core import BoundTensors, ParamSources, TreeSpec, hyperparams_at, shown
from .arrays import (
    Array,
    MemoryOrder,
    Shape,
    ShardSlice,
    order_of,
    persistent_views,
    view_of,
)
from .options import (
    HYPERPARAMETERS,
    OPTIONS,
    RATE_OPTIONS,
    ROLES,
    DecayRates,
    Option,
    Options,
    check_flag,
    rates_of,
    roles_of,
)
from .param_groups import (
    GROUP_KEYS,
    DecayMask,
    Hyperparams,
    ParamGroup,
    arrange,
    as_numbers,
    check_state_support,
    has_nothing_else,
    resolve_decay_mask,
    serialize_groups,
)
from .state_dict import check_numbers, step_counts
from .state_formats import (
    StateOptions,
    TensorState,
    check_roles,
    format_of,
    has_param_layout,
    state_layout,
)

_CONSTRUCTION = {"params", "decay_mask", "bucket_bytes", "allocate"}
"""Arguments that are neither options nor attributes."""


class BaseOptimizer(Options):
    """Parameter groups, options, and the numbers of the state.

    A subclass calls ``_arrange``, makes ``_bound`` over its ``_state``, and then calls ``_finish``.
    """

    param_groups: list[ParamGroup]
    _comm: Any = None  # the communicator of mpi4py that ranks share; None: a single process
    _spec: TreeSpec
    _sources: ParamSources
    _views: list[Array | None]
    _grouped: bool
    _decays: list[bool]  # by tensor, whether weight decay applies to it
    _state_options: StateOptions
    _rates: DecayRates
    _state: list[TensorState]  # by slot
    _bound: BoundTensors

    def _arrange(self, params: Any, arguments: Mapping[str, Any]) -> None:
        """Take over the arguments of a constructor."""
        options = {
            name: option.check(name, arguments.get(name, option.default))
            for name, option in OPTIONS.items()
        }
        for name, value in options.items():
            self._set(name, value)
        self._state_options = StateOptions(self.state_dtype, roles_of(options))
        check_roles(self._state_options)
        self.param_groups, self._spec, self._grouped, self._sources = arrange(params, arguments)
        self._views = persistent_views(self._sources.arrays)
        check_state_support(self._spec, self._arrays, self.state_dtype)
        self._decays = [True] * len(self._arrays)

    def _finish(self, decay_mask: DecayMask | None) -> None:
        """Apply the mask and check the first step's numbers, after the arrays were checked."""
        if decay_mask is not None:
            self._decays = resolve_decay_mask(self._spec, decay_mask, self._sources.arrays)
            self._bound.set_decays(self._decays)
        self._bound.check(self._hypers_at(1), [0] * len(self._arrays))

    def _hypers_at(self, t: int) -> list[Hyperparams]:
        return self._sources.hyperparams(self.param_groups, t, self._rates)

    if not TYPE_CHECKING:  # type checkers would accept every name

        def __setattr__(self, name: str, value: Any) -> None:
            option = OPTIONS.get(name)
            if name in _CONSTRUCTION or (option is not None and option.fixed):
                raise AttributeError(f"{name} cannot be changed after construction")
            if name in HYPERPARAMETERS:
                raise AttributeError(
                    f"{name} must be set in parameter groups: opt.param_groups[0][{name!r}] = ..."
                )
            if option is not None and option.check is check_flag:
                value = check_flag(name, value)
            self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        """Set an option, a fixed one too. (To go through ``vars`` would slow down later reads.)"""
        object.__setattr__(self, name, value)
        if name in RATE_OPTIONS:  # kept together, as every step needs them
            rates = tuple([option and getattr(self, option, None) for option in RATE_OPTIONS])
            object.__setattr__(self, "_rates", rates)

    @property
    def t(self) -> int:
        """The number of steps taken."""
        return self._bound.t

    @property
    def _arrays(self) -> list[Array]:
        """The parameters, in the order of ``names``; complete on every rank."""
        return list(map(view_of, self._sources.arrays, self._views))

    @property
    def names(self) -> list[str]:
        """A name for each tensor, such as "layers.3.w"; in groups, "0.layers.3.w"."""
        return self._spec.names()

    def _param_array(self, tensor: int) -> Array:
        """One of ``_arrays``, without a look at the others."""
        return view_of(self._sources.arrays[tensor], self._views[tensor])

    @property
    def state_nbytes(self) -> int:
        """The memory of all arrays of the state, in bytes."""
        return sum(array.nbytes for state in self._state for array in state.arrays.values())

    def _exclusive(self, operation: str, changes: bool = True) -> AbstractContextManager[Any]:
        """A block in which no other thread uses the optimizer, and no other operation changes it.

        Args:
            operation: its name, for messages.
            changes: whether it changes the optimizer, and so must not begin within another one.
        """
        raise NotImplementedError

    def _collective_call(self, operation: str, **numbers: int) -> dict[str, Any]:
        """Values by name that must be the same on all ranks when they begin an operation; {} for a
        single process."""
        raise NotImplementedError

    def _shards(self, tensor: int) -> list[ShardSlice]:
        """The slices of a tensor, in order, each with the rank that keeps its state."""
        raise NotImplementedError

    def _own_state(self, shard: ShardSlice, role: str) -> Array:
        """The state that this rank keeps of a slice of its own, flat, in memory order."""
        raise NotImplementedError

    def _gather_params(self) -> None:
        """Gather the parameters of all shards on every rank, from those that own them."""
        raise NotImplementedError

    def _state_numbers(self) -> dict[str, Any]:
        """``state_dict()`` without its arrays."""
        self._sources.check_unchanged(self.param_groups, False)
        steps = zip(self.names, self._bound.get_steps(), self._orders(), strict=True)
        return {
            "t": self.t,
            "param_groups": serialize_groups(self.param_groups),
            **self._get_options(lambda option: option.saved),
            "state": {
                name: {"step": step} | ({} if order is None else {"order": order})
                for name, step, order in steps
            },
        }

    def _check_params(self) -> None:
        """Raise ValueError where an array of the groups was replaced or changed its shape or dtype,
        or is read-only."""
        self._sources.check_unchanged(self.param_groups, True)

    def _check_options(self) -> None:
        """Raise TypeError or ValueError, as a step does, for options and hyper-parameters that are
        of a wrong kind, and for a rate without the array of the state that it needs."""
        for name, option in OPTIONS.items():
            option.check(name, getattr(self, name))
        for group in self.param_groups:
            for name in HYPERPARAMETERS:
                as_numbers(name, group[name])
        self._bound.check_rates(self._rates)

    def _check_values(self, saved: Mapping[str, Any]) -> None:
        """Raise what ``load_state_dict`` raises for everything but the parameters, and the arrays
        of the state and their memory order.

        Args:
            saved: as in ``_state_numbers``, or a whole state dict.

        Raises:
            TypeError, ValueError: naming the entry.
        """
        t, steps = check_numbers(saved, len(self.param_groups), self.names)
        rates = rates_of(self._loaded_options(saved))
        hypers = hyperparams_at(saved["param_groups"], t + 1, rates)
        self._bound.check(hypers, steps)

    def _load_numbers(self, saved: Mapping[str, Any]) -> None:
        """Take over numbers that ``_check_values`` has accepted."""
        groups = saved["param_groups"]
        numbers = [{name: as_numbers(name, x[name]) for name in HYPERPARAMETERS} for x in groups]
        options = self._loaded_options(saved)
        options = {name: OPTIONS[name].check(name, x) for name, x in options.items()}
        t, steps = step_counts(saved, self.names)
        for group, found in list(zip(self.param_groups, numbers, strict=True)):
            group.update(found)  # from here on nothing raises
        for name, value in options.items():
            self._set(name, value)
        self._bound.set_seed(self.seed)
        self._bound.t = t
        self._bound.set_steps(steps)

    def _state_entries(self, param: Array) -> dict[str, tuple[str, Shape]]:
        """By role, the storage type and shape of the arrays that one process keeps of a tensor."""
        return state_layout(param.dtype.name, param.shape, self._state_options)

    def _loaded_options(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a snapshot; our own where only one of the two has the array that an option
        needs, which conversion makes or drops."""
        options = {name: saved[name] for name, option in OPTIONS.items() if option.saved}
        for name in options.keys() & ROLES:
            if ROLES[name] not in self._state_options.roles:
                options[name] = OPTIONS[name].default
            elif ROLES[name] not in roles_of(options):
                options[name] = getattr(self, name)
        return options

    def _orders(self) -> list[MemoryOrder | None]:
        """The memory order in which the state of each tensor is flat; None where it is not flat."""
        formats = [format_of(array.dtype.name, self.state_dtype) for array in self._arrays]
        return [
            None if has_param_layout(array.dtype.name, format_) else order_of(array)
            for array, format_ in zip(self._arrays, formats, strict=True)
        ]

    def _params(self) -> Any:
        """The parameters in the structure of ``_spec``."""
        trees = [group["params"] for group in self.param_groups]
        return trees if self._grouped else trees[0]

    def _find_params(self) -> None:
        """Take the parameters from the groups, as from the arguments of a constructor."""
        self._spec = TreeSpec(self._params(), self._grouped)
        self._sources = ParamSources(self._spec, self._params(), GROUP_KEYS)
        self._views = persistent_views(self._sources.arrays)

    def _own_groups(self) -> list[ParamGroup]:
        """Copies of the groups, whose containers have the parameters alone: those of the groups
        where these do, so that a model that is copied together with them still shares them."""
        trees = self._spec.unflatten(self._sources.arrays)
        pairs = zip(self.param_groups, trees if self._grouped else [trees], strict=True)
        return [
            group | ({} if has_nothing_else(group["params"], tree) else {"params": tree})
            for group, tree in pairs
        ]

    def _get_options(self, selects: Callable[[Option], bool]) -> dict[str, Any]:
        """The values of the options that a predicate selects, as numbers of Python; bad ones, which
        steps refuse, as they are."""
        values = {name: getattr(self, name) for name, x in OPTIONS.items() if selects(x)}
        for name, value in values.items():
            with suppress(TypeError, ValueError):
                values[name] = OPTIONS[name].check(name, value)
        return values

    def _contents_repr(self) -> str:
        """The numbers of tensors and parameters, and t."""
        count, size = len(self._arrays), sum(array.size for array in self._arrays)
        tensors, params = f"tensor{'s' * (count != 1)}", f"parameter{'s' * (size != 1)}"
        return f"{count} {tensors}, {size:,} {params}, t={self.t}"

    def _options_repr(self) -> str:
        """The options that differ from their defaults."""
        values = {k: shown(x) for k, x in self._get_options(lambda option: True).items()}
        return "".join(f", {k}={x}" for k, x in values.items() if x != shown(OPTIONS[k].default))

    def __copy__(self) -> NoReturn:
        """Raise TypeError: a shallow copy would share the arrays of the state, but not ``t``."""
        instead = "copy.deepcopy, or a checkpoint" if self._comm is None else "save_checkpoint"
        raise TypeError(f"{type(self).__name__} cannot be copied in part; use {instead}")
